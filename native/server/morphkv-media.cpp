#include "morphkv-media.h"

#include "gguf.h"
#include "llama.h"
#include "mtmd.h"
#include "server-common.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>

std::string morphkv_why_not_projector(const std::string & path) {
    std::unique_ptr<gguf_context, decltype(&gguf_free)> file(
        gguf_init_from_file(path.c_str(), { /*.no_alloc =*/true, /*.ctx =*/nullptr }), gguf_free);
    for (const char * key : { "clip.projector_type", "clip.vision.projector_type" }) {
        const int64_t i = file ? gguf_find_key(file.get(), key) : -1;
        if (i < 0 || gguf_get_kv_type(file.get(), i) != GGUF_TYPE_STRING) {
            continue;
        }
        if (strcmp(gguf_get_val_str(file.get(), i), "hunyuanvl") == 0) {
            return "rows and columns of a projector of type hunyuanvl are counted from 0 and not from the image's "
                   "position, so that they cannot be rebased";
        }
    }
    return "";
}

using see_fn = std::function<void(size_t i_first, const mtmd_input_chunk * chunk, int32_t n_tokens)>;

static void for_media(const server_tokens & tokens, const see_fn & see) {
    for (size_t i = 0; tokens.has_mtmd && i < tokens.size();) {
        if (tokens[i] != LLAMA_TOKEN_NULL) {
            i++;
            continue;
        }
        const mtmd_input_chunk * chunk = tokens.find_chunk(i).get();
        const size_t             n     = mtmd_input_chunk_get_n_tokens(chunk);
        see(i, chunk, n);
        i += n;
    }
}

void morphkv_count_media(const server_tokens & tokens, int32_t n_past, morphkv_counts & counts) {
    for_media(tokens, [&](size_t i_first, const mtmd_input_chunk *, int32_t n) {
        if ((int32_t) i_first >= n_past) {
            counts.n_media++;
            counts.n_media_tokens += n;
        }
    });
}

std::string morphkv_why_not_media(const server_tokens & tokens, const mtmd_context * mctx, const llama_context * ctx,
                                  const morphkv_params & params) {
    const int32_t n_room  = std::max(params.interval, params.prompt_room);
    const int32_t n_batch = llama_n_ubatch(ctx);
    std::string   res;
    for_media(tokens, [&](size_t, const mtmd_input_chunk * chunk, int32_t n) {
        if (mctx && mtmd_decode_use_non_causal(mctx, chunk) && n > std::min(n_room, n_batch)) {
            res = "an image whose tokens attend to each other must fit max(interval, prompt_room) = " +
                  std::to_string(n_room) + " cells and a micro-batch (-ub) of " + std::to_string(n_batch) + ", got " +
                  std::to_string(n) + " tokens";
        }
    });
    return res;
}
