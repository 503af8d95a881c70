// An archive in memory: what is appended is there, bounded, can be taken back, copied and saved.

#include "case.h"
#include "filled_archive.h"

//
// what is appended
//

TEST_CASE(a_new_archive_holds_nothing) {
    const auto archive = in_ram();
    CHECK(archive.end() == -1 && archive.n_held() == 0 && archive.n_places() == 0 && archive.n_full() == 0);
    CHECK(archive.why_stopped().empty() && archive.take_news().empty() && archive.n_damaged() == 0);
}

TEST_CASE(an_archive_begins_anywhere) {
    auto archive = in_ram();
    append(archive, 7, 20);
    CHECK(archive.end() == 27 && archive.n_held() == 20 && archive.n_full() == 1 && archive.serial_of(1) == 7 + N_PAGE);
    check_pages(archive);
}

TEST_CASE(pages_fill_across_calls) {
    auto    archive = in_ram();
    int32_t end     = 7;
    for (const int32_t n : { 1, 15, 3, 40, 16, 128 }) {
        append(archive, end, n);
        end += n;
        CHECK(archive.end() == end && archive.n_held() == end - 7 && archive.n_full() == (end - 7) / N_PAGE);
        check_pages(archive);
    }
}

TEST_CASE(nothing_appended_begins_nothing) {
    auto archive = in_ram();
    append(archive, 5, 0);
    CHECK(archive.end() == -1);
    append(archive, 9, 1);
    CHECK(archive.end() == 10);
}

TEST_CASE(the_index_grows_with_the_pages) {
    auto archive = in_ram();
    append(archive, 0, 150 * N_PAGE);
    CHECK(archive.n_places() == 150);
    check_pages(archive);
}

TEST_CASE(rows_of_the_index_are_aligned_as_tensors_are) {
    auto archive = in_ram();
    append(archive, 0, N_PAGE);
    CHECK((uintptr_t) archive.index_rows(0) % 32 == 0 && (uintptr_t) archive.index_rows(1) % 32 == 0);
}

TEST_CASE(the_index_has_means_of_quantized_keys) {
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        morphkv_page_layout layout(type, type);
        layout.add_layer(1, 32, 32);
        morphkv_archive       archive(layout, morphkv_page_store_ram(), 0);
        // every value of token t is t + 1: blocks of equal values are exact in each type but for the scale
        morphkv_archive::rows rows;
        rows.k.emplace_back();
        for (int32_t t = 0; t < N_PAGE; ++t) {
            const std::vector<float> values(32, t + 1.0f);
            std::vector<uint8_t>     bytes(layout.k_bytes(0));
            morphkv_convert_rows(GGML_TYPE_F32, values.data(), type, bytes.data(), 1, 32);
            rows.k[0].insert(rows.k[0].end(), bytes.begin(), bytes.end());
        }
        rows.v = rows.k;
        archive.append(0, N_PAGE, rows);
        for (const float mean : index_row(archive, 0, 0)) {
            CHECK(std::abs(mean - 8.5f) < 0.02f);
        }
    }
}

TEST_CASE(bytes_are_those_of_pages_and_index) {
    auto archive = in_ram();
    CHECK(archive.n_bytes() == 0);
    append(archive, 0, 3 * N_PAGE);
    // an index begins with room for 64 pages
    CHECK(archive.n_bytes() == 3 * archive.layout.page_bytes + 64 * (2 * 34 + 2 * 34));
}

TEST_CASE(keys_that_fill_no_block_have_an_index_of_16_bits) {
    morphkv_page_layout layout(GGML_TYPE_F16, GGML_TYPE_F16);
    layout.add_layer(2, 80, 80);
    layout.add_layer(2, 96, 80);
    CHECK(layout.index_type(0) == GGML_TYPE_F16 && layout.index_bytes(0) == 2 * 80 * 2);
    CHECK(layout.index_type(1) == GGML_TYPE_Q8_0 && layout.index_bytes(1) == 2 * 3 * 34);
    morphkv_archive       archive(layout, morphkv_page_store_ram(), 0);
    morphkv_archive::rows rows;
    for (size_t il = 0; il < 2; ++il) {
        const std::vector<float> values(N_PAGE * 2 * 96, il + 1.0f);
        rows.k.emplace_back(N_PAGE * layout.k_bytes(il));
        rows.v.emplace_back(N_PAGE * layout.v_bytes(il));
        morphkv_convert_rows(GGML_TYPE_F32, values.data(), GGML_TYPE_F16, rows.k[il].data(), N_PAGE * 2,
                             layout.layers[il].n_embd_k);
    }
    archive.append(0, N_PAGE, rows);
    for (size_t il = 0; il < 2; ++il) {
        for (const float mean : index_row(archive, il, 0)) {
            CHECK(std::abs(mean - (il + 1.0f)) < 0.002f);
        }
    }
}

