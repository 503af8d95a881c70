#include "fuzz_archive_context.h"

#include "support/archived_context.h"

#include <cstring>

namespace {

constexpr int N_LIMITS = 4;

// What a context has left behind, with an archive of so many bytes.
struct left {
    uint64_t max_bytes;
    bytes    file;
    bytes    checkpoint;  // the state without the archive's pages
};

morphkv_params context_settings() {
    auto res        = small_params();
    res.capacity    = 40;
    res.window      = 4;
    res.interval    = 4;
    res.keep        = 2;
    res.prompt_room = 6;
    return res;
}

const morphkv_page_layout & context_layout(const context_ptr & ctx) {
    static const morphkv_page_layout res = [&] {
        morphkv_page_layout layout(GGML_TYPE_Q4_0, GGML_TYPE_Q4_0);
        for (const auto & layer : cache_of(ctx).get_side().layers) {
            layout.add_layer(layer.n_head_kv, layer.k->ne[0] / layer.n_head_kv, layer.v->ne[0] / layer.n_head_kv);
        }
        return layout;
    }();
    return res;
}

context_ptr make_context() {
    // never freed, as in fuzz_state_context.cpp
    static llama_model * const model = [] {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        return tiny_model_load({ 2, 1, 32, "llama", 2 }).release();
    }();
    return create(model, context_settings(), context_params());
}

morphkv_status open_archive(const context_ptr & ctx, uint64_t max_bytes) {
    auto params      = morphkv_archive_params_default();
    params.type_k    = GGML_TYPE_Q4_0;
    params.type_v    = GGML_TYPE_Q4_0;
    params.max_bytes = max_bytes;
    params.path      = fuzz_file().path.c_str();
    return morphkv_archive_start(ctx.get(), &params);
}

const left & left_behind(int i_limit) {
    static const std::vector<left> all = [] {
        std::vector<left> res;
        for (int i = 0; i < N_LIMITS; ++i) {
            const auto     ctx       = make_context();
            // 0, 2, 4 and 8 pages
            const uint64_t max_bytes = i == 0 ? 0 : fuzz_page_bytes(context_layout(ctx)) << i;
            fuzz_file().write({});
            CHECK(open_archive(ctx, max_bytes) == MORPHKV_STATUS_OK);
            CHECK(decode(ctx, some_tokens(150)) == 0);
            decode_to_a_cut(ctx);
            CHECK(stats(ctx).n_archived > 0);
            bytes checkpoint = save(ctx, 0, CHECKPOINT);
            res.push_back({ max_bytes, fuzz_file().read(), std::move(checkpoint) });
        }
        return res;
    }();
    return all.at(i_limit);
}

// Each four bytes are a change of the file, or none.
void change(bytes & file, const uint8_t * data, size_t size) {
    constexpr size_t N_HEADER = 72, PADDED = 4096;
    for (size_t i = 0; i + 4 <= size && file.size() > PADDED; i += 4) {
        uint16_t at;
        memcpy(&at, data + i, sizeof(at));
        const size_t anywhere = PADDED + at % (file.size() - PADDED);
        switch (data[i + 3] % 8) {
            case 0:
                file[at % N_HEADER] = data[i + 2];
                break;
            case 1:
                file[at % N_HEADER] += data[i + 2];
                break;
            case 2:
                file[anywhere] = data[i + 2];
                break;
            case 3:
                file.resize(anywhere);
                break;
        }
    }
}

}  // namespace

void fuzz_run_context(fuzz_form form, int i_limit, bool is_damaged, int32_t n, const uint8_t * data, size_t size) {
    const left & base = left_behind(i_limit);
    const auto   ctx  = make_context();
    bytes        file = base.file;
    change(file, data, size);
    fuzz_mend_file(form, context_layout(ctx), file);
    fuzz_file().write(file);
    if (open_archive(ctx, base.max_bytes) != MORPHKV_STATUS_OK) {
        CHECK(strlen(morphkv_last_error()) > 0);
        g_fuzz_counts["refused by a context"]++;
        return;
    }
    g_fuzz_counts["loaded"]++;
    g_fuzz_counts["below a context"]++;
    CHECK(load(ctx, base.checkpoint, 0, CHECKPOINT));

    auto recall_all = [&] {
        g_fuzz_counts["tokens recalled"] += recall(ctx).n_recalled;
    };
    recall_all();
    decode_singly(ctx, some_tokens(2, n));
    if (is_damaged) {
        fuzz_file().damage(n);
    }
    recall_all();
    CHECK(decode(ctx, some_tokens(1 + n, n)) == 0);
    llama_memory_seq_rm(memory(ctx), 0, llama_memory_seq_pos_max(memory(ctx), 0) - 1, -1);
    recall_all();
    decode_singly(ctx, some_tokens(1, n));
    // rows that no context has written are not recalled, or they have a checksum that was put right here
    CHECK(form >= fuzz_form::HASHED || all_finite(logits(ctx)));
    retained(ctx, 0, 0);
    CHECK(stats(ctx).logical_pos > 0);
}
