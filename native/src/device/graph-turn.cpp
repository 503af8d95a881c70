#include "device/graph-turn.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

static morphkv_rope read_rope(const ggml_tensor * t) {
    morphkv_rope res;
    auto         number = [&](int i) {
        float value;
        memcpy(&value, (const char *) t->op_params + i * sizeof(float), sizeof(value));
        return value;
    };
    res.n_dims     = t->op_params[1];
    res.mode       = t->op_params[2];
    res.n_ctx_orig = t->op_params[4];
    res.freq_base  = number(5);
    res.freq_scale = number(6);
    res.ext_factor = number(7);
    res.beta_fast  = number(9);
    res.beta_slow  = number(10);
    res.n_offs     = t->op_params[15];
    res.factors    = t->src[2];
    std::copy(t->op_params + 11, t->op_params + 15, res.sections);

    const int32_t known[] = { GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX, GGML_ROPE_TYPE_MROPE, GGML_ROPE_TYPE_IMROPE };
    const bool    is_known = std::find(std::begin(known), std::end(known), res.mode) != std::end(known);
    res.is                 = is_known ? morphkv_rope::kind::ROTATED : morphkv_rope::kind::UNKNOWN;
    return res;
}

std::vector<int32_t> morphkv_rope::turns(const std::vector<int32_t> & x) const {
    std::vector<int32_t> res;
    for (int32_t i = 0; i < n_pos(); ++i) {
        res.insert(res.end(), x.begin(), x.end());
    }
    if (n_pos() == 4) {
        std::fill(res.end() - x.size(), res.end(), 0);
    }
    return res;
}

// One for each value of a head, of the model.
static bool are_weights(const ggml_tensor * t, int64_t n_embd_head) {
    return t->op == GGML_OP_NONE && !(t->flags & GGML_TENSOR_FLAG_INPUT) && t->type == GGML_TYPE_F32 &&
           t->ne[0] == n_embd_head && ggml_nelements(t) == n_embd_head;
}

// Goes from the keys towards the weights that made them. is_clean: nothing was met that does not commute with rotation.
static morphkv_rope find_rope(const ggml_tensor * t, bool is_clean) {
    bool          is_multiplied = false;
    ggml_tensor * weights       = nullptr;
    auto          found         = [&](morphkv_rope rope) {
        rope.is_multiplied |= is_multiplied;
        if (rope.weights && (weights || is_multiplied)) {
            rope.is = morphkv_rope::kind::UNKNOWN;
        }
        rope.weights = weights && rope.is == morphkv_rope::kind::ROTATED ? weights : rope.weights;
        return rope;
    };
    morphkv_rope none;
    none.is = morphkv_rope::kind::NONE;

    while (t) {
        switch (t->op) {
            case GGML_OP_ROPE: {
                morphkv_rope res = read_rope(t);
                res.is           = is_clean ? res.is : morphkv_rope::kind::UNKNOWN;
                return found(res);
            }
            // shapes, and what leaves directions as they are
            case GGML_OP_RESHAPE:
            case GGML_OP_VIEW:
            case GGML_OP_CONT:
            case GGML_OP_CPY:
            case GGML_OP_DUP:
            case GGML_OP_SCALE:
            case GGML_OP_RMS_NORM:
            case GGML_OP_L2_NORM:
            case GGML_OP_REPEAT:
                t = t->src[0];
                break;
            case GGML_OP_MUL_MAT:
                if (!(t->src[0]->flags & GGML_TENSOR_FLAG_INPUT)) {
                    // the projection: no rotation on the way
                    return found(none);
                }
                // the cache's own rotation, undone where rows are turned; it comes last
                is_multiplied = true;
                is_clean &= !weights;
                t = t->src[1];
                break;
            case GGML_OP_MUL:
                is_clean &= !weights && are_weights(t->src[1], t->ne[0]);
                weights = t->src[1];
                t       = t->src[0];
                break;
            case GGML_OP_CONCAT: {
                // compressed keys (MLA): values that are rotated before or behind others that are not
                const bool   is_of_heads = t->op_params[0] == 0;
                morphkv_rope first       = find_rope(t->src[0], is_clean && is_of_heads);
                morphkv_rope second      = find_rope(t->src[1], is_clean && is_of_heads);
                if (first.is != morphkv_rope::kind::NONE && second.is != morphkv_rope::kind::NONE) {
                    first.is = morphkv_rope::kind::UNKNOWN;
                }
                for (morphkv_rope * part : { &first, &second }) {
                    part->is = part->weights ? morphkv_rope::kind::UNKNOWN : part->is;
                }
                second.n_offs += t->src[0]->ne[0];
                return found(first.is != morphkv_rope::kind::NONE ? first : second);
            }
            case GGML_OP_NONE:
                return found(none);
            default:
                is_clean = false;
                t        = t->src[0];
                break;
        }
    }
    return found(none);
}

morphkv_rope morphkv_find_rope(const ggml_tensor * k) {
    return find_rope(k, true);
}

