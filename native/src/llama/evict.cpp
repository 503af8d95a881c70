// When a sequence is cut: the query ring that votes, the eviction graph's run, and the cells' metadata after it.

#include "llama/memory.h"
#include "device/engine.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>
#include <map>
#include <random>
#include <unordered_map>

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
        const auto * mctx = dynamic_cast<const morphkv_context *>(params.mctx);
        return mctx && mctx->get_cache() == mkv && mkv->n_sched_uses == n_sched_uses;
    }

    const morphkv_cache * mkv;
    const uint64_t        n_sched_uses;  // when the graph was built
    ggml_tensor *         rows;
};

}  // namespace

void morphkv_cache::build_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf,
                                      const llama_ubatch & ubatch, ggml_tensor * q, const ggml_tensor * k,
                                      ggml_tensor * sinks, float kq_scale, int32_t il) {
    auto it = std::find_if(side.layers.begin(), side.layers.end(), [&](const auto & layer) { return layer.il == il; });
    GGML_ASSERT(it != side.layers.end());
    it->kq_scale = it->softcap_scale != 0.0f ? kq_scale * it->softcap_scale : kq_scale;
    it->sinks    = sinks;
    if (it->rope.is == morphkv_rope::kind::UNSEEN) {
        it->rope = morphkv_find_rope(k);
    }

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
    q = ggml_is_contiguous(q) ? q : ggml_cont(ctx, q);
    q = ggml_reshape_2d(ctx, q, n_embd, n_seqs * n_store);

    ggml_tensor * ring = ggml_reshape_2d(ctx, it->ring, n_embd, it->ring->ne[1] * it->ring->ne[2]);
    ggml_build_forward_expand(gf, ggml_set_rows(ctx, ring, q, rows));
}

//
// eviction
//

// Of the logits, and of the caches, of layers that are evicted as one. A GPU gains little from more.
static constexpr size_t MAX_STACK_BYTES = 48u << 20;

// A sequence that is changed in part is cleared: no right state is left of it.
bool morphkv_cache::fail(const char * what, llama_seq_id seq_id, const std::string & why, bool has_changed) {
    if (has_changed) {
        clear_stream(seq_id);
    }
    const std::string sentence = std::string(what) + " failed: " + why + "; sequence " + std::to_string(seq_id) +
                                 (has_changed ? " was half changed and has been cleared" : " is unchanged");
    LLAMA_LOG_ERROR("%s: MorphKV: %s\n", __func__, sentence.c_str());
    morphkv_error_set(MORPHKV_STATUS_FAILED, sentence.c_str());
    return false;
}

