// Which keys are turned and which are placed from the archive, at a rebase and a recall that can be followed by hand.

#include "morphkv-testing.h"
#include "moved_cells.h"

#include <cerrno>

using numbers = std::vector<int32_t>;
using floats  = std::vector<float>;

// 3 distant slots, of which one layer has two heads unless said otherwise; recent tokens 97 to 99 of 100
static const morphkv_cut_shape SHAPE              = { /*capacity =*/6, /*window =*/3, /*interval =*/2, /*n_limit =*/8 };
static const std::vector<morphkv_moved_layer> TWO = { { 2, true } };
static const std::vector<morphkv_moved_layer> ONE = { { 1, true } };
static const std::vector<morphkv_moved_layer> UNTURNED = { { 1, false } };

static morphkv_text text_of(int32_t n = 100, int32_t pos = 0) {
    morphkv_text res({ { SHAPE }, 0, 2, 4 }, 0);
    res.append(pos, n, true);
    if (n > SHAPE.n_limit) {
        res.note_cut(0);
    }
    return res;
}

static std::unique_ptr<morphkv_archive> archive_of(const std::vector<morphkv_moved_layer> & layers, int32_t n = 97) {
    auto res = std::make_unique<morphkv_archive>(layout_of(layers), morphkv_page_store_ram(), 0);
    append_tokens(*res, 0, n);
    return res;
}

static morphkv_slots same(const numbers & slots) {
    return { slots, slots };
}

// What happens to it: all that a plan can say, of one layer.
static morphkv_move_plan plan_of(const morphkv_text & text, const std::vector<morphkv_moved_layer> & layers,
                                 const morphkv_slots & slots, const morphkv_archive * archive, int32_t offset,
                                 int32_t base = 0, bool is_exact = true, const morphkv_pages & pages = {}) {
    return morphkv_plan_moves(text, 0, layers, { slots }, pages, archive, is_exact, nullptr, offset, base);
}

//
// what is turned
//

TEST_CASE(what_stands_right_is_left_alone) {
    const auto res = plan_of(text_of(), ONE, same({ 0, 1, 2 }), nullptr, /*offset =*/0);
    CHECK(res.layers.size() == 1 && res.layers[0].turned.empty() && res.layers[0].placed.empty());
    CHECK(res.offset == 0 && res.base == 0 && res.ranked == numbers({ 0, 1, 2 }));
}

TEST_CASE(before_an_eviction_all_keys_go_back_alike) {
    auto       text = text_of(/*n =*/4, /*pos =*/50);
    const auto res  = morphkv_plan_moves(text, 0, TWO, {}, {}, nullptr, false, nullptr, 50, 0);
    CHECK(res.layers[0].turned == numbers({ 0, 1, 2, 3, 4, 5, 6, 7 }) && res.layers[0].by == numbers(8, -50));
    CHECK(res.ranked.empty() && res.offset == 50);
}

TEST_CASE(recent_keys_go_back_by_what_the_offset_grows) {
    auto text          = text_of();
    text.rotary_offset = 10;
    const auto res     = plan_of(text, TWO, same({ 91, 92, 93, 91, 92, 93 }), nullptr, /*offset =*/30);
    // cells 3 to 5 of two heads; what was in slots goes along
    CHECK(numbers(res.layers[0].turned.begin(), res.layers[0].turned.begin() + 6) == numbers({ 6, 7, 8, 9, 10, 11 }));
    CHECK(res.layers[0].turned.size() == 12 && res.layers[0].by == numbers(12, -20));
}

TEST_CASE(old_tokens_come_to_stand_one_behind_the_other) {
    // 20 and 45 come below 3 and to the first places; 90 comes to 45 with the recent ones
    const auto res = plan_of(text_of(), ONE, same({ 20, 45, 90 }), nullptr, /*offset =*/45);
    CHECK(res.layers[0].turned == numbers({ 3, 4, 5, 0, 1, 2 }));
    CHECK(res.layers[0].by == numbers({ -45, -45, -45, -20, -44, -45 }));
}

TEST_CASE(ranks_are_of_serials_not_of_slots) {
    const auto res = plan_of(text_of(), ONE, same({ 40, 7, 20 }), nullptr, /*offset =*/45);
    CHECK(res.ranked == numbers({ 7, 20, 40 }));
    // slots 0, 1 and 2 come to 2, 0 and 1
    CHECK(res.layers[0].by == numbers({ -45, -45, -45, -38, -7, -19 }));
}

