"""Many chats that take turns on few slots, in a server that is killed again and again: none learns of another."""

from __future__ import annotations

import itertools

import pytest

from morphkv_cpp.eval import Fact, facts
from morphkv_cpp.eval.recall import QUESTION, first_word
from morphkv_cpp.eval.remember import document_facts, filler
from support.chats_on_disk import go_on, kill_while_it_answers
from support.server_process import TIGHT, ServerProcess
from support.server_process import some_tokens as tokens

pytestmark = pytest.mark.slow

N_TURNS = 60
N_LIVES = 11  # it is killed ten times
N_ANSWER = 20
N_BESIDE = 64  # tokens beside the new ones
CHATS_AND_SLOTS = pytest.mark.parametrize(("n_chats", "n_slots"), [(2, 1), (10, 4)])


class Lives:
    """Kills a server ten times over the turns, every other time while it answers, and starts it again."""

    def __init__(self, server: ServerProcess, n_chats: int):
        self.server = server
        self.n_chats = n_chats
        self.rss: list[int] = []  # at the end of each life

    def before(self, turn: int, i_chat: int, question: list[int]) -> None:
        is_last = turn > 0 and turn * N_LIVES // N_TURNS > (turn - 1) * N_LIVES // N_TURNS
        if not is_last or i_chat != turn % self.n_chats:
            return
        self.rss.append(self.server.rss_bytes())
        if len(self.rss) % 2:
            kill_while_it_answers(self.server, question)
        else:
            self.server.kill()
        self.server.start()

    def end(self) -> None:
        self.rss.append(self.server.rss_bytes())
        assert len(self.rss) == N_LIVES
        counts = self.server.metrics()
        assert counts["llamacpp:morphkv_chats"] == self.n_chats
        assert counts["llamacpp:morphkv_chats_failed_total"] == 0

    def __str__(self) -> str:
        return f"killed {len(self.rss) - 1} times, RSS {[round(rss / 2**20, 1) for rss in self.rss]} MiB"


@CHATS_AND_SLOTS
@pytest.mark.parametrize("archive", [[], ["--morphkv-archive", "ram"]], ids=["alone", "with an archive"])
def test_chats_take_turns(start_server, tiny_llama, tmp_path, n_chats, n_slots, archive):
    """Each has a slot of its own in a server that is never killed: the same answers, bit by bit."""
    flags = [*TIGHT, *archive]
    on_disk = ["--slots", "--metrics", "--morphkv-state-dir", tmp_path / "chats"]
    server = start_server(tiny_llama(), *flags, *on_disk, "-np", n_slots)
    quiet = start_server(tiny_llama(), *flags, "-np", n_chats)
    texts = [tokens(100 + 30 * i, seed=i) for i in range(n_chats)]
    lives, n_evaluated, n_new = Lives(server, n_chats), 0, 0
    for turn in range(N_TURNS):
        for i, text in enumerate(texts):
            question = [*text, *tokens(13, seed=turn)[1:]]
            lives.before(turn, i, question)
            mine, timings = go_on(server, question, N_ANSWER)
            assert mine == question + quiet.complete(question, N_ANSWER, id_slot=i)["tokens"], (turn, i)
            if turn > 0:
                assert timings["prompt_n"] <= 12 + N_BESIDE, (turn, i)
                n_evaluated, n_new = n_evaluated + timings["prompt_n"], n_new + 12
            texts[i] = mine
    lives.end()
    print(
        f"\n{n_chats} chats of {len(texts[0])} to {len(texts[-1])} tokens on {n_slots} slots, "
        f"{' '.join(archive) or 'no archive'}, {lives}: {n_evaluated} tokens evaluated for {n_new} new"
    )
    assert max(lives.rss[1:]) - lives.rss[0] < 16 * 2**20


def alike_facts(n_chats: int) -> list[list[Fact]]:
    """For each chat the same subjects, with answers that no other chat has."""

    def kind(fact: Fact) -> str:
        return fact.subject.partition(" of ")[0].split()[-1]

    kinds: dict[str, list[str]] = {}
    for fact in facts():
        kinds.setdefault(kind(fact), []).append(fact.answer)
    subjects = {fact.subject: kinds[kind(fact)] for fact in document_facts(0)}
    return [
        [Fact(subject, answers[i]) for subject, answers in subjects.items() if len(answers) >= n_chats]
        for i in range(n_chats)
    ]


@pytest.mark.demo
@CHATS_AND_SLOTS
def test_none_answers_with_what_another_was_told(start_server, demo_model, tmp_path, n_chats, n_slots):
    """Facts of the first turns are asked for from turn 25 on, 1,500 tokens and more later; each once."""
    flags = ["--morphkv", "--morphkv-capacity", 512, "--morphkv-archive", "ram"]
    on_disk = ["--slots", "--metrics", "--morphkv-state-dir", tmp_path / "chats"]
    server = start_server(demo_model, *flags, *on_disk, "-np", n_slots)
    quiet = start_server(demo_model, *flags, "-np", n_chats)

    def ids(text: str, begins: bool = False) -> list[int]:
        return quiet.post("/tokenize", {"content": text, "add_special": begins}).json()["tokens"]

    told = alike_facts(n_chats)
    n_facts = len(told[0])
    assert n_facts >= 6
    prose = [filler(i) for i in range(n_chats)]
    # more than the 64 tokens from which on a chat is written to disk
    texts = [ids(" ".join(itertools.islice(one, 6)), begins=True) for one in prose]
    lives = Lives(server, n_chats)
    n_asked = n_same = n_right = n_right_quiet = 0
    mixed: list[tuple[Fact, str]] = []
    for turn in range(N_TURNS):
        for i, text in enumerate(texts):
            new = [token for _ in range(2) for token in ids(f" {next(prose[i])}")]
            asked = None
            if turn < n_facts:
                new += ids(f"\n\n{told[i][turn].line}\n\n")
            elif turn >= 25 and turn % 5 == 0:
                asked = told[i][(turn // 5 - 5) % n_facts]
                new += ids(QUESTION.format(subject=asked.subject))
            question = [*text, *new]
            lives.before(turn, i, question)
            mine, timings = go_on(server, question, 6)
            assert timings["prompt_n"] <= len(new) + N_BESIDE or turn == 0, (turn, i)
            theirs = quiet.complete(question, 6, id_slot=i)["content"]
            if asked is not None:
                said = first_word(server.post("/detokenize", {"tokens": mine[len(question) :]}).json()["content"])
                n_asked, n_same = n_asked + 1, n_same + (said == first_word(theirs))
                n_right += said == asked.answer.casefold()
                n_right_quiet += first_word(theirs) == asked.answer.casefold()
                others = {fact.answer.casefold() for facts_of in told for fact in facts_of} - {
                    fact.answer.casefold() for fact in told[i]
                }
                if said in others:
                    mixed.append((asked, said))
            texts[i] = [*mine, *ids("\n\n")]
    lives.end()
    print(
        f"\n{n_chats} chats of about {len(texts[0])} tokens on {n_slots} slots, {lives}; of {n_asked} facts "
        f"{n_right} right (a server that is never killed: {n_right_quiet}), {n_same} the same, mixed: {mixed}"
    )
    assert mixed == []
    assert n_right_quiet >= 0.6 * n_asked
    assert n_right >= 0.95 * n_right_quiet
