#include "device/graph-evict.h"

#include "device/evict-cpu.h"
#include "device/votes-cpu.h"

#include <map>
#include <vector>

// ggml has no elementwise max; this is exact but for one rounding.
static ggml_tensor * build_max(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) {
    return ggml_add(ctx, ggml_relu(ctx, ggml_sub(ctx, a, b)), b);
}

// Joins the rows of each (., n, ne0) block of t (n_layers, n_head_kv, n, ne0) to one, by halves; an odd one out joins last.
template <typename F> static ggml_tensor * build_fold(ggml_context * ctx, ggml_tensor * t, F && join) {
    auto part = [&](ggml_tensor * cur, int64_t i, int64_t n) {
        return ggml_view_4d(ctx, cur, cur->ne[0], n, cur->ne[2], cur->ne[3], cur->nb[1], cur->nb[2], cur->nb[3],
                            i * cur->nb[1]);
    };
    std::vector<ggml_tensor *> rest;
    for (int64_t n = t->ne[1]; n > 1; n /= 2) {
        const int64_t half = n / 2;
        if (n % 2) {
            rest.push_back(part(t, n - 1, 1));
        }
        t = join(part(t, 0, half), part(t, half, half));
    }
    for (auto * odd : rest) {
        t = join(t, odd);
    }
    return t;
}

// As build_fold() where the device joins rows in one operation, a sum in parts of n; else null. The CPU has one thread for that.
static ggml_tensor * build_pool(ggml_context * ctx, const morphkv_evict_layer & layer, ggml_tensor * t,
                                ggml_op_pool op) {
    constexpr int64_t MAX_EXACT = 1 << 24;  // ggml computes sizes in floats

    ggml_backend_dev_t dev = layer.backend ? ggml_backend_get_device(layer.backend) : nullptr;
    if (!dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU || t->ne[0] > MAX_EXACT) {
        return nullptr;
    }
    const int64_t n   = t->ne[1];
    ggml_tensor * res = ggml_pool_2d(ctx, t, op, 1, n, 1, n, 0, 0);
    return ggml_backend_supports_op(layer.backend, res) ? res : nullptr;
}

static ggml_tensor * build_join(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b, morphkv_fusion fusion) {
    return fusion == MORPHKV_FUSION_MAX ? build_max(ctx, a, b) : ggml_add(ctx, a, b);
}

// The same memory as rows of 4-byte words: get_rows and set_rows then copy the bits, whatever the type is.
// t: (n_layers, n_rows, n_heads*head) as (n_layers, n_heads, n_rows, head).
static ggml_tensor * view_heads(ggml_context * ctx, ggml_tensor * t, int32_t n_heads, bool * as_words) {
    const int64_t n_embd_head = t->ne[0] / n_heads;
    const size_t  head_bytes  = ggml_row_size(t->type, n_embd_head);

    ggml_tensor * res =
        ggml_view_4d(ctx, t, n_embd_head, t->ne[1], n_heads, t->ne[2], t->nb[1], head_bytes, t->nb[2], 0);

    *as_words = head_bytes % sizeof(float) == 0;
    if (*as_words) {
        res->type  = GGML_TYPE_F32;
        res->ne[0] = head_bytes / sizeof(float);
        res->nb[0] = sizeof(float);
    }
    return res;
}

// Copies rows src to rows dst of every head, in place. Rows whose head is not a whole number of words go through the
// cache's own type: quantizing what was just dequantized gives the same blocks.
static ggml_tensor * build_move(ggml_context * ctx, ggml_tensor * t, int32_t n_heads, ggml_tensor * src,
                                ggml_tensor * dst) {
    bool          as_words;
    ggml_tensor * heads = view_heads(ctx, t, n_heads, &as_words);
    return ggml_set_rows(ctx, heads, ggml_get_rows(ctx, heads, src), dst);
}

ggml_tensor * morphkv_build_voters(ggml_context * ctx, const morphkv_evict_layer & layer, ggml_tensor * vote_rows) {
    ggml_tensor * q = ggml_get_rows(ctx, layer.ring, vote_rows);
    if (layer.n_readers == 1) {
        return q;
    }
    // the heads of a reader are together in the ring
    const int64_t n_row = q->ne[0], n_votes = q->ne[1], n_layers = q->ne[2];
    q = ggml_reshape_4d(ctx, q, n_row / layer.n_readers / layer.n_head_kv, layer.n_head_kv, layer.n_readers,
                        n_votes * n_layers);
    q = ggml_cont(ctx, ggml_permute(ctx, q, 0, 2, 1, 3));
    return ggml_reshape_3d(ctx, q, n_row, n_votes, n_layers);
}

