"""Facts early in a document, a question about one of them at the end."""

import pytest

from morphkv_cpp import Llama, MorphKV
from morphkv_cpp.eval import facts, prose_sections, recall
from support.tiny import FLASH

N_SHORT = 1280  # tokens of a prompt, where half the size will do


class TestTexts:
    def test_every_document_has_facts_of_its_own(self):
        assert len(facts()) >= recall.N_DOCUMENTS * recall.N_FACTS
        assert len({fact.subject for fact in facts()}) == len({fact.answer.casefold() for fact in facts()}) == 96

    def test_an_answer_is_one_word_that_the_prose_of_no_question_gives_away(self):
        for fact in facts():
            assert fact.answer.isalpha()
            assert fact.answer.casefold() not in fact.subject.casefold()

    def test_no_prose_states_a_fact(self):
        prose = " ".join(prose_sections()).casefold()
        assert not [fact for fact in facts() if fact.subject.casefold() in prose]


class TestSentences:
    def test_text_is_cut_behind_sentences_and_nothing_is_lost(self):
        text = 'One. "Two?" he asked.\n\nThree!'
        assert list(recall.sentences(text)) == ["One. ", '"Two?" ', "he asked.\n\n", "Three!"]

    def test_a_text_without_an_end_is_kept(self):
        assert list(recall.sentences("a. b")) == ["a. ", "b"]


@pytest.mark.parametrize(
    "text, word", [(" lantern.", "lantern"), (' "The code', "the"), ("\n*Pepper*", "pepper"), ("42", "")]
)
def test_the_first_word_is_bare_and_lower_case(text, word):
    assert recall.first_word(text) == word


class TestWilson:
    def test_an_interval_holds_the_share_and_stays_within_0_and_1(self):
        assert recall.wilson(0, 10)[0] == 0.0
        assert recall.wilson(10, 10)[1] == 1.0
        low, high = recall.wilson(9, 10)
        assert low < 0.9 < high

    def test_known_values(self):
        # Wilson (1927), with z = 1.96
        assert recall.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@pytest.mark.parametrize("n_documents, n_questions", [(0, 1), (13, 20), (2, 0), (2, 17)])
def test_sizes_out_of_range_are_refused(tiny_llama, n_documents, n_questions):
    with pytest.raises(ValueError, match="must be in 1"):
        recall.run(tiny_llama(), None, n_documents, n_questions, **FLASH)


@pytest.mark.demo
class TestDemoModel:
    def test_facts_stand_where_they_should_and_prompts_have_the_size_asked_for(self, demo_model):
        llm = Llama(demo_model, n_ctx=256, **FLASH)
        documents, questions = recall.build(llm, recall.N_DOCUMENTS, 60)
        llm.close()
        assert [sum(q.i_document == i for q in questions) for i in range(12)] == [5] * 12
        for document in documents:
            assert len(document.fact_ends) == recall.N_FACTS
            assert document.fact_ends[-1] <= recall.N_FACT_TOKENS
        for question in questions:
            n = len(documents[question.i_document].tokens) + len(question.tokens)
            assert abs(n - recall.N_TOKENS) <= 2 * recall.N_SLACK_TOKENS

    def test_a_cut_after_the_question_keeps_its_fact_and_recency_does_not(self, demo_model):
        morphkv = recall.run(demo_model, MorphKV(capacity=256), 1, 5, n_tokens=N_SHORT, **FLASH)
        recency = recall.run(demo_model, MorphKV(capacity=256, policy="recency"), 1, 3, n_tokens=N_SHORT, **FLASH)
        assert sum(morphkv) >= 4
        assert sum(recency) <= 1

    def test_a_restored_document_answers_as_one_decoded_anew(self, demo_model):
        config = MorphKV(capacity=256, prompt_room=N_SHORT)
        restored = []
        recall.run(demo_model, config, 1, 2, lambda question, text, right: restored.append(text), N_SHORT, **FLASH)

        llm = Llama(demo_model, morphkv=config, **FLASH)
        documents, questions = recall.build(llm, 1, 2, N_SHORT)
        llm.eval(documents[0].tokens)
        anew = recall.answer(llm, questions[1].tokens)
        assert llm.cache_stats().n_evictions == 1
        llm.close()
        # the second question is asked of a restored state
        assert anew == restored[1]
