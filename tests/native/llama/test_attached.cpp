// Texts that were read once, attached to other contexts: what comes back is what was read, beside what a text has of its own.

#include "support/archived_context.h"
#include "support/hybrid_model.h"

#include <cstring>

using step = morphkv_runner::step;

static const char *  FILE_NAME = "test_attached.tmp";
static const int32_t N_FILE    = 44 * 16;

static float largest_difference(const floats & a, const floats & b) {
    float res = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

static morphkv_status try_write(const context_ptr & ctx, const tokens & text, const char * path = FILE_NAME) {
    return morphkv_archive_write(ctx.get(), 0, path, nullptr, text.data(), text.size());
}

// The text of the file.
static tokens read_once(llama_model * model, const char * path = FILE_NAME, uint32_t seed = 1,
                        ggml_type type = GGML_TYPE_F16) {
    const auto ctx  = create_archived(model, alone(false, type));
    const auto text = some_tokens(N_FILE, seed);
    CHECK(decode(ctx, text) == 0);
    const auto before = save(ctx);
    CHECK(try_write(ctx, text, path) == MORPHKV_STATUS_OK);
    CHECK(save(ctx) == before);
    return text;
}

static morphkv_status try_attach(const context_ptr & ctx, const char * path = FILE_NAME) {
    return morphkv_archive_attach(ctx.get(), path, nullptr);
}

static context_ptr create_attached(llama_model * model, const archived_setup & setup = alone(false),
                                   const char * path = FILE_NAME) {
    auto ctx = create_archived(model, setup);
    CHECK(try_attach(ctx, path) == MORPHKV_STATUS_OK);
    return ctx;
}

static morphkv_attachment attachment(const context_ptr & ctx, int32_t i = 0, int32_t seq = 0) {
    morphkv_attachment res{};
    res.size = sizeof(res);
    CHECK(morphkv_attachment_get(ctx.get(), seq, i, &res) == MORPHKV_STATUS_OK);
    return res;
}

static std::vector<morphkv_brought> brought(const context_ptr & ctx) {
    int32_t n = 0;
    CHECK(morphkv_brought_get(ctx.get(), 0, nullptr, 0, &n) == MORPHKV_STATUS_OK);
    std::vector<morphkv_brought> res(n);
    CHECK(morphkv_brought_get(ctx.get(), 0, res.data(), n, &n) == MORPHKV_STATUS_OK);
    return res;
}

// The row of a token where RoPE has it at a position: decoded there, behind others. Of the first layer, whose rows depend on
// nothing else.
static floats row_at(llama_model * model, ggml_type type, llama_token token, int32_t position, bool is_k,
                     int32_t head) {
    auto cparams   = context_params();
    auto roomy     = small_params();
    roomy.capacity = 900;
    cparams.type_k = cparams.type_v = type;
    const auto ctx                  = create(model, roomy, cparams);
    tokens     fill(position, 1);
    fill.push_back(token);
    CHECK(decode(ctx, fill) == 0);
    const auto & layer = cache_of(ctx).get_side().layers[0];
    return row_of(is_k ? layer.k : layer.v, position, head, layer.n_head_kv);
}

// i_large: the file is of a context whose layers are alike, in any case.
static void test_a_short_text_gets_what_was_read(const tiny_shape & shape, ggml_type type, float tolerance,
                                                 int32_t i_large = -1) {
    archived_setup setup = alone(false, type);
    setup.i_large        = i_large;
    const auto model     = tiny_model_load(shape);
    const auto file      = read_once(model.get(), FILE_NAME, 1, type);
    const auto ctx       = create_attached(model.get(), setup);
    const auto text      = some_tokens(25, 7);
    CHECK(decode(ctx, text) == 0);
    const auto before = stats(ctx);
    CHECK(before.n_used == 25 && attachment(ctx).n_recalled == 0 && attachment(ctx).n_tokens == N_FILE);

    const auto got = recall(ctx);
    const auto s   = stats(ctx);
    CHECK(got.n_archived == N_FILE && got.n_recalled > 0 && s.n_recalls == 1 && s.n_recalled == got.n_recalled);
    CHECK(attachment(ctx).n_recalled == got.n_recalled);
    CHECK(s.kv_bytes == before.kv_bytes && s.logical_pos == 24 && s.n_evicted == 0 && s.exact_pos == 25);
    // all but a window and an interval stays in its slots
    const int32_t n_own = 25 - 14;
    CHECK(s.n_used == s.n_distant + 14 && s.complete_pos == n_own);

    const auto layer     = layer_of(ctx, 0);
    const auto slots     = retained(ctx, 0, 0);
    const int  n_distant = slots.size() / layer.n_head_kv;
    // recent ones are behind as many slots as any layer has
    const int  n_shift   = s.max_capacity - 8 - n_distant;
    for (int32_t h = 0; h < layer.n_head_kv; ++h) {
        const std::vector<int32_t> of_head(slots.begin() + h * n_distant, slots.begin() + (h + 1) * n_distant);
        std::vector<int32_t>       ordered = of_head;
        std::sort(ordered.begin(), ordered.end());
        CHECK(std::adjacent_find(ordered.begin(), ordered.end()) == ordered.end());
        for (int32_t i = 0; i < n_distant + 14; i += i < 20 ? 3 : 11) {
            const bool    is_recent = i >= n_distant;
            const int32_t token     = is_recent ? n_own + i - n_distant : of_head[i];
            CHECK(is_recent || (i < n_own ? token == i : token < -16 && token >= -N_FILE - 16));
            const int32_t at =
                n_shift + (is_recent ? i : std::lower_bound(ordered.begin(), ordered.end(), token) - ordered.begin());
            const llama_token id = token >= 0 ? text[token] : file[token + N_FILE + 16];
            for (const bool is_k : { true, false }) {
                if (is_k || layer.v) {
                    const floats a = row_of(is_k ? layer.k : layer.v, i, h, layer.n_head_kv);
                    CHECK(largest_difference(a, row_at(model.get(), type, id, at, is_k, h)) <= tolerance);
                }
            }
        }
    }
    // what came is named, and its tokens are those of the file
    const auto pages = brought(ctx);
    CHECK(!pages.empty());
    for (const auto & page : pages) {
        CHECK(page.i_attachment == 0 && page.first % 16 == 0);
        tokens ids(16);
        CHECK(morphkv_attachment_tokens(ctx.get(), 0, page.first, 16, ids.data()) == MORPHKV_STATUS_OK);
        CHECK(std::equal(ids.begin(), ids.end(), file.begin() + page.first));
    }
    // and the chat goes on: evictions, rebases, recalls
    for (int i = 0; i < 5; ++i) {
        decode_singly(ctx, some_tokens(37, i));
        recall(ctx);
        CHECK(all_finite(logits(ctx)));
        CHECK(decode(ctx, some_tokens(150, 10 + i)) == 0 && all_finite(logits(ctx)));
    }
    const auto after = settled(ctx);
    CHECK(after.n_recalls == 6 && after.n_rebases > 0 && after.logical_pos - after.rotary_offset < 400);
    CHECK(after.n_archived == after.logical_pos + 1 - (after.n_used - after.n_distant));
    CHECK(attachment(ctx).n_recalled >= got.n_recalled);
    const auto kept = retained(ctx, 0, 0);
    CHECK(kept[0] == 0 && kept[1] == 1 && kept[2] == 2);
}

// However long it is when it asks: below what is kept, within a window, up to the last cell.
static void test_texts_of_all_lengths(llama_model * model) {
    read_once(model);
    for (const int32_t n : { 1, 3, 4, 8, 9, 50, 92, 99, 100, 101, 130 }) {
        const auto ctx = create_attached(model);
        CHECK(decode(ctx, some_tokens(n, n)) == 0);
        const auto before = save(ctx);
        const auto got    = recall(ctx);
        const auto s      = stats(ctx);
        CHECK((got.n_recalled > 0) == (n > 3) && s.n_used <= s.n_limit);
        CHECK(n > 3 || save(ctx) == before);
        for (const llama_token token : some_tokens(60, 2)) {
            decode_singly(ctx, { token });
            CHECK(all_finite(logits(ctx)));
        }
        recall(ctx);
        CHECK(decode(ctx, some_tokens(300, 3)) == 0 && all_finite(logits(ctx)));
        CHECK(settled(ctx).n_archived == stats(ctx).logical_pos + 1 - (stats(ctx).n_used - stats(ctx).n_distant));
    }
}

// Values of recalled tokens in the last layer, which depend on all before them: where they are read again, those of a text that
// has the pages side by side behind the file's first token; else what the file has.
static void test_what_comes_is_read_again(const tiny_shape & shape, int32_t i_large = -1) {
    archived_setup setup = alone(false);
    setup.i_large        = i_large;
    const auto model     = tiny_model_load(shape);
    const auto file      = read_once(model.get());
    for (const int32_t reread : { 1, 0 }) {
        const auto ctx = create_attached(model.get(), setup);
        // its cells are counted
        CHECK(stats(ctx).extra_bytes > stats(create_archived(model.get(), alone(false))).extra_bytes + 256);
        CHECK(decode(ctx, some_tokens(25, 7)) == 0);
        auto params = all_slots();
        CHECK(params.reread == 1);
        params.reread = reread;
        morphkv_recalled got{};
        got.size = sizeof(got);
        CHECK(morphkv_recall(ctx.get(), 0, &params, &got) == MORPHKV_STATUS_OK);
        auto pages = brought(ctx);
        std::sort(pages.begin(), pages.end(), [](const auto & a, const auto & b) { return a.first < b.first; });
        // but for the first page, which says nothing
        pages.erase(std::remove_if(pages.begin(), pages.end(), [](const auto & page) { return page.first == 0; }),
                    pages.end());
        CHECK(pages.size() >= 2);
        CHECK(got.n_reread == (reread ? (int64_t) pages.size() * 16 : 0));

        tokens together = { file[0] };
        for (const auto & page : pages) {
            together.insert(together.end(), file.begin() + page.first, file.begin() + page.first + 16);
        }
        auto roomy       = small_params();
        roomy.capacity   = 900;
        const auto plain = create(model.get(), roomy, context_params());
        CHECK(decode(plain, together) == 0);
        // in the group that gets all pages
        const auto   layer     = cache_of(ctx).cut_layers().back();
        const auto   other     = cache_of(plain).cut_layers().back();
        const auto   slots     = retained(ctx, 0, layer.il);
        const size_t n_distant = slots.size() / layer.n_head_kv;
        float        most      = 0.0f;
        CHECK(layer.il == other.il);
        for (int32_t h = 0; h < layer.n_head_kv; ++h) {
            const auto begin = slots.begin() + h * n_distant, end = begin + n_distant;
            for (size_t i = 0; i < pages.size() * 16; ++i) {
                const int32_t serial = (int32_t) pages[i / 16].first + (int32_t) i % 16 - N_FILE - 16;
                const auto    it     = std::find(begin, end, serial);
                CHECK(it != end);
                if (!layer.v) {
                    continue;  // a part of K
                }
                const float far = largest_difference(row_of(layer.v, it - begin, h, layer.n_head_kv),
                                                     row_of(other.v, 1 + i, h, layer.n_head_kv));
                most            = std::max(most, far);
            }
        }
        CHECK(!layer.v || (reread == 1 ? most < 1e-2f : most > 0.1f));
        // nothing is read twice
        CHECK(morphkv_recall(ctx.get(), 0, &params, &got) == MORPHKV_STATUS_OK && got.n_reread == 0);
    }
    auto       bad = morphkv_recall_params_default();
    const auto ctx = create_attached(model.get());
    bad.reread     = 2;
    morphkv_recalled got{};
    got.size = sizeof(got);
    CHECK(morphkv_recall(ctx.get(), 0, &bad, &got) == MORPHKV_STATUS_INVALID);
    CHECK(std::string(morphkv_last_error()) == "reread must be 0 or 1, got 2");
}

static void test_a_prompt_asks_once(llama_model * model) {
    read_once(model);
    const auto ctx = create_attached(model);
    const auto was = read_prompt(ctx, some_tokens(40, 3), 16);
    CHECK(was.n_recalls == 1 && was.n_decoded > 40);
    CHECK(all_finite(logits(ctx)));
    // while it is written, pages come as they were read
    auto params       = morphkv_recall_params_default();
    params.need       = 0.0f;
    int32_t n_recalls = 0;
    for (const llama_token token : some_tokens(100, 5)) {
        morphkv_writing writing{};
        writing.size = sizeof(writing);
        CHECK(morphkv_write_next(ctx.get(), 0, &params, &writing) == MORPHKV_STATUS_OK);
        n_recalls += writing.n_recalls;
        CHECK(writing.recalled.n_reread == 0);
        decode_singly(ctx, { token });
    }
    CHECK(n_recalls > 0);
    // without a recall it is as if nothing were attached
    const auto off = create_attached(model), plain = create_archived(model, alone(false));
    CHECK(decode(off, some_tokens(300, 4)) == 0 && decode(plain, some_tokens(300, 4)) == 0);
    CHECK(logits(off) == logits(plain));
}

static void test_an_opening_that_fails_changes_nothing(const tiny_shape & shape, bool is_recurrent) {
    const auto model = tiny_model_load(shape);
    read_once(model.get());
    const auto ctx = create_attached(model.get());
    CHECK(decode(ctx, some_tokens(30)) == 0);
    auto before = save(ctx);
    for (const step which : { step::ALLOC, step::COMPUTE }) {
        for (int n_good = 0; n_good < 2; ++n_good) {
            int n                        = 0;
            cache_of(ctx).inject_failure = [&](step s) {
                return s == which && n++ == n_good;
            };
            morphkv_recalled out{};
            const auto       status      = try_recall(ctx, out);
            cache_of(ctx).inject_failure = nullptr;
            if (status == MORPHKV_STATUS_OK) {
                CHECK(n_good > 0);  // it has one graph
                llama_memory_seq_rm(memory(ctx), 0, -1, -1);
                CHECK(decode(ctx, some_tokens(30)) == 0);
                before = save(ctx);
                continue;
            }
            CHECK(strstr(morphkv_last_error(), "sequence 0 is unchanged") && (is_recurrent || save(ctx) == before));
        }
    }
    CHECK(recall(ctx).n_recalled > 0);
    decode_singly(ctx, some_tokens(30, 4));
    CHECK(all_finite(logits(ctx)));
}

// A state names what was attached.
static void test_states(llama_model * model) {
    read_once(model);
    read_once(model, "test_attached_2.tmp", 2);
    const auto ctx = create_attached(model);
    CHECK(decode(ctx, some_tokens(30)) == 0);
    recall(ctx);
    decode_singly(ctx, some_tokens(5, 2));
    const auto state = save(ctx);
    const auto other = create_attached(model);
    CHECK(load_strictly(other, state) && save(other) == state);
    for (const llama_token token : some_tokens(150, 3)) {
        decode_singly(ctx, { token });
        decode_singly(other, { token });
        CHECK(logits(ctx) == logits(other));
    }
    CHECK(recall(ctx).n_recalled == recall(other).n_recalled && save(ctx) == save(other));
    const auto late = save(ctx);
    CHECK(load_strictly(other, late) && save(other) == late);

    const auto plain  = create_archived(model, alone(false)),
               second = create_attached(model, alone(false), "test_attached_2.tmp");
    for (const auto * wrong : { &plain, &second }) {
        CHECK(!load_strictly(*wrong, state) && strstr(morphkv_last_error(), "other attached files"));
        CHECK(stats(*wrong).logical_pos == -1);
    }
    CHECK(decode(plain, some_tokens(30)) == 0);
    CHECK(!load_strictly(other, save(plain)));

    // both, in their order
    const auto both = create_attached(model), swapped = create_attached(model, alone(false), "test_attached_2.tmp");
    CHECK(try_attach(both, "test_attached_2.tmp") == MORPHKV_STATUS_OK && try_attach(swapped) == MORPHKV_STATUS_OK);
    int32_t n = 0;
    CHECK(morphkv_attachment_count(both.get(), &n) == MORPHKV_STATUS_OK && n == 2);
    CHECK(decode(both, some_tokens(30)) == 0);
    const auto got = recall(both);
    CHECK(got.n_archived == 2 * N_FILE);
    CHECK(attachment(both, 0).n_recalled + attachment(both, 1).n_recalled == got.n_recalled);
    CHECK(attachment(both, 0).n_recalled > 0 && attachment(both, 1).n_recalled > 0);
    CHECK(attachment(both, 0).id != attachment(both, 1).id);
    CHECK(!load_strictly(swapped, save(both)));
    std::remove("test_attached_2.tmp");
}

// Forks, going back, clearing.
static void test_sequences(llama_model * model) {
    read_once(model);
    archived_setup setup = alone(false);
    setup.n_seq          = 2;
    const auto ctx       = create_attached(model, setup);
    const auto text      = some_tokens(60);
    CHECK(decode(ctx, text) == 0);
    recall(ctx);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(save(ctx) == save(ctx, 1));
    for (const llama_token token : some_tokens(80, 3)) {
        decode_singly(ctx, { token }, { 0, 1 });
        CHECK(logits(ctx, 0) == logits(ctx, 1));
    }
    recall(ctx, 1);
    // the tail, and no more than that
    auto s = stats(ctx);
    CHECK(!llama_memory_seq_rm(memory(ctx), 0, s.complete_pos, -1));
    CHECK(llama_memory_seq_rm(memory(ctx), 0, s.complete_pos + 1, -1) && stats(ctx).logical_pos == s.complete_pos);
    // by the archive: what is left is shorter than a capacity, and opens again
    auto all = text;
    for (const llama_token token : some_tokens(80, 3)) {
        all.push_back(token);
    }
    morphkv_restored restored{};
    restored.size = sizeof(restored);
    CHECK(morphkv_restore(ctx.get(), 1, all.data(), 40, &restored) == MORPHKV_STATUS_OK && restored.n_restored == 40);
    CHECK(stats(ctx, 1).logical_pos == 39 && stats(ctx, 1).n_used == 40);
    decode_singly(ctx, some_tokens(5, 4), { 1 });  // nobody asked yet
    CHECK(recall(ctx, 1).n_recalled > 0 && stats(ctx, 1).n_used == 92 + 14);
    // and one that is not keeps attached tokens in slots
    const auto long_text = some_tokens(500, 5);
    CHECK(llama_memory_seq_rm(memory(ctx), 1, -1, -1));
    CHECK(decode(ctx, long_text, { 1 }) == 0);
    recall(ctx, 1);
    CHECK(morphkv_restore(ctx.get(), 1, long_text.data(), 300, &restored) == MORPHKV_STATUS_OK);
    CHECK(stats(ctx, 1).logical_pos == 299);
    const auto slots = retained(ctx, 1, 0);
    CHECK(std::any_of(slots.begin(), slots.end(), [](int32_t pos) { return pos < -16; }));
    decode_singly(ctx, some_tokens(40, 6), { 1 });
    CHECK(all_finite(logits(ctx)));
    // emptied, it begins without
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    CHECK(decode(ctx, text) == 0 && stats(ctx).n_used == 60 && brought(ctx).empty());
}

static void test_other_types_and_archives(llama_model * model) {
    read_once(model, FILE_NAME, 1, GGML_TYPE_F16);
    // the file's type is not the archive's, nor the cache's
    const auto q8 = create_attached(model, alone(false, GGML_TYPE_Q8_0));
    CHECK(decode(q8, some_tokens(30)) == 0 && recall(q8).n_recalled > 0);
    decode_singly(q8, some_tokens(200, 2));
    CHECK(all_finite(logits(q8)));
    // it does not count for a limit
    archived_setup small = alone(false);
    small.max_bytes      = 40000;
    const auto bounded   = create_attached(model, small);
    CHECK(decode(bounded, some_tokens(30)) == 0 && recall(bounded).n_recalled > 0);
    CHECK(decode(bounded, some_tokens(600, 2)) == 0 && recall(bounded).n_recalled > 0);
    const auto s = settled(bounded);
    CHECK(s.n_archive_lost > 0 && s.archive_bytes <= small.max_bytes);
    CHECK(attachment(bounded).bytes > small.max_bytes);
    // an archive in a file that another process left
    archived_setup in_file = alone(false);
    in_file.path           = "test_attached_own.tmp";
    remove_files(in_file);
    CHECK(decode(create_archived(model, in_file), some_tokens(500, 9)) == 0);
    const auto second = create_attached(model, in_file);
    CHECK(decode(second, some_tokens(30)) == 0);
    CHECK(recall(second).n_archived == N_FILE);
    decode_singly(second, some_tokens(150, 2));
    CHECK(settled(second).n_archived ==
          stats(second).logical_pos + 1 - (stats(second).n_used - stats(second).n_distant));
    remove_files(in_file);
}

static void test_what_is_refused(llama_model * model) {
    const auto text  = read_once(model);
    const auto plain = create_plain(model, alone(false));
    CHECK(try_attach(plain) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "beside an archive"));
    CHECK(try_write(plain, text) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "of an archive"));

    const auto ctx = create_archived(model, alone(false));
    CHECK(try_attach(ctx, "no such file") == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "no such file"));
    CHECK(morphkv_archive_attach(ctx.get(), FILE_NAME, FILE_NAME) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "another model"));
    CHECK(try_attach(ctx) == MORPHKV_STATUS_OK);
    CHECK(try_attach(ctx) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "attached already"));
    CHECK(decode(ctx, some_tokens(10)) == 0);
    CHECK(try_attach(ctx) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "before anything is decoded"));
    CHECK(try_write(ctx, some_tokens(10)) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "whole pages"));
    CHECK(try_write(ctx, some_tokens(16)) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "must be 10"));
    decode_singly(ctx, some_tokens(6, 2));
    CHECK(try_write(ctx, some_tokens(16), "/no/such/folder/file") == MORPHKV_STATUS_FAILED);
    CHECK(try_write(ctx, some_tokens(16), "test_attached_3.tmp") == MORPHKV_STATUS_OK);
    const auto other = create_archived(model, alone(false));
    CHECK(try_attach(other, "test_attached_3.tmp") == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "= 92), got 16"));
    std::remove("test_attached_3.tmp");

    tiny_shape shape;
    shape.n_layer      = 3;
    const auto another = tiny_model_load(shape);
    CHECK(try_attach(create_archived(another.get(), alone(false))) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "another model"));

    morphkv_attachment out{};
    CHECK(morphkv_attachment_get(ctx.get(), 0, 0, &out) == MORPHKV_STATUS_INVALID);
    out.size = sizeof(out);
    CHECK(morphkv_attachment_get(ctx.get(), 0, 1, &out) == MORPHKV_STATUS_INVALID);
    tokens ids(16);
    CHECK(morphkv_attachment_tokens(ctx.get(), 0, N_FILE - 8, 16, ids.data()) == MORPHKV_STATUS_INVALID);
    CHECK(morphkv_attachment_tokens(ctx.get(), 0, -1, 1, ids.data()) == MORPHKV_STATUS_INVALID);
}

