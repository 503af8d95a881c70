// Which pages are chosen, by a scorer that says what it is told to, and which slots their tokens take.

#include "morphkv-testing.h"
#include "moved_cells.h"

#include "core/search.h"

#include <cerrno>
#include <map>
#include <random>
#include <set>

using pages_t = std::vector<int64_t>;
using numbers = std::vector<int32_t>;

static std::unique_ptr<morphkv_archive> archive_of(int32_t n_pages, int32_t n_max_pages = 0, int32_t first = 0) {
    const auto layout = layout_of({ { 1, true } });
    auto       res =
        std::make_unique<morphkv_archive>(layout, morphkv_page_store_ram(), n_max_pages * (layout.page_bytes + 2));
    append_tokens(*res, first, 16 * n_pages);
    return res;
}

static void damage(const morphkv_archive & archive, int64_t i_page) {
    morphkv_testing_fail_store(1, EIO);
    CHECK(!archive.find_page(i_page));
}

// Scores by page, 0 where nothing is said; and what it was asked.
class fake_scorer : public morphkv_page_scorer {
public:
    fake_scorer(const morphkv_archive & archive, std::map<int64_t, float> index, std::map<int64_t, float> rows)
        : archive(archive),
          index(std::move(index)),
          rows(std::move(rows)) {}

    std::vector<float> by_index(size_t) override {
        std::vector<float> res;
        for (int64_t i = 0; i < archive.n_places(); ++i) {
            const int64_t i_page = archive.page_in(i);
            res.push_back(i_page < 0 ? 1e9f : index[i_page]);
        }
        n_by_index++;
        return res;
    }

    std::vector<float> by_rows(const pages_t & pages, int32_t n_skip) override {
        looked_at.push_back(pages);
        n_skipped = n_skip;
        if (turns_out_damaged >= 0) {
            damage(archive, turns_out_damaged);
            turns_out_damaged = -1;
            return {};
        }
        std::vector<float> res;
        for (const int64_t i_page : pages) {
            res.push_back(rows[i_page]);
        }
        return res;
    }

    int32_t              n_by_index        = 0;
    int32_t              n_skipped         = -1;
    int64_t              turns_out_damaged = -1;
    std::vector<pages_t> looked_at;

private:
    const morphkv_archive &  archive;
    std::map<int64_t, float> index, rows;
};

//
// how many pages
//

TEST_CASE(a_share_of_the_slots_is_wanted_in_whole_pages) {
    CHECK(morphkv_n_wanted_pages(0.5f, 1600) == 50 && morphkv_n_wanted_pages(0.25f, 1599) == 24);
    CHECK(morphkv_n_wanted_pages(1.0f, 1600) == 100);
}

TEST_CASE(five_pages_are_wanted_where_half_of_the_slots_have_room) {
    CHECK(morphkv_n_wanted_pages(0.01f, 160) == 5 && morphkv_n_wanted_pages(0.01f, 159) == 4);
}

TEST_CASE(a_page_is_wanted_where_there_is_room_for_one) {
    CHECK(morphkv_n_wanted_pages(0.1f, 16) == 1 && morphkv_n_wanted_pages(0.1f, 31) == 1);
}

TEST_CASE(no_page_is_wanted_where_none_has_room) {
    CHECK(morphkv_n_wanted_pages(1.0f, 15) == 0 && morphkv_n_wanted_pages(1.0f, 0) == 0);
}

TEST_CASE(of_many_pages_one_in_20_is_looked_at) {
    CHECK(morphkv_n_pages_to_look_at(5, 32, 0) == 160 && morphkv_n_pages_to_look_at(5, 32, 3219) == 160);
    CHECK(morphkv_n_pages_to_look_at(5, 32, 3220) == 161 && morphkv_n_pages_to_look_at(5, 32, 200000) == 10000);
}

//
// which
//

TEST_CASE(the_best_pages_come_first) {
    const auto  archive = archive_of(6);
    fake_scorer scorer(*archive, {}, { { 1, 2.0f }, { 4, 9.0f } });
    CHECK(morphkv_choose_pages(*archive, 1, 10, 0, scorer) == pages_t({ 4 }));
}

