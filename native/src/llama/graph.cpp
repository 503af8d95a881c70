// What the decode graph does for MorphKV: queries go into their ring, and RoPE gets rotary positions.

#include "llama-graph.h"
#include "llama/batch-context.h"
#include "llama/memory.h"

#include <algorithm>

static uint32_t n_stored(const llama_ubatch & ubatch, int32_t n_ring) {
    return std::min<uint32_t>(ubatch.n_tokens / ubatch.n_seqs_unq, n_ring);
}

// The tokens of the ubatch are the newest of their texts. Rings of all layers have the same rows.
std::vector<int64_t> morphkv_cache::ring_rows(const llama_ubatch & ubatch) const {
    const int32_t  n_ring       = get_side().n_ring;
    const uint32_t n_seq_tokens = ubatch.n_tokens / ubatch.n_seqs_unq;

    std::vector<int64_t> res;
    for (uint32_t i = 0; i < ubatch.n_tokens; i += n_seq_tokens) {
        const llama_seq_id seq_id = ubatch.seq_id[i][0];
        const auto &       text   = sequences[seq_id].text;
        const int32_t      n      = n_stored(ubatch, n_ring);
        for (int32_t serial = text.n_tokens() - n; serial < text.n_tokens(); ++serial) {
            res.push_back((int64_t) seq_id * n_ring + text.query_row(serial));
        }
    }
    return res;
}

namespace {

// Where a ubatch's queries go: (n_seqs*n_stored) I64, filled before each decode. One per graph, shared by its layers.
class ring_input : public llm_graph_input_i {
public:
    ring_input(const morphkv_cache * mkv, ggml_tensor * rows)
        : mkv(mkv),
          n_sched_uses(mkv->n_sched_uses()),
          rows(rows) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (rows->buffer) {
            const std::vector<int64_t> data = mkv->ring_rows(*ubatch);
            GGML_ASSERT((int64_t) data.size() == ggml_nelements(rows));
            ggml_backend_tensor_set(rows, data.data(), 0, ggml_nbytes(rows));
        }
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * mctx = dynamic_cast<const morphkv_context *>(params.mctx);
        return mctx && mctx->get_cache() == mkv && mkv->n_sched_uses() == n_sched_uses;
    }

    const morphkv_cache * mkv;
    const uint64_t        n_sched_uses;  // when the graph was built
    ggml_tensor *         rows;
};

// Gives an input of the decode graph the rotary positions of a ubatch; the model's own input has filled it before.
class position_input : public llm_graph_input_i {
public:
    // n_pos: numbers of a token
    position_input(const morphkv_cache * mkv, ggml_tensor * pos, uint32_t n_pos) : mkv(mkv), pos(pos), n_pos(n_pos) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (!pos->buffer || !ubatch->pos) {
            return;
        }
        const uint32_t         n        = ubatch->n_tokens;
        bool                   is_moved = false;
        std::vector<llama_pos> data(n * n_pos);  // with M-RoPE blocks of times, rows, columns and zeros
        for (uint32_t i = 0; i < n; ++i) {
            const llama_pos offset = mkv->rotary_offset(ubatch->seq_id[i][0]);
            for (uint32_t j = 0; j < std::min(n_pos, 3u); ++j) {
                // words have one position
                data[i + j * n] = ubatch->pos[ubatch->token ? i : i + j * n] - offset;
            }
            // sound has its time there, an image nothing
            if (n_pos > 3 && !ubatch->token && ubatch->pos[i + 3 * n] != 0) {
                data[i + 3 * n] = ubatch->pos[i + 3 * n] - offset;
            }
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
        return mctx && mctx->get_cache() == mkv && pos->ne[0] == (int64_t) params.ubatch.n_tokens * n_pos;
    }

private:
    const morphkv_cache * mkv;
    ggml_tensor *         pos;
    const uint32_t        n_pos;
};

}  // namespace

void morphkv_cache::build_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf,
                                      const llama_ubatch & ubatch, ggml_tensor * q, const ggml_tensor * k,
                                      ggml_tensor * sinks, float kq_scale, int32_t il) {
    GGML_ASSERT(plan.of(il) >= 0);
    auto & side = groups[plan.of(il)].side;
    auto   it   = std::find_if(side.layers.begin(), side.layers.end(), [&](const auto & layer) {
        return std::count(layer.readers.begin(), layer.readers.end(), il) > 0;
    });
    GGML_ASSERT(it != side.layers.end());
    const int64_t i_reader = std::find(it->readers.begin(), it->readers.end(), il) - it->readers.begin();
    const float   scale    = it->softcap_scale != 0.0f ? kq_scale * it->softcap_scale : kq_scale;
    // layers of one ring are asked as one
    GGML_ASSERT(i_reader == 0 || (it->kq_scale == scale && !sinks && !it->sinks));
    it->kq_scale = scale;
    it->sinks    = sinks;
    if (it->rope.is == morphkv_rope::kind::UNSEEN && k) {
        it->rope          = morphkv_find_rope(k);
        it->query_weights = morphkv_find_rope(q).weights;
    }

    const int64_t n_seqs  = ubatch.n_seqs_unq;
    const int64_t n_per   = ubatch.n_tokens / n_seqs;
    const int64_t n_store = n_stored(ubatch, side.n_ring);
    const int64_t n_embd  = it->ring->ne[0] / it->n_readers();

    ggml_tensor * rows = nullptr;
    for (const auto & input : res->inputs) {
        if (const auto * ring = dynamic_cast<const ring_input *>(input.get())) {
            rows = ring->rows;
        }
    }
    if (!rows) {
        rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_seqs * n_store);
        ggml_set_input(rows);
        ggml_set_name(rows, "morphkv_inp_ring_rows");
        res->add_input(std::make_unique<ring_input>(this, rows));
    }

    // the last n_store tokens of each sequence: (n_seqs, n_store, n_embd)
    q                      = ggml_is_contiguous(q) ? q : ggml_cont(ctx, q);
    const size_t row_bytes = n_embd * sizeof(float);
    q = ggml_view_3d(ctx, q, n_embd, n_store, n_seqs, row_bytes, n_per * row_bytes, (n_per - n_store) * row_bytes);
    q = ggml_is_contiguous(q) ? q : ggml_cont(ctx, q);
    q = ggml_reshape_2d(ctx, q, n_embd, n_seqs * n_store);

    ggml_tensor * ring = ggml_view_2d(ctx, it->ring, n_embd, it->ring->ne[1] * it->ring->ne[2], it->ring->nb[1],
                                      i_reader * ggml_row_size(it->ring->type, n_embd));
    ggml_build_forward_expand(gf, ggml_set_rows(ctx, ring, q, rows));
}

void morphkv_cache::build_rotary_positions(llm_graph_result * res, ggml_tensor * pos) {
    // learned ones are not rebased
    if (params.rope_limit != 0 && pos_end == 0) {
        res->add_input(std::make_unique<position_input>(this, pos, n_pos));
    }
}

const morphkv_side_layer * morphkv_cache::find_unknown_rope() const {
    for (const auto & group : groups) {
        for (const auto & layer : group.side.layers) {
            if (layer.rope.is == morphkv_rope::kind::UNKNOWN) {
                return &layer;
            }
        }
    }
    for (size_t i = 0; window && i < window->layers.size(); ++i) {
        if (window->layers[i].rope.is == morphkv_rope::kind::UNKNOWN) {
            return &window->layers[i];
        }
    }
    return nullptr;
}
