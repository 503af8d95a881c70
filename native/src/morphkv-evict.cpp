// When a sequence is cut: the query ring that votes, the eviction graph's run, and the cells' metadata after it.

#include "morphkv-cache.h"

#include "llama-context.h"
#include "llama-impl.h"

#include "ggml-alloc.h"

#include <algorithm>
#include <random>

//
// query ring
//

// Row of the ring: position % n_ring, so that the last n_ring tokens never share one.

void morphkv_cache::note_tokens(const llama_ubatch & ubatch, const std::vector<bool> & is_prompt) {
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const llama_seq_id seq_id = ubatch.seq_id[i][0];
        const llama_pos    pos    = ubatch.pos[i];

        streams[seq_id].ring_pos[pos % side.n_ring] = pos;
        if (is_prompt[seq_id]) {
            streams[seq_id].pos_prompt = pos;
        }
    }
}

std::vector<int32_t> morphkv_cache::vote_rows(llama_seq_id seq_id) const {
    const auto & ring_pos = streams[seq_id].ring_pos;

    std::vector<int32_t> res;
    const llama_pos      newest = seq_pos_max(seq_id);
    for (llama_pos pos = std::max(0, newest - params.votes + 1); pos <= newest; ++pos) {
        if (ring_pos[pos % side.n_ring] == pos) {
            res.push_back(pos % side.n_ring);
        }
    }
    return res;
}

static uint32_t n_stored(const llama_ubatch & ubatch, int32_t n_ring) {
    return std::min<uint32_t>(ubatch.n_tokens / ubatch.n_seqs_unq, n_ring);
}

std::vector<int64_t> morphkv_cache::ring_rows(const llama_ubatch & ubatch) const {
    const uint32_t n_seq_tokens = ubatch.n_tokens / ubatch.n_seqs_unq;

    std::vector<int64_t> res;
    for (uint32_t s = 0; s < ubatch.n_seqs_unq; ++s) {
        for (uint32_t j = n_seq_tokens - n_stored(ubatch, side.n_ring); j < n_seq_tokens; ++j) {
            const uint32_t i = s * n_seq_tokens + j;
            res.push_back((int64_t) ubatch.seq_id[i][0] * side.n_ring + ubatch.pos[i] % side.n_ring);
        }
    }
    return res;
}

namespace {

// Where a ubatch's queries go: (n_seqs*n_stored) I64, filled before each decode. One per graph, shared by its layers.
class ring_input : public llm_graph_input_i {
public:
    ring_input(const morphkv_cache * mkv, ggml_tensor * rows) : mkv(mkv), n_sched_uses(mkv->n_sched_uses), rows(rows) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (rows->buffer) {
            const std::vector<int64_t> data = mkv->ring_rows(*ubatch);
            GGML_ASSERT((int64_t) data.size() == ggml_nelements(rows));
            ggml_backend_tensor_set(rows, data.data(), 0, ggml_nbytes(rows));
        }
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * mctx = dynamic_cast<const morphkv_cache_context *>(params.mctx);
        return mctx && mctx->get_cache() == mkv && mkv->n_sched_uses == n_sched_uses;
    }

    const morphkv_cache * mkv;
    const uint64_t        n_sched_uses;  // when the graph was built
    ggml_tensor *         rows;
};

}  // namespace

void morphkv_cache::build_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf,
                                      const llama_ubatch & ubatch, ggml_tensor * q, float kq_scale, int32_t il) {
    auto it = std::find_if(side.layers.begin(), side.layers.end(), [&](const auto & layer) { return layer.il == il; });
    GGML_ASSERT(it != side.layers.end());
    it->kq_scale = kq_scale;

    const int64_t n_seqs  = ubatch.n_seqs_unq;
    const int64_t n_per   = ubatch.n_tokens / n_seqs;
    const int64_t n_store = n_stored(ubatch, side.n_ring);
    const int64_t n_embd  = it->ring->ne[0];

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
    if (n_seqs > 1) {
        q = ggml_cont(ctx, q);
    }
    q = ggml_reshape_2d(ctx, q, n_embd, n_seqs * n_store);

    ggml_tensor * ring = ggml_reshape_2d(ctx, it->ring, n_embd, it->ring->ne[1] * it->ring->ne[2]);
    ggml_build_forward_expand(gf, ggml_set_rows(ctx, ring, q, rows));
}

