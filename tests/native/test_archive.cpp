// An archive on its own: what is appended is there, bounded, in memory or in a file that survives its process.

#include "support/check.h"

#include "core/archives.h"

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#ifndef _WIN32
#include <csignal>
#include <sys/resource.h>
#include <unistd.h>
#endif

static constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

// Two layers of other widths.
static morphkv_page_layout small_layout(ggml_type type = GGML_TYPE_F32) {
    morphkv_page_layout res(type, type);
    res.add_layer(2, 32, 32);
    res.add_layer(1, 64, 32);
    return res;
}

static morphkv_archive in_ram(uint64_t max_bytes = 0) {
    return morphkv_archive(small_layout(), morphkv_page_store_ram(), max_bytes);
}

static morphkv_archive in_file(const std::string & path, uint64_t max_bytes = 0) {
    return morphkv_archive(small_layout(), morphkv_page_store_file(path, small_layout()), max_bytes);
}

// A value that tells where it belongs. text: another one has other values.
static float value_of(int32_t pos, size_t il, bool is_k, size_t i, int32_t text = 0) {
    return pos + 0.25f * il + 0.125f * is_k + i / 512.0f + text * 100000.0f;
}

static morphkv_archive::rows rows_of(const morphkv_page_layout & layout, int32_t first, int32_t n, int32_t text = 0) {
    morphkv_archive::rows res;
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        auto make = [&](size_t n_values, bool is_k) {
            std::vector<float> values;
            for (int32_t t = 0; t < n; ++t) {
                for (size_t i = 0; i < n_values; ++i) {
                    values.push_back(value_of(first + t, il, is_k, i, text));
                }
            }
            std::vector<uint8_t> bytes(values.size() * sizeof(float));
            memcpy(bytes.data(), values.data(), bytes.size());
            return bytes;
        };
        res.k.push_back(make(layout.k_bytes(il) / sizeof(float), true));
        res.v.push_back(make(layout.v_bytes(il) / sizeof(float), false));
    }
    return res;
}

static void append(morphkv_archive & archive, int32_t first, int32_t n, int32_t text = 0) {
    archive.append(first, n, rows_of(archive.layout, first, n, text));
}

// Every full page that is there has the right rows, and the index has their means.
static void check_pages(const morphkv_archive & archive, int32_t text = 0) {
    for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
        const size_t nk      = archive.layout.k_bytes(il) / sizeof(float);
        const size_t nv      = archive.layout.v_bytes(il) / sizeof(float);
        const auto * index   = (const ggml_fp16_t *) (archive.n_places() > 0 ? archive.index_rows(il) : nullptr);
        int64_t      n_found = 0;
        for (int64_t i_place = 0; i_place < archive.n_places(); ++i_place) {
            const int64_t i_page = archive.page_in(i_place);
            if (i_page < 0) {
                continue;
            }
            n_found++;
            CHECK(i_page >= archive.n_dropped() && i_page < archive.n_full());
            const auto page = archive.find_page(i_page);
            CHECK(page && page->size() == archive.layout.page_bytes);
            const auto * k = (const float *) (page->data() + archive.layout.layers[il].k_at);
            const auto * v = (const float *) (page->data() + archive.layout.layers[il].v_at);
            for (int32_t t = 0; t < N_PAGE; ++t) {
                const int32_t pos = archive.serial_of(i_page) + t;
                CHECK(k[t * nk + 3] == value_of(pos, il, true, 3, text));
                CHECK(v[t * nv + nv - 1] == value_of(pos, il, false, nv - 1, text));
            }
            const float mean = ggml_fp16_to_fp32(index[i_place * nk + 3]);
            const float want = value_of(archive.serial_of(i_page), il, true, 3, text) + (N_PAGE - 1) / 2.0f;
            CHECK(want > 60000.0f || std::abs(mean - want) <= want / 1000.0f);
        }
        CHECK(n_found == archive.n_full() - archive.n_dropped());
    }
}

