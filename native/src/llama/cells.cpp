#include "llama/cells.h"

#include "llama-batch.h"
#include "llama-hparams.h"

std::vector<morphkv_side_layer> morphkv_layers_of(const llama_kv_cache & cache, const llama_hparams & hparams,
                                                  const llama_memory_i::layer_reuse_cb & reuse) {
    // the one way from here to V
    ggml_context_ptr ctx(
        ggml_init({ ggml_tensor_overhead() * cache.get_layer_ids().size(), nullptr, /*.no_alloc =*/true }));

    std::vector<morphkv_side_layer> res;
    for (const uint32_t il : cache.get_layer_ids()) {
        const llama_kv_cache::slot_info first_stream = { 0, 0, { 0 }, { { 0 } } };

        morphkv_side_layer layer{};
        layer.il      = il;
        layer.readers = { (int32_t) il };
        for (uint32_t i = 0; reuse && i < hparams.n_layer(); ++i) {
            if (reuse(i) == (int32_t) il) {
                GGML_ASSERT(hparams.n_head(i) == hparams.n_head(il));
                layer.readers.push_back(i);
            }
        }
        layer.n_head    = hparams.n_head(il) * layer.readers.size();
        layer.n_head_kv = hparams.n_head_kv(il);
        layer.softcap   = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f;
        layer.k         = cache.get_k_storage(il);
        layer.v         = hparams.is_mla() ? nullptr : cache.get_v(ctx.get(), il, 1, first_stream)->view_src;
        res.push_back(layer);
    }
    return res;
}

morphkv_k_rot morphkv_k_rot_of(const llama_kv_cache & cache) {
    return { [&cache](ggml_context * ctx) { return cache.build_input_k_rot(ctx); },
             [&cache](ggml_tensor * t) { cache.set_input_k_rot(t); } };
}

void morphkv_set_cells(llama_kv_cache & cache, llama_seq_id seq_id, const morphkv_cells & cells,
                       const morphkv_positions & positions, uint32_t n_pos) {
    const uint32_t n = cells.cell.size();
    if (n == 0) {
        return;
    }
    llama_batch_allocr balloc(n_pos);
    llama_ubatch       ubatch = balloc.ubatch_reserve(n, 1);
    ubatch.seq_id_unq[0]      = seq_id;

    llama_kv_cache::slot_info sinfo = { (uint32_t) seq_id, (uint32_t) seq_id, { seq_id }, { cells.cell } };
    for (uint32_t i = 0; i < n; ++i) {
        const morphkv_position pos   = positions.at(cells.serial[i]);
        const llama_pos        all[] = { pos.t, pos.h, pos.w, 0 };
        for (uint32_t j = 0; j < n_pos; ++j) {
            ubatch.pos[i + j * n] = all[j];
        }
        ubatch.token[i]    = cells.token[i];
        ubatch.n_seq_id[i] = 1;
        ubatch.seq_id[i]   = &seq_id;
    }
    cache.apply_ubatch(sinfo, ubatch);
}
