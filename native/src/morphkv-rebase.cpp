// Rotary rebase: callers' positions go on for ever, those that RoPE sees stay below a limit.
//
// When the next rotary position would reach the limit, all keys and the queries in the ring are turned. The recent tokens
// and those that came up to n_near() before them keep their distances; older ones come to stand at 0, 1, 2, ... in their
// order, head by head. Only then: closing gaps at every eviction was measurably worse (shared/DESIGN.md, section 10), and
// so was closing all of them, which puts the oldest tokens right before the recent ones (native/README.md).

#include "morphkv-cache.h"
#include "morphkv-run.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>

namespace {

constexpr int64_t MAX_DELTA = 1 << 30;

// Gives an input of the decode graph the rotary positions of a ubatch; the model's own input has filled it before.
class position_input : public llm_graph_input_i {
public:
    position_input(const morphkv_cache * mkv, ggml_tensor * pos) : mkv(mkv), pos(pos) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (!pos->buffer || !ubatch->pos) {
            return;
        }
        bool                   is_moved = false;
        std::vector<llama_pos> data(ubatch->n_tokens);
        for (uint32_t i = 0; i < ubatch->n_tokens; ++i) {
            const llama_pos offset = mkv->rotary_offset(ubatch->seq_id[i][0]);
            data[i]                = ubatch->pos[i] - offset;
            is_moved |= offset != 0;
        }
        if (!is_moved) {
            return;
        }
        GGML_ASSERT((int64_t) data.size() == ggml_nelements(pos));
        ggml_backend_tensor_set(pos, data.data(), 0, ggml_nbytes(pos));
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * mctx = dynamic_cast<const morphkv_context *>(params.mctx);
        return mctx && mctx->get_cache() == mkv && pos->ne[0] == params.ubatch.n_tokens;
    }

private:
    const morphkv_cache * mkv;
    ggml_tensor *         pos;
};

}  // namespace

void morphkv_cache::build_rotary_positions(llm_graph_result * res, ggml_tensor * pos) {
    // several positions a token (M-RoPE) and learned ones are not rebased
    if (params.rope_limit != 0 && n_pos == 1 && pos_end == 0) {
        res->add_input(std::make_unique<position_input>(this, pos));
    }
}

const morphkv_side_layer * morphkv_cache::find_unknown_rope() const {
    for (const auto & layer : side.layers) {
        if (layer.rope.is == morphkv_rope::kind::UNKNOWN) {
            return &layer;
        }
    }
    for (size_t i = 0; window && i < window->layers.size(); ++i) {
        if (window->layers[i].rope.is == morphkv_rope::kind::UNKNOWN) {
            return &window->layers[i];
        }
    }
    return nullptr;
}

llama_pos morphkv_cache::n_near() const {
    return (rope_limit() - (llama_pos) n_limit(params)) / 2;
}

bool morphkv_cache::make_rotary_room(llama_seq_id seq_id, llama_pos pos) {
    const llama_pos limit = rope_limit();
    if (limit == 0 || pos - streams[seq_id].rotary_offset < limit || n_used(seq_id) == 0) {
        return true;
    }
    return rebase(seq_id);
}

std::vector<int32_t> morphkv_cache::rebase_deltas(llama_seq_id seq_id, size_t i_layer, llama_pos offset,
                                                  const std::vector<int32_t> & before,
                                                  const std::vector<int32_t> & after,
                                                  std::vector<llama_pos> &     rebased) const {
    const auto & layer  = side.layers[i_layer];
    const auto & stream = streams[seq_id];
    const size_t n_head = layer.n_head_kv;

    std::vector<int32_t> res(n_used(seq_id) * n_head, stream.rotary_offset - offset);
    if (!has_evicted(seq_id)) {
        return res;
    }

    // where the layer's part of the last rebase begins
    size_t i_last = 0;
    for (size_t i = 0; i < i_layer; ++i) {
        i_last += side.layers[i].n_head_kv * n_distant;
    }
    for (size_t h = 0; h < n_head; ++h) {
        const auto             slot = after.begin() + h * n_distant;
        std::vector<llama_pos> ordered(slot, slot + n_distant);
        std::sort(ordered.begin(), ordered.end());

        for (uint32_t i = 0; i < n_distant; ++i) {
            const llama_pos pos    = slot[i];
            int64_t         rotary = (int64_t) pos - stream.rotary_offset;
            if (rotary < n_distant && !stream.rebased.empty()) {
                const auto last = stream.rebased.begin() + i_last + h * n_distant;
                const auto it   = std::lower_bound(last, last + n_distant, pos);
                if (it != last + n_distant && *it == pos) {
                    rotary = it - last;
                }
            }
            const int64_t rank   = std::lower_bound(ordered.begin(), ordered.end(), pos) - ordered.begin();
            const int64_t moved  = (int64_t) pos - offset;
            // a hostile state may have any bits for positions
            const bool    is_new = before[h * n_distant + i] != pos;
            res[i * n_head + h] =
                is_new ? 0 : std::clamp<int64_t>((moved < n_distant ? rank : moved) - rotary, -MAX_DELTA, MAX_DELTA);
        }
        rebased.insert(rebased.end(), ordered.begin(), ordered.end());
    }
    return res;
}

