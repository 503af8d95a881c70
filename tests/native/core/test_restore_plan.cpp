// Going back by the archive, at sizes that can be followed by hand: which tokens come into which cells, and where they stand.

#include "core/restore.h"
#include "morphkv-testing.h"
#include "moved_cells.h"

#include <cerrno>

using numbers = std::vector<int32_t>;
using floats  = std::vector<float>;

// 3 distant slots; recent tokens 97 to 99 of 100
static const morphkv_cut_shape SHAPE              = { /*capacity =*/6, /*window =*/3, /*interval =*/2, /*n_limit =*/8 };
static const std::vector<morphkv_moved_layer> ONE = { { 1, true } };
static const std::vector<morphkv_moved_layer> TWO = { { 2, true }, { 1, false } };
static constexpr int32_t                      FAR = 1000;  // a limit of rotary positions

static morphkv_text text_of(int32_t n = 100, int32_t pos = 0) {
    morphkv_text res({ { SHAPE }, 0, 2, 4 }, 1);
    res.append(pos, n, true);
    res.note_cut(0);
    return res;
}

static std::unique_ptr<morphkv_archive> archive_of(const std::vector<morphkv_moved_layer> & layers, int32_t n = 97) {
    auto res = std::make_unique<morphkv_archive>(layout_of(layers), morphkv_page_store_ram(), 0);
    append_tokens(*res, 0, n);
    return res;
}

static morphkv_text first_of(morphkv_text text, int32_t n) {
    text.remove_from(n);
    return text;
}

static morphkv_restore_plan plan_of(int32_t n, const numbers & slots, const morphkv_archive & archive,
                                    int32_t limit = FAR, const morphkv_text & text = text_of()) {
    return morphkv_plan_restore(text, first_of(text, n), { { ONE, { slots }, /*is_exact =*/true, nullptr } }, archive,
                                limit);
}

// The serials that its keys are of.
static numbers serials_of(const morphkv_move & move) {
    numbers res;
    for (const float k : floats_of(move.k)) {
        res.push_back(k / 100);
    }
    return res;
}

TEST_CASE(the_recent_region_gets_the_tokens_before_the_place) {
    const auto res = plan_of(50, { 0, 7, 20 }, *archive_of(ONE));
    CHECK(res.groups[0].serials == std::vector<numbers>({ { 0, 7, 20 } }) && res.archive_end == 47);
    const auto & move = res.groups[0].layers[0];
    // slots first, then cells 3 to 5
    CHECK(move.placed == numbers({ 0, 1, 2, 3, 4, 5 }) && serials_of(move) == numbers({ 0, 7, 20, 47, 48, 49 }));
    // distant ones stand right before them, each with its key alone; values of cells that keep their token stay
    CHECK(move.at == numbers({ 44, 45, 46, 47, 48, 49 }) && move.filled == numbers({ 3, 4, 5 }));
    CHECK(floats_of(move.v) == floats({ value_of(47, 0, 0), value_of(48, 0, 0), value_of(49, 0, 0) }));
    CHECK(move.turned.empty());
}

TEST_CASE(the_text_is_one_that_has_just_been_cut) {
    const auto   res  = plan_of(50, { 0, 7, 20 }, *archive_of(ONE));
    const auto & text = res.text;
    CHECK(text.n_tokens() == 50 && text.n_used(0) == SHAPE.capacity && text.has_evicted());
    CHECK(text.groups[0].first_recent() == 47 && text.groups[0].n_evicted == 44);
    CHECK(text.n_recalls == 1 && text.n_rebases == 0);  // as it counts
    CHECK(text.voters().empty() && text.decoded_since_cut == 50 && text.newest_of_prompt == 50);
    CHECK(text.groups[0].base == 44 && *text.groups[0].ranked == numbers({ 0, 7, 20 }));
    CHECK(text.rotary_position(0, 0, 7) == 45 && text.rotary_position(0, 0, 48) == 48);
}

