#include "core/follow.h"

#include <algorithm>
#include <cmath>

namespace {

constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

constexpr int32_t N_SEARCHED = 512;    // archived tokens for each token from one search to the next
constexpr int32_t N_STEP_MAX = 1024;

// What the pages behind one in use get of its score: 16 tokens on the first of them is.
constexpr float NEXT[] = { 1.0f, 0.9f, 0.8f, 0.7f };

// Pages that get less than this of what the best gets stay where they are.
constexpr float LEAST = 0.3f;

int32_t power_of_two_from(int32_t n) {
    int32_t res = 1;
    while (res < n) {
        res *= 2;
    }
    return res;
}

// From one look to the next, n tokens after something came.
int32_t step_of(int32_t n) {
    return MORPHKV_WRITE_STEP * (n <= 64 ? 1 : n <= 256 ? 2 : 4);
}

}  // namespace

morphkv_follow_due morphkv_follow_when(const morphkv_text & text, size_t i_group) {
    const auto &  group   = text.groups[i_group];
    const int32_t n       = text.n_tokens();
    const int32_t n_step  = step_of(n - text.brought_at);
    const int32_t next    = text.positions.next();
    const int32_t changed = text.decoded_since_cut;
    // right behind a recall there is nothing new
    if (!group.has_evicted() || changed == n) {
        return { false, false };
    }
    if (next % n_step != 0) {
        // an eviction takes pages that nobody has attended to yet
        return { n_step == MORPHKV_WRITE_STEP && changed == n - 1 && changed != text.brought_at, false };
    }
    const int32_t n_search = std::min(N_STEP_MAX, power_of_two_from(group.n_evicted / N_SEARCHED));
    return { true, next % std::max(n_search, n_step) == 0 };
}

void morphkv_add_page_uses(const morphkv_archive & archive, const std::vector<int32_t> & serials,
                           const std::vector<float> & votes, int32_t n_head_kv, int32_t n_votes, int32_t n_keep,
                           morphkv_page_uses & uses) {
    const size_t n_distant = serials.size() / n_head_kv;
    for (int32_t h = 0; h < n_head_kv; ++h) {
        morphkv_page_uses shares;
        for (size_t i = h * n_distant; i < (h + 1) * n_distant; ++i) {
            const int64_t i_token = (int64_t) serials[i] - archive.serial_of(0);
            const int64_t page    = i_token < 0 ? -1 : i_token / N_PAGE;
            if (serials[i] >= n_keep && page >= archive.n_dropped() && page < archive.n_full() && votes[i] > 0.0f) {
                shares[page] += votes[i] / n_votes;
            }
        }
        for (const auto & [page, share] : shares) {
            uses[page] += share * share * share;
        }
    }
}

std::vector<int64_t> morphkv_following_pages(const morphkv_archive & archive, const morphkv_page_uses & uses,
                                             float need, size_t n_wanted) {
    float most = 0.0f;
    for (const auto & [_, use] : uses) {
        most = std::max(most, use);
    }
    if (!(most > 0.0f && most >= need)) {
        return {};
    }
    morphkv_page_uses scores;
    for (const auto & [page, use] : uses) {
        int64_t next = page;
        for (const float part : NEXT) {
            if (next < archive.n_full() && !archive.is_damaged(next) && use * part >= LEAST * most) {
                scores[next] = std::max(scores[next], use * part);
            }
            next++;
        }
    }
    std::vector<std::pair<float, int64_t>> order;
    for (const auto & [page, score] : scores) {
        order.emplace_back(-score, page);
    }
    std::sort(order.begin(), order.end());
    std::vector<int64_t> res;
    for (size_t i = 0; i < std::min(n_wanted, order.size()); ++i) {
        res.push_back(order[i].second);
    }
    return res;
}
