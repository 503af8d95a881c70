// Runs of positions against a plain list of (t, h, w).

#include "case.h"

#include "core/positions.h"

#include <algorithm>
#include <random>

using place = morphkv_position;

static bool is_run(const morphkv_run & run, int32_t serial, int32_t n, int32_t pos, int32_t n_column = 0) {
    return run.serial == serial && run.n == n && run.pos == pos && run.n_column == n_column;
}

static std::string why_not(const std::vector<morphkv_run> & runs, int32_t end = 1000) {
    const char * why = "";
    CHECK(morphkv_positions::are_right(runs, end, &why) == (why[0] == 0));
    return why;
}

TEST_CASE(a_new_text_has_no_token_and_goes_on_at_0) {
    const morphkv_positions positions;
    CHECK(positions.n_tokens() == 0 && positions.next() == 0 && positions.runs().empty());
}

TEST_CASE(words_stand_one_behind_the_other) {
    morphkv_positions positions;
    positions.append(5, 3);
    CHECK(positions.n_tokens() == 3 && positions.next() == 8);
    CHECK(positions.at(0) == (place{ 5, 5, 5 }) && positions.at(2) == (place{ 7, 7, 7 }));
}

TEST_CASE(words_that_go_on_are_one_run) {
    morphkv_positions positions;
    positions.append(0, 3);
    positions.append(3, 1);
    CHECK(positions.runs().size() == 1 && is_run(positions.runs()[0], 0, 4, 0));
}

TEST_CASE(a_gap_begins_a_run) {
    morphkv_positions positions;
    positions.append(0, 3);
    positions.append(10, 2);
    CHECK(positions.runs().size() == 2 && is_run(positions.runs()[1], 3, 2, 10));
    CHECK(positions.at(2).t == 2 && positions.at(3).t == 10 && positions.next() == 12);
}

TEST_CASE(nothing_appended_changes_nothing) {
    morphkv_positions positions;
    positions.append(7, 0);
    positions.append_image(7, 2, 0);
    CHECK(positions.runs().empty() && positions.next() == 0);
}

TEST_CASE(an_image_shares_one_time_and_has_rows_and_columns) {
    morphkv_positions positions;
    positions.append_image(10, 3, 6);
    const place want[] = { { 10, 10, 10 }, { 10, 10, 11 }, { 10, 10, 12 },
                           { 10, 11, 10 }, { 10, 11, 11 }, { 10, 11, 12 } };
    for (int32_t i = 0; i < 6; ++i) {
        CHECK(positions.at(i) == want[i]);
    }
}

TEST_CASE(words_go_on_behind_the_longer_side_of_an_image) {
    morphkv_positions wide, tall;
    wide.append_image(10, 3, 6);  // 2 rows of 3
    tall.append_image(10, 2, 8);  // 4 rows of 2
    CHECK(wide.next() == 13 && tall.next() == 14);
}

TEST_CASE(an_image_that_fills_part_of_a_row_is_as_wide_as_that) {
    morphkv_positions part, more;
    part.append_image(10, 4, 2);
    more.append_image(10, 2, 5);  // the third row has one
    CHECK(part.next() == 12 && more.next() == 13);
    CHECK(more.at(4) == (place{ 10, 12, 10 }));
}

TEST_CASE(words_do_not_join_an_image) {
    morphkv_positions positions;
    positions.append(0, 2);
    positions.append_image(2, 2, 4);
    positions.append(4, 3);
    CHECK(positions.runs().size() == 3 && is_run(positions.runs()[1], 2, 4, 2, 2) &&
          is_run(positions.runs()[2], 6, 3, 4));
}

TEST_CASE(two_images_do_not_join) {
    morphkv_positions positions;
    positions.append_image(0, 2, 4);
    positions.append_image(2, 2, 4);
    CHECK(positions.runs().size() == 2 && positions.at(4) == (place{ 2, 2, 2 }));
}

TEST_CASE(a_serial_behind_all_stands_where_words_would_go_on) {
    morphkv_positions positions;
    positions.append(3, 2);
    positions.append_image(5, 2, 4);
    CHECK(positions.at(6) == (place{ 7, 7, 7 }) && positions.at(8) == (place{ 9, 9, 9 }));
}

