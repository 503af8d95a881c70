// Which micro-batches a batch becomes and what is cut before each, in cases that can be counted.

#include "case.h"

#include "core/plan.h"

using numbers = std::vector<int32_t>;

// 4 distant slots; steps are cut at 10 cells to 8, prompts at 14
static const morphkv_cut_shape SMALL = { /*capacity =*/8, /*window =*/4, /*interval =*/2, /*n_limit =*/14 };
// as above, without room for prompts
static const morphkv_cut_shape TIGHT = { 8, 4, 2, 10 };
// 7 distant slots; cut at 16, prompts at 20
static const morphkv_cut_shape LARGE = { 12, 5, 4, 20 };

static morphkv_text text_of(const std::vector<morphkv_cut_shape> & groups, int32_t n, int32_t n_prompt,
                            int32_t pos = 0) {
    morphkv_text res({ groups, 0, /*votes =*/2, /*n_query_rows =*/5 }, 0);
    res.append(pos, n_prompt, true);
    res.append(pos + n_prompt, n - n_prompt, false);
    return res;
}

// A prompt of n tokens, whose last alone has logits; or a draft, which has all.
static morphkv_batch_part prompt(int32_t n, int32_t pos = 0) {
    return { n, 1, pos };
}

static morphkv_batch_part draft(int32_t n) {
    return { n, n, 0 };
}

static morphkv_plan plan_of(const std::vector<morphkv_text> & texts, const std::vector<morphkv_batch_part> & parts,
                            int32_t limit = 0) {
    return morphkv_plan(texts, parts, /*n_draft =*/3, limit);
}

// A micro-batch of n tokens of text 0: which of its groups are cut, and the first cell in its first group.
struct added {
    std::vector<size_t> cuts;
    int32_t             first_cell;
};

static added add(morphkv_plan & plan, int32_t n) {
    std::vector<morphkv_planned_text> planned;
    CHECK(plan.add({ 0 }, n, planned) && planned.size() == 1 && planned[0].i_text == 0);
    return { planned[0].cuts, planned[0].first_cells[0] };
}

static bool is_cut(morphkv_plan & plan, int32_t n) {
    return !add(plan, n).cuts.empty();
}

//
// prompts
//

TEST_CASE(a_prompt_that_fits_is_one_micro_batch) {
    auto plan = plan_of({ text_of({ SMALL }, 0, 0) }, { prompt(12) });
    CHECK(plan.is_prompt(0) && plan.n_most(512, false) == 14);
    const auto res = add(plan, 12);
    CHECK(res.cuts.empty() && res.first_cell == 0);
}

TEST_CASE(a_micro_batch_is_no_larger_than_the_backend_takes) {
    auto plan = plan_of({ text_of({ SMALL }, 0, 0) }, { prompt(12) });
    CHECK(plan.n_most(5, false) == 5 && plan.n_most(5, true) == 5);
}

TEST_CASE(a_prompt_is_cut_where_the_cells_are_full) {
    auto plan = plan_of({ text_of({ SMALL }, 0, 0) }, { prompt(24) });
    CHECK(!is_cut(plan, 14));
    // 8 are left
    CHECK(plan.n_most(512, false) == 6);
    const auto res = add(plan, 6);
    CHECK(res.cuts == std::vector<size_t>({ 0 }) && res.first_cell == 8);
    CHECK(is_cut(plan, 4));
}

TEST_CASE(a_prompt_in_small_micro_batches_is_cut_at_the_same_tokens) {
    auto plan = plan_of({ text_of({ SMALL }, 0, 0) }, { prompt(24) });
    for (int32_t i = 0; i < 24; ++i) {
        CHECK(is_cut(plan, 1) == (i == 14 || i == 20));
    }
}

TEST_CASE(a_prompt_goes_on_in_the_room_that_is_left) {
    auto plan = plan_of({ text_of({ SMALL }, 11, 5) }, { prompt(6) });
    CHECK(plan.n_most(512, false) == 3 && add(plan, 3).first_cell == 11 && is_cut(plan, 3));
}

TEST_CASE(more_tokens_than_there_are_cells_are_refused) {
    auto                              plan = plan_of({ text_of({ SMALL }, 11, 5) }, { prompt(6) });
    std::vector<morphkv_planned_text> planned;
    CHECK(!plan.add({ 0 }, 4, planned));
}

//
// steps
//

TEST_CASE(a_token_whose_logits_are_wanted_is_no_prompt) {
    CHECK(!plan_of({ text_of({ SMALL }, 5, 2) }, { { 1, 1, 0 } }).is_prompt(0));
    CHECK(plan_of({ text_of({ SMALL }, 5, 2) }, { { 1, 0, 0 } }).is_prompt(0));
}