// max over the query heads of a group of the softmax of the voters' logits: (n_layers, n_head_kv, n_votes, n_old)
static ggml_tensor * build_each_vote(ggml_context * ctx, const morphkv_evict_layer & layer, int64_t n_old,
                                     ggml_tensor * vote_rows) {
    const int64_t n_layers  = layer.k->ne[2];
    const int64_t n_votes   = vote_rows->ne[0];
    const int64_t n_head_kv = layer.n_head_kv;
    const int64_t n_group   = layer.n_head / n_head_kv;
    const int64_t n_embd    = layer.k->ne[0] / n_head_kv;

    // (n_layers, n_head, n_votes, n_embd)
    ggml_tensor * q = morphkv_build_voters(ctx, layer, vote_rows);
    q               = ggml_permute(ctx, ggml_reshape_4d(ctx, q, n_embd, layer.n_head, n_votes, n_layers), 0, 2, 1, 3);

    // (n_layers, n_head_kv, n_old, n_embd)
    ggml_tensor * k = ggml_view_4d(ctx, layer.k, n_embd, n_old, n_head_kv, n_layers, layer.k->nb[1],
                                   ggml_row_size(layer.k->type, n_embd), layer.k->nb[2], 0);

    // (n_layers, n_head, n_votes, n_old)
    ggml_tensor * a = ggml_mul_mat(ctx, k, q);
    if (layer.backend && !ggml_backend_supports_op(layer.backend, a)) {
        // Vulkan multiplies quantized rows only where they lie one behind the other
        a = ggml_mul_mat(ctx, ggml_cast(ctx, k, GGML_TYPE_F32), q);
    }
    ggml_prec_set_acc(a, GGML_PREC_F32);

    float scale = layer.kq_scale;
    if (layer.softcap != 0.0f) {
        a     = ggml_tanh(ctx, ggml_scale(ctx, a, scale / layer.softcap));
        scale = layer.softcap;
    }
    a = ggml_soft_max_ext(ctx, a, nullptr, scale, 0.0f);
    if (layer.sinks) {
        ggml_soft_max_add_sinks(a, layer.sinks);
    }

    if (n_group == 1) {
        return a;
    }
    // (n_layers, n_head_kv, n_group, n_votes*n_old)
    a = ggml_view_4d(ctx, a, n_old * n_votes, n_group, n_head_kv, n_layers, a->nb[2], a->nb[2] * n_group, a->nb[3], 0);
    ggml_tensor * pooled = build_pool(ctx, layer, a, GGML_OP_POOL_MAX);
    a = pooled ? pooled : build_fold(ctx, a, [&](ggml_tensor * x, ggml_tensor * y) { return build_max(ctx, x, y); });
    return ggml_reshape_4d(ctx, a, n_old, n_votes, n_head_kv, n_layers);
}

// (n_layers*n_head_kv, n_old), in parts of `unit`: the order is the same in each.
static ggml_tensor * build_votes(ggml_context * ctx, const morphkv_evict_layer & layer,
                                 const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                                 ggml_tensor * vote_rows, float & unit) {
    const int64_t n_old     = shape.n_old();
    const int64_t n_head_kv = layer.n_head_kv;
    const int64_t n_layers  = layer.k->ne[2];

    ggml_tensor * cur = nullptr;
    if (n_layers == 1 && morphkv_votes_on_cpu(layer.backend, layer.k->type, layer.k->ne[0] / n_head_kv)) {
        cur = morphkv_build_votes_on_cpu(ctx, layer.k, morphkv_build_voters(ctx, layer, vote_rows), layer.sinks,
                                         { shape.n_old(), layer.n_head_kv, layer.kq_scale, layer.softcap,
                                           policy.fusion == MORPHKV_FUSION_MAX, 0, 0, 0 });
    } else {
        cur = build_each_vote(ctx, layer, n_old, vote_rows);
    }

    const int64_t n      = cur->ne[1];
    const bool    is_max = policy.fusion == MORPHKV_FUSION_MAX;
    unit                 = 1.0f;
    if (ggml_tensor * pooled =
            n > 1 ? build_pool(ctx, layer, cur, is_max ? GGML_OP_POOL_MAX : GGML_OP_POOL_AVG) : nullptr) {
        unit = is_max ? 1.0f : n;
        cur  = pooled;
    } else {
        cur = build_fold(ctx, cur,
                         [&](ggml_tensor * x, ggml_tensor * y) { return build_join(ctx, x, y, policy.fusion); });
    }
    cur = ggml_is_contiguous(cur) ? cur : ggml_cont(ctx, cur);
    return ggml_reshape_2d(ctx, cur, n_old, n_head_kv * n_layers);
}

