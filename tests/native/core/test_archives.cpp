// The archives of several texts, and tokens on their way into one of them, in the caller's thread or beside it.

#include "case.h"
#include "filled_archive.h"

#include "core/archives.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>

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

// Archives of two texts, the first with a gate; and what the user was told.
struct two_texts {
    explicit two_texts(bool has_thread, bool fails = false, uint64_t n_max_pages = 0) {
        std::vector<std::unique_ptr<morphkv_archive>> all;
        all.push_back(std::make_unique<morphkv_archive>(small_layout(), std::make_unique<gated_store>(gate, fails),
                                                        bytes_of_pages(n_max_pages)));
        all.push_back(std::make_unique<morphkv_archive>(small_layout(), morphkv_page_store_ram(), 0));
        const morphkv_staging staging(small_layout(), 100, GGML_TYPE_F32, GGML_TYPE_F32);
        auto                  alloc = [this](size_t n_bytes) {
            return has_memory ? std::shared_ptr<char>(new char[n_bytes], std::default_delete<char[]>()) : nullptr;
        };
        auto tell = [this](int32_t i_text, const std::string & what) {
            news += std::to_string(i_text) + ": " + what + ".";
        };
        archives = std::make_unique<morphkv_archives>(std::move(all), staging, alloc, tell, has_thread);
    }

    void append(int32_t i_text, int32_t first, int32_t n) {
        const auto layout = small_layout();
        const auto rows   = rows_of(layout, first, n);
        char *     data   = archives->free_rows();
        for (size_t il = 0; il < layout.layers.size(); ++il) {
            memcpy(data + archives->staging.layers[il].k_at, rows.k[il].data(), rows.k[il].size());
            memcpy(data + archives->staging.layers[il].v_at, rows.v[il].data(), rows.v[il].size());
        }
        archives->append(i_text, first, n);
    }

    class gate                        gate;
    bool                              has_memory = true;
    std::string                       news;
    std::unique_ptr<morphkv_archives> archives;
};

//
// in the caller's thread
//

TEST_CASE(staged_tokens_lie_layer_by_layer_keys_before_values) {
    const morphkv_staging staging(small_layout(), 3, GGML_TYPE_F32, GGML_TYPE_F16);
    // each aligned to 64 bytes: 3 tokens of 2*32 and 64 keys, 2*32 and 32 values
    CHECK(staging.layers[0].k_at == 0 && staging.layers[0].v_at == 768);
    CHECK(staging.layers[1].k_at == 768 + 384 && staging.layers[1].v_at == 2 * 768 + 384);
    CHECK(staging.n_bytes == 2 * 768 + 384 + 192);
}

TEST_CASE(tokens_come_into_the_archive_of_their_text) {
    two_texts texts(/*has_thread =*/false);
    texts.gate.open();
    texts.append(0, 0, 40);
    texts.append(1, 7, 20);
    texts.append(0, 40, 30);
    CHECK(texts.archives->of(0).end() == 70 && texts.archives->of(1).end() == 27);
    check_pages(texts.archives->of(0));
    check_pages(texts.archives->of(1));
}

TEST_CASE(tokens_are_converted_to_the_archives_type) {
    morphkv_page_layout layout(GGML_TYPE_F16, GGML_TYPE_F32);
    layout.add_layer(1, 32, 32);
    std::vector<std::unique_ptr<morphkv_archive>> all;
    all.push_back(std::make_unique<morphkv_archive>(layout, morphkv_page_store_ram(), 0));
    auto alloc = [](size_t n_bytes) {
        return std::shared_ptr<char>(new char[n_bytes], std::default_delete<char[]>());
    };
    morphkv_archives archives(
        std::move(all), morphkv_staging(layout, N_PAGE, GGML_TYPE_F32, GGML_TYPE_F16), alloc,
        [](int32_t, const std::string &) {}, false);
    char * data = archives.free_rows();
    for (int32_t i = 0; i < N_PAGE * 32; ++i) {
        const float       k = i / 32 + 0.5f;
        const ggml_fp16_t v = ggml_fp32_to_fp16(-k);
        memcpy(data + archives.staging.layers[0].k_at + 4 * i, &k, sizeof(k));
        memcpy(data + archives.staging.layers[0].v_at + 2 * i, &v, sizeof(v));
    }
    archives.append(0, 0, N_PAGE);
    const auto   page = archives.of(0).find_page(0);
    const auto * k    = (const ggml_fp16_t *) page->data();
    const auto * v    = (const float *) (page->data() + layout.layers[0].v_at);
    for (int32_t i = 0; i < N_PAGE * 32; ++i) {
        CHECK(ggml_fp16_to_fp32(k[i]) == i / 32 + 0.5f && v[i] == -(i / 32 + 0.5f));
    }
}

TEST_CASE(without_a_thread_one_buffer_is_used_again) {
    two_texts texts(false);
    texts.gate.open();
    CHECK(texts.archives->n_staged_bytes() == 0);
    char * data = texts.archives->free_rows();
    texts.append(1, 0, 20);
    CHECK(texts.archives->free_rows() == data);
    CHECK(texts.archives->n_staged_bytes() == texts.archives->staging.n_bytes);
}

