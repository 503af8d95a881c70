"""Heads that draft: inside of the model (qwen35, GLM Flash), beside it (gemma4 and its assistant), and EAGLE 3.

Their weights are such that some drafts are right and some are not (tests/support/heads.py).
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.cache.reuse import common_prefix
from support import heads, more_heads
from support.projectors import with_image, write_projector
from support.server_process import TIGHT
from support.server_process import some_tokens as tokens
from support.tiny import QUIET, last_logits

# Sums over a batch are rounded otherwise than over single tokens, and of two tokens with nearly equal votes the other
# may stay. With K and V in f32 that is rare, as in stock, and does not happen with these weights (native/README.md).
EXACT = ["-np", 1, "-ctk", "f32", "-ctv", "f32", "--slots"]
ROOMY = [*TIGHT, "--morphkv-capacity", 512]
DRAFT = ["--spec-draft-n-max", 4, "-ctkd", "f32", "-ctvd", "f32"]
MTP = [*DRAFT, "--spec-type", "draft-mtp"]


INSIDE = {
    "qwen35": heads.write_qwen35,
    "glm-flash": heads.write_glm_flash,
    "glm4moe": more_heads.write_glm4moe,
    "nemotron": more_heads.write_nemotron,
    "ling": more_heads.write_ling,
}


@pytest.fixture(scope="module", params=[*INSIDE, "gemma4", "eagle3"])
def pair(request, tmp_path_factory):
    """A model, and the flags that make a server draft with its heads."""
    folder = tmp_path_factory.mktemp("heads")
    if request.param in INSIDE:
        return INSIDE[request.param](folder / "model.gguf"), MTP
    return write_beside(folder, request.param, seed={"gemma4": 7, "eagle3": 4}[request.param])


def write_beside(folder, kind, seed):
    """A model with its head beside it, and the flags."""
    write = {"gemma4": heads.write_gemma4, "eagle3": heads.write_eagle3}[kind]
    model, head = write(folder / "model.gguf", folder / "head.gguf", seed=seed)
    flags = MTP if kind == "gemma4" else [*DRAFT, "--spec-type", "draft-eagle3"]
    return model, [*flags, "--spec-draft-model", head]


# Of logits of about 3: what random weights make of the last bits of f32, as a batch sums otherwise than single tokens.
NOISE = 1e-3


def lead(model, text: list[int], n_prompt: int, one: int, two: int) -> float:
    """Of one token over another behind a text that a server has written token by token, in logits."""
    config = MorphKV(capacity=128, window=16, interval=16, prompt_room=64, keep=4, rope_limit=256)  # TIGHT
    with Llama(str(model), morphkv=config, type_k=0, type_v=0, n_ctx=2048, **QUIET) as llm:
        llm.decode(text[:n_prompt])
        for token in text[n_prompt:]:
            llm.decode([token])
        logits = last_logits(llm)
    return float(abs(logits[one] - logits[two]))


def assert_drafted(timings, least=0.05, most=0.95):
    assert least < timings["draft_n_accepted"] / timings["draft_n"] < most


def test_the_greedy_text_is_the_same(start_server, pair):
    model, flags = pair
    plain, drafting = (start_server(model, *TIGHT, *EXACT, *more) for more in ([], flags))
    for n, text in enumerate(map(tokens, (20, 150, 450))):
        one, two = (server.complete(text, 160, cache_prompt=False) for server in (plain, drafting))
        assert two["tokens"] == one["tokens"], n
        assert two["timings"]["evicted_n"] == one["timings"]["evicted_n"] > 0
        assert_drafted(two["timings"])
    # the text goes on, and the heads have not lost it
    more = [*text, *two["tokens"], 261, 262]
    one, two = (server.complete(more, 100) for server in (plain, drafting))
    assert two["tokens"] == one["tokens"]
    assert_drafted(two["timings"])


def test_before_the_first_eviction_drafts_are_those_of_stock(start_server, pair):
    model, flags = pair
    # a checkpoint parts the prompt, and sums of other batches are rounded otherwise
    flags = [*EXACT, *flags, "--ctx-checkpoints", 0]
    one, two = (start_server(model, *flags, *more).complete(tokens(100), 200) for more in (["-c", 1024], ROOMY))
    assert two["timings"].get("evicted_n") == 0
    assert two["tokens"] == one["tokens"]
    for key in ("draft_n", "draft_n_accepted"):
        assert two["timings"][key] == one["timings"][key] > 0


def test_positions_are_rebased_under_drafts(start_server, pair):
    """The text is the one without drafts, or up to a token nearly as likely as another: GLM 4.5's at 462, by 3e-5."""
    model, flags = pair
    plain, drafting = (start_server(model, *TIGHT, *EXACT, "--morphkv-rope-limit", 256, *more) for more in ([], flags))
    one, two = (server.complete(tokens(60), 500) for server in (plain, drafting))
    n_same = common_prefix(one["tokens"], two["tokens"])
    assert n_same > 400
    if n_same < 500:
        text = [*tokens(60), *one["tokens"][:n_same]]
        assert lead(model, text, 60, one["tokens"][n_same], two["tokens"][n_same]) < NOISE
    n_plain, n_drafting = (server.slot()["morphkv"]["n_rebases"] for server in (plain, drafting))
    assert n_plain == n_drafting > 2
    assert_drafted(two["timings"])