//
// what makes room
//

TEST_CASE(the_oldest_pages_make_room) {
    auto archive = in_ram(5);
    for (int32_t serial = 0; serial < 20 * N_PAGE; serial += 24) {
        append(archive, serial, 24);
        CHECK(archive.n_full() - archive.n_dropped() == std::min<int64_t>(archive.n_full(), 5));
        CHECK(archive.n_places() <= 5);
        CHECK(archive.n_held() == archive.end() - archive.n_dropped() * N_PAGE);
        check_pages(archive);
    }
    CHECK(archive.n_dropped() == 16);
}

TEST_CASE(a_limit_below_a_page_holds_one) {
    morphkv_archive archive(small_layout(), morphkv_page_store_ram(), 1);
    append(archive, 0, 3 * N_PAGE + 1);
    CHECK(archive.n_full() == 3 && archive.n_dropped() == 2 && archive.page_in(0) == 2);
    check_pages(archive);
}

TEST_CASE(a_new_page_comes_into_the_place_of_the_oldest) {
    auto archive = in_ram(3);
    append(archive, 0, 4 * N_PAGE);
    CHECK(archive.page_in(0) == 3 && archive.page_in(1) == 1 && archive.page_in(2) == 2);
}

//
// copies
//

TEST_CASE(a_copy_has_the_same_and_goes_on) {
    auto archive = in_ram(), copy = in_ram();
    append(archive, 3, 70);
    append(copy, 500, 40, 1);
    copy.copy(archive);
    CHECK(copy.end() == 73 && copy.get_tail() == archive.get_tail() && copy.n_held() == 70);
    check_pages(copy);
    append(copy, 73, 100);
    check_pages(copy);
    CHECK(archive.end() == 73);
}

TEST_CASE(copies_in_memory_share_their_pages) {
    auto archive = in_ram(), copy = in_ram();
    append(archive, 0, N_PAGE);
    copy.copy(archive);
    CHECK(copy.find_page(0) == archive.find_page(0));
}

// A long text is forked without a look at its pages: they have their hash and their row of the index.
TEST_CASE(a_copy_takes_hashes_and_index_as_they_are) {
    auto archive = in_ram(), copy = in_ram();
    append(archive, 0, 3 * N_PAGE);

    constexpr uint64_t     NOT_ITS_HASH = 12345;
    morphkv_archive_header header       = archive.get_header();
    auto                   marked       = in_ram();
    marked.load(header,
                { { archive.find_page(0), NOT_ITS_HASH }, { archive.find_page(1), 0 }, { archive.find_page(2), 0 } },
                archive.get_tail());
    CHECK(marked.hash_of(0) == NOT_ITS_HASH && marked.hash_of(1) == archive.hash_of(1));
    const size_t n = archive.layout.index_bytes(0);
    memset((char *) marked.index_rows(0) + n, 7, n);
    copy.copy(marked);
    CHECK(copy.hash_of(0) == NOT_ITS_HASH && copy.find_page(2) == archive.find_page(2));
    CHECK(memcmp(copy.index_rows(0), marked.index_rows(0), 3 * n) == 0);
}

TEST_CASE(a_copy_of_nothing_is_empty) {
    auto archive = in_ram(), copy = in_ram();
    append(copy, 0, 40);
    copy.copy(archive);
    CHECK(copy.end() == -1 && copy.n_places() == 0);
}

