// Rotary positions of a text: where a rebase brings its tokens, and where RoPE has those of slots afterwards.

#include "case.h"

#include "core/text.h"

#include <random>

// 4 distant slots; cut from 10 cells to 8
static const morphkv_cut_shape SMALL = { 8, 4, 2, 10 };
// 7 distant slots; cut from 20 cells to 12
static const morphkv_cut_shape LARGE = { 12, 5, 4, 20 };

static morphkv_text text_of(const std::vector<morphkv_cut_shape> & groups) {
    return morphkv_text({ groups, 0, 2, 4 }, 0);
}

// n tokens from pos on, cut wherever a group is full.
static void fill(morphkv_text & text, int32_t pos, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        for (size_t g = 0; g < text.groups.size(); ++g) {
            if (text.n_used(g) == text.groups[g].shape.n_limit) {
                text.note_cut(g);
            }
        }
        text.append(pos + i, 1, false);
    }
}

TEST_CASE(a_token_is_rotated_by_its_position) {
    auto text = text_of({ SMALL });
    fill(text, 100, 5);
    CHECK(text.rotary_position(0, 0, 0) == 100 && text.rotary_position(0, 0, 4) == 104);
}

TEST_CASE(half_of_what_is_below_the_limit_is_near) {
    CHECK(text_of({ SMALL }).n_near(100) == 45);
    CHECK(text_of({ SMALL, LARGE }).n_near(100) == 40);
    CHECK(text_of({ SMALL }).n_near(10) == 0);
}

TEST_CASE(without_an_eviction_a_rebase_brings_the_first_token_to_0) {
    auto text = text_of({ SMALL });
    fill(text, 300, 5);
    CHECK(text.rebase_offset(100) == 300);
}

TEST_CASE(after_evictions_slots_and_near_tokens_have_room_before_the_recent_ones) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);  // recent from 94 on
    CHECK(text.groups[0].first_recent() == 94 && text.rebase_offset(100) == 94 - 4 - 45);
}

TEST_CASE(the_group_with_the_oldest_recent_token_sets_the_offset) {
    auto text = text_of({ SMALL, LARGE });
    fill(text, 0, 100);
    CHECK(text.groups[0].first_recent() == 94 && text.groups[1].first_recent() == 87);
    CHECK(text.rebase_offset(100) == 87 - 7 - 40);
}

TEST_CASE(a_group_that_has_not_evicted_keeps_its_first_token) {
    auto text = text_of({ SMALL, { 100, 4, 2, 120 } });
    fill(text, 50, 60);
    CHECK(text.groups[0].has_evicted() && !text.groups[1].has_evicted() && text.rebase_offset(200) == 50);
}

TEST_CASE(after_a_rebase_all_positions_are_below_the_limit) {
    for (int32_t limit = 21; limit < 60; ++limit) {
        auto text = text_of({ SMALL, LARGE });
        for (int32_t pos = 0; pos < 500; ++pos) {
            const int32_t before = text.rotary_offset;
            if (pos - text.rotary_offset >= limit) {
                for (size_t g = 0; g < 2; ++g) {
                    if (text.n_used(g) == text.groups[g].shape.n_limit) {
                        text.note_cut(g);
                    }
                }
                text.note_rebase(text.rebase_offset(limit), { {}, {} });
                CHECK(text.rotary_offset > before && pos - text.rotary_offset < limit);
            }
            fill(text, pos, 1);
        }
        CHECK(text.n_rebases > 0);
    }
}

TEST_CASE(a_rebase_moves_recent_tokens_by_its_offset) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_rebase(45, { { 0, 1, 2, 90 } });
    CHECK(text.rotary_offset == 45 && text.n_rebases == 1 && text.decoded_since_cut == 100);
    CHECK(text.rotary_position(0, 0, 94) == 49 && text.rotary_position(0, 0, 99) == 54);
}

TEST_CASE(the_oldest_tokens_stand_one_behind_the_other_after_a_rebase) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_rebase(45, { { 0, 3, 20, 90 } });
    CHECK(text.rotary_position(0, 0, 0) == 0 && text.rotary_position(0, 0, 3) == 1);
    CHECK(text.rotary_position(0, 0, 20) == 2);
    // this one comes to 45, where there is no need to close a gap
    CHECK(text.rotary_position(0, 0, 90) == 45);
}

TEST_CASE(each_head_has_ranks_of_its_own) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_rebase(45, { { 0, 3, 20, 90, 3, 5, 20, 21 } });
    CHECK(text.rotary_position(0, 0, 3) == 1 && text.rotary_position(0, 1, 3) == 0);
    CHECK(text.rotary_position(0, 1, 20) == 2 && text.rotary_position(0, 1, 21) == 3);
}

