// The C API of texts that were read once and for all.

#include "llama/capi.h"
#include "llama/memory.h"

#include "llama-context.h"

#include <algorithm>

static const morphkv_knowledge & attachment_of(const morphkv_cache & cache, int32_t i) {
    const int32_t n = cache.get_attached().size();
    require(i >= 0 && i < n,
            "i must be below the " + std::to_string(n) + " files that are attached, got " + std::to_string(i));
    return *cache.get_attached()[i];
}

morphkv_status morphkv_archive_write(struct llama_context * ctx, int32_t seq_id, const char * path,
                                     const char * model_path, const int32_t * tokens, int32_t n_tokens) {
    return guarded([&] {
        auto & cache = cache_of(ctx, seq_id);
        require(path && tokens, "path and tokens must not be NULL");
        ctx->synchronize();
        cache.write_knowledge(seq_id, path, model_path, tokens, n_tokens);
    });
}

morphkv_status morphkv_archive_attach(struct llama_context * ctx, const char * path, const char * model_path) {
    return guarded([&] {
        auto & cache = cache_of(ctx, 0);
        require(path, "path must not be NULL");
        try {
            cache.attach(ctx, path, model_path);
        } catch (const morphkv_error &) {
            throw;
        } catch (const std::runtime_error & err) {
            throw morphkv_error(MORPHKV_STATUS_INVALID, err.what());
        }
    });
}

morphkv_status morphkv_attachment_count(struct llama_context * ctx, int32_t * n) {
    return guarded([&] {
        require(n, "n must not be NULL");
        *n = cache_of(ctx, 0).get_attached().size();
    });
}

morphkv_status morphkv_attachment_get(struct llama_context * ctx, int32_t seq_id, int32_t i, morphkv_attachment * out) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, seq_id);
        require_size(out, "out");
        const auto & file     = attachment_of(cache, i);
        const auto & n_tokens = cache.get_brought(seq_id).n_tokens;
        out->path             = file.get_path().c_str();
        out->id               = file.get_id();
        out->n_tokens         = file.n_tokens();
        out->n_recalled       = i < (int32_t) n_tokens.size() ? n_tokens[i] : 0;
        out->bytes            = file.get_bytes();
    });
}

morphkv_status morphkv_attachment_tokens(struct llama_context * ctx, int32_t i, int64_t first, int32_t n_tokens,
                                         int32_t * tokens) {
    return guarded([&] {
        const auto & file = attachment_of(cache_of(ctx, 0), i);
        require(tokens || n_tokens == 0, "tokens must not be NULL");
        require(first >= 0 && n_tokens >= 0 && first <= file.n_tokens() - n_tokens,
                "tokens must be of the file's " + std::to_string(file.n_tokens()) + ", got " +
                    std::to_string(n_tokens) + " from " + std::to_string(first));
        const auto res = file.get_tokens(first, n_tokens);
        std::copy(res.begin(), res.end(), tokens);
    });
}

morphkv_status morphkv_brought_get(struct llama_context * ctx, int32_t seq_id, morphkv_brought * out, int32_t n_max,
                                   int32_t * n_pages) {
    return guarded([&] {
        const auto & cache = cache_of(ctx, seq_id);
        require(n_pages && (out || n_max == 0), "out and n_pages must not be NULL");
        const auto & pages   = cache.get_brought(seq_id).pages;
        const auto   sources = cache.sources_of(seq_id);
        *n_pages             = pages.size();
        for (int32_t i = 0; i < std::min<int32_t>(n_max, pages.size()); ++i) {
            const size_t i_source = sources.source_of(pages[i]);
            const bool   is_file  = pages[i] < 0 && i_source < cache.get_attached().size();
            out[i] = is_file ? morphkv_brought{ (int32_t) i_source, 0,
                                                (pages[i] - sources.all()[i_source].first) * morphkv_sources::N_PAGE }
                             : morphkv_brought{ -1, 0, sources.serial_of(pages[i]) };
        }
    });
}