int main() {
    log_errors_only();
    llama_backend_init();
    {
        const auto model = tiny_model_load();
        tiny_shape mla;
        mla.arch        = "deepseek2";
        mla.n_embd_head = 64;
        mla.n_lora_kv   = 96;
        test_a_short_text_gets_what_was_read({}, GGML_TYPE_F32, 1e-4f);
        test_a_short_text_gets_what_was_read({}, GGML_TYPE_F16, 0.01f);
        test_a_short_text_gets_what_was_read(mla, GGML_TYPE_F16, 0.01f);
        test_a_short_text_gets_what_was_read({}, GGML_TYPE_Q8_0, 0.1f);
        test_a_short_text_gets_what_was_read({}, GGML_TYPE_F32, 1e-4f, /*i_large =*/0);
        test_a_short_text_gets_what_was_read({}, GGML_TYPE_F32, 1e-4f, /*i_large =*/1);
        test_texts_of_all_lengths(model.get());
        test_what_comes_is_read_again({});
        test_what_comes_is_read_again({}, /*i_large =*/1);
        test_what_comes_is_read_again(mla);
        test_a_prompt_asks_once(model.get());
        tiny_shape windowed;
        windowed.arch        = "granite_swa";
        windowed.n_layer     = 4;
        windowed.is_windowed = { 1, 0, 1, 0 };
        windowed.sink        = 0.5f;
        test_an_opening_that_fails_changes_nothing({}, false);
        test_an_opening_that_fails_changes_nothing(windowed, false);
        test_an_opening_that_fails_changes_nothing(hybrid_shape(), true);
        test_states(model.get());
        test_sequences(model.get());
        test_other_types_and_archives(model.get());
        test_what_is_refused(model.get());
    }
    std::remove(FILE_NAME);
    llama_backend_free();
    return 0;
}
