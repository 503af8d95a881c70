// The C API of going back by the archive, and of passages.

#include "core/change.h"
#include "core/restore.h"
#include "llama/capi.h"
#include "llama/hybrid.h"
#include "llama/memory.h"

#include "llama-context.h"

static morphkv_cache & restorable_cache_of(llama_context * ctx, int32_t seq_id) {
    auto & cache = cache_of(ctx, seq_id);
    if (dynamic_cast<morphkv_hybrid *>(ctx->get_memory())) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED,
                            "a restore is not possible with recurrent layers, which go back to a mark alone");
    }
    ctx->synchronize();
    return cache;
}

morphkv_status morphkv_restore(struct llama_context * ctx, int32_t seq_id, const int32_t * tokens, int32_t n_tokens,
                               morphkv_restored * out) {
    return guarded([&] {
        auto & cache = restorable_cache_of(ctx, seq_id);
        require(tokens, "tokens must not be NULL");
        require_size(out, "out");
        *out = cache.restore(seq_id, tokens, n_tokens);
    });
}

morphkv_status morphkv_passage_take(struct llama_context * ctx, int32_t seq_id, int32_t first, int32_t n_tokens,
                                    morphkv_passage ** out) {
    return guarded([&] {
        auto & cache = restorable_cache_of(ctx, seq_id);
        require(out, "out must not be NULL");
        *out = cache.take_passage(seq_id, first, n_tokens).release();
    });
}

morphkv_status morphkv_passage_put(struct llama_context * ctx, int32_t seq_id, const morphkv_passage * passage,
                                   const int32_t * tokens, int32_t n_tokens, morphkv_restored * out) {
    return guarded([&] {
        auto & cache = restorable_cache_of(ctx, seq_id);
        require(passage && tokens, "passage and tokens must not be NULL");
        require_size(out, "out");
        const int32_t n_all = cache.text_of(seq_id).n_tokens() + passage->n;
        require(n_tokens == n_all, "n_tokens must be " + std::to_string(n_all) + ", got " + std::to_string(n_tokens));
        *out = cache.put_passage(seq_id, *passage, tokens);
    });
}

morphkv_status morphkv_change_plan(const int32_t * text, int32_t n_text, const int32_t * prompt, int32_t n_prompt,
                                   int32_t n_cached, morphkv_change * out) {
    return guarded([&] {
        require((text || n_text == 0) && (prompt || n_prompt == 0), "text and prompt must not be NULL");
        require(n_text >= 0 && n_prompt >= 0, "n_text and n_prompt must not be negative");
        require_size(out, "out");
        *out = morphkv_plan_change(text, n_text, prompt, n_prompt, n_cached);
    });
}

void morphkv_passage_free(morphkv_passage * passage) {
    delete passage;
}
