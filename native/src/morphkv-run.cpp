#include "morphkv-run.h"

#include "ggml-alloc.h"

#include <algorithm>

void morphkv_inputs::set() const {
    for (const auto & input : all) {
        // one that no op reads is not allocated
        if (input.tensor->buffer) {
            input.fill(input.tensor);
        }
    }
}

// Nothing of a half changed sequence could be kept, and a run takes milliseconds: a host's abort waits for its end.
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

// Backend of the scheduler that computes where the buffer is.
static ggml_backend_t backend_of(ggml_backend_sched_t sched, ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        if (dev ? ggml_backend_get_device(backend) == dev : ggml_backend_supports_buft(backend, buft)) {
            return backend;
        }
    }
    return nullptr;
}

ggml_status morphkv_runner::run(size_t n_max_tensors, const begin_fn & begin, const layer_fn & build) {
    const morphkv_no_abort no_abort(lctx);
    ggml_backend_sched_t   sched = lctx->get_sched();

    // the compute buffer may still be read by the last decode
    ggml_backend_sched_synchronize(sched);

    auto *       res     = lctx->get_gf_res_reserve();
    const size_t n_fit   = std::max<size_t>(1, (res->get_max_nodes() - 16) / n_max_tensors);
    size_t       i_layer = 0;
    while (i_layer < layers.size()) {
        res->reset();
        ggml_cgraph * gf = res->get_gf();

        struct placed {
            int            i_first;
            int            i_last;
            ggml_backend_t backend;
        };
        std::vector<placed> places;

        morphkv_inputs inputs(res->get_ctx());
        begin(inputs);
        for (size_t n = 0; n < n_fit && i_layer < layers.size(); ++n, ++i_layer) {
            const auto & layer   = *layers[i_layer];
            const int    i_first = ggml_graph_n_nodes(gf);
            build(inputs, gf, layer);
            places.push_back(
                { i_first, ggml_graph_n_nodes(gf), backend_of(sched, ggml_backend_buffer_get_type(layer.k->buffer)) });
        }
        if (ggml_graph_n_nodes(gf) == 0) {
            continue;
        }

        if (measure) {
            ggml_gallocr_ptr galloc(ggml_gallocr_new(ggml_backend_buffer_get_type(layers[0]->k->buffer)));
            size_t           n_bytes = 0;
            ggml_gallocr_reserve_n_size(galloc.get(), gf, nullptr, nullptr, &n_bytes);
            scratch_bytes = std::max(scratch_bytes, n_bytes);
        }

        ggml_backend_sched_reset(sched);
        ggml_backend_sched_set_eval_callback(sched, nullptr, nullptr);
        for (const auto & place : places) {
            for (int i = place.i_first; i < place.i_last; ++i) {
                ggml_tensor * node = ggml_graph_node(gf, i);
                if (place.backend && ggml_backend_supports_op(place.backend, node)) {
                    ggml_backend_sched_set_tensor_backend(sched, node, place.backend);
                }
            }
        }
        if (!ggml_backend_sched_alloc_graph(sched, gf) || (inject_failure && inject_failure(step::ALLOC))) {
            return GGML_STATUS_ALLOC_FAILED;
        }
        inputs.set();

        has_changed              = true;
        const ggml_status status = lctx->graph_compute(gf, /*batched =*/true);
        ggml_backend_sched_synchronize(sched);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        if (inject_failure && inject_failure(step::COMPUTE)) {
            return GGML_STATUS_FAILED;
        }
    }
    return GGML_STATUS_SUCCESS;
}