ggml_tensor * morphkv_build_votes(ggml_context * ctx, const morphkv_evict_layer & layer,
                                  const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                                  const morphkv_evict_inputs & inp) {
    float         unit;
    ggml_tensor * votes = build_votes(ctx, layer, shape, policy, inp.vote_rows, unit);
    return unit == 1.0f ? votes : ggml_scale(ctx, votes, unit);
}

// One part behind the other. Not for sums: parts are in units of their own, the same for all.
static ggml_tensor * build_votes_of(ggml_context * ctx, const std::vector<morphkv_evict_layer> & parts,
                                    const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                                    ggml_tensor * vote_rows) {
    std::map<int64_t, ggml_tensor *> rows_by_size;  // a device gets an input once for each view of it
    std::vector<ggml_tensor *>       votes;
    for (const auto & part : parts) {
        const int64_t n_layers = part.k->ne[2];
        auto &        rows     = rows_by_size[n_layers];
        rows = rows ? rows : ggml_view_2d(ctx, vote_rows, vote_rows->ne[0], n_layers, vote_rows->nb[1], 0);
        float unit;
        votes.push_back(build_votes(ctx, part, shape, policy, rows, unit));
    }
    for (size_t n = 1; n < votes.size(); n *= 2) {
        for (size_t i = 0; i + n < votes.size(); i += 2 * n) {
            votes[i] = ggml_concat(ctx, votes[i], votes[i + n], 1);
        }
    }
    return votes[0];
}

morphkv_moves morphkv_build_select(ggml_context * ctx, ggml_tensor * scores, const morphkv_evict_shape & shape) {
    const int64_t n_heads   = scores->ne[1];
    const int64_t n_compete = shape.n_distant - shape.n_keep;
    const int64_t n_pairs   = shape.n_pairs();

    // ids and scores of the first n_pairs in the given order, both (n_heads, n_pairs), ids as cells in F32
    struct ranked {
        ggml_tensor * cells;
        ggml_tensor * scores;
    };
    auto rank = [&](int64_t i_first, int64_t n, ggml_sort_order order) {
        ggml_tensor * part =
            ggml_cont(ctx, ggml_view_2d(ctx, scores, n, n_heads, scores->nb[1], i_first * scores->nb[0]));
        ggml_tensor * ids = ggml_argsort(ctx, part, order);
        if (n_pairs < n) {
            ids = ggml_cont(ctx, ggml_view_2d(ctx, ids, n_pairs, n_heads, ids->nb[1], 0));
        }
        ggml_tensor * best = ggml_get_rows(ctx, ggml_reshape_3d(ctx, part, 1, n, n_heads), ids);
        return ranked{
            ggml_scale_bias(ctx, ggml_cast(ctx, ids, GGML_TYPE_F32), 1.0f, (float) i_first),
            ggml_reshape_2d(ctx, best, n_pairs, n_heads),
        };
    };
    const ranked slot = rank(shape.n_keep, n_compete, GGML_SORT_ORDER_ASC);
    const ranked grad = rank(shape.n_distant, shape.n_grad, GGML_SORT_ORDER_DESC);

    // 1 where the graduate wins; on a tie the older cell stays
    ggml_tensor * wins = ggml_step(ctx, ggml_sub(ctx, grad.scores, slot.scores));
    ggml_tensor * src  = ggml_add(ctx, slot.cells, ggml_mul(ctx, wins, ggml_sub(ctx, grad.cells, slot.cells)));

    return { ggml_cast(ctx, src, GGML_TYPE_I32), ggml_cast(ctx, slot.cells, GGML_TYPE_I32) };
}

