// The only functions that native/patches call. Where MorphKV is off each returns before it touches anything.
#pragma once

#include "llama-graph.h"
#include "llama-memory.h"

struct llama_model;

// Start of llama_model::create_memory(): throws the sentence why this model or context cannot have MorphKV, if the
// thread has pending parameters and they cannot be honoured.
void morphkv_hook_check(const llama_model & model, const llama_memory_params & mparams, const llama_cparams & cparams);

// In place of a llama_kv_cache or llama_kv_cache_iswa: takes the pending parameters; nullptr where there are none.
llama_memory_i * morphkv_hook_create_memory(const llama_model & model, const llama_memory_params & mparams,
                                            const llama_cparams &                   cparams,
                                            const llama_memory_i::layer_filter_cb & filter,
                                            const llama_memory_i::layer_reuse_cb &  reuse);

// The same in place of a llama_memory_hybrid or llama_memory_hybrid_iswa.
llama_memory_i * morphkv_hook_create_hybrid(const llama_model & model, const llama_memory_params & mparams,
                                            const llama_cparams &                   cparams,
                                            const llama_memory_i::layer_filter_cb & filter_attn,
                                            const llama_memory_i::layer_filter_cb & filter_recr);

// Start of build_attn(): the inputs of the group that the layer is in (cells, mask), which are made when its first layer asks.
llm_graph_input_attn_kv *      morphkv_hook_attn_input(llm_graph_result * res, ggml_context * ctx,
                                                       const llama_memory_context_i * mctx, const llama_ubatch & ubatch,
                                                       llm_graph_input_attn_kv * inp, int il);
llm_graph_input_attn_k *       morphkv_hook_attn_input(llm_graph_result * res, ggml_context * ctx,
                                                       const llama_memory_context_i * mctx, const llama_ubatch & ubatch,
                                                       llm_graph_input_attn_k * inp, int il);
llm_graph_input_attn_kv_iswa * morphkv_hook_attn_input(llm_graph_result * res, ggml_context * ctx,
                                                       const llama_memory_context_i * mctx, const llama_ubatch & ubatch,
                                                       llm_graph_input_attn_kv_iswa * inp, int il);

// After K and V of a layer are stored: q (n_tokens, n_head, n_embd_head) is what attention will use, k (n_tokens,
// n_head_kv, n_embd_head) is what was stored, null where the layer attends to another's. sinks: (n_head) or null. mctx: of the
// cache that the layer is in.
void morphkv_hook_store_query(llm_graph_result * res, ggml_context * ctx, ggml_cgraph * gf,
                              const llama_memory_context_i * mctx, const llama_ubatch & ubatch, ggml_tensor * q,
                              const ggml_tensor * k, ggml_tensor * sinks, float kq_scale, int il);

// After pos (n_tokens), the input that RoPE takes positions from, has been made.
void morphkv_hook_positions(llm_graph_result * res, const llama_memory_context_i * mctx, ggml_tensor * pos);