TEST_CASE(a_serial_before_all_stands_in_front_of_the_first_run) {
    morphkv_positions positions;
    positions.append(3, 2);
    CHECK(positions.at(-1) == (place{ 2, 2, 2 }) && positions.at(-5) == (place{ -2, -2, -2 }));
}

TEST_CASE(any_serial_has_a_position_of_an_empty_text) {
    const morphkv_positions positions;
    CHECK(positions.at(0).t == 0 && positions.at(41).t == 41 && positions.at(-1).t == -1);
}

TEST_CASE(serials_at_the_ends_of_the_numbers_do_not_wrap) {
    morphkv_positions positions;
    positions.append(100, 2);
    CHECK(positions.at(INT32_MAX).t == INT32_MAX);
    positions.truncate(0);
    positions.append(0, 2);
    CHECK(positions.at(INT32_MIN).t == INT32_MIN);
}

TEST_CASE(a_truncated_run_is_shorter) {
    morphkv_positions positions;
    positions.append(5, 10);
    positions.truncate(4);
    CHECK(positions.n_tokens() == 4 && positions.next() == 9);
}

TEST_CASE(runs_behind_a_truncation_are_gone) {
    morphkv_positions positions;
    positions.append(0, 4);
    positions.append(10, 4);
    positions.append(20, 4);
    positions.truncate(4);
    CHECK(positions.runs().size() == 1 && positions.next() == 4);
}

TEST_CASE(a_truncation_behind_all_changes_nothing) {
    morphkv_positions positions;
    positions.append(5, 3);
    positions.truncate(3);
    positions.truncate(100);
    CHECK(positions.n_tokens() == 3);
}

TEST_CASE(a_truncation_to_nothing_is_empty) {
    morphkv_positions positions;
    positions.append(5, 3);
    positions.truncate(0);
    CHECK(positions.n_tokens() == 0 && positions.next() == 0 && positions.runs().empty());
}

TEST_CASE(the_rows_of_an_image_that_are_left_have_their_place) {
    morphkv_positions positions;
    positions.append_image(10, 2, 8);
    positions.truncate(3);
    CHECK(positions.next() == 12 && positions.at(2) == (place{ 10, 11, 10 }));
}

TEST_CASE(what_was_truncated_can_come_again_and_joins) {
    morphkv_positions positions;
    positions.append(0, 8);
    positions.truncate(5);
    positions.append(5, 3);
    CHECK(positions.runs().size() == 1 && positions.n_tokens() == 8);
}

TEST_CASE(a_position_of_a_word_leads_to_its_serial) {
    morphkv_positions positions;
    positions.append(5, 3);
    CHECK(positions.serial_from(5) == 0 && positions.serial_from(7) == 2);
}

TEST_CASE(a_position_before_all_leads_to_the_first_serial) {
    morphkv_positions positions;
    positions.append(5, 3);
    CHECK(positions.serial_from(0) == 0 && positions.serial_from(INT32_MIN) == 0);
}

TEST_CASE(a_position_behind_all_leads_to_none) {
    morphkv_positions positions;
    CHECK(positions.serial_from(0) == 0);
    positions.append(5, 3);
    CHECK(positions.serial_from(8) == 3 && positions.serial_from(INT32_MAX) == 3);
}

TEST_CASE(a_position_in_a_gap_leads_behind_it) {
    morphkv_positions positions;
    positions.append(0, 3);
    positions.append(10, 3);
    CHECK(positions.serial_from(3) == 3 && positions.serial_from(9) == 3 && positions.serial_from(11) == 4);
}

TEST_CASE(a_position_inside_an_image_leads_behind_it) {
    morphkv_positions positions;
    positions.append(0, 2);
    positions.append_image(2, 3, 9);
    positions.append(5, 2);
    CHECK(positions.serial_from(2) == 2);  // its beginning is all of it
    CHECK(positions.serial_from(3) == 11 && positions.serial_from(4) == 11 && positions.serial_from(5) == 11);
}

TEST_CASE(right_runs_are_right) {
    CHECK(why_not({}) == "");
    CHECK(why_not({ { 0, 4, 0, 0 } }) == "");
    CHECK(why_not({ { 0, 4, 7, 0 }, { 4, 6, 11, 3 }, { 10, 2, 14, 0 } }) == "");
}

