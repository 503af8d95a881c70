#include "device/evict-cpu.h"

#include "device/votes-cpu.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

namespace {

// Behind what ggml_custom_4d() puts into a tensor's op_params.
constexpr size_t PARAMS_OFFSET = 32;

struct evict_params {
    int32_t n_keep, n_distant, n_grad, n_window;
    float   carried;
    int32_t is_both, use_max;  // is_both: by committees
    int32_t has;               // bits: V, sums

    int32_t n_old() const { return n_distant + n_grad; }
};

constexpr int32_t HAS_V = 1, HAS_SUMS = 2;
static_assert(PARAMS_OFFSET + sizeof(evict_params) <= GGML_MAX_OP_PARAMS);

float not_negative(float x) {
    return x > 0.0f ? x : 0.0f;
}

// Rounded as build_max() of graph-evict.cpp.
float larger(float a, float b) {
    return not_negative(a - b) + b;
}

// The parts of a head's votes (n_parts, n), joined in the order of build_fold(); the first part gets the result.
void fold(std::vector<float> & parts, int64_t n_parts, int64_t n, bool use_max) {
    auto join = [&](int64_t to, int64_t from) {
        float *       a = parts.data() + to * n;
        const float * b = parts.data() + from * n;
        for (int64_t i = 0; i < n; ++i) {
            a[i] = use_max ? larger(a[i], b[i]) : a[i] + b[i];
        }
    };
    std::vector<int64_t> odd;
    for (; n_parts > 1; n_parts /= 2) {
        const int64_t half = n_parts / 2;
        if (n_parts % 2) {
            odd.push_back(n_parts - 1);
        }
        for (int64_t i = 0; i < half; ++i) {
            join(i, half + i);
        }
    }
    for (const int64_t i : odd) {
        join(0, i);
    }
}

// In parts of the i-th largest; as build_parts_of() of graph-evict.cpp.
std::vector<float> parts_of(const float * x, int64_t n, int64_t i) {
    std::vector<float> res(n), sorted(n);
    for (int64_t j = 0; j < n; ++j) {
        res[j] = sorted[j] = not_negative(x[j]);
    }
    std::nth_element(sorted.begin(), sorted.begin() + i, sorted.end(), std::greater<float>());
    const float last = sorted[i] + 1e-20f;
    for (float & y : res) {
        y /= last;
    }
    return res;
}

// The first n of n_all, ascending by score, or descending; of equal ones the last slot, the first graduate.
std::vector<uint32_t> first_by(const float * scores, uint32_t n_all, uint32_t n, bool is_descending) {
    std::vector<uint64_t> keys(n_all);
    for (uint32_t i = 0; i < n_all; ++i) {
        // not negative: in the order of their bits
        uint32_t bits;
        memcpy(&bits, &scores[i], sizeof(bits));
        keys[i] = is_descending ? (uint64_t) ~bits << 32 | i : (uint64_t) bits << 32 | ~i;
    }
    std::nth_element(keys.begin(), keys.begin() + n - (n == n_all), keys.end());
    std::sort(keys.begin(), keys.begin() + n);
    std::vector<uint32_t> res(n);
    for (uint32_t i = 0; i < n; ++i) {
        res[i] = is_descending ? (uint32_t) keys[i] : ~(uint32_t) keys[i];
    }
    return res;
}

// A head's part of the rows of K or V.
struct head_rows {
    head_rows(const ggml_tensor * t, int64_t h, int64_t n_head_kv)
        : n_bytes(ggml_row_size(t->type, t->ne[0] / n_head_kv)),
          stride(t->nb[1]),
          first((char *) t->data + h * n_bytes) {}

    void copy(int64_t from, int64_t to) const { memcpy(first + to * stride, first + from * stride, n_bytes); }

