// Going back by the archive inside a context: the rows that come are those that left, the text goes on, what was behind the
// place is gone, and a failure is told.

#include "support/archived_context.h"

#include <cmath>
#include <functional>
#include <string>

using step = morphkv_runner::step;

static morphkv_status try_restore(const context_ptr & ctx, const tokens & text, int32_t n, morphkv_restored & out) {
    out.size = sizeof(out);
    return morphkv_restore(ctx.get(), 0, text.data(), n, &out);
}

static int32_t restore(const context_ptr & ctx, const tokens & text, int32_t n) {
    morphkv_restored out{};
    if (try_restore(ctx, text, n, out) != MORPHKV_STATUS_OK) {
        fprintf(stderr, "%s\n", morphkv_last_error());
        CHECK(false);
    }
    CHECK(stats(ctx).logical_pos == n - 1);
    return out.n_restored;
}

static tokens first(const tokens & text, int32_t n) {
    return tokens(text.begin(), text.begin() + n);
}

static float largest_difference(const floats & a, const floats & b) {
    float res = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

// A place before the first eviction: all tokens are there, as a context has them that reads no more.
static void test_a_short_text_is_whole_again(const tiny_shape & shape, ggml_type type, float tolerance) {
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), alone(false, type));
    const auto text  = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    CHECK(stats(ctx).n_rebases > 0);
    CHECK(restore(ctx, text, 90) == 90);
    const auto s = stats(ctx);
    CHECK(s.n_used == 90 && s.n_evicted == 0 && s.n_evictions == 0 && s.rotary_offset == 0 && s.complete_pos == 0);

    const auto other = create_archived(model.get(), alone(false, type));
    CHECK(decode(other, first(text, 90)) == 0);
    const auto next = some_tokens(200, 7);
    for (int32_t i = 0; i < 5; ++i) {
        decode_singly(ctx, { next[i] });
        decode_singly(other, { next[i] });
        CHECK(largest_difference(logits(ctx), logits(other)) <= tolerance);
    }
    // it goes on through evictions and rebases
    CHECK(decode(ctx, next) == 0 && all_finite(logits(ctx)) && stats(ctx).n_evictions > 0);
}

// In the first layer a token's K and V depend on itself and where it stands alone. Holds after a restore and a recall, when
// distant tokens stand right before the recent ones. text: what the sequence holds.
static void check_rows(const context_ptr & ctx, const tokens & text, ggml_type type, float tolerance) {
    auto cparams   = context_params();
    auto roomy     = small_params();
    roomy.capacity = 900;
    cparams.type_k = cparams.type_v = type;
    const auto s                    = stats(ctx);
    const auto slots                = retained(ctx, 0, 0);
    const auto layer                = layer_of(ctx, 0);
    const bool is_cut               = slots[0] >= 0;
    const int  n_distant            = is_cut ? slots.size() / layer.n_head_kv : 0;
    const int  first_recent         = is_cut ? s.logical_pos + 1 - (s.n_used - s.n_distant) : 0;
    const int  n_used               = n_distant + s.logical_pos + 1 - first_recent;
    CHECK(s.logical_pos + 1 == (int64_t) text.size());
    for (int32_t h = 0; h < layer.n_head_kv; ++h) {
        std::vector<int32_t> ordered(slots.begin() + h * n_distant, slots.begin() + (h + 1) * n_distant);  // or none
        const auto           of_head = ordered;
        std::sort(ordered.begin(), ordered.end());
        CHECK(std::adjacent_find(ordered.begin(), ordered.end()) == ordered.end());
        CHECK(!is_cut || (ordered[0] == 0 && ordered[1] == 1 && ordered[2] == 2 && ordered.back() < first_recent));
        for (int32_t i = 0; i < n_used; ++i) {
            const bool is_far = i < n_distant;
            if (i % (is_far ? 31 : 5) != 0) {
                continue;  // each takes a context
            }
            const int32_t serial = is_far ? of_head[i] : first_recent + i - n_distant;
            const int32_t rank   = std::lower_bound(ordered.begin(), ordered.end(), serial) - ordered.begin();
            const int32_t at     = (is_far ? first_recent - n_distant + rank : serial) - s.rotary_offset;
            // the same token where this one stands now
            const auto    other  = create((llama_model *) llama_get_model(ctx.get()), roomy, cparams);
            tokens        fill(at, 1);
            fill.push_back(text[serial]);
            CHECK(decode(other, fill) == 0);
            const auto & same = cache_of(other).get_side().layers[0];
            for (const bool is_k : { true, false }) {
                if (is_k || layer.v) {
                    const floats a = row_of(is_k ? layer.k : layer.v, i, h, layer.n_head_kv);
                    const floats b = row_of(is_k ? same.k : same.v, at, h, layer.n_head_kv);
                    CHECK(largest_difference(a, b) <= tolerance);
                }
            }
        }
    }
}