TEST_CASE(a_copy_with_less_room_has_the_newest_pages) {
    auto archive = in_ram(5), smaller = in_ram(2);
    append(archive, 0, 300);
    smaller.copy(archive);
    CHECK(smaller.n_full() == 18 && smaller.n_dropped() == 16 && smaller.end() == 300);
    check_pages(smaller);
    append(smaller, 300, 100);
    check_pages(smaller);
}

TEST_CASE(a_copy_without_a_limit_has_a_place_for_each_page_from_the_oldest_on) {
    auto archive = in_ram(5), unbounded = in_ram();
    append(archive, 0, 300);
    unbounded.copy(archive);
    CHECK(unbounded.n_places() == 5);
    append(unbounded, 300, 100);
    CHECK(unbounded.n_places() == 12);
    check_pages(unbounded);
}

TEST_CASE(the_index_of_a_copy_with_more_room_has_a_row_for_each_place) {
    auto archive = in_ram(5), larger = in_ram(200);
    for (int32_t serial = 0; serial < 1495 * N_PAGE; serial += 5 * N_PAGE) {
        append(archive, serial, 5 * N_PAGE);
    }
    larger.copy(archive);
    CHECK(larger.n_dropped() == 1490 && larger.n_places() == 5);
    check_pages(larger);
    append(larger, larger.end(), 300 * N_PAGE);
    CHECK(larger.n_places() == 200);
    check_pages(larger);
    // none of its pages is left
    larger.truncate(larger.serial_of(larger.n_dropped()) + 3);
    CHECK(larger.n_places() == 0);
    archive.copy(larger);
    append(archive, archive.end(), 70 * N_PAGE);
    check_pages(archive);
}

TEST_CASE(a_copy_of_what_has_stopped_has_stopped) {
    auto archive = in_ram(), copy = in_ram();
    append(archive, 0, 40);
    archive.stop("a disk is full");
    copy.copy(archive);
    CHECK(copy.why_stopped() == "a disk is full" && copy.end() == 40);
}

//
// what is taken back
//

TEST_CASE(behind_the_end_nothing_is_taken_back) {
    auto archive = in_ram();
    append(archive, 10, 100);
    archive.truncate(110);
    archive.truncate(200);
    CHECK(archive.end() == 110);
}

TEST_CASE(a_full_page_can_be_opened_again) {
    auto archive = in_ram();
    append(archive, 10, 100);
    archive.truncate(10 + 3 * N_PAGE + 5);
    CHECK(archive.end() == 10 + 3 * N_PAGE + 5 && archive.n_full() == 3);
    append(archive, archive.end(), 60);
    check_pages(archive);
}

TEST_CASE(tokens_of_the_tail_can_be_taken_back) {
    auto archive = in_ram();
    append(archive, 0, N_PAGE + 9);
    archive.truncate(N_PAGE + 2);
    CHECK(archive.end() == N_PAGE + 2);
    append(archive, N_PAGE + 2, N_PAGE);
    check_pages(archive);
}

TEST_CASE(what_is_taken_back_to_a_page_leaves_full_ones) {
    auto archive = in_ram();
    append(archive, 0, 3 * N_PAGE);
    archive.truncate(2 * N_PAGE);
    CHECK(archive.n_full() == 2 && archive.end() == 2 * N_PAGE);
    check_pages(archive);
}

TEST_CASE(all_taken_back_is_empty) {
    auto archive = in_ram();
    append(archive, 10, 100);
    archive.truncate(10);
    CHECK(archive.end() == -1);
    append(archive, 10, 100);
    archive.truncate(0);
    CHECK(archive.end() == -1 && archive.n_places() == 0);
    append(archive, 4, 40, 1);
    check_pages(archive, 1);
}

TEST_CASE(behind_a_page_that_made_room_nothing_is_left) {
    auto archive = in_ram(2);
    append(archive, 0, 5 * N_PAGE);
    archive.truncate(2 * N_PAGE);
    CHECK(archive.end() == -1 && archive.n_dropped() == 0);
}

TEST_CASE(a_cleared_archive_begins_anew) {
    auto archive = in_ram();
    append(archive, 0, 100);
    archive.clear();
    CHECK(archive.end() == -1 && archive.n_places() == 0);
    append(archive, 0, 20, 1);
    check_pages(archive, 1);
}

