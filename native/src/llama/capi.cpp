// The C API of contexts: their caches, archives and states.

#include "llama/capi.h"
#include "core/params.h"
#include "core/prompt.h"
#include "llama/borrowed.h"
#include "llama/hybrid.h"
#include "llama/memory.h"
#include "llama/state.h"

#include "ggml-cpp.h"
#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

morphkv_cache & cache_of(llama_context * ctx, int32_t seq_id) {
    require(ctx, "ctx must not be NULL");
    auto * cache = morphkv_find_cache(ctx->get_memory());
    if (!cache) {
        throw morphkv_error(MORPHKV_STATUS_NO_MORPHKV, "this context was created without MorphKV");
    }
    const int32_t n_seq = cache->get_n_stream();
    require(seq_id >= 0 && seq_id < n_seq,
            "seq_id must be in 0.." + std::to_string(n_seq - 1) + ", got " + std::to_string(seq_id));
    return *cache;
}

namespace {

// What cannot be known before the context exists.
void check_context(llama_context & ctx) {
    auto refuse = [](const std::string & what) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "MorphKV " + what);
    };

    if (dynamic_cast<morphkv_borrowed *>(ctx.get_memory())) {
        return;  // the target's cache, which has been checked
    }
    auto * cache = morphkv_find_cache(ctx.get_memory());
    if (!cache) {
        refuse("cannot serve this model: it has no KV cache of a known kind");
    }
    if (!ctx.get_cparams().flash_attn && ctx.get_model().arch != LLM_ARCH_GROK) {
        refuse("needs flash attention, which a device of this context does not support");
    }
    if (cache->get_params().rope_limit > 0 && cache->rope_limit() == 0) {
        const auto * layer = cache->find_unknown_rope();
        std::string  why   = "its tokens have more than one position (M-RoPE)";
        if (cache->get_pos_end() > 0) {
            why = "its positions are learned";
        } else if (layer) {
            why = "layer " + std::to_string(layer->il) + " rotates its keys in a way that cannot be turned on";
        }
        refuse("cannot rebase the positions of this model: " + why + "; rope_limit must be 0 or -1, got " +
               std::to_string(cache->get_params().rope_limit));
    }
    const std::string why = cache->why_not_computed(&ctx);
    if (!why.empty()) {
        refuse("cannot work on the devices of this context: " + why +
               "; leave K and V on the CPU (offload_kqv = false, --no-kv-offload)");
    }
}

}  // namespace

int32_t morphkv_abi_version(void) {
    return MORPHKV_ABI_VERSION;
}

const char * morphkv_version(void) {
    return MORPHKV_VERSION;
}

const char * morphkv_upstream_version(void) {
    return MORPHKV_UPSTREAM_VERSION;
}

morphkv_status morphkv_params_check(const morphkv_params * params) {
    return guarded([&] { morphkv_params_checked(params); });
}

morphkv_status morphkv_params_cells(const morphkv_params * params, int32_t * n_cells) {
    return guarded([&] {
        require(n_cells, "n_cells must not be NULL");
        *n_cells = morphkv_cache::n_cells(morphkv_params_checked(params));
    });
}

morphkv_status morphkv_params_set_next(const morphkv_params * params) {
    return guarded([&] {
        morphkv_pending_set(std::nullopt);
        if (params) {
            morphkv_pending_set(morphkv_params_checked(params));
        }
    });
}

morphkv_status morphkv_context_check(struct llama_context * ctx) {
    return guarded([&] {
        require(ctx, "ctx must not be NULL");
        check_context(*ctx);
    });
}

morphkv_status morphkv_context_create(struct llama_model * model, const struct llama_context_params * cparams,
                                      const morphkv_params * params, struct llama_context ** out) {
    return guarded([&] {
        require(out, "out must not be NULL");
        *out = nullptr;
        require(model, "model must not be NULL");
        require(cparams, "cparams must not be NULL");
        const morphkv_params checked = morphkv_params_checked(params);

        llama_context_params own = *cparams;
        own.kv_unified           = false;

        morphkv_pending_set(checked);
        llama_context * ctx = llama_init_from_model(model, own);
        morphkv_pending_set(std::nullopt);

        if (!ctx) {
            const std::string why = morphkv_last_error();
            throw morphkv_error(why.empty() ? MORPHKV_STATUS_FAILED : morphkv_last_status(),
                                why.empty() ? "llama_init_from_model failed, see llama.cpp's log" : why);
        }
        try {
            check_context(*ctx);
        } catch (...) {
            llama_free(ctx);
            throw;
        }
        *out = ctx;
    });
}