def test_recalls_fall_between_the_same_tokens(start_server, pair):
    """Before an answer's last token of the prompt, and while it is written."""
    model, flags = pair
    archive = ["--morphkv-archive", "ram", "--morphkv-recall", 2]
    plain, drafting = (start_server(model, *TIGHT, *EXACT, *archive, *more) for more in ([], flags))
    text = tokens(450)
    one, two = (server.complete(text, 160, cache_prompt=False) for server in (plain, drafting))
    assert two["tokens"] == one["tokens"]
    for key in ("recalls_n", "recalled_n", "evicted_n"):
        assert two["timings"][key] == one["timings"][key] > 0
    assert_drafted(two["timings"])


def test_slots_draft_beside_each_other(start_server, pair):
    model, flags = pair
    server = start_server(model, *TIGHT, *EXACT, *flags, "-np", 2)
    lengths = (300, 90)
    alone = [server.complete(tokens(n, seed=n), 120, id_slot=0, cache_prompt=False)["tokens"] for n in lengths]
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(server.complete, tokens(n, seed=n), 120, id_slot=i, cache_prompt=False)
            for i, n in enumerate(lengths)
        ]
        both = [job.result() for job in jobs]
    assert [len(each["tokens"]) for each in both] == [len(each) for each in alone]
    for each in both:
        assert each["timings"]["evicted_n"] > 0
        assert_drafted(each["timings"])


def test_a_restored_slot_drafts_on(start_server, pair, tmp_path):
    model, flags = pair
    server = start_server(model, *TIGHT, *EXACT, *flags, "--slot-save-path", tmp_path)
    text = tokens(200)
    text += server.complete(text, 60)["tokens"]
    assert server.post("/slots/0?action=save", {"filename": "slot.bin"}).status_code == 200
    expected = server.complete([*text, 270], 80)["tokens"]
    server.complete(tokens(90, seed=3), 40)
    assert server.post("/slots/0?action=restore", {"filename": "slot.bin"}).status_code == 200
    again = server.complete([*text, 270], 80)
    assert again["tokens"] == expected
    if "draft-mtp" not in flags or "--spec-draft-model" in flags:  # layers that are recurrent are read from the start
        assert again["timings"]["cache_n"] > 200
    assert again["timings"]["draft_n_accepted"] > 0


def test_behind_images_too(start_server, tmp_path):
    """Heads are given nothing of an image, and read the text behind it."""
    model = heads.write_qwen35(tmp_path / "model.gguf")
    eyes = write_projector(tmp_path / "eyes.gguf", "qwen2vl_merger")
    plain, drafting = (start_server(model, *TIGHT, *EXACT, "--mmproj", eyes, *more) for more in ([], MTP))
    messages, n_evicted, n_drafted, n_accepted = [], 0, 0, 0
    for i in range(5):
        messages.append({"role": "user", "content": with_image("what is it", i)})
        one, two = (server.chat(messages, 40, ignore_eos=True) for server in (plain, drafting))
        assert two["choices"][0]["message"] == one["choices"][0]["message"]
        assert two["timings"]["media_tokens_n"] == one["timings"]["media_tokens_n"] > 0
        n_evicted += two["timings"]["evicted_n"]
        n_drafted += two["timings"]["draft_n"]
        n_accepted += two["timings"]["draft_n_accepted"]
        messages.append(one["choices"][0]["message"])
    assert n_evicted > 0
    assert_drafted({"draft_n": n_drafted, "draft_n_accepted": n_accepted})


