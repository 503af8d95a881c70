// An archive whose store fails, and one that is loaded: a text outlives both.

#include "case.h"
#include "filled_archive.h"
#include "morphkv-testing.h"

#include <cerrno>

// The n-th call to a store from now on fails.
static void fail(int64_t n, int32_t error) {
    morphkv_testing_fail_store(n, error);
}

TEST_CASE(a_store_that_fails_stops_the_archive) {
    auto archive = in_ram();
    append(archive, 0, 2 * N_PAGE);
    fail(1, EIO);
    append(archive, 2 * N_PAGE, N_PAGE + 5);
    CHECK(has(archive.why_stopped(), "memory fails") && archive.n_full() == 2);
    check_pages(archive);
}

TEST_CASE(no_memory_stops_the_archive) {
    auto archive = in_ram();
    fail(1, ENOMEM);
    append(archive, 0, N_PAGE);
    CHECK(archive.why_stopped() == "out of memory" && archive.n_full() == 0);
}

TEST_CASE(what_has_stopped_grows_no_more) {
    auto archive = in_ram();
    append(archive, 0, 20);
    archive.stop("of a reason");
    append(archive, 20, 40);
    CHECK(archive.end() == 20);
}

TEST_CASE(the_first_reason_to_stop_counts) {
    auto archive = in_ram();
    append(archive, 0, 20);
    archive.stop("one");
    archive.stop("another");
    CHECK(archive.why_stopped() == "one" && archive.take_news() == "it grows no more: one");
}

TEST_CASE(news_are_told_once) {
    auto archive = in_ram();
    append(archive, 0, 20);
    archive.stop("a reason");
    CHECK(!archive.take_news().empty() && archive.take_news().empty());
}

TEST_CASE(a_new_text_tries_anew) {
    auto archive = in_ram();
    append(archive, 0, 20);
    archive.stop("a reason");
    archive.clear();
    CHECK(archive.why_stopped().empty());
    append(archive, 0, 40, 1);
    CHECK(archive.n_full() == 2);
    check_pages(archive, 1);
}

TEST_CASE(a_page_that_cannot_be_read_is_damaged_and_not_tried_again) {
    auto archive = in_ram();
    append(archive, 0, 3 * N_PAGE);
    fail(1, EIO);
    CHECK(!archive.find_page(1) && archive.is_damaged(1) && archive.n_damaged() == 1);
    const int64_t n = morphkv_testing_n_store_calls();
    CHECK(!archive.find_page(1) && morphkv_testing_n_store_calls() == n);
    CHECK(archive.find_page(0) && archive.find_page(2));
}

TEST_CASE(a_page_for_which_there_is_no_memory_is_damaged) {
    auto archive = in_ram();
    append(archive, 0, N_PAGE);
    fail(1, ENOMEM);
    CHECK(!archive.find_page(0) && has(archive.take_news(), "out of memory"));
}

TEST_CASE(of_the_first_damaged_page_the_user_is_told) {
    auto archive = in_ram();
    append(archive, 5, 3 * N_PAGE);
    fail(1, EIO);
    archive.find_page(1);
    CHECK(has(archive.take_news(), "tokens 21 to 36 cannot be read"));
    fail(1, EIO);
    archive.find_page(0);
    CHECK(archive.take_news().empty() && archive.n_damaged() == 2);
}

TEST_CASE(news_of_two_kinds_are_told_together) {
    auto archive = in_ram();
    append(archive, 0, N_PAGE);
    archive.stop("a reason");
    fail(1, EIO);
    archive.find_page(0);
    const std::string news = archive.take_news();
    CHECK(has(news, "it grows no more: a reason; tokens 0 to 15 cannot be read"));
    // the other way round
    auto other = in_ram();
    append(other, 0, N_PAGE);
    fail(1, EIO);
    other.find_page(0);
    other.stop("a reason");
    CHECK(has(other.take_news(), "; it grows no more: a reason"));
}

TEST_CASE(damaged_pages_that_are_gone_do_not_count) {
    auto archive = in_ram(2);
    append(archive, 0, 2 * N_PAGE);
    fail(1, EIO);
    archive.find_page(0);
    CHECK(archive.n_damaged() == 1);
    append(archive, 2 * N_PAGE, N_PAGE);
    CHECK(archive.n_damaged() == 0);
    fail(1, EIO);
    archive.find_page(2);
    archive.truncate(2 * N_PAGE);
    CHECK(archive.n_damaged() == 0);
    fail(1, EIO);
    archive.find_page(1);
    archive.clear();
    CHECK(archive.n_damaged() == 0);
}

TEST_CASE(a_damaged_page_cannot_be_opened_again) {
    auto archive = in_ram();
    append(archive, 0, 3 * N_PAGE + 4);
    fail(1, EIO);
    archive.truncate(2 * N_PAGE + 7);
    CHECK(archive.end() == 2 * N_PAGE && has(archive.why_stopped(), "cannot be read"));
    check_pages(archive);
}

TEST_CASE(a_damaged_first_page_leaves_nothing_to_go_on_from) {
    auto archive = in_ram();
    append(archive, 0, N_PAGE);
    fail(1, EIO);
    archive.truncate(7);
    CHECK(archive.end() == -1 && archive.n_held() == 0);
}

TEST_CASE(a_copy_has_the_hash_of_a_page_that_is_lost) {
    auto archive = in_ram(), copy = in_ram();
    append(archive, 0, 3 * N_PAGE);
    fail(1, EIO);
    archive.find_page(1);
    copy.copy(archive);
    CHECK(copy.n_full() == 3 && copy.is_damaged(1) && copy.n_damaged() == 1 && copy.hash_of(1) == archive.hash_of(1));
    CHECK(copy.find_page(0) && !copy.find_page(1) && copy.find_page(2));
}

