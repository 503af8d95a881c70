// Evictions of many layers and sequences in five launches: a library of its own, which libllama opens where there is one. It
// knows neither llama.cpp nor ggml. What it computes is what device/graph-evict.h says.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MORPHKV_KERNELS_API __declspec(dllexport)
#else
#define MORPHKV_KERNELS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised when anything below changes: the library is not opened by another libllama.
#define MORPHKV_KERNELS_VERSION 2

typedef enum morphkv_kernels_type {
    MORPHKV_KERNELS_TYPE_F32  = 0,
    MORPHKV_KERNELS_TYPE_F16  = 1,
    MORPHKV_KERNELS_TYPE_BF16 = 2,
    MORPHKV_KERNELS_TYPE_Q8_0 = 3,
    MORPHKV_KERNELS_TYPE_Q5_0 = 4,
    MORPHKV_KERNELS_TYPE_Q4_0 = 5,
} morphkv_kernels_type;

// What the layers of a sequence share. As morphkv_evict_shape and morphkv_evict_policy.
typedef struct morphkv_kernels_cut {
    int32_t         n_keep, n_distant, n_grad, n_window, n_votes;
    int32_t         by_committees;  // else the sum of votes, carried or not
    int32_t         use_max;        // over the voters, else their sum
    float           carried;        // weight of the last sums
    const int32_t * vote_rows;      // (n_votes) the host's
    const int32_t * graduates;      // (n_grad) the host's: serials
} morphkv_kernels_cut;

// A layer of a sequence. Pointers are the device's, and their rows a stream's.
typedef struct morphkv_kernels_layer {
    int32_t       i_cut;
    int32_t       type_k;  // morphkv_kernels_type
    void *        k;       // (n_cells, n_head_kv, n_embd_head)
    void *        v;       // (n_cells, n_head_kv, ...) of any type; null where V is a part of K
    const void *  ring;    // (n_ring, n_readers, n_head_kv, n_group/n_readers, n_embd_head) F16
    int32_t *     serial;  // (n_head_kv, n_distant)
    float *       score;   // (n_head_kv, n_distant) or null
    const float * sinks;   // (n_head_kv*n_group) or null, with one reader alone
    int64_t       k_row_bytes, v_row_bytes, ring_row_bytes;  // of a cell, of a voter
    int64_t       k_head_bytes, v_head_bytes;
    int32_t       n_head_kv, n_group, n_readers, n_embd_head;
    float         scale, softcap;  // softcap: 0 = none
} morphkv_kernels_layer;

// MORPHKV_KERNELS_VERSION of the library.
MORPHKV_KERNELS_API int32_t morphkv_kernels_version(void);

// Whose devices it runs on: the name of a registry of ggml's backends ("CUDA").
MORPHKV_KERNELS_API const char * morphkv_kernels_registry(void);

// All layers, which lie on one device, are cut when it returns. Whoever calls has waited for what writes to them. NULL, or why
// it failed, which lives until the thread's next call; has_changed: whether layers may then be cut, even if in part.
MORPHKV_KERNELS_API const char * morphkv_kernels_run(const morphkv_kernels_cut *   cuts,
                                                     const morphkv_kernels_layer * layers, int32_t n_layers,
                                                     int32_t * has_changed);

// Memory that cuts hold on the device that this pointer is of, for all contexts of the process.
MORPHKV_KERNELS_API size_t morphkv_kernels_n_bytes(const void * on_device);

#ifdef __cplusplus
}

typedef decltype(morphkv_kernels_version) *  morphkv_kernels_version_t;
typedef decltype(morphkv_kernels_registry) * morphkv_kernels_registry_t;
typedef decltype(morphkv_kernels_run) *      morphkv_kernels_run_t;
typedef decltype(morphkv_kernels_n_bytes) *  morphkv_kernels_n_bytes_t;
#endif
