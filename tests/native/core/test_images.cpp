// Images in a text: where they stand, what of them comes in a batch, when they are cut and rebased, and how they are packed.

#include "case.h"

#include "core/arrival.h"
#include "core/moves.h"
#include "core/plan.h"

using numbers = std::vector<int32_t>;
using places  = std::vector<morphkv_position>;

// 4 distant slots; cut at 14 cells to 8
static const morphkv_cut_shape SMALL = { /*capacity =*/8, /*window =*/4, /*interval =*/2, /*n_limit =*/14 };

static morphkv_text words(int32_t n, int32_t pos = 0) {
    morphkv_text res({ { SMALL }, 0, /*votes =*/2, /*n_query_rows =*/5 }, 0);
    res.append(pos, n, true);
    return res;
}

static bool can_lose(int32_t, int32_t) {
    return true;
}

// The i-th to (i+n)-th token of an image at a time, so many in a row.
static places image(int32_t t, int32_t n_column, int32_t n, int32_t i = 0) {
    places res;
    for (int32_t k = i; k < i + n; ++k) {
        res.push_back({ t, t + k / n_column, t + k % n_column });
    }
    return res;
}

static places line(int32_t pos, int32_t n) {
    places res;
    for (int32_t i = pos; i < pos + n; ++i) {
        res.push_back({ i, i, i });
    }
    return res;
}

static std::string why_not(const morphkv_positions & positions, const places & tokens, bool both_ways = false) {
    morphkv_batch_part part;
    return morphkv_note_arrival(positions, tokens, /*has_rows =*/true, both_ways, part);
}

static morphkv_batch_part part_of(const morphkv_positions & positions, const places & tokens, bool both_ways = false) {
    morphkv_batch_part part;
    part.n = tokens.size();
    CHECK(morphkv_note_arrival(positions, tokens, /*has_rows =*/true, both_ways, part).empty() && part.is_embedded);
    return part;
}

//
// what comes
//

TEST_CASE(an_image_is_known_by_its_rows) {
    const auto part = part_of(words(3).positions, image(3, 4, 10));
    CHECK(part.pos == 3 && part.n_column == 4 && part.end == 7 && !part.is_whole);
}

TEST_CASE(a_row_of_an_image_is_as_wide_as_it_is) {
    const auto part = part_of(words(3).positions, image(3, 9, 5));
    CHECK(part.n_column == 5 && part.end == 8);
}

TEST_CASE(an_image_goes_on_in_any_piece) {
    for (const int32_t n_column : { 1, 2, 5, 6, 20 }) {
        for (int32_t n_first = 1; n_first < 20; ++n_first) {
            auto text = words(3);
            for (const auto & piece : { image(3, n_column, n_first), image(3, n_column, 20 - n_first, n_first) }) {
                const auto part = part_of(text.positions, piece);
                text.append(part.pos, part.n, true, part.n_column);
            }
            CHECK(text.positions.runs().size() == 2);
            for (int32_t i = 0; i < 20; ++i) {
                CHECK(text.positions.at(3 + i) == image(3, n_column, 1, i)[0]);
            }
        }
    }
}

TEST_CASE(a_line_of_embeddings_is_like_words) {
    const auto part = part_of(words(3).positions, line(3, 5));
    CHECK(part.n_column == 0 && !part.is_whole);
    const auto whole = part_of(words(3).positions, line(3, 5), true);
    CHECK(whole.n_column == MORPHKV_BOTH_WAYS && whole.is_whole && whole.end == 8);
}

TEST_CASE(without_rows_there_is_a_line_alone) {
    morphkv_batch_part part;
    CHECK(morphkv_note_arrival(words(3).positions, line(3, 1), /*has_rows =*/false, false, part).empty());
    CHECK(part.n_column == 0);
    const places twice = { { 3, 3, 3 }, { 3, 3, 3 } };
    CHECK(!morphkv_note_arrival(words(3).positions, twice, /*has_rows =*/false, false, part).empty());
}

TEST_CASE(what_is_no_image_is_refused) {
    const auto text = words(3).positions;
    CHECK(why_not(text, image(4, 2, 4)) == "positions must be consecutive, got 4 after 2");
    CHECK(why_not(text, image(3, 2, 3, 2)).find("got (3, 4, 3) for (3, 3, 3)") != std::string::npos);
    auto torn = image(3, 2, 6);
    torn[3].w = 7;
    CHECK(why_not(text, torn).find("got (3, 4, 7) for (3, 4, 4)") != std::string::npos);
    auto two = image(3, 2, 4);
    two.push_back({ 5, 5, 5 });
    CHECK(why_not(text, two).find("alone in their batch") != std::string::npos);
    auto leap = line(3, 3);
    leap[2]   = { 9, 9, 9 };
    CHECK(why_not(text, leap).find("got (9, 9, 9) for (5, 5, 5)") != std::string::npos);
}

TEST_CASE(an_image_that_is_at_its_end_does_not_go_on) {
    auto text = words(3);
    text.append(3, 4, true, 2);
    CHECK(part_of(text.positions, image(5, 2, 4)).n_column == 2);
    text.append(5, 2, true);
    CHECK(!why_not(text.positions, image(3, 2, 2, 4)).empty());
}

