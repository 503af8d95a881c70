// Kernels of our own (native/cuda): a library that is opened when a device that it serves is first used.
#pragma once

#include "cuda/kernels.h"

#include "ggml-backend.h"

#include <string>

struct morphkv_kernels_library {
    std::string               path;
    morphkv_kernels_run_t     run;
    morphkv_kernels_n_bytes_t n_bytes;
    bool                      is_unchecked;
};

// That for the devices of a registry of ggml's ("CUDA"), or null: there is none, or MORPHKV_CUDA_KERNELS=0. It is looked for
// once: beside ggml's backend, beside libllama, then where the system has libraries. With a path in MORPHKV_CUDA_KERNELS it is
// that file alone, for the registry that it names; one that cannot be opened is warned of. "unchecked" leaves out the check on a
// device, for tests by a runtime that computes nothing.
const morphkv_kernels_library * morphkv_kernels_library_for(ggml_backend_dev_t dev);

// To ggml's log.
void morphkv_kernels_log(ggml_log_level level, const std::string & text);