// A place that was cut; then the chat goes on: evictions, recalls, rebases, and back again.
static void test_rows_are_those_that_left(const archived_setup & setup, const tiny_shape & shape, float tolerance) {
    remove_files(setup);
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), setup);
    auto       text  = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    recall(ctx);
    // at 120 a layer that keeps more has all
    for (const int32_t n : { 300, setup.i_large < 0 ? 200 : 120 }) {
        CHECK(restore(ctx, text, n) == setup.least());
        text         = first(text, n);
        const auto s = stats(ctx);
        CHECK(s.n_used == setup.least() && s.n_evicted == n - setup.least() && s.complete_pos == n - 8);
        check_rows(ctx, text, setup.type, tolerance);
        for (int i = 0; i < 2; ++i) {
            const auto more = some_tokens(150 + 7 * i, n + i);
            CHECK(decode(ctx, more) == 0 && all_finite(logits(ctx)));
            text.insert(text.end(), more.begin(), more.end());
            CHECK(settled(ctx).n_archive_lost == 0);
            recall(ctx);
        }
        check_rows(ctx, text, setup.type, tolerance);
    }
    CHECK(stats(ctx).n_rebases > 0);
    remove_files(setup);
}

// What is behind a changed beginning comes along, and the text is as one of these tokens.
static void test_a_passage_comes_along(const archived_setup & setup, const tiny_shape & shape, float tolerance) {
    remove_files(setup);
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), setup);
    auto       text  = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    for (const int32_t n_new : { 0, 300 }) {
        const auto        before  = save(ctx);
        morphkv_passage * passage = nullptr;
        const int32_t     n       = 350;
        CHECK(morphkv_passage_take(ctx.get(), 0, 250, n, &passage) == MORPHKV_STATUS_OK);
        CHECK(save(ctx) == before);
        restore(ctx, text, 30);
        tokens now = first(text, 30);
        if (n_new > 0) {
            const auto more = some_tokens(n_new, 9);
            CHECK(decode(ctx, more) == 0);
            now.insert(now.end(), more.begin(), more.end());
        }
        now.insert(now.end(), text.begin() + 250, text.begin() + 250 + n);
        morphkv_restored out{};
        out.size = sizeof(out);
        CHECK(morphkv_passage_put(ctx.get(), 0, passage, now.data(), now.size(), &out) == MORPHKV_STATUS_OK);
        morphkv_passage_free(passage);
        CHECK(out.n_restored == setup.least());
        check_rows(ctx, now, setup.type, tolerance);
        const auto more = some_tokens(300, 10 + n_new);
        CHECK(decode(ctx, more) == 0 && all_finite(logits(ctx)));
        now.insert(now.end(), more.begin(), more.end());
        recall(ctx);
        check_rows(ctx, now, setup.type, tolerance);
        const auto s = settled(ctx);
        CHECK(s.n_archive_lost == 0 && s.n_archived == s.logical_pos + 1 - (s.n_used - s.n_distant));
        text = now;
    }
    remove_files(setup);
}

static void test_passages_that_cannot_be(llama_model * model) {
    const auto        ctx     = create_archived(model, alone(false));
    const auto        text    = some_tokens(700);
    morphkv_passage * passage = nullptr;
    morphkv_restored  out{};
    out.size = sizeof(out);
    CHECK(decode(ctx, text) == 0);
    const auto before  = save(ctx);
    auto       refused = [&](int32_t first, int32_t n) {
        return morphkv_passage_take(ctx.get(), 0, first, n, &passage) == MORPHKV_STATUS_INVALID && !passage &&
               strstr(morphkv_last_error(), "within the text's 700 tokens") && save(ctx) == before;
    };
    CHECK(refused(-1, 10) && refused(0, 0) && refused(690, 11) && refused(INT32_MAX, 1) && refused(1, INT32_MAX));
    CHECK(morphkv_passage_take(ctx.get(), 0, 100, 200, &passage) == MORPHKV_STATUS_OK);
    CHECK(morphkv_passage_put(ctx.get(), 0, passage, text.data(), 899, &out) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "n_tokens must be 900, got 899"));
    CHECK(morphkv_passage_put(ctx.get(), 0, nullptr, text.data(), 900, &out) == MORPHKV_STATUS_INVALID);
    const auto other = create_archived(model, alone(false, GGML_TYPE_F32));
    CHECK(decode(other, first(text, 30)) == 0);
    CHECK(morphkv_passage_put(other.get(), 0, passage, text.data(), 230, &out) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "of the same model and types"));
    const auto empty = create_archived(model, alone(false));
    CHECK(morphkv_passage_put(empty.get(), 0, passage, text.data(), 200, &out) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "behind a text"));
    // where it fails the text is as it was, or empty
    tokens longer = text;
    longer.insert(longer.end(), text.begin() + 100, text.begin() + 300);
    cache_of(ctx).inject_failure = [](step s) {
        return s == step::ALLOC;
    };
    CHECK(morphkv_passage_put(ctx.get(), 0, passage, longer.data(), 900, &out) == MORPHKV_STATUS_FAILED);
    cache_of(ctx).inject_failure = nullptr;
    CHECK(save(ctx) == before);
    morphkv_passage_free(passage);
    morphkv_passage_free(nullptr);
}

