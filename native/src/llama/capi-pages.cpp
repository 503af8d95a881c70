// The C API of an archive's pages.

#include "llama/capi.h"
#include "llama/memory.h"

#include "llama-context.h"

morphkv_status morphkv_pages_get(struct llama_context * ctx, int32_t seq_id, int64_t first, int64_t n, void * records,
                                 morphkv_page_range * out) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, seq_id);
        require(records || n == 0, "records must not be NULL");
        if (out) {
            require_size(out, "out");
            *out = cache.pages_of(seq_id);
        }
        if (n != 0) {
            cache.get_pages(seq_id, first, n, (char *) records);
        }
    });
}

morphkv_status morphkv_pages_set(struct llama_context * ctx, int32_t seq_id, const morphkv_page_range * pages,
                                 const void * records) {
    return guarded([&] {
        auto & cache = cache_of(ctx, seq_id);
        require_size(pages, "pages");
        require(records, "records must not be NULL");
        ctx->synchronize();
        cache.set_pages(seq_id, *pages, (const char *) records);
    });
}
