// What the decode graph takes from groups of layers beside the first: cells to write to and a mask of their own.

#include "llama/batch-context.h"
#include "llama/hooks.h"

namespace {

const llama_kv_cache_iswa_context * group_of(const llama_memory_context_i * mctx, const morphkv_cache * mkv,
                                             size_t i_group) {
    const auto * cur = dynamic_cast<const morphkv_context *>(mctx);
    return cur && cur->get_cache() == mkv ? cur->get_group(i_group) : nullptr;
}

// As llama.cpp's build_attn_inp_kq_mask(): with flash attention (MorphKV needs it) F16, and F32 without (Grok).
ggml_tensor * build_mask(ggml_context * ctx, const llama_kv_cache_context & part, const llama_ubatch & ubatch,
                         const llama_cparams & cparams) {
    const int64_t n_stream = cparams.kv_unified ? 1 : ubatch.n_seqs_unq;
    ggml_tensor * res = ggml_new_tensor_4d(ctx, cparams.flash_attn ? GGML_TYPE_F16 : GGML_TYPE_F32, part.get_n_kv(),
                                           ubatch.n_tokens / n_stream, 1, n_stream);
    ggml_set_input(res);
    ggml_set_name(res, "morphkv_inp_kq_mask");
    return res;
}

bool is_same_size(const ggml_tensor * k_idxs, const ggml_tensor * mask, const llama_kv_cache_context & part,
                  const llm_graph_params & params) {
    const int64_t n_stream = params.cparams.kv_unified ? 1 : params.ubatch.n_seqs_unq;
    return k_idxs->ne[0] == params.ubatch.n_tokens && mask->ne[0] == part.get_n_kv() &&
           mask->ne[1] == params.ubatch.n_tokens / n_stream && mask->ne[2] == 1 && mask->ne[3] == n_stream;
}

// Inputs of a group, each as its model's kind of attention takes them: filled as llama.cpp's own, and only the context that
// they are filled from is another.
class group_kv : public llm_graph_input_attn_kv {
public:
    group_kv(const llm_graph_input_attn_kv & like, ggml_context * ctx, const llama_ubatch & ubatch,
             const morphkv_cache * mkv, size_t i_group, const llama_kv_cache_iswa_context * group)
        : llm_graph_input_attn_kv(like.hparams, like.cparams, group->get_base()),
          mkv(mkv),
          i_group(i_group) {
        self_k_idxs  = mctx->build_input_k_idxs(ctx, ubatch);
        self_v_idxs  = mctx->build_input_v_idxs(ctx, ubatch);
        self_kq_mask = self_kq_mask_cnv = build_mask(ctx, *mctx, ubatch, cparams);
        self_k_rot                      = mctx->build_input_k_rot(ctx);
        self_v_rot                      = mctx->build_input_v_rot(ctx);
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * group = group_of(params.mctx, mkv, i_group);
        if (!group) {
            return false;
        }
        mctx = group->get_base();
        return is_same_size(self_k_idxs, self_kq_mask, *mctx, params);
    }

    const morphkv_cache * mkv;
    const size_t          i_group;
};

class group_k : public llm_graph_input_attn_k {
public:
    group_k(const llm_graph_input_attn_k & like, ggml_context * ctx, const llama_ubatch & ubatch,
            const morphkv_cache * mkv, size_t i_group, const llama_kv_cache_iswa_context * group)
        : llm_graph_input_attn_k(like.hparams, like.cparams, group->get_base()),
          mkv(mkv),
          i_group(i_group) {
        self_k_idxs  = mctx->build_input_k_idxs(ctx, ubatch);
        self_kq_mask = self_kq_mask_cnv = build_mask(ctx, *mctx, ubatch, cparams);
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * group = group_of(params.mctx, mkv, i_group);
        if (!group) {
            return false;
        }
        mctx = group->get_base();
        return is_same_size(self_k_idxs, self_kq_mask, *mctx, params);
    }

    const morphkv_cache * mkv;
    const size_t          i_group;
};

// Its layers have no window, so what is of windowed layers stays null.
class group_kv_iswa : public llm_graph_input_attn_kv_iswa {
public:
    group_kv_iswa(const llm_graph_input_attn_kv_iswa & like, ggml_context * ctx, const llama_ubatch & ubatch,
                  const morphkv_cache * mkv, size_t i_group, const llama_kv_cache_iswa_context * group)
        : llm_graph_input_attn_kv_iswa(like.hparams, like.cparams, group),
          mkv(mkv),
          i_group(i_group) {
        const auto * part = mctx->get_base();
        self_k_idxs       = part->build_input_k_idxs(ctx, ubatch);
        self_v_idxs       = part->build_input_v_idxs(ctx, ubatch);
        self_kq_mask = self_kq_mask_cnv = build_mask(ctx, *part, ubatch, cparams);
        self_k_rot                      = part->build_input_k_rot(ctx);
        self_v_rot                      = part->build_input_v_rot(ctx);
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto * group = group_of(params.mctx, mkv, i_group);
        if (!group) {
            return false;
        }
        mctx = group;
        return is_same_size(self_k_idxs, self_kq_mask, *mctx->get_base(), params);
    }

    const morphkv_cache * mkv;
    const size_t          i_group;
};

template <typename group_type, typename input_type>
input_type * attn_input(llm_graph_result * res, ggml_context * ctx, const llama_memory_context_i * mctx,
                        const llama_ubatch & ubatch, input_type * inp, int il) {
    const auto * cur = dynamic_cast<const morphkv_context *>(mctx);
    if (!cur || cur->get_cache()->n_groups() == 1) {
        return inp;
    }
    const morphkv_cache * mkv     = cur->get_cache();
    const int32_t         i_group = mkv->group_of(il);
    if (i_group <= 0) {
        return inp;
    }
    for (const auto & input : res->inputs) {
        auto * known = dynamic_cast<group_type *>(input.get());
        if (known && known->mkv == mkv && known->i_group == (size_t) i_group) {
            return known;
        }
    }
    const auto * group = cur->get_group(i_group);
    GGML_ASSERT(group);
    return static_cast<input_type *>(
        res->add_input(std::make_unique<group_type>(*inp, ctx, ubatch, mkv, i_group, group)));
}

}  // namespace

llm_graph_input_attn_kv * morphkv_hook_attn_input(llm_graph_result * res, ggml_context * ctx,
                                                  const llama_memory_context_i * mctx, const llama_ubatch & ubatch,
                                                  llm_graph_input_attn_kv * inp, int il) {
    return attn_input<group_kv>(res, ctx, mctx, ubatch, inp, il);
}

llm_graph_input_attn_k * morphkv_hook_attn_input(llm_graph_result * res, ggml_context * ctx,
                                                 const llama_memory_context_i * mctx, const llama_ubatch & ubatch,
                                                 llm_graph_input_attn_k * inp, int il) {
    return attn_input<group_k>(res, ctx, mctx, ubatch, inp, il);
}

llm_graph_input_attn_kv_iswa * morphkv_hook_attn_input(llm_graph_result * res, ggml_context * ctx,
                                                       const llama_memory_context_i * mctx, const llama_ubatch & ubatch,
                                                       llm_graph_input_attn_kv_iswa * inp, int il) {
    return attn_input<group_kv_iswa>(res, ctx, mctx, ubatch, inp, il);
}