TEST_CASE(slots_of_what_comes_later_get_the_newest_before_the_recent_region) {
    // 47 is of the recent region, 60 of what is gone; 46 is there already, and 0 is to be kept
    const auto res = plan_of(50, { 47, 60, 46 }, *archive_of(ONE));
    CHECK(res.groups[0].serials[0] == numbers({ 0, 45, 46 }));
    const auto & move = res.groups[0].layers[0];
    // 46 stands right
    CHECK(serials_of(move) == numbers({ 0, 45, 47, 48, 49 }) && move.at == numbers({ 44, 45, 47, 48, 49 }));
    CHECK(move.placed == numbers({ 0, 1, 3, 4, 5 }) && move.filled == move.placed);
}

TEST_CASE(each_head_keeps_its_own) {
    const auto archive = archive_of(TWO);
    const auto res =
        morphkv_plan_restore(text_of(), first_of(text_of(), 50),
                             { { TWO, { { 0, 7, 60, 0, 45, 46 }, { 0, 90, 80 } }, true, nullptr } }, *archive, FAR);
    CHECK(res.groups[0].serials == std::vector<numbers>({ { 0, 7, 46, 0, 45, 46 }, { 0, 46, 45 } }));
    CHECK(*res.text.groups[0].ranked == numbers({ 0, 7, 46, 0, 45, 46, 0, 45, 46 }));
    // a layer without RoPE gets what it lacks, at no position
    const auto & move = res.groups[0].layers[1];
    CHECK(move.placed == numbers({ 1, 2, 3, 4, 5 }) && serials_of(move) == numbers({ 46, 45, 47, 48, 49 }));
}

TEST_CASE(a_text_that_was_never_cut_there_gets_all_its_tokens) {
    const auto res = plan_of(5, { 0, 7, 20 }, *archive_of(ONE));
    CHECK(res.groups[0].serials.empty() && !res.text.has_evicted() && !res.text.groups[0].ranked &&
          res.archive_end == 0);
    CHECK(res.text.n_used(0) == 5 && res.text.groups[0].n_evictions == 0);
    const auto & move = res.groups[0].layers[0];
    CHECK(serials_of(move) == numbers({ 0, 1, 2, 3, 4 }) && move.at == numbers({ 0, 1, 2, 3, 4 }));
    CHECK(move.placed == move.at && move.filled == move.at);
}

TEST_CASE(capacity_is_the_border) {
    CHECK(!plan_of(6, { 0, 7, 20 }, *archive_of(ONE)).text.has_evicted());
    const auto res = plan_of(7, { 0, 7, 20 }, *archive_of(ONE));
    CHECK(res.text.has_evicted() && res.groups[0].serials[0] == numbers({ 0, 3, 2 }) && res.archive_end == 4);
}

TEST_CASE(tokens_of_the_page_that_is_not_full_come_too) {
    const auto res = plan_of(97, { 0, 1, 2 }, *archive_of(ONE));
    CHECK(serials_of(res.groups[0].layers[0]) == numbers({ 0, 1, 2, 94, 95, 96 }));
    const auto filled = plan_of(96, { 0, 95, 94 }, *archive_of(ONE, 95 + 1));
    CHECK(filled.groups[0].serials[0] == numbers({ 0, 92, 91 }));
}

TEST_CASE(a_key_that_is_in_no_archive_is_turned) {
    // pages from 64 on
    morphkv_archive archive(layout_of(ONE), morphkv_page_store_ram(), 2 * (16 * 8 + 2));
    append_tokens(archive, 0, 97);
    CHECK(archive.n_dropped() == 4);
    const auto res = plan_of(90, { 0, 7, 80 }, archive);
    CHECK(res.groups[0].layers[0].turned == numbers({ 0, 1 }) && res.groups[0].layers[0].by == numbers({ 84, 78 }));
    CHECK(serials_of(res.groups[0].layers[0]) == numbers({ 80, 87, 88, 89 }));
}

TEST_CASE(positions_below_the_limit_need_no_offset) {
    auto text          = text_of();
    text.rotary_offset = 40;  // as it was rebased
    const auto res     = plan_of(50, { 0, 7, 20 }, *archive_of(ONE), FAR, text);
    CHECK(res.text.rotary_offset == 0 && res.groups[0].layers[0].at == numbers({ 44, 45, 46, 47, 48, 49 }));
}

