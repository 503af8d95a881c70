// The two graphs of a case, over random rows.

#include "device/selftest.h"

#include "core/params.h"
#include "device/backends.h"
#include "device/kernels.h"
#include "device/stack.h"
#include "device/votes-cpu.h"

#include "ggml-alloc.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

namespace {

using floats = std::vector<float>;

constexpr int32_t MAX_TURN  = 8192;  // positions
constexpr size_t  N_TENSORS = 1024;

floats random_floats(std::mt19937 & rng, size_t n, float scale) {
    floats res(n);
    for (float & x : res) {
        // twelve uniform numbers make a normal one, and the same on every platform
        float sum = -6.0f;
        for (int i = 0; i < 12; ++i) {
            sum += (rng() >> 8) * (1.0f / (1 << 24));
        }
        x = scale * sum;
    }
    return res;
}

std::vector<char> as_type(ggml_type type, const floats & x, int64_t n_row) {
    std::vector<char> res(ggml_row_size(type, n_row) * (x.size() / n_row));
    if (type == GGML_TYPE_F32) {
        memcpy(res.data(), x.data(), res.size());
    } else {
        ggml_quantize_chunk(type, x.data(), res.data(), 0, x.size() / n_row, n_row, nullptr);
    }
    return res;
}

template <typename T> std::vector<T> read(const ggml_tensor * t) {
    std::vector<T> res(ggml_nbytes(t) / sizeof(T));
    ggml_backend_tensor_get(t, res.data(), 0, ggml_nbytes(t));
    return res;
}

template <typename T> void write(ggml_tensor * t, const std::vector<T> & data) {
    GGML_ASSERT(data.size() * sizeof(T) == ggml_nbytes(t));
    // an input that no op reads has no memory
    if (t->buffer || (t->view_src && t->view_src->buffer)) {
        ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
    }
}

// Tensors that stay, as those of a cache. What is tested is the second stream of two.
class storage {
public:
    storage() : ctx(ggml_init({ 16 * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true })) {}

    // The rows of K and V begin at a multiple of 256 cells, as in a cache: Vulkan reads quantized rows that begin
    // elsewhere from the block before, and says that it supports them.
    ggml_tensor * add_cells(ggml_type type, int64_t n_row, int64_t n_rows) {
        ggml_tensor * both = both_streams(type, n_row, GGML_PAD(n_rows, 256));
        return ggml_view_2d(ctx.get(), both, n_row, n_rows, both->nb[1], both->nb[2]);
    }

    ggml_tensor * add_weights(int64_t n) { return ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, n); }

    ggml_tensor * both_streams(ggml_type type, int64_t n_row, int64_t n_rows) {
        return ggml_new_tensor_3d(ctx.get(), type, n_row, n_rows, 2);
    }

    void alloc(ggml_backend_t backend) {
        buffer.reset(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
        if (!buffer) {
            throw morphkv_error(MORPHKV_STATUS_FAILED,
                                std::string("cannot allocate the self-test on ") + ggml_backend_name(backend));
        }
        ggml_backend_buffer_clear(buffer.get(), 0);
    }

private:
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
};

class graph {
public:
    graph()
        : ctx(ggml_init({ N_TENSORS * ggml_tensor_overhead() + ggml_graph_overhead_custom(N_TENSORS, false), nullptr,
                          /*.no_alloc =*/true })),
          gf(ggml_new_graph_custom(ctx.get(), N_TENSORS, false)) {}

    ggml_tensor * input(ggml_type type, int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1) {
        ggml_tensor * res = ggml_new_tensor_3d(ctx.get(), type, ne0, ne1, ne2);
        ggml_set_input(res);
        return res;
    }

