// What a model and a context would take of each device's memory: how many layers fit.
#pragma once

#include "morphkv.h"

#include "llama-ext.h"

#include <vector>

struct morphkv_memory_probe {
    int32_t                         n_layers;  // most that n_gpu_layers counts: the model's, and the output
    std::vector<ggml_backend_dev_t> devices;   // of the model
    llama_memory_breakdown          bytes;
};

// A model and a context without weights, K and V, with n_gpu_layers in place of mparams'. params: nullptr is stock's context.
// Alone what evictions need is reserved, as morphkv_context_create() does, for the time of the probe. What the thread has pending stays so. Throws.
// Source: common_get_device_memory_data() of llama.cpp's common/fit.cpp.
morphkv_memory_probe morphkv_probe_memory(const char * path, llama_model_params mparams, llama_context_params cparams,
                                          const morphkv_params * params, int32_t n_gpu_layers);

// A device of the model, and what model and context take there.
struct morphkv_device_use {
    ggml_backend_dev_t dev;
    size_t             n_free, n_total, n_used;
};

std::vector<morphkv_device_use> morphkv_device_uses(const morphkv_memory_probe & probe);

struct morphkv_fitted {
    int32_t                         n_gpu_layers, n_layers, n_probes;
    std::vector<morphkv_device_use> devices;
};

// As many layers as leave n_margin bytes of each device free. Throws.
morphkv_fitted morphkv_fit_layers(const char * path, const llama_model_params & mparams,
                                  const llama_context_params & cparams, const morphkv_params * params, size_t n_margin);
