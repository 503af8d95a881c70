"""Tasks: items are the same in every process, as long as is asked for, and hold what is asked about."""

import re
from contextlib import closing

import pytest

from morphkv_cpp import Llama
from morphkv_cpp.eval.presets import FULL, QUICK, parts_of
from morphkv_cpp.eval.tasks import TASKS, Question, Tokens, chosen
from morphkv_cpp.eval.tasks.chats import SIGNALS, share_of_new
from morphkv_cpp.eval.tasks.facts import says_unknown
from morphkv_cpp.eval.tasks.shape import first_word_is_right, share_said
from morphkv_cpp.eval.tasks.sources import KINDS, sections_of

N_TOKENS = 1536
# whose answers stand in the text
STATED = [name for name in TASKS if name.startswith(("facts", "ruler", "five")) and name != "facts-absent"]


@pytest.fixture(scope="module")
def tokens_of(demo_model):
    with closing(Llama(demo_model, vocab_only=True, verbose=False)) as llm:
        yield Tokens(llm)


@pytest.mark.parametrize("name", TASKS)
def test_an_item_is_the_same_each_time_and_another_one_differs(tokens_of, name):
    first, again, second = (TASKS[name].make(tokens_of, i, N_TOKENS) for i in (0, 0, 1))
    assert first == again
    assert first.tokens != second.tokens


@pytest.mark.parametrize("name", TASKS)
def test_an_item_is_about_as_long_as_asked(tokens_of, name):
    n = len(TASKS[name].make(tokens_of, 0, N_TOKENS).tokens)
    if name == "copy":
        n -= 64 + 140  # what stands before, and the passage
    assert 0.85 * N_TOKENS < n < 1.1 * N_TOKENS


@pytest.mark.parametrize("name", [name for name in TASKS if name != "copy"])
def test_a_long_item_is_not_short_of_words(tokens_of, name):
    n = len(TASKS[name].make(tokens_of, 0, 32768).tokens)
    assert 0.9 * 32768 < n < 1.05 * 32768


@pytest.mark.parametrize("name", STATED)
def test_what_is_expected_is_in_the_text_and_not_in_the_question(tokens_of, name):
    for i in range(3):
        item = TASKS[name].make(tokens_of, i, N_TOKENS)
        text = tokens_of.text(item.tokens)
        for question in item.questions:
            asked = tokens_of.text(question.tokens)
            assert all(word in text for word in question.expected)
            assert not any(word in asked for word in question.expected)


def test_the_newest_of_a_changed_fact_counts(tokens_of):
    item = TASKS["facts-updated"].make(tokens_of, 0, N_TOKENS)
    text = tokens_of.text(item.tokens)
    for question in item.questions:
        subject = re.search(r"The (.*) is now", tokens_of.text(question.tokens))[1]
        old = re.search(rf"The {subject} is (?!now)(\S+)\.", text)
        new = re.search(rf"The {subject} is now (\S+)\.", text)
        assert old.start() < new.start()
        assert question.expected == (new[1],) != (old[1],)


def test_an_absent_fact_is_not_stated(tokens_of):
    item = TASKS["facts-absent"].make(tokens_of, 0, N_TOKENS)
    text = tokens_of.text(item.tokens)
    for question in item.questions:
        assert re.search(r"What is the (.*)\? If", tokens_of.text(question.tokens))[1] not in text


def test_look_alikes_are_of_one_kind(tokens_of):
    text = tokens_of.text(TASKS["facts-alike"].make(tokens_of, 0, N_TOKENS).tokens)
    stated = re.findall(r"\n\nThe (.*) is \S+\.\n\n", text)
    assert len(stated) == 6
    assert len({subject.partition(" of ")[0] for subject in stated}) == 1


