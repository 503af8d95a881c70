#include "device/graph-archive.h"

#include "device/graph-turn.h"

static constexpr size_t N_TENSORS = 24;  // of a layer

std::string morphkv_read_cells(morphkv_runner & runner, const std::vector<morphkv_side_layer> & layers,
                               const morphkv_k_rot & k_rot, uint32_t i_stream, uint32_t i_first,
                               const std::vector<int32_t> & turn, const morphkv_staging & staging, size_t i_first_layer,
                               char * out) {
    const int64_t n      = turn.size();
    ggml_tensor * rot    = nullptr;
    ggml_tensor * deltas = nullptr;
    size_t        il     = i_first_layer;

    auto begin = [&](morphkv_inputs & inputs) {
        deltas = nullptr;
        rot    = k_rot.add_to(inputs);
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        const bool    rotates = layer.rope.is == morphkv_rope::kind::ROTATED;
        ggml_tensor * k       = layer.k;
        ggml_tensor * v       = layer.v;
        if (rotates && !deltas) {  // the same for all layers
            const std::vector<int32_t> by = layer.rope.turns(turn);
            deltas                        = inputs.add(GGML_TYPE_I32, by.size(), 1, by);
        }
        ggml_tensor * rows =
            ggml_view_2d(inputs.ctx, k, k->ne[0], n, k->nb[1], i_stream * k->nb[2] + i_first * k->nb[1]);
        ggml_tensor * keys =
            morphkv_build_unrotated(inputs.ctx, rows, layer.n_head_kv, rotates ? deltas : nullptr, layer.rope, rot);
        if (keys->type != staging.type_k) {
            keys = ggml_cast(inputs.ctx, keys, staging.type_k);
        }
        ggml_build_forward_expand(gf, keys);
        inputs.read(keys, 0, ggml_nbytes(keys), out + staging.layers[il].k_at);
        if (v) {
            inputs.read(v, i_stream * v->nb[2] + i_first * v->nb[1], n * v->nb[1], out + staging.layers[il].v_at);
        }
        il++;
    };
    return runner.run(morphkv_refs(layers), N_TENSORS, begin, build);
}