TEST_CASE(positions_at_the_limit_are_rebased) {
    const auto res = plan_of(50, { 0, 7, 20 }, *archive_of(ONE), /*limit =*/48);
    // of 20 = (48 - 8)/2 positions before the recent ones, and the slots' 3
    CHECK(res.text.rotary_offset == 47 - 3 - 20 && res.text.n_rebases == 1);
    CHECK(res.groups[0].layers[0].at == numbers({ 20, 21, 22, 23, 24, 25 }));
    CHECK(res.text.positions.next() - res.text.rotary_offset < 48);
}

TEST_CASE(positions_count_not_serials) {
    const auto res = plan_of(50, { 0, 7, 20 }, *archive_of(ONE), /*limit =*/2000, text_of(100, /*pos =*/1000));
    CHECK(res.groups[0].layers[0].at == numbers({ 1044, 1045, 1046, 1047, 1048, 1049 }));
}

//
// layers with capacities of their own
//

// ONE's layer with 3 distant slots, and then TWO's with 5
static const morphkv_cut_shape LARGE = { /*capacity =*/8, /*window =*/3, /*interval =*/2, /*n_limit =*/10 };

static morphkv_restore_plan plan_of_two(int32_t n) {
    morphkv_text text({ { SHAPE, LARGE }, 0, 2, 4 }, 1);
    text.append(0, 100, true);
    text.note_cut(0);
    text.note_cut(1);
    auto all = ONE;
    all.insert(all.end(), TWO.begin(), TWO.end());
    const auto archive = archive_of(all);
    return morphkv_plan_restore(
        text, first_of(text, n),
        { { ONE, { { 0, 7, 60 } }, true, nullptr },
          { TWO, { { 0, 7, 8, 9, 60, 0, 1, 2, 3, 46 }, { 0, 90, 80, 70, 60 } }, true, nullptr } },
        *archive, FAR);
}

TEST_CASE(each_group_gets_what_it_holds) {
    const auto res = plan_of_two(50);
    CHECK(res.archive_end == 47 && res.text.n_used(0) == 6 && res.text.n_used(1) == 8);
    CHECK(res.groups[0].serials == std::vector<numbers>({ { 0, 7, 46 } }));
    CHECK(res.groups[1].serials == std::vector<numbers>({ { 0, 7, 8, 9, 46, 0, 1, 2, 3, 46 }, { 0, 46, 45, 44, 43 } }));
    CHECK(res.text.groups[0].base == 44 && res.text.groups[1].base == 42);
    // rows are the layer's own
    const auto & first = res.groups[0].layers[0];
    CHECK(first.at == numbers({ 44, 45, 46, 47, 48, 49 }) && serials_of(first) == numbers({ 0, 7, 46, 47, 48, 49 }));
    const auto & other = res.groups[1].layers[0];
    CHECK(floats_of(other.k).back() == key_of(49, 1, 1) && floats_of(other.v).back() == value_of(49, 1, 1));
    CHECK(other.placed.back() == 7 * 2 + 1 && other.at.back() == 49);
}

TEST_CASE(the_larger_group_may_have_all_where_the_smaller_was_cut) {
    const auto res = plan_of_two(7);
    CHECK(res.text.groups[0].has_evicted() && !res.text.groups[1].has_evicted() && res.archive_end == 4);
    CHECK(res.groups[0].serials == std::vector<numbers>({ { 0, 3, 2 } }) && res.groups[1].serials.empty());
    const auto & other = res.groups[1].layers[1];
    CHECK(other.at == numbers({ 0, 1, 2, 3, 4, 5, 6 }) && other.filled == other.at && !res.text.groups[1].ranked);
    CHECK(plan_of_two(6).archive_end == 0 && !plan_of_two(6).text.has_evicted());
}

//
// passages
//

