// Knowledge: a file that is written once, opened by many, and believed in nothing that is damaged.

#include "case.h"
#include "core/knowledge.h"
#include "core/sources.h"
#include "filled_archive.h"
#include "morphkv-testing.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

static constexpr uint64_t MODEL = 4711;

struct temporary_file {
    temporary_file() { remove(); }

    ~temporary_file() { remove(); }

    void remove() const {
        std::filesystem::remove(path);
        std::filesystem::remove(path + ".part");
    }

    std::string bytes() const {
        std::ifstream file(path, std::ios::binary);
        return { std::istreambuf_iterator<char>(file), {} };
    }

    void write(const std::string & bytes) const {
        std::ofstream file(path, std::ios::binary | std::ios::trunc);
        file << bytes;
        CHECK(file.good());
    }

    const std::string path = "test_knowledge.tmp";
};

static std::vector<int32_t> ids(int32_t n) {
    std::vector<int32_t> res;
    for (int32_t i = 0; i < n; ++i) {
        res.push_back(7 * i);
    }
    return res;
}

static void write(const temporary_file & file, int32_t n_pages, int32_t text = 0) {
    auto archive = in_ram();
    append(archive, 0, n_pages * N_PAGE, text);
    morphkv_write_knowledge(file.path, archive, MODEL, ids(n_pages * N_PAGE));
}

static std::string refusal(const temporary_file & file, const morphkv_page_layout & layout = small_layout(),
                           uint64_t model = MODEL) {
    return error_of([&] { morphkv_knowledge(file.path, layout, model); });
}

// Its pages and its index are those of an archive with the same tokens.
static void check_same(const morphkv_knowledge & file, int32_t n_pages,
                       const morphkv_page_layout & layout = small_layout()) {
    morphkv_archive archive(layout, morphkv_page_store_ram(), 0);
    append(archive, 0, n_pages * N_PAGE);
    CHECK(file.n_pages() == n_pages && file.n_tokens() == n_pages * N_PAGE && file.is_index_right());
    for (int64_t i = 0; i < n_pages; ++i) {
        const auto page = file.find_page(i);
        CHECK(page && *page == *archive.find_page(i) && !file.is_damaged(i));
    }
    for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
        CHECK((size_t) file.index_rows(il) % 64 == 0);
        CHECK(memcmp(file.index_rows(il), archive.index_rows(il), n_pages * archive.layout.index_bytes(il)) == 0);
    }
    CHECK(file.get_tokens(0, n_pages * N_PAGE) == ids(n_pages * N_PAGE));
    CHECK(file.get_tokens(17, 2) == std::vector<int32_t>({ 119, 126 }));
    CHECK(file.take_news().empty());
}

TEST_CASE(what_is_written_is_what_is_read_by_two_at_once) {
    temporary_file file;
    write(file, 9);
    const morphkv_knowledge one(file.path, small_layout(), MODEL), other(file.path, small_layout(), MODEL);
    check_same(one, 9);
    check_same(other, 9);
    CHECK(one.get_id() == other.get_id() && one.get_path() == file.path);
    CHECK(one.get_bytes() == (int64_t) std::filesystem::file_size(file.path));
    CHECK(!std::filesystem::exists(file.path + ".part"));
}

TEST_CASE(an_id_is_that_of_the_content) {
    temporary_file file;
    auto           id = [&](int32_t n_pages, int32_t text) {
        write(file, n_pages, text);
        return morphkv_knowledge(file.path, small_layout(), MODEL).get_id();
    };
    const uint64_t first = id(3, 0);
    CHECK(first == id(3, 0));
    CHECK(first != id(4, 0) && first != id(3, 1));
}

TEST_CASE(pages_come_in_the_types_of_the_archive_beside_it) {
    temporary_file file;
    write(file, 2);
    const auto              layout = small_layout(GGML_TYPE_F16);
    const morphkv_knowledge read(file.path, layout, MODEL);
    const auto              page = read.find_page(1);
    CHECK(page && page->size() == layout.page_bytes);
    const auto * k = (const ggml_fp16_t *) (page->data() + layout.layers[0].k_at);
    CHECK(ggml_fp16_to_fp32(k[3]) == ggml_fp16_to_fp32(ggml_fp32_to_fp16(value_of(16, 0, true, 3))));
}

TEST_CASE(each_has_its_layers_in_its_own_order) {
    temporary_file file;
    CHECK(swapped_layout().hash() != small_layout().hash());
    write(file, 3);
    check_same(morphkv_knowledge(file.path, swapped_layout(), MODEL), 3, swapped_layout());
    const std::string bytes = file.bytes();

    morphkv_archive archive(swapped_layout(), morphkv_page_store_ram(), 0);
    append(archive, 0, 3 * N_PAGE);
    morphkv_write_knowledge(file.path, archive, MODEL, ids(3 * N_PAGE));
    CHECK(file.bytes() == bytes);
    check_same(morphkv_knowledge(file.path, small_layout(), MODEL), 3);
}

TEST_CASE(an_older_file_is_there_until_the_new_one_is) {
    temporary_file file;
    write(file, 2);
    const std::string before  = file.bytes();
    auto              archive = in_ram();
    append(archive, 0, 3 * N_PAGE);
    // each call of the system in turn
    for (int32_t i = 1;; ++i) {
        morphkv_testing_fail_store(i, ENOSPC);
        const std::string why = error_of([&] { morphkv_write_knowledge(file.path, archive, MODEL, ids(3 * N_PAGE)); });
        morphkv_testing_fail_store(0, 0);
        CHECK(!std::filesystem::exists(file.path + ".part"));
        if (why.empty()) {
            CHECK(i > 5);
            break;
        }
        CHECK(file.bytes() == before);
        archive.clear();  // a page that could not be read is not tried again
        append(archive, 0, 3 * N_PAGE);
    }
    check_same(morphkv_knowledge(file.path, small_layout(), MODEL), 3);
}