@pytest.mark.slow
def test_2000_tokens_past_the_first_eviction(start_server, pair):
    model, flags = pair
    plain, drafting = (start_server(model, *TIGHT, *EXACT, *more) for more in ([], flags))
    text = tokens(100)
    rss, n_drafted, n_accepted = {plain: [], drafting: []}, 0, 0
    for _ in range(22):
        one, two = (server.complete(text, 100) for server in (plain, drafting))
        assert two["tokens"] == one["tokens"]
        assert two["timings"]["evicted_n"] == one["timings"]["evicted_n"]
        n_drafted += two["timings"]["draft_n"]
        n_accepted += two["timings"]["draft_n_accepted"]
        text += two["tokens"]
        for server, sizes in rss.items():
            sizes.append(server.rss_bytes())
    assert_drafted({"draft_n": n_drafted, "draft_n_accepted": n_accepted})
    # what a server keeps of its answers grows, by the same without drafts
    grown = [max(sizes[11:]) - max(sizes[:11]) for sizes in rss.values()]
    assert grown[1] < grown[0] + 2**20
    assert drafting.slot()["morphkv"]["n_cells"] == 256


@pytest.mark.parametrize("kind", ["gemma4", "glm4moe"])
def test_what_rounding_parts_is_one_where_batches_are_decoded_token_by_token(start_server, tmp_path, kind):
    """With these weights the text with drafts leaves the one without at token 498 or 462, else."""
    flags = [*TIGHT, *EXACT, "-ub", 1]
    if kind == "gemma4":
        model, drafts = write_beside(tmp_path, kind, seed=3)
        n_prompt, n_text = 100, 700
    else:
        model = more_heads.write_glm4moe(tmp_path / "model.gguf")
        drafts, n_prompt, n_text = MTP, 60, 500
        flags += ["--morphkv-rope-limit", 256]
    plain, drafting = (start_server(model, *flags, *more) for more in ([], drafts))
    one, two = (server.complete(tokens(n_prompt), n_text) for server in (plain, drafting))
    assert two["tokens"] == one["tokens"]
    assert two["timings"]["evicted_n"] == one["timings"]["evicted_n"] > 0
    assert_drafted(two["timings"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["gemma4", "eagle3"])
def test_nothing_but_rounding_parts_a_text_of_any_weights(start_server, tmp_path, kind, seed):
    """4 of these 16 texts leave those without drafts where batches are decoded at once, and 2 others in stock."""
    model, flags = write_beside(tmp_path, kind, seed)
    plain, drafting = (start_server(model, *TIGHT, *EXACT, "-ub", 1, *more) for more in ([], flags))
    one, two = (server.complete(tokens(100), 2200) for server in (plain, drafting))
    assert two["tokens"] == one["tokens"]
    assert two["timings"]["evicted_n"] == one["timings"]["evicted_n"] > 2000
    assert two["timings"]["draft_n_accepted"] > 100  # of a text that has come to repeat itself all may be


def test_a_head_that_llama_cpp_cannot_run_is_refused(start_server, tmp_path):
    """GLM 4.5V's, whose rope sections its graph does not know."""
    model = more_heads.write_glm4moe(tmp_path / "model.gguf", sections=(4, 6, 6, 0))
    assert len(start_server(model, *TIGHT).complete(tokens(20), 4)["tokens"]) == 4
    with pytest.raises(RuntimeError, match="its draft head has rope sections"):
        start_server(model, *TIGHT, *MTP)


def test_a_model_without_heads_says_so(start_server, tiny_llama):
    with pytest.raises(RuntimeError, match="doesn't contain MTP layers"):
        start_server(tiny_llama(), *TIGHT, *MTP)
