#include "llama/reader.h"

#include "core/types.h"
#include "llama-context.h"
#include "llama-model.h"
#include "llama/hybrid.h"
#include "llama/memory.h"

#include <algorithm>

// A batch, and a micro-batch: what it computes is as wide as the vocabulary.
static constexpr uint32_t N_BATCH = 64;

static void ok(morphkv_status status) {
    if (status != MORPHKV_STATUS_OK) {
        throw morphkv_error(status, morphkv_last_error());
    }
}

static morphkv_params params_of_reader(const morphkv_params & of) {
    morphkv_params res = morphkv_params_default();
    res.capacity       = 128;
    res.window         = 32;
    res.interval       = 32;
    res.prompt_room    = (1 + morphkv_reader::N_PAGES_MAX) * morphkv_reader::N_PAGE - res.capacity;
    // whether keys can be turned
    res.rope_limit     = of.rope_limit == 0 ? 0 : -1;
    return res;
}

static llama_context_params context_params(const llama_context & of, ggml_type type_k, ggml_type type_v) {
    const auto &         cparams = of.get_cparams();
    llama_context_params res     = llama_context_default_params();
    // how some models rotate is chosen by its size
    res.n_ctx                    = cparams.n_ctx_seq;
    res.n_batch                  = N_BATCH;
    res.n_ubatch                 = N_BATCH;
    res.n_seq_max                = 1;
    res.flash_attn_type          = cparams.flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    res.rope_freq_base           = cparams.rope_freq_base;
    res.rope_freq_scale          = cparams.rope_freq_scale;
    res.yarn_ext_factor          = cparams.yarn_ext_factor;
    res.yarn_beta_fast           = cparams.yarn_beta_fast;
    res.yarn_beta_slow           = cparams.yarn_beta_slow;
    res.yarn_orig_ctx            = cparams.n_ctx_orig_yarn;
    res.type_k                   = type_k;
    res.type_v                   = type_v;
    res.offload_kqv              = cparams.offload_kqv;
    res.op_offload               = cparams.op_offload;
    res.swa_full                 = false;
    return res;
}

static bool rotate_alike(const llama_cparams & a, const llama_cparams & b) {
    return a.n_ctx_seq == b.n_ctx_seq && a.rope_freq_base == b.rope_freq_base &&
           a.rope_freq_scale == b.rope_freq_scale && a.yarn_ext_factor == b.yarn_ext_factor &&
           a.yarn_attn_factor == b.yarn_attn_factor && a.n_ctx_orig_yarn == b.n_ctx_orig_yarn;
}

void morphkv_reader::free_context::operator()(llama_context * ctx) const {
    llama_free(ctx);
}

morphkv_reader::~morphkv_reader() = default;

morphkv_reader::morphkv_reader(const llama_context & of, const morphkv_page_layout & layout) : of(of), layout(layout) {
    const morphkv_cache & main   = *morphkv_find_cache(of.get_memory());
    const auto            layers = main.cut_layers();
    const auto &          first  = layers.front();
    const morphkv_params  params = params_of_reader(main.get_params());
    const auto            like   = context_params(of, first.k->type, first.v ? first.v->type : first.k->type);
    llama_context *       made   = nullptr;
    ok(morphkv_context_create(const_cast<llama_model *>(&of.get_model()), &like, &params, &made));
    ctx.reset(made);
    if (!rotate_alike(of.get_cparams(), ctx->get_cparams())) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "keys are not rotated as the model's own settings say");
    }
    cache = morphkv_find_cache(ctx->get_memory());

    morphkv_archive_params archive = morphkv_archive_params_default();
    archive.size                   = sizeof(archive);
    archive.type_k                 = layout.type_k;
    archive.type_v                 = layout.type_v;
    cache->start_archive(ctx.get(), archive);
    const auto its = cache->cut_layers();
    for (const auto & layer : layers) {
        const auto it = std::find_if(its.begin(), its.end(), [&](const auto & other) { return other.il == layer.il; });
        GGML_ASSERT(it != its.end());
        own.push_back(it - its.begin());
    }
}

size_t morphkv_reader::n_bytes() const {
    size_t res = 0;
    for (const auto & [_, data] : ctx->memory_breakdown()) {
        res += data.context + data.compute;
    }
    return res;
}

std::vector<morphkv_archive::page_ptr> morphkv_reader::read(int32_t before, const std::vector<int32_t> & tokens) {
    std::vector<llama_token> text = { before };
    text.insert(text.end(), tokens.begin(), tokens.end());
    const size_t n_pages = tokens.size() / N_PAGE;
    GGML_ASSERT(n_pages <= N_PAGES_MAX && tokens.size() % N_PAGE == 0);

    ctx->set_n_threads(of.n_threads(), of.n_threads_batch());
    llama_memory_clear(ctx->get_memory(), /*data =*/false);
    for (size_t i = 0; i < text.size(); i += N_BATCH) {
        const int32_t n = std::min<size_t>(N_BATCH, text.size() - i);
        if (llama_decode(ctx.get(), llama_batch_get_one(text.data() + i, n)) != 0) {
            throw morphkv_error(MORPHKV_STATUS_FAILED, "llama_decode failed");
        }
    }
    ctx->synchronize();
    const morphkv_archive::rows            rows = cache->read_rows(0, 1, tokens.size());
    std::vector<morphkv_archive::page_ptr> res;
    for (size_t page = 0; page < n_pages; ++page) {
        auto to = std::make_shared<morphkv_page>(layout.page_bytes);
        for (size_t i = 0; i < layout.layers.size(); ++i) {
            const auto copy = [&, page](const std::vector<uint8_t> & from, size_t n, size_t at) {
                std::copy_n(from.begin() + page * n, n, to->begin() + at);  // of no bytes, where V is a part of K
            };
            copy(rows.k[own[i]], N_PAGE * layout.k_bytes(i), layout.layers[i].k_at);
            copy(rows.v[own[i]], N_PAGE * layout.v_bytes(i), layout.layers[i].v_at);
        }
        res.push_back(std::move(to));
    }
    return res;
}