TEST_CASE(each_head_has_its_own_order) {
    const auto res = plan_of(text_of(), TWO, same({ 7, 20, 40, 1, 2, 3 }), nullptr, /*offset =*/45);
    CHECK(res.ranked == numbers({ 7, 20, 40, 1, 2, 3 }));
    const auto & move = res.layers[0];
    // rows of slots are cell*2 + head
    CHECK(numbers(move.turned.begin() + 6, move.turned.end()) == numbers({ 0, 2, 4, 1, 3, 5 }));
    CHECK(numbers(move.by.begin() + 6, move.by.end()) == numbers({ -7, -19, -38, -1, -1, -1 }));
}

TEST_CASE(ranks_go_on_over_layers) {
    const auto res = morphkv_plan_moves(text_of(), 0, { { 1, true }, { 1, true } },
                                        { same({ 7, 20, 40 }), same({ 1, 5, 9 }) }, {}, nullptr, false, nullptr, 45, 0);
    CHECK(res.ranked == numbers({ 7, 20, 40, 1, 5, 9 }));
    CHECK(res.layers[1].by == numbers({ -45, -45, -45, -1, -4, -7 }));
}

TEST_CASE(a_second_rebase_starts_from_the_places_of_the_first) {
    auto text = text_of();
    text.note_rebase(45, { { 7, 20, 40 } });
    // 7 has been at 0 and stays, 20 has been at 1 and stays; 60 came since and has been at 15
    const auto res = plan_of(text, ONE, same({ 7, 20, 60 }), nullptr, /*offset =*/80);
    CHECK(res.layers[0].turned == numbers({ 3, 4, 5, 2 }) && res.layers[0].by == numbers({ -35, -35, -35, -13 }));
}

TEST_CASE(positions_count_not_serials) {
    const auto res = plan_of(text_of(100, /*pos =*/1000), ONE, same({ 20, 45, 90 }), nullptr, /*offset =*/1045);
    CHECK(res.ranked == numbers({ 20, 45, 90 }));
    CHECK(res.layers[0].by == numbers({ -1045, -1045, -1045, -1020, -1044, -1045 }));
}

TEST_CASE(layers_without_rope_are_not_turned) {
    const auto res = plan_of(text_of(), UNTURNED, same({ 20, 45, 90 }), archive_of(UNTURNED).get(), /*offset =*/45);
    CHECK(res.layers[0].turned.empty() && res.layers[0].placed.empty() && res.ranked == numbers({ 20, 45, 90 }));
}

TEST_CASE(a_group_moves_by_its_own_slots) {
    // 5 distant slots beside the 3 of the first group
    morphkv_text text({ { SHAPE, { 8, 3, 2, 10 } }, 0, 2, 4 }, 0);
    text.append(0, 100, true);
    text.note_cut(0);
    text.note_cut(1);
    const auto res =
        morphkv_plan_moves(text, 1, ONE, { same({ 7, 20, 40, 60, 80 }) }, {}, nullptr, false, nullptr, 45, 0);
    CHECK(res.ranked == numbers({ 7, 20, 40, 60, 80 }));
    CHECK(res.layers[0].turned == numbers({ 5, 6, 7, 0, 1, 2, 3, 4 }));
    // 60 and 80 come to 15 and 35, behind the slots' number
    CHECK(res.layers[0].by == numbers({ -45, -45, -45, -7, -19, -38, -45, -45 }));
}

//
// what is placed
//

TEST_CASE(a_key_is_placed_from_an_exact_archive) {
    const auto   res  = plan_of(text_of(), TWO, same({ 7, 20, 40, 1, 2, 3 }), archive_of(TWO).get(), /*offset =*/45);
    const auto & move = res.layers[0];
    // the page of 0 to 15 first, then each in its order
    CHECK(move.placed == numbers({ 0, 1, 3, 5, 2, 4 }) && move.at == numbers({ 0, 0, 1, 2, 1, 2 }));
    CHECK(floats_of(move.k) == floats({ key_of(7, 0, 0), key_of(1, 0, 1), key_of(2, 0, 1), key_of(3, 0, 1),
                                        key_of(20, 0, 0), key_of(40, 0, 0) }));
    CHECK(move.filled.empty() && move.v.empty());
    // recent ones are in no archive
    CHECK(move.turned == numbers({ 6, 7, 8, 9, 10, 11 }));
}

TEST_CASE(an_archive_that_is_less_exact_than_the_cache_places_nothing) {
    const auto res = plan_of(text_of(), ONE, same({ 7, 20, 40 }), archive_of(ONE).get(), 45, 0, /*is_exact =*/false);
    CHECK(res.layers[0].placed.empty() && res.layers[0].turned.size() == 6);
}

