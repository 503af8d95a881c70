// Contexts of llama.cpp's programs: as the options say.

#include "common.h"
#include "log.h"
#include "morphkv-common.h"

#include <algorithm>
#include <string>

static uint32_t n_cells(const common_params & params) {
    int32_t res = 0;
    morphkv_params_cells(&params.morphkv.params, &res);  // checked with the arguments
    return res;
}

void morphkv_common_context_params(const common_params & params, llama_context_params & cparams) {
    if (params.morphkv.enabled && params.n_ctx == 0) {
        cparams.n_ctx = cparams.n_seq_max * n_cells(params);
    }
}

void morphkv_common_before_context(const common_params & params, const llama_model * model,
                                   llama_context_params & cparams) {
    if (!params.morphkv.enabled) {
        return;
    }
    if (params.n_ctx == 0) {
        // llama.cpp chooses by the context's size how some models rotate. MorphKV counts its cells itself.
        cparams.n_ctx = cparams.n_seq_max * std::max<uint32_t>(n_cells(params), llama_model_n_ctx_train(model));
    }
    morphkv_params_set_next(&params.morphkv.params);
}

llama_context * morphkv_common_after_context(const common_params & params, llama_context * ctx) {
    if (!params.morphkv.enabled) {
        return ctx;
    }
    const std::string why = morphkv_last_error();
    morphkv_params_set_next(nullptr);
    if (!ctx) {
        if (!why.empty()) {
            LOG_ERR("error: %s\n", why.c_str());
        }
        return nullptr;
    }
    if (morphkv_context_check(ctx) != MORPHKV_STATUS_OK) {
        LOG_ERR("error: %s\n", morphkv_last_error());
        llama_free(ctx);
        return nullptr;
    }
    return ctx;
}

void morphkv_common_before_draft_rm(llama_context * ctx_dft, int32_t seq_id, int32_t p0) {
    morphkv_stats stats{};
    stats.size = sizeof(stats);
    if (seq_id < 0 || p0 <= 0 || morphkv_stats_get(ctx_dft, seq_id, &stats) != MORPHKV_STATUS_OK) {
        return;
    }
    if (p0 <= stats.complete_pos && p0 != stats.mark_pos) {
        llama_memory_seq_rm(llama_get_memory(ctx_dft), seq_id, -1, -1);
    }
}
