// Our graphs on the scheduler of a llama_context.
#pragma once

#include "device/engine.h"

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
