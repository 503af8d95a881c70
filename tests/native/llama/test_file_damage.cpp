// An archive's file that somebody changes under a living text: what cannot be read is not recalled, counted, and told once;
// the text goes on and can be saved.

#include "support/archived_context.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

static const archived_setup IN_FILE   = { "test_file_damage.tmp" };
static const archived_setup IN_MEMORY = {};

constexpr int64_t N_HEADER = 4096, N_RECORD = 16;  // bytes before the first page, and of each before its own

static bytes content_of(const char * path) {
    std::ifstream file(path, std::ios::binary);
    return bytes(std::istreambuf_iterator<char>(file), {});
}

// In place: the file stays the one that is open.
static void write_at(const char * path, int64_t at, const bytes & data) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.write((const char *) data.data(), data.size());
    CHECK(file.good());
}

static int64_t at_page(const context_ptr & ctx, int64_t i_page) {
    return N_HEADER + i_page * (N_RECORD + archive_of(ctx).layout.page_bytes) + N_RECORD;
}

static context_ptr begin(llama_model * model, const archived_setup & setup) {
    remove_files(setup);
    auto res = create_archived(model, setup);
    CHECK(decode(res, some_tokens(340)) == 0);
    CHECK(archive_of(res).n_full() > 12);
    g_log.clear();
    return res;
}

static std::set<int32_t> held(const context_ptr & ctx) {
    std::set<int32_t> res;
    for (const int32_t layer : { 0, 1 }) {
        for (const int32_t pos : retained(ctx, 0, layer)) {
            res.insert(pos);
        }
    }
    return res;
}

// Pages that a recall brings back where nothing is damaged.
static std::vector<int64_t> recalled_pages(llama_model * model) {
    const auto ctx    = begin(model, IN_MEMORY);
    const auto before = held(ctx);
    recall(ctx);
    std::set<int64_t> res;
    for (const int32_t pos : held(ctx)) {
        if (!before.count(pos)) {
            res.insert(pos / morphkv_archive::N_PAGE);
        }
    }
    CHECK(res.size() >= 3);
    return std::vector<int64_t>(res.begin(), res.end());
}

static int n_told(const std::string & what) {
    int res = 0;
    for (size_t at = g_log.find(what); at != std::string::npos; at = g_log.find(what, at + 1)) {
        res++;
    }
    return res;
}

// Two recalls with tokens between them: of these pages nothing comes back that was not there.
static void check_not_recalled(const context_ptr & ctx, const std::set<int64_t> & damaged) {
    auto before = held(ctx);
    for (int i = 0; i < 2; ++i) {
        recall(ctx);
        for (const int32_t pos : held(ctx)) {
            CHECK(before.count(pos) || !damaged.count(pos / morphkv_archive::N_PAGE));
        }
        decode_singly(ctx, some_tokens(20, 5 + i));
        CHECK(all_finite(logits(ctx)));
        before = held(ctx);
    }
    CHECK(stats(ctx).n_archive_damaged > 0 && n_told("cannot be read") == 1);
    CHECK(!*morphkv_archive_why_stopped(ctx.get(), 0));
}

// It goes on, forks and is saved; what is lost here is lost there, and no more.
static void check_goes_on(llama_model * model, const context_ptr & ctx) {
    const int64_t n_archived = stats(ctx).n_archived;
    CHECK(decode(ctx, some_tokens(100, 8)) == 0 && all_finite(logits(ctx)));
    CHECK(stats(ctx).n_archived > n_archived && archive_of(ctx).find_page(archive_of(ctx).n_full() - 1));

    const auto state     = save(ctx);
    const auto n_damaged = stats(ctx).n_archive_damaged;
    CHECK(n_damaged > 0 && n_damaged < archive_of(ctx).n_full());
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(stats(ctx, 1).n_archive_damaged == n_damaged && !*morphkv_archive_why_stopped(ctx.get(), 1));

    const auto other = create_archived(model, IN_MEMORY);
    CHECK(load_strictly(other, state) && save(other) == state && stats(other).n_archive_damaged == n_damaged);
    for (const auto * c : { &ctx, &other }) {
        recall(*c);
        decode_singly(*c, some_tokens(20, 9));
    }
    CHECK(logits(ctx) == logits(other) && save(ctx) == save(other));
    CHECK(load_strictly(ctx, state) && stats(ctx).n_archive_damaged == n_damaged && save(ctx) == state);

    // another text has nothing to do with it
    g_log.clear();
    llama_memory_clear(memory(ctx), true);
    CHECK(stats(ctx).n_archive_damaged == 0);
    CHECK(decode(ctx, some_tokens(340)) == 0 && recall(ctx).n_recalled > 0 && stats(ctx).n_archive_damaged == 0 &&
          g_log.empty());
}

static void test_a_flipped_bit(llama_model * model) {
    const auto    ctx  = begin(model, IN_FILE);
    const int64_t page = recalled_pages(model)[0];
    const int64_t at   = at_page(ctx, page) + 100;
    bytes         byte = { uint8_t(content_of(IN_FILE.path)[at] ^ 4) };
    write_at(IN_FILE.path, at, byte);
    g_log.clear();
    check_not_recalled(ctx, { page });
    CHECK(stats(ctx).n_archive_damaged == 1);
    check_goes_on(model, ctx);
}

