#include "device/engine.h"

#include "device/backends.h"

#include <algorithm>
#include <memory>
#include <utility>

void morphkv_inputs::set() const {
    for (const auto & input : all) {
        // one that no op reads is not allocated
        if (input.tensor->buffer) {
            input.fill(input.tensor);
        }
    }
}

void morphkv_inputs::read(ggml_tensor * t, std::function<void(const std::vector<float> &)> f) {
    GGML_ASSERT(t->type == GGML_TYPE_F32 && ggml_is_contiguous(t));
    const auto data = std::make_shared<std::vector<float>>(ggml_nelements(t));
    read(t, 0, ggml_nbytes(t), data->data());
    outputs.back().use = [data, f = std::move(f)] {
        f(*data);
    };
}

void morphkv_inputs::read(ggml_tensor * t, size_t offset, size_t size, void * dst) {
    if (!t->buffer) {
        ggml_set_output(t);
    }
    outputs.push_back({ backend, t, offset, size, dst, nullptr });
}

void morphkv_inputs::get() const {
    for (const auto & output : outputs) {
        ggml_backend_tensor_get_async(output.backend, output.tensor, output.dst, output.offset, output.size);
    }
}

void morphkv_inputs::use() const {
    for (const auto & output : outputs) {
        if (output.use) {
            output.use();
        }
    }
}

namespace {

struct engine_guard {
    explicit engine_guard(morphkv_engine & engine) : engine(engine) { engine.begin(); }
    ~engine_guard() { engine.end(); }

    morphkv_engine & engine;
};

}  // namespace

static constexpr size_t N_SHARED = 16;  // tensors that the layers of a graph share, at most

// That have been made since the context had so many bytes: tensors without data are all of one size.
static size_t n_tensors(ggml_context * ctx, size_t n_bytes) {
    return (ggml_used_mem(ctx) - n_bytes) / ggml_tensor_overhead();
}

std::string morphkv_runner::run(const std::vector<const morphkv_side_layer *> & layers, size_t n_max_tensors,
                                const begin_fn & begin, const layer_fn & build) {
    const engine_guard   guard(engine);
    ggml_backend_sched_t sched = engine.sched();

    // inputs and the compute buffer may still be read by what ran last
    ggml_backend_sched_synchronize(sched);

    n_begun = n_done = 0;
    size_t i_layer   = 0;
    while (i_layer < layers.size()) {
        const size_t   n      = std::max<size_t>(1, (engine.max_nodes() - N_SHARED) / n_max_tensors);
        const size_t   i_last = std::min(i_layer + std::min(n, n_max_layers), layers.size());
        ggml_cgraph *  gf     = engine.new_graph();
        morphkv_inputs inputs(engine.graph_context());
        const size_t   n_bytes_before = ggml_used_mem(inputs.ctx);
        begin(inputs);
        GGML_ASSERT(n_tensors(inputs.ctx, n_bytes_before) <= N_SHARED);

        std::vector<ggml_backend_t> backends;  // by node
        for (; i_layer < i_last; ++i_layer) {
            const auto &               layer   = *layers[i_layer];
            ggml_backend_buffer_type_t buft    = ggml_backend_buffer_get_type(layer.k->buffer);
            ggml_backend_t             backend = morphkv_backend_of(sched, buft);

            inputs.backend              = backend;
            const size_t n_bytes_before = ggml_used_mem(inputs.ctx);
            build(inputs, gf, layer);
            // ggml ends the process where a graph has more than there is room for
            if (const size_t n_made = n_tensors(inputs.ctx, n_bytes_before); n_made > n_max_tensors) {
                return "the graph of layer " + std::to_string(layer.il) + " has " + std::to_string(n_made) +
                       " tensors, and " + std::to_string(n_max_tensors) + " at most were expected";
            }
            const std::string why = morphkv_why_not_there(backend, gf, backends.size(), ggml_graph_n_nodes(gf));
            if (!why.empty()) {
                return "the cache of layer " + std::to_string(layer.il) + " is on " + ggml_backend_buft_name(buft) +
                       ", and " + why;
            }
            backends.resize(ggml_graph_n_nodes(gf), backend);
        }
        if (backends.empty()) {
            n_done = i_layer;
            continue;
        }
        const bool        had_changed = std::exchange(has_changed, false);
        const std::string why         = check_only ? reserve(gf, backends) : compute(gf, inputs, backends);
        n_begun                       = has_changed ? i_layer : n_begun;
        has_changed |= had_changed;
        if (!why.empty()) {
            return why;
        }
        n_done = i_layer;
    }
    return "";
}

void morphkv_runner::synchronize() {
    const engine_guard guard(engine);
    ggml_backend_sched_synchronize(engine.sched());
}

static void assign(ggml_backend_sched_t sched, ggml_cgraph * gf, const std::vector<ggml_backend_t> & backends) {
    ggml_backend_sched_reset(sched);
    ggml_backend_sched_set_eval_callback(sched, nullptr, nullptr);
    for (size_t i = 0; i < backends.size(); ++i) {
        // a view of an input is where that is: the scheduler copies it like one
        const ggml_tensor * whole = ggml_graph_node(gf, i)->view_src;
        if (!whole || !(whole->flags & GGML_TENSOR_FLAG_INPUT)) {
            ggml_backend_sched_set_tensor_backend(sched, ggml_graph_node(gf, i), backends[i]);
        }
    }
}

std::string morphkv_runner::reserve(ggml_cgraph * gf, const std::vector<ggml_backend_t> & backends) {
    assign(engine.sched(), gf, backends);
    const bool is_reserved = engine.reserve(gf);
    ggml_backend_sched_reset(engine.sched());
    return is_reserved ? "" : ggml_status_to_string(GGML_STATUS_ALLOC_FAILED);
}

std::string morphkv_runner::compute(ggml_cgraph * gf, const morphkv_inputs & inputs,
                                    const std::vector<ggml_backend_t> & backends) {
    ggml_backend_sched_t sched = engine.sched();

    assign(sched, gf, backends);
    const morphkv_crossings crossings(gf);
    if (!ggml_backend_sched_alloc_graph(sched, gf) || (inject_failure && inject_failure(step::ALLOC))) {
        return ggml_status_to_string(GGML_STATUS_ALLOC_FAILED);
    }
    if (const auto crossing = crossings.find(); !crossing.empty()) {
        return std::string(crossing[0]->name) + " would be copied between devices";
    }
    if (const auto * src = morphkv_find_out_of_reach(gf, backends)) {
        return std::string(src->name) + " is in memory that its device does not reach";
    }
    inputs.set();

    has_changed        = true;
    ggml_status status = engine.compute(gf);
    if (status == GGML_STATUS_SUCCESS && inject_failure && inject_failure(step::COMPUTE)) {
        status = GGML_STATUS_FAILED;
    }
    if (status == GGML_STATUS_SUCCESS) {
        inputs.get();
    }
    // what comes next on these devices comes behind it
    if (status != GGML_STATUS_SUCCESS || inputs.has_outputs()) {
        ggml_backend_sched_synchronize(sched);
    }
    if (status != GGML_STATUS_SUCCESS) {
        return ggml_status_to_string(status);
    }
    inputs.use();
    return "";
}
