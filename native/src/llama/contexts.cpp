// Constructors that a patch adds to llama.cpp's contexts of two caches: of parts that were made elsewhere, for the same
// micro-batches.

#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

#include <utility>

llama_kv_cache_iswa_context::llama_kv_cache_iswa_context(std::vector<llama_ubatch> ubatches,
                                                         llama_memory_context_ptr base, llama_memory_context_ptr swa)
    : ubatches(std::move(ubatches)),
      ctx_base(std::move(base)),
      ctx_swa(std::move(swa)),
      status(llama_memory_status_combine(ctx_base->get_status(), ctx_swa->get_status())) {}

llama_memory_hybrid_context::llama_memory_hybrid_context(std::vector<llama_ubatch> ubatches,
                                                         llama_memory_context_ptr attn, llama_memory_context_ptr recr)
    : ubatches(std::move(ubatches)),
      ctx_attn(std::move(attn)),
      ctx_recr(std::move(recr)),
      status(llama_memory_status_combine(ctx_attn->get_status(), ctx_recr->get_status())) {}

llama_memory_hybrid_iswa_context::llama_memory_hybrid_iswa_context(std::vector<llama_ubatch> ubatches,
                                                                   llama_memory_context_ptr  attn,
                                                                   llama_memory_context_ptr  recr)
    : ubatches(std::move(ubatches)),
      ctx_attn(std::move(attn)),
      ctx_recr(std::move(recr)),
      status(llama_memory_status_combine(ctx_attn->get_status(), ctx_recr->get_status())) {}