TEST_CASE(a_few_pages_are_judged_by_their_rows_at_once) {
    const auto  archive = archive_of(6);
    fake_scorer scorer(*archive, {}, {});
    morphkv_choose_pages(*archive, 2, 6, 0, scorer);
    CHECK(scorer.n_by_index == 0 && scorer.looked_at == std::vector<pages_t>({ { 0, 1, 2, 3, 4, 5 } }));
}

TEST_CASE(of_many_pages_the_best_by_the_index_are_looked_at_in_their_order) {
    const auto  archive = archive_of(6);
    fake_scorer scorer(*archive, { { 0, 5.0f }, { 2, 1.0f }, { 4, 2.0f } }, {});
    morphkv_choose_pages(*archive, 1, 3, 0, scorer);
    CHECK(scorer.looked_at == std::vector<pages_t>({ { 0, 2, 4 } }));
}

TEST_CASE(the_first_page_is_always_looked_at) {
    const auto  archive = archive_of(6);
    fake_scorer scorer(*archive, { { 3, 1.0f }, { 4, 2.0f } }, {});
    morphkv_choose_pages(*archive, 1, 2, 0, scorer);
    CHECK(scorer.looked_at == std::vector<pages_t>({ { 0, 3, 4 } }));
}

TEST_CASE(a_first_page_that_made_room_is_not) {
    const auto  archive = archive_of(8, /*n_max_pages =*/5);  // 3 to 7
    fake_scorer scorer(*archive, { { 5, 1.0f }, { 7, 2.0f } }, {});
    morphkv_choose_pages(*archive, 1, 2, 0, scorer);
    CHECK(scorer.looked_at == std::vector<pages_t>({ { 5, 7 } }));
}

TEST_CASE(places_that_are_empty_have_no_page_to_look_at) {
    const auto archive = archive_of(8, 5);
    // 3 to 6 are left, and the place of 7 is empty
    archive->truncate(7 * 16);
    append_tokens(*archive, 7 * 16, 3);
    fake_scorer scorer(*archive, { { 4, 1.0f }, { 6, 2.0f } }, {});
    morphkv_choose_pages(*archive, 1, 2, 0, scorer);
    CHECK(scorer.looked_at == std::vector<pages_t>({ { 4, 6 } }));
}

TEST_CASE(of_equal_pages_the_older_is_taken) {
    const auto  archive = archive_of(6);
    fake_scorer scorer(*archive, {}, { { 1, 2.0f }, { 4, 2.0f } });
    CHECK(morphkv_choose_pages(*archive, 1, 10, 0, scorer) == pages_t({ 1 }));
}

TEST_CASE(neighbours_of_a_page_get_three_tenths_of_its_score) {
    const auto  archive = archive_of(8);
    fake_scorer scorer(*archive, {}, { { 2, 10.0f }, { 6, 2.9f } });
    CHECK(morphkv_choose_pages(*archive, 4, 10, 0, scorer) == pages_t({ 2, 1, 3, 6 }));
}

TEST_CASE(a_page_with_more_of_its_own_keeps_that) {
    const auto  archive = archive_of(8);
    fake_scorer scorer(*archive, {}, { { 2, 10.0f }, { 3, 4.0f }, { 6, 3.5f } });
    CHECK(morphkv_choose_pages(*archive, 4, 10, 0, scorer) == pages_t({ 2, 3, 6, 1 }));
}

TEST_CASE(a_neighbour_that_was_not_looked_at_may_come) {
    const auto  archive = archive_of(8);
    fake_scorer scorer(*archive, { { 5, 1.0f } }, { { 5, 10.0f } });
    CHECK(morphkv_choose_pages(*archive, 3, 1, 0, scorer) == pages_t({ 5, 4, 6 }));
}

TEST_CASE(neighbours_end_where_the_archive_does) {
    const auto  archive = archive_of(8, 2);  // 6 and 7
    fake_scorer scorer(*archive, {}, { { 6, 1.0f }, { 7, 2.0f } });
    CHECK(morphkv_choose_pages(*archive, 9, 10, 0, scorer) == pages_t({ 7, 6 }));
}

TEST_CASE(no_more_pages_come_than_are_wanted) {
    const auto  archive = archive_of(8);
    fake_scorer scorer(*archive, {}, { { 2, 10.0f } });
    CHECK(morphkv_choose_pages(*archive, 0, 10, 0, scorer).empty());
    CHECK(morphkv_choose_pages(*archive, 2, 10, 0, scorer).size() == 2);
}