// What was behind the place is nowhere: no slot, no page, no vote has it.
static void test_no_ghost_is_left(llama_model * model, const archived_setup & setup) {
    const auto ctx  = create_archived(model, setup);
    const auto text = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    CHECK(restore(ctx, text, 300) == setup.least());
    CHECK(archive_of(ctx).end() == 292 && stats(ctx).n_archived == 292);
    const auto with = save(ctx);

    // the same place of a text that went on otherwise
    const auto other   = create_archived(model, setup);
    auto       another = text;
    for (int i = 300; i < 700; ++i) {
        another[i] = (another[i] + 1) % TINY_N_VOCAB;
    }
    CHECK(decode(other, first(another, 300)) == 0);
    for (const auto & c : { std::cref(ctx), std::cref(other) }) {
        CHECK(decode(c.get(), some_tokens(400, 5)) == 0);
        const auto s = settled(c.get());
        CHECK(s.logical_pos == 699 && s.n_archived == s.logical_pos + 1 - (s.n_used - s.n_distant));
        for (const int32_t pos : retained(c.get(), 0, 0)) {
            CHECK(pos >= 0 && pos < 700);
        }
    }
    // every page is of the text as it is now: pages before the place are equal, and those behind are of the new tokens
    for (int64_t i = 0; i < 292 / 16; ++i) {
        CHECK(archive_of(ctx).hash_of(i) == archive_of(other).hash_of(i));
    }
    // a state from there goes on in another context as here
    const auto third = create_archived(model, setup);
    CHECK(load(third, with) && save(third) == with);
}

static void test_a_complete_place_keeps_its_bits(llama_model * model) {
    const auto ctx  = create_archived(model, alone(false));
    const auto text = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    const auto other = create_archived(model, alone(false));
    CHECK(decode(other, text) == 0);
    const int32_t n = stats(ctx).complete_pos + 1;
    CHECK(n < 700 && restore(ctx, text, n) == 0);
    CHECK(llama_memory_seq_rm(memory(other), 0, n, -1) && save(ctx) == save(other));
    CHECK(restore(ctx, text, n) == 0 && save(ctx) == save(other));
}

static void test_what_cannot_be(llama_model * model) {
    const auto text = some_tokens(700);
    auto       told = [&](const context_ptr & ctx, int32_t n, morphkv_status status, const char * what) {
        morphkv_restored out{};
        const auto       before = save(ctx);
        CHECK(try_restore(ctx, text, n, out) == status);
        CHECK(strstr(morphkv_last_error(), what) && save(ctx) == before);
    };
    const auto ctx = create_archived(model, alone(false));
    CHECK(decode(ctx, text) == 0);
    told(ctx, 0, MORPHKV_STATUS_INVALID, "n_tokens must be in 1..700, got 0");
    told(ctx, 701, MORPHKV_STATUS_INVALID, "n_tokens must be in 1..700, got 701");
    morphkv_restored wrong{};
    CHECK(morphkv_restore(ctx.get(), 0, text.data(), 5, &wrong) == MORPHKV_STATUS_INVALID);
    CHECK(morphkv_restore(ctx.get(), 0, nullptr, 5, &wrong) == MORPHKV_STATUS_INVALID);

    const auto plain = create_plain(model, alone(false));
    CHECK(decode(plain, text) == 0);
    told(plain, 300, MORPHKV_STATUS_INVALID, "needs an archive");
    CHECK(decode(plain, some_tokens(3)) == 0);

    const auto small = create_archived(model, alone(false, GGML_TYPE_F16, /*max_bytes =*/100000));
    CHECK(decode(small, text) == 0 && stats(small).n_archive_lost > 0);
    told(small, 90, MORPHKV_STATUS_FAILED, "does not have the token at position 0");
    CHECK(decode(small, some_tokens(3)) == 0);
}