TEST_CASE(a_key_whose_page_made_room_is_turned) {
    // two pages: 64 to 95
    morphkv_archive archive(layout_of(ONE), morphkv_page_store_ram(), 2 * (16 * 8 + 2));
    append_tokens(archive, 0, 97);
    CHECK(archive.n_dropped() == 4);
    const auto res = plan_of(text_of(), ONE, same({ 7, 63, 64 }), &archive, /*offset =*/90);
    CHECK(res.layers[0].placed == numbers({ 2 }) && floats_of(res.layers[0].k) == floats({ key_of(64, 0, 0) }));
    CHECK(res.layers[0].turned == numbers({ 3, 4, 5, 0, 1 }));
}

TEST_CASE(a_key_whose_page_is_not_full_is_turned) {
    const auto res = plan_of(text_of(), ONE, same({ 7, 8, 96 }), archive_of(ONE).get(), /*offset =*/95);
    CHECK(res.layers[0].placed == numbers({ 0, 1 }) && res.layers[0].turned == numbers({ 3, 4, 5, 2 }));
}

TEST_CASE(a_key_from_before_the_archive_began_is_turned) {
    morphkv_archive archive(layout_of(ONE), morphkv_page_store_ram(), 0);
    append_tokens(archive, 20, 77);
    const auto res = plan_of(text_of(), ONE, same({ 19, 20, 35 }), &archive, /*offset =*/45);
    CHECK(res.layers[0].placed == numbers({ 1, 2 }));
    CHECK(floats_of(res.layers[0].k) == floats({ key_of(20, 0, 0), key_of(35, 0, 0) }));
}

TEST_CASE(a_key_whose_page_is_damaged_is_turned) {
    const auto archive = archive_of(ONE);
    morphkv_testing_fail_store(1, EIO);
    CHECK(!archive->find_page(0));
    const auto res = plan_of(text_of(), ONE, same({ 7, 20, 40 }), archive.get(), /*offset =*/45);
    CHECK(res.layers[0].placed == numbers({ 1, 2 }) && res.layers[0].turned == numbers({ 3, 4, 5, 0 }));
}

//
// recalls
//

// Pages 0 and 2 of an archive.
static morphkv_pages pages_0_and_2(const morphkv_archive & archive) {
    return { { 2, archive.find_page(2) }, { 0, archive.find_page(0) } };
}

TEST_CASE(recalled_tokens_come_with_their_values_before_the_recent_ones) {
    const auto   archive = archive_of(ONE);
    // base 94: the recent ones stand from 97 on. 90 stays in its slot
    const auto   res  = plan_of(text_of(), ONE, { { 70, 80, 90 }, { 5, 40, 90 } }, archive.get(), 0, /*base =*/94, true,
                                pages_0_and_2(*archive));
    const auto & move = res.layers[0];
    CHECK(move.placed == numbers({ 0, 1, 2 }) && move.at == numbers({ 94, 95, 96 }));
    CHECK(floats_of(move.k) == floats({ key_of(5, 0, 0), key_of(40, 0, 0), key_of(90, 0, 0) }));
    CHECK(move.filled == numbers({ 0, 1 }) && floats_of(move.v) == floats({ value_of(5, 0, 0), value_of(40, 0, 0) }));
    CHECK(move.turned.empty() && res.ranked == numbers({ 5, 40, 90 }) && res.base == 94);
}

TEST_CASE(an_inexact_archive_still_brings_what_is_recalled) {
    const auto archive = archive_of(ONE);
    const auto res     = plan_of(text_of(), ONE, { { 70, 80, 90 }, { 5, 40, 90 } }, archive.get(), 0, 94,
                                 /*is_exact =*/false, pages_0_and_2(*archive));
    CHECK(res.layers[0].placed == numbers({ 0, 1 }) && res.layers[0].filled == numbers({ 0, 1 }));
    // from 90 to 96
    CHECK(res.layers[0].turned == numbers({ 2 }) && res.layers[0].by == numbers({ 6 }));
}

TEST_CASE(layers_without_rope_are_recalled_too) {
    const auto archive = archive_of(UNTURNED);
    const auto res     = plan_of(text_of(), UNTURNED, { { 70, 80, 90 }, { 5, 80, 90 } }, archive.get(), 0, 94, true,
                                 pages_0_and_2(*archive));
    CHECK(res.layers[0].placed == numbers({ 0 }) && res.layers[0].filled == numbers({ 0 }));
    CHECK(floats_of(res.layers[0].k) == floats({ key_of(5, 0, 0) }) && res.layers[0].turned.empty());
}