@pytest.mark.parametrize(
    "name, pattern, n_lines",
    [
        ("ruler-niah-single", r"magic numbers for \S+ is: \d{7}\.", 1),
        ("ruler-niah-multikey", r"magic numbers for \S+ is: \d{7}\.", 4),
        ("ruler-niah-multivalue", r"magic numbers for \S+ is: \d{7}\.", 4),
        ("ruler-niah-multiquery", r"magic numbers for \S+ is: \d{7}\.", 4),
        ("ruler-vt", r"VAR [A-Z]{5} = (?:\d{5}|VAR [A-Z]{5})", 5),
    ],
)
def test_rulers_needles_are_as_many_as_its_own(tokens_of, name, pattern, n_lines):
    item = TASKS[name].make(tokens_of, 0, N_TOKENS)
    assert len(re.findall(pattern, tokens_of.text(item.tokens))) == n_lines
    expected = {"ruler-niah-multivalue": 4, "ruler-niah-multiquery": 4, "ruler-vt": 5}.get(name, 1)
    assert len(item.questions[0].expected) == expected


def test_common_and_frequent_words_are_the_most_frequent(tokens_of):
    for name, n in (("ruler-cwe", 10), ("ruler-fwe", 3)):
        item = TASKS[name].make(tokens_of, 1, 3000)
        words = re.findall(r"[a-z]{4,}", tokens_of.text(item.tokens).split(". ", 3)[-1])
        counts = sorted(((words.count(word), word) for word in set(words)), reverse=True)
        assert {word for _, word in counts[:n]} == set(item.questions[0].expected)
        assert counts[n - 1][0] > counts[n][0]


def test_rules_stand_first_and_chats_follow(tokens_of):
    item = TASKS["instruction"].make(tokens_of, 0, N_TOKENS)
    text = tokens_of.text(item.tokens)
    assert text.count("System: When the user says") == 3
    assert text.count("\n\nUser: ") > 5
    assert {q.expected[0] for q in item.questions} <= set(SIGNALS.values())


def test_five_questions_follow_each_other(tokens_of):
    item = TASKS["five-questions"].make(tokens_of, 0, N_TOKENS)
    assert item.in_turn
    assert len(item.questions) == 5
    places = [tokens_of.text(item.tokens).index(q.expected[0] + ".") for q in item.questions]
    assert max(places) > len(tokens_of.text(item.tokens)) / 2  # not all at the beginning


def test_texts_are_of_four_kinds(tokens_of):
    kinds = [TASKS["perplexity"].make(tokens_of, i, 600).kind for i in range(8)]
    assert kinds == [*KINDS, *KINDS]
    assert all(len(sections_of(kind)) >= 8 for kind in (*KINDS, "table"))


@pytest.mark.parametrize(
    "score, expected, said, value",
    [
        (first_word_is_right, ("Lisbon",), " lisbon, of course", 1.0),
        (first_word_is_right, ("Lisbon",), " in Lisbon", 0.0),
        (share_said, ("1234567", "7654321"), "they are 7654321 and 1111111", 0.5),
        (says_unknown, ("unknown",), " Unknown.", 1.0),
        (says_unknown, ("unknown",), " Lisbon.", 0.0),
        (share_of_new, (), "a b c d a b c d a b c d", 4 / 9),
        (share_of_new, (), "a b c", 1.0),
    ],
)
def test_scores(score, expected, said, value):
    assert score(Question([], expected), said) == pytest.approx(value)


def test_tasks_are_chosen_by_name_or_family():
    assert [task.name for task in chosen("copy,five-questions")] == ["copy", "five-questions"]
    assert len(chosen("facts")) == 6
    assert len(chosen("ruler, ruler-vt")) == 7
    assert len(chosen("all")) == len(TASKS)
    with pytest.raises(ValueError, match=r"tasks must be all or some of perplexity, copy, .*, got 'verse'"):
        chosen("copy,verse")


@pytest.mark.parametrize("preset", [FULL, QUICK])
def test_presets_have_every_task(preset):
    parts = parts_of(preset, list(TASKS.values()))
    assert {part.task.name for part in parts} == set(TASKS)
    assert {(p.n_tokens, p.n_items) for p in parts_of(preset, chosen("copy"), [900], 2)} == {(900, 2)}