static void test_appended_tokens_are_there() {
    auto archive = in_ram();
    CHECK(archive.end() == -1 && archive.n_held() == 0 && archive.n_places() == 0);
    // begins anywhere; pages fill across calls
    int32_t pos = 7;
    for (const int32_t n : { 1, 15, 3, 40, 16, 128 }) {
        append(archive, pos, n);
        pos += n;
        CHECK(archive.end() == pos && archive.n_held() == pos - 7 && archive.n_full() == (pos - 7) / N_PAGE);
        check_pages(archive);
    }
    CHECK(archive.n_bytes() >= archive.n_full() * archive.layout.page_bytes);
    // more pages than the index began with
    append(archive, pos, 100 * N_PAGE);
    check_pages(archive);
    archive.clear();
    CHECK(archive.end() == -1 && archive.n_places() == 0);
    append(archive, 0, 20, 1);
    check_pages(archive, 1);
}

static void test_oldest_pages_make_room() {
    const auto     layout     = small_layout();
    const uint64_t page_bytes = layout.page_bytes + 2 * (2 * 32 + 64);
    auto           archive    = in_ram(5 * page_bytes + 1);
    for (int32_t pos = 0; pos < 20 * N_PAGE; pos += 24) {
        append(archive, pos, 24);
        CHECK(archive.n_full() - archive.n_dropped() == std::min<int64_t>(archive.n_full(), 5));
        CHECK(archive.n_places() <= 5);
        CHECK(archive.n_held() == archive.end() - archive.n_dropped() * N_PAGE);
        check_pages(archive);
    }
    CHECK(archive.n_dropped() > 10);
    // a copy has the same; one that has no limit as well
    auto bounded = in_ram(5 * page_bytes + 1), smaller = in_ram(2 * page_bytes), unbounded = in_ram();
    for (auto * copy : { &bounded, &smaller, &unbounded }) {
        append(*copy, 500, 40, 1);
        copy->copy(archive);
        CHECK(copy->end() == archive.end() && copy->get_tail() == archive.get_tail());
        check_pages(*copy);
        append(*copy, archive.end(), 100);
        check_pages(*copy);
    }
    CHECK(unbounded.n_places() >= 5 && unbounded.n_places() < 15);
    CHECK(smaller.n_full() - smaller.n_dropped() == 2);
}

