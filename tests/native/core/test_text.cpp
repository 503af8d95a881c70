// What a text says of its cells, voters, windowed layers and rotary positions, in numbers that fit on a hand; then at random
// against lists of what is where.

#include "case.h"

#include "core/text.h"

#include <random>

// 4 distant slots, and a recent region that is cut from 10 cells to 8
static const morphkv_cut_shape SMALL = { /*capacity =*/8, /*window =*/4, /*interval =*/2, /*n_limit =*/10 };
// 7 distant slots
static const morphkv_cut_shape LARGE = { /*capacity =*/12, /*window =*/5, /*interval =*/4, /*n_limit =*/20 };

static morphkv_text text_of(const std::vector<morphkv_cut_shape> & groups, int32_t n_ring_cells = 0) {
    return morphkv_text({ groups, n_ring_cells, /*votes =*/2, /*n_query_rows =*/4 }, /*n_keep =*/1);
}

static bool never_windowed(int32_t, int32_t) {
    return true;
}

// Of layers that attend to the newest 4.
static bool window_of_4(int32_t lost, int32_t pos) {
    return pos - lost >= 4;
}

static std::vector<int32_t> rows_of(const morphkv_text & text) {
    return text.queries;
}

using numbers = std::vector<int32_t>;

//
// cells
//

TEST_CASE(a_new_text_is_empty) {
    const auto text = text_of({ SMALL });
    CHECK(text.is_empty() && text.n_tokens() == 0 && text.n_used(0) == 0 && !text.has_evicted());
    CHECK(text.voters().empty() && text.newest_of_prompt == -1 && text.decoded_since_cut == 0);
}

TEST_CASE(before_an_eviction_cell_i_holds_token_i) {
    auto text = text_of({ SMALL });
    text.append(0, 10, true);
    CHECK(text.n_used(0) == 10);
    for (int32_t i = 0; i < 10; ++i) {
        CHECK(text.groups[0].serial_in(i) == i);
    }
}

TEST_CASE(a_cut_leaves_as_many_cells_as_the_capacity) {
    auto text = text_of({ SMALL });
    text.append(0, 10, true);
    text.note_cut(0);
    CHECK(text.n_used(0) == 8 && text.n_tokens() == 10 && text.groups[0].n_evicted == 2);
    CHECK(text.has_evicted() && text.groups[0].n_evictions == 1);
}

TEST_CASE(behind_the_slots_a_cut_leaves_the_window) {
    auto text = text_of({ SMALL });
    text.append(0, 10, true);
    text.note_cut(0);
    CHECK(text.groups[0].first_recent() == 6);
    CHECK(text.groups[0].serial_in(4) == 6 && text.groups[0].serial_in(7) == 9);
    // llama.cpp knows a slot by the token that was there first
    CHECK(text.groups[0].serial_in(3) == 3);
}

TEST_CASE(each_cut_evicts_what_came_since_the_last) {
    auto text = text_of({ SMALL });
    text.append(0, 10, true);
    text.note_cut(0);
    text.append(10, 2, false);
    text.note_cut(0);
    CHECK(text.groups[0].n_evicted == 4 && text.groups[0].n_evictions == 2 && text.groups[0].first_recent() == 8);
}

TEST_CASE(a_cut_of_one_group_leaves_another_as_it_is) {
    auto text = text_of({ SMALL, LARGE });
    text.append(0, 10, true);
    text.note_cut(0);
    CHECK(text.n_used(0) == 8 && text.n_used(1) == 10);
    CHECK(text.has_evicted() && !text.groups[1].has_evicted() && text.groups[1].serial_in(9) == 9);
}

TEST_CASE(groups_of_other_capacities_evict_other_numbers) {
    auto text = text_of({ SMALL, LARGE });
    text.append(0, 20, true);
    text.note_cut(0);
    text.note_cut(1);
    CHECK(text.groups[0].n_evicted == 12 && text.groups[0].first_recent() == 16);
    CHECK(text.groups[1].n_evicted == 8 && text.groups[1].first_recent() == 15);
}

TEST_CASE(what_was_decoded_before_a_cut_is_not_exact) {
    auto text = text_of({ SMALL });
    text.append(0, 10, true);
    CHECK(text.first_exact(never_windowed) == 0);
    text.note_cut(0);
    text.append(10, 1, false);
    CHECK(text.first_exact(never_windowed) == 10);
}

