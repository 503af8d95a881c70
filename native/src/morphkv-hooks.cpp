#include "morphkv-hooks.h"

#include "morphkv-cache.h"

#include "llama-arch.h"
#include "llama-model.h"

// Why a model cannot be served, or nullptr. Only plain llama_kv_cache models are: what llama_model::create_memory() gives
// another memory is named here, so that it is refused before anything is allocated. An architecture missing here would
// still be noticed: its context would leave the pending parameters untaken (morphkv_context_create).
static const char * why_unsupported(const llama_model & model, const llama_memory_params & mparams) {
    const auto & hparams = model.hparams;

    if (llm_arch_is_recurrent(model.arch)) {
        return "it is recurrent and has no KV cache";
    }
    if (llm_arch_is_hybrid(model.arch)) {
        return "it mixes attention with recurrent layers";
    }
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE || hparams.is_swa_any()) {
        return "it has sliding-window attention";
    }
    if (hparams.is_mla()) {
        return "its cache holds compressed keys only (MLA)";
    }
    if (hparams.indexer_head_size > 0 || hparams.indexer_top_k > 0) {
        return "it has sparse attention with an indexer";
    }
    if (!hparams.causal_attn || llama_model_has_encoder(&model)) {
        return "its attention is not causal";
    }
    if (hparams.use_alibi) {
        return "it uses ALiBi, which needs the distance of every token";
    }
    if (model.pos_embd) {
        return "its positions are learned, and end with the trained context";
    }
    if (hparams.n_pos_per_embd() > 1) {
        return "its tokens have more than one position (M-RoPE)";
    }
    if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return "its layers are split inside (split mode tensor); devices can have whole layers (split mode layer)";
    }
    if (mparams.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || mparams.mem_other) {
        return "the context is a draft head that shares its cache with another";
    }
    return nullptr;
}

static const char * why_not_this_context(const llama_cparams & cparams) {
    if (!cparams.flash_attn) {
        return "needs flash attention, got flash attention off";
    }
    if (cparams.kv_unified && cparams.n_seq_max > 1) {
        return "needs a stream of cells for each sequence, got kv_unified = true";
    }
    return nullptr;
}

static bool is_row_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q4_0:
            return true;
        default:
            return false;
    }
}

static void check(const llama_model & model, const llama_memory_params & mparams, const llama_cparams & cparams,
                  const morphkv_params & params) {
    auto refuse = [](const std::string & what) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "MorphKV " + what);
    };

    if (const char * why = why_unsupported(model, mparams)) {
        refuse("cannot serve architecture '" + model.arch_name() + "': " + why);
    }
    if (const char * why = why_not_this_context(cparams)) {
        refuse(why);
    }
    for (const ggml_type type : { mparams.type_k, mparams.type_v }) {
        if (!is_row_type(type)) {
            refuse("needs a K/V type among f32, f16, bf16, q8_0, q5_0, q4_0, got " + std::string(ggml_type_name(type)));
        }
    }
    if (params.rope_limit > 0 && (uint32_t) params.rope_limit < morphkv_cache::n_limit(params)) {
        throw morphkv_error(MORPHKV_STATUS_INVALID,
                            "rope_limit must be 0, -1 or at least capacity + max(interval, prompt_room), got " +
                                std::to_string(params.rope_limit) + " with " +
                                std::to_string(morphkv_cache::n_limit(params)));
    }
    if (morphkv_cache::n_limit(params) > cparams.n_ctx_seq) {
        throw morphkv_error(MORPHKV_STATUS_INVALID,
                            "capacity + max(interval, prompt_room) must not exceed the context of a sequence, got " +
                                std::to_string(params.capacity) + " + " + std::to_string(morphkv_params_room(params)) +
                                " with a context of " + std::to_string(cparams.n_ctx_seq));
    }
}

void morphkv_hook_check(const llama_model & model, const llama_memory_params & mparams, const llama_cparams & cparams) {
    const auto pending = morphkv_pending_get();
    if (!pending) {
        return;
    }
    try {
        check(model, mparams, cparams, *pending);
    } catch (const morphkv_error & err) {
        // llama.cpp keeps the exception to itself
        morphkv_error_set(err.status, err.what());
        throw;
    }
}

llama_memory_i * morphkv_hook_create_memory(const llama_model & model, const llama_memory_params & mparams,
                                            const llama_cparams &                   cparams,
                                            const llama_memory_i::layer_filter_cb & filter) {
    const auto params = morphkv_pending_take();
    if (!params) {
        return nullptr;
    }
    try {
        return new morphkv_cache(model, model.hparams, *params, mparams.type_k, mparams.type_v, cparams.offload_kqv,
                                 cparams.n_seq_max, filter);
    } catch (const std::exception & err) {
        morphkv_error_set(MORPHKV_STATUS_FAILED, err.what());
        throw;
    }
}

void morphkv_hook_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf,
                              const llama_memory_context_i * mctx, const llama_ubatch & ubatch, ggml_tensor * q,
                              const ggml_tensor * k, float kq_scale, int il) {
    if (const auto * cur = dynamic_cast<const morphkv_cache_context *>(mctx)) {
        cur->get_cache()->build_store_query(res, ctx, gf, ubatch, q, k, kq_scale, il);
    }
}

void morphkv_hook_positions(llm_graph_result * res, const llama_memory_context_i * mctx, ggml_tensor * pos) {
    if (const auto * cur = dynamic_cast<const morphkv_cache_context *>(mctx)) {
        cur->get_cache()->build_rotary_positions(res, pos);
    }
}