    // Why the device cannot run it, or "" and the graph has memory.
    std::string allocate(ggml_backend_t backend) {
        const std::string why = morphkv_why_not_there(backend, gf, 0, ggml_graph_n_nodes(gf));
        if (why.empty()) {
            alloc.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)));
            if (!ggml_gallocr_alloc_graph(alloc.get(), gf)) {
                throw morphkv_error(MORPHKV_STATUS_FAILED,
                                    std::string("cannot allocate a graph on ") + ggml_backend_name(backend));
            }
        }
        return why;
    }

    void compute(ggml_backend_t backend) {
        if (ggml_backend_graph_compute(backend, gf) != GGML_STATUS_SUCCESS) {
            throw morphkv_error(MORPHKV_STATUS_FAILED,
                                std::string("a graph could not be computed on ") + ggml_backend_name(backend));
        }
        ggml_backend_synchronize(backend);
    }

    ggml_context_ptr ctx;
    ggml_cgraph *    gf;

private:
    ggml_gallocr_ptr alloc;
};

// Two layers, as one where the device takes them so. What is looked at is the second.
morphkv_selftest_state evict(const morphkv_selftest_case & c, ggml_backend_t backend,
                             const morphkv_kernels_library * kernels) {
    const auto &  s       = c.shape;
    const int32_t n_cells = s.n_old() + s.n_window + 5;
    const int32_t n_ring  = s.n_votes + 3;
    const int32_t n_embd  = c.n_embd_head * c.n_head_kv;

    storage                         cache;
    std::vector<morphkv_side_layer> layers(2);
    for (auto & layer : layers) {
        layer.n_head    = c.n_head_kv * c.n_group;
        layer.readers   = std::vector<int32_t>(c.n_readers);
        layer.n_head_kv = c.n_head_kv;
        layer.kq_scale  = 1.0f / std::sqrt((float) c.n_embd_head);
        layer.softcap   = c.softcap;
        layer.k         = cache.both_streams(c.type, n_embd, GGML_PAD(n_cells, 256));
        layer.v         = cache.both_streams(c.type, n_embd, GGML_PAD(n_cells, 256));
    }
    for (auto & layer : layers) {
        layer.ring   = cache.both_streams(GGML_TYPE_F16, n_embd * c.n_group, n_ring);
        layer.serial = cache.both_streams(GGML_TYPE_F32, s.n_distant, c.n_head_kv);
        layer.score  = c.policy.carried > 0.0f ? cache.both_streams(GGML_TYPE_F32, s.n_distant, c.n_head_kv) : nullptr;
    }
    cache.alloc(backend);

    // a token's serial is its cell
    std::vector<int32_t> slots, graduates, vote_rows, window_src, window_dst;
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        for (int32_t i = 0; i < s.n_old(); ++i) {
            (i < s.n_distant ? slots : graduates).push_back(i);
        }
    }
    for (int32_t i = 0; i < s.n_votes; ++i) {
        vote_rows.push_back((i + 2) % n_ring);
    }
    for (int32_t i = 0; i < s.n_window; ++i) {
        window_src.push_back(s.n_old() + i);
        window_dst.push_back(s.n_distant + i);
    }

    std::mt19937 rng(1);
    auto         write_rows = [&](ggml_tensor * t, ggml_type type, int64_t n_rows, float scale) {
        const auto data = as_type(type, random_floats(rng, t->ne[0] * n_rows, scale), t->ne[0]);
        ggml_backend_tensor_set(t, data.data(), t->nb[2], data.size());
    };
    for (auto & layer : layers) {
        write_rows(layer.ring, GGML_TYPE_F16, n_ring, 1.5f);
        write_rows(layer.k, c.type, n_cells, 1.5f);
        write_rows(layer.v, c.type, n_cells, 1.0f);
        ggml_backend_tensor_set(layer.serial, slots.data(), layer.serial->nb[2], layer.serial->nb[2]);
        if (layer.score) {
            floats last = random_floats(rng, c.n_head_kv * s.n_distant, 0.05f);
            for (float & x : last) {
                x = std::fabs(x);
            }
            ggml_backend_tensor_set(layer.score, last.data(), layer.score->nb[2], layer.score->nb[2]);
        }
    }
    const size_t n_most = morphkv_votes_on_cpu(backend, c.type, c.n_embd_head) ? 1 : 2;
    const auto   stack  = morphkv_make_stacks(layers, [&](const morphkv_side_layer &) { return n_most; }).back();
    const auto & tested = layers.back();

    auto build = [&](graph & g) {
        return morphkv_stack_layer(g.ctx.get(), stack, /*i_stream =*/1, backend);
    };
    const int64_t n_layers    = stack.size();
    auto          make_inputs = [&](graph & g) {
        morphkv_evict_inputs inp{};
        inp.vote_rows   = g.input(GGML_TYPE_I32, s.n_votes, n_layers);
        inp.grad_serial = g.input(GGML_TYPE_F32, s.n_grad, c.n_head_kv, n_layers);
        inp.window_src  = g.input(GGML_TYPE_I32, s.n_window, 1, n_layers);
        inp.window_dst  = g.input(GGML_TYPE_I32, s.n_window, 1, n_layers);
        return inp;
    };
    auto set_inputs = [&](const morphkv_evict_inputs & inp) {
        auto write_each = [&](ggml_tensor * t, const std::vector<int32_t> & data) {
            std::vector<int32_t> all;
            for (int64_t i = 0; i < n_layers; ++i) {
                all.insert(all.end(), data.begin(), data.end());
            }
            write(t, all);
        };
        write_each(inp.vote_rows, vote_rows);
        write_each(inp.grad_serial, graduates);
        write_each(inp.window_src, window_src);
        write_each(inp.window_dst, window_dst);
    };
    // of the tested layer
    auto read_rows = [&](const ggml_tensor * t, int64_t n_rows) {
        std::vector<char> res(n_rows * t->nb[1]);
        ggml_backend_tensor_get(t, res.data(), t->nb[2], res.size());
        return res;
    };
    auto read_words = [&](const ggml_tensor * t, auto word) {
        std::vector<decltype(word)> res(c.n_head_kv * s.n_distant);
        ggml_backend_tensor_get(t, res.data(), t->nb[2], t->nb[2]);
        return res;
    };

    morphkv_selftest_state res{};
    auto                   keep_before = [&] {
        res.k_before = read_rows(tested.k, n_cells);
        res.v_before = read_rows(tested.v, n_cells);
        if (tested.score) {
            res.score_before = read_words(tested.score, 0.0f);
        }
    };
    auto keep = [&](int64_t t_start_us) {
        res.took_ms = (ggml_time_us() - t_start_us) / 1000.0;
        res.k       = read_rows(tested.k, n_cells);
        res.v       = read_rows(tested.v, n_cells);
        res.pos     = read_words(tested.serial, 0);
        if (tested.score) {
            res.score = read_words(tested.score, 0.0f);
        }
    };
    if (kernels) {
        keep_before();
        graduates.resize(s.n_grad);
        const morphkv_eviction eviction    = { s, c.policy, graduates, vote_rows, 0, 0 };
        bool                   has_changed = false;
        const int64_t          t_start_us  = ggml_time_us();
        const std::string      why =
            morphkv_cut_by_kernels(*kernels, { { &layers, /*i_stream =*/1, &eviction } }, &has_changed);
        if (!why.empty()) {
            throw morphkv_error(MORPHKV_STATUS_FAILED,
                                std::string("kernels failed on ") + ggml_backend_name(backend) + ": " + why);
        }
        keep(t_start_us);
        return res;
    }
    // Lives until both graphs are done: Mesa 22's lavapipe binds again what an earlier graph has freed.
    graph         g_votes;
    const auto    inp_votes = make_inputs(g_votes);
    ggml_tensor * votes     = morphkv_build_votes(g_votes.ctx.get(), build(g_votes), s, c.policy, inp_votes);
    ggml_set_output(votes);
    ggml_build_forward_expand(g_votes.gf, votes);
    res.unsupported = g_votes.allocate(backend);
    if (!res.unsupported.empty()) {
        return res;
    }
    set_inputs(inp_votes);
    g_votes.compute(backend);
    res.votes = read<float>(votes);
    res.votes.erase(res.votes.begin(), res.votes.end() - c.n_head_kv * s.n_old());
    keep_before();

    graph      g;
    const auto inp = make_inputs(g);
    morphkv_build_evict(g.ctx.get(), g.gf, build(g), s, c.policy, inp);
    res.unsupported = g.allocate(backend);
    if (!res.unsupported.empty()) {
        return res;
    }
    set_inputs(inp);
    const int64_t t_start_us = ggml_time_us();
    g.compute(backend);
    keep(t_start_us);
    return res;
}