TEST_CASE(what_is_taken_back_behind_a_cut_comes_anew) {
    auto text = text_of({ SMALL });
    text.append(0, 10, true);
    text.note_cut(0);
    text.remove_from(8);
    CHECK(text.first_exact(never_windowed) == 8);
}

TEST_CASE(a_copy_goes_on_alone) {
    auto text = text_of({ SMALL });
    text.append(0, 10, true);
    auto copy = text;
    copy.note_cut(0);
    copy.append(10, 1, false);
    CHECK(text.n_tokens() == 10 && text.n_used(0) == 10 && !text.has_evicted());
}

TEST_CASE(positions_need_not_be_serials) {
    auto text = text_of({ SMALL });
    text.append(100, 3, true);
    text.append(103, 2, false);
    CHECK(text.n_tokens() == 5 && text.pos_of(0) == 100 && text.pos_of(4) == 104);
}

//
// queries
//

TEST_CASE(the_newest_tokens_vote) {
    auto text = text_of({ SMALL });
    text.append(0, 5, true);
    CHECK(text.voters() == numbers({ 3, 4 }));
}

TEST_CASE(a_short_text_has_fewer_voters) {
    auto text = text_of({ SMALL });
    text.append(0, 1, true);
    CHECK(text.voters() == numbers({ 0 }));
}

TEST_CASE(a_query_has_the_row_of_its_serial_in_a_ring) {
    auto text = text_of({ SMALL });
    text.append(50, 3, true);
    CHECK(rows_of(text) == numbers({ 0, 1, 2, -1 }));
    text.append(53, 3, false);
    CHECK(rows_of(text) == numbers({ 4, 5, 2, 3 }));
    CHECK(text.query_row(5) == 1);
}

TEST_CASE(of_a_long_prompt_the_newest_queries_are_there) {
    auto text = text_of({ SMALL });
    text.append(0, 1003, true);
    CHECK(rows_of(text) == numbers({ 1000, 1001, 1002, 999 }));
}

TEST_CASE(a_draft_that_is_taken_back_leaves_all_voters) {
    auto text = text_of({ SMALL });
    text.append(0, 6, true);
    text.append(6, 2, false);
    text.remove_from(6);
    CHECK(rows_of(text) == numbers({ 4, 5, -1, -1 }) && text.voters() == numbers({ 4, 5 }));
}

TEST_CASE(after_a_long_rollback_too_few_vote_until_more_have_come) {
    auto text = text_of({ SMALL });
    text.append(0, 8, true);
    text.remove_from(5);
    CHECK(text.voters() == numbers({ 4 }));
    text.remove_from(4);
    CHECK(text.voters().empty());
    text.append(4, 1, false);
    CHECK(text.voters() == numbers({ 4 }));
    text.append(5, 1, false);
    CHECK(text.voters() == numbers({ 4, 5 }));
}

TEST_CASE(a_prompt_is_known_by_its_newest_token) {
    auto text = text_of({ SMALL });
    text.append(0, 4, true);
    text.append(4, 1, false);
    CHECK(text.newest_of_prompt == 3);
    text.append(5, 2, true);
    CHECK(text.newest_of_prompt == 6);
}

TEST_CASE(the_token_in_place_of_a_prompts_last_one_counts_as_the_prompts) {
    auto text = text_of({ SMALL });
    text.append(0, 4, true);
    text.remove_from(3);
    text.append(3, 1, false);
    CHECK(text.newest_of_prompt == 3);
    text.remove_from(1);
    CHECK(text.newest_of_prompt == 1);
}

//
// windowed layers
//

TEST_CASE(a_text_without_windowed_layers_has_no_ring) {
    CHECK(!text_of({ SMALL }).windowed);
}

TEST_CASE(a_ring_fills_from_its_first_cell) {
    auto text = text_of({ SMALL }, 8);
    text.append(0, 3, true);
    CHECK(text.windowed->n_held == 3 && text.windowed->i_next == 3);
    CHECK(text.windowed->cell_of(0) == 2 && text.windowed->cell_of(2) == 0);
}

TEST_CASE(a_full_ring_loses_its_oldest_token) {
    auto text = text_of({ SMALL }, 8);
    text.append(0, 10, true);
    CHECK(text.windowed->n_held == 8 && text.windowed->i_next == 2);
    CHECK(text.windowed->cell_of(0) == 1 && text.windowed->cell_of(1) == 0 && text.windowed->cell_of(2) == 7);
}