// The newest pages of a long text come into an archive with room for more: its index has a row for each place.
static void test_a_copy_with_more_room() {
    const uint64_t page_bytes = small_layout().page_bytes + 2 * (2 * 32 + 64);
    auto           archive = in_ram(5 * page_bytes + 1), larger = in_ram(200 * page_bytes);
    for (int32_t pos = 0; pos < 1495 * N_PAGE; pos += 5 * N_PAGE) {
        append(archive, pos, 5 * N_PAGE);
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

static void test_what_is_taken_back_is_gone() {
    auto archive = in_ram();
    append(archive, 10, 100);
    archive.truncate(200);
    CHECK(archive.end() == 110);
    archive.truncate(10 + 3 * N_PAGE + 5);  // in the middle of a page that was full
    CHECK(archive.end() == 10 + 3 * N_PAGE + 5 && archive.n_full() == 3);
    append(archive, archive.end(), 60);
    check_pages(archive);
    archive.truncate(10);
    CHECK(archive.end() == -1);
}

static void test_it_goes_back_to_a_checkpoint() {
    auto archive = in_ram();
    append(archive, 0, 70);
    const auto header = archive.get_header();
    const auto tail   = archive.get_tail();
    append(archive, 70, 50);
    CHECK(archive.go_back(header, tail));
    CHECK(archive.end() == 70);
    append(archive, 70, 90);
    check_pages(archive);
    // another text has been here since
    archive.clear();
    append(archive, 0, 160, 1);
    CHECK(!archive.go_back(header, tail) && archive.end() == -1);
}

static void test_headers_that_no_archive_has() {
    auto refused = [](int32_t first, int64_t n_tokens, int64_t dropped) {
        morphkv_archive_header header;
        header.first    = first;
        header.n_tokens = n_tokens;
        header.dropped  = dropped;
        return !header.why_not().empty();
    };
    CHECK(!refused(-1, 0, 0) && !refused(0, 1, 0) && !refused(5, 32, 2));
    CHECK(refused(-2, 0, 0) && refused(0, 0, 0) && refused(-1, 1, 0) && refused(0, -1, 0));
    CHECK(refused(0, 31, 2) && refused(0, 16, -1) && refused(0, int64_t(1) << 40, 0) && refused(INT32_MAX, 16, 0));
}

#ifndef _WIN32

static std::string error_of(const std::function<void()> & call) {
    try {
        call();
    } catch (const std::exception & error) {
        return error.what();
    }
    return "";
}

static bool has(const std::string & text, const char * part) {
    return text.find(part) != std::string::npos;
}

static void test_a_file_survives_its_process(const std::string & path) {
    unlink(path.c_str());
    morphkv_archive_header header;
    morphkv_page           tail;
    {
        auto archive = in_file(path);
        append(archive, 0, 100);
        check_pages(archive);
        header = archive.get_header();
        tail   = archive.get_tail();
        append(archive, 100, 60);
        CHECK(has(error_of([&] { in_file(path); }), "in use"));
    }
    {
        // full pages are found, and a checkpoint of before goes on
        auto archive = in_file(path);
        CHECK(archive.n_full() == 10);
        check_pages(archive);
        CHECK(archive.go_back(header, tail) && archive.end() == 100);
        append(archive, 100, 200);
        check_pages(archive);
    }
    // another text begins it anew
    auto archive = in_file(path);
    archive.clear();
    append(archive, 3, 50, 1);
    check_pages(archive, 1);
}

static void test_a_bounded_file(const std::string & path) {
    unlink(path.c_str());
    const uint64_t limit = 5 * (small_layout().page_bytes + 2 * (2 * 32 + 64));
    {
        auto archive = in_file(path, limit);
        append(archive, 0, 200);
        CHECK(archive.n_dropped() == 7);
    }
    {
        auto archive = in_file(path, limit);
        CHECK(archive.n_full() == 12 && archive.n_dropped() == 7);
        check_pages(archive);
    }
    // killed between a page and its header: the oldest place has a page that nobody counted
    {
        auto       store = morphkv_page_store_file(path, small_layout());
        const auto page  = store->get(0, 10, store->record_in(0).hash);
        store->put(12 % 5, 12, morphkv_hash_page(*page), page);
    }
    auto archive = in_file(path, limit);
    CHECK(archive.n_full() == 12 && archive.n_dropped() == 8);
    check_pages(archive);
}

// A file that was written with one limit and goes on with another, whatever has been in it: the newest pages that fit are
// there, the bound holds, and the next text has the new one.
static void test_another_bound(const std::string & path) {
    const uint64_t page = small_layout().page_bytes + 2 * (2 * 32 + 64);
    for (const int32_t n_tokens : { 50, 200, 333 }) {
        for (const uint64_t before : { 0, 3, 5, 8, 40 }) {
            for (const uint64_t after : { 0, 1, 3, 5, 8, 40 }) {
                unlink(path.c_str());
                int64_t n_before = 0;
                {
                    auto archive = in_file(path, before * page);
                    append(archive, 7, 130, 1);
                    archive.clear();
                    append(archive, 0, n_tokens);
                    n_before = archive.n_full() - archive.n_dropped();
                }
                for (int i = 0; i < 2; ++i) {
                    auto archive = in_file(path, after * page);
                    CHECK(archive.n_full() - archive.n_dropped() ==
                          (after == 0 ? n_before : std::min<int64_t>(n_before, after)));
                    check_pages(archive);
                    append(archive, archive.end(), 100);
                    n_before = archive.n_full() - archive.n_dropped();
                    CHECK(after == 0 || n_before <= (int64_t) after);
                    check_pages(archive);
                }
                auto archive = in_file(path, after * page);
                archive.clear();
                append(archive, 0, 700, 1);
                CHECK(archive.n_full() - archive.n_dropped() == (after == 0 ? 43 : std::min<int64_t>(43, after)));
                check_pages(archive, 1);
            }
        }
    }
}

static void write_at(const std::string & path, int64_t at, const std::string & bytes) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file << bytes;
    CHECK(file.good());
}

static void test_other_files_are_refused_and_left_alone(const std::string & path) {
    auto begin = [&] {
        unlink(path.c_str());
        auto archive = in_file(path);
        append(archive, 0, 100);
    };
    auto refusal = [&] {
        return error_of([&] { in_file(path); });
    };
    begin();
    CHECK(refusal().empty());
    CHECK(truncate(path.c_str(), 4096 + 3 * small_layout().page_bytes) == 0);
    CHECK(has(refusal(), "truncated"));
    CHECK(truncate(path.c_str(), 20) == 0);
    CHECK(has(refusal(), "truncated"));

    begin();
    write_at(path, 4096 + small_layout().page_bytes + 700, "damage");
    CHECK(has(refusal(), "checksum"));

    begin();
    CHECK(has(error_of([&] { morphkv_page_store_file(path, small_layout(GGML_TYPE_F16)); }), "another"));
    write_at(path, 32, std::string(16, '\xff'));
    CHECK(has(refusal(), "damaged"));

    {
        std::ofstream file(path);
        file << "My letters, which are no archive, but are longer than the header of one would be.";
    }
    CHECK(has(refusal(), "no archive"));
    std::ifstream file(path);
    std::string   word;
    CHECK(file >> word && word == "My");
    CHECK(has(error_of([&] { in_file(path + "/in/no/folder"); }), "cannot be opened"));
}

static void test_a_full_disk_stops_it(const std::string & path) {
    unlink(path.c_str());
    auto          archive = in_file(path);
    // as a full disk: a write that fails
    struct rlimit before, small;
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small          = before;
    small.rlim_cur = 4096 + 4 * (small_layout().page_bytes + 16) + 100;
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

// Pages are put when the test lets them.
class gate {
public:
    void open() {
        std::lock_guard lock(mutex);
        is_open = true;
        changed.notify_all();
    }

    void pass() {
        std::unique_lock lock(mutex);
        n_waiting++;
        changed.notify_all();
        changed.wait(lock, [&] { return is_open; });
    }

    bool is_passed() {
        std::lock_guard lock(mutex);
        return is_open;
    }

    void wait_for_someone() {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return n_waiting > 0; });
    }

private:
    std::mutex              mutex;
    std::condition_variable changed;
    bool                    is_open   = false;
    int                     n_waiting = 0;
};