TEST_CASE(each_group_has_ranks_of_its_own) {
    auto text = text_of({ SMALL, LARGE });
    fill(text, 0, 100);
    text.note_rebase(45, { { 0, 3, 20, 90 }, { 3, 4, 5, 6, 7, 8, 20 } });
    CHECK(text.rotary_position(0, 0, 20) == 2 && text.rotary_position(1, 0, 20) == 6);
}

TEST_CASE(a_token_that_came_into_a_slot_after_a_rebase_has_no_rank) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_rebase(45, { { 0, 3, 20, 90 } });
    CHECK(text.rotary_position(0, 0, 48) == 3);
    CHECK(text.rotary_position(0, 0, 95) == 50);
}

TEST_CASE(a_rebase_without_slots_ranks_none) {
    auto text = text_of({ SMALL });
    fill(text, 50, 6);
    text.note_rebase(50, { {} });
    CHECK(!text.groups[0].ranked && text.rotary_position(0, 0, 0) == 0 && text.rotary_position(0, 0, 5) == 5);
}

TEST_CASE(recalled_tokens_stand_right_before_the_recent_ones) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_recall(0, /*base =*/90, { 3, 40, 41, 60 }, 2);
    CHECK(text.rotary_offset == 0 && text.n_recalls == 1 && text.n_recalled == 2 && text.decoded_since_cut == 100);
    CHECK(text.rotary_position(0, 0, 3) == 90 && text.rotary_position(0, 0, 60) == 93);
    CHECK(text.rotary_position(0, 0, 94) == 94);
}

TEST_CASE(a_recall_for_one_group_leaves_another_as_it_is) {
    auto text = text_of({ SMALL, LARGE });
    fill(text, 0, 100);
    text.note_recall(0, 90, { 3, 40, 41, 60 }, 2);
    CHECK(text.groups[1].base == 0 && !text.groups[1].ranked && text.rotary_position(1, 0, 3) == 3);
}

TEST_CASE(recalls_are_counted) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_recall(0, 90, { 3, 40, 41, 60 }, 2);
    text.note_recall(0, 90, { 3, 40, 41, 61 }, 5);
    CHECK(text.n_recalls == 2 && text.n_recalled == 7);
}

static std::vector<std::pair<int32_t, int32_t>> came_back(const morphkv_text & text) {
    std::vector<std::pair<int32_t, int32_t>> res;
    for (const auto & page : text.came_back ? *text.came_back : std::vector<morphkv_came_back>()) {
        res.emplace_back(page.serial, page.i_recall);
    }
    return res;
}

TEST_CASE(pages_that_came_back_are_known_by_the_last_recall_that_brought_them) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    CHECK(came_back(text).empty());
    text.note_recall(0, 90, { 3, 40, 41, 60 }, 2);
    text.note_came_back({ 32, 0 });
    const auto copy = text;
    text.note_recall(0, 90, { 3, 40, 41, 61 }, 5);
    text.note_came_back({ 32, 48 });
    CHECK((came_back(text) == std::vector<std::pair<int32_t, int32_t>>{ { 0, 1 }, { 32, 2 }, { 48, 2 } }));
    CHECK((came_back(copy) == std::vector<std::pair<int32_t, int32_t>>{ { 0, 1 }, { 32, 1 } }));
}

TEST_CASE(pages_that_are_taken_back_did_not_come_back) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_recall(0, 90, { 3, 40, 41, 60 }, 2);
    text.note_came_back({ 0, 80 });
    const auto copy = text;
    text.remove_from(80);
    CHECK((came_back(text) == std::vector<std::pair<int32_t, int32_t>>{ { 0, 1 } }));
    CHECK(came_back(copy).size() == 2);
}

TEST_CASE(a_rebase_ends_what_a_recall_has_placed) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_recall(0, 90, { 3, 40, 41, 60 }, 2);
    text.note_rebase(45, { { 3, 40, 41, 60 } });
    CHECK(text.groups[0].base == 0 && text.rotary_position(0, 0, 3) == 0 && text.rotary_position(0, 0, 60) == 15);
}

TEST_CASE(a_copy_keeps_its_ranks) {
    auto text = text_of({ SMALL });
    fill(text, 0, 100);
    text.note_recall(0, 90, { 3, 40, 41, 60 }, 2);
    const auto copy = text;
    text.note_recall(0, 90, { 5, 6, 7, 8 }, 4);
    CHECK(copy.rotary_position(0, 0, 3) == 90 && copy.rotary_position(0, 0, 5) == 5 && copy.n_recalled == 2);
    CHECK(text.rotary_position(0, 0, 3) == 3 && text.rotary_position(0, 0, 5) == 90);
}