TEST_CASE(a_ring_spans_its_cells_up_to_the_last_in_use) {
    auto text = text_of({ SMALL }, 8);
    CHECK(text.windowed->n_spanned() == 0);
    text.append(0, 3, true);
    CHECK(text.windowed->n_spanned() == 3);
    text.append(3, 5, true);
    CHECK(text.windowed->n_spanned() == 8);
    text.append(8, 2, true);
    CHECK(text.windowed->n_spanned() == 8);
    text.remove_from(7);  // cells 2 to 6
    CHECK(text.windowed->n_held == 5 && text.windowed->n_spanned() == 7);
}

TEST_CASE(a_ring_gives_back_what_is_taken_back) {
    auto text = text_of({ SMALL }, 8);
    text.append(0, 10, true);
    text.remove_from(7);
    CHECK(text.windowed->n_held == 5 && text.windowed->i_next == 7 && text.windowed->cell_of(0) == 6);
}

TEST_CASE(while_nothing_has_left_the_ring_all_can_be_decoded_again) {
    auto text = text_of({ SMALL }, 8);
    text.append(0, 8, true);
    CHECK(text.first_possible(window_of_4) == 0 && text.first_complete(window_of_4) == 0);
}

TEST_CASE(a_token_can_come_where_its_window_is_in_the_ring) {
    auto text = text_of({ SMALL }, 8);
    text.append(0, 10, true);  // 2 to 9 are there; 5 attends to 2, 3, 4 and itself
    CHECK(text.first_possible(window_of_4) == 5);
    // the token before is the last that stays
    CHECK(text.first_complete(window_of_4) == 4);
}

TEST_CASE(a_ring_no_larger_than_the_window_lets_nothing_be_taken_back) {
    auto text = text_of({ SMALL }, 3);
    text.append(0, 10, true);
    CHECK(text.first_possible(window_of_4) == 10 && text.first_complete(window_of_4) == 9);
}

TEST_CASE(windows_are_measured_in_positions) {
    auto text = text_of({ SMALL }, 4);
    text.append(0, 2, true);
    text.append(50, 4, true);  // 50 to 53 are there, and 1 is lost
    // with all four taken back the text would go on at position 2, and attend to 1
    CHECK(text.first_possible(window_of_4) == 3);
}

TEST_CASE(the_most_demanding_of_groups_and_windows_says_what_is_complete) {
    auto text = text_of({ SMALL, LARGE }, 30);
    text.append(0, 20, true);
    text.note_cut(0);
    CHECK(text.first_complete(window_of_4) == 16);
    text.append(20, 20, true);  // the ring has 10 to 39
    text.note_cut(1);
    CHECK(text.groups[1].first_recent() == 35 && text.first_complete(window_of_4) == 35);
    auto windowed = text_of({ SMALL }, 8);
    windowed.append(0, 12, true);
    windowed.note_cut(0);
    windowed.append(12, 8, true);  // recent from 8 on; of the ring 15 is the first that can come
    CHECK(windowed.first_complete(window_of_4) == 14);
}

TEST_CASE(a_full_ring_is_exact_where_its_last_256_cells_stay_in_use) {
    auto text = text_of({ { 2000, 4, 2, 2000 } }, 512);
    text.append(0, 1000, true);  // 488 to 999 are there
    CHECK(text.first_possible(window_of_4) == 491 && text.first_exact(window_of_4) == 744);
    text.remove_from(900);
    CHECK(text.first_exact(window_of_4) == 744);
    text.remove_from(700);  // beyond: nothing of what is left
    CHECK(text.first_exact(window_of_4) == 700);
}

TEST_CASE(a_small_ring_is_exact_as_far_as_it_is_complete) {
    auto text = text_of({ SMALL }, 8);
    text.append(0, 10, true);
    CHECK(text.first_exact(window_of_4) == 5);
    text.note_cut(0);
    text.append(10, 1, false);
    CHECK(text.first_exact(window_of_4) == 10);
}

TEST_CASE(a_ring_with_room_is_as_exact_as_the_last_cut) {
    auto text = text_of({ SMALL }, 64);
    text.append(0, 10, true);
    CHECK(text.first_exact(window_of_4) == 0);
    text.note_cut(0);
    CHECK(text.first_exact(window_of_4) == 10);
}

//
// at random
//

// A text as lists, token by token.
struct listed_text {
    std::vector<int32_t>              pos;      // by serial
    std::vector<std::vector<int32_t>> recent;   // by group: behind the slots, or all before the first eviction
    std::vector<bool>                 evicted;  // by group
    std::vector<int32_t>              ring;     // serial in each cell, -1 = none
    std::vector<int32_t>              query;    // serial in each row, -1 = none
};

