// An archive in a file: it survives its process, whatever that was killed at, and refuses every other file.

#include "case.h"
#include "filled_archive.h"
#include "morphkv-testing.h"

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>

#ifndef _WIN32
#include <sys/resource.h>
#endif

// A file that is there for one case.
struct temporary_file {
    temporary_file() { std::filesystem::remove(path); }

    ~temporary_file() { std::filesystem::remove(path); }

    int64_t size() const { return std::filesystem::file_size(path); }

    void write_at(int64_t at, const std::string & bytes) const {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(at);
        file << bytes;
        CHECK(file.good());
    }

    void truncate(int64_t n) const { std::filesystem::resize_file(path, n); }

    const std::string path = "test_archive_file.tmp";
};

static constexpr int64_t AT_ARCHIVE = 24, AT_PLACES = 56, AT_PAGES = 4096;

static int64_t page_at(int64_t i_place) {
    return AT_PAGES + i_place * (16 + small_layout().page_bytes);
}

static void fill(const temporary_file & file, int32_t n, uint64_t n_max_pages = 0) {
    auto archive = in_file(file.path, n_max_pages);
    append(archive, 0, n);
}

static std::string refusal(const temporary_file & file) {
    return error_of([&] { in_file(file.path); });
}

//
// the next process
//

TEST_CASE(full_pages_are_found_by_the_next_process) {
    temporary_file file;
    fill(file, 165);
    auto archive = in_file(file.path);
    CHECK(archive.n_full() == 10 && archive.end() == 160);
    check_pages(archive);
    append(archive, 160, 100);
    check_pages(archive);
}

TEST_CASE(a_file_is_of_one_process) {
    temporary_file file;
    const auto     archive = in_file(file.path);
    CHECK(has(refusal(file), "in use"));
}