TEST_CASE(none_comes_where_no_page_gets_what_is_needed) {
    const auto  archive = archive_of(8);
    fake_scorer scorer(*archive, {}, { { 2, 10.0f }, { 6, 4.0f } });
    CHECK(morphkv_choose_pages(*archive, 4, 10, 0, scorer, 10.5f).empty());
    CHECK(morphkv_choose_pages(*archive, 4, 10, 0, scorer, 9.5f) == pages_t({ 2, 6, 1, 3 }));
}

TEST_CASE(rows_that_are_kept_anyway_give_their_page_nothing) {
    const auto  archive = archive_of(3);
    fake_scorer scorer(*archive, {}, {});
    morphkv_choose_pages(*archive, 1, 10, 4, scorer);
    CHECK(scorer.n_skipped == 4);
    morphkv_choose_pages(*archive, 1, 10, 40, scorer);
    CHECK(scorer.n_skipped == 16);  // rows of the first page
}

TEST_CASE(where_the_first_page_is_not_looked_at_no_row_is_skipped) {
    const auto  dropped = archive_of(8, 5), later = archive_of(3, 0, /*first =*/7);
    fake_scorer a(*dropped, {}, {}), b(*later, {}, {});
    morphkv_choose_pages(*dropped, 1, 10, 4, a);
    morphkv_choose_pages(*later, 1, 10, 4, b);
    CHECK(a.n_skipped == 0 && b.n_skipped == 0);
}

TEST_CASE(damaged_pages_are_neither_looked_at_nor_chosen) {
    const auto archive = archive_of(6);
    damage(*archive, 2);
    fake_scorer scorer(*archive, { { 2, 9.0f }, { 3, 5.0f }, { 4, 4.0f } }, { { 3, 1.0f } });
    CHECK(morphkv_choose_pages(*archive, 3, 2, 0, scorer) == pages_t({ 3, 4, 0 }));
    CHECK(scorer.looked_at == std::vector<pages_t>({ { 0, 3, 4 } }));
}

TEST_CASE(a_page_that_turns_out_to_be_damaged_has_no_part_in_a_second_look) {
    const auto  archive = archive_of(4);
    fake_scorer scorer(*archive, {}, { { 1, 9.0f }, { 2, 1.0f } });
    scorer.turns_out_damaged = 1;
    CHECK(morphkv_choose_pages(*archive, 1, 10, 0, scorer) == pages_t({ 2 }));
    CHECK(scorer.looked_at == std::vector<pages_t>({ { 0, 1, 2, 3 }, { 0, 2, 3 } }));
}

TEST_CASE(where_all_pages_are_damaged_none_is_chosen) {
    const auto  archive = archive_of(1);
    fake_scorer scorer(*archive, {}, {});
    scorer.turns_out_damaged = 0;
    CHECK(morphkv_choose_pages(*archive, 1, 10, 0, scorer).empty() && scorer.looked_at.size() == 1);
}

TEST_CASE(an_archive_without_a_full_page_has_none_to_choose) {
    const auto  archive = archive_of(0);
    fake_scorer scorer(*archive, {}, {});
    append_tokens(*archive, 0, 9);
    CHECK(morphkv_choose_pages(*archive, 1, 10, 0, scorer).empty() && scorer.looked_at.empty());
}

//
// slots
//

static morphkv_slots choose(const morphkv_archive & archive, const pages_t & pages, const numbers & before,
                            const std::vector<float> & votes, int32_t n_head_kv = 1, int32_t n_keep = 0) {
    morphkv_pages found;
    for (const int64_t i_page : pages) {
        found.emplace_back(i_page, archive.find_page(i_page));
    }
    return morphkv_choose_slots(archive, found, before, votes, n_head_kv, n_keep);
}

// n slots whose tokens are in no page, with votes that grow.
static numbers other_tokens(int32_t n) {
    numbers res;
    for (int32_t i = 0; i < n; ++i) {
        res.push_back(1000 + i);
    }
    return res;
}

static std::vector<float> growing(int32_t n) {
    std::vector<float> res;
    for (int32_t i = 0; i < n; ++i) {
        res.push_back(i);
    }
    return res;
}

TEST_CASE(a_page_takes_the_slots_with_the_fewest_votes) {
    const auto archive = archive_of(3);
    const auto before  = other_tokens(20);
    const auto res     = choose(*archive, { 2 }, before, growing(20));
    CHECK(res.before == before);
    for (int32_t i = 0; i < 20; ++i) {
        CHECK(res.after[i] == (i < 16 ? 32 + i : before[i]));
    }
}

