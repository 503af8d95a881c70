#include "device/evict.h"

#include "device/kernels.h"
#include "device/stack.h"

#include <algorithm>
#include <map>
#include <random>
#include <unordered_map>

// Of the logits, and of the caches, of layers that are evicted as one. A GPU gains little from more.
static constexpr size_t MAX_STACK_BYTES = 48u << 20;

static std::vector<morphkv_stack> make_stacks(const std::vector<morphkv_side_layer> & layers,
                                              const morphkv_evict_shape &             shape) {
    return morphkv_make_stacks(layers, [&](const morphkv_side_layer & layer) {
        if (layer.is_on_cpu()) {
            return (size_t) 1;
        }
        const size_t logits = sizeof(float) * layer.n_head * shape.n_votes * shape.n_old();
        const size_t rows   = layer.k->nb[2] + (layer.v ? layer.v->nb[2] : 0);  // of one stream
        return MAX_STACK_BYTES / std::max(logits, rows);
    });
}

static std::vector<int32_t> repeat(const std::vector<int32_t> & data, size_t n) {
    std::vector<int32_t> res;
    for (size_t i = 0; i < n; ++i) {
        res.insert(res.end(), data.begin(), data.end());
    }
    return res;
}

static std::vector<float> noise_of(const morphkv_stack & stack, const morphkv_eviction & eviction) {
    std::vector<float> res;
    for (const auto * layer : stack) {
        std::seed_seq seed = { eviction.seed, eviction.i_eviction, (uint32_t) layer->il };
        std::mt19937  rng(seed);
        std::generate_n(std::back_inserter(res), layer->n_head_kv * eviction.shape.n_old(),
                        [&] { return (rng() >> 8) * (1.0f / (1 << 24)); });
    }
    return res;
}

size_t morphkv_max_vote_tensors(const std::vector<morphkv_side_layer> & layers, int32_t n_votes) {
    size_t res = 0;
    for (const auto & layer : layers) {
        res = std::max(res, morphkv_evict_max_tensors(layer.n_head / layer.n_head_kv, n_votes));
    }
    return res;
}

std::string morphkv_run_eviction(morphkv_runner & runner, const std::vector<morphkv_side_layer> & all_layers,
                                 uint32_t i_stream, const morphkv_eviction & eviction) {
    std::vector<std::vector<morphkv_side_layer>> left;
    const std::string why = morphkv_run_kernels(runner, { { &all_layers, i_stream, &eviction } }, left);
    if (!why.empty() || left[0].empty()) {
        return why;
    }
    const auto & layers = left[0];
    const auto & shape  = eviction.shape;
    auto         policy = eviction.policy;
    if (policy.policy != MORPHKV_POLICY_RANDOM && shape.n_votes == 0) {
        // no cell is free and no query is left to vote: unreachable but for a host that removes tokens between failures
        policy.policy = MORPHKV_POLICY_RECENCY;
    }
    std::vector<int32_t> window_src(shape.n_window);
    std::vector<int32_t> window_dst(shape.n_window);
    for (int32_t i = 0; i < shape.n_window; ++i) {
        window_src[i] = shape.n_old() + i;
        window_dst[i] = shape.n_distant + i;
    }

    // a runner knows each stack by its first layer
    std::vector<const morphkv_side_layer *>                       firsts;
    std::unordered_map<const morphkv_side_layer *, morphkv_stack> stack_of;
    for (auto & stack : make_stacks(layers, shape)) {
        firsts.push_back(stack[0]);
        stack_of[stack[0]] = std::move(stack);
    }

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
                cur.vote_rows =
                    inputs.add(GGML_TYPE_I32, shape.n_votes, n_layers, repeat(eviction.vote_rows, n_layers));
            }
            it = shared_by_size.emplace(n_layers, cur).first;
        }
        morphkv_evict_inputs inp{};
        inp.window_src  = it->second.window_src;
        inp.window_dst  = it->second.window_dst;
        inp.vote_rows   = it->second.vote_rows;
        inp.grad_serial = inputs.add(GGML_TYPE_F32, shape.n_grad, n_head_kv,
                                     repeat(eviction.graduates, n_head_kv * n_layers), n_layers);
        if (policy.policy == MORPHKV_POLICY_RANDOM) {
            inp.noise = inputs.add(GGML_TYPE_F32, shape.n_old(), n_head_kv * n_layers, noise_of(stack, eviction));
        }
        morphkv_build_evict(inputs.ctx, gf, morphkv_stack_layer(inputs.ctx, stack, i_stream, inputs.backend), shape,
                            policy, inp);
    };
    return runner.run(firsts, morphkv_max_vote_tensors(layers, shape.n_votes), begin, build);
}
