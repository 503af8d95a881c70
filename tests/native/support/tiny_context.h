// A tiny model's context with MorphKV, and what tests do with it all the time.
#pragma once

#include "morphkv.h"
#include "support/tiny_model.h"

#include <algorithm>
#include <cstring>

using tokens = std::vector<llama_token>;
using floats = std::vector<float>;
using bytes  = std::vector<uint8_t>;

constexpr auto CHECKPOINT = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;

inline llama_context_params context_params(uint32_t n_seq_max = 1) {
    auto res            = llama_context_default_params();
    res.n_ctx           = 2048 * n_seq_max;
    res.n_batch         = 512;
    res.n_ubatch        = 16;
    res.n_seq_max       = n_seq_max;
    res.n_threads       = 1;
    res.n_threads_batch = 1;
    res.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return res;
}

inline morphkv_params small_params() {
    auto res        = morphkv_params_default();
    res.capacity    = 40;
    res.window      = 8;
    res.interval    = 6;
    res.keep        = 3;
    res.prompt_room = 30;
    return res;
}

inline context_ptr create(llama_model * model, const morphkv_params & params, llama_context_params cparams) {
    llama_context * ctx = nullptr;
    if (morphkv_context_create(model, &cparams, &params, &ctx) != MORPHKV_STATUS_OK) {
        fprintf(stderr, "%s\n", morphkv_last_error());
        CHECK(false);
    }
    return context_ptr(ctx);
}

inline tokens some_tokens(int32_t n, uint32_t seed = 1) {
    std::mt19937 rng(seed);
    tokens       res(n);
    for (auto & t : res) {
        t = rng() % TINY_N_VOCAB;
    }
    return res;
}

inline llama_memory_t memory(const context_ptr & ctx) {
    return llama_get_memory(ctx.get());
}

enum class want { LAST, ALL };  // logits

// Decodes t behind what the sequences hold, the same tokens in each, as one batch.
inline int decode(const context_ptr & ctx, const tokens & t, const std::vector<llama_seq_id> & seqs = { 0 },
                  want logits = want::LAST) {
    llama_batch batch = llama_batch_init(t.size() * seqs.size(), 0, 1);
    for (const llama_seq_id seq : seqs) {
        const llama_pos first = llama_memory_seq_pos_max(memory(ctx), seq) + 1;
        for (size_t i = 0; i < t.size(); ++i) {
            batch.token[batch.n_tokens]     = t[i];
            batch.pos[batch.n_tokens]       = first + i;
            batch.n_seq_id[batch.n_tokens]  = 1;
            batch.seq_id[batch.n_tokens][0] = seq;
            batch.logits[batch.n_tokens]    = logits == want::ALL || i + 1 == t.size();
            batch.n_tokens++;
        }
    }
    const int res = llama_decode(ctx.get(), batch);
    llama_batch_free(batch);
    return res;
}

inline void decode_singly(const context_ptr & ctx, const tokens & t, const std::vector<llama_seq_id> & seqs = { 0 }) {
    for (const llama_token token : t) {
        CHECK(decode(ctx, { token }, seqs) == 0);
    }
}

// Logits of the i-th sequence of the last batch.
inline floats logits(const context_ptr & ctx, int32_t i = -1) {
    const float * data = llama_get_logits_ith(ctx.get(), i);
    CHECK(data);
    return floats(data, data + TINY_N_VOCAB);
}

inline bool all_finite(const floats & x) {
    return std::all_of(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
}

inline morphkv_stats stats(const context_ptr & ctx, int32_t seq = 0) {
    morphkv_stats res{};
    res.size = sizeof(res);
    CHECK(morphkv_stats_get(ctx.get(), seq, &res) == MORPHKV_STATUS_OK);
    return res;
}

// (n_head_kv*n_distant) of a layer
inline std::vector<int32_t> retained(const context_ptr & ctx, int32_t seq, int32_t layer) {
    int32_t n_head_kv, n_distant;
    CHECK(morphkv_retained_shape(ctx.get(), layer, &n_head_kv, &n_distant) == MORPHKV_STATUS_OK);
    std::vector<int32_t> res(n_head_kv * n_distant);
    CHECK(morphkv_retained_get(ctx.get(), seq, layer, res.data(), res.size()) == MORPHKV_STATUS_OK);
    return res;
}

// Evaluates t one by one; the logits of each.
inline std::vector<floats> logits_of(const context_ptr & ctx, const tokens & t, llama_seq_id seq = 0) {
    std::vector<floats> res;
    for (const llama_token token : t) {
        decode_singly(ctx, { token }, { seq });
        res.push_back(logits(ctx));
    }
    return res;
}

// Decodes single tokens until the sequence has just been cut.
inline void decode_to_a_cut(const context_ptr & ctx, llama_seq_id seq = 0) {
    const auto n_evictions = stats(ctx, seq).n_evictions;
    while (stats(ctx, seq).n_evictions == n_evictions) {
        decode_singly(ctx, { 5 }, { seq });
    }
}

// The same text gives the same bytes, whichever sequence it is in.
inline bytes save(const context_ptr & ctx, llama_seq_id seq = 0, llama_state_seq_flags flags = 0) {
    constexpr size_t AT_SEQ_ID = 4;  // where llama.cpp notes it, and does not read it
    bytes            res(llama_state_seq_get_size_ext(ctx.get(), seq, flags));
    CHECK(res.size() > AT_SEQ_ID + sizeof(seq));
    CHECK(llama_state_seq_get_data_ext(ctx.get(), res.data(), res.size(), seq, flags) == res.size());
    memset(res.data() + AT_SEQ_ID, 0, sizeof(seq));
    return res;
}

inline bytes save_all(const context_ptr & ctx) {
    bytes res(llama_state_get_size(ctx.get()));
    CHECK(!res.empty());
    CHECK(llama_state_get_data(ctx.get(), res.data(), res.size()) == res.size());
    return res;
}

// A state that more bytes may follow: how many it has, 0 = it was refused.
inline size_t load_some(const context_ptr & ctx, const bytes & state, llama_seq_id seq = 0,
                        llama_state_seq_flags flags = 0) {
    const size_t res = llama_state_seq_set_data_ext(ctx.get(), state.data(), state.size(), seq, flags);
    CHECK(res <= state.size());
    return res;
}

inline size_t load_some_of_all(const context_ptr & ctx, const bytes & state) {
    const size_t res = llama_state_set_data(ctx.get(), state.data(), state.size());
    CHECK(res <= state.size());
    return res;
}

// False: it was refused.
inline bool load(const context_ptr & ctx, const bytes & state, llama_seq_id seq = 0, llama_state_seq_flags flags = 0) {
    const size_t n = load_some(ctx, state, seq, flags);
    CHECK(n == 0 || n == state.size());
    return n > 0;
}

inline bool load_all(const context_ptr & ctx, const bytes & state) {
    const size_t n = load_some_of_all(ctx, state);
    CHECK(n == 0 || n == state.size());
    return n > 0;
}

inline void log_errors_only() {
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level >= GGML_LOG_LEVEL_ERROR) {
                fputs(text, stderr);
            }
        },
        nullptr);
}
