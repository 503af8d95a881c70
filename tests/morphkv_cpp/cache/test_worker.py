"""Async answers: one worker thread per Llama; a task that is cancelled ends its answer. On tiny models."""

import asyncio
import itertools
import threading

import pytest

from morphkv_cpp import MorphKV, ThreadError
from support.chats import forced, no_end, talk
from support.tiny import bytes_of

# isort: split
# after morphkv_cpp, which says what libllama is loaded
from llama_cpp import LogitsProcessorList

SMALL = MorphKV(capacity=128, window=16, interval=16, keep=2, prompt_room=32)
ENDLESS = itertools.repeat(70)


def options_of(llm, n_tokens=10):
    return {"max_tokens": n_tokens, "temperature": 0.0, "logits_processor": no_end(llm)}


class TestSession:
    def test_it_says_what_a_session_without_a_task_says(self, open_llama):
        llm, other = open_llama(), open_llama()
        same = other.session("abc")
        wanted = [talk(same, question) for question in ("one", "two", "three")]

        async def ask():
            with llm.session("abc") as chat:
                first = await chat.aask("one", **options_of(llm))
                second = [piece async for piece in chat.asay("two", **options_of(llm))]
                return [first, "".join(second), await chat.aask("three", **options_of(llm))]

        assert asyncio.run(ask()) == wanted

    def test_all_runs_in_one_thread_and_the_loop_goes_on(self, open_llama):
        llm, threads, ticks = open_llama(), set(), []

        def note(input_ids, scores):
            threads.add(threading.get_ident())
            return scores

        async def tick():
            while True:
                ticks.append(1)
                await asyncio.sleep(0)

        async def ask():
            ticking = asyncio.create_task(tick())
            chat = llm.session()
            options = {"max_tokens": 8, "logits_processor": LogitsProcessorList([note, *no_end(llm)])}
            await chat.aask("one", **options)
            await llm.acreate_completion("abc", **options)
            ticking.cancel()

        asyncio.run(ask())
        assert len(threads) == 1
        assert threads.isdisjoint({threading.get_ident()})
        assert ticks

    def test_a_cancelled_task_leaves_what_was_written(self, open_llama):
        llm = open_llama()

        async def ask():
            chat = llm.session("abc")
            await chat.aask("one", max_tokens=3, logits_processor=forced(bytes_of("yes")))
            came = asyncio.Event()

            async def read():
                async for _ in chat.asay("two", logits_processor=forced(itertools.repeat(bytes_of("x")[0]))):
                    came.set()

            task = asyncio.create_task(read())
            await came.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return chat

        chat = asyncio.run(ask())
        assert chat.last.finish_reason == "interrupted"
        assert set(chat.history()[-1]["content"]) == {"x"}
        assert chat.n_turns == 2
        talk(chat, "go on")

    def test_a_whole_answer_is_cancelled_at_the_next_token(self, open_llama):
        llm = open_llama()

        async def ask():
            chat, begun = llm.session("abc"), threading.Event()

            def note(input_ids, scores):
                begun.set()
                return scores

            processors = LogitsProcessorList([note, *forced(itertools.repeat(bytes_of("x")[0]))])
            task = asyncio.create_task(chat.aask("two", logits_processor=processors))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return chat

        chat = asyncio.run(ask())
        assert set(chat.history()[-1]["content"]) <= {"x"}
        talk(chat, "go on")

    def test_a_loop_that_is_left_ends_the_answer(self, open_llama):
        async def ask():
            chat = open_llama().session("abc")
            pieces = chat.asay("one", logits_processor=forced(itertools.repeat(bytes_of("x")[0])))
            async for _ in pieces:
                break
            await pieces.aclose()
            return chat

        chat = asyncio.run(ask())
        assert (chat.last.finish_reason, chat.n_turns) == ("interrupted", 1)

    def test_one_that_is_never_read_warns(self, open_llama):
        chat = open_llama().session()
        with pytest.warns(
            RuntimeWarning, match=r"asay\('hello'\) was not asked, because its answer was not read: use `async"
        ):
            chat.asay("hello")
        assert chat.n_turns == 0


class TestCompletions:
    MESSAGES = ({"role": "user", "content": "one"},)

    def test_they_are_those_of_calls_without_a_task(self, open_llama):
        llm, other = open_llama(), open_llama()

        async def ask():
            text = await llm.acreate_completion("abc", **options_of(llm))
            chat = await llm.acreate_chat_completion(list(self.MESSAGES), **options_of(llm))
            stream = await llm.acreate_completion("abc", stream=True, **options_of(llm))
            return text, chat, [chunk async for chunk in stream]

        text, chat, chunks = asyncio.run(ask())
        assert text["choices"] == other.create_completion("abc", **options_of(other))["choices"]
        wanted = other.create_chat_completion(list(self.MESSAGES), **options_of(other))
        assert (chat["choices"], chat["usage"]) == (wanted["choices"], wanted["usage"])
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text["choices"][0]["text"]

    def test_those_of_several_tasks_come_one_after_another(self, open_llama):
        llm, other = open_llama(), open_llama()

        async def ask():
            calls = (llm.acreate_completion(text, **options_of(llm)) for text in ("abc", "xyz", "123"))
            return await asyncio.gather(*calls)

        answers = [answer["choices"][0]["text"] for answer in asyncio.run(ask())]
        assert answers == [
            other.create_completion(text, **options_of(other))["choices"][0]["text"] for text in ("abc", "xyz", "123")
        ]

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_cancelled_task_frees_the_llama(self, open_llama, stream):
        llm, other = open_llama(), open_llama()

        async def read(begun):
            def note(input_ids, scores):
                begun.set()
                return scores

            processors = LogitsProcessorList([note, *forced(itertools.repeat(bytes_of("x")[0]))])
            answer = await llm.acreate_completion("abc", max_tokens=-1, stream=stream, logits_processor=processors)
            async for _ in answer:
                pass

        async def ask():
            begun = threading.Event()
            task = asyncio.create_task(read(begun))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(ask())
        wanted = other.create_completion("abc", **options_of(other))["choices"]
        assert llm.create_completion("abc", **options_of(llm))["choices"] == wanted

    def test_a_waiting_call_that_is_cancelled_never_runs(self, open_llama):
        llm = open_llama()

        async def ask():
            first = asyncio.create_task(llm.acreate_completion("abc", **options_of(llm, 50)))
            second = asyncio.create_task(llm.acreate_completion("xyz", **options_of(llm)))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            await first
            return llm.detokenize(llm.input_ids[: llm.n_tokens].tolist())

        assert b"xyz" not in asyncio.run(ask())

    def test_another_thread_is_refused_meanwhile(self, open_llama):
        llm = open_llama()

        async def ask():
            stream = await llm.acreate_completion("abc", stream=True, **options_of(llm))
            await stream.__anext__()
            with pytest.raises(ThreadError, match="another one is writing a text"):
                llm.eval([5])
            await stream.aclose()
            llm.eval([5])

        asyncio.run(ask())