// (n_heads, n) from column i_first on, contiguous
static ggml_tensor * build_columns(ggml_context * ctx, ggml_tensor * t, int64_t i_first, int64_t n) {
    return ggml_cont(ctx, ggml_view_2d(ctx, t, n, t->ne[1], t->nb[1], i_first * t->nb[0]));
}

// In parts of the i-th largest of its row: t (n_heads, n), not negative.
static ggml_tensor * build_parts_of(ggml_context * ctx, ggml_tensor * t, int64_t i) {
    constexpr float NEAR_ZERO = 1e-20f;

    ggml_tensor * ids  = build_columns(ctx, ggml_argsort(ctx, t, GGML_SORT_ORDER_DESC), i, 1);
    ggml_tensor * last = ggml_get_rows(ctx, ggml_reshape_3d(ctx, t, 1, t->ne[0], t->ne[1]), ids);
    return ggml_div(ctx, t, ggml_scale_bias(ctx, ggml_reshape_2d(ctx, last, 1, t->ne[1]), 1.0f, NEAR_ZERO));
}

ggml_tensor * morphkv_build_committees(ggml_context * ctx, ggml_tensor * votes, ggml_tensor * sums,
                                       const morphkv_evict_shape & shape) {
    const int64_t n      = shape.n_old() - shape.n_keep;
    const int64_t i_last = (shape.n_distant - shape.n_keep - 1) / 2;

    // sorting NaN is undefined behaviour: relu makes it 0
    ggml_tensor * by_votes = ggml_relu(ctx, build_columns(ctx, votes, shape.n_keep, n));
    ggml_tensor * by_sums  = ggml_relu(ctx, build_columns(ctx, sums, shape.n_keep, n));
    ggml_tensor * best = build_max(ctx, build_parts_of(ctx, by_votes, i_last), build_parts_of(ctx, by_sums, i_last));
    return shape.n_keep == 0 ? best : ggml_concat(ctx, build_columns(ctx, sums, 0, shape.n_keep), best, 0);
}

// Sums of votes, that of the slots' tokens first: (n_heads, n_old). votes: null where nobody votes, the same.
static ggml_tensor * build_sums(ggml_context * ctx, const morphkv_evict_layer & layer,
                                const morphkv_evict_shape & shape, float weight, ggml_tensor * votes) {
    const int64_t n_layers = layer.score->ne[2], n_head_kv = layer.n_head_kv, n_distant = shape.n_distant;

    ggml_tensor * last = ggml_is_contiguous(layer.score) ? layer.score : ggml_cont(ctx, layer.score);
    if (!votes) {
        ggml_tensor * none = ggml_scale(
            ctx, build_columns(ctx, ggml_reshape_2d(ctx, last, n_distant, n_head_kv * n_layers), 0, 1), 0.0f);
        none = ggml_repeat_4d(ctx, none, shape.n_grad, n_head_kv * n_layers, 1, 1);
        return ggml_concat(ctx, ggml_reshape_2d(ctx, last, n_distant, n_head_kv * n_layers), none, 0);
    }
    // (n_layers, n_head_kv, n)
    auto part = [&](int64_t i_first, int64_t n) {
        return ggml_view_3d(ctx, votes, n, n_head_kv, n_layers, votes->nb[1], n_head_kv * votes->nb[1],
                            i_first * votes->nb[0]);
    };
    ggml_tensor * old = ggml_add(ctx, part(0, n_distant), ggml_scale(ctx, last, weight));
    return ggml_reshape_2d(ctx, ggml_concat(ctx, old, part(n_distant, shape.n_grad), 0), shape.n_old(),
                           n_head_kv * n_layers);
}

