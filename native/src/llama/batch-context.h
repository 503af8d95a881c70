// Contexts of a batch: what llama.cpp goes through it with, and what its graphs find the caches in.
#pragma once

#include "llama/memory.h"

#include <deque>

// A batch context that has a MorphKV cache in it.
class morphkv_context {
public:
    virtual ~morphkv_context() = default;

    virtual morphkv_cache *                     get_cache() const               = 0;
    // Of a group beside the first; null where there is none.
    virtual const llama_kv_cache_iswa_context * get_group(size_t i_group) const = 0;
};

class morphkv_cache_context : public llama_kv_cache_context, public morphkv_context {
public:
    // the full cache, for worst-case graphs
    explicit morphkv_cache_context(morphkv_cache * mkv);
    morphkv_cache_context(morphkv_cache * mkv, morphkv_cache::batch_plan plan);

    bool next() override;
    bool apply() override;

    morphkv_cache *                     get_cache() const override { return mkv; }
    const llama_kv_cache_iswa_context * get_group(size_t i_group) const override {
        return i_group >= 1 && i_group <= others.size() ? &others[i_group - 1] : nullptr;
    }

private:
    morphkv_cache * mkv;

    std::deque<morphkv_group_pair>        others;  // groups but the first
    std::vector<llama_kv_cache_context *> parts;   // of them

    void add_group(std::unique_ptr<morphkv_group_context> group);

    // as in a batch_plan
    std::vector<std::vector<llama_seq_id>> cuts, rebases;
    std::vector<bool>                      is_prompt;
    std::vector<int32_t>                   n_column;
    size_t                                 i_next = 0;
};

// The same for a model with sliding-window layers: what its graph takes the two caches from.
class morphkv_iswa_context : public llama_kv_cache_iswa_context, public morphkv_context {
public:
    morphkv_iswa_context(std::vector<llama_ubatch> ubatches, std::unique_ptr<morphkv_cache_context> base,
                         std::unique_ptr<morphkv_window_context> window);

    // The windowed layers get no tokens that the others could not take.
    bool apply() override;

    morphkv_cache *                     get_cache() const override { return base->get_cache(); }
    const llama_kv_cache_iswa_context * get_group(size_t i_group) const override { return base->get_group(i_group); }

private:
    morphkv_iswa_context(std::vector<llama_ubatch> ubatches, morphkv_cache_context * base,
                         morphkv_window_context * window);

    // owned by the class that this is derived from
    morphkv_cache_context *  base;
    morphkv_window_context * window;
};
