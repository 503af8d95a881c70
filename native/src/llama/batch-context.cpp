#include "llama/batch-context.h"

#include <algorithm>

morphkv_cache_context::morphkv_cache_context(morphkv_cache * mkv) : llama_kv_cache_context(mkv), mkv(mkv) {
    for (size_t i = 1; i < mkv->n_groups(); ++i) {
        add_group(std::make_unique<morphkv_group_context>(mkv, mkv->get_group(i).cells));
    }
}

morphkv_cache_context::morphkv_cache_context(morphkv_cache * mkv, morphkv_cache::batch_plan plan)
    : llama_kv_cache_context(mkv, std::move(plan.sinfos[0]), plan.ubatches),
      mkv(mkv),
      cuts(std::move(plan.cuts)),
      rebases(std::move(plan.rebases)),
      is_prompt(std::move(plan.is_prompt)),
      n_column(std::move(plan.n_column)) {
    for (size_t i = 1; i < mkv->n_groups(); ++i) {
        add_group(std::make_unique<morphkv_group_context>(mkv, mkv->get_group(i).cells, std::move(plan.sinfos[i]),
                                                          plan.ubatches));
    }
}

void morphkv_cache_context::add_group(std::unique_ptr<morphkv_group_context> group) {
    parts.push_back(group.get());
    others.emplace_back(std::move(group));
}

bool morphkv_cache_context::next() {
    i_next++;
    for (auto * part : parts) {
        part->next();
    }
    return llama_kv_cache_context::next();
}

bool morphkv_cache_context::apply() {
    if (!mkv->cut(cuts.at(i_next))) {
        return false;
    }
    for (const llama_seq_id seq_id : rebases.at(i_next)) {
        if (!mkv->rebase(seq_id)) {
            return false;
        }
    }
    const auto &   ubatch       = get_ubatch();
    const uint32_t n_seq_tokens = ubatch.n_tokens / ubatch.n_seqs_unq;
    if (!llama_kv_cache_context::apply() ||
        !std::all_of(parts.begin(), parts.end(), [](auto * part) { return part->apply(); })) {
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
