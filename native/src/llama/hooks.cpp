#include "llama/hooks.h"

#include "core/types.h"
#include "llama/batch-context.h"
#include "llama/borrowed.h"
#include "llama/hybrid.h"
#include "llama/memory.h"

#include "llama-arch.h"
#include "llama-context.h"
#include "llama-model.h"

static bool is_of_heads(const llama_memory_params & mparams) {
    return mparams.ctx_type == LLAMA_CONTEXT_TYPE_MTP;
}

// Of the layers that a context of this kind has in its cache.
static bool has_full_layer(const llama_hparams & hparams, const llama_memory_params & mparams) {
    const uint32_t first = is_of_heads(mparams) ? hparams.n_layer() : 0;
    const uint32_t last  = is_of_heads(mparams) ? hparams.n_layer_all : hparams.n_layer();
    for (uint32_t il = first; il < last; ++il) {
        if (hparams.has_kv(il) && hparams.n_head_kv(il) > 0 && !hparams.is_swa(il) && !hparams.is_recr(il)) {
            return true;
        }
    }
    return false;
}

// Why a model cannot be served, or nullptr. Those with a llama_kv_cache or llama_kv_cache_iswa are: what
// llama_model::create_memory() gives another memory is named here, so that it is refused before anything is allocated. An
// architecture missing here would still be noticed: its context would leave the pending parameters untaken
// (morphkv_context_create).
static const char * why_unsupported(const llama_model & model, const llama_memory_params & mparams) {
    const auto & hparams = model.hparams;

    if (llm_arch_is_recurrent(model.arch)) {
        return "it is recurrent and has no KV cache";
    }
    // the last two: with an indexer or not, their memory is of the kind that has one
    if (hparams.indexer_head_size > 0 || hparams.indexer_top_k > 0 || model.arch == LLM_ARCH_QWEN4EXP ||
        model.arch == LLM_ARCH_GLM5_NEXT) {
        return "it has sparse attention with an indexer";
    }
    if (hparams.is_swa_any() && hparams.is_mla()) {
        return "it has sliding windows over compressed keys (MLA)";
    }
    if (model.arch == LLM_ARCH_GEMMA4_ASSISTANT) {
        return morphkv_find_cache(static_cast<llama_memory_i *>(mparams.mem_other))
                   ? nullptr
                   : "it has no K and V of its own and needs those of a target with MorphKV";
    }
    if (hparams.is_swa_any() && !has_full_layer(hparams, mparams)) {
        return "each layer that attends has a sliding window, so that there is nothing to cut";
    }
    if (model.arch == LLM_ARCH_DFLASH) {
        return "it drafts a block whose tokens attend both ways, in cells that it writes anew for each";
    }
    // the encoder of EAGLE 3 makes inputs of what the target computed, token by token
    if (!hparams.causal_attn || (llama_model_has_encoder(&model) && model.arch != LLM_ARCH_EAGLE3)) {
        return "its attention is not causal";
    }
    if (hparams.use_alibi) {
        return "it uses ALiBi, which needs the distance of every token";
    }
    if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return "its layers are split inside (split mode tensor); devices can have whole layers (split mode layer)";
    }
    if (is_of_heads(mparams) && hparams.n_layer_nextn > 1) {
        return "it has several draft heads, each of which reads a whole text anew";
    }
    if (is_of_heads(mparams) && model.arch == LLM_ARCH_GLM4_MOE && hparams.use_mrope()) {
        return "its draft head has rope sections, over which llama.cpp ends the process";
    }
    return nullptr;
}

static const char * why_not_this_context(const llama_model & model, const llama_cparams & cparams) {
    // llama.cpp has none for grok
    if (!cparams.flash_attn && model.arch != LLM_ARCH_GROK) {
        return "needs flash attention, got flash attention off";
    }
    if (cparams.kv_unified && cparams.n_seq_max > 1) {
        return "needs a stream of cells for each sequence, got kv_unified = true";
    }
    if (cparams.n_rs_seq > 0 && cparams.n_ubatch <= cparams.n_rs_seq + 1) {
        return "needs a micro-batch for a whole draft, got n_ubatch of at most n_rs_seq + 1";
    }
    return nullptr;
}

