// A tiny model's context with an archive, in memory or in a file, and what tests do with it.
#pragma once

#include "support/tiny_context.h"

#include "llama/hybrid.h"
#include "llama/memory.h"

using bytes = std::vector<uint8_t>;

constexpr auto CHECKPOINT = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;

// How an archive lies.
struct place {
    const char * path;  // null: in memory
    bool         is_beside = false;
};

// Access to the archives.
struct morphkv_recall_test {
    static morphkv_archives & archives(const context_ptr & ctx) {
        return *morphkv_find_cache((llama_memory_i *) memory(ctx))->archives;
    }

    static void append_beside(const context_ptr & ctx, bool is_beside) { archives(ctx).has_thread = is_beside; }
};

inline const morphkv_archive & archive_of(const context_ptr & ctx, llama_seq_id seq = 0) {
    return morphkv_recall_test::archives(ctx).of(seq);
}

// Slots: capacity - 8.
inline context_ptr create_plain(llama_model * model, int32_t capacity = 100) {
    auto params       = small_params();
    params.capacity   = capacity;
    params.rope_limit = 400;
    auto cparams      = context_params(2);
    cparams.n_batch   = 1024;
    return create(model, params, cparams);
}

inline bool start_archive(const context_ptr & ctx, const place & place) {
    auto params = morphkv_archive_params_default();
    params.path = place.path;
    if (morphkv_archive_start(ctx.get(), &params) != MORPHKV_STATUS_OK) {
        return false;
    }
    morphkv_recall_test::append_beside(ctx, place.is_beside);
    return true;
}

inline context_ptr create_archived(llama_model * model, const place & place, int32_t capacity = 100) {
    auto res = create_plain(model, capacity);
    CHECK(start_archive(res, place));
    return res;
}

// False: it failed, and morphkv_last_error() says why.
inline bool recall(const context_ptr & ctx, llama_seq_id seq = 0, morphkv_recalled * out = nullptr) {
    auto             params = morphkv_recall_params_default();
    morphkv_recalled mine{};
    params.share = 1.0f;
    out          = out ? out : &mine;
    out->size    = sizeof(*out);
    return morphkv_recall(ctx.get(), seq, &params, out) == MORPHKV_STATUS_OK;
}

inline bytes save(const context_ptr & ctx, llama_seq_id seq = 0, llama_state_seq_flags flags = 0) {
    bytes res(llama_state_seq_get_size_ext(ctx.get(), seq, flags));
    CHECK(!res.empty());
    CHECK(llama_state_seq_get_data_ext(ctx.get(), res.data(), res.size(), seq, flags) == res.size());
    return res;
}

inline bytes save_all(const context_ptr & ctx) {
    bytes res(llama_state_get_size(ctx.get()));
    CHECK(!res.empty());
    CHECK(llama_state_get_data(ctx.get(), res.data(), res.size()) == res.size());
    return res;
}

inline bool load(const context_ptr & ctx, const bytes & state, llama_seq_id seq = 0, llama_state_seq_flags flags = 0) {
    return morphkv_state_load(ctx.get(), seq, state.data(), state.size(), flags) == MORPHKV_STATUS_OK;
}

inline void remove_files(const place & place) {
    if (place.path) {
        std::remove(place.path);
        std::remove((std::string(place.path) + ".1").c_str());
    }
}

// Warnings and errors since it was last emptied.
inline std::string g_log;

inline void keep_the_log() {
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level >= GGML_LOG_LEVEL_WARN) {
                g_log += text;
            }
        },
        nullptr);
}
