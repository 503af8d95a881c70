"""One Llama is for one thread at a time: a second one gets a sentence, and nothing crashes."""

import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest

from morphkv_cpp import BusyError, ClosedError, Llama, MorphKV, Session, ThreadError
from morphkv_cpp.cache import one_thread
from morphkv_cpp.cache.one_thread import OneThread, Turn
from support.chats import no_end
from support.tiny import QUIET, greedy

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp import LogitsProcessorList, StoppingCriteriaList

SMALL = MorphKV(capacity=96, window=16, interval=8, keep=4, prompt_room=0)
PROMPT = list(range(3, 103))
# What needs no context, and properties that are plain attributes.
FREE = {"close", "from_pretrained", "logits_to_logprobs", "longest_token_prefix"}
FREE |= {"acreate_completion", "acreate_chat_completion"}  # they have a thread of their own
# How each method can be called; any call is refused before its arguments matter.
READS = {"detokenize", "n_ctx", "n_embd", "n_vocab", "pooling_type", "token_bos", "token_eos", "token_nl", "tokenize"}
READS |= {"tokenizer", "session"}
METHODS = sorted(
    name for name in dir(Llama) if not name.startswith("_") and callable(getattr(Llama, name)) and name not in FREE
)


@pytest.fixture
def other_thread():
    """Calls a function in another thread, always the same one."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda call, *arguments: pool.submit(call, *arguments).result()


def arguments_of(llm: Llama, name: str) -> tuple:
    one = {"detokenize": [5], "eval": [5], "decode": [5], "generate": [5], "retained": 0, "tokenize": b"a"}
    one |= dict.fromkeys(("create_completion", "embed", "create_embedding"), "a")
    one |= {"create_chat_completion": [{"role": "user", "content": "a"}], "load_session": "no file"}
    one |= {"set_cache": None, "set_seed": 1, "load_state": None}
    return (one[name],) if name in one else ()


def call_method(llm: Llama, name: str):
    result = getattr(llm, name)(*arguments_of(llm, name))
    return next(result) if name == "generate" else result


def inside_a_call(llm: Llama, monkeypatch, meanwhile) -> None:
    """Run a function while this thread is in the middle of a decode."""
    decode, errors = llm._ctx.decode, []

    def decode_and_more(batch):
        decode(batch)
        try:
            meanwhile()
        except BaseException as error:
            errors.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(llm._ctx, "decode", decode_and_more)
        llm.eval([5])
    if errors:
        raise errors[0]


class TestSecondThread:
    @pytest.mark.parametrize("morphkv", [SMALL, None], ids=["morphkv", "stock"])
    def test_it_is_refused_in_the_middle_of_a_call(self, open_llama, monkeypatch, other_thread, morphkv):
        llm, refused = open_llama(morphkv), []

        def try_all():
            for name in METHODS:
                if name in READS:
                    continue
                with pytest.raises(ThreadError, match="one thread at a time: another one is in the middle of a call"):
                    call_method(llm, name)
                refused.append(name)
            with pytest.raises(ThreadError, match="one thread at a time"):
                llm.close()
            with pytest.raises(ThreadError, match="one thread at a time"):
                llm("a")

        inside_a_call(llm, monkeypatch, lambda: other_thread(try_all))
        assert {"eval", "generate", "sample", "reset", "recall", "save_state", "cache_stats"} <= set(refused)
        llm.eval([6])
        assert llm.n_tokens == 2

    def test_what_needs_the_vocabulary_alone_is_not(self, open_llama, monkeypatch, other_thread):
        llm = open_llama()
        inside_a_call(
            llm, monkeypatch, lambda: other_thread(lambda: [call_method(llm, name) for name in sorted(READS)])
        )

    def test_sessions_are_refused_too(self, open_llama, monkeypatch, other_thread, tmp_path):
        llm = open_llama()
        chat = llm.session()
        "".join(chat.say("one", max_tokens=3))

        def try_all():
            for call in (
                lambda: chat.say("two"),
                lambda: next(aside.say("two")),
                chat.fork,
                chat.close,
                chat.cache_stats,
                lambda: chat.save(tmp_path / "chat"),
                lambda: chat.retained(0),
            ):
                with pytest.raises(ThreadError):
                    call()

        aside = llm.session()
        chat_before = chat.n_tokens
        inside_a_call(llm, monkeypatch, lambda: other_thread(try_all))
        "".join(chat.say("two", max_tokens=3))
        assert chat.n_tokens > chat_before

    def test_the_model_is_not_closed_while_it_tokenizes(self, open_llama, other_thread):
        llm = open_llama()
        with pytest.raises(ThreadError, match="one thread at a time that closes it"):
            llm._one_thread.read(lambda: other_thread(llm.close))
        assert llm.tokenize(b"a")

    def test_it_may_have_the_next_turn(self, open_llama, other_thread):
        llm, alone = open_llama(), open_llama()
        first = greedy(llm, PROMPT, 5)
        assert other_thread(lambda: greedy(llm, PROMPT, 5)) == first
        assert greedy(alone, PROMPT, 5) == first


class TestBetweenTwoSteps:
    def test_the_text_of_the_first_thread_is_safe(self, open_llama, other_thread):
        llm, alone = open_llama(), open_llama()
        state = llm.save_state()
        text = llm.generate(PROMPT, temp=0.0)
        answer = list(islice(text, 10))
        session = llm.session()
        changes = {
            "eval": lambda: llm.eval([5]),
            "generate": lambda: next(llm.generate([5])),
            "reset": llm.reset,
            "sample": llm.sample,
            "load_state": lambda: llm.load_state(state),
            "completion": lambda: llm.create_completion("a", max_tokens=1),
            "say": lambda: next(session.say("a")),
        }
        for name, change in changes.items():
            with pytest.raises(ThreadError, match="another one is writing a text"):
                other_thread(change)
            answer += islice(text, 5)
            assert len(answer) % 5 == 0, name
        assert answer == greedy(alone, PROMPT, len(answer))

    def test_an_answer_of_a_session_is_safe_too(self, open_llama, other_thread):
        llm, alone = open_llama(), open_llama()

        def say(chat: Session):
            return chat.say("one", max_tokens=40, temperature=0.0, logits_processor=no_end(chat._llm))

        chat, other = llm.session(), llm.session()
        pieces = say(chat)
        text = next(pieces)
        for intruder in (lambda: chat.say("two"), lambda: next(other.say("two")), lambda: llm.eval([5])):
            with pytest.raises(ThreadError, match="another one is writing a text"):
                other_thread(intruder)
            text += next(pieces)
        assert text + "".join(pieces) == "".join(say(alone.session()))

    def test_looking_is_allowed(self, open_llama, other_thread):
        llm = open_llama()
        text = llm.generate(PROMPT)
        next(text)
        assert other_thread(llm.cache_stats).logical_pos == len(PROMPT) - 1
        assert len(other_thread(llm.retained, 0)) > 0
        assert other_thread(llm.save_state).n_tokens == len(PROMPT)
        next(text)

    def test_once_the_text_is_closed_all_is_allowed(self, open_llama, other_thread):
        llm = open_llama()
        text = llm.generate(PROMPT)
        next(text)
        text.close()
        other_thread(llm.eval, [5])

    def test_each_step_may_come_from_another_thread(self, open_llama, other_thread):
        """As a web framework reads a stream in a pool of threads."""
        llm, alone = open_llama(), open_llama()
        text, answer = llm.generate(PROMPT, temp=0.0), []
        for _ in range(10):
            answer += [next(text), other_thread(next, text)]
        assert answer == greedy(alone, PROMPT, 20)

    def test_a_text_does_not_go_on_in_another_one_of_the_same_thread(self, open_llama):
        llm = open_llama()
        first = llm.generate(PROMPT)
        next(first)
        second = llm.generate(PROMPT[::-1])
        next(second)
        with pytest.raises(RuntimeError, match="this text cannot continue: another one has begun"):
            next(first)
        next(second)

    def test_but_it_does_where_its_state_was_restored(self, open_llama):
        llm, alone = open_llama(), open_llama()
        texts = [llm.generate(prompt, temp=0.0) for prompt in (PROMPT, PROMPT[::-1])]
        states, answers = [None, None], [[], []]
        for _ in range(4):
            for i, text in enumerate(texts):
                if states[i] is not None:
                    llm.load_state(states[i])
                answers[i] += islice(text, 5)
                states[i] = llm.save_state()
        for prompt, answer in zip((PROMPT, PROMPT[::-1]), answers):
            alone.reset()
            assert answer == list(islice(alone.generate(prompt, temp=0.0), 20))

    def test_without_morphkv_it_is_as_with_llama_cpp(self, open_llama, other_thread):
        llm = open_llama(None, n_ctx=256)
        text = llm.generate(PROMPT)
        next(text)
        other_thread(llm.eval, [5])
        next(text)


class TestClosed:
    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize("morphkv", [SMALL, None], ids=["morphkv", "stock"])
    def test_every_method_says_so(self, open_llama, morphkv, name):
        llm = open_llama(morphkv)
        llm.close()
        with pytest.raises(RuntimeError, match=r"Llama is closed|needs MorphKV"):
            call_method(llm, name)

    @pytest.mark.parametrize("morphkv", [SMALL, None], ids=["morphkv", "stock"])
    def test_a_text_that_is_being_written_says_so(self, open_llama, morphkv):
        llm = open_llama(morphkv)
        text = llm.generate(PROMPT)
        stream = llm.create_completion("a", stream=True, max_tokens=50)
        next(text)
        llm.close()
        with pytest.raises(ClosedError):
            next(text)
        with pytest.raises(ClosedError):
            next(stream)

    def test_closing_twice_is_fine(self, open_llama):
        llm = open_llama()
        llm.close()
        llm.close()


HAMMER = """
import sys, threading
from morphkv_cpp import Llama, MorphKV, ThreadError
options = dict(n_threads=1, n_threads_batch=1, verbose=False)
llm = Llama(sys.argv[1], morphkv=MorphKV(capacity=96, window=16, interval=8, prompt_room=0), archive="ram", **options)
refused = []