//
// eviction
//

// Nothing of a half moved sequence could be kept, and an eviction takes milliseconds: a host's abort waits for its end.
class morphkv_no_abort {
public:
    explicit morphkv_no_abort(llama_context * lctx)
        : lctx(lctx),
          callback(lctx->abort_callback),
          data(lctx->abort_callback_data) {
        set(nullptr, nullptr);
    }
    ~morphkv_no_abort() { set(callback, data); }

private:
    void set(ggml_abort_callback new_callback, void * new_data) {
        // it writes to the log
        if (callback) {
            lctx->set_abort_callback(new_callback, new_data);
        }
    }

    llama_context *     lctx;
    ggml_abort_callback callback;
    void *              data;
};

bool morphkv_cache::cut(llama_seq_id seq_id) {
    const int64_t t_start_us = ggml_time_us();

    auto fail = [&](const std::string & why) {
        const std::string sentence = "eviction failed: " + why;
        LLAMA_LOG_ERROR("%s: MorphKV: %s\n", __func__, sentence.c_str());
        morphkv_error_set(MORPHKV_STATUS_FAILED, sentence.c_str());
        return false;
    };
    const std::string name = "sequence " + std::to_string(seq_id);

    for (const auto & layer : side.layers) {
        if (layer.kq_scale == 0.0f) {
            return fail("layer " + std::to_string(layer.il) + " attends without showing its queries, so this " +
                        "architecture cannot be served; " + name + " is unchanged");
        }
    }

    auto & stream = streams[seq_id];

    morphkv_evict_shape shape{};
    shape.n_keep    = params.keep;
    shape.n_distant = n_distant;
    shape.n_grad    = n_used(seq_id) - params.capacity;
    shape.n_window  = params.window;
    shape.n_votes   = params.policy == MORPHKV_POLICY_MORPHKV ? vote_rows(seq_id).size() : 0;
    GGML_ASSERT(shape.n_grad > 0);

    if (!has_evicted(seq_id)) {
        std::vector<int32_t> pos(n_distant);
        for (uint32_t i = 0; i < n_distant; ++i) {
            pos[i] = get_cells(seq_id).pos_get(i);
        }
        ggml_backend_sched_synchronize(lctx->get_sched());
        side.set_positions(seq_id, pos);
    }

    ggml_status status;
    bool        has_moved = false;
    {
        const morphkv_no_abort no_abort(lctx);
        status = compute_eviction(seq_id, shape, has_moved);
    }
    evict_ms += (ggml_time_us() - t_start_us) / 1000.0;

    if (status != GGML_STATUS_SUCCESS) {
        if (has_moved) {
            clear_stream(seq_id);
        }
        return fail(std::string(ggml_status_to_string(status)) + "; " + name +
                    (has_moved ? " was half moved and has been cleared" : " is unchanged"));
    }

    move_window_cells(seq_id);
    stream.pos_exact = seq_pos_max(seq_id) + 1;
    stream.n_evictions++;
    stream.n_evicted += shape.n_grad;
    return true;
}

// The cells' metadata after an eviction: the graduates' are free, the window's stand at the start of the recent region.
void morphkv_cache::move_window_cells(llama_seq_id seq_id) {
    const cell_list window = get_cell_list(seq_id, n_used(seq_id) - params.window);
    llama_kv_cache::seq_rm(seq_id, get_cells(seq_id).pos_get(n_distant), -1);
    set_cell_list(seq_id, n_distant, window);
}

