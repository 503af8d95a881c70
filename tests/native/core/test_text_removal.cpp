// What of a text can be taken away: asked by positions, as hosts do.

#include "case.h"

#include "core/text.h"

using R = morphkv_removal;

// 4 distant slots; cut from 10 cells to 8
static morphkv_text text_of(int32_t n_ring_cells = 0) {
    return morphkv_text({ { { 8, 4, 2, 10 } }, n_ring_cells, 2, 4 }, 0);
}

static R plan(const morphkv_text & text, int32_t p0, int32_t p1) {
    return morphkv_plan_removal(text, p0, p1, [](int32_t lost, int32_t pos) { return pos - lost >= 4; });
}

static morphkv_text cut_text() {
    auto text = text_of();
    text.append(0, 10, true);
    text.note_cut(0);  // recent: 6 to 9
    return text;
}

TEST_CASE(of_an_empty_text_nothing_is_removed) {
    CHECK(plan(text_of(), 0, -1) == R::NOTHING && plan(text_of(), -1, -1) == R::NOTHING);
}

TEST_CASE(behind_the_end_is_nothing) {
    auto text = text_of();
    text.append(0, 5, true);
    CHECK(plan(text, 5, -1) == R::NOTHING && plan(text, 7, 9) == R::NOTHING);
}

TEST_CASE(a_range_that_is_empty_is_nothing) {
    auto text = text_of();
    text.append(0, 5, true);
    CHECK(plan(text, 3, 3) == R::NOTHING && plan(text, 3, 1) == R::NOTHING && plan(text, -1, 0) == R::NOTHING);
}

TEST_CASE(from_the_first_position_on_is_all) {
    auto text = text_of();
    text.append(3, 5, true);
    CHECK(plan(text, -1, -1) == R::ALL && plan(text, 0, -1) == R::ALL && plan(text, 3, 8) == R::ALL);
    CHECK(plan(cut_text(), 0, -1) == R::ALL);
}

TEST_CASE(a_range_that_ends_behind_the_newest_is_a_tail) {
    auto text = text_of();
    text.append(0, 5, true);
    CHECK(plan(text, 1, -1) == R::TAIL && plan(text, 4, 5) == R::TAIL && plan(text, 4, INT32_MAX) == R::TAIL);
}

TEST_CASE(a_range_that_leaves_newer_tokens_is_a_hole_and_refused) {
    auto text = text_of();
    text.append(0, 5, true);
    CHECK(plan(text, 1, 4) == R::REFUSED && plan(text, 0, 4) == R::REFUSED);
}

TEST_CASE(of_the_recent_tokens_all_but_the_oldest_can_go) {
    CHECK(plan(cut_text(), 7, -1) == R::TAIL && plan(cut_text(), 9, -1) == R::TAIL);
    // its position is where the text goes on
    CHECK(plan(cut_text(), 6, -1) == R::REFUSED && plan(cut_text(), 1, -1) == R::REFUSED);
}

TEST_CASE(a_tail_leaves_what_the_next_token_attends_to_in_windowed_layers) {
    auto text = text_of(/*n_ring_cells =*/8);
    text.append(0, 10, true);  // 2 to 9 are in the ring, and 5 attends to 2
    CHECK(plan(text, 5, -1) == R::TAIL && plan(text, 4, -1) == R::REFUSED && plan(text, 0, -1) == R::ALL);
}

TEST_CASE(a_tail_is_asked_for_by_positions_not_by_serials) {
    auto text = text_of();
    text.append(100, 10, true);
    text.note_cut(0);
    CHECK(plan(text, 107, -1) == R::TAIL && plan(text, 106, -1) == R::REFUSED && plan(text, 100, -1) == R::ALL);
    CHECK(plan(text, 7, -1) == R::ALL);  // all there is lies behind
}

TEST_CASE(a_tail_may_begin_in_a_gap) {
    auto text = text_of();
    text.append(0, 3, true);
    text.append(10, 3, true);
    CHECK(plan(text, 5, -1) == R::TAIL && plan(text, 5, 12) == R::REFUSED);
}

TEST_CASE(an_image_goes_with_its_beginning) {
    auto text = text_of();
    text.append(0, 2, true);
    text.positions.append_image(2, 2, 4);
    CHECK(plan(text, 2, -1) == R::TAIL && plan(text, 2, 3) == R::REFUSED);
}

TEST_CASE(what_every_group_still_holds_can_be_taken_back) {
    morphkv_text text({ { { 8, 4, 2, 10 }, { 12, 5, 4, 20 } }, 0, 2, 4 }, 0);
    text.append(0, 20, true);
    text.note_cut(0);  // recent from 16 on
    CHECK(plan(text, 17, -1) == R::TAIL && plan(text, 16, -1) == R::REFUSED);
    text.note_cut(1);  // recent from 15 on
    CHECK(plan(text, 17, -1) == R::TAIL && plan(text, 16, -1) == R::REFUSED);
}
