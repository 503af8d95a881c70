// The kernels' phases, run on the host, against plain C++ over 3,000 random shapes: votes to rounding; what follows from them,
// selection, tokens, sums, and each byte of K and V, exactly.

#include "cuda/kernels-host.h"
#include "support/check.h"
#include "support/plain_evictions.h"

#include <cstdio>

namespace {

constexpr int32_t N_CASES   = 3000;
constexpr double  MOST_WORK = 6e5;  // products of a case
// of a vote, relative: F32 against double, with logits of up to 20
constexpr double  TOLERANCE = 2e-4;

using rng_t = std::mt19937;

int32_t between(rng_t & rng, int32_t low, int32_t high) {
    return low + (int32_t) (rng() % (uint32_t) (high - low + 1));
}

bool one_in(rng_t & rng, int32_t n) {
    return rng() % n == 0;
}

// as likely small as large
int32_t any_size(rng_t & rng, int32_t low, int32_t high) {
    return low + (int32_t) (std::pow((double) (high - low + 1), (rng() >> 8) * (1.0 / (1 << 24))) - 1.0);
}

struct sizes {
    int32_t n_embd_head, n_group, n_cells, n_layers, n_seq, n_head_kv, n_votes;

    double work() const { return (double) n_embd_head * n_group * n_cells * n_layers * n_seq * n_head_kv * n_votes; }
};

// One of them in turn is as large as can be now and then; the others make room.
sizes random_sizes(rng_t & rng, int32_t i) {
    sizes res{ any_size(rng, 40, 576), any_size(rng, 1, 128), any_size(rng, 2, 5000), any_size(rng, 1, 40),
               any_size(rng, 1, 8),    any_size(rng, 1, 8),   any_size(rng, 1, 64) };

    int32_t * const all[]  = { &res.n_embd_head, &res.n_group,   &res.n_cells, &res.n_layers,
                               &res.n_seq,       &res.n_head_kv, &res.n_votes };
    const int32_t   most[] = { 576, 128, 5000, 40, 8, 8, 64 }, least[] = { 40, 1, 2, 1, 1, 1, 1 };
    const int       kept = i % 14;
    if (kept < 7) {
        *all[kept] = one_in(rng, 4) ? most[kept] : *all[kept];
    }
    while (res.work() > MOST_WORK) {
        const int j = between(rng, 0, 6);
        if (j != kept) {
            *all[j] = std::max(least[j], *all[j] / 2);
        }
    }
    return res;
}

template <typename T>
void fill(std::vector<T> & to, rng_t & rng, ggml_type type, int64_t n_rows, int64_t n_row, float size,
          int32_t n_different) {
    std::normal_distribution<float> normal(0.0f, size);
    std::vector<float>              row(n_row);
    const size_t                    row_bytes = ggml_row_size(type, n_row);
    to.resize(n_rows * row_bytes / sizeof(T));
    char * p = (char *) to.data();
    for (int64_t i = 0; i < n_rows; ++i) {
        if (i >= n_different) {
            // equal keys have equal votes
            memcpy(p + i * row_bytes, p + (rng() % n_different) * row_bytes, row_bytes);
            continue;
        }
        for (float & x : row) {
            x = normal(rng);
        }
        if (type == GGML_TYPE_F32) {
            memcpy(p + i * row_bytes, row.data(), row_bytes);
        } else {
            ggml_quantize_chunk(type, row.data(), p + i * row_bytes, 0, 1, n_row, nullptr);
        }
    }
}

plain_cut random_cut(rng_t & rng, const sizes & n) {
    plain_cut res{};
    auto &    s = res.shape;
    s.n_distant = between(rng, 1, n.n_cells - 1);
    s.n_grad    = one_in(rng, 2) ? between(rng, 1, std::min(n.n_cells - s.n_distant, 130)) : n.n_cells - s.n_distant;
    s.n_keep    = one_in(rng, 3) ? 0 : between(rng, 0, std::min(s.n_distant, 6));
    s.n_window  = any_size(rng, 1, 300);
    s.n_votes   = n.n_votes;
    const auto which = rng() % 3;
    res.policy       = { which == 0   ? MORPHKV_POLICY_MORPHKV
                         : which == 1 ? MORPHKV_POLICY_H2O
                                      : MORPHKV_POLICY_COMMITTEES,
                         one_in(rng, 2) ? MORPHKV_FUSION_MAX : MORPHKV_FUSION_SUM,
                         which == 0 ? (one_in(rng, 2) ? 0.0f : 0.5f) : 1.0f };
    for (int32_t i = 0; i < s.n_votes; ++i) {
        res.vote_rows.push_back((i + 2) % (s.n_votes + 3));
    }
    for (int32_t i = 0; i < s.n_grad; ++i) {
        res.graduates.push_back(100000 + i);
    }
    return res;
}

plain_layer random_layer(rng_t & rng, const sizes & n, const plain_cut & cut, int32_t i_cut) {
    const auto & s = cut.shape;
    plain_layer  res{};
    res.i_cut       = i_cut;
    res.type_k      = MORPHKV_ROW_TYPES[rng() % 6];
    res.type_v      = one_in(rng, 8) ? GGML_TYPE_COUNT : MORPHKV_ROW_TYPES[rng() % 6];
    res.n_embd_head = ggml_is_quantized(res.type_k) ? (n.n_embd_head + 31) / 32 * 32 : n.n_embd_head;
    res.n_head_kv   = n.n_head_kv;
    res.n_group     = n.n_group;
    res.n_readers   = n.n_group % 3 == 0 ? between(rng, 1, 3) : 1;
    res.n_readers   = n.n_group % res.n_readers == 0 ? res.n_readers : 1;
    res.scale       = 1.0f / std::sqrt((float) res.n_embd_head);
    res.softcap     = one_in(rng, 4) ? 20.0f : 0.0f;

    const int32_t n_cells = s.n_old() + s.n_window + 3;
    const int32_t n_some  = one_in(rng, 3) ? between(rng, 1, 4) : n_cells;
    fill(res.k, rng, res.type_k, n_cells, (int64_t) res.n_head_kv * res.n_embd_head, 1.5f, n_some);
    if (res.type_v != GGML_TYPE_COUNT) {
        const int32_t n_embd = between(rng, 1, 64);
        res.n_embd_head_v    = ggml_is_quantized(res.type_v) ? (n_embd + 31) / 32 * 32 : n_embd;
        fill(res.v, rng, res.type_v, n_cells, (int64_t) res.n_head_kv * res.n_embd_head_v, 1.0f, n_cells);
    }
    fill(res.ring, rng, GGML_TYPE_F16, s.n_votes + 3, (int64_t) res.n_head() * res.n_embd_head, 1.5f, s.n_votes + 3);
    for (int32_t i = 0; i < res.n_head_kv * s.n_distant; ++i) {
        res.serial.push_back(i % s.n_distant);
    }
    std::normal_distribution<float> normal(0.0f, 0.05f);
    for (int32_t i = 0; cut.policy.carried > 0.0f && i < res.n_head_kv * s.n_distant; ++i) {
        res.score.push_back(std::fabs(normal(rng)));
    }
    for (int32_t i = 0; res.n_readers == 1 && i < res.n_head() && cut.shape.n_keep == 2; ++i) {
        res.sinks.push_back(normal(rng) * 60.0f);
    }
    return res;
}

// What a case has met, so that a test that tries nothing is seen.
struct {
    int64_t n_layers, n_moves, n_ties;
    double  worst;
} seen;

void check_layer(const plain_layer & before, const plain_layer & after, const plain_cut & cut,
                 const morphkv_kernels_args & a, bool is_finite) {
    const auto & s     = cut.shape;
    const size_t n_all = (size_t) before.n_head_kv * s.n_old();
    if (is_finite) {
        const auto votes = plain_votes(before, cut);
        for (size_t i = 0; i < n_all; ++i) {
            const double error = std::fabs(a.votes[i] - votes[i]) / (votes[i] + 1e-12);
            CHECK(error <= TOLERANCE || votes[i] < 1e-12);
            seen.worst = std::max(seen.worst, votes[i] < 1e-12 ? 0.0 : error);
        }
    }
    std::vector<float> scores(a.sums, a.sums + n_all);
    for (size_t i = 0; i < n_all; ++i) {
        const int32_t h = i / s.n_old(), cell = i % s.n_old();
        CHECK(a.votes[i] >= 0.0f && a.sums[i] >= 0.0f);
        const float last = before.score.empty() || cell >= s.n_distant
                               ? 0.0f
                               : before.score[(size_t) h * s.n_distant + cell] * cut.policy.carried;
        CHECK(std::fabs(a.sums[i] - (a.votes[i] + last)) <= 2e-7f * a.sums[i]);
    }
    for (int32_t h = 0; h < before.n_head_kv; ++h) {
        const size_t first = (size_t) h * s.n_old();
        if (cut.policy.policy == MORPHKV_POLICY_COMMITTEES) {
            const auto expected = plain_committees(a.votes + first, a.sums + first, s);
            std::copy(expected.begin(), expected.end(), scores.begin() + first);
            CHECK(memcmp(expected.data(), a.ranks + first, s.n_old() * sizeof(float)) == 0);
        }
        seen.n_moves += plain_moves(scores.data() + first, s).size();
        std::vector<float> sorted(scores.begin() + first + s.n_keep, scores.begin() + first + s.n_old());
        std::sort(sorted.begin(), sorted.end());
        seen.n_ties += std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
    }
    plain_layer expected = before;
    plain_evict(expected, cut, scores.data(), a.sums);
    CHECK(after.serial == expected.serial);
    CHECK(after.score == expected.score);
    CHECK(after.k == expected.k);
    CHECK(after.v == expected.v);
    CHECK(after.ring == expected.ring);
    seen.n_layers++;
}

void check_case(rng_t & rng, const sizes & n, bool is_finite) {
    std::vector<plain_cut>   cuts;
    std::vector<plain_layer> layers;
    for (int32_t i = 0; i < n.n_seq; ++i) {
        cuts.push_back(random_cut(rng, n));
        for (int32_t j = 0; j < n.n_layers; ++j) {
            layers.push_back(random_layer(rng, n, cuts.back(), i));
        }
    }
    if (!is_finite) {
        // from a model's overflow, or a hostile state: bits of NaN and infinities, in any type
        for (auto & layer : layers) {
            for (int i = 0; i < 20; ++i) {
                layer.k[rng() % layer.k.size()]       = (char) 0xff;
                layer.ring[rng() % layer.ring.size()] = one_in(rng, 2) ? 0x7e00 : 0x7c00;
            }
        }
    }
    const auto                         before = layers;
    std::vector<morphkv_kernels_cut>   k_cuts;
    std::vector<morphkv_kernels_layer> k_layers;
    for (const auto & cut : cuts) {
        const auto & s = cut.shape;
        k_cuts.push_back({ s.n_keep, s.n_distant, s.n_grad, s.n_window, s.n_votes,
                           cut.policy.policy == MORPHKV_POLICY_COMMITTEES, cut.policy.fusion == MORPHKV_FUSION_MAX,
                           cut.policy.carried, cut.vote_rows.data(), cut.graduates.data() });
    }
    for (auto & layer : layers) {
        k_layers.push_back(plain_in_place(layer));
    }
    morphkv_kernels_plan plan = morphkv_plan_kernels(k_cuts.data(), k_layers.data(), k_layers.size());
    std::vector<char>    scratch(plan.scratch_bytes);
    morphkv_place_kernels(plan, plan.table.data(), scratch.data());
    morphkv_run_blocks(plan);
    for (size_t i = 0; i < layers.size(); ++i) {
        check_layer(before[i], layers[i], cuts[layers[i].i_cut], plan.args()[i], is_finite);
    }
}

}  // namespace

int main() {
    rng_t rng(1);
    for (int32_t i = 0; i < N_CASES; ++i) {
        check_case(rng, random_sizes(rng, i), /*is_finite =*/i % 50 != 49);
    }
    // keys that are not sorted in shared memory
    check_case(rng, { 40, 1, 9000, 1, 1, 1, 1 }, true);
    check_case(rng, { 40, 1, 9000, 1, 1, 1, 1 }, true);
    printf("%lld layers, %lld moves, %lld heads with ties, votes off by %.1e at most\n", (long long) seen.n_layers,
           (long long) seen.n_moves, (long long) seen.n_ties, seen.worst);
    CHECK(seen.n_moves > 10 * N_CASES && seen.n_ties > N_CASES / 10);
    return 0;
}
