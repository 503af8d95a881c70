#include "llama/batch-context.h"

morphkv_cache_context::morphkv_cache_context(morphkv_cache * mkv) : llama_kv_cache_context(mkv), mkv(mkv) {}

morphkv_cache_context::morphkv_cache_context(morphkv_cache * mkv, morphkv_cache::batch_plan plan)
    : llama_kv_cache_context(mkv, std::move(plan.sinfos), std::move(plan.ubatches)),
      mkv(mkv),
      cuts(std::move(plan.cuts)),
      rebases(std::move(plan.rebases)),
      is_prompt(std::move(plan.is_prompt)),
      n_column(std::move(plan.n_column)) {}

bool morphkv_cache_context::next() {
    i_next++;
    return llama_kv_cache_context::next();
}

bool morphkv_cache_context::apply() {
    for (const llama_seq_id seq_id : cuts.at(i_next)) {
        if (!mkv->cut(seq_id)) {
            return false;
        }
    }
    for (const llama_seq_id seq_id : rebases.at(i_next)) {
        if (!mkv->rebase(seq_id)) {
            return false;
        }
    }
    const auto &   ubatch       = get_ubatch();
    const uint32_t n_seq_tokens = ubatch.n_tokens / ubatch.n_seqs_unq;
    if (!llama_kv_cache_context::apply()) {
        return false;
    }
    for (uint32_t i = 0; i < ubatch.n_tokens; i += n_seq_tokens) {
        const llama_seq_id seq_id = ubatch.seq_id[i][0];
        mkv->sequences[seq_id].text.append(ubatch.pos[i], n_seq_tokens, is_prompt[seq_id], n_column[seq_id]);
    }
    return true;
}

morphkv_iswa_context::morphkv_iswa_context(std::vector<llama_ubatch>               ubatches,
                                           std::unique_ptr<morphkv_cache_context>  base,
                                           std::unique_ptr<morphkv_window_context> window)
    : morphkv_iswa_context(std::move(ubatches), base.release(), window.release()) {}

morphkv_iswa_context::morphkv_iswa_context(std::vector<llama_ubatch> ubatches, morphkv_cache_context * base,
                                           morphkv_window_context * window)
    : llama_kv_cache_iswa_context(std::move(ubatches), llama_memory_context_ptr(base),
                                  llama_memory_context_ptr(window)),
      base(base),
      window(window) {}

bool morphkv_iswa_context::apply() {
    return base->apply() && window->apply();
}
