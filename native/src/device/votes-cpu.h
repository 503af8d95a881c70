// The votes of an eviction on the CPU: what morphkv_build_votes() composes of nine kinds of ops, in two.
#pragma once

#include "ggml-backend.h"

#include <cstdint>

struct morphkv_votes_params {
    int32_t n_old;    // older cells, the first of k
    int32_t n_head_kv;
    float   scale;    // of the logits
    float   softcap;  // 0 = none
    int32_t use_max;  // votes are joined by max, else by sum
    int32_t n_page;   // of morphkv_build_page_scores() alone, as the next: keys of a page, 1 or MORPHKV_VOTES_PAGE
    int32_t n_skip;   // first keys, which get votes but give their page none
    int32_t n_embd;   // of a head; set here
};

constexpr int32_t MORPHKV_VOTES_PAGE = 16;

// Whether the backend is this CPU (one behind RPC has no use for our functions), and knows keys of this type and size.
bool morphkv_votes_on_cpu(ggml_backend_t backend, ggml_type type_k, int64_t n_embd_head);

// The votes, joined to few: (n_head_kv, n_parts, n_old) F32.
// k: (n_cells, n_head_kv*n_embd_head), q: (n_votes, n_head*n_embd_head) F32, sinks: (n_head) F32 or null.
ggml_tensor * morphkv_build_votes_on_cpu(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q, ggml_tensor * sinks,
                                         const morphkv_votes_params & params);

// What each page gets, summed over the voters: the third power of its keys' share of a vote. (n_head_kv, n_parts, n_pages)
// pages: where the keys of each page lie until the graph has run, MORPHKV_VOTES_PAGE rows like those of k, which is then not read.
ggml_tensor * morphkv_build_page_scores(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q,
                                        const morphkv_votes_params & params, const void * const * pages = nullptr);