TEST_CASE(a_copy_that_fails_has_what_came_before) {
    auto archive = in_ram(), copy = in_ram();
    append(archive, 0, 3 * N_PAGE + 5);
    fail(4, EIO);  // the second page is put
    copy.copy(archive);
    CHECK(has(copy.why_stopped(), "memory fails") && copy.end() == N_PAGE);
    check_pages(copy);
}

TEST_CASE(a_copy_that_fails_at_once_is_empty) {
    auto archive = in_ram(), copy = in_ram();
    append(archive, 0, 3 * N_PAGE + 5);
    fail(2, EIO);
    copy.copy(archive);
    CHECK(!copy.why_stopped().empty() && copy.end() == -1 && copy.n_held() == 0);
}

//
// states
//

static std::vector<morphkv_archive::saved_page> pages_of(const morphkv_archive & archive) {
    std::vector<morphkv_archive::saved_page> res;
    for (int64_t i = archive.n_dropped(); i < archive.n_full(); ++i) {
        res.push_back({ archive.find_page(i), 0 });
    }
    return res;
}

TEST_CASE(a_loaded_archive_has_what_was_saved) {
    auto archive = in_ram(3), loaded = in_ram();
    append(archive, 2, 6 * N_PAGE + 4);
    append(loaded, 0, 50, 1);
    loaded.load(archive.get_header(), pages_of(archive), archive.get_tail());
    CHECK(loaded.end() == archive.end() && loaded.n_dropped() == 3 && loaded.get_tail() == archive.get_tail());
    CHECK(loaded.get_header().newest == archive.get_header().newest);
    check_pages(loaded);
    append(loaded, loaded.end(), 40);
    check_pages(loaded);
}

TEST_CASE(a_loaded_archive_may_be_empty) {
    auto loaded = in_ram();
    append(loaded, 0, 50, 1);
    loaded.load({}, {}, morphkv_page(small_layout().page_bytes));
    CHECK(loaded.end() == -1 && loaded.n_places() == 0);
}

TEST_CASE(a_page_that_was_saved_as_lost_is_damaged) {
    auto archive = in_ram(), loaded = in_ram();
    append(archive, 0, 2 * N_PAGE);
    auto pages = pages_of(archive);
    pages[0]   = { nullptr, 77 };
    loaded.load(archive.get_header(), pages, archive.get_tail());
    CHECK(loaded.n_full() == 2 && loaded.is_damaged(0) && loaded.hash_of(0) == 77 && loaded.find_page(1));
    // its index row must not be NaN
    CHECK(index_row(loaded, 0, 0)[3] == 0.0f);
}

TEST_CASE(a_load_that_fails_has_what_came_before) {
    auto archive = in_ram(), loaded = in_ram();
    append(archive, 0, 3 * N_PAGE);
    const auto pages = pages_of(archive);
    fail(2, EIO);
    loaded.load(archive.get_header(), pages, archive.get_tail());
    CHECK(!loaded.why_stopped().empty() && loaded.n_full() == 1);
    check_pages(loaded);
}

TEST_CASE(a_load_that_fails_at_once_is_empty) {
    auto archive = in_ram(), loaded = in_ram();
    append(archive, 0, 3 * N_PAGE);
    const auto pages = pages_of(archive);
    fail(1, EIO);
    loaded.load(archive.get_header(), pages, archive.get_tail());
    CHECK(!loaded.why_stopped().empty() && loaded.end() == -1);
}

//
// a store of our own, whose commits fail
//

class uncommitted_store : public morphkv_page_store {
public:
    uncommitted_store(const bool & fails) : fails(fails) {}

    void put(size_t i_place, int64_t i_page, uint64_t hash, std::shared_ptr<const morphkv_page> page) override {
        pages->put(i_place, i_page, hash, std::move(page));
    }

    std::shared_ptr<const morphkv_page> get(size_t i_place, int64_t i_page, uint64_t hash) const override {
        return pages->get(i_place, i_page, hash);
    }

    void commit(const morphkv_archive_header & header, const morphkv_page_places & places) override {
        if (fails) {
            throw std::runtime_error("no header can be written");
        }
        pages->commit(header, places);
    }

    record record_in(size_t i_place) const override { return pages->record_in(i_place); }

private:
    const bool &                        fails;
    std::unique_ptr<morphkv_page_store> pages = morphkv_page_store_ram();
};

TEST_CASE(over_what_the_store_still_counts_nothing_is_put) {
    bool            fails = false;
    morphkv_archive archive(small_layout(), std::make_unique<uncommitted_store>(fails), 0);
    append(archive, 0, 40);
    fails = true;
    archive.clear();
    CHECK(has(archive.why_stopped(), "no header") && archive.end() == -1);
    auto other = in_ram();
    append(other, 0, 40);
    archive.copy(other);
    CHECK(has(archive.why_stopped(), "no header") && archive.end() == -1);
    // the next clear tries again
    fails = false;
    archive.copy(other);
    CHECK(archive.why_stopped().empty() && archive.end() == 40);
    check_pages(archive);
}

TEST_CASE(a_commit_that_fails_stops_what_was_taken_back) {
    bool            fails = false;
    morphkv_archive archive(small_layout(), std::make_unique<uncommitted_store>(fails), 0);
    append(archive, 0, 40);
    fails = true;
    archive.truncate(20);
    CHECK(archive.end() == 20 && has(archive.why_stopped(), "no header"));
}