// The largest power of 2, up to 128, that divides a head: as llama.cpp rotates quantized keys; 0 = it does not.
int32_t hadamard_size(const morphkv_selftest_case & c) {
    if (!ggml_is_quantized(c.type) || c.n_embd_head % 64 != 0) {
        return 0;
    }
    return c.n_embd_head % 128 == 0 ? 128 : 64;
}

morphkv_selftest_state rebase(const morphkv_selftest_case & c, ggml_backend_t backend) {
    const int32_t n_embd = c.n_embd_head * c.n_head_kv;
    const int32_t n_rot  = hadamard_size(c);

    storage       cache;
    ggml_tensor * rows    = cache.add_cells(c.type, n_embd, c.n_rows);
    ggml_tensor * weights = c.is_normed ? cache.add_weights(c.n_embd_head) : nullptr;
    cache.alloc(backend);
    std::mt19937 rng(2);
    write(rows, as_type(c.type, random_floats(rng, ggml_nelements(rows), 1.5f), n_embd));
    if (weights) {
        floats w = random_floats(rng, c.n_embd_head, 0.1f);
        for (float & x : w) {
            x += 1.0f;
        }
        write(weights, w);
    }

    std::vector<int32_t> by;
    for (int32_t i = 0; i < c.n_rows * c.n_head_kv; ++i) {
        by.push_back((int32_t) (rng() % (2 * MAX_TURN)) - MAX_TURN);
    }
    floats hadamard;
    for (int32_t i = 0; i < n_rot * n_rot; ++i) {
        bool is_odd = false;
        for (int32_t bits = (i / n_rot) & (i % n_rot); bits; bits &= bits - 1) {
            is_odd = !is_odd;
        }
        hadamard.push_back((is_odd ? -1.0f : 1.0f) / std::sqrt((float) n_rot));
    }

    morphkv_rope rope;
    rope.is         = morphkv_rope::kind::ROTATED;
    rope.n_dims     = c.n_rot_dims;
    rope.n_offs     = c.n_rot_offs;
    rope.mode       = c.rope_mode;
    rope.n_ctx_orig = MAX_TURN;
    rope.freq_base  = 10000.0f;
    rope.freq_scale = 1.0f;
    rope.beta_fast  = 32.0f;
    rope.beta_slow  = 1.0f;
    rope.weights    = weights;
    std::copy(c.sections.begin(), c.sections.end(), rope.sections);

    // compressed keys are not, though they are quantized
    rope.is_multiplied = n_rot > 0 && c.n_rot_offs == 0;

    const std::vector<int32_t> turns = rope.turns(by);

    morphkv_selftest_state res{};
    graph                  g;
    ggml_tensor *          rot    = n_rot ? g.input(GGML_TYPE_F32, n_rot, n_rot) : nullptr;
    ggml_tensor *          deltas = g.input(GGML_TYPE_I32, turns.size());
    ggml_build_forward_expand(g.gf, morphkv_build_rotate(g.ctx.get(), rows, c.n_head_kv, deltas, rope, rot));
    res.unsupported = g.allocate(backend);
    if (!res.unsupported.empty()) {
        return res;
    }
    write(deltas, turns);
    if (rot) {
        write(rot, hadamard);
    }
    const int64_t t_start_us = ggml_time_us();
    g.compute(backend);
    res.took_ms = (ggml_time_us() - t_start_us) / 1000.0;
    res.k       = read<char>(rows);
    return res;
}

}  // namespace

morphkv_selftest_state morphkv_selftest_compute(const morphkv_selftest_case & c, ggml_backend_t backend,
                                                const morphkv_kernels_library * kernels) {
    return c.n_rows > 0 ? rebase(c, backend) : evict(c, backend, kernels);
}
