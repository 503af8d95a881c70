// What makes two results of the self-test the same.

#include "device/selftest.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {

using floats = std::vector<float>;

// Rounding of votes, relative: queries are quantized where K is, by each device in its own blocks. Measured: 0.114 between
// CUDA and the CPU, where one vote is not averaged with others.
double vote_tolerance(ggml_type type) {
    return ggml_is_quantized(type) ? 0.20 : 0.02;
}

// Of a turned key, in parts of its length: what one turn may be off by (native/README.md), and RoPE's angles in F32.
double turn_tolerance(ggml_type type) {
    switch (type) {
        case GGML_TYPE_BF16:
            return 8e-3;
        case GGML_TYPE_Q8_0:
            return 1.5e-2;
        case GGML_TYPE_Q5_0:
            return 1e-1;
        case GGML_TYPE_Q4_0:
            return 2e-1;
        default:
            return 2e-3;
    }
}

floats as_floats(ggml_type type, const std::vector<char> & bytes) {
    floats res(bytes.size() / ggml_type_size(type) * ggml_blck_size(type));
    if (type == GGML_TYPE_F32) {
        memcpy(res.data(), bytes.data(), bytes.size());
    } else {
        ggml_get_type_traits(type)->to_float(bytes.data(), res.data(), res.size());
    }
    return res;
}

std::string where(int32_t head, int32_t slot) {
    return "head " + std::to_string(head) + ", slot " + std::to_string(slot) + ": ";
}

// Whether the head's part of a row is the same in two copies of a cache.
bool is_same_head(const morphkv_selftest_case & c, const std::vector<char> & a, int32_t cell_a,
                  const std::vector<char> & b, int32_t cell_b, int32_t head) {
    const size_t n_bytes = ggml_row_size(c.type, c.n_embd_head);
    auto         at      = [&](const std::vector<char> & rows, int32_t cell) {
        return rows.data() + ((size_t) cell * c.n_head_kv + head) * n_bytes;
    };
    return memcmp(at(a, cell_a), at(b, cell_b), n_bytes) == 0;
}

// Throws a sentence.
struct difference {
    std::string what;
};

void compare_votes(const morphkv_selftest_case & c, const floats & cpu, const floats & device) {
    for (size_t i = 0; i < device.size(); ++i) {
        const double tolerance = vote_tolerance(c.type) * cpu[i] + 1e-6;
        if (!(std::fabs(device[i] - cpu[i]) <= tolerance)) {
            throw difference{ "the vote on cell " + std::to_string(i % c.shape.n_old()) + " of head " +
                              std::to_string(i / c.shape.n_old()) + " is " + std::to_string(device[i]) +
                              ", on the CPU " + std::to_string(cpu[i]) };
        }
    }
}

// Each slot must hold the token that its position names, whole, and the window must have moved.
void check_rows(const morphkv_selftest_case & c, const morphkv_selftest_state & device) {
    const auto & s = c.shape;
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        std::vector<bool> is_kept(s.n_old());
        for (int32_t i = 0; i < s.n_distant; ++i) {
            const int32_t cell = device.pos[h * s.n_distant + i];
            if (cell < 0 || cell >= s.n_old() || is_kept[cell] || (cell < s.n_distant && cell != i) ||
                (i < s.n_keep && cell != i)) {
                throw difference{ where(h, i) + "token " + std::to_string(cell) + " cannot be there" };
            }
            is_kept[cell] = true;
            if (!is_same_head(c, device.k, i, device.k_before, cell, h) ||
                !is_same_head(c, device.v, i, device.v_before, cell, h)) {
                throw difference{ where(h, i) + "the row is not that of token " + std::to_string(cell) };
            }
        }
        for (int32_t i = 0; i < s.n_window; ++i) {
            if (!is_same_head(c, device.k, s.n_distant + i, device.k_before, s.n_old() + i, h) ||
                !is_same_head(c, device.v, s.n_distant + i, device.v_before, s.n_old() + i, h)) {
                throw difference{ "head " + std::to_string(h) + ": the window's token " + std::to_string(i) +
                                  " did not move to its place" };
            }
        }
    }
}

// By the CPU's votes, and the sums that were there: (n_old)
floats scores_of_head(const morphkv_selftest_case & c, const morphkv_selftest_state & cpu, int32_t h) {
    const auto & s = c.shape;
    floats       votes(cpu.votes.begin() + h * s.n_old(), cpu.votes.begin() + (h + 1) * s.n_old());
    floats       sums = votes;
    for (int32_t i = 0; i < s.n_distant && c.policy.carried > 0.0f; ++i) {
        sums[i] += c.policy.carried * cpu.score_before[h * s.n_distant + i];
    }
    if (c.policy.policy != MORPHKV_POLICY_COMMITTEES) {
        return sums;
    }
    floats res(s.n_old(), 0.0f);
    for (const floats * measure : { &votes, &sums }) {
        floats sorted(measure->begin() + s.n_keep, measure->end());
        std::sort(sorted.rbegin(), sorted.rend());
        const float last = sorted[(s.n_distant - s.n_keep - 1) / 2] + 1e-20f;
        for (int32_t i = s.n_keep; i < s.n_old(); ++i) {
            res[i] = std::max(res[i], (*measure)[i] / last);
        }
    }
    return res;
}

