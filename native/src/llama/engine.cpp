#include "llama/engine.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

// While our graphs run on a context's scheduler.
class morphkv_run_guard {
public:
    // Nothing of a half changed sequence could be kept, and a run takes milliseconds: a host's abort waits for its end.
    explicit morphkv_run_guard(llama_context * lctx)
        : lctx(lctx),
          callback(lctx->abort_callback),
          data(lctx->abort_callback_data),
          sizes(buffer_sizes()) {
        set(nullptr, nullptr);
    }
    ~morphkv_run_guard() {
        set(callback, data);
        // the context would warn of buffers that have grown
        const std::vector<size_t> now = buffer_sizes();
        for (size_t i = 0; i < now.size(); ++i) {
            size_t & n_bytes = lctx->backend_buf_exp_size[i];
            // decodes have no buffers in a context that is a probe, and are to use the same
            n_bytes          = is_probe() ? std::max({ n_bytes, now[i], n_bytes_missed }) : n_bytes + now[i] - sizes[i];
        }
    }

    // A context that only tells what it would take.
    bool is_probe() const { return lctx->get_model().hparams.no_alloc; }

    size_t n_bytes_missed = 0;  // of a buffer that a probe could not have

    // As the context computes, with its threads, but on another scheduler.
    ggml_status compute_on(ggml_backend_sched_ptr & sched, ggml_cgraph * gf) const {
        std::swap(lctx->sched, sched);
        const ggml_status res = lctx->graph_compute(gf, /*batched =*/true);
        std::swap(lctx->sched, sched);
        return res;
    }

private:
    void set(ggml_abort_callback new_callback, void * new_data) {
        // it writes to the log
        if (callback) {
            lctx->set_abort_callback(new_callback, new_data);
        }
    }

    std::vector<size_t> buffer_sizes() const {
        std::vector<size_t> res;
        for (ggml_backend_t backend : lctx->backend_ptrs) {
            res.push_back(ggml_backend_sched_get_buffer_size(lctx->get_sched(), backend));
        }
        return res;
    }

    llama_context *           lctx;
    const ggml_abort_callback callback;
    void * const              data;
    const std::vector<size_t> sizes;
};

morphkv_context_engine::morphkv_context_engine()  = default;
morphkv_context_engine::~morphkv_context_engine() = default;

void morphkv_context_engine::begin() {
    guard = std::make_unique<morphkv_run_guard>(lctx);
    n_uses++;
}

void morphkv_context_engine::end() {
    guard.reset();
}

ggml_backend_sched_t morphkv_context_engine::sched() {
    return lctx->get_sched();
}

ggml_cgraph * morphkv_context_engine::new_graph() {
    auto * res = lctx->get_gf_res_reserve();
    res->reset();
    return res->get_gf();
}

ggml_context * morphkv_context_engine::graph_context() {
    return lctx->get_gf_res_reserve()->get_ctx();
}

size_t morphkv_context_engine::max_nodes() {
    return lctx->get_gf_res_reserve()->get_max_nodes();
}

bool morphkv_context_engine::reserve(ggml_cgraph * gf) {
    const bool is_reserved = morphkv_engine::reserve(gf);
    if (is_reserved || !guard->is_probe()) {
        return is_reserved;
    }
    guard->n_bytes_missed = SIZE_MAX / 8;
    return true;
}

ggml_status morphkv_context_engine::compute(ggml_cgraph * gf) {
    return lctx->graph_compute(gf, /*batched =*/true);
}

//
// a scheduler of our own
//

static constexpr size_t MAX_NODES = 4096;
static constexpr size_t N_LEAFS   = 2048;  // tensors of caches and weights, at most

morphkv_own_engine::morphkv_own_engine()  = default;
morphkv_own_engine::~morphkv_own_engine() = default;

void morphkv_own_engine::begin() {
    guard = std::make_unique<morphkv_run_guard>(lctx);
    if (own) {
        return;
    }
    ggml_backend_sched_t                    of_context = lctx->get_sched();
    std::vector<ggml_backend_t>             backends;
    std::vector<ggml_backend_buffer_type_t> bufts;
    for (int i = 0; i < ggml_backend_sched_get_n_backends(of_context); ++i) {
        backends.push_back(ggml_backend_sched_get_backend(of_context, i));
        bufts.push_back(ggml_backend_sched_get_buffer_type(of_context, backends.back()));
    }
    own.reset(ggml_backend_sched_new(backends.data(), bufts.data(), backends.size(), MAX_NODES + N_LEAFS,
                                     /*parallel =*/false, /*op_offload =*/false));
    graph_ctx.reset(ggml_init({ MAX_NODES * ggml_tensor_overhead() + ggml_graph_overhead_custom(MAX_NODES, false),
                                nullptr, /*.no_alloc =*/true }));
}

void morphkv_own_engine::end() {
    guard.reset();
}

ggml_backend_sched_t morphkv_own_engine::sched() {
    return own.get();
}

ggml_cgraph * morphkv_own_engine::new_graph() {
    ggml_reset(graph_ctx.get());
    return ggml_new_graph_custom(graph_ctx.get(), MAX_NODES, false);
}

size_t morphkv_own_engine::max_nodes() {
    return MAX_NODES;
}

bool morphkv_own_engine::reserve(ggml_cgraph * gf) {
    const bool is_reserved = morphkv_engine::reserve(gf);
    if (is_reserved || !guard->is_probe()) {
        return is_reserved;
    }
    n_bytes_missed = SIZE_MAX / 8;
    return true;
}

ggml_status morphkv_own_engine::compute(ggml_cgraph * gf) {
    return guard->compute_on(own, gf);
}

std::vector<size_t> morphkv_own_engine::buffer_sizes() const {
    std::vector<size_t> res;
    for (int i = 0; own && i < ggml_backend_sched_get_n_backends(own.get()); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(own.get(), i);
        res.push_back(std::max(n_bytes_missed, ggml_backend_sched_get_buffer_size(own.get(), backend)));
    }
    return res;
}

size_t morphkv_own_engine::n_bytes() const {
    const auto sizes = buffer_sizes();
    return std::accumulate(sizes.begin(), sizes.end(), (size_t) 0);
}

void morphkv_own_engine::add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    const auto own_sizes = buffer_sizes();
    for (size_t i = 0; i < own_sizes.size(); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(own.get(), i);
        if (own_sizes[i] > 0) {
            sizes[ggml_backend_sched_get_buffer_type(own.get(), backend)] += own_sizes[i];
        }
    }
}
