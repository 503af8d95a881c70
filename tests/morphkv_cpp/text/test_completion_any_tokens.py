"""Completions of any tokens, which stock llama_cpp may break: equal where it does not."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.replay import BOS, EOS, FIRST, texts


def without_offsets(chunks: list[dict]) -> list[dict]:
    for chunk in chunks:
        if chunk["choices"][0]["logprobs"]:
            del chunk["choices"][0]["logprobs"]["text_offset"]
    return chunks


@st.composite
def answers(draw, alphabet):
    """Pieces of an answer: some text, cut at any bytes, tokens without text among them."""
    text = draw(alphabet)
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=12).map(sorted))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


LETTERS = st.text(st.sampled_from("aab \u00e9\u20ac\U0001f600"), max_size=12)
REQUESTS = st.fixed_dictionaries(
    {
        "stop": st.lists(st.text(st.sampled_from("aab \u00e9\u20ac\U0001f600"), min_size=1, max_size=3), max_size=3),
        "max_tokens": st.sampled_from([None, 1, 2, 3, 5]),
        "logprobs": st.sampled_from([None, None, 0, 2]),
        "echo": st.booleans(),
    }
)


def expected_stream(pieces: list[bytes], stops: list[str]) -> str:
    text = b"".join(pieces)
    return text[: min((i for i in map(text.find, map(str.encode, stops)) if i >= 0), default=None)].decode(
        errors="ignore"
    )


def waits(pieces: list[bytes]) -> str:
    """Behind which tokens stock waits for a character: "-" or "w" for each. Lines of Llama._create_completion."""
    text, multibyte_fix, seen = b"", 0, ""
    for piece in pieces:
        text += piece
        for k, char in enumerate(text[-3:]):
            k = 3 - k
            for num, pattern in [(2, 192), (3, 224), (4, 240)]:
                if num > k and pattern & char == pattern:
                    multibyte_fix = num - k
        seen += "w" if multibyte_fix > 0 else "-"
        multibyte_fix = max(0, multibyte_fix - 1)
    return seen


class TestAnyTokens:
    """Stock looks for no stop text behind an answer's end, and waits as often as it likes: see TestBetterThanStock."""

    @settings(max_examples=300, deadline=None)
    @given(pieces=answers(LETTERS.map(str.encode)), request_=REQUESTS)
    def test_texts_cut_anywhere(self, stock, ours, pieces, request_):
        assume("wwww" not in waits(pieces))
        tokens = [*range(FIRST, FIRST + len(pieces)), EOS]
        whole = ours.whole(tokens, pieces, **request_)
        used = pieces[: whole["usage"]["completion_tokens"]]
        if not waits(used).endswith("w"):
            assert whole == stock.whole(tokens, pieces, **request_)
        mine, theirs = (without_offsets(one.chunks(tokens, pieces, **request_)) for one in (ours, stock))
        if texts(mine) != texts(theirs):  # then stock has lost a character
            assert "".join(texts(mine)) == expected_stream(used, request_["stop"]) != "".join(texts(theirs))
            for chunk, other in zip(mine, theirs):
                chunk["choices"][0]["text"] = other["choices"][0]["text"]
        assert mine == theirs

    @settings(max_examples=300, deadline=None)
    @given(pieces=answers(st.binary(max_size=12)), request_=REQUESTS)
    def test_bytes_that_are_no_text(self, stock, ours, pieces, request_):
        tokens = [*range(FIRST, FIRST + len(pieces)), EOS]
        whole = ours.whole(tokens, pieces, **request_)
        used = pieces[: whole["usage"]["completion_tokens"]]
        if "wwww" not in waits(pieces) and not waits(used).endswith("w"):
            assert whole == stock.whole(tokens, pieces, **request_)
        assert "".join(texts(ours.chunks(tokens, pieces, **request_))) == expected_stream(used, request_["stop"])

    @settings(max_examples=100, deadline=None)
    @given(tokens=st.lists(st.integers(0, 319), max_size=20), request_=REQUESTS)
    def test_tokens_of_the_vocabulary(self, stock, ours, tokens, request_):
        assume(tokens[:1] != [BOS])
        waited = waits([stock.llm.detokenize([token]) for token in tokens])
        assume("wwww" not in waited and not waited.endswith("w"))
        tokens = [*tokens, EOS]
        try:
            theirs = stock.whole(tokens, **request_)
        except IndexError:  # nothing but BOS, echoed with logprobs
            return
        assert ours.whole(tokens, **request_) == theirs
