// Evictions and rebases of random rows on a device, against the same on the CPU. No model, no context.
#pragma once

#include "device/graph-evict.h"
#include "device/graph-turn.h"

#include "ggml-backend.h"

#include <array>
#include <string>
#include <vector>

struct morphkv_kernels_library;

struct morphkv_selftest_case {
    ggml_type type;  // of K and V
    int32_t   n_embd_head;
    int32_t   n_head_kv;
    int32_t   n_group;

    // an eviction, unless n_rows is not 0
    morphkv_evict_shape  shape;
    morphkv_evict_policy policy;
    float                softcap;

    // a rebase
    int32_t n_rows;
    int32_t n_rot_dims;  // of a head
    int32_t rope_mode;

    // how a rebase's keys are rotated beyond that
    int32_t                n_rot_offs = 0;      // values of a head in front of those that turn (MLA)
    std::array<int32_t, 4> sections   = {};     // of M-RoPE
    bool                   is_normed  = false;  // weights of a norm behind the rotation

    int32_t n_readers = 1;                      // layers whose queries attend to K, n_group heads together

    std::string describe() const;
};

// What is left on the device.
struct morphkv_selftest_state {
    std::string          unsupported;  // why nothing was computed, or ""
    double               took_ms;      // of two layers where the device takes them as one
    std::vector<float>   votes;  // (n_head_kv, n_old), of an eviction under MORPHKV_POLICY_MORPHKV; not of kernels
    std::vector<char>    k_before, v_before;
    std::vector<float>   score_before;
    std::vector<char>    k, v;   // (n_cells, n_head_kv*n_embd_head); of a rebase K alone, (n_rows, ...)
    std::vector<int32_t> pos;    // (n_head_kv, n_distant): the cell where the token of a slot was
    std::vector<float>   score;  // (n_head_kv, n_distant)
};

struct morphkv_selftest_verdict {
    int32_t     result;  // morphkv_selftest_result
    int32_t     n_near_ties;
    std::string reason;
};

std::vector<morphkv_selftest_case> morphkv_selftest_cases();

// n_threads: on a CPU. Throws morphkv_error where the device cannot be started.
ggml_backend_t morphkv_selftest_start(ggml_backend_dev_t dev, int n_threads = 1);

// kernels: of our own, to evict with in place of the graph.
morphkv_selftest_state morphkv_selftest_compute(const morphkv_selftest_case & c, ggml_backend_t backend,
                                                const morphkv_kernels_library * kernels = nullptr);

morphkv_selftest_verdict morphkv_selftest_compare(const morphkv_selftest_case & c, const morphkv_selftest_state & cpu,
                                                  const morphkv_selftest_state & device);

// A case on a device.
struct morphkv_selftest_item {
    ggml_backend_dev_t              dev;
    morphkv_selftest_case           c;
    const morphkv_kernels_library * kernels;  // null: the graph
};

// All cases of all devices; evictions once more by kernels of our own where a device has them.
std::vector<morphkv_selftest_item> morphkv_selftest_items(const std::string & servers);

// The devices to test: all that compute in memory of their own or the host's, then those of servers ("HOST:PORT,...").
std::vector<ggml_backend_dev_t> morphkv_selftest_devices(const std::string & servers);