bool morphkv_cache::rebase(llama_seq_id seq_id) {
    auto & stream = streams[seq_id];

    // without an eviction the first token of all comes to 0
    const auto &    cells = get_cells(seq_id);
    const llama_pos offset =
        has_evicted(seq_id) ? cells.pos_get(n_distant) - (llama_pos) n_distant - n_near() : cells.pos_get(0);

    ggml_backend_sched_synchronize(lctx->get_sched());
    std::vector<llama_pos> rebased;
    auto                   key_deltas = [&](size_t i_layer) {
        const auto slots =
            has_evicted(seq_id) ? side.get_positions(side.layers[i_layer], seq_id) : std::vector<int32_t>();
        return rebase_deltas(seq_id, i_layer, offset, slots, slots, rebased);
    };

    morphkv_runner runner(lctx, turned_layers());
    runner.inject_failure = inject_failure;
    const std::string why = compute_rebase(seq_id, n_used(seq_id), stream.rotary_offset - offset, key_deltas, runner);
    n_sched_uses++;
    if (!why.empty()) {
        return fail("rebase", seq_id, why, runner.has_changed);
    }

    stream.rotary_offset = offset;
    stream.rebased       = std::move(rebased);
    stream.n_rebases++;
    stream.pos_exact = seq_pos_max(seq_id) + 1;
    return true;
}

std::string morphkv_cache::compute_rebase(llama_seq_id seq_id, uint32_t n_used, llama_pos query_delta,
                                          const deltas_fn & key_deltas, morphkv_runner & runner) const {
    ggml_tensor * rot          = nullptr;
    ggml_tensor * rot_window   = nullptr;
    ggml_tensor * query_deltas = nullptr;
    size_t        i_layer      = 0;

    auto begin = [&](morphkv_inputs & inputs) {
        rot          = build_input_k_rot(inputs.ctx);
        query_deltas = nullptr;
        if (rot) {
            inputs.add(rot, [this](ggml_tensor * t) { set_input_k_rot(t); });
        }
        rot_window = window ? window->build_input_k_rot(inputs.ctx) : nullptr;
        if (rot_window) {
            inputs.add(rot_window, [this](ggml_tensor * t) { window->set_input_k_rot(t); });
        }
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        if (i_layer >= side.layers.size()) {
            i_layer++;
            if (layer.rope.is == morphkv_rope::kind::ROTATED) {
                window->build_rotate(inputs, gf, layer, seq_id, query_delta, rot_window);
            }
            return;
        }
        const std::vector<int32_t> deltas = key_deltas(i_layer++);
        if (layer.rope.is != morphkv_rope::kind::ROTATED) {
            return;
        }
        ggml_context * ctx = inputs.ctx;
        ggml_tensor *  keys =
            ggml_view_2d(ctx, layer.k, layer.k->ne[0], n_used, layer.k->nb[1], seq_id * layer.k->nb[2]);
        ggml_tensor * turn = inputs.add(GGML_TYPE_I32, deltas.size(), 1, deltas);
        ggml_build_forward_expand(gf, morphkv_build_rotate(ctx, keys, layer.n_head_kv, turn, layer.rope, rot));

        const int64_t n_queries = layer.n_head * layer.ring->ne[1];
        if (!query_deltas || query_deltas->ne[0] != n_queries) {
            query_deltas = inputs.add(GGML_TYPE_I32, n_queries, 1, std::vector<int32_t>(n_queries, query_delta));
        }
        ggml_tensor * ring = morphkv_side::stream(ctx, layer.ring, seq_id);
        ggml_build_forward_expand(gf, morphkv_build_rotate(ctx, ring, layer.n_head, query_deltas, layer.rope, rot));
    };
    return runner.run(2 * MORPHKV_ROTATE_MAX_TENSORS, begin, build);
}

std::vector<const morphkv_side_layer *> morphkv_cache::turned_layers() const {
    std::vector<const morphkv_side_layer *> res = layers();
    for (size_t i = 0; window && i < window->layers.size(); ++i) {
        res.push_back(&window->layers[i]);
    }
    return res;
}

std::string morphkv_cache::why_not_rebased() const {
    for (const uint32_t n_used : { n_limit(params), 1u }) {
        auto no_deltas = [&](size_t i_layer) {
            return std::vector<int32_t>(n_used * side.layers[i_layer].n_head_kv);
        };
        morphkv_runner runner(lctx, turned_layers());
        runner.check_only     = true;
        const std::string why = compute_rebase(0, n_used, 0, no_deltas, runner);
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}

std::string morphkv_cache::why_not_computed(llama_context * lctx) {
    this->lctx      = lctx;
    std::string why = why_not_evicted();
    return why.empty() && rope_limit() > 0 ? why_not_rebased() : why;
}
