// Recall while a text is written: when it is looked, which pages are in use, and which follow them.

#include "morphkv-testing.h"
#include "moved_cells.h"

#include "core/follow.h"

#include <cerrno>
#include <cmath>

using pages_t = std::vector<int64_t>;

// Cut from 500 cells to 400: behind 500 tokens, 600, 700, ...
static const morphkv_text_shape SHAPE = { { { 400, 4, 100, 500 } }, 0, 2, 4 };

static void append(morphkv_text & text, int32_t pos = 0) {
    if (text.n_used(0) == 500) {
        text.note_cut(0);
    }
    text.append(pos + text.n_tokens(), 1, false);
}

static morphkv_text written_text(int32_t n, int32_t pos = 0) {
    morphkv_text res(SHAPE, 0);
    while (res.n_tokens() < n) {
        append(res, pos);
    }
    return res;
}

static void recall(morphkv_text & text, int64_t n_brought) {
    text.note_recall(0, 0, { 0, 1, 2, 3 }, n_brought);
}

// Lengths up to n at which it is looked, behind a recall that brought something at `brought_at`.
static std::vector<int32_t> looks(int32_t brought_at, int32_t n) {
    std::vector<int32_t> res;
    auto                 text = written_text(brought_at);
    recall(text, 1);
    while (text.n_tokens() < n) {
        append(text);
        if (morphkv_follow_when(text, 0).looks) {
            res.push_back(text.n_tokens());
        }
    }
    return res;
}

static std::unique_ptr<morphkv_archive> archive_of(int32_t n_pages, int32_t first = 0) {
    auto res = std::make_unique<morphkv_archive>(layout_of({ { 1, true } }), morphkv_page_store_ram(), 0);
    append_tokens(*res, first, 16 * n_pages + 3);
    return res;
}

//
// when
//

TEST_CASE(it_is_looked_every_16_tokens_while_something_comes) {
    CHECK(looks(512, 576) == std::vector<int32_t>({ 528, 544, 560, 576 }));
}

TEST_CASE(more_seldom_the_longer_nothing_has_come) {
    CHECK(looks(608, 1030) ==
          std::vector<int32_t>({ 624, 640, 656, 672, 704, 736, 768, 800, 832, 864, 896, 960, 1024 }));
}

TEST_CASE(behind_an_eviction_too_while_something_comes) {
    CHECK(looks(592, 660) == std::vector<int32_t>({ 601, 608, 624, 640, 656 }));
    CHECK(looks(530, 610) == std::vector<int32_t>({ 544, 560, 576, 592, 608 }));
}

TEST_CASE(not_behind_evictions_that_are_frequent) {
    auto text = morphkv_text({ { { 400, 4, 31, 431 } }, 0, 2, 4 }, 0);
    text.append(0, 431, false);
    recall(text, 1);
    text.append(431, 1, false);
    text.note_cut(0);
    text.append(432, 1, false);
    CHECK(!morphkv_follow_when(text, 0).looks);
}

TEST_CASE(behind_a_recall_there_is_nothing_new) {
    CHECK(looks(600, 617) == std::vector<int32_t>({ 608 }));
    auto text = written_text(512);
    CHECK(morphkv_follow_when(text, 0).looks);
    recall(text, 1);
    CHECK(!morphkv_follow_when(text, 0).looks);
}

TEST_CASE(not_before_the_first_eviction) {
    CHECK(!morphkv_follow_when(morphkv_text(SHAPE, 0), 0).looks && !morphkv_follow_when(written_text(64), 0).looks);
}

TEST_CASE(positions_say_so_and_not_serials) {
    CHECK(morphkv_follow_when(written_text(509, 3), 0).looks && !morphkv_follow_when(written_text(512, 3), 0).looks);
}

TEST_CASE(a_recall_that_brought_nothing_is_none) {
    auto text = written_text(1024);
    recall(text, 0);
    CHECK(text.brought_at == 0);
    recall(text, 1);
    CHECK(text.brought_at == 1024);
}

TEST_CASE(what_is_taken_back_was_not_brought_behind_the_end) {
    auto text = written_text(512);
    recall(text, 1);
    append(text);
    append(text);
    text.remove_from(513);
    CHECK(text.brought_at == 512);
    text.remove_from(511);
    CHECK(text.brought_at == 511);
}

TEST_CASE(a_large_archive_is_searched_more_seldom_and_the_slots_are_not) {
    auto text = written_text(128 * 1024);
    recall(text, 1);
    int32_t n_looks = 0, n_searches = 0;
    for (int32_t i = 0; i < 256; ++i) {
        append(text);
        n_looks += morphkv_follow_when(text, 0).looks;
        n_searches += morphkv_follow_when(text, 0).searches;
        if (i % 64 == 40) {
            recall(text, 1);
        }
    }
    CHECK(n_looks >= 16 && n_looks <= 19 && n_searches == 1);
}