TEST_CASE(a_prompt_whose_pieces_are_single_tokens_is_cut_where_the_cells_are_full) {
    auto text = text_of({ SMALL }, 0, 0);
    for (int32_t i = 0; i < 14; ++i) {
        const bool is_last = i == 13;
        auto       plan    = plan_of({ text }, { { 1, is_last, i } });
        CHECK(!is_cut(plan, 1));
        text.append(i, 1, plan.is_prompt(0));
    }
    auto written = plan_of({ text }, { draft(1) });
    CHECK(is_cut(written, 1));
}

TEST_CASE(a_step_is_cut_when_the_window_has_outgrown_the_interval) {
    for (const int32_t n : { 8, 9, 10, 11 }) {
        auto plan = plan_of({ text_of({ SMALL }, n, 2) }, { draft(1) });
        CHECK(is_cut(plan, 1) == (n >= 10));
    }
}

TEST_CASE(right_behind_a_prompt_the_cut_waits_for_the_next_token) {
    auto first  = plan_of({ text_of({ SMALL }, 12, 12) }, { draft(1) });
    auto second = plan_of({ text_of({ SMALL }, 13, 12) }, { draft(1) });
    CHECK(!is_cut(first, 1) && is_cut(second, 1));
}

TEST_CASE(a_prompts_last_token_that_comes_again_is_not_cut) {
    auto text = text_of({ SMALL }, 12, 12);
    text.remove_from(11);
    auto plan = plan_of({ text }, { draft(1) });
    CHECK(!is_cut(plan, 1));
    text.append(11, 1, false);
    auto next = plan_of({ text }, { draft(1) });
    CHECK(!is_cut(next, 1));
}

TEST_CASE(after_a_long_rollback_the_cut_waits_for_voters) {
    auto text = text_of({ { 8, 4, 2, 24 } }, 20, 2);
    text.remove_from(15);  // rows of 15 to 19 are all there were
    CHECK(text.voters().empty());
    for (const bool due : { false, false, true }) {
        auto plan = plan_of({ text }, { draft(1) });
        CHECK(is_cut(plan, 1) == due);
        text.append(text.n_tokens(), 1, false);
    }
}

TEST_CASE(where_no_cell_is_left_no_cut_waits) {
    auto plan = plan_of({ text_of({ SMALL }, 14, 14) }, { draft(1) });
    CHECK(is_cut(plan, 1));
}

//
// drafts
//

TEST_CASE(tokens_that_all_want_logits_are_a_draft_up_to_a_number) {
    const auto texts = std::vector<morphkv_text>{ text_of({ SMALL }, 5, 2) };
    CHECK(!plan_of(texts, { draft(3) }).is_prompt(0) && plan_of(texts, { draft(4) }).is_prompt(0));
}

TEST_CASE(tokens_of_which_one_has_no_logits_are_a_prompt) {
    CHECK(plan_of({ text_of({ SMALL }, 5, 2) }, { { 3, 2, 0 } }).is_prompt(0));
}

TEST_CASE(a_draft_that_is_due_is_cut_once_before_it) {
    auto plan = plan_of({ text_of({ SMALL }, 10, 2) }, { draft(3) });
    CHECK(is_cut(plan, 1) && !is_cut(plan, 1) && !is_cut(plan, 1));
}

TEST_CASE(a_draft_is_not_cut_inside) {
    auto plan = plan_of({ text_of({ SMALL }, 9, 2) }, { draft(3) });
    CHECK(!is_cut(plan, 1) && !is_cut(plan, 1) && !is_cut(plan, 1));
}

TEST_CASE(before_a_draft_that_has_no_cells_is_cut_early) {
    auto fits = plan_of({ text_of({ TIGHT }, 9, 9) }, { draft(1) });
    CHECK(!is_cut(fits, 1));
    auto plan = plan_of({ text_of({ TIGHT }, 9, 9) }, { draft(2) });
    CHECK(plan.n_most(512, false) == 2);
    const auto res = add(plan, 2);
    CHECK(!res.cuts.empty() && res.first_cell == 8);
}

TEST_CASE(a_draft_larger_than_the_room_is_cut_where_that_ends) {
    // 8 cells: there is nothing to cut before
    auto plan = plan_of({ text_of({ TIGHT }, 8, 2) }, { draft(3) });
    CHECK(plan.n_most(512, false) == 2 && !is_cut(plan, 2) && is_cut(plan, 1));
}