TEST_CASE(what_cannot_be_written) {
    temporary_file file;
    auto           archive = in_ram();
    auto           why     = [&](int32_t n) {
        return error_of([&] { morphkv_write_knowledge(file.path, archive, MODEL, ids(n)); });
    };
    CHECK(has(why(0), "whole pages of 16 tokens"));
    append(archive, 0, 40);
    CHECK(has(why(40), "whole pages of 16 tokens, got 40"));
    append(archive, 40, 8);
    CHECK(has(why(40), "whole pages"));
    CHECK(why(48).empty());
    auto small = in_ram(2);
    append(small, 0, 48);
    CHECK(has(error_of([&] { morphkv_write_knowledge(file.path, small, MODEL, ids(48)); }), "max_bytes"));
}

TEST_CASE(other_files_and_models_are_refused) {
    temporary_file file;
    CHECK(has(refusal(file), (file.path + " cannot be opened").c_str()));
    file.write(
        "no archive, as anyone can see who looks at what is in here, and it is long enough, or nearly, for a header, "
        "which has about 120 bytes");
    CHECK(has(refusal(file), "is no archive that a text was read into"));
    write(file, 2);
    CHECK(refusal(file).empty());
    CHECK(has(refusal(file, small_layout(), 4712), "another model"));
    morphkv_page_layout other(GGML_TYPE_F32, GGML_TYPE_F32);
    other.add_layer(2, 32, 32);
    CHECK(has(refusal(file, other), "another model"));
    std::string bytes = file.bytes();
    bytes[16]         = 1;  // version
    file.write(bytes);
    CHECK(has(refusal(file), "version 2, got 1"));
}

TEST_CASE(every_length_but_its_own_is_refused) {
    temporary_file file;
    write(file, 2);
    const std::string bytes = file.bytes();
    for (size_t n = 0; n < bytes.size(); n += n < 200 ? 7 : 997) {
        file.write(bytes.substr(0, n));
        CHECK(has(refusal(file), file.path.c_str()));
    }
    file.write(bytes.substr(0, bytes.size() - 1));
    CHECK(has(refusal(file), "truncated"));
    file.write(bytes + "x");
    CHECK(has(refusal(file), "must have"));
}

// A byte of each part, and every one of the header: it is refused, or what is damaged is not given.
TEST_CASE(no_byte_can_be_another_one_unseen) {
    temporary_file file;
    write(file, 3);
    const std::string right   = file.bytes();
    int64_t           n_found = 0;
    for (size_t at = 0; at < right.size(); at += at < 200 ? 1 : 61) {
        std::string bytes = right;
        bytes[at]         = bytes[at] ^ 0x10;
        file.write(bytes);
        if (!refusal(file).empty()) {
            n_found++;
            continue;
        }
        const morphkv_knowledge read(file.path, small_layout(), MODEL);
        auto                    archive = in_ram();
        append(archive, 0, 3 * N_PAGE);
        int32_t n_lost = 0;
        for (int64_t i = 0; i < 3; ++i) {
            const auto page = read.find_page(i);
            CHECK(!page || *page == *archive.find_page(i));
            n_lost += !page;
            CHECK(read.is_damaged(i) == !page);
        }
        n_lost += !read.is_index_right();
        const std::string why        = error_of([&] { CHECK(read.get_tokens(0, 48) == ids(48)); });
        const bool        is_padding = n_lost == 0 && why.empty();  // between the parts
        CHECK(is_padding ? bytes[at] == 0x10 : n_lost + !why.empty() == 1);
        CHECK(has(read.take_news(), "damaged") == (n_lost > 0));
        n_found += !is_padding;
    }
    CHECK(n_found > 200);
}

TEST_CASE(sources_have_one_numbering) {
    temporary_file file;
    write(file, 3);
    const morphkv_attached files = { std::make_shared<morphkv_knowledge>(file.path, small_layout(), MODEL),
                                     std::make_shared<morphkv_knowledge>(file.path, small_layout(), MODEL) };
    auto                   own   = in_ram();
    append(own, 0, 40);
    const morphkv_sources sources(own, files);
    CHECK(sources.n_attached() == 6 && sources.n_pages() == 8 && sources.all().size() == 3);
    int32_t last = INT32_MIN;
    for (int64_t page = -6; page < 2; ++page) {
        CHECK(sources.source_of(page) == (page < -3 ? 0u : page < 0 ? 1u : 2u));
        const int32_t first = sources.serial_of(page);
        CHECK(first > last);
        for (int32_t i = 0; i < N_PAGE; ++i) {
            CHECK(first + i != -1 && sources.page_of(first + i) == page);
        }
        last = first + N_PAGE - 1;
        CHECK(*sources.find_page(page) == *own.find_page(page < 0 ? 0 : page) || page != 0);
    }
    CHECK(*sources.find_page(-6) == *own.find_page(0) && *sources.find_page(-2) == *own.find_page(1));
    CHECK(sources.serial_of(-6) == morphkv_sources::first_serial(6));
    CHECK(sources.page_of(sources.serial_of(-6) - 1) == morphkv_sources::NONE);
    CHECK(sources.page_of(-1) == morphkv_sources::NONE && !sources.holds(2) && !sources.holds(-7));
    const morphkv_sources alone(own);
    CHECK(alone.page_of(-17) == morphkv_sources::NONE && alone.n_pages() == 2);
    CHECK(morphkv_sources(nullptr).n_pages() == 0);
}
