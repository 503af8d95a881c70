#include "device/evict.h"

#include "device/kernels.h"
#include "device/stack.h"

#include <algorithm>
#include <map>
#include <random>

// Of the logits of layers that are voted on as one. A GPU gains little from more.
static constexpr size_t MAX_STACK_BYTES = 48u << 20;

// Tensors of a part's votes that are no joins: its stack, its logits and what becomes of them.
static constexpr size_t N_PART_TENSORS = 48;

namespace {

// Layers that are alike: selected and moved as one, and voted on in parts, as logits are large.
struct unit {
    size_t                     i_job;
    morphkv_stack              stack;
    std::vector<morphkv_stack> parts;
};

// What layers of a text have in common, by the number of layers of a stack.
struct shared {
    ggml_tensor * window_src;
    ggml_tensor * window_dst;
    ggml_tensor * vote_rows;
};

}  // namespace

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

static morphkv_policy policy_of(const morphkv_eviction & eviction) {
    const auto policy = eviction.policy.policy;
    // no cell is free and no query is left to vote: unreachable but for a host that removes tokens between failures
    return policy != MORPHKV_POLICY_RANDOM && eviction.shape.n_votes == 0 ? MORPHKV_POLICY_RECENCY : policy;
}

static size_t logits_bytes(const morphkv_side_layer & layer, const morphkv_eviction & eviction) {
    const auto policy = policy_of(eviction);
    const bool votes  = policy != MORPHKV_POLICY_RECENCY && policy != MORPHKV_POLICY_RANDOM;
    return votes ? sizeof(float) * layer.n_head * eviction.shape.n_votes * eviction.shape.n_old() : 1;
}

// Equal parts of at most n layers, but for one layer more or less.
static std::vector<morphkv_stack> parts_of(const morphkv_stack & stack, size_t n) {
    const size_t               n_parts = (stack.size() + n - 1) / n;
    std::vector<morphkv_stack> res;
    for (size_t i = 0; i < n_parts; ++i) {
        res.emplace_back(stack.begin() + i * stack.size() / n_parts, stack.begin() + (i + 1) * stack.size() / n_parts);
    }
    return res;
}