TEST_CASE(first_tokens_that_are_kept_stay) {
    const auto archive = archive_of(3);
    const auto before  = other_tokens(20);
    const auto res     = choose(*archive, { 2 }, before, growing(20), 1, /*n_keep =*/4);
    for (int32_t i = 0; i < 20; ++i) {
        CHECK(res.after[i] == (i < 4 ? before[i] : 32 + i - 4));
    }
}

TEST_CASE(where_there_are_fewer_slots_the_better_page_comes) {
    const auto archive = archive_of(3);
    const auto res     = choose(*archive, { 2, 0 }, other_tokens(20), growing(20));
    CHECK(res.after[15] == 47 && res.after[16] == 0 && res.after[19] == 3);
}

TEST_CASE(a_token_that_is_there_stays_in_its_slot) {
    const auto archive = archive_of(3);
    auto       before  = other_tokens(20);
    before[0]          = 40;  // of page 2, with the fewest votes
    const auto res     = choose(*archive, { 2 }, before, growing(20));
    CHECK(res.after[0] == 40 && res.after[1] == 32 && res.after[15] == 47 && res.after[16] == before[16]);
}

TEST_CASE(of_equal_votes_the_first_slots_are_taken) {
    const auto archive = archive_of(1);
    const auto res     = choose(*archive, { 0 }, other_tokens(18), std::vector<float>(18, 1.0f));
    CHECK(res.after[15] == 15 && res.after[16] == 1016);
}

TEST_CASE(each_head_gives_the_slots_that_it_votes_for_least) {
    const auto archive = archive_of(1);
    auto       before  = other_tokens(40);
    auto       votes   = growing(40);
    for (int32_t i = 20; i < 40; ++i) {
        votes[i] = -i;
    }
    const auto res = choose(*archive, { 0 }, before, votes, /*n_head_kv =*/2);
    CHECK(res.after[0] == 0 && res.after[16] == 1016);
    CHECK(res.after[39] == 0 && res.after[24] == 15 && res.after[23] == 1023);
}

TEST_CASE(without_pages_nothing_changes) {
    const auto archive = archive_of(1);
    const auto res     = choose(*archive, {}, other_tokens(4), growing(4));
    CHECK(res.after == res.before);
}

TEST_CASE(a_page_of_which_all_tokens_are_there_changes_nothing) {
    const auto archive = archive_of(1);
    numbers    before;
    for (int32_t i = 0; i < 16; ++i) {
        before.push_back(15 - i);
    }
    CHECK(choose(*archive, { 0 }, before, growing(16)).after == before);
}

TEST_CASE(random_heads_hold_no_token_twice_and_lose_the_worst) {
    std::mt19937 random(3);
    const auto   archive = archive_of(6);
    for (int32_t n = 0; n < 200; ++n) {
        const int32_t      n_distant = 1 + random() % 60, n_keep = random() % n_distant;
        numbers            before;
        std::vector<float> votes;
        while ((int32_t) before.size() < n_distant) {
            const int32_t serial = random() % 120;
            if (std::find(before.begin(), before.end(), serial) == before.end()) {
                before.push_back(serial);
                votes.push_back(random() % 8);
            }
        }
        const pages_t pages = { (int64_t) (random() % 3), (int64_t) (3 + random() % 3) };
        const auto    res   = choose(*archive, pages, before, votes, 1, n_keep);
        CHECK((int32_t) std::set<int32_t>(res.after.begin(), res.after.end()).size() == n_distant);
        auto is_wanted = [&](int32_t serial) {
            return serial / 16 == pages[0] || serial / 16 == pages[1];
        };
        float worst_left = 1e9f, best_lost = -1e9f;
        for (int32_t i = 0; i < n_distant; ++i) {
            const bool has_changed = res.after[i] != before[i];
            CHECK(!has_changed || (i >= n_keep && is_wanted(res.after[i]) && !is_wanted(before[i])));
            if (i >= n_keep && !is_wanted(before[i])) {
                (has_changed ? best_lost : worst_left) =
                    has_changed ? std::max(best_lost, votes[i]) : std::min(worst_left, votes[i]);
            }
        }
        CHECK(best_lost <= worst_left);
    }
}