//
// which
//

// Of an archive of four pages.
static morphkv_page_uses uses_of(const std::vector<int32_t> & serials, const std::vector<float> & votes, int32_t n_head,
                                 int32_t n_keep = 0, int32_t first = 0) {
    const auto        archive = archive_of(4, first);
    morphkv_page_uses res;
    morphkv_add_page_uses(*archive, serials, votes, n_head, 2, n_keep, res);
    return res;
}

TEST_CASE(a_use_is_the_third_power_of_the_share_in_each_head) {
    // two voters: shares 0.25, 0.75 of pages 0 and 1 in one head, 0.5 of 1 and of 2 in the other
    const auto uses = uses_of({ 16, 31, 2, 17, 40, 41 }, { 1.0f, 0.5f, 0.5f, 1.0f, 1.0f, 0.0f }, 2);
    CHECK(uses == morphkv_page_uses({ 0.015625f, 0.421875f + 0.125f, 0.125f, 0.0f }));
}

TEST_CASE(uses_of_layers_are_added) {
    const auto        archive = archive_of(2);
    morphkv_page_uses uses;
    morphkv_add_page_uses(*archive, { 3 }, { 2.0f }, 1, 2, 0, uses);
    morphkv_add_page_uses(*archive, { 3, 20 }, { 2.0f, 2.0f }, 2, 2, 0, uses);
    CHECK(uses == morphkv_page_uses({ 2.0f, 1.0f }));
}

TEST_CASE(what_is_kept_or_in_no_page_is_not_used) {
    CHECK(uses_of({ 1, 2, 16 }, { 2.0f, 2.0f, 2.0f }, 1, /*n_keep =*/2) == morphkv_page_uses({ 1, 1, 0, 0 }));
    CHECK(uses_of({ 64, 66, 900 }, { 2.0f, 2.0f, 2.0f }, 1) == morphkv_page_uses({ 0, 0, 0, 0 }));
    CHECK(uses_of({ 31, 32, 48 }, { 2.0f, 2.0f, 2.0f }, 1, 0, /*first =*/32) == morphkv_page_uses({ 1, 1, 0, 0 }));
}

TEST_CASE(votes_that_are_no_numbers_do_not_count) {
    CHECK(uses_of({ 1, 17 }, { NAN, 2.0f }, 1) == morphkv_page_uses({ 0, 1, 0, 0 }));
}

static pages_t following(const std::vector<std::pair<int64_t, float>> & uses, float need, size_t n_wanted,
                         const morphkv_archive & archive) {
    morphkv_page_uses all(archive.n_full() - archive.n_dropped());
    for (const auto & [page, use] : uses) {
        all[page - archive.n_dropped()] = use;
    }
    return morphkv_following_pages(archive, all, need, n_wanted);
}

TEST_CASE(the_next_pages_follow_the_one_in_use) {
    const auto archive = archive_of(20);
    CHECK(following({ { 5, 2.0f }, { 9, 0.1f } }, 1, 9, *archive) == pages_t({ 5, 6, 7, 8 }));
    CHECK(following({ { 5, 2.0f } }, 1, 2, *archive) == pages_t({ 5, 6 }));
    CHECK(following({ { 18, 2.0f } }, 1, 9, *archive) == pages_t({ 18, 19 }));
}

TEST_CASE(of_two_pages_in_use_each_is_followed) {
    const auto archive = archive_of(20);
    CHECK(following({ { 4, 1.0f }, { 5, 2.0f } }, 1, 5, *archive) == pages_t({ 5, 6, 7, 8, 4 }));
    CHECK(following({ { 2, 1.9f }, { 12, 2.0f } }, 1, 4, *archive) == pages_t({ 12, 2, 13, 3 }));
}

TEST_CASE(nothing_follows_where_no_page_is_in_use) {
    const auto archive = archive_of(20);
    CHECK(following({ { 5, 0.9f } }, 1, 5, *archive).empty());
    CHECK(following({}, 0, 5, *archive).empty());
    CHECK(morphkv_following_pages(*archive, {}, 0, 5).empty());
}

TEST_CASE(a_damaged_page_is_left_out) {
    const auto archive = archive_of(20);
    morphkv_testing_fail_store(1, EIO);
    CHECK(!archive->find_page(6));
    CHECK(following({ { 5, 2.0f } }, 1, 5, *archive) == pages_t({ 5, 7, 8 }));
}
