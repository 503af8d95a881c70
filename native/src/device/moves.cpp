#include "device/moves.h"

#include "device/graph-turn.h"

#include <algorithm>

namespace {

constexpr size_t N_LAYERS  = 4;                                    // in a graph that gets rows from the host
constexpr size_t N_TENSORS = 2 * MORPHKV_ROTATE_MAX_TENSORS + 28;  // of a layer in a graph

// A layer of one text, in a graph.
struct moved_layer {
    morphkv_inputs &           inputs;
    ggml_cgraph *              gf;
    const morphkv_side_layer & layer;
    uint32_t                   i_stream;

    // a row for each head of each cell
    ggml_tensor * heads(ggml_tensor * t) const {
        return ggml_view_2d(inputs.ctx, t, t->ne[0] / layer.n_head_kv, t->ne[1] * layer.n_head_kv,
                            t->nb[1] / layer.n_head_kv, i_stream * t->nb[2]);
    }

    void put(ggml_tensor * t, ggml_tensor * src, ggml_tensor * rows) const {
        ggml_build_forward_expand(gf, ggml_set_rows(inputs.ctx, heads(t), src, rows));
    }

    ggml_tensor * numbers(const std::vector<int32_t> & x) const { return inputs.add(GGML_TYPE_I32, x.size(), 1, x); }
    ggml_tensor * turns(const std::vector<int32_t> & x) const { return numbers(layer.rope.turns(x)); }

    // Rows of a page, as F32: they go up as they are, where the device can convert them.
    ggml_tensor * from_host(const std::vector<uint8_t> & data, ggml_type type, ggml_tensor * like, int64_t n) const {
        const int64_t n_embd = like->ne[0] / layer.n_head_kv;
        ggml_tensor * rows   = ggml_new_tensor_2d(inputs.ctx, type, n_embd, n);
        ggml_tensor * floats = type == GGML_TYPE_F32 ? rows : ggml_cast(inputs.ctx, rows, GGML_TYPE_F32);
        if (ggml_backend_supports_op(inputs.backend, floats)) {
            inputs.add(rows, [&data](ggml_tensor * t) { ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t)); });
            return floats;
        }
        floats = ggml_new_tensor_2d(inputs.ctx, GGML_TYPE_F32, n_embd, n);
        inputs.add(floats, [&data, type](ggml_tensor * t) {
            std::vector<float> converted(ggml_nelements(t));
            morphkv_convert_rows(type, data.data(), GGML_TYPE_F32, converted.data(), t->ne[1], t->ne[0]);
            ggml_backend_tensor_set(t, converted.data(), 0, ggml_nbytes(t));
        });
        return floats;
    }
};

void build_window(morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer, uint32_t i_stream,
                  int32_t n_cells, int32_t delta, ggml_tensor * rot) {
    ggml_tensor * keys =
        ggml_view_2d(inputs.ctx, layer.k, layer.k->ne[0], n_cells, layer.k->nb[1], i_stream * layer.k->nb[2]);

    const std::vector<int32_t> deltas = layer.rope.turns(std::vector<int32_t>(n_cells * layer.n_head_kv, delta));
    ggml_tensor *              input  = inputs.add(GGML_TYPE_I32, deltas.size(), 1, deltas);
    ggml_build_forward_expand(gf, morphkv_build_rotate(inputs.ctx, keys, layer.n_head_kv, input, layer.rope, rot));
}

}  // namespace

std::string morphkv_run_moves(morphkv_runner & runner, const std::vector<morphkv_side_layer> & layers,
                              const morphkv_k_rot & k_rot, const morphkv_turned_window * window, uint32_t i_stream,
                              const std::vector<morphkv_move> & moves, const morphkv_page_layout * layout,
                              int32_t query_delta) {
    ggml_tensor * rot          = nullptr;
    ggml_tensor * rot_window   = nullptr;
    ggml_tensor * query_deltas = nullptr;
    size_t        i_layer      = 0;

    auto begin = [&](morphkv_inputs & inputs) {
        rot          = k_rot.add_to(inputs);
        rot_window   = window ? window->k_rot.add_to(inputs) : nullptr;
        query_deltas = nullptr;
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        const bool rotates = layer.rope.is == morphkv_rope::kind::ROTATED;
        if (i_layer >= layers.size()) {
            if (rotates) {
                build_window(inputs, gf, layer, i_stream, window->n_cells, query_delta, rot_window);
            }
            return;
        }
        const auto &      move = moves[i_layer++];
        const moved_layer cur  = { inputs, gf, layer, i_stream };
        if (!move.turned.empty()) {
            ggml_tensor * rows = cur.numbers(move.turned);
            ggml_tensor * k    = ggml_get_rows(inputs.ctx, cur.heads(layer.k), rows);
            cur.put(layer.k, morphkv_build_turned(inputs.ctx, k, cur.turns(move.by), layer.rope, rot), rows);
        }
        if (!move.placed.empty()) {
            ggml_tensor * k  = cur.from_host(move.k, layout->type_k, layer.k, move.placed.size());
            ggml_tensor * at = rotates ? cur.turns(move.at) : nullptr;
            cur.put(layer.k, morphkv_build_rotated(inputs.ctx, k, at, layer.rope, rot), cur.numbers(move.placed));
        }
        if (!move.filled.empty() && layer.v) {
            cur.put(layer.v, cur.from_host(move.v, layout->type_v, layer.v, move.filled.size()),
                    cur.numbers(move.filled));
        }
        if (rotates && query_delta != 0) {
            const std::vector<int32_t> deltas(layer.n_head * layer.ring->ne[1], query_delta);
            if (!query_deltas || query_deltas->ne[0] != (int64_t) deltas.size() * layer.rope.n_pos()) {
                query_deltas = cur.turns(deltas);
            }
            ggml_tensor * ring = morphkv_side::stream(inputs.ctx, layer.ring, i_stream);
            ggml_build_forward_expand(
                gf, morphkv_build_rotate(inputs.ctx, ring, layer.n_head, query_deltas, layer.query_rope(), rot));
        }
    };
    std::vector<const morphkv_side_layer *> all = morphkv_refs(layers);
    if (window && query_delta != 0) {
        for (const auto & layer : window->layers) {
            all.push_back(&layer);
        }
    }
    const bool has_rows =
        std::any_of(moves.begin(), moves.end(), [](const morphkv_move & move) { return !move.placed.empty(); });
    runner.n_max_layers = has_rows ? N_LAYERS : SIZE_MAX;
    return runner.run(all, N_TENSORS, begin, build);
}