def work(seed):
    for i in range(60):
        try:
            for n, token in enumerate(llm.generate([3 + (seed * 31 + j * 7) % 300 for j in range(120)], temp=0.0)):
                if n == 5:
                    break
            llm.load_state(llm.save_state())
            llm.recall()
            llm.reset()
        except ThreadError:
            refused.append(seed)

threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
llm.reset()
llm.eval([5, 6, 7])
print("alive", len(refused) > 0)
"""


def test_four_threads_at_once_crash_nothing(tiny_llama, tmp_path):
    command = [sys.executable, "-c", HAMMER, str(tiny_llama())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive True\n"), done.stderr[-2000:]


class TestOneThread:
    def test_ctrl_c_at_any_line_leaves_it_free(self, other_thread):
        """In every line of the module while a turn is written; another thread then has it."""
        i_line = 0
        # Python looks for signals behind calls: none comes between one that has returned and the release.
        source = inspect.getsource(one_thread).splitlines()
        i_release = next(i for i, line in enumerate(source, 1) if "self._lock.release()" in line)
        while True:
            use, n_lines, before = OneThread(), 0, sys.gettrace()

            def trace(frame, event, _argument, i_line=i_line):
                nonlocal n_lines
                if not frame.f_code.co_filename.endswith("one_thread.py"):
                    return None
                if event == "line" and frame.f_lineno not in (i_release - 1, i_release):
                    n_lines += 1
                    if n_lines == i_line + 1:
                        raise KeyboardInterrupt
                return trace

            text = use.steps(iter_of(range(3)), Turn())
            sys.settrace(trace)
            try:
                next(text)
                use.use(len, "a")
                text.close()
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)  # coverage's
            text.close()
            assert other_thread(use.change, len, "abc") == 3
            if n_lines <= i_line:
                break
            i_line += 1
        assert i_line > 20

    def test_the_same_thread_may_come_in_again(self):
        use = OneThread()
        assert use.change(use.use, use.change, len, "abc") == 3

    def test_two_close_at_once(self, other_thread):
        use, closed = OneThread(), []
        use.close(lambda: closed.append(1))
        with pytest.raises(ClosedError):
            use.use(len, "abc")
        other_thread(use.close, lambda: closed.append(2))
        assert closed == [1, 2]


def iter_of(items):
    yield from items


def test_every_thread_has_its_own_llama(tiny_llama):
    """Several objects may work in as many threads."""
    answers = {}

    def work(i: int) -> None:
        llm = Llama(str(tiny_llama()), morphkv=SMALL, **QUIET)
        answers[i] = greedy(llm, PROMPT, 20)
        llm.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers[0] == answers[1] == answers[2]


class TestNestedUse:
    """By functions that are called in the middle of a token, and between two of them."""

    @pytest.mark.parametrize(
        "use",
        [
            lambda llm, chat: llm.eval([5]),
            lambda llm, chat: llm.reset(),
            lambda llm, chat: llm.create_completion("a", max_tokens=1),
            lambda llm, chat: list(islice(llm.generate([5]), 1)),
            lambda llm, chat: chat.say("x"),
        ],
        ids="eval reset completion generate say".split(),
    )
    def test_a_logits_processor_that_changes_the_text(self, open_llama, use):
        llm, errors = open_llama(), []
        chat = llm.session()

        def processor(input_ids, scores):
            try:
                use(llm, chat)
            except BusyError as error:  # llama.cpp would lose it
                errors.append(error)
            return scores

        with pytest.raises(
            BusyError, match="in the middle of a token of a text: a logits processor must not change it"
        ):
            llm.create_completion("abc", max_tokens=3, logits_processor=LogitsProcessorList([processor]))
        assert len(errors) == 1
        assert greedy(llm, PROMPT, 5) == greedy(open_llama(), PROMPT, 5)

    def test_one_that_looks_is_served(self, open_llama):
        llm, seen = open_llama(), []

        def processor(input_ids, scores):
            seen.append((llm.cache_stats().logical_pos, llm.tokenize(b"a")))
            return scores

        greedy(llm, PROMPT, 3, logits_processor=LogitsProcessorList([processor]))
        assert [position for position, _ in seen] == [99, 100, 101]

    def test_a_stopping_criterion_that_writes_another_text(self, open_llama):
        llm = open_llama()
        criteria = StoppingCriteriaList([lambda ids, logits: bool(llm.create_completion("a", max_tokens=1))])
        with pytest.raises(BusyError, match="in the middle of a token of a text: begin another one when it is written"):
            llm.create_completion("abc", max_tokens=3, stopping_criteria=criteria)
        assert greedy(llm, PROMPT, 5) == greedy(open_llama(), PROMPT, 5)

    def test_another_text_in_the_loop_of_a_stream(self, open_llama):
        """The newer one is written, and the older one says why it cannot go on."""
        llm = open_llama()
        chunks = llm.create_completion("abc", max_tokens=9, stream=True, logits_processor=no_end(llm))
        next(chunks)
        wanted = llm.create_completion("xyz", max_tokens=3, temperature=0.0)["choices"]
        with pytest.raises(BusyError, match="this text cannot continue: another one has begun on the same Llama"):
            list(chunks)
        assert open_llama().create_completion("xyz", max_tokens=3, temperature=0.0)["choices"] == wanted