TEST_CASE(without_memory_on_the_way_the_caller_is_told) {
    two_texts texts(false);
    texts.has_memory = false;
    CHECK(has(error_of([&] { texts.archives->free_rows(); }), "no memory for"));
    texts.has_memory = true;
    CHECK(texts.archives->free_rows());
}

TEST_CASE(what_an_archive_holds_is_counted) {
    two_texts texts(false, /*fails =*/false, /*n_max_pages =*/2);
    texts.gate.open();
    texts.append(0, 0, 70);
    texts.append(1, 0, 20);
    const auto counts = texts.archives->count(0);
    CHECK(counts.n_held == 38 && counts.n_lost == 32 && counts.n_damaged == 0);
    CHECK(counts.n_bytes == texts.archives->of(0).n_bytes() && counts.n_bytes > 0);
    CHECK(texts.archives->n_bytes() == texts.archives->of(0).n_bytes() + texts.archives->of(1).n_bytes());
}

TEST_CASE(who_stops_an_archive_tells_the_user) {
    two_texts texts(false);
    texts.archives->stop(1, "a reason");
    CHECK(texts.news == "1: it grows no more: a reason." && texts.archives->why_stopped(1) == "a reason");
    CHECK(texts.archives->why_stopped(0).empty());
    texts.archives->tell();
    CHECK(texts.news == "1: it grows no more: a reason.");
}

TEST_CASE(a_store_that_fails_is_told_at_once_without_a_thread) {
    two_texts texts(false, /*fails =*/true);
    texts.gate.open();
    texts.append(0, 0, 40);
    CHECK(texts.news == "0: it grows no more: the disk is on fire.");
}

//
// beside the caller
//

TEST_CASE(who_counts_does_not_wait) {
    two_texts texts(true);
    texts.append(1, 0, 40);
    CHECK(texts.archives->of(1).n_held() == 40);
    const size_t n_bytes = texts.archives->n_bytes();
    CHECK(n_bytes == texts.archives->of(1).n_bytes());
    texts.append(0, 7, 100);
    texts.gate.wait_for_someone();
    CHECK(texts.archives->count(0).n_held == 0 && texts.archives->count(1).n_held == 40);
    CHECK(texts.archives->n_bytes() == n_bytes);
    CHECK(texts.archives->why_stopped(0).empty() && texts.archives->why_stopped(1).empty());
    texts.gate.open();
}

TEST_CASE(who_asks_for_an_archive_waits) {
    two_texts texts(true);
    texts.append(0, 7, 100);
    texts.gate.wait_for_someone();
    texts.gate.open();
    CHECK(texts.archives->of(1).end() == -1);  // of any
    CHECK(texts.archives->count(0).n_held == 100 && texts.archives->of(0).end() == 107);
    check_pages(texts.archives->of(0));
}

TEST_CASE(the_next_tokens_have_memory_of_their_own) {
    two_texts texts(true);
    texts.append(0, 7, 100);
    texts.gate.wait_for_someone();
    memset(texts.archives->free_rows(), 0, texts.archives->staging.n_bytes);
    CHECK(texts.archives->n_staged_bytes() == 2 * texts.archives->staging.n_bytes);
    texts.gate.open();
    check_pages(texts.archives->of(0));
}

TEST_CASE(appends_come_in_their_order) {
    two_texts texts(true);
    texts.gate.open();
    for (int32_t i = 0; i < 5; ++i) {
        texts.append(0, 10 * i, 10);
        texts.append(1, 20 * i, 20);
    }
    CHECK(texts.archives->of(0).end() == 50 && texts.archives->of(1).end() == 100);
    check_pages(texts.archives->of(0));
    check_pages(texts.archives->of(1));
}

TEST_CASE(when_an_append_has_ended_it_counts) {
    two_texts texts(true);
    texts.gate.open();
    texts.append(0, 0, 40);
    while (texts.archives->count(0).n_held != 40) {
        std::this_thread::yield();
    }
    CHECK(texts.archives->count(1).n_held == 0);
}

TEST_CASE(an_append_that_fails_beside_is_told_to_who_asks_next) {
    two_texts texts(true, /*fails =*/true);
    texts.gate.open();
    texts.append(0, 0, 40);
    CHECK(texts.archives->of(0).why_stopped() == "the disk is on fire");
    CHECK(texts.news == "0: it grows no more: the disk is on fire.");
}

TEST_CASE(what_has_stopped_is_given_nothing_more) {
    two_texts texts(true, /*fails =*/true);
    texts.gate.open();
    texts.append(0, 0, 40);
    const int32_t n_held = texts.archives->of(0).n_held();
    texts.append(0, n_held, 40);
    texts.append(1, 0, 40);
    CHECK(texts.archives->of(0).n_held() == n_held && texts.archives->of(1).n_held() == 40);
    texts.archives->of(0).clear();
    CHECK(texts.archives->why_stopped(0).empty());
}

TEST_CASE(archives_that_go_wait_for_tokens_on_their_way) {
    two_texts texts(true);
    texts.append(0, 0, 40);
    texts.gate.wait_for_someone();
    std::thread opener([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        texts.gate.open();
    });
    texts.archives.reset();
    CHECK(texts.gate.is_passed());
    opener.join();
}
