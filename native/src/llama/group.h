// Groups of layers, each with a capacity of its own, over the same texts.
//
// The cells of the first group, which has the smallest capacity, are those of the cache itself: it is the first that has to be
// cut. Each other group has a llama_kv_cache beside it.
#pragma once

#include "core/text.h"
#include "device/layers.h"
#include "llama/cells.h"
#include "morphkv.h"

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

#include <cstdint>
#include <memory>
#include <vector>

class morphkv_cache;

// Which layers of a model are in which group.
struct morphkv_layer_plan {
    std::vector<int32_t> capacities;  // by group, ascending
    std::vector<int32_t> group_of;    // by layer of the model; -1 where nothing is cut

    int32_t of(int32_t il) const { return il >= 0 && il < (int32_t) group_of.size() ? group_of[il] : -1; }
};

// filter: which layers are in the cache, windowed ones too. Throws morphkv_error where layers cannot be told apart.
morphkv_layer_plan morphkv_plan_layers(const llama_hparams & hparams, const morphkv_params & params, ggml_type type_k,
                                       ggml_type type_v, const llama_memory_i::layer_filter_cb & filter,
                                       const llama_memory_i::layer_reuse_cb & reuse);

struct morphkv_layer_group {
    morphkv_cut_shape               shape;
    size_t                          i_first;  // of its layers among those of all groups
    llama_kv_cache *                cells;
    std::unique_ptr<llama_kv_cache> own;      // null in the first group
    morphkv_k_rot                   k_rot;
    morphkv_side                    side;
};

// What llama.cpp knows of the cells [i_first, n_used) of a text; and tells it of cells from i_first on, which must be free.
std::vector<llama_token> morphkv_get_tokens(const morphkv_layer_group & group, llama_seq_id seq_id, uint32_t i_first,
                                            uint32_t n_used);
void morphkv_set_tokens(const morphkv_layer_group & group, llama_seq_id seq_id, const morphkv_text & text,
                        size_t i_group, uint32_t i_first, const std::vector<llama_token> & tokens, uint32_t n_pos);

// Frees the graduates' cells: the window stands at the start of the recent region. The text has not noted the cut.
class morphkv_cut_cells {
public:
    morphkv_cut_cells(const morphkv_layer_group & group, llama_seq_id seq_id, uint32_t n_used);
    // and once it has
    void set(const morphkv_text & text, size_t i_group, uint32_t n_pos) const;

private:
    const morphkv_layer_group & group;
    const llama_seq_id          seq_id;
    std::vector<llama_token>    distant;  // empty where llama.cpp still knows them
    std::vector<llama_token>    window;
};

// Tells a layer's attention, in the decode graph, that it is in a group beside the first.
class morphkv_group_context : public llama_kv_cache_context {
public:
    // the full cache, for worst-case graphs
    morphkv_group_context(morphkv_cache * mkv, llama_kv_cache * cells) : llama_kv_cache_context(cells), mkv(mkv) {}
    morphkv_group_context(morphkv_cache * mkv, llama_kv_cache * cells, llama_kv_cache::slot_info_vec_t sinfos,
                          std::vector<llama_ubatch> ubatches)
        : llama_kv_cache_context(cells, std::move(sinfos), std::move(ubatches)),
          mkv(mkv) {}

    morphkv_cache * get_cache() const { return mkv; }

private:
    morphkv_cache * mkv;
};

// A group's context as models with sliding windows want it; its windowed part is never asked.
class morphkv_group_pair : public llama_kv_cache_iswa_context {
public:
    explicit morphkv_group_pair(std::unique_ptr<morphkv_group_context> group)
        : llama_kv_cache_iswa_context({}, std::move(group),
                                      std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_NO_UPDATE)) {}
};