namespace {

// Backend of the scheduler that computes where the buffer is.
ggml_backend_t backend_of(ggml_backend_sched_t sched, ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        if (dev ? ggml_backend_get_device(backend) == dev : ggml_backend_supports_buft(backend, buft)) {
            return backend;
        }
    }
    return nullptr;
}

// An input tensor and what the host puts into it once the graph is allocated.
struct host_input {
    ggml_tensor *     tensor;
    std::vector<char> data;
};

class evict_inputs {
public:
    evict_inputs(ggml_context * ctx, std::vector<host_input> & all) : ctx(ctx), all(all) {}

    template <typename T> ggml_tensor * add(ggml_type type, int64_t ne0, int64_t ne1, const std::vector<T> & data) {
        static_assert(sizeof(T) == 4, "32-bit inputs only");
        ggml_tensor * t = ggml_new_tensor_2d(ctx, type, ne0, ne1);
        ggml_set_input(t);
        GGML_ASSERT(data.size() * sizeof(T) == ggml_nbytes(t));
        const char * bytes = (const char *) data.data();
        all.push_back({ t, std::vector<char>(bytes, bytes + ggml_nbytes(t)) });
        return t;
    }

private:
    ggml_context *            ctx;
    std::vector<host_input> & all;
};

}  // namespace