TEST_CASE(who_does_not_ask_for_the_lock_may_read_rename_and_remove_it) {
    temporary_file    file;
    const std::string moved   = file.path + ".moved";
    auto              archive = in_file(file.path);
    append(archive, 0, 100);
    std::ifstream     in(file.path, std::ios::binary);
    const std::string read((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    in.close();
    CHECK((int64_t) read.size() == page_at(6) && read.compare(0, 8, "MKVARCH1") == 0);
    std::filesystem::rename(file.path, moved);
    append(archive, 100, 60);
    CHECK((int64_t) std::filesystem::file_size(moved) == page_at(10));
    std::filesystem::remove(moved);
    append(archive, 160, 60);
    check_pages(archive);
    CHECK(archive.why_stopped().empty() && !std::filesystem::exists(file.path));
}

// On Windows, too, where narrow strings have another alphabet.
TEST_CASE(a_path_is_utf_8) {
    const std::string name = "test_archive_\xc3\xa9\xd0\xb6\xe6\x96\x87_\xf0\x9f\x97\x84.tmp";
    const auto        path = std::filesystem::u8path(name);
    std::filesystem::remove(path);
    {
        auto archive = in_file(name);
        append(archive, 0, 100);
        CHECK((int64_t) std::filesystem::file_size(path) == page_at(6));
    }
    CHECK(in_file(name).n_full() == 6);
    CHECK(std::filesystem::remove(path));
}

TEST_CASE(a_checkpoint_of_the_process_before_goes_on) {
    temporary_file         file;
    morphkv_archive_header header;
    morphkv_page           tail;
    {
        auto archive = in_file(file.path);
        append(archive, 0, 100);
        header = archive.get_header();
        tail   = archive.get_tail();
        append(archive, 100, 60);
    }
    auto archive = in_file(file.path);
    CHECK(archive.go_back(header, tail) && archive.end() == 100);
    append(archive, 100, 200);
    check_pages(archive);
}

TEST_CASE(a_page_that_is_not_full_does_not_survive) {
    temporary_file file;
    fill(file, 9);
    auto archive = in_file(file.path);
    CHECK(archive.end() == -1);
    append(archive, 3, 50, 1);
    check_pages(archive, 1);
}

TEST_CASE(another_text_begins_the_file_anew) {
    temporary_file file;
    fill(file, 100);
    {
        auto archive = in_file(file.path);
        archive.clear();
        CHECK(file.size() == AT_PAGES);
        append(archive, 3, 50, 1);
    }
    auto archive = in_file(file.path);
    CHECK(archive.n_full() == 3 && archive.serial_of(0) == 3);
    check_pages(archive, 1);
}

TEST_CASE(a_page_that_was_lost_stays_lost) {
    temporary_file file;
    {
        auto archive = in_ram(), in_this = in_file(file.path);
        append(archive, 0, 3 * N_PAGE);
        morphkv_testing_fail_store(1, EIO);
        archive.find_page(1);
        in_this.copy(archive);
    }
    auto archive = in_file(file.path);
    CHECK(archive.n_full() == 3 && archive.is_damaged(1) && archive.n_damaged() == 1);
    CHECK(archive.find_page(0) && archive.find_page(2));
}

TEST_CASE(a_bounded_file_has_the_newest_pages) {
    temporary_file file;
    fill(file, 200, 5);
    CHECK(file.size() == page_at(5));
    auto archive = in_file(file.path, 5);
    CHECK(archive.n_full() == 12 && archive.n_dropped() == 7);
    check_pages(archive);
}

TEST_CASE(killed_between_a_page_and_its_header_the_oldest_is_gone) {
    temporary_file file;
    fill(file, 200, 5);
    {
        // in the oldest place there is a page that nobody counted
        auto       store = morphkv_page_store_file(file.path, small_layout());
        const auto page  = store->get(0, 10, store->record_in(0).hash);
        store->put(12 % 5, 12, morphkv_hash_page(*page), page);
    }
    auto archive = in_file(file.path, 5);
    CHECK(archive.n_full() == 12 && archive.n_dropped() == 8);
    check_pages(archive);
}

TEST_CASE(taken_back_to_where_pages_made_room_none_is_anywhere) {
    temporary_file file;
    {
        auto archive = in_file(file.path, 5);
        append(archive, 0, 200);  // pages 7 to 11
        archive.truncate(7 * N_PAGE);
        CHECK(archive.n_full() == 7 && archive.n_places() == 0);
    }
    auto archive = in_file(file.path, 5);
    CHECK(archive.n_full() == 7 && archive.n_dropped() == 7 && archive.n_places() == 0);
    append(archive, 7 * N_PAGE, 100);
    check_pages(archive);
}

// Whatever has been in it: the newest pages that fit are there, the bound holds, and the next text has the new one.
TEST_CASE(a_file_may_go_on_with_another_bound) {
    for (const int32_t n_tokens : { 50, 200, 333 }) {
        for (const uint64_t before : { 0, 3, 5, 8, 40 }) {
            for (const uint64_t after : { 0, 1, 3, 5, 8, 40 }) {
                temporary_file file;
                int64_t        n_before = 0;
                {
                    auto archive = in_file(file.path, before);
                    append(archive, 7, 130, 1);
                    archive.clear();
                    append(archive, 0, n_tokens);
                    n_before = archive.n_full() - archive.n_dropped();
                }
                for (int i = 0; i < 2; ++i) {
                    auto archive = in_file(file.path, after);
                    CHECK(archive.n_full() - archive.n_dropped() ==
                          (after == 0 ? n_before : std::min<int64_t>(n_before, after)));
                    check_pages(archive);
                    append(archive, archive.end(), 100);
                    n_before = archive.n_full() - archive.n_dropped();
                    CHECK(after == 0 || n_before <= (int64_t) after);
                    check_pages(archive);
                }
                auto archive = in_file(file.path, after);
                archive.clear();
                append(archive, 0, 700, 1);
                CHECK(archive.n_full() - archive.n_dropped() == (after == 0 ? 43 : std::min<int64_t>(43, after)));
                check_pages(archive, 1);
            }
        }
    }
}

//
// files of older versions, which did not say where their pages are
//

TEST_CASE(an_older_file_without_a_bound_is_read) {
    temporary_file file;
    fill(file, 100);
    file.write_at(AT_PLACES, std::string(16, '\0'));
    auto archive = in_file(file.path);
    CHECK(archive.n_full() == 6);
    check_pages(archive);
}

TEST_CASE(an_older_file_with_a_bound_is_read) {
    for (const uint64_t now : { 5, 3, 0 }) {
        temporary_file file;
        fill(file, 200, 5);
        file.write_at(AT_PLACES, std::string(16, '\0'));
        auto archive = in_file(file.path, now);
        CHECK(archive.n_full() == 12 && archive.n_dropped() == (now == 3 ? 9 : 7));
        check_pages(archive);
    }
}

TEST_CASE(an_older_file_that_was_copied_into_is_read) {
    temporary_file file;
    {
        auto archive = in_ram(3), in_this = in_file(file.path);
        append(archive, 0, 7 * N_PAGE);  // its pages 4 to 6 are in places 0 to 2
        in_this.copy(archive);
    }
    file.write_at(AT_PLACES, std::string(16, '\0'));
    auto archive = in_file(file.path);
    CHECK(archive.n_full() == 7 && archive.n_dropped() == 4);
    check_pages(archive);
}

TEST_CASE(an_older_file_without_a_page_is_read) {
    temporary_file file;
    in_file(file.path);
    file.truncate(AT_PLACES);
    CHECK(refusal(file).empty());
}

//
// other files
//

TEST_CASE(a_truncated_file_is_refused) {
    temporary_file file;
    fill(file, 100);
    for (const int64_t n : { page_at(6) - 1, page_at(5) + 20, page_at(5), page_at(3), AT_PAGES + 7, (int64_t) 20 }) {
        file.truncate(n);
        CHECK(has(refusal(file), "truncated"));
    }
}

TEST_CASE(a_file_with_a_changed_page_is_refused) {
    temporary_file file;
    fill(file, 100);
    file.write_at(page_at(1) + 700, "damage");
    CHECK(has(refusal(file), "checksum of page 1"));
}

TEST_CASE(a_file_with_a_page_of_another_number_is_refused) {
    temporary_file file;
    fill(file, 100);
    file.write_at(page_at(2), std::string(1, '\5'));
    CHECK(has(refusal(file), "pages of it are missing"));
}

TEST_CASE(a_file_of_another_layout_is_refused) {
    temporary_file file;
    fill(file, 100);
    CHECK(has(error_of([&] { morphkv_page_store_file(file.path, small_layout(GGML_TYPE_F16)); }), "another"));
    // of as many bytes
    morphkv_page_layout other(GGML_TYPE_F32, GGML_TYPE_F32);
    other.add_layer(1, 64, 32);
    other.add_layer(2, 32, 32);
    CHECK(other.page_bytes == small_layout().page_bytes);
    CHECK(has(error_of([&] { morphkv_page_store_file(file.path, other); }), "another"));
}

TEST_CASE(a_file_with_an_impossible_header_is_refused) {
    temporary_file file;
    fill(file, 100);
    file.write_at(AT_ARCHIVE, std::string(16, '\xff'));
    CHECK(has(refusal(file), "damaged"));
}

TEST_CASE(a_file_with_impossible_places_is_refused) {
    for (const int64_t at : { AT_PLACES, AT_PLACES + 8 }) {
        temporary_file file;
        fill(file, 100);
        file.write_at(at, std::string(8, '\xff'));
        CHECK(has(refusal(file), "its pages are nowhere"));
    }
    temporary_file file;
    fill(file, 100);
    file.write_at(AT_PLACES, std::string(1, '\1'));  // page 0 is there, so the first cannot be 1
    CHECK(has(refusal(file), "its pages are nowhere"));
}

TEST_CASE(a_file_that_is_no_archive_is_refused_and_left_alone) {
    temporary_file    file;
    const std::string letters = "My letters, which are no archive, but are longer than the header of one would be.";
    std::ofstream(file.path) << letters;
    CHECK(has(refusal(file), "no archive"));
    std::ifstream in(file.path);
    std::string   line;
    CHECK(std::getline(in, line) && line == letters && file.size() == (int64_t) letters.size());
}

TEST_CASE(a_path_without_a_folder_is_refused) {
    CHECK(has(error_of([] { in_file("test_archive_file.tmp/in/no/folder"); }), "cannot be opened"));
}

TEST_CASE(any_flipped_bit_of_a_file_is_refused_or_harmless) {
    temporary_file file;
    fill(file, 2 * N_PAGE);
    std::ifstream     in(file.path, std::ios::binary);
    const std::string right((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    auto              original = in_ram();
    append(original, 0, 2 * N_PAGE);
    int n_loaded = 0;
    // all of the header, and some of the pages
    for (int64_t at = 0; at < (int64_t) right.size(); at += at < 72 ? 1 : 1009) {
        for (int bit = 0; bit < 8; ++bit) {
            file.write_at(at, std::string(1, right[at] ^ (1 << bit)));
            if (!refusal(file).empty()) {
                file.write_at(at, right.substr(at, 1));
                continue;
            }
            {
                auto archive = in_file(file.path);
                for (int64_t i = archive.n_dropped(); i < archive.n_full(); ++i) {
                    CHECK(*archive.find_page(i) == *original.find_page(i));
                }
                append(archive, std::max(0, archive.end()), 3 * N_PAGE);
                CHECK(archive.why_stopped().empty());
                n_loaded++;
            }
            std::ofstream(file.path, std::ios::binary | std::ios::trunc) << right;
        }
    }
    CHECK(n_loaded > 0 && refusal(file).empty());
}

TEST_CASE(a_place_gives_only_the_page_that_was_put_there) {
    temporary_file file;
    auto           store = morphkv_page_store_file(file.path, small_layout());
    const auto     page  = std::make_shared<const morphkv_page>(small_layout().page_bytes);
    const uint64_t hash  = morphkv_hash_page(*page);
    store->put(2, 7, hash, page);
    CHECK(*store->get(2, 7, hash) == *page && store->record_in(2).i_page == 7);
    CHECK(has(error_of([&] { store->get(2, 12, hash); }), "checksum of page 12"));
    CHECK(has(error_of([&] { store->get(2, 7, hash + 2); }), "checksum of page 7"));
    CHECK(store->record_in(0).i_page != 7 && store->record_in(9).i_page == -1);
}

//
// calls that fail
//

#ifndef _WIN32
TEST_CASE(a_full_disk_stops_it) {
    temporary_file file;
    auto           archive = in_file(file.path);
    struct rlimit  before, small;
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small          = before;
    small.rlim_cur = page_at(4) + 100;
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    append(archive, 0, 100);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(has(archive.why_stopped(), "cannot be written"));
    // what was archived before stays, nothing is added
    CHECK(archive.n_full() == 4);
    check_pages(archive);
    append(archive, 100, 50);
    CHECK(archive.n_full() == 4);
    // a new text tries anew
    archive.clear();
    CHECK(archive.why_stopped().empty());
    append(archive, 0, 100, 1);
    CHECK(archive.n_full() == 6);
    check_pages(archive, 1);
}
#endif

// Of all calls: opens, locks, reads, writes, truncations.
template <typename F> static int64_t n_calls_of(F && f) {
    morphkv_testing_fail_store(0, 0);
    f();
    return morphkv_testing_n_store_calls();
}

TEST_CASE(each_call_of_an_opening_that_fails_refuses_the_file) {
    temporary_file file;
    fill(file, 2 * N_PAGE);
    const int64_t n = n_calls_of([&] { in_file(file.path); });
    CHECK(n >= 8);
    for (int64_t i = 1; i <= n; ++i) {
        morphkv_testing_fail_store(i, EIO);
        CHECK(has(refusal(file), "cannot be"));
    }
    auto archive = in_file(file.path);
    CHECK(archive.n_full() == 2);
    check_pages(archive);
}

TEST_CASE(a_new_file_whose_header_cannot_be_written_is_refused) {
    for (const int64_t i : { 4, 5 }) {
        temporary_file file;
        morphkv_testing_fail_store(i, ENOSPC);
        CHECK(has(refusal(file), i == 4 ? "cannot be written" : "cannot be shortened"));
    }
}

TEST_CASE(each_call_of_an_append_that_fails_leaves_the_pages_before) {
    for (int64_t i = 1; i <= 6; ++i) {
        temporary_file file;
        {
            auto archive = in_file(file.path);
            append(archive, 0, 2 * N_PAGE);
            morphkv_testing_fail_store(i, ENOSPC);
            append(archive, 2 * N_PAGE, 2 * N_PAGE);
            CHECK(has(archive.why_stopped(), "cannot be written"));
            check_pages(archive);
        }
        auto archive = in_file(file.path);
        CHECK(archive.n_full() == (i <= 3 ? 2 : 3));
        check_pages(archive);
    }
}

TEST_CASE(an_interrupted_call_is_made_again) {
    for (int64_t i = 1; i <= 6; ++i) {
        temporary_file file;
        auto           archive = in_file(file.path);
        morphkv_testing_fail_store(i, EINTR);
        append(archive, 0, N_PAGE);
        archive.find_page(0);
        CHECK(archive.why_stopped().empty() && archive.n_damaged() == 0);
        check_pages(archive);
    }
}

TEST_CASE(a_page_that_changed_since_is_damaged) {
    temporary_file file;
    auto           archive = in_file(file.path);
    append(archive, 0, 3 * N_PAGE);
    file.write_at(page_at(1) + 100, "x");
    file.truncate(page_at(2) + 30);
    CHECK(archive.find_page(0) && !archive.find_page(1) && !archive.find_page(2) && archive.n_damaged() == 2);
    CHECK(has(archive.take_news(), "checksum of page 1"));
}