//
// several texts
//

TEST_CASE(texts_of_a_batch_share_its_tokens) {
    const auto texts = std::vector<morphkv_text>{ text_of({ SMALL }, 0, 0), text_of({ SMALL }, 10, 10) };
    auto       plan  = plan_of(texts, { prompt(9), prompt(9) });
    // each has room for 4
    CHECK(plan.n_most(512, false) == 8 && plan.n_most(512, true) == 4);
}

TEST_CASE(a_draft_that_has_room_is_not_parted_for_another_text) {
    const auto texts = std::vector<morphkv_text>{ text_of({ SMALL }, 9, 2), text_of({ SMALL }, 13, 2) };
    // the second has room for 1, once it is its turn
    CHECK(plan_of(texts, { draft(3), draft(1) }).n_most(512, false) >= 3);
    CHECK(plan_of(texts, { draft(3), prompt(9) }).n_most(512, false) >= 3);
}

TEST_CASE(a_text_that_has_nothing_in_the_batch_does_not_count) {
    const auto texts = std::vector<morphkv_text>{ text_of({ SMALL }, 0, 0), text_of({ SMALL }, 13, 10) };
    auto       plan  = plan_of(texts, { prompt(9), { 0, 0, 0 } });
    CHECK(plan.n_most(512, false) == 14);
    CHECK(!is_cut(plan, 9));
    CHECK(plan.n_most(512, false) == 0);  // nothing is left
}

TEST_CASE(each_text_of_a_micro_batch_is_cut_when_it_is_due) {
    const auto texts =
        std::vector<morphkv_text>{ text_of({ SMALL }, 9, 2), text_of({ SMALL }, 10, 2), text_of({ SMALL }, 12, 12) };
    auto                              plan = plan_of(texts, { draft(1), draft(1), draft(1) });
    std::vector<morphkv_planned_text> planned;
    CHECK(plan.add({ 2, 1, 0 }, 1, planned) && planned.size() == 3);
    CHECK(planned[0].i_text == 2 && planned[0].cuts.empty() && planned[0].first_cells == numbers({ 12 }));
    CHECK(planned[1].i_text == 1 && planned[1].cuts.size() == 1 && planned[1].first_cells == numbers({ 8 }));
    CHECK(planned[2].i_text == 0 && planned[2].cuts.empty() && planned[2].first_cells == numbers({ 9 }));
}

TEST_CASE(a_prompt_beside_a_step_waits_with_its_cut) {
    const auto texts = std::vector<morphkv_text>{ text_of({ SMALL }, 11, 2), text_of({ SMALL }, 11, 2) };
    auto       plan  = plan_of(texts, { prompt(2), draft(1) });
    CHECK(plan.is_prompt(0) && !plan.is_prompt(1));
    std::vector<morphkv_planned_text> planned;
    CHECK(plan.add({ 0, 1 }, 1, planned));
    CHECK(planned[0].cuts.empty() && planned[1].cuts.size() == 1);
}

//
// groups of layers
//

TEST_CASE(the_group_with_the_least_room_says_how_many_tokens_come) {
    auto plan = plan_of({ text_of({ SMALL, LARGE }, 0, 0) }, { prompt(30) });
    CHECK(plan.n_most(512, false) == 14);
}

// The same tokens are recent in all.
TEST_CASE(groups_are_cut_at_the_same_moments) {
    auto plan = plan_of({ text_of({ SMALL, LARGE }, 0, 0) }, { prompt(30) });
    // when the small one is full, at 14, 20 and 26 tokens; the large one holds 12 before it loses any
    std::vector<std::pair<int32_t, std::vector<size_t>>> cuts;
    for (int32_t i = 0; i < 30; ++i) {
        const auto res = add(plan, 1);
        if (!res.cuts.empty()) {
            cuts.emplace_back(i, res.cuts);
        }
    }
    CHECK(cuts.size() == 3);
    CHECK(cuts[0].first == 14 && cuts[0].second == std::vector<size_t>({ 0, 1 }));
    CHECK(cuts[1].first == 20 && cuts[1].second == std::vector<size_t>({ 0, 1 }));
    CHECK(cuts[2].first == 26 && cuts[2].second == std::vector<size_t>({ 0, 1 }));
}

