#include "llama/window.h"

#include "device/graph-turn.h"
#include "morphkv.h"

#include "llama-batch.h"
#include "llama-hparams.h"

#include <algorithm>

morphkv_window::morphkv_window(const llama_model & model, const llama_hparams & hparams, ggml_type type_k,
                               ggml_type type_v, bool offload, uint32_t n_cells, uint32_t n_seq_max,
                               const layer_filter_cb & filter, const layer_reuse_cb & reuse)
    : llama_kv_cache(model, hparams, type_k, type_v, /*v_trans =*/false, offload, /*unified =*/false, n_cells,
                     n_seq_max, /*n_pad =*/1, hparams.n_swa, hparams.swa_type, /*mem_other =*/nullptr, filter, reuse,
                     /*share =*/nullptr),
      layers(morphkv_layers_of(*this, hparams, reuse)),
      k_rot(morphkv_k_rot_of(*this)),
      n_swa(hparams.n_swa),
      swa_type(hparams.swa_type),
      n_pos(hparams.n_pos_per_embd()) {}

uint32_t morphkv_window::n_cells(const llama_hparams & hparams, uint32_t n_ubatch, bool is_full,
                                 uint32_t n_cells_base) {
    const uint32_t res = GGML_PAD(hparams.n_swa + std::max<uint32_t>(n_ubatch, MORPHKV_DRAFT_MAX), 256);
    return is_full ? std::max(res, n_cells_base) : res;
}

llama_kv_cache::slot_info_vec_t morphkv_window::assign_cells(std::vector<morphkv_ring_group>   rings,
                                                             const std::vector<llama_ubatch> & ubatches) const {
    slot_info_vec_t res;
    for (const auto & ubatch : ubatches) {
        const uint32_t n_new = ubatch.n_tokens / ubatch.n_seqs_unq;

        slot_info sinfo = { LLAMA_MAX_SEQ, 0, {}, {} };
        for (uint32_t i = 0; i < ubatch.n_seqs_unq; ++i) {
            const llama_seq_id s    = ubatch.seq_id_unq[i];
            auto &             next = rings[s].i_next;

            sinfo.s0 = std::min<uint32_t>(sinfo.s0, s);
            sinfo.s1 = std::max<uint32_t>(sinfo.s1, s);
            sinfo.strm.push_back(s);
            sinfo.idxs.emplace_back();
            for (uint32_t j = 0; j < n_new; ++j) {
                sinfo.idxs.back().push_back(next);
                next = (next + 1) % rings[s].n_cells;
            }
        }
        res.push_back(std::move(sinfo));
    }
    return res;
}

bool morphkv_window::can_lose(llama_pos lost, llama_pos pos) const {
    return llama_hparams::is_masked_swa(n_swa, swa_type, lost, pos);
}

std::vector<llama_token> morphkv_window::get_tokens(llama_seq_id seq_id, const morphkv_ring_group & ring) const {
    std::vector<llama_token> res;
    for (int32_t i = ring.n_held - 1; i >= 0; --i) {
        res.push_back(get_cells(seq_id).ext_get(ring.cell_of(i)).tok);
    }
    return res;
}

void morphkv_window::set_tokens(llama_seq_id seq_id, const morphkv_text & text,
                                const std::vector<llama_token> & tokens) {
    const auto &  ring = *text.windowed;
    morphkv_cells cells;
    for (int32_t i = 0; i < ring.n_held; ++i) {
        const int32_t n_before_newest = ring.n_held - 1 - i;
        cells.add(ring.cell_of(n_before_newest), text.n_tokens() - 1 - n_before_newest, tokens[i]);
    }
    morphkv_set_cells(*this, seq_id, cells, text.positions, n_pos);
}

std::vector<morphkv_slice> morphkv_window::slices(llama_seq_id seq_id, const morphkv_ring_group & ring) const {
    const uint32_t n_after = std::min(ring.n_held, ring.n_held > 0 ? ring.cell_of(0) + 1 : 0);
    const uint32_t n_end   = ring.n_held - n_after;  // those before lie at the ring's end

    std::vector<morphkv_slice> res;
    for (const auto & layer : layers) {
        for (ggml_tensor * t : { layer.k, layer.v }) {
            auto rows = [&](uint32_t i_first, uint32_t n_rows) {
                if (n_rows > 0) {
                    res.push_back({ t, seq_id * t->nb[2] + i_first * t->nb[1], n_rows * t->nb[1] });
                }
            };
            rows(ring.n_cells - n_end, n_end);
            rows(n_after > 0 ? ring.cell_of(0) + 1 - n_after : 0, n_after);
        }
    }
    return res;
}

void morphkv_window::note_rope(const ggml_tensor * k, int32_t il) {
    for (auto & layer : layers) {
        if (layer.il == il && layer.rope.is == morphkv_rope::kind::UNSEEN) {
            layer.rope = morphkv_find_rope(k);
        }
    }
}

//
// batch context
//

morphkv_window_context::morphkv_window_context(morphkv_window * window)
    : llama_kv_cache_context(window),
      window(window) {}

morphkv_window_context::morphkv_window_context(morphkv_window * window, llama_kv_cache::slot_info_vec_t sinfos,
                                               std::vector<llama_ubatch> ubatches)
    : llama_kv_cache_context(window, std::move(sinfos), std::move(ubatches)),
      window(window) {}