// By the cache's matrix, which is its own inverse.
static ggml_tensor * build_multiply(ggml_context * ctx, ggml_tensor * heads, const morphkv_rope & rope,
                                    ggml_tensor * rot) {
    GGML_ASSERT(rot || !rope.is_multiplied);
    if (!rope.is_multiplied) {
        return heads;
    }
    // as llama_mul_mat_hadamard()
    const int64_t n   = rot->ne[0];
    ggml_tensor * res = ggml_is_contiguous(heads) ? ggml_reshape_2d(ctx, heads, n, ggml_nelements(heads) / n)
                                                  : ggml_cont_2d(ctx, heads, n, ggml_nelements(heads) / n);
    res               = ggml_mul_mat(ctx, rot, res);
    ggml_mul_mat_set_hint(res, GGML_HINT_SRC0_IS_HADAMARD);
    return ggml_reshape_4d(ctx, res, heads->ne[0], heads->ne[1], heads->ne[2], heads->ne[3]);
}

static ggml_tensor * build_weighted(ggml_context * ctx, ggml_tensor * heads, const morphkv_rope & rope) {
    return rope.weights ? ggml_mul(ctx, heads, rope.weights) : heads;
}

static ggml_tensor * build_unweighted(ggml_context * ctx, ggml_tensor * heads, const morphkv_rope & rope) {
    return rope.weights ? ggml_div(ctx, heads, rope.weights) : heads;
}

// heads: (n_rows, n_heads, n_embd_head) F32, positions: (n_rows)
static ggml_tensor * build_turn(ggml_context * ctx, ggml_tensor * heads, ggml_tensor * positions,
                                const morphkv_rope & rope) {
    // rope() itself scales by attn_factor and, with YaRN, by 1 + 0.1*log(1/freq_scale)
    const float attn_factor = rope.ext_factor != 0.0f ? 1.0f / (1.0f + 0.1f * logf(1.0f / rope.freq_scale)) : 1.0f;
    int32_t     sections[4];
    std::copy(rope.sections, rope.sections + 4, sections);
    ggml_tensor * res = rope.n_pos() > 1 ? ggml_rope_multi(ctx, heads, positions, rope.factors, rope.n_dims, sections,
                                                           rope.mode, rope.n_ctx_orig, rope.freq_base, rope.freq_scale,
                                                           rope.ext_factor, attn_factor, rope.beta_fast, rope.beta_slow)
                                         : ggml_rope_ext(ctx, heads, positions, rope.factors, rope.n_dims, rope.mode,
                                                         rope.n_ctx_orig, rope.freq_base, rope.freq_scale,
                                                         rope.ext_factor, attn_factor, rope.beta_fast, rope.beta_slow);
    return rope.n_offs != 0 ? ggml_rope_set_offset(res, rope.n_offs) : res;
}

ggml_tensor * morphkv_build_rotate(ggml_context * ctx, ggml_tensor * rows, int32_t n_heads, ggml_tensor * deltas,
                                   const morphkv_rope & rope, ggml_tensor * rot) {
    const int64_t n_embd_head = rows->ne[0] / n_heads;
    const int64_t n           = rows->ne[1] * n_heads;
    GGML_ASSERT(deltas->ne[0] == n * rope.n_pos() && ggml_is_contiguous(rows));

    // every head of every row a token of its own
    ggml_tensor * cur = ggml_view_1d(ctx, rows, ggml_nelements(rows), 0);
    cur               = ggml_reshape_2d(ctx, cur, n_embd_head, n);
    ggml_tensor * res = cur;

    cur = rows->type == GGML_TYPE_F32 ? cur : ggml_cast(ctx, cur, GGML_TYPE_F32);
    return ggml_cpy(ctx, morphkv_build_turned(ctx, cur, deltas, rope, rot), res);
}

ggml_tensor * morphkv_build_turned(ggml_context * ctx, ggml_tensor * rows, ggml_tensor * deltas,
                                   const morphkv_rope & rope, ggml_tensor * rot) {
    ggml_tensor * cur = ggml_reshape_3d(ctx, rows, rows->ne[0], 1, rows->ne[1]);
    cur               = build_unweighted(ctx, build_multiply(ctx, cur, rope, rot), rope);
    cur               = build_turn(ctx, cur, deltas, rope);
    cur               = build_multiply(ctx, build_weighted(ctx, cur, rope), rope, rot);
    return ggml_reshape_2d(ctx, cur, rows->ne[0], rows->ne[1]);
}

ggml_tensor * morphkv_build_unrotated(ggml_context * ctx, ggml_tensor * rows, int32_t n_heads, ggml_tensor * deltas,
                                      const morphkv_rope & rope, ggml_tensor * rot) {
    const int64_t n_row = rows->ne[0], n_rows = rows->ne[1];

    ggml_tensor * cur = rows->type == GGML_TYPE_F32 ? ggml_cont(ctx, rows) : ggml_cast(ctx, rows, GGML_TYPE_F32);
    cur               = ggml_reshape_3d(ctx, cur, n_row / n_heads, n_heads, n_rows);
    cur               = build_unweighted(ctx, build_multiply(ctx, cur, rope, rot), rope);
    cur               = deltas ? build_turn(ctx, cur, deltas, rope) : cur;
    return ggml_reshape_2d(ctx, cur, n_row, n_rows);
}

ggml_tensor * morphkv_build_rotated(ggml_context * ctx, ggml_tensor * rows, ggml_tensor * positions,
                                    const morphkv_rope & rope, ggml_tensor * rot) {
    ggml_tensor * cur = ggml_reshape_3d(ctx, rows, rows->ne[0], 1, rows->ne[1]);
    cur               = positions ? build_turn(ctx, cur, positions, rope) : cur;
    cur               = build_multiply(ctx, build_weighted(ctx, cur, rope), rope, rot);
    return ggml_reshape_2d(ctx, cur, rows->ne[0], rows->ne[1]);
}