TEST_CASE(a_group_that_is_not_full_is_left_alone_by_a_cut) {
    const morphkv_cut_shape large = { 17, 4, 2, 23 };
    auto                    plan  = plan_of({ text_of({ SMALL, large }, 0, 0) }, { prompt(30) });

    std::vector<std::pair<int32_t, std::vector<size_t>>> cuts;
    for (int32_t i = 0; i < 30; ++i) {
        const auto res = add(plan, 1);
        if (!res.cuts.empty()) {
            cuts.emplace_back(i, res.cuts);
        }
    }
    CHECK(cuts.size() == 3);
    CHECK(cuts[0].first == 14 && cuts[0].second == std::vector<size_t>({ 0 }));
    CHECK(cuts[1].first == 20 && cuts[1].second == std::vector<size_t>({ 0, 1 }));
    CHECK(cuts[2].first == 26 && cuts[2].second == std::vector<size_t>({ 0, 1 }));
}

TEST_CASE(once_both_have_evicted_the_same_tokens_are_recent) {
    const morphkv_cut_shape large = { 17, 4, 2, 23 };
    auto                    text  = text_of({ SMALL, large }, 0, 0);
    for (int32_t i = 0; i < 60; ++i) {
        text = morphkv_text_behind_prompt(text, 1);
        if (text.groups[1].has_evicted()) {
            CHECK(text.groups[0].first_recent() == text.groups[1].first_recent());
            CHECK(text.n_used(0) - 8 == text.n_used(1) - 17);
        }
    }
    CHECK(text.groups[1].has_evicted());
}

TEST_CASE(tokens_come_to_lie_in_a_cell_of_each_group) {
    auto text = text_of({ SMALL, LARGE }, 14, 2);
    text.note_cut(0);
    auto                              plan = plan_of({ text }, { draft(1) });
    std::vector<morphkv_planned_text> planned;
    CHECK(plan.add({ 0 }, 1, planned));
    CHECK(planned[0].first_cells == numbers({ 8, 14 }) && planned[0].cuts.empty());
}

//
// rotary positions
//

TEST_CASE(a_micro_batch_ends_where_the_rotary_limit_is) {
    auto plan = plan_of({ text_of({ SMALL }, 4, 4, /*pos =*/90) }, { prompt(8) }, /*limit =*/100);
    CHECK(plan.n_most(512, false) == 6);
    add(plan, 6);
    // the first token comes to 0: 90 to 99 are there, so the cells are what ends it now
    CHECK(plan.n_most(512, false) == 4);
    add(plan, 2);
}

TEST_CASE(without_a_limit_positions_go_on) {
    auto plan = plan_of({ text_of({ SMALL }, 4, 4, /*pos =*/90) }, { prompt(8) });
    CHECK(plan.n_most(512, false) == 10);
}

TEST_CASE(a_new_text_is_measured_from_where_it_begins) {
    auto plan = plan_of({ text_of({ SMALL }, 0, 0) }, { prompt(14, /*pos =*/90) }, /*limit =*/100);
    CHECK(plan.n_most(512, false) == 10);
    add(plan, 10);
    CHECK(plan.n_most(512, false) == 4);
}

TEST_CASE(an_offset_that_a_text_has_counts) {
    auto text = text_of({ SMALL }, 4, 4, /*pos =*/90);
    text.note_rebase(90, { {} });
    auto plan = plan_of({ text }, { prompt(8) }, /*limit =*/100);
    CHECK(plan.n_most(512, false) == 10);
}

//
// ahead of a plan
//

// What a tail can be taken from, once a prompt has been decoded in micro-batches of any length.
TEST_CASE(a_text_behind_a_prompt_is_known_before) {
    const morphkv_can_lose never = [](int32_t, int32_t) {
        return true;
    };
    for (const auto & groups : { std::vector{ SMALL }, std::vector{ TIGHT }, std::vector{ SMALL, LARGE } }) {
        for (int32_t n_held = 0; n_held < 30; ++n_held) {
            // as it is after a prompt of so many
            const auto text = morphkv_text_behind_prompt(text_of(groups, 0, 0), n_held);
            for (int32_t n = 2; n < 40; ++n) {
                for (const int32_t n_ubatch : { 1, 5, 512 }) {
                    auto plan  = plan_of({ text }, { prompt(n, n_held) });
                    auto after = text;
                    for (int32_t left = n; left > 0;) {
                        const int32_t n_next = std::min(left, plan.n_most(n_ubatch, false));
                        for (const size_t i_group : add(plan, n_next).cuts) {
                            after.note_cut(i_group);
                        }
                        after.append(after.positions.next(), n_next, true);
                        left -= n_next;
                    }
                    const auto known = morphkv_text_behind_prompt(text, n);
                    CHECK(known.n_tokens() == after.n_tokens());
                    CHECK(known.first_complete(never) == after.first_complete(never));
                }
            }
        }
    }
}