// Tokens kept on one side alone must have scores, those of the CPU, that rounding can tell either way.
int32_t compare_kept(const morphkv_selftest_case & c, const morphkv_selftest_state & cpu,
                     const morphkv_selftest_state & device) {
    const auto & s            = c.shape;
    // of a committee's score the threshold is off, too
    const float  n_tolerances = c.policy.policy == MORPHKV_POLICY_COMMITTEES ? 4.0f : 2.0f;
    int32_t      res          = 0;
    for (int32_t h = 0; h < c.n_head_kv; ++h) {
        const floats scores = scores_of_head(c, cpu, h);
        auto         kept   = [&](const morphkv_selftest_state & state) {
            std::vector<int32_t> cells(state.pos.begin() + h * s.n_distant, state.pos.begin() + (h + 1) * s.n_distant);
            std::sort(cells.begin(), cells.end());
            return cells;
        };
        const auto           a = kept(cpu), b = kept(device);
        std::vector<int32_t> here, there;
        std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(here));
        std::set_difference(b.begin(), b.end(), a.begin(), a.end(), std::back_inserter(there));
        for (const int32_t cell_here : here) {
            for (const int32_t cell_there : there) {
                const float x = scores[cell_here], y = scores[cell_there];
                if (x - y > n_tolerances * vote_tolerance(c.type) * x + 1e-6) {
                    throw difference{ "head " + std::to_string(h) + ": token " + std::to_string(cell_there) +
                                      " was kept in the place of " + std::to_string(cell_here) };
                }
            }
        }
        res += there.size();
    }
    return res;
}

void compare_scores(const morphkv_selftest_case & c, const morphkv_selftest_state & cpu,
                    const morphkv_selftest_state & device) {
    for (size_t i = 0; i < device.score.size(); ++i) {
        // by token: a near-tie changes slots
        const int32_t n_distant = c.shape.n_distant, h = i / n_distant;
        const auto    first = cpu.pos.begin() + h * n_distant;
        const auto    it    = std::find(first, first + n_distant, device.pos[i]);
        if (it == first + n_distant) {
            continue;
        }
        const float expected = cpu.score[it - cpu.pos.begin()];
        if (!(std::fabs(device.score[i] - expected) <= vote_tolerance(c.type) * expected + 1e-6)) {
            throw difference{ where(h, i % n_distant) + "the score is " + std::to_string(device.score[i]) +
                              ", on the CPU " + std::to_string(expected) };
        }
    }
}

void compare_turned(const morphkv_selftest_case & c, const morphkv_selftest_state & cpu,
                    const morphkv_selftest_state & device) {
    const floats a = as_floats(c.type, cpu.k), b = as_floats(c.type, device.k);
    for (size_t i = 0; i < a.size(); i += c.n_embd_head) {
        double error = 0.0, length = 0.0;
        for (int32_t j = 0; j < c.n_embd_head; ++j) {
            error += (b[i + j] - a[i + j]) * (double) (b[i + j] - a[i + j]);
            length += a[i + j] * (double) a[i + j];
        }
        if (!(std::sqrt(error) <= turn_tolerance(c.type) * std::sqrt(length))) {
            throw difference{ "row " + std::to_string(i / c.n_embd_head / c.n_head_kv) + ", head " +
                              std::to_string(i / c.n_embd_head % c.n_head_kv) + ": the turned key is off by " +
                              std::to_string(std::sqrt(error / length)) + " of its length" };
        }
    }
}

}  // namespace

morphkv_selftest_verdict morphkv_selftest_compare(const morphkv_selftest_case & c, const morphkv_selftest_state & cpu,
                                                  const morphkv_selftest_state & device) {
    if (!device.unsupported.empty()) {
        return { MORPHKV_SELFTEST_RESULT_REFUSED, 0, device.unsupported };
    }
    try {
        int32_t n_near_ties = 0;
        if (c.n_rows > 0) {
            compare_turned(c, cpu, device);
        } else {
            compare_votes(c, cpu.votes, device.votes);
            check_rows(c, device);
            n_near_ties = compare_kept(c, cpu, device);
            compare_scores(c, cpu, device);
        }
        return { MORPHKV_SELFTEST_RESULT_SAME, n_near_ties, "" };
    } catch (const difference & d) {
        return { MORPHKV_SELFTEST_RESULT_DIFFERENT, 0, d.what };
    }
}