TEST_CASE(a_passage_comes_behind_a_text) {
    // 20 to 39 behind the first 50, which are archived to their end
    const auto archive = archive_of(ONE, 50);
    const auto passage = morphkv_take_passage(*archive, 20, 20);
    CHECK(passage.n == 20 && floats_of(passage.rows.k[0])[3] == key_of(23, 0, 0));
    CHECK(floats_of(passage.rows.v[0])[19] == value_of(39, 0, 0));
    archive->append(50, passage.n, passage.rows);

    const auto text = plan_of(50, { 0, 7, 20 }, *archive).text;
    auto       more = text;
    more.append(50, passage.n, true);
    const auto res = morphkv_plan_restore(text, more, { { ONE, { { 0, 7, 20 } }, true, nullptr } }, *archive, FAR);
    CHECK(res.text.n_tokens() == 70 && res.text.groups[0].first_recent() == 67 && res.archive_end == 67);
    // what slots hold stays; the recent ones are 37 to 39 at their new places
    CHECK(res.groups[0].serials[0] == numbers({ 0, 7, 20 }));
    CHECK(serials_of(res.groups[0].layers[0]) == numbers({ 0, 7, 20, 37, 38, 39 }));
    CHECK(res.groups[0].layers[0].at == numbers({ 64, 65, 66, 67, 68, 69 }));
}

TEST_CASE(a_passage_behind_a_text_that_was_never_cut) {
    const auto archive = archive_of(ONE, 5);
    const auto other   = archive_of(ONE, 60);
    const auto passage = morphkv_take_passage(*other, 30, 30);
    archive->append(5, passage.n, passage.rows);
    morphkv_text text({ { SHAPE }, 0, 2, 4 }, /*n_keep =*/2);
    text.append(0, 5, true);
    auto more = text;
    more.append(5, passage.n, true);
    const auto res = morphkv_plan_restore(text, more, { { ONE, { { 9, 9, 9 } }, true, nullptr } }, *archive, FAR);
    // what is to be kept, and the newest before the recent ones
    CHECK(res.text.has_evicted() && res.groups[0].serials[0] == numbers({ 0, 1, 31 }));
    CHECK(res.groups[0].layers[0].filled == numbers({ 0, 1, 2, 3, 4, 5 }));
    CHECK(floats_of(res.groups[0].layers[0].k) == floats({ key_of(0, 0, 0), key_of(1, 0, 0), key_of(56, 0, 0),
                                                           key_of(57, 0, 0), key_of(58, 0, 0), key_of(59, 0, 0) }));
}

TEST_CASE(a_passage_that_is_not_there) {
    CHECK(has(error_of([&] { morphkv_take_passage(*archive_of(ONE), 90, 10); }), "does not have token 97"));
    CHECK(has(error_of([&] { morphkv_take_passage(*archive_of(ONE), -1, 2); }), "does not have token -1"));
}

//
// what cannot be
//

TEST_CASE(what_made_room_cannot_be_gone_back_to) {
    morphkv_archive archive(layout_of(ONE), morphkv_page_store_ram(), 2 * (16 * 8 + 2));
    append_tokens(archive, 0, 97);
    CHECK(has(error_of([&] { plan_of(50, { 0, 7, 20 }, archive); }), "does not have the token at position 47"));
    CHECK(has(error_of([&] { plan_of(5, { 0, 7, 20 }, archive); }), "does not have the token at position 0"));
    // the recent region is there, and what would fill the slots is not
    CHECK(has(error_of([&] { plan_of(68, { 0, 90, 91 }, archive); }), "too few tokens before position 65"));
}

TEST_CASE(a_page_that_cannot_be_read_is_as_one_that_is_gone) {
    const auto archive = archive_of(ONE);
    morphkv_testing_fail_store(1, EIO);
    CHECK(!archive->find_page(2));
    CHECK(has(error_of([&] { plan_of(50, { 0, 7, 20 }, *archive); }), "does not have the token at position 47"));
    // fillers come from before it
    CHECK(plan_of(51, { 0, 7, 60 }, *archive).groups[0].serials[0] == numbers({ 0, 7, 31 }));
}

TEST_CASE(hostile_slots_are_replaced) {
    const auto res = plan_of(50, { INT32_MIN, INT32_MAX, -1 }, *archive_of(ONE));
    CHECK(res.groups[0].serials[0] == numbers({ 0, 46, 45 }));
}

TEST_CASE(an_archive_of_another_beginning_has_not_what_is_before) {
    morphkv_archive archive(layout_of(ONE), morphkv_page_store_ram(), 0);
    append_tokens(archive, 48, 49);
    CHECK(has(error_of([&] { plan_of(50, { 0, 7, 20 }, archive); }), "position 47"));
}