static void check_same(const morphkv_text & text, const listed_text & list,
                       const std::vector<morphkv_cut_shape> & shapes) {
    const auto n = (int32_t) list.pos.size();
    CHECK(text.n_tokens() == n && text.queries == list.query);
    int32_t first_complete = 0;
    for (size_t i = 0; i < shapes.size(); ++i) {
        const auto &  group     = text.groups[i];
        const int32_t n_distant = list.evicted[i] ? shapes[i].n_distant() : 0;
        CHECK(group.has_evicted() == list.evicted[i]);
        CHECK(text.n_used(i) == n_distant + (int32_t) list.recent[i].size());
        for (size_t j = 0; j < list.recent[i].size(); ++j) {
            CHECK(group.serial_in(n_distant + j) == list.recent[i][j]);
        }
        first_complete = std::max(first_complete, list.evicted[i] ? list.recent[i][0] : 0);
    }
    // windowed layers: what is decoded behind token s - 1 attends to the 3 positions before its own
    int32_t n_held = 0;
    for (int32_t before_newest = 0; before_newest < n; ++before_newest) {
        const int32_t cell = text.windowed->cell_of(before_newest);
        if (before_newest >= (int32_t) list.ring.size() || list.ring[cell] != n - 1 - before_newest) {
            break;
        }
        n_held++;
    }
    CHECK(text.windowed->n_held == n_held);
    auto can_come = [&](int32_t s) {
        for (int32_t i = 0; i < n - n_held; ++i) {
            if (list.pos[s - 1] + 1 - list.pos[i] < 4) {
                return false;
            }
        }
        return true;
    };
    int32_t first = n;
    while (first > n - n_held + 1 && can_come(first - 1)) {  // one that is there stays
        first--;
    }
    CHECK(text.first_possible(window_of_4) == (n_held == n ? 0 : first));
    CHECK(text.first_complete(window_of_4) == std::max(first_complete, n_held == n ? 0 : first - 1));
}

TEST_CASE(random_texts_equal_lists_of_what_is_where) {
    const std::vector<morphkv_cut_shape> shapes = { SMALL, LARGE };
    std::mt19937                         random(2);
    auto                                 below = [&](int32_t n) {
        return (int32_t) (random() % n);
    };
    for (int32_t i_text = 0; i_text < 60; ++i_text) {
        auto        text = text_of(shapes, /*n_ring_cells =*/9);
        listed_text list = { {}, { {}, {} }, { false, false }, numbers(9, -1), numbers(4, -1) };
        for (int32_t i_step = 0; i_step < 80; ++i_step) {
            const int32_t n_room = std::min(SMALL.n_limit - text.n_used(0), LARGE.n_limit - text.n_used(1));
            const int32_t n_back = text.n_tokens() - text.first_complete(window_of_4) - 1;
            const int32_t what   = below(6);
            if (what < 4 && n_room > 0) {
                const int32_t n = 1 + below(n_room), pos = text.positions.next() + (below(5) == 0 ? below(6) : 0);
                text.append(pos, n, below(2) == 0);
                for (int32_t i = 0; i < n; ++i) {
                    const auto serial = (int32_t) list.pos.size();
                    list.pos.push_back(pos + i);
                    list.recent[0].push_back(serial);
                    list.recent[1].push_back(serial);
                    list.query[serial % 4] = serial;
                    list.ring[serial % 9]  = serial;
                }
            } else if (what == 4 && n_back > 0) {
                const int32_t first = text.n_tokens() - 1 - below(n_back);
                text.remove_from(first);
                list.pos.resize(first);
                for (auto * held : { &list.recent[0], &list.recent[1] }) {
                    while (!held->empty() && held->back() >= first) {
                        held->pop_back();
                    }
                }
                for (auto * held : { &list.query, &list.ring }) {
                    for (int32_t & serial : *held) {
                        serial = serial >= first ? -1 : serial;
                    }
                }
            }
            for (size_t i = 0; i < shapes.size(); ++i) {
                if (text.n_used(i) == shapes[i].n_limit) {
                    text.note_cut(i);
                    list.evicted[i] = true;
                    list.recent[i].erase(list.recent[i].begin(), list.recent[i].end() - shapes[i].window);
                }
            }
            check_same(text, list, shapes);
        }
    }
}
