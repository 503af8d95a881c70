// One eviction of one layer and one sequence as ggml ops: score, select, move. Knows tensors, no llama.cpp.
//
// Everything is made of ops that every backend has, and nothing returns to the host. Shapes in comments are numpy's:
// slowest axis first; ggml's ne[] is the reverse.
#pragma once

#include "morphkv.h"

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

// What an eviction works on; the same for all layers.
//   cells: [0, n_distant) distant slots | [n_distant, + n_grad) graduates | the window's n_window cells
struct morphkv_evict_shape {
    int32_t n_keep;   // first slots, never evicted
    int32_t n_distant;
    int32_t n_grad;   // recent cells older than the window, in the order of serials
    int32_t n_window;
    int32_t n_votes;  // voters; may be less than configured after a rollback, 0 only if policy is not MORPHKV

    int32_t n_old() const { return n_distant + n_grad; }
    // pairs of a slot and a graduate that compete
    int32_t n_pairs() const { return n_grad < n_distant - n_keep ? n_grad : n_distant - n_keep; }
};

struct morphkv_evict_policy {
    morphkv_policy policy;
    morphkv_fusion fusion;
    float          carried;  // weight of a cell's last sum of votes; 0 = there are none
};

// One layer of one sequence, or several that are alike (device/stack.h), all on one device.
struct morphkv_evict_layer {
    ggml_tensor * k;     // (n_layers, n_cells, n_head_kv*n_embd_head_k), a stream of the cache
    ggml_tensor * v;     // (n_layers, n_cells, n_head_kv*n_embd_head_v); null where V is a part of K
    ggml_tensor * ring;  // (n_layers, n_ring, n_head*n_embd_head_k) F16: the last queries, scaled by nothing
    ggml_tensor *
        serial;  // (n_layers, n_head_kv, n_distant) the bits of an int32 in an F32: which tokens are in the slots
    ggml_tensor * score;  // (n_layers, n_head_kv, n_distant) F32: carried sums of votes; null where there are none
    ggml_tensor * sinks;  // (n_head) F32: a logit more in the softmax of each head, which gets no cell; null = none,
                          // as for several layers

    int32_t n_head;
    int32_t n_readers = 1;  // layers that attend to k, n_head of all together
    int32_t n_head_kv;
    float   kq_scale;
    float   softcap;         // 0 = none

    ggml_backend_t backend;  // what will compute it, if that is known: some need K in another form
};

// Filled by the host before the graph is computed.
struct morphkv_evict_inputs {
    ggml_tensor * vote_rows;    // (n_layers, n_votes) I32: rows of the ring whose queries vote
    ggml_tensor * grad_serial;  // (n_layers, n_head_kv, n_grad) int32 bits in F32: the graduates
    ggml_tensor * window_src;   // (n_layers, 1, n_window) I32: cells of the window
    ggml_tensor * window_dst;   // (n_layers, 1, n_window) I32: the first cells of the recent region
    ggml_tensor * noise;        // (n_layers*n_head_kv, n_old) F32: scores of MORPHKV_POLICY_RANDOM, else null
};

// Queries of the voters, heads in the order of the K heads that they attend to: (n_layers, n_votes, n_head*n_embd_head_k) F32.
ggml_tensor * morphkv_build_voters(ggml_context * ctx, const morphkv_evict_layer & layer, ggml_tensor * vote_rows);

// One score per older cell: (n_layers*n_head_kv, n_old) F32. Higher is kept.
// MorphKV (arXiv 2503.00979): softmax of the voters' logits over the older cells only, max over a head's query group, which is
// that of all layers that attend to these keys, then sum or max over the voters.
ggml_tensor * morphkv_build_votes(ggml_context * ctx, const morphkv_evict_layer & layer,
                                  const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                                  const morphkv_evict_inputs & inp);

// Scores by two committees (n_layers*n_head_kv, n_old), from votes and sums of the same shape. Each names the best half of the
// slots by its own; a score is the larger of both in parts of what the last one named has. tests/support/ranking.py says why.
ggml_tensor * morphkv_build_committees(ggml_context * ctx, ggml_tensor * votes, ggml_tensor * sums,
                                       const morphkv_evict_shape & shape);

// Which cell ends in which slot; both (n_layers*n_head_kv, n_pairs) I32. A pair that does not change has src == dst.
struct morphkv_moves {
    ggml_tensor * src;
    ggml_tensor * dst;
};

// Pair and move: the i-th best graduate takes the i-th worst slot where its score is higher: the top-k of the union,
// without a prefix sum, with disjoint sources and destinations. The first n_keep slots do not compete.
morphkv_moves morphkv_build_select(ggml_context * ctx, ggml_tensor * scores, const morphkv_evict_shape & shape);

// The whole eviction of the layers, appended to gf in the order in which it has to run. parts: the same layers, which are voted
// on one part after the other, since logits are large, and then selected and moved as one; none where sums are carried.
void morphkv_build_evict(ggml_context * ctx, ggml_cgraph * gf, const morphkv_evict_layer & layer,
                         const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                         const morphkv_evict_inputs & inp, const std::vector<morphkv_evict_layer> & parts = {});

// Most tensors that morphkv_build_evict() makes, views included.
size_t morphkv_evict_max_tensors(int32_t n_group, int32_t n_votes);
