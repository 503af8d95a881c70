// A tiny model's context with an archive, in memory or in a file, and what tests do with it.
#pragma once

#include "support/inside.h"

struct archived_setup {
    const char * path      = nullptr;  // null: in memory
    bool         is_beside = false;    // appended to by a thread of its own, as where a GPU computes
    int32_t      capacity  = 100;      // slots: capacity - 8
    uint32_t     n_seq     = 2;
    ggml_type    type      = GGML_TYPE_F16;
    uint64_t     max_bytes = 2ull << 30;  // as by default; 0 = no limit
    int32_t      i_large   = -1;          // a layer that keeps 160, where the other keeps 40; -1: both are alike

    int32_t least() const { return i_large < 0 ? capacity : 40; }
};

// Of one sequence, without a limit.
inline archived_setup alone(bool is_beside, ggml_type type = GGML_TYPE_F16, uint64_t max_bytes = 0) {
    archived_setup res;
    res.is_beside = is_beside;
    res.n_seq     = 1;
    res.type      = type;
    res.max_bytes = max_bytes;
    return res;
}

inline context_ptr create_plain(llama_model * model, const archived_setup & setup) {
    auto params       = small_params();
    params.capacity   = setup.capacity;
    params.rope_limit = 400;
    if (setup.i_large >= 0) {
        params.n_large         = 1;
        params.large_layers[0] = setup.i_large;
        params.small_capacity  = setup.least();
        params.large_capacity  = 160;
    }
    auto cparams    = context_params(setup.n_seq);
    cparams.n_batch = 1024;
    cparams.type_k = cparams.type_v = setup.type;
    return create(model, params, cparams);
}

// False: it failed, and morphkv_last_error() says why.
inline bool start_archive(const context_ptr & ctx, const archived_setup & setup) {
    auto params      = morphkv_archive_params_default();
    params.path      = setup.path;
    params.max_bytes = setup.max_bytes;
    if (morphkv_archive_start(ctx.get(), &params) != MORPHKV_STATUS_OK) {
        return false;
    }
    morphkv_inside::append_beside(ctx, setup.is_beside);
    return true;
}

inline context_ptr create_archived(llama_model * model, const archived_setup & setup = {}) {
    auto res = create_plain(model, setup);
    CHECK(start_archive(res, setup));
    return res;
}

// Once all is archived that is on its way.
inline morphkv_stats settled(const context_ptr & ctx, llama_seq_id seq = 0) {
    archive_of(ctx, seq);
    CHECK(morphkv_archive_why_stopped(ctx.get(), seq)[0] == 0);
    return stats(ctx, seq);
}

inline morphkv_recall_params all_slots() {
    auto res  = morphkv_recall_params_default();
    res.share = 1.0f;
    return res;
}

inline morphkv_status try_recall(const context_ptr & ctx, morphkv_recalled & out, llama_seq_id seq = 0,
                                 const morphkv_recall_params & params = all_slots()) {
    out.size = sizeof(out);
    return morphkv_recall(ctx.get(), seq, &params, &out);
}

inline morphkv_recalled recall(const context_ptr & ctx, llama_seq_id seq = 0,
                               const morphkv_recall_params & params = all_slots()) {
    morphkv_recalled res{};
    if (try_recall(ctx, res, seq, params) != MORPHKV_STATUS_OK) {
        fprintf(stderr, "%s\n", morphkv_last_error());
        CHECK(false);
    }
    return res;
}

// How a prompt was read.
struct prompt_reading {
    int32_t n_recalls = 0;
    int32_t n_decoded = 0;  // tokens, those that were decoded again too
    int64_t n_evictions;    // of the sequence, before the prompt's last batch
};

// Reads text behind what the first sequence holds, as morphkv_prompt_next() says, in batches of n_batch tokens.
inline prompt_reading read_prompt(const context_ptr & ctx, const tokens & text, int32_t n_batch, bool recalls = true) {
    const auto     params = morphkv_recall_params_default();
    const int32_t  n_past = stats(ctx).logical_pos + 1;
    const int32_t  n_text = text.size();
    auto           prompt = morphkv_prompt_begin(n_past, n_past + n_text);
    prompt_reading res;
    prompt.stage = recalls ? MORPHKV_PROMPT_STAGE_FIRST : MORPHKV_PROMPT_STAGE_LAST;
    while (prompt.n_end < prompt.n_tokens) {
        const int32_t n_held = stats(ctx).logical_pos + 1;
        CHECK(morphkv_prompt_next(ctx.get(), 0, &params, &prompt, n_held) == MORPHKV_STATUS_OK);
        const int32_t first = n_held - prompt.n_back;
        const int32_t end   = std::min(prompt.n_end, first + n_batch);
        CHECK(llama_memory_seq_rm(memory(ctx), 0, first, -1));
        res.n_evictions = stats(ctx).n_evictions;
        CHECK(decode(ctx, tokens(text.begin() + (first - n_past), text.begin() + (end - n_past))) == 0);
        CHECK(!recalls || prompt.n_end < prompt.n_tokens || (end == prompt.n_tokens && end == first + 1));
        res.n_recalls += prompt.n_recalls;
        res.n_decoded += end - first;
    }
    CHECK(stats(ctx).logical_pos == n_past + n_text - 1);
    return res;
}

// All bytes or nothing. False: it was refused, and morphkv_last_error() says why.
inline bool load_strictly(const context_ptr & ctx, const bytes & state, llama_seq_id seq = 0,
                          llama_state_seq_flags flags = 0) {
    return morphkv_state_load(ctx.get(), seq, state.data(), state.size(), flags) == MORPHKV_STATUS_OK;
}

inline void remove_files(const archived_setup & setup) {
    if (setup.path) {
        std::remove(setup.path);
        std::remove((std::string(setup.path) + ".1").c_str());
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