static void check(const llama_model & model, const llama_memory_params & mparams, const llama_cparams & cparams,
                  const morphkv_params & params) {
    auto refuse = [](const std::string & what) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "MorphKV " + what);
    };

    if (const char * why = why_unsupported(model, mparams)) {
        refuse("cannot serve architecture '" + model.arch_name() + "': " + why);
    }
    if (const char * why = why_not_this_context(model, cparams)) {
        refuse(why);
    }
    for (const ggml_type type : { mparams.type_k, mparams.type_v }) {
        if (!morphkv_is_row_type(type)) {
            refuse("needs a K/V type among " + morphkv_row_type_names() + ", got " + ggml_type_name(type));
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

static std::unique_ptr<morphkv_cache> make_cache(const llama_model & model, const llama_memory_params & mparams,
                                                 const llama_cparams & cparams, const morphkv_params & params,
                                                 const llama_memory_i::layer_filter_cb & filter,
                                                 const llama_memory_i::layer_reuse_cb &  reuse) {
    const uint32_t n_window_cells =
        morphkv_window::n_cells(model.hparams, cparams.n_ubatch, mparams.swa_full, morphkv_cache::n_cells(params));
    // a layer without KV heads (Nemotron 51B) has no attention that could be cut; llama.cpp makes empty tensors for it, and
    // in a context that is not of heads for the layers of heads (Ling 3)
    const auto &   hparams   = model.hparams;
    const bool     is_all    = is_of_heads(mparams) || hparams.router_layer >= 0;
    const uint32_t n_layer   = is_all ? hparams.n_layer_all : hparams.n_layer();
    const auto     has_heads = [&hparams, filter, n_layer](int32_t il) {
        return (uint32_t) il < n_layer && (!filter || filter(il)) && hparams.n_head_kv(il) > 0;
    };
    const auto plan = morphkv_plan_layers(model.hparams, params, mparams.type_k, mparams.type_v, has_heads, reuse);
    return std::make_unique<morphkv_cache>(model, model.hparams, params, plan, mparams.type_k, mparams.type_v,
                                           cparams.offload_kqv, cparams.n_seq_max, has_heads, reuse, n_window_cells);
}

llama_memory_i * morphkv_hook_create_memory(const llama_model & model, const llama_memory_params & mparams,
                                            const llama_cparams &                   cparams,
                                            const llama_memory_i::layer_filter_cb & filter,
                                            const llama_memory_i::layer_reuse_cb &  reuse) {
    const auto params = morphkv_pending_take();
    if (!params) {
        return nullptr;
    }
    try {
        if (model.arch == LLM_ARCH_GEMMA4_ASSISTANT) {
            auto & target = *morphkv_find_cache(static_cast<llama_memory_i *>(mparams.mem_other));
            return new morphkv_borrowed(model, mparams.type_k, mparams.type_v, cparams.n_seq_max,
                                        *llama_get_model(cparams.ctx_other), target);
        }
        auto res            = make_cache(model, mparams, cparams, *params, filter, reuse);
        res->follows_target = is_of_heads(mparams) || model.arch == LLM_ARCH_EAGLE3;
        return res.release();
    } catch (const morphkv_error & err) {
        morphkv_error_set(err.status, err.what());
        throw;
    } catch (const std::exception & err) {
        morphkv_error_set(MORPHKV_STATUS_FAILED, err.what());
        throw;
    }
}

llama_memory_i * morphkv_hook_create_hybrid(const llama_model & model, const llama_memory_params & mparams,
                                            const llama_cparams &                   cparams,
                                            const llama_memory_i::layer_filter_cb & filter_attn,
                                            const llama_memory_i::layer_filter_cb & filter_recr) {
    const auto params = morphkv_pending_take();
    if (!params) {
        return nullptr;
    }
    try {
        // llama_memory_hybrid's defaults
        const auto & hparams = model.hparams;
        auto         attends = filter_attn;
        auto         recurs  = filter_recr;
        if (!attends) {
            attends = [&hparams](int32_t il) {
                return !hparams.is_recr(il);
            };
        }
        if (!recurs) {
            recurs = [&hparams](int32_t il) {
                return hparams.is_recr(il);
            };
        }
        auto           attn    = make_cache(model, mparams, cparams, *params, attends, nullptr);
        const uint32_t n_cells = morphkv_marks::n_cells(cparams.n_seq_max);

        auto recr = std::make_unique<llama_memory_recurrent>(model, GGML_TYPE_F32, GGML_TYPE_F32, cparams.offload_kqv,
                                                             n_cells, n_cells, cparams.n_rs_seq, recurs);
        return new morphkv_hybrid(std::move(attn), std::move(recr));
    } catch (const morphkv_error & err) {
        morphkv_error_set(err.status, err.what());
        throw;
    } catch (const std::exception & err) {
        morphkv_error_set(MORPHKV_STATUS_FAILED, err.what());
        throw;
    }
}

void morphkv_hook_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf,
                              const llama_memory_context_i * mctx, const llama_ubatch & ubatch, ggml_tensor * q,
                              const ggml_tensor * k, ggml_tensor * sinks, float kq_scale, int il) {
    if (const auto * cur = dynamic_cast<const morphkv_cache_context *>(mctx)) {
        cur->get_cache()->build_store_query(res, ctx, gf, ubatch, q, k, sinks, kq_scale, il);
    } else if (const auto * cur = dynamic_cast<const morphkv_group_context *>(mctx)) {
        cur->get_cache()->build_store_query(res, ctx, gf, ubatch, q, k, sinks, kq_scale, il);
    } else if (const auto * cur = dynamic_cast<const morphkv_window_context *>(mctx)) {
        if (k) {
            cur->get_window()->note_rope(k, il);
        }
    }
}

void morphkv_hook_positions(llm_graph_result * res, const llama_memory_context_i * mctx, ggml_tensor * pos) {
    if (const auto * cur = dynamic_cast<const morphkv_context *>(mctx)) {
        cur->get_cache()->build_rotary_positions(res, pos);
    }
}