// Infinity in the keys of one page, NaN in the values of another: attention would have neither end.
static void test_infinity(llama_model * model) {
    const auto ctx    = begin(model, IN_FILE);
    const auto pages  = recalled_pages(model);
    const auto layout = archive_of(ctx).layout;
    CHECK(layout.type_k == GGML_TYPE_F16);
    write_at(IN_FILE.path, at_page(ctx, pages[0]) + layout.layers[0].k_at, { 0x00, 0x7c });
    write_at(IN_FILE.path, at_page(ctx, pages[1]) + layout.layers[1].v_at, { 0xff, 0xff });
    g_log.clear();
    check_not_recalled(ctx, { pages[0], pages[1] });
    CHECK(stats(ctx).n_archive_damaged == 2);
    check_goes_on(model, ctx);
}

static void test_a_file_that_is_shortened(llama_model * model, bool grows_again) {
    const auto        ctx    = begin(model, IN_FILE);
    const int64_t     n_full = archive_of(ctx).n_full();
    const size_t      size   = content_of(IN_FILE.path).size();
    std::set<int64_t> gone;
    for (int64_t i = 4; i < n_full; ++i) {
        gone.insert(i);
    }
    std::filesystem::resize_file(IN_FILE.path, at_page(ctx, 4) + 10);
    if (grows_again) {
        std::filesystem::resize_file(IN_FILE.path, size);
    }
    check_not_recalled(ctx, gone);
    check_goes_on(model, ctx);
}

// Nothing is left: a recall changes nothing.
static void test_an_empty_file(llama_model * model) {
    const auto ctx    = begin(model, IN_FILE);
    const auto before = save(ctx, 0, CHECKPOINT);
    std::filesystem::resize_file(IN_FILE.path, 0);
    CHECK(recall(ctx).n_recalled == 0 && save(ctx, 0, CHECKPOINT) == before);
    CHECK(stats(ctx).n_archive_damaged == archive_of(ctx).n_full() && n_told("cannot be read") == 1);
    decode_singly(ctx, some_tokens(50, 2));
    CHECK(all_finite(logits(ctx)) && !*morphkv_archive_why_stopped(ctx.get(), 0));
}

// Another text's archive is copied over it: each page is whole, and none is of this text.
static void test_another_archive_in_its_place(llama_model * model) {
    const archived_setup other_file = { "test_file_damage_other.tmp" };
    {
        remove_files(other_file);
        const auto other = create_archived(model, other_file);
        CHECK(decode(other, some_tokens(400, 77)) == 0);
    }
    const auto ctx = begin(model, IN_FILE);
    write_at(IN_FILE.path, 0, content_of(other_file.path));
    std::set<int64_t> all;
    for (int64_t i = 0; i < archive_of(ctx).n_full(); ++i) {
        all.insert(i);
    }
    check_not_recalled(ctx, all);
    remove_files(other_file);
    check_goes_on(model, ctx);
}

// A name that is gone, or another file's: what is open stays what it was.
static void test_a_file_that_is_removed_or_replaced(llama_model * model, bool is_replaced) {
    const auto ctx  = begin(model, IN_FILE);
    const auto twin = begin(model, IN_MEMORY);
    if (is_replaced) {
        std::ofstream("test_file_damage_new.tmp") << "another file";
        std::filesystem::rename("test_file_damage_new.tmp", IN_FILE.path);
    } else {
        CHECK(std::filesystem::remove(IN_FILE.path));
    }
    for (const auto * c : { &ctx, &twin }) {
        recall(*c);
        CHECK(decode(*c, some_tokens(150, 3)) == 0);
    }
    CHECK(save(ctx) == save(twin) && stats(ctx).n_archive_damaged == 0 && g_log.empty());
}

// A state with a page that is lost, loaded where there is a file: the next process finds the rest.
static void test_a_lost_page_in_a_file(llama_model * model) {
    bytes state, checkpoint;
    {
        const auto ctx = begin(model, IN_FILE);
        write_at(IN_FILE.path, at_page(ctx, 2), { 1, 2, 3, 4, 5, 6, 7, 8 });
        write_at(IN_FILE.path, at_page(ctx, archive_of(ctx).n_full() - 1), { 1, 2, 3, 4, 5, 6, 7, 8 });
        state = save(ctx);
        CHECK(stats(ctx).n_archive_damaged == 2);
    }
    {
        remove_files(IN_FILE);
        const auto ctx = create_archived(model, IN_FILE);
        CHECK(load_strictly(ctx, state) && save(ctx) == state);
        checkpoint = save(ctx, 0, CHECKPOINT);
    }
    const auto ctx = create_archived(model, IN_FILE);
    CHECK(load_strictly(ctx, checkpoint, 0, CHECKPOINT) && stats(ctx).n_archive_damaged == 2 && save(ctx) == state);
    CHECK(recall(ctx).n_recalled > 0 && stats(ctx).n_archive_damaged == 2);
}

int main() {
    keep_the_log();
    const auto model = tiny_model_load();
    test_a_flipped_bit(model.get());
    test_infinity(model.get());
    test_a_file_that_is_shortened(model.get(), false);
    test_a_file_that_is_shortened(model.get(), true);
    test_an_empty_file(model.get());
    test_another_archive_in_its_place(model.get());
    test_a_file_that_is_removed_or_replaced(model.get(), false);
#ifndef _WIN32  // which lets nobody rename a file over one that is open
    test_a_file_that_is_removed_or_replaced(model.get(), true);
#endif
    test_a_lost_page_in_a_file(model.get());
    remove_files(IN_FILE);
    return 0;
}