void morphkv_build_evict(ggml_context * ctx, ggml_cgraph * gf, const morphkv_evict_layer & layer,
                         const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                         const morphkv_evict_inputs & inp, const std::vector<morphkv_evict_layer> & parts) {
    if (parts.empty() && morphkv_evict_on_cpu(layer, policy, inp)) {
        return morphkv_build_evict_on_cpu(ctx, gf, layer, shape, policy, inp);
    }
    GGML_ASSERT(parts.empty() || !layer.score);
    const int64_t n_head_kv = layer.n_head_kv;
    const int64_t n_layers  = layer.k->ne[2];
    const int64_t n_heads   = n_head_kv * n_layers;
    const int64_t n_distant = shape.n_distant;

    ggml_tensor * serials = ggml_concat(ctx, layer.serial, inp.grad_serial, 0);  // (n_layers, n_head_kv, n_old)

    ggml_tensor * scores = nullptr;  // (n_heads, n_old), the next two as well
    ggml_tensor * votes  = nullptr;
    ggml_tensor * sums   = nullptr;
    switch (policy.policy) {
        case MORPHKV_POLICY_MORPHKV:
        case MORPHKV_POLICY_COMMITTEES:
        case MORPHKV_POLICY_H2O:
            votes = scores = parts.empty() ? morphkv_build_votes(ctx, layer, shape, policy, inp)
                                           : build_votes_of(ctx, parts, shape, policy, inp.vote_rows);
            break;
        case MORPHKV_POLICY_RECENCY: {
            ggml_tensor * bits = ggml_view_2d(ctx, serials, shape.n_old(), n_heads, serials->nb[1], 0);
            bits->type         = GGML_TYPE_I32;
            scores             = ggml_cast(ctx, bits, GGML_TYPE_F32);
        } break;
        case MORPHKV_POLICY_RANDOM:
            scores = inp.noise;
            break;
    }

    // Scores are not negative. A cache may hold NaN, from a model's overflow or a hostile state file, and sorting NaN is
    // undefined behaviour: relu makes it 0.
    if (layer.score) {
        sums = ggml_relu(ctx, build_sums(ctx, layer, shape, policy.carried, votes));
    }
    if (sums && votes) {
        scores = policy.policy == MORPHKV_POLICY_COMMITTEES ? morphkv_build_committees(ctx, votes, sums, shape) : sums;
    }
    if (scores != sums) {
        scores = ggml_relu(ctx, scores);
    }

    const morphkv_moves moves = morphkv_build_select(ctx, scores, shape);
    ggml_tensor *       src   = ggml_reshape_3d(ctx, moves.src, moves.src->ne[0], n_head_kv, n_layers);
    ggml_tensor *       dst   = ggml_reshape_3d(ctx, moves.dst, moves.dst->ne[0], n_head_kv, n_layers);

    // (n_layers, n_head_kv, n, 1): one-element rows, so that the moves' indices fit
    auto as_rows = [&](ggml_tensor * t) {
        return ggml_view_4d(ctx, t, 1, t->ne[0], n_head_kv, n_layers, t->nb[0], t->nb[1], t->nb[2], 0);
    };

    ggml_build_forward_expand(
        gf, ggml_set_rows(ctx, as_rows(layer.serial), ggml_get_rows(ctx, as_rows(serials), src), dst));

    if (sums) {
        sums               = ggml_reshape_3d(ctx, sums, shape.n_old(), n_head_kv, n_layers);
        ggml_tensor * kept = ggml_cpy(
            ctx, ggml_view_3d(ctx, sums, n_distant, n_head_kv, n_layers, sums->nb[1], sums->nb[2], 0), layer.score);
        ggml_build_forward_expand(gf, ggml_set_rows(ctx, as_rows(kept), ggml_get_rows(ctx, as_rows(sums), src), dst));
    }

    // The window's destination overlaps the graduates: their rows have to be read first, so the second move works on
    // the result of the first. Its own overlap is harmless, get_rows copies out.
    for (ggml_tensor * t : { layer.k, layer.v }) {
        if (!t) {
            continue;
        }
        ggml_tensor * moved = build_move(ctx, t, n_head_kv, src, dst);
        ggml_build_forward_expand(gf, moved);

        // (n_layers, n_cells, row)
        ggml_tensor * rows =
            ggml_view_3d(ctx, moved, moved->ne[0] * n_head_kv, t->ne[1], n_layers, t->nb[1], t->nb[2], 0);
        rows->type  = t->type;
        rows->ne[0] = t->ne[0];
        rows->nb[0] = t->nb[0];
        ggml_build_forward_expand(gf, build_move(ctx, rows, 1, inp.window_src, inp.window_dst));
    }
}

static size_t n_halvings(int32_t n) {
    return n > 1 ? 1 + n_halvings(n / 2) : 0;
}

size_t morphkv_evict_max_tensors(int32_t n_group, int32_t n_votes) {
    // per halving three views and two joins of up to 3 ops
    return 152 + 9 * (n_halvings(n_group) + n_halvings(n_votes));
}
