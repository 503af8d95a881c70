// Our graphs on the scheduler of a llama_context, or beside it.
#pragma once

#include "device/engine.h"

#include "ggml-cpp.h"

#include <map>
#include <memory>

struct llama_context;
class morphkv_run_guard;

class morphkv_context_engine : public morphkv_engine {
public:
    morphkv_context_engine();
    ~morphkv_context_engine() override;

    // the context that owns the memory, known from its first update on
    void            set(llama_context * ctx) { lctx = ctx; }
    llama_context * context() const { return lctx; }

    void                 begin() override;
    void                 end() override;
    ggml_backend_sched_t sched() override;
    ggml_cgraph *        new_graph() override;
    ggml_context *       graph_context() override;
    size_t               max_nodes() override;
    bool                 reserve(ggml_cgraph * gf) override;
    ggml_status          compute(ggml_cgraph * gf) override;

    // Raised when a graph of ours used the scheduler: a decode graph from before has lost its memory.
    uint64_t n_uses = 0;

private:
    llama_context *                    lctx = nullptr;
    std::unique_ptr<morphkv_run_guard> guard;
};

// A scheduler of our own over the backends of a context: the decode's graph stays in use, at the price of compute buffers.
class morphkv_own_engine : public morphkv_engine {
public:
    morphkv_own_engine();
    ~morphkv_own_engine() override;

    void set(llama_context * ctx) { lctx = ctx; }

    void                 begin() override;
    void                 end() override;
    ggml_backend_sched_t sched() override;
    ggml_cgraph *        new_graph() override;
    ggml_context *       graph_context() override { return graph_ctx.get(); }
    size_t               max_nodes() override;
    bool                 reserve(ggml_cgraph * gf) override;
    ggml_status          compute(ggml_cgraph * gf) override;

    // Of the compute buffers; of a context that only tells what it would take, as they would be.
    size_t n_bytes() const;
    void   add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

private:
    std::vector<size_t> buffer_sizes() const;  // by backend

    llama_context *                    lctx = nullptr;
    std::unique_ptr<morphkv_run_guard> guard;
    ggml_context_ptr                   graph_ctx;
    ggml_backend_sched_ptr             own;
    size_t                             n_bytes_missed = 0;  // of a buffer that a probe could not have
};