TEST_CASE(runs_must_begin_at_serial_0) {
    CHECK(has(why_not({ { 1, 4, 0, 0 } }), "follow each other"));
}

TEST_CASE(runs_must_not_leave_serials_out) {
    CHECK(has(why_not({ { 0, 4, 0, 0 }, { 5, 1, 10, 0 } }), "follow each other"));
}

TEST_CASE(runs_must_not_be_empty) {
    CHECK(has(why_not({ { 0, 0, 0, 0 } }), "follow each other"));
    CHECK(has(why_not({ { 0, -3, 0, 0 } }), "follow each other"));
}

TEST_CASE(an_image_must_not_have_fewer_than_no_columns) {
    CHECK(has(why_not({ { 0, 4, 0, -2 } }), "columns"));
}

TEST_CASE(positions_must_not_be_negative) {
    CHECK(has(why_not({ { 0, 4, -1, 0 } }), "positions grow"));
}

TEST_CASE(positions_must_not_be_used_twice) {
    CHECK(has(why_not({ { 0, 4, 0, 0 }, { 4, 4, 3, 0 } }), "positions grow"));
    // an image of 3 rows ends 3 behind its beginning
    CHECK(has(why_not({ { 0, 6, 0, 2 }, { 6, 4, 2, 0 } }), "positions grow"));
    CHECK(why_not({ { 0, 6, 0, 2 }, { 6, 4, 3, 0 } }) == "");
}

TEST_CASE(positions_must_stay_below_their_end) {
    CHECK(why_not({ { 0, 4, 6, 0 } }, 10) == "");
    CHECK(has(why_not({ { 0, 5, 6, 0 } }, 10), "positions grow"));
    CHECK(has(why_not({ { 0, INT32_MAX, INT32_MAX, 0 } }, INT32_MAX), "positions grow"));
}

TEST_CASE(a_text_must_not_have_more_tokens_than_positions_have_an_end) {
    // 100 tokens in a square stand on 10 positions
    CHECK(why_not({ { 0, 100, 0, 10 } }, 100) == "");
    CHECK(has(why_not({ { 0, 100, 0, 10 } }, 99), "a text has an end"));
}

TEST_CASE(runs_that_are_set_are_there) {
    morphkv_positions positions;
    positions.set({ { 0, 2, 4, 0 }, { 2, 4, 6, 2 } });
    CHECK(positions.n_tokens() == 6 && positions.at(1).t == 5 && positions.at(5) == (place{ 6, 7, 7 }));
}

// Every operation, after each all that can be asked.
TEST_CASE(random_texts_equal_a_list_of_their_positions) {
    std::mt19937 random(1);
    auto         below = [&](int32_t n) {
        return (int32_t) (random() % n);
    };
    for (int32_t i_text = 0; i_text < 100; ++i_text) {
        morphkv_positions  positions;
        std::vector<place> list;
        auto               next = [&] {
            int32_t res = 0;
            for (const place & at : list) {
                res = std::max({ res, at.t + 1, at.h + 1, at.w + 1 });
            }
            return res;
        };
        for (int32_t i_step = 0; i_step < 30; ++i_step) {
            const int32_t what = below(8), n = below(9), pos = next() + (below(3) == 0 ? below(5) : 0);
            if (what < 4) {
                positions.append(pos, n);
                for (int32_t i = 0; i < n; ++i) {
                    list.push_back({ pos + i, pos + i, pos + i });
                }
            } else if (what < 6) {
                const int32_t n_column = 1 + below(4);
                positions.append_image(pos, n_column, n);
                for (int32_t i = 0; i < n; ++i) {
                    list.push_back({ pos, pos + i / n_column, pos + i % n_column });
                }
            } else {
                list.resize(below(list.size() + 1));
                positions.truncate(list.size());
            }
            CHECK(positions.n_tokens() == (int32_t) list.size() && positions.next() == next());
            CHECK(why_not(positions.runs(), 10000) == "");
            for (size_t i = 0; i < list.size(); ++i) {
                CHECK(positions.at(i) == list[i]);
            }
            for (int32_t p = -1; p < next() + 2; ++p) {
                const auto first = std::find_if(list.begin(), list.end(), [&](const place & at) { return at.t >= p; });
                CHECK(positions.serial_from(p) == first - list.begin());
            }
        }
    }
}
