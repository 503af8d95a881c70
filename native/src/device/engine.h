// Graphs that change a cache in place, layer by layer, each layer on its own device.
#pragma once

#include "device/layers.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// Input tensors of a graph and what the host puts into them once it is allocated; and what it reads afterwards.
class morphkv_inputs {
public:
    explicit morphkv_inputs(ggml_context * ctx) : ctx(ctx) {}

    template <typename T>
    ggml_tensor * add(ggml_type type, int64_t ne0, int64_t ne1, const std::vector<T> & data, int64_t ne2 = 1) {
        static_assert(sizeof(T) == 4, "32-bit inputs only");
        ggml_tensor * t = ggml_new_tensor_3d(ctx, type, ne0, ne1, ne2);
        GGML_ASSERT(data.size() * sizeof(T) == ggml_nbytes(t));
        const char * bytes = (const char *) data.data();
        add(t, [content = std::vector<char>(bytes, bytes + ggml_nbytes(t))](ggml_tensor * t) {
            ggml_backend_tensor_set(t, content.data(), 0, content.size());
        });
        return t;
    }

    // A tensor of this graph that fill() gives its content.
    void add(ggml_tensor * t, std::function<void(ggml_tensor *)> fill) {
        ggml_set_input(t);
        all.push_back({ t, std::move(fill) });
    }

    void set() const;

    // What the host reads once the graph is computed; f gets the content. Of the layer that is being built.
    void read(ggml_tensor * t, std::function<void(const std::vector<float> &)> f);

    // The same for bytes [offset, offset + size), which go to dst. Of a tensor that no node writes it is what it was before.
    void read(ggml_tensor * t, size_t offset, size_t size, void * dst);

    bool has_outputs() const { return !outputs.empty(); }

    // Copies begin; they are done when the backends have been waited for.
    void get() const;
    void use() const;

    ggml_context * const ctx;
    ggml_backend_t       backend = nullptr;  // of the layer that is being built

private:
    struct input {
        ggml_tensor *                      tensor;
        std::function<void(ggml_tensor *)> fill;
    };
    std::vector<input> all;

    struct output {
        ggml_backend_t        backend;
        ggml_tensor *         tensor;
        size_t                offset;
        size_t                size;
        void *                dst;
        std::function<void()> use;
    };
    std::vector<output> outputs;
};

// What graphs run on. Between begin() and end() it is ours.
class morphkv_engine {
public:
    virtual ~morphkv_engine() = default;

    virtual void                 begin()         = 0;
    virtual void                 end()           = 0;
    virtual ggml_backend_sched_t sched()         = 0;
    // An empty graph; the last one is gone.
    virtual ggml_cgraph *        new_graph()     = 0;
    virtual ggml_context *       graph_context() = 0;  // of the last new_graph()
    virtual size_t               max_nodes()     = 0;
    // Memory for a graph, which stays; false where there is too little.
    virtual bool                 reserve(ggml_cgraph * gf) { return ggml_backend_sched_reserve(sched(), gf); }
    // Begins; whoever reads results has to synchronize the scheduler.
    virtual ggml_status          compute(ggml_cgraph * gf) = 0;
};

// The matrix that a cache multiplies quantized keys with, as an input of a graph; null where it has none.
struct morphkv_k_rot {
    std::function<ggml_tensor *(ggml_context *)> build;
    std::function<void(ggml_tensor *)>           fill;

    ggml_tensor * add_to(morphkv_inputs & inputs) const {
        ggml_tensor * res = build ? build(inputs.ctx) : nullptr;
        if (res) {
            inputs.add(res, fill);
        }
        return res;
    }
};

class morphkv_runner {
public:
    enum class step { ALLOC, COMPUTE };

    // Makes what the layers of a graph share.
    using begin_fn = std::function<void(morphkv_inputs & inputs)>;
    // Appends a layer to the graph, its nodes in the order in which they have to run.
    using layer_fn = std::function<void(morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer)>;

    explicit morphkv_runner(morphkv_engine & engine) : engine(engine) {}

    // As many layers at a time as the scheduler has nodes for. n_max_tensors: most that a layer needs, views included.
    // Why it failed, or "". A layer that needs more of them, or a node that the device of its layer's cache cannot run, is a
    // failure before anything of that graph is run. Devices may still be computing afterwards, but for what is read.
    std::string run(const std::vector<const morphkv_side_layer *> & layers, size_t n_max_tensors,
                    const begin_fn & begin, const layer_fn & build);

    // Waits for all that the devices have been asked to compute.
    void synchronize();

    // Most layers in a graph: for graphs whose inputs and outputs are large.
    size_t n_max_layers = SIZE_MAX;

    // Computes none of the graphs: whether the devices can run them, and have memory for them, which stays theirs.
    bool check_only = false;

    // Whether a graph has been computed, even if only in part: what it works on has changed.
    bool has_changed = false;

    // Layers of graphs that the last run has begun, and of those that went well.
    size_t n_begun = 0;
    size_t n_done  = 0;

    // Tests alone set it: whether a step shall fail now.
    std::function<bool(step)> inject_failure;

private:
    std::string reserve(ggml_cgraph * gf, const std::vector<ggml_backend_t> & backends);
    std::string compute(ggml_cgraph * gf, const morphkv_inputs & inputs, const std::vector<ggml_backend_t> & backends);

    morphkv_engine & engine;
};
