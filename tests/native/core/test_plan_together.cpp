// Texts of a micro-batch that are nearly due are cut with one that is; a text alone is cut when it has to be.

#include "case.h"

#include "core/plan.h"

// cut at 16 cells to 8; prompts at 30
static const morphkv_cut_shape SHAPE   = { /*capacity =*/8, /*window =*/4, /*interval =*/8, /*n_limit =*/30 };
static const int32_t           N_EARLY = 2;

static morphkv_text text_of(int32_t n, int32_t n_prompt = 2) {
    morphkv_text res({ { SHAPE }, 0, /*votes =*/2, /*n_query_rows =*/5 }, 0);
    res.append(0, n_prompt, true);
    res.append(n_prompt, n - n_prompt, false);
    return res;
}

// Which of these texts a token of each cuts.
static std::vector<bool> cuts(const std::vector<morphkv_text> & texts, int32_t n_early,
                              std::vector<morphkv_batch_part> parts = {}) {
    parts.resize(texts.size(), { 1, 1, 0 });
    morphkv_plan         plan(texts, parts, /*n_draft =*/3, /*limit =*/0, n_early);
    std::vector<int32_t> all;
    for (size_t i = 0; i < texts.size(); ++i) {
        all.push_back(i);
    }
    std::vector<morphkv_planned_text> planned;
    CHECK(plan.add(all, 1, planned));
    std::vector<bool> res;
    for (const auto & one : planned) {
        res.push_back(!one.cuts.empty());
        CHECK(one.first_cells[0] == (one.cuts.empty() ? texts[one.i_text].n_used(0) : SHAPE.capacity));
    }
    return res;
}

using flags = std::vector<bool>;

TEST_CASE(a_text_alone_is_never_cut_early) {
    for (int32_t n = 8; n < 20; ++n) {
        CHECK(cuts({ text_of(n) }, N_EARLY) == flags({ n >= 16 }));
        CHECK(cuts({ text_of(n) }, N_EARLY) == cuts({ text_of(n) }, 0));
    }
}

TEST_CASE(nearly_due_texts_are_cut_with_one_that_is) {
    CHECK(cuts({ text_of(13), text_of(14), text_of(15), text_of(16) }, N_EARLY) == flags({ 0, 1, 1, 1 }));
    // its place in the batch does not matter
    CHECK(cuts({ text_of(16), text_of(14), text_of(13) }, N_EARLY) == flags({ 1, 1, 0 }));
}

TEST_CASE(where_none_is_due_none_is_cut) {
    CHECK(cuts({ text_of(14), text_of(15), text_of(15) }, N_EARLY) == flags({ 0, 0, 0 }));
}

TEST_CASE(without_n_early_each_is_cut_as_if_alone) {
    CHECK(cuts({ text_of(14), text_of(15), text_of(16) }, 0) == flags({ 0, 0, 1 }));
}

TEST_CASE(an_early_cut_waits_for_what_a_cut_waits_for) {
    // the first token behind a prompt
    CHECK(cuts({ text_of(15, /*n_prompt =*/15), text_of(16) }, N_EARLY) == flags({ 0, 1 }));
    // voters: rows of 15 to 19 are all there were
    auto text = text_of(20);
    text.remove_from(15);
    CHECK(text.voters().empty() && cuts({ text, text_of(16) }, N_EARLY) == flags({ 0, 1 }));
    // a prompt uses the cells that there are
    CHECK(cuts({ text_of(15), text_of(16) }, N_EARLY, { { 5, 1, 15 } }) == flags({ 0, 1 }));
}

TEST_CASE(one_that_holds_its_capacity_has_nothing_to_lose) {
    CHECK(cuts({ text_of(8), text_of(16) }, /*n_early =*/8) == flags({ 0, 1 }));
    CHECK(cuts({ text_of(9), text_of(16) }, /*n_early =*/8) == flags({ 1, 1 }));
}

// Once cut together they are due together: the number of moments at which anything is cut falls to one in an interval.
TEST_CASE(texts_that_go_on_together_are_cut_together_from_then_on) {
    std::vector<morphkv_text> texts   = { text_of(14), text_of(15), text_of(16) };
    int32_t                   n_alone = 0, n_together = 0;
    for (int32_t i = 0; i < 80; ++i) {
        morphkv_plan                      plan(texts, { { 1, 1, 0 }, { 1, 1, 0 }, { 1, 1, 0 } }, 3, 0, N_EARLY);
        std::vector<morphkv_planned_text> planned;
        CHECK(plan.add({ 0, 1, 2 }, 1, planned));
        int32_t n = 0;
        for (const auto & one : planned) {
            auto & text = texts[one.i_text];
            for (const size_t g : one.cuts) {
                text.note_cut(g);
                n++;
            }
            text.append(text.positions.next(), 1, false);
        }
        n_together += n == 3;
        n_alone += n == 1 || n == 2;
    }
    CHECK(n_together == 10 && n_alone == 0);
}
