#include "llama/group.h"

#include "core/params.h"
#include "core/shares.h"

#include "llama-hparams.h"

#include <algorithm>

// Cells that a layer has at most, so that they are no more than the positions that a model was trained on.
static int32_t most_cells(const llama_hparams & hparams, const morphkv_params & params) {
    const int64_t limit = params.rope_limit < 0 ? hparams.n_ctx_train : params.rope_limit;
    const int32_t alike = GGML_PAD(params.capacity + morphkv_params_room(params), MORPHKV_CELL_STEP);
    return limit > 0 ? (int32_t) std::max<int64_t>(alike, std::min<int64_t>(limit, INT32_MAX)) : 0;
}

morphkv_layer_plan morphkv_plan_layers(const llama_hparams & hparams, const morphkv_params & params, ggml_type type_k,
                                       ggml_type type_v, const llama_memory_i::layer_filter_cb & filter,
                                       const llama_memory_i::layer_reuse_cb & reuse) {
    const int32_t       n_layer = hparams.n_layer_all;
    std::vector<size_t> cell_bytes(n_layer, 0);
    bool                has_one_size = true;
    int64_t             n_embd_head  = 0;
    for (int32_t il = 0; il < n_layer; ++il) {
        if (!hparams.has_kv(il) || hparams.is_swa(il) || (filter && !filter(il))) {
            continue;
        }
        cell_bytes[il] = ggml_row_size(type_k, hparams.n_embd_k_gqa(il)) +
                         (hparams.is_mla() ? 0 : ggml_row_size(type_v, hparams.n_embd_v_gqa(il)));
        has_one_size &= n_embd_head == 0 || n_embd_head == hparams.n_embd_head_k(il);
        n_embd_head = hparams.n_embd_head_k(il);
    }
    const auto capacities = morphkv_share_capacity(params, cell_bytes, most_cells(hparams, params));

    morphkv_layer_plan res;
    res.group_of.assign(n_layer, -1);
    for (int32_t il = 0; il < n_layer; ++il) {
        if (cell_bytes[il] > 0) {
            res.capacities.push_back(capacities[il]);
        }
    }
    std::sort(res.capacities.begin(), res.capacities.end());
    res.capacities.erase(std::unique(res.capacities.begin(), res.capacities.end()), res.capacities.end());
    if (res.capacities.empty()) {
        res.capacities.push_back(params.capacity);
    }
    if (res.capacities.size() > 1 && !has_one_size && ggml_is_quantized(type_k)) {
        // llama.cpp rotates quantized keys where all of a cache have one size
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED,
                            "MorphKV gives layers capacities of their own where their keys have one size or are not "
                            "quantized");
    }
    for (int32_t il = 0; il < n_layer; ++il) {
        const int32_t owner = reuse && reuse(il) >= 0 ? reuse(il) : il;
        if (owner < n_layer && cell_bytes[owner] > 0) {
            const auto it    = std::lower_bound(res.capacities.begin(), res.capacities.end(), capacities[owner]);
            res.group_of[il] = it - res.capacities.begin();
        }
    }
    return res;
}

std::vector<llama_token> morphkv_get_tokens(const morphkv_layer_group & group, llama_seq_id seq_id, uint32_t i_first,
                                            uint32_t n_used) {
    std::vector<llama_token> res;
    for (uint32_t i = i_first; i < n_used; ++i) {
        res.push_back(group.cells->get_cells(seq_id).ext_get(i).tok);
    }
    return res;
}

void morphkv_set_tokens(const morphkv_layer_group & group, llama_seq_id seq_id, const morphkv_text & text,
                        size_t i_group, uint32_t i_first, const std::vector<llama_token> & tokens, uint32_t n_pos) {
    morphkv_cells cells;
    for (uint32_t i = 0; i < tokens.size(); ++i) {
        cells.add(i_first + i, text.groups[i_group].serial_in(i_first + i), tokens[i]);
    }
    morphkv_set_cells(*group.cells, seq_id, cells, text.positions, n_pos);
}

morphkv_cut_cells::morphkv_cut_cells(const morphkv_layer_group & group, llama_seq_id seq_id, uint32_t n_used)
    : group(group),
      seq_id(seq_id),
      window(morphkv_get_tokens(group, seq_id, n_used - group.shape.window, n_used)) {
    const uint32_t n_distant = group.shape.n_distant();
    const auto &   cells     = group.cells->get_cells(seq_id);
    // llama.cpp frees by positions, and an image's tokens share one
    const bool     is_torn   = cells.pos_get(n_distant - 1) == cells.pos_get(n_distant);
    if (is_torn) {
        distant = morphkv_get_tokens(group, seq_id, 0, n_distant);
    }
    // not the virtual one, which is the whole cache's
    group.cells->llama_kv_cache::seq_rm(seq_id, is_torn ? -1 : cells.pos_get(n_distant), -1);
}

void morphkv_cut_cells::set(const morphkv_text & text, size_t i_group, uint32_t n_pos) const {
    morphkv_set_tokens(group, seq_id, text, i_group, 0, distant, n_pos);
    morphkv_set_tokens(group, seq_id, text, i_group, group.shape.n_distant(), window, n_pos);
}