morphkv_status morphkv_stats_get(struct llama_context * ctx, int32_t seq_id, morphkv_stats * out) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, seq_id);
        require_size(out, "out");
        if (const auto * hybrid = dynamic_cast<morphkv_hybrid *>(ctx->get_memory())) {
            hybrid->get_stats(seq_id, *out);
        } else {
            cache.get_stats(seq_id, *out);
        }
    });
}

morphkv_status morphkv_keep_set(struct llama_context * ctx, int32_t seq_id, int32_t n_keep) {
    return guarded([&] { cache_of(ctx, seq_id).set_keep(seq_id, n_keep); });
}

morphkv_status morphkv_mark_set(struct llama_context * ctx, int32_t seq_id) {
    return guarded([&] {
        cache_of(ctx, seq_id);
        if (auto * hybrid = dynamic_cast<morphkv_hybrid *>(ctx->get_memory())) {
            hybrid->set_mark(seq_id);
        }
    });
}

morphkv_status morphkv_retained_shape(struct llama_context * ctx, int32_t layer, int32_t * n_head_kv,
                                      int32_t * n_distant) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, 0);
        require(n_head_kv && n_distant, "n_head_kv and n_distant must not be NULL");
        cache.get_retained_shape(layer, *n_head_kv, *n_distant);
    });
}

morphkv_status morphkv_retained_get(struct llama_context * ctx, int32_t seq_id, int32_t layer, int32_t * pos,
                                    size_t n) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, seq_id);
        require(pos, "pos must not be NULL");
        ctx->synchronize();
        const std::vector<int32_t> res = cache.get_retained(seq_id, layer);
        require(n == res.size(), "n must be " + std::to_string(res.size()) + ", got " + std::to_string(n));
        std::copy(res.begin(), res.end(), pos);
    });
}

morphkv_status morphkv_recalled_get(struct llama_context * ctx, int32_t seq_id, int32_t * pos, int32_t * recall,
                                    int32_t n_max, int32_t * n_pages) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, seq_id);
        require(n_pages, "n_pages must not be NULL");
        require(n_max == 0 || (pos && recall), "pos and recall must not be NULL where n_max is not 0");
        const auto all = cache.get_came_back(seq_id);
        *n_pages       = all.size();
        for (size_t i = 0; i < all.size() && *n_pages <= n_max; ++i) {
            pos[i]    = all[i].serial;
            recall[i] = all[i].i_recall;
        }
    });
}

morphkv_status morphkv_archive_start(struct llama_context * ctx, const morphkv_archive_params * params) {
    return guarded([&] {
        auto & cache = cache_of(ctx, 0);
        require_size(params, "params");
        cache.start_archive(ctx, *params);
    });
}

const char * morphkv_archive_why_stopped(struct llama_context * ctx, int32_t seq_id) {
    static thread_local std::string why;
    why.clear();
    guarded([&] { why = cache_of(ctx, seq_id).why_archive_stopped(seq_id); });
    return why.c_str();
}

morphkv_status morphkv_state_load(struct llama_context * ctx, int32_t seq_id, const void * data, size_t size,
                                  uint32_t flags) {
    return guarded([&] {
        cache_of(ctx, std::max(seq_id, 0));
        require(seq_id >= -1, "seq_id must be at least -1, got " + std::to_string(seq_id));
        require(data || size == 0, "data must not be NULL");
        require(!(flags & LLAMA_STATE_SEQ_FLAGS_ON_DEVICE), "a state on a device cannot be loaded with this");
        require(seq_id >= 0 || flags == 0, "flags are for a sequence, got " + std::to_string(flags));
        ctx->synchronize();
        morphkv_load_state(*ctx, seq_id, { data, size }, flags);
    });
}

morphkv_status morphkv_recall(struct llama_context * ctx, int32_t seq_id, const morphkv_recall_params * params,
                              morphkv_recalled * out) {
    return guarded([&] {
        auto & cache = cache_of(ctx, seq_id);
        require_size(params, "params");
        require_size(out, "out");
        ctx->synchronize();
        *out = cache.recall(seq_id, *params);
    });
}