TEST_CASE(equal_archives_have_equal_bytes) {
    auto archive = in_ram(), other = in_ram();
    append(archive, 0, N_PAGE + 12);
    archive.truncate(N_PAGE + 3);
    append(other, 0, N_PAGE + 3);
    CHECK(archive.get_tail() == other.get_tail() && archive.hash_of(0) == other.hash_of(0));
    CHECK(memcmp(&archive.get_header(), &other.get_header(), sizeof(morphkv_archive_header)) == 0);
}

//
// checkpoints
//

TEST_CASE(it_goes_back_to_a_checkpoint) {
    auto archive = in_ram();
    append(archive, 0, 70);
    const auto header = archive.get_header();
    const auto tail   = archive.get_tail();
    append(archive, 70, 50);
    CHECK(archive.go_back(header, tail) && archive.end() == 70);
    append(archive, 70, 90);
    check_pages(archive);
}

TEST_CASE(it_goes_forward_to_a_checkpoint_that_had_more_of_a_page) {
    auto archive = in_ram();
    append(archive, 0, 70);
    const auto header = archive.get_header();
    const auto tail   = archive.get_tail();
    archive.truncate(66);
    CHECK(archive.go_back(header, tail) && archive.end() == 70);
    append(archive, 70, 40);
    check_pages(archive);
}

TEST_CASE(of_another_text_it_knows_no_checkpoint) {
    auto archive = in_ram();
    append(archive, 0, 70);
    const auto header = archive.get_header();
    const auto tail   = archive.get_tail();
    archive.clear();
    append(archive, 0, 160, 1);
    CHECK(!archive.go_back(header, tail) && archive.end() == -1);
}

TEST_CASE(it_does_not_go_back_behind_pages_that_made_room) {
    auto archive = in_ram(2);
    append(archive, 0, 3 * N_PAGE + 2);
    const auto header = archive.get_header();
    const auto tail   = archive.get_tail();
    append(archive, 3 * N_PAGE + 2, N_PAGE);  // page 2 and 3 are there
    CHECK(archive.go_back(header, tail) && archive.n_dropped() == 2 && archive.end() == 3 * N_PAGE + 2);
    check_pages(archive);
    append(archive, 3 * N_PAGE + 2, 4 * N_PAGE);
    CHECK(!archive.go_back(header, tail) && archive.end() == -1);
}

TEST_CASE(it_does_not_go_back_to_a_page_that_was_not_full_and_made_room) {
    auto archive = in_ram(2);
    append(archive, 0, 5);
    const auto header = archive.get_header();
    const auto tail   = archive.get_tail();
    append(archive, 5, 5 * N_PAGE);
    CHECK(!archive.go_back(header, tail) && archive.end() == -1);
}

TEST_CASE(a_checkpoint_further_than_the_pages_is_not_known) {
    auto archive = in_ram();
    append(archive, 0, 5 * N_PAGE);
    const auto header = archive.get_header();
    const auto tail   = archive.get_tail();
    archive.truncate(2 * N_PAGE);
    CHECK(!archive.go_back(header, tail) && archive.end() == -1);
}

//
// headers
//

static bool is_refused(int32_t first, int64_t n_tokens, int64_t dropped, int32_t zero = 0) {
    morphkv_archive_header header;
    header.first    = first;
    header.n_tokens = n_tokens;
    header.dropped  = dropped;
    header.zero     = zero;
    return !header.why_not().empty();
}

TEST_CASE(headers_of_archives_are_right) {
    CHECK(!is_refused(-1, 0, 0) && !is_refused(0, 1, 0) && !is_refused(5, 32, 2));
}

TEST_CASE(an_archive_begins_where_it_has_tokens) {
    CHECK(is_refused(-2, 0, 0) && is_refused(0, 0, 0) && is_refused(-1, 1, 0) && is_refused(INT32_MAX, 16, 0));
    CHECK(is_refused(0, 16, 0, 1));
}

TEST_CASE(an_archive_has_a_number_of_tokens) {
    CHECK(is_refused(0, -1, 0) && is_refused(0, int64_t(1) << 40, 0));
}

TEST_CASE(only_full_pages_make_room) {
    CHECK(is_refused(0, 31, 2) && is_refused(0, 16, -1));
}