TEST_CASE(tokens_that_come_whole_need_cells_beside_the_capacity) {
    CHECK(morphkv_why_no_room(words(8), 6).empty() && morphkv_why_no_room(words(13), 6).empty());
    CHECK(morphkv_why_no_room(words(4), 10).empty());
    CHECK(morphkv_why_no_room(words(9), 7).find("= 6 of them, got 7") != std::string::npos);
}

//
// what is planned
//

static morphkv_plan plan_of(const morphkv_text & text, const morphkv_batch_part & part, int32_t limit = 0) {
    return morphkv_plan({ text }, { part }, /*n_draft =*/3, limit);
}

TEST_CASE(tokens_that_come_whole_are_cut_before) {
    const auto                        text = words(10);
    auto                              plan = plan_of(text, part_of(text.positions, line(10, 6), true));
    std::vector<morphkv_planned_text> planned;
    CHECK(plan.n_most(512, false) == 6 && plan.add({ 0 }, 6, planned));
    CHECK(planned[0].cuts.size() == 1 && planned[0].first_cells[0] == 8);
    // all fit
    plan = plan_of(text, part_of(text.positions, line(10, 4), true));
    CHECK(plan.add({ 0 }, 4, planned) && planned[0].cuts.empty());
}

TEST_CASE(one_token_of_an_image_is_a_prompt) {
    const auto text = words(10);
    CHECK(plan_of(text, part_of(text.positions, line(10, 1))).is_prompt(0));
}

TEST_CASE(an_image_is_rebased_before_its_rows_reach_the_limit) {
    std::vector<morphkv_planned_text> planned;
    for (const int32_t n_column : { 2, 3 }) {
        const auto text = words(6, 12);  // up to 17
        auto       plan = plan_of(text, part_of(text.positions, image(18, n_column, 4)), /*limit =*/20);
        CHECK(plan.add({ 0 }, 4, planned) && planned[0].rebases == (n_column == 3));
    }
}

TEST_CASE(an_image_that_is_longer_than_the_limit_is_taken) {
    std::vector<morphkv_planned_text> planned;
    const auto                        text = words(2);
    auto                              plan = plan_of(text, part_of(text.positions, image(2, 30, 5)), /*limit =*/20);
    CHECK(plan.add({ 0 }, 5, planned) && !planned[0].rebases);
}

//
// what is there
//

TEST_CASE(a_text_does_not_end_inside_of_what_comes_together) {
    auto text = words(3);
    text.append(3, 4, true, MORPHKV_BOTH_WAYS);
    text.append(7, 1, true);
    CHECK(morphkv_plan_removal(text, 4, -1, can_lose) == morphkv_removal::REFUSED);
    CHECK(morphkv_plan_removal(text, 3, -1, can_lose) == morphkv_removal::TAIL);
    CHECK(morphkv_plan_removal(text, 7, -1, can_lose) == morphkv_removal::TAIL);
    CHECK(text.positions.pos_from(5) == 7 && text.positions.pos_from(3) == 3);
}

TEST_CASE(behind_the_time_of_an_image_there_is_nothing_to_remove) {
    auto text = words(3);
    text.append(3, 6, true, 3);
    CHECK(morphkv_plan_removal(text, 4, -1, can_lose) == morphkv_removal::NOTHING);
    CHECK(morphkv_plan_removal(text, 3, -1, can_lose) == morphkv_removal::TAIL);
    CHECK(text.positions.pos_from(4) == 6);
}

TEST_CASE(words_alone_are_read_again) {
    auto text = words(3);
    CHECK(text.n_removable_words(can_lose) == 2);  // one stays
    text.append(3, 6, true, 3);
    CHECK(text.n_removable_words(can_lose) == 0);
    text.append(6, 4, true);
    CHECK(text.n_removable_words(can_lose) == 4);
}

TEST_CASE(an_image_is_packed_as_one_thing) {
    morphkv_positions positions;
    positions.append(0, 3);
    positions.append_image(3, 2, 6);  // serials 3 to 8, 3 positions
    positions.append(6, 3);
    const numbers all = { 0, 1, 3, 4, 5, 6, 8, 9, 11 };
    CHECK(positions.packed(all.data(), all.size()) == numbers({ 0, 1, 2, 2, 2, 2, 2, 5, 6 }));
    // of an image one token takes one place
    const numbers few = { 1, 7, 9 };
    CHECK(positions.packed(few.data(), few.size()) == numbers({ 0, 1, 2 }));
    const numbers none = { -7, 100, INT32_MAX };
    CHECK(positions.packed(none.data(), none.size()) == numbers({ 0, 1, 2 }));
}

TEST_CASE(a_move_turns_an_image_by_one_distance) {
    auto text = words(2);
    text.append(2, 6, true, 3);  // two of its tokens come into slots, beside the words
    text.append(5, 6, true);
    text.note_cut(0);
    const numbers slots = { 0, 1, 2, 3 };
    const auto    plan = morphkv_plan_moves(text, 0, { { 1, true } }, { { slots, slots } }, {}, nullptr, false, nullptr,
                                            /*offset =*/0, /*base =*/4);
    CHECK(plan.layers[0].turned == numbers({ 0, 1, 2, 3 }));
    CHECK(plan.layers[0].by == numbers({ 4, 4, 4, 4 }));
    text.note_recall(0, 4, plan.ranked, 0);
    CHECK(text.rotary_position(0, 0, 2) == 6 && text.rotary_position(0, 0, 3) == 6);
}