static void test_other_layers(const tiny_shape & shape, const char * what) {
    const auto       model = tiny_model_load(shape);
    const auto       ctx   = create_archived(model.get(), alone(false));
    const auto       text  = some_tokens(700);
    morphkv_restored out{};
    CHECK(decode(ctx, text) == 0);
    const auto before = save(ctx);
    CHECK(try_restore(ctx, text, 300, out) == MORPHKV_STATUS_UNSUPPORTED);
    CHECK(strstr(morphkv_last_error(), what) && save(ctx) == before);
}

// Its graphs have four layers: one of the first fails, or of the second, when rows have moved.
static void test_failures_are_told() {
    tiny_shape shape;
    shape.n_layer        = 6;
    const auto model     = tiny_model_load(shape);
    const auto text      = some_tokens(700);
    int        n_cleared = 0;
    for (const step which : { step::ALLOC, step::COMPUTE }) {
        for (const int i_graph : { 0, 1 }) {
            const auto       ctx = create_archived(model.get(), alone(false));
            morphkv_restored out{};
            int              n_steps = 0;
            CHECK(decode(ctx, text) == 0);
            const auto before            = save(ctx);
            cache_of(ctx).inject_failure = [&](step s) {
                return s == which && n_steps++ == i_graph;
            };
            CHECK(try_restore(ctx, text, 300, out) == MORPHKV_STATUS_FAILED);
            cache_of(ctx).inject_failure = nullptr;
            const std::string why        = morphkv_last_error();
            const bool        is_cleared = stats(ctx).logical_pos == -1;
            CHECK(why.find("restore failed") == 0);
            CHECK(is_cleared == (why.find("has been cleared") != std::string::npos));
            CHECK(is_cleared || save(ctx) == before);
            CHECK(decode(ctx, text) == 0 && all_finite(logits(ctx)));
            n_cleared += is_cleared;
        }
    }
    CHECK(n_cleared >= 2);
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load();
    // M-RoPE; compressed keys, of which a part is rotated
    tiny_shape sections, mla, windowed, recurrent;
    sections.arch          = "qwen2vl";
    sections.n_head        = 2;
    sections.n_head_kv     = 1;
    mla.arch               = "deepseek2";
    mla.n_embd_head        = 64;
    mla.n_lora_kv          = 96;
    windowed.arch          = "granite_swa";
    windowed.n_layer       = 4;
    windowed.is_windowed   = { 1, 0, 1, 0 };
    recurrent.arch         = "lfm2";
    recurrent.n_layer      = 4;
    recurrent.n_head       = 2;
    recurrent.n_head_kv    = 1;
    recurrent.is_recurrent = { 1, 0, 1, 0 };
    test_a_short_text_is_whole_again({}, GGML_TYPE_F16, 0.02f);
    for (const tiny_shape & shape : { tiny_shape(), sections, mla }) {
        test_a_short_text_is_whole_again(shape, GGML_TYPE_F32, 2e-4f);
        test_rows_are_those_that_left(alone(false, GGML_TYPE_F32), shape, 1e-4f);
        test_rows_are_those_that_left(alone(true, GGML_TYPE_Q8_0), shape, 0.1f);
        test_a_passage_comes_along(alone(false, GGML_TYPE_F32), shape, 1e-4f);
    }
    archived_setup in_file = alone(false, GGML_TYPE_F32);
    in_file.path           = "test_restore.archive";
    test_rows_are_those_that_left(in_file, {}, 1e-4f);
    test_a_passage_comes_along(in_file, {}, 1e-4f);
    test_rows_are_those_that_left(alone(false), {}, 0.01f);
    test_a_passage_comes_along(alone(true), {}, 0.01f);
    test_no_ghost_is_left(model.get(), alone(false));
    for (const int32_t i_large : { 0, 1 }) {
        archived_setup groups = i_large == 0 ? in_file : alone(false, GGML_TYPE_F32);
        groups.i_large        = i_large;
        test_rows_are_those_that_left(groups, {}, 1e-4f);
        test_a_passage_comes_along(groups, {}, 1e-4f);
        groups.path = nullptr;
        test_no_ghost_is_left(model.get(), groups);
    }
    test_a_complete_place_keeps_its_bits(model.get());
    test_other_layers(windowed, "sliding window");
    test_other_layers(recurrent, "recurrent");
    keep_the_log();
    test_what_cannot_be(model.get());
    test_passages_that_cannot_be(model.get());
    test_failures_are_told();
    llama_backend_free();
    return 0;
}