class gated_store : public morphkv_page_store {
public:
    gated_store(gate & gate, bool fails) : gate_(gate), fails(fails) {}

    void put(size_t i_place, int64_t i_page, uint64_t hash, std::shared_ptr<const morphkv_page> page) override {
        gate_.pass();
        if (fails) {
            throw std::runtime_error("the disk is on fire");
        }
        pages->put(i_place, i_page, hash, std::move(page));
    }

    std::shared_ptr<const morphkv_page> get(size_t i_place, int64_t i_page, uint64_t hash) const override {
        return pages->get(i_place, i_page, hash);
    }

    void commit(const morphkv_archive_header & header, const morphkv_page_places & places) override {
        pages->commit(header, places);
    }

    record record_in(size_t i_place) const override { return pages->record_in(i_place); }

private:
    gate &                              gate_;
    bool                                fails;
    std::unique_ptr<morphkv_page_store> pages = morphkv_page_store_ram();
};

// What the user is told.
static std::string g_news;

static morphkv_archives gated_archives(gate & gate, bool fails) {
    std::vector<std::unique_ptr<morphkv_archive>> all;
    all.push_back(std::make_unique<morphkv_archive>(small_layout(), std::make_unique<gated_store>(gate, fails), 0));
    all.push_back(std::make_unique<morphkv_archive>(small_layout(), morphkv_page_store_ram(), 0));
    const morphkv_staging staging(small_layout(), 100, GGML_TYPE_F32, GGML_TYPE_F32);
    auto                  alloc = [](size_t n_bytes) {
        return std::shared_ptr<char>(new char[n_bytes], std::default_delete<char[]>());
    };
    auto tell = [](int32_t, const std::string & news) {
        g_news += news;
    };
    return morphkv_archives(std::move(all), staging, alloc, tell, /*has_thread =*/true);
}