morphkv_status morphkv_prompt_next(struct llama_context * ctx, int32_t seq_id, const morphkv_recall_params * params,
                                   morphkv_prompt * prompt, int32_t n_held) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, seq_id);
        require_size(params, "params");
        require_size(prompt, "prompt");
        require(prompt->stage >= MORPHKV_PROMPT_STAGE_FIRST && prompt->stage <= MORPHKV_PROMPT_STAGE_LAST,
                "prompt.stage must be in 0..2, got " + std::to_string(prompt->stage));
        require(n_held >= 0 && n_held <= prompt->n_tokens,
                "n_held must be in 0.." + std::to_string(prompt->n_tokens) + ", got " + std::to_string(n_held));
        auto ok = [](morphkv_status status) {
            if (status != MORPHKV_STATUS_OK) {
                throw morphkv_error(status, morphkv_last_error());
            }
        };
        auto recall = [&] {
            morphkv_recalled res{};
            res.size = sizeof(res);
            ok(morphkv_recall(ctx, seq_id, params, &res));
            return res;
        };
        const auto & text        = cache.text_of(seq_id);
        auto         n_removable = [&](int32_t n) {
            morphkv_stats stats{};
            stats.size = sizeof(stats);
            ok(morphkv_stats_get(ctx, seq_id, &stats));
            // what is not words cannot be decoded again from a prompt's tokens
            const int32_t n_most = std::min(n, cache.n_removable_words(seq_id));
            if (stats.mark_pos < 0) {
                return std::min(n_most, stats.logical_pos - stats.complete_pos);
            }
            const int32_t n_behind = text.n_tokens() - text.positions.serial_from(stats.mark_pos);
            return n_behind <= n_most ? n_behind : 0;
        };
        morphkv_prompt_memory memory{ recall, n_removable, nullptr, nullptr };
        if (auto * hybrid = dynamic_cast<morphkv_hybrid *>(ctx->get_memory())) {
            memory.mark = [=] {
                hybrid->set_mark(seq_id);
            };
            memory.first_mark = [&](int32_t n) {
                return cache.n_complete_behind(seq_id, n) + n_held - text.n_tokens();
            };
        }
        morphkv_prompt_step(*prompt, n_held, memory);
    });
}

morphkv_status morphkv_write_next(struct llama_context * ctx, int32_t seq_id, const morphkv_recall_params * params,
                                  morphkv_writing * out) {
    return guarded([&] {
        auto & cache = cache_of(ctx, seq_id);
        require_size(params, "params");
        require_size(out, "out");
        out->n_recalls     = 0;
        out->recalled      = {};
        out->recalled.size = sizeof(out->recalled);
        cache.check_recall(*params);
        if (cache.is_follow_due(seq_id)) {
            ctx->synchronize();
            out->recalled = cache.follow(seq_id, *params, out->n_recalls);
        }
    });
}

uint64_t morphkv_kv_bytes(struct llama_context * ctx) {
    uint64_t res = 0;
    if (auto * mem = ctx ? ctx->get_memory() : nullptr) {
        for (const auto & [_, n_bytes] : morphkv_kv_breakdown(mem)) {
            res += n_bytes;
        }
    }
    return res;
}

morphkv_status morphkv_tokenize(const struct llama_vocab * vocab, const char * text, size_t n_text, int32_t add_special,
                                int32_t parse_special, int32_t * tokens, int32_t n_max, int32_t * n_tokens) {
    return guarded([&] {
        require(vocab && n_tokens, "vocab and n_tokens must not be NULL");
        require((text || n_text == 0) && (tokens || n_max == 0), "text and tokens must not be NULL");
        require(n_text <= INT32_MAX, "a text must have at most 2147483647 bytes, got " + std::to_string(n_text));
        try {
            const int32_t n = llama_tokenize(vocab, text, n_text, tokens, n_max, add_special != 0, parse_special != 0);
            require(n != INT32_MIN, "a text must have at most 2147483647 tokens");
            *n_tokens = std::abs(n);
        } catch (const morphkv_error &) {
            throw;
        } catch (const std::exception & err) {
            const std::string why = err.what();
            throw morphkv_error(MORPHKV_STATUS_INVALID, "the model's vocabulary cannot take this text: " + why);
        }
    });
}