static std::vector<unit> units_of(const std::vector<morphkv_evict_job> & jobs) {
    std::vector<unit> res;
    for (size_t i = 0; i < jobs.size(); ++i) {
        const auto & eviction   = jobs[i].eviction;
        auto         n_in_parts = [&](const morphkv_side_layer & layer) {
            return std::max<size_t>(1, MAX_STACK_BYTES / logits_bytes(layer, eviction));
        };
        auto n_most = [&](const morphkv_side_layer & layer) {
            // on the CPU each layer stays in the cache of a core; sums come with their votes
            return layer.is_on_cpu() ? 1 : layer.score ? n_in_parts(layer) : SIZE_MAX;
        };
        for (auto & stack : morphkv_make_stacks(*jobs[i].layers, n_most)) {
            auto parts = parts_of(stack, n_in_parts(*stack[0]));
            res.push_back({ i, std::move(stack), std::move(parts) });
        }
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

static size_t n_max_tensors(const std::vector<unit> & units, const std::vector<morphkv_evict_job> & jobs) {
    size_t res = 0;
    for (const auto & cur : units) {
        const auto & job = jobs[cur.i_job];
        const size_t n   = morphkv_max_vote_tensors(*job.layers, job.eviction.shape.n_votes);
        res = std::max(res, n + (cur.parts.size() - 1) * (n - morphkv_evict_max_tensors(1, 1) + N_PART_TENSORS));
    }
    return res;
}

static void build_unit(morphkv_inputs & inputs, ggml_cgraph * gf, const unit & cur, const morphkv_evict_job & job,
                       std::map<size_t, shared> & shared_by_size) {
    const auto &  eviction  = job.eviction;
    const auto &  shape     = eviction.shape;
    const int64_t n_layers  = cur.stack.size();
    const int64_t n_head_kv = cur.stack[0]->n_head_kv;
    auto          policy    = eviction.policy;
    policy.policy           = policy_of(eviction);

    auto it = shared_by_size.find(n_layers);
    if (it == shared_by_size.end()) {
        std::vector<int32_t> window_src(shape.n_window);
        std::vector<int32_t> window_dst(shape.n_window);
        for (int32_t i = 0; i < shape.n_window; ++i) {
            window_src[i] = shape.n_old() + i;
            window_dst[i] = shape.n_distant + i;
        }
        shared now{};
        now.window_src = inputs.add(GGML_TYPE_I32, shape.n_window, 1, repeat(window_src, n_layers), n_layers);
        now.window_dst = inputs.add(GGML_TYPE_I32, shape.n_window, 1, repeat(window_dst, n_layers), n_layers);
        if (shape.n_votes > 0) {
            now.vote_rows = inputs.add(GGML_TYPE_I32, shape.n_votes, n_layers, repeat(eviction.vote_rows, n_layers));
        }
        it = shared_by_size.emplace(n_layers, now).first;
    }
    morphkv_evict_inputs inp{};
    inp.window_src = it->second.window_src;
    inp.window_dst = it->second.window_dst;
    inp.vote_rows  = it->second.vote_rows;
    inp.grad_serial =
        inputs.add(GGML_TYPE_F32, shape.n_grad, n_head_kv, repeat(eviction.graduates, n_head_kv * n_layers), n_layers);
    if (policy.policy == MORPHKV_POLICY_RANDOM) {
        inp.noise = inputs.add(GGML_TYPE_F32, shape.n_old(), n_head_kv * n_layers, noise_of(cur.stack, eviction));
    }
    auto layer_of = [&](const morphkv_stack & stack) {
        return morphkv_stack_layer(inputs.ctx, stack, job.i_stream, inputs.backend);
    };
    std::vector<morphkv_evict_layer> parts;
    for (size_t i = 0; cur.parts.size() > 1 && i < cur.parts.size(); ++i) {
        parts.push_back(layer_of(cur.parts[i]));
    }
    morphkv_build_evict(inputs.ctx, gf, layer_of(cur.stack), shape, policy, inp, parts);
}

// Those that kernels of our own cannot do. Why these failed, or "".
static std::string run_kernels(morphkv_runner & runner, const std::vector<morphkv_evict_job> & jobs,
                               std::vector<std::vector<morphkv_side_layer>> & left) {
    std::vector<morphkv_kernels_job> all;
    for (const auto & job : jobs) {
        all.push_back({ job.layers, job.i_stream, &job.eviction });
    }
    return morphkv_run_kernels(runner, all, left);
}

morphkv_evicted morphkv_run_evictions(morphkv_runner & runner, const std::vector<morphkv_evict_job> & all_jobs) {
    morphkv_evicted                              res;
    std::vector<std::vector<morphkv_side_layer>> left;
    res.why     = run_kernels(runner, all_jobs, left);
    // all at once, or none
    res.n_begun = runner.has_changed ? all_jobs.size() : 0;
    if (!res.why.empty()) {
        return res;
    }
    std::vector<morphkv_evict_job> jobs = all_jobs;
    for (size_t i = 0; i < jobs.size(); ++i) {
        jobs[i].layers = &left[i];
    }
    const auto                              units = units_of(jobs);
    // a runner knows each unit by its first layer, and takes them in their order
    std::vector<const morphkv_side_layer *> firsts;
    for (const auto & cur : units) {
        firsts.push_back(cur.stack[0]);
    }
    size_t                   i_unit = 0, i_shared = SIZE_MAX;
    std::map<size_t, shared> shared_by_size;  // of job i_shared, in this graph
    auto                     begin = [&](morphkv_inputs &) {
        i_shared = SIZE_MAX;
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer &) {
        const unit & cur = units[i_unit++];
        if (i_shared != cur.i_job) {
            shared_by_size.clear();
            i_shared = cur.i_job;
        }
        build_unit(inputs, gf, cur, jobs[cur.i_job], shared_by_size);
    };
    if (!units.empty()) {
        res.why = runner.run(firsts, n_max_tensors(units, jobs), begin, build);
    }
    for (size_t i = 0; i < runner.n_begun; ++i) {
        res.n_begun = std::max(res.n_begun, units[i].i_job + 1);
    }
    res.n_done = runner.n_done < units.size() ? units[runner.n_done].i_job : jobs.size();
    return res;
}