ggml_status morphkv_cache::compute_eviction(llama_seq_id seq_id, const morphkv_evict_shape & shape, bool & has_moved) {
    ggml_backend_sched_t sched = lctx->get_sched();

    std::vector<int32_t> grad_pos(shape.n_grad);
    for (int32_t i = 0; i < shape.n_grad; ++i) {
        grad_pos[i] = get_cells(seq_id).pos_get(n_distant + i);
    }
    std::vector<int32_t> window_src(shape.n_window);
    std::vector<int32_t> window_dst(shape.n_window);
    for (int32_t i = 0; i < shape.n_window; ++i) {
        window_src[i] = n_distant + shape.n_grad + i;
        window_dst[i] = n_distant + i;
    }
    std::vector<int32_t> rows = vote_rows(seq_id);
    for (int32_t & row : rows) {
        row += seq_id * side.n_ring;
    }

    morphkv_evict_policy policy = { (morphkv_policy) params.policy, (morphkv_fusion) params.fusion, params.decay };
    if (policy.policy == MORPHKV_POLICY_MORPHKV && shape.n_votes == 0) {
        // no cell is free and no query is left to vote: unreachable but for a host that removes tokens between failures
        policy.policy = MORPHKV_POLICY_RECENCY;
    }

    // the compute buffer may still be read by the last decode
    ggml_backend_sched_synchronize(sched);

    // As many layers at a time as the scheduler has nodes for; it is made for the model's graph.
    auto * res     = lctx->get_gf_res_reserve();
    size_t i_layer = 0;
    while (i_layer < side.layers.size()) {
        res->reset();
        ggml_context * ctx = res->get_ctx();
        ggml_cgraph *  gf  = res->get_gf();

        struct placed {
            int            i_first;
            int            i_last;
            ggml_backend_t backend;
        };
        std::vector<placed>     places;
        std::vector<host_input> host_inputs;

        evict_inputs         inputs(ctx, host_inputs);
        morphkv_evict_inputs inp{};
        inp.window_src = inputs.add(GGML_TYPE_I32, shape.n_window, 1, window_src);
        inp.window_dst = inputs.add(GGML_TYPE_I32, shape.n_window, 1, window_dst);
        if (shape.n_votes > 0) {
            inp.vote_rows = inputs.add(GGML_TYPE_I32, shape.n_votes, 1, rows);
        }

        size_t n_tensors = 16;
        for (; i_layer < side.layers.size(); ++i_layer) {
            const auto & layer = side.layers[i_layer];

            morphkv_evict_layer cur{};
            cur.k         = morphkv_side::stream(ctx, layer.k, seq_id);
            cur.v         = morphkv_side::stream(ctx, layer.v, seq_id);
            cur.ring      = ggml_reshape_2d(ctx, layer.ring, layer.ring->ne[0], layer.ring->ne[1] * layer.ring->ne[2]);
            cur.pos       = morphkv_side::stream(ctx, layer.pos, seq_id);
            cur.score     = morphkv_side::stream(ctx, layer.score, seq_id);
            cur.n_head    = layer.n_head;
            cur.n_head_kv = layer.n_head_kv;
            cur.kq_scale  = layer.kq_scale;
            cur.softcap   = layer.softcap;

            const size_t n_needed = morphkv_evict_max_tensors(cur, shape);
            if (!places.empty() && n_tensors + n_needed > (size_t) res->get_max_nodes()) {
                break;
            }
            n_tensors += n_needed;

            std::vector<int32_t> pos;
            for (int32_t h = 0; h < layer.n_head_kv; ++h) {
                pos.insert(pos.end(), grad_pos.begin(), grad_pos.end());
            }
            inp.grad_pos = inputs.add(GGML_TYPE_F32, shape.n_grad, layer.n_head_kv, pos);

            if (policy.policy == MORPHKV_POLICY_RANDOM) {
                // a function of the seed, the cut and the layer alone: a restored or copied sequence goes on the same
                std::seed_seq      seed = { params.seed, (uint32_t) streams[seq_id].n_evictions, (uint32_t) layer.il };
                std::mt19937       rng(seed);
                std::vector<float> noise(layer.n_head_kv * shape.n_old());
                std::generate(noise.begin(), noise.end(), [&] { return (rng() >> 8) * (1.0f / (1 << 24)); });
                inp.noise = inputs.add(GGML_TYPE_F32, shape.n_old(), layer.n_head_kv, noise);
            }

            const int i_first = ggml_graph_n_nodes(gf);
            morphkv_build_evict(ctx, gf, cur, shape, policy, inp);
            places.push_back(
                { i_first, ggml_graph_n_nodes(gf), backend_of(sched, ggml_backend_buffer_get_type(layer.k->buffer)) });
        }

        if (shape.n_old() > n_old_measured) {
            ggml_gallocr_ptr galloc(ggml_gallocr_new(ggml_backend_buffer_get_type(side.layers[0].k->buffer)));
            size_t           n_bytes = 0;
            ggml_gallocr_reserve_n_size(galloc.get(), gf, nullptr, nullptr, &n_bytes);
            scratch_bytes = std::max(scratch_bytes, n_bytes);
        }

        ggml_backend_sched_reset(sched);
        ggml_backend_sched_set_eval_callback(sched, nullptr, nullptr);
        n_sched_uses++;
        for (const auto & place : places) {
            for (int i = place.i_first; i < place.i_last; ++i) {
                ggml_tensor * node = ggml_graph_node(gf, i);
                if (place.backend && ggml_backend_supports_op(place.backend, node)) {
                    ggml_backend_sched_set_tensor_backend(sched, node, place.backend);
                }
            }
        }
        if (!ggml_backend_sched_alloc_graph(sched, gf) || (inject_failure && inject_failure(evict_step::ALLOC))) {
            return GGML_STATUS_ALLOC_FAILED;
        }
        for (const auto & input : host_inputs) {
            // an input that no op of this policy reads is not allocated
            if (input.tensor->buffer) {
                ggml_backend_tensor_set(input.tensor, input.data.data(), 0, input.data.size());
            }
        }

        has_moved                = true;
        const ggml_status status = lctx->graph_compute(gf, /*batched =*/true);
        ggml_backend_sched_synchronize(sched);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        if (inject_failure && inject_failure(evict_step::COMPUTE)) {
            return GGML_STATUS_FAILED;
        }
    }
    n_old_measured = std::max(n_old_measured, shape.n_old());
    return GGML_STATUS_SUCCESS;
}