    size_t n_bytes, stride;
    char * first;
};

// A head is one task: it moves its own part of each row, so none has to wait for another.
void evict_head(const ggml_tensor * dst, int64_t h) {
    const auto &        p         = *(const evict_params *) ((const char *) dst->op_params + PARAMS_OFFSET);
    const ggml_tensor * votes_t   = dst->src[0];
    const ggml_tensor * k         = dst->src[1];
    const ggml_tensor * serial_t  = dst->src[2];
    const ggml_tensor * grad_t    = dst->src[3];
    const ggml_tensor * v         = p.has & HAS_V ? dst->src[4] : nullptr;
    const ggml_tensor * score_t   = p.has & HAS_SUMS ? dst->src[p.has & HAS_V ? 5 : 4] : nullptr;
    const int64_t       n_head_kv = votes_t->ne[2], n_old = p.n_old();

    const float *      first = (const float *) ((const char *) votes_t->data + h * votes_t->nb[2]);
    std::vector<float> votes(first, first + votes_t->ne[1] * n_old);
    fold(votes, votes_t->ne[1], n_old, p.use_max);
    votes.resize(n_old);

    float *            last = score_t ? (float *) ((char *) score_t->data + h * score_t->nb[1]) : nullptr;
    std::vector<float> sums = votes;
    for (int32_t i = 0; last && i < p.n_distant; ++i) {
        sums[i] += last[i] * p.carried;
    }
    for (float & x : sums) {
        // a cache may hold NaN
        x = not_negative(x);
    }
    std::vector<float> scores = sums;
    if (p.is_both) {
        const int64_t n = n_old - p.n_keep, i_last = (p.n_distant - p.n_keep - 1) / 2;
        const auto    by_votes = parts_of(votes.data() + p.n_keep, n, i_last);
        const auto    by_sums  = parts_of(sums.data() + p.n_keep, n, i_last);
        for (int64_t i = 0; i < n; ++i) {
            scores[p.n_keep + i] = not_negative(larger(by_votes[i], by_sums[i]));
        }
    }

    const uint32_t n_slots = p.n_distant - p.n_keep, n_pairs = std::min<uint32_t>(p.n_grad, n_slots);
    const auto     slots     = first_by(scores.data() + p.n_keep, n_slots, n_pairs, /*is_descending =*/false);
    const auto     graduates = first_by(scores.data() + p.n_distant, p.n_grad, n_pairs, /*is_descending =*/true);

    // bits of int32
    float *         serial = (float *) ((char *) serial_t->data + h * serial_t->nb[1]);
    const float *   grad   = (const float *) ((const char *) grad_t->data + h * grad_t->nb[1]);
    const head_rows k_rows(k, h, n_head_kv), v_rows(v ? v : k, h, n_head_kv);
    if (last) {
        std::copy(sums.begin(), sums.begin() + p.n_distant, last);
    }
    for (uint32_t i = 0; i < n_pairs; ++i) {
        const int32_t slot = p.n_keep + slots[i], src = p.n_distant + graduates[i];
        if (!(scores[src] > scores[slot])) {
            break;  // nor does any of the next
        }
        memcpy(&serial[slot], &grad[graduates[i]], sizeof(float));
        k_rows.copy(src, slot);
        if (v) {
            v_rows.copy(src, slot);
        }
        if (last) {
            last[slot] = sums[src];
        }
    }
    for (int32_t i = 0; i < p.n_window; ++i) {
        k_rows.copy(n_old + i, p.n_distant + i);
        if (v) {
            v_rows.copy(n_old + i, p.n_distant + i);
        }
    }
}

void evict_heads(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    for (int64_t h = ith; h < dst->src[0]->ne[2]; h += nth) {
        evict_head(dst, h);
    }
}

}  // namespace

bool morphkv_evict_on_cpu(const morphkv_evict_layer & layer, const morphkv_evict_policy & policy,
                          const morphkv_evict_inputs & inp) {
    const bool votes = policy.policy == MORPHKV_POLICY_MORPHKV || policy.policy == MORPHKV_POLICY_H2O ||
                       policy.policy == MORPHKV_POLICY_COMMITTEES;
    return votes && inp.vote_rows && layer.k->ne[2] == 1 &&
           morphkv_votes_on_cpu(layer.backend, layer.k->type, layer.k->ne[0] / layer.n_head_kv);
}

void morphkv_build_evict_on_cpu(ggml_context * ctx, ggml_cgraph * gf, const morphkv_evict_layer & layer,
                                const morphkv_evict_shape & shape, const morphkv_evict_policy & policy,
                                const morphkv_evict_inputs & inp) {
    ggml_tensor * votes =
        morphkv_build_votes_on_cpu(ctx, layer.k, morphkv_build_voters(ctx, layer, inp.vote_rows), layer.sinks,
                                   { shape.n_old(), layer.n_head_kv, layer.kq_scale, layer.softcap,
                                     policy.fusion == MORPHKV_FUSION_MAX, 0, 0, 0 });

    std::vector<ggml_tensor *> args = { votes, layer.k, layer.serial, inp.grad_serial };
    evict_params               p{};
    p.n_keep    = shape.n_keep;
    p.n_distant = shape.n_distant;
    p.n_grad    = shape.n_grad;
    p.n_window  = shape.n_window;
    p.carried   = policy.carried;
    p.is_both   = policy.policy == MORPHKV_POLICY_COMMITTEES && layer.score;
    p.use_max   = policy.fusion == MORPHKV_FUSION_MAX;
    if (layer.v) {
        p.has |= HAS_V;
        args.push_back(layer.v);
    }
    if (layer.score) {
        p.has |= HAS_SUMS;
        args.push_back(layer.score);
    }
    ggml_tensor * done = ggml_custom_4d(ctx, GGML_TYPE_F32, 1, layer.n_head_kv, 1, 1, args.data(), args.size(),
                                        evict_heads, GGML_N_TASKS_MAX, nullptr);
    memcpy((char *) done->op_params + PARAMS_OFFSET, &p, sizeof(p));
    ggml_build_forward_expand(gf, done);
}