TEST_CASE(pages_at_hand_are_not_read_again) {
    const auto archive = archive_of(ONE);
    const auto pages   = pages_0_and_2(*archive);
    morphkv_testing_fail_store(0, 0);
    plan_of(text_of(), ONE, { { 70, 80, 90 }, { 5, 40, 41 } }, archive.get(), 0, 94, true, pages);
    CHECK(morphkv_testing_n_store_calls() == 0);
}

TEST_CASE(a_page_is_read_once_for_all_heads_and_layers) {
    const std::vector<morphkv_moved_layer> layers  = { { 2, true }, { 2, true } };
    const auto                             archive = archive_of(layers);
    morphkv_testing_fail_store(0, 0);
    const auto res =
        morphkv_plan_moves(text_of(), 0, layers, { same({ 1, 2, 40, 5, 40, 41 }), same({ 1, 2, 3, 4, 5, 47 }) }, {},
                           archive.get(), true, nullptr, 45, 0);
    CHECK(morphkv_testing_n_store_calls() == 2);
    CHECK(res.layers[0].placed.size() + res.layers[1].placed.size() == 12);
}

//
// originals
//

TEST_CASE(a_key_that_was_placed_is_kept_for_the_next_time) {
    const auto                     archive = archive_of(ONE);
    auto                           text    = text_of();
    std::vector<morphkv_originals> kept;
    morphkv_plan_moves(text, 0, ONE, { same({ 7, 20, 40 }) }, {}, archive.get(), true, &kept, 45, 0);
    CHECK(kept.size() == 1 && kept[0].serial == numbers({ 7, 20, 40 }));
    CHECK(floats_of(kept[0].k) == floats({ key_of(7, 0, 0), key_of(20, 0, 0), key_of(40, 0, 0) }));
    text.note_rebase(45, { { 7, 20, 40 } });
    // 7 has gone, 90 has come: 20 and 40 move up without a page, and 90 needs one
    morphkv_testing_fail_store(0, 0);
    const auto res = morphkv_plan_moves(text, 0, ONE, { same({ 90, 20, 40 }) }, {}, archive.get(), true, &kept, 95, 0);
    CHECK(morphkv_testing_n_store_calls() == 1);
    CHECK(res.layers[0].placed == numbers({ 1, 2, 0 }) && res.layers[0].at == numbers({ 0, 1, 2 }));
    CHECK(floats_of(res.layers[0].k) == floats({ key_of(20, 0, 0), key_of(40, 0, 0), key_of(90, 0, 0) }));
    CHECK(kept[0].serial == numbers({ 90, 20, 40 }));
}

TEST_CASE(a_recalled_key_is_kept_as_well) {
    const auto                     archive = archive_of(ONE);
    std::vector<morphkv_originals> kept;
    morphkv_plan_moves(text_of(), 0, ONE, { { { 70, 80, 90 }, { 5, 80, 90 } } }, pages_0_and_2(*archive), archive.get(),
                       true, &kept, 0, 94);
    CHECK(kept[0].serial == numbers({ 5, 80, 90 }) && floats_of(kept[0].k)[0] == key_of(5, 0, 0));
}

TEST_CASE(originals_take_no_room_before_there_is_one) {
    const auto                     archive = archive_of(ONE);
    std::vector<morphkv_originals> kept;
    morphkv_plan_moves(text_of(), 0, ONE, { same({ 0, 1, 2 }) }, {}, archive.get(), true, &kept, 0, 0);
    CHECK(kept.empty());
    morphkv_plan_moves(text_of(), 0, ONE, { same({ 7, 20, 40 }) }, {}, archive.get(), /*is_exact =*/false, &kept, 45,
                       0);
    CHECK(kept.empty());
}

//
// hostile numbers
//

TEST_CASE(serials_that_no_text_has_move_no_further_than_rope_can) {
    const auto archive = archive_of(ONE);
    for (const auto & slots : { numbers({ INT32_MIN, 0, INT32_MAX }), numbers({ INT32_MAX, INT32_MIN, -1 }) }) {
        for (const bool is_exact : { false, true }) {
            const auto res = plan_of(text_of(), ONE, same(slots), archive.get(), 45, 0, is_exact);
            for (const int32_t by : res.layers[0].by) {
                CHECK(std::abs(by) <= 1 << 30);
            }
            for (const int32_t at : res.layers[0].at) {
                CHECK(at >= 0 && at <= 1 << 30);
            }
        }
    }
}