bool morphkv_cache::cut(llama_seq_id seq_id) {
    const int64_t t_start_us = ggml_time_us();

    for (const auto & layer : side.layers) {
        if (layer.kq_scale == 0.0f) {
            return fail("eviction", seq_id,
                        "layer " + std::to_string(layer.il) +
                            " attends without showing its queries, so this architecture cannot be served",
                        false);
        }
    }

    auto & stream = streams[seq_id];

    morphkv_evict_shape shape{};
    shape.n_keep    = stream.n_keep;
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
    const llama_pos archive_end = archives ? archives->of(seq_id).end() : 0;
    if (archives) {
        archive_cells(seq_id, shape.n_old());
    }

    evict_data data{};
    for (int32_t i = 0; i < shape.n_grad; ++i) {
        data.grad_pos.push_back(get_cells(seq_id).pos_get(n_distant + i));
    }
    for (const int32_t row : vote_rows(seq_id)) {
        data.vote_rows.push_back(row);
    }

    morphkv_runner runner(lctx, layers());
    runner.inject_failure = inject_failure;
    runner.measure        = shape.n_old() > n_old_measured;
    const std::string why = compute_eviction(seq_id, shape, data, runner);
    n_sched_uses++;
    scratch_bytes        = std::max(scratch_bytes, runner.scratch_bytes);
    const double took_ms = (ggml_time_us() - t_start_us) / 1000.0;
    evict_ms += took_ms;
    seq_evict_ms[seq_id] += took_ms;

    if (!why.empty()) {
        if (archives) {
            archives->of(seq_id).truncate(archive_end);
        }
        return fail("eviction", seq_id, why, runner.has_changed);
    }
    n_old_measured = std::max(n_old_measured, shape.n_old());

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

std::vector<morphkv_stack> morphkv_cache::stacks(const morphkv_evict_shape & shape) const {
    return morphkv_make_stacks(side.layers, [&](const morphkv_side_layer & layer) {
        if (layer.is_on_cpu()) {
            return (size_t) 1;
        }
        const size_t logits = sizeof(float) * layer.n_head * shape.n_votes * shape.n_old();
        const size_t rows   = layer.k->nb[2] + (layer.v ? layer.v->nb[2] : 0);  // of one stream
        return MAX_STACK_BYTES / std::max(logits, rows);
    });
}

morphkv_evict_policy morphkv_cache::vote_policy() const {
    return { (morphkv_policy) params.policy, (morphkv_fusion) params.fusion, params.decay };
}

std::string morphkv_cache::compute_eviction(llama_seq_id seq_id, const morphkv_evict_shape & shape,
                                            const evict_data & data, morphkv_runner & runner) const {
    std::vector<int32_t> window_src(shape.n_window);
    std::vector<int32_t> window_dst(shape.n_window);
    for (int32_t i = 0; i < shape.n_window; ++i) {
        window_src[i] = n_distant + shape.n_grad + i;
        window_dst[i] = n_distant + i;
    }

    morphkv_evict_policy policy = vote_policy();
    if (policy.policy == MORPHKV_POLICY_MORPHKV && shape.n_votes == 0) {
        // no cell is free and no query is left to vote: unreachable but for a host that removes tokens between failures
        policy.policy = MORPHKV_POLICY_RECENCY;
    }

    // a runner knows each stack by its first layer
    std::vector<const morphkv_side_layer *>                       firsts;
    std::unordered_map<const morphkv_side_layer *, morphkv_stack> stack_of;
    for (auto & stack : stacks(shape)) {
        firsts.push_back(stack[0]);
        stack_of[stack[0]] = std::move(stack);
    }
    runner.set_layers(firsts);

    // the same for every layer; of another number of layers it is another input
    struct shared {
        ggml_tensor * window_src;
        ggml_tensor * window_dst;
        ggml_tensor * vote_rows;
    };
    std::map<size_t, shared> shared_by_size;
    auto                     begin = [&](morphkv_inputs &) {
        shared_by_size.clear();
    };
    auto repeat = [](const std::vector<int32_t> & data, size_t n) {
        std::vector<int32_t> res;
        for (size_t i = 0; i < n; ++i) {
            res.insert(res.end(), data.begin(), data.end());
        }
        return res;
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & first) {
        const morphkv_stack & stack     = stack_of.at(&first);
        const int64_t         n_layers  = stack.size();
        const int64_t         n_head_kv = first.n_head_kv;

        auto it = shared_by_size.find(n_layers);
        if (it == shared_by_size.end()) {
            shared cur{};
            cur.window_src = inputs.add(GGML_TYPE_I32, shape.n_window, 1, repeat(window_src, n_layers), n_layers);
            cur.window_dst = inputs.add(GGML_TYPE_I32, shape.n_window, 1, repeat(window_dst, n_layers), n_layers);
            if (shape.n_votes > 0) {
                cur.vote_rows = inputs.add(GGML_TYPE_I32, shape.n_votes, n_layers, repeat(data.vote_rows, n_layers));
            }
            it = shared_by_size.emplace(n_layers, cur).first;
        }
        morphkv_evict_inputs inp{};
        inp.window_src = it->second.window_src;
        inp.window_dst = it->second.window_dst;
        inp.vote_rows  = it->second.vote_rows;
        inp.grad_pos =
            inputs.add(GGML_TYPE_F32, shape.n_grad, n_head_kv, repeat(data.grad_pos, n_head_kv * n_layers), n_layers);

        if (policy.policy == MORPHKV_POLICY_RANDOM) {
            std::vector<float> noise;
            for (const auto * layer : stack) {
                // a function of the seed, the cut and the layer alone: a restored or copied sequence goes on the same
                std::seed_seq seed = { params.seed, (uint32_t) streams[seq_id].n_evictions, (uint32_t) layer->il };
                std::mt19937  rng(seed);
                std::generate_n(std::back_inserter(noise), n_head_kv * shape.n_old(),
                                [&] { return (rng() >> 8) * (1.0f / (1 << 24)); });
            }
            inp.noise = inputs.add(GGML_TYPE_F32, shape.n_old(), n_head_kv * n_layers, noise);
        }
        morphkv_build_evict(inputs.ctx, gf, morphkv_stack_layer(inputs.ctx, stack, seq_id, inputs.backend), shape,
                            policy, inp);
    };

    return runner.run(n_max_vote_tensors(shape.n_votes), begin, build);
}

size_t morphkv_cache::n_max_vote_tensors(int32_t n_votes) const {
    size_t res = 0;
    for (const auto & layer : side.layers) {
        res = std::max(res, morphkv_evict_max_tensors(layer.n_head / layer.n_head_kv, n_votes));
    }
    return res;
}

std::string morphkv_cache::why_not_evicted() const {
    morphkv_evict_shape shape{};
    shape.n_keep    = params.keep;
    shape.n_distant = n_distant;
    shape.n_window  = params.window;

    // the largest eviction that there can be, the smallest, and one that nobody is left to vote in
    const int32_t n_most  = n_limit(params) - params.capacity;
    const int32_t n_votes = params.policy == MORPHKV_POLICY_MORPHKV ? params.votes : 0;
    for (const auto & [n_grad, votes] : { std::pair(n_most, n_votes), std::pair(1, n_votes), std::pair(n_most, 0) }) {
        shape.n_grad  = n_grad;
        shape.n_votes = votes;
        morphkv_runner runner(lctx, layers());
        runner.check_only      = true;
        const evict_data  data = { std::vector<int32_t>(n_grad), std::vector<int32_t>(votes) };
        const std::string why  = compute_eviction(0, shape, data, runner);
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}