static void hand_over(morphkv_archives & archives, int32_t i_text, int32_t first, int32_t n) {
    const auto layout = small_layout();
    const auto rows   = rows_of(layout, first, n);
    char *     data   = archives.free_rows();
    for (size_t il = 0; il < layout.layers.size(); ++il) {
        memcpy(data + archives.staging.layers[il].k_at, rows.k[il].data(), rows.k[il].size());
        memcpy(data + archives.staging.layers[il].v_at, rows.v[il].data(), rows.v[il].size());
    }
    archives.append(i_text, first, n);
}

static void test_appended_beside() {
    gate gate;
    auto archives = gated_archives(gate, /*fails =*/false);
    hand_over(archives, 1, 0, 40);
    CHECK(archives.of(1).n_held() == 40);
    const size_t n_bytes = archives.n_bytes();
    CHECK(n_bytes == archives.of(1).n_bytes() && archives.n_staged_bytes() == archives.staging.n_bytes);

    // nobody who counts waits, and the next tokens have memory of their own
    hand_over(archives, 0, 7, 100);
    gate.wait_for_someone();
    CHECK(archives.count(0).n_held == 0 && archives.count(1).n_held == 40 && archives.n_bytes() == n_bytes);
    CHECK(archives.n_staged_bytes() == 2 * archives.staging.n_bytes);
    memset(archives.free_rows(), 0, archives.staging.n_bytes);
    CHECK(archives.why_stopped(0).empty() && archives.why_stopped(1).empty());
    gate.open();
    // whoever asks for one waits
    CHECK(archives.of(1).end() == 40);
    CHECK(archives.count(0).n_held == 100 && archives.n_bytes() > n_bytes);
    for (int32_t i = 0; i < 5; ++i) {
        hand_over(archives, 0, 107 + 10 * i, 10);
        hand_over(archives, 1, 40 + 20 * i, 20);
    }
    CHECK(archives.of(0).end() == 157 && archives.of(1).end() == 140);
    check_pages(archives.of(0));
    check_pages(archives.of(1));
}

static void test_appended_beside_in_vain() {
    gate gate;
    gate.open();
    auto archives = gated_archives(gate, /*fails =*/true);
    hand_over(archives, 0, 0, 40);
    CHECK(archives.of(0).why_stopped() == "the disk is on fire");
    CHECK(g_news == "it grows no more: the disk is on fire");
    const int32_t n_held = archives.of(0).n_held();
    hand_over(archives, 0, n_held, 40);
    hand_over(archives, 1, 0, 40);
    CHECK(archives.of(0).n_held() == n_held && archives.of(1).n_held() == 40);
    archives.of(0).clear();
    CHECK(archives.of(0).why_stopped().empty());
}

// Archives that go while tokens are on their way: these arrive first.
static void test_an_end_is_waited_for() {
    gate gate;
    auto archives = std::make_unique<morphkv_archives>(gated_archives(gate, /*fails =*/false));
    hand_over(*archives, 0, 0, 40);
    gate.wait_for_someone();
    std::thread opener([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        gate.open();
    });
    archives.reset();
    CHECK(gate.is_passed());
    opener.join();
}

int main() {
    test_appended_tokens_are_there();
    test_oldest_pages_make_room();
    test_a_copy_with_more_room();
    test_what_is_taken_back_is_gone();
    test_it_goes_back_to_a_checkpoint();
    test_headers_that_no_archive_has();
    test_appended_beside();
    test_appended_beside_in_vain();
    test_an_end_is_waited_for();
#ifndef _WIN32
    const std::string path = "test_archive.tmp";
    test_a_file_survives_its_process(path);
    test_a_bounded_file(path);
    test_another_bound(path);
    test_other_files_are_refused_and_left_alone(path);
    test_a_full_disk_stops_it(path);
    unlink(path.c_str());
#endif
    return 0;
}
