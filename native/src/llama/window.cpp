#include "llama/window.h"

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
      layers(morphkv_layers_of(*this, hparams)),
      n_swa(hparams.n_swa),
      swa_type(hparams.swa_type) {}

uint32_t morphkv_window::n_cells(const llama_hparams & hparams, uint32_t n_ubatch, bool is_full,
                                 uint32_t n_cells_base) {
    const uint32_t res = GGML_PAD(hparams.n_swa + std::max<uint32_t>(n_ubatch, MORPHKV_DRAFT_MAX), 256);
    return is_full ? std::max(res, n_cells_base) : res;
}

//
// cells
//

uint32_t morphkv_window::newest_cell(llama_seq_id seq_id) const {
    const auto &    cells  = get_cells(seq_id);
    const llama_pos newest = cells.seq_pos_max(seq_id);

    uint32_t res = 0;
    while (cells.is_empty(res) || cells.pos_get(res) != newest) {
        res++;
    }
    return res;
}

morphkv_window::cell_run morphkv_window::get_run(llama_seq_id seq_id) const {
    const auto & cells = get_cells(seq_id);

    cell_run res;
    res.newest = cells.seq_pos_max(seq_id);
    if (res.newest < 0) {
        return res;
    }
    res.i_newest = newest_cell(seq_id);
    res.tokens.resize(res.newest - cells.seq_pos_min(seq_id) + 1);
    for (size_t i = 0; i < res.tokens.size(); ++i) {
        res.tokens[res.tokens.size() - 1 - i] = cells.ext_get((res.i_newest + get_size() - i) % get_size()).tok;
    }
    return res;
}

void morphkv_window::set_run(llama_seq_id seq_id, const cell_run & run) {
    const uint32_t n = run.tokens.size();
    if (n == 0) {
        return;
    }
    llama_batch_allocr balloc(1);
    llama_ubatch       ubatch = balloc.ubatch_reserve(n, 1);
    ubatch.seq_id_unq[0]      = seq_id;

    slot_info sinfo = { (uint32_t) seq_id, (uint32_t) seq_id, { seq_id }, { {} } };
    for (uint32_t i = 0; i < n; ++i) {
        ubatch.pos[i]      = run.newest - (n - 1 - i);
        ubatch.token[i]    = run.tokens[i];
        ubatch.n_seq_id[i] = 1;
        ubatch.seq_id[i]   = &seq_id;
        sinfo.idxs[0].push_back((run.i_newest + get_size() - (n - 1 - i)) % get_size());
    }
    apply_ubatch(sinfo, ubatch);
}

llama_kv_cache::slot_info_vec_t morphkv_window::place(const std::vector<llama_ubatch> & ubatches) const {
    // where each sequence's next token goes
    std::vector<uint32_t> next;
    for (llama_seq_id s = 0; s < (llama_seq_id) get_n_stream(); ++s) {
        next.push_back(seq_pos_max(s) < 0 ? 0 : (newest_cell(s) + 1) % get_size());
    }

    slot_info_vec_t res;
    for (const auto & ubatch : ubatches) {
        const uint32_t n_new = ubatch.n_tokens / ubatch.n_seqs_unq;

        slot_info sinfo = { LLAMA_MAX_SEQ, 0, {}, {} };
        for (uint32_t i = 0; i < ubatch.n_seqs_unq; ++i) {
            const llama_seq_id s = ubatch.seq_id_unq[i];

            sinfo.s0 = std::min<uint32_t>(sinfo.s0, s);
            sinfo.s1 = std::max<uint32_t>(sinfo.s1, s);
            sinfo.strm.push_back(s);
            sinfo.idxs.emplace_back();
            for (uint32_t j = 0; j < n_new; ++j) {
                sinfo.idxs.back().push_back(next[s]);
                next[s] = (next[s] + 1) % get_size();
            }
        }
        res.push_back(std::move(sinfo));
    }
    return res;
}

//
// what can be taken back
//

bool morphkv_window::can_lose(llama_pos lost, llama_pos pos) const {
    return llama_hparams::is_masked_swa(n_swa, swa_type, lost, pos);
}

llama_pos morphkv_window::first_possible(llama_seq_id seq_id, llama_pos first) const {
    const llama_pos oldest = seq_pos_min(seq_id);
    if (oldest <= first) {
        return std::max(first, 0);
    }
    llama_pos lo = oldest;
    llama_pos hi = seq_pos_max(seq_id) + 1;
    while (lo < hi) {
        const llama_pos mid = lo + (hi - lo) / 2;
        if (can_lose(oldest - 1, mid)) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return lo;
}

// While the ring is full, attention reads all of it. Where its last 256 cells have become free it reads less, and on several
// threads it sums in another order.
llama_pos morphkv_window::first_exact(llama_seq_id seq_id, llama_pos first) const {
    const llama_pos possible = first_possible(seq_id, first);
    const llama_pos oldest   = seq_pos_min(seq_id);
    const llama_pos end      = oldest + get_size();  // behind the newest that there has been
    return oldest <= first ? possible : std::min(std::max(possible, end - 256), seq_pos_max(seq_id) + 1);
}

void morphkv_window::copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst) {
    set_run(seq_id_dst, get_run(seq_id_src));

    ggml_init_params params = { 4 * layers.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true };
    ggml_context_ptr ctx(ggml_init(params));
    for (const auto & layer : layers) {
        for (ggml_tensor * t : { layer.k, layer.v }) {
            auto view = [&](llama_seq_id s) {
                ggml_tensor * res = ggml_view_2d(ctx.get(), t, t->ne[0], t->ne[1], t->nb[1], s * t->nb[2]);
                ggml_backend_view_init(res);
                return res;
            };
            ggml_backend_tensor_copy(view(seq_id_src), view(seq_id_dst));
        }
    }
}

//
// rotary positions
//

void morphkv_window::note_rope(const ggml_tensor * k, int32_t il) {
    for (auto & layer : layers) {
        if (layer.il == il && layer.rope.is == morphkv_rope::kind::UNSEEN) {
            layer.rope = morphkv_find_rope(k);
        }
    }
}

void morphkv_window::build_rotate(morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer,
                                  llama_seq_id seq_id, int32_t delta, ggml_tensor * rot) const {
    ggml_context * ctx  = inputs.ctx;
    const int64_t  n    = get_cells(seq_id).used_max_p1();
    ggml_tensor *  keys = ggml_view_2d(ctx, layer.k, layer.k->ne[0], n, layer.k->nb[1], seq_id * layer.k->nb[2]);

    const std::vector<int32_t> deltas(n * layer.n_head_kv, delta);
    ggml_tensor *              input = inputs.add(GGML_TYPE_I32, deltas.size(), 1, deltas);
    ggml_build_forward_expand(gf, morphkv_build_rotate(ctx, keys, layer.n_head_kv, input, layer.rope, rot));
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
