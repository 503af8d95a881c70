#include "llama/engine.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
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
