#include "core/follow.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace {

constexpr int32_t N_SEARCHED = 512;  // archived tokens for each token from one search to the next
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
        // an eviction takes pages that nobody has attended to yet; where they are frequent the next look is soon enough
        const bool is_rare = group.shape.interval >= 2 * MORPHKV_WRITE_STEP && n_step == MORPHKV_WRITE_STEP;
        return { is_rare && changed == n - 1 && changed != text.brought_at, false };
    }
    const int32_t n_search = std::min(N_STEP_MAX, power_of_two_from(group.n_evicted / N_SEARCHED));
    return { true, next % std::max(n_search, n_step) == 0 };
}

void morphkv_add_page_uses(const morphkv_sources & sources, const std::vector<int32_t> & serials,
                           const std::vector<float> & votes, int32_t n_head_kv, int32_t n_votes, int32_t n_keep,
                           morphkv_page_uses & uses) {
    const size_t n_distant = serials.size() / n_head_kv;
    uses.resize(sources.n_pages());

    std::vector<float>  shares(uses.size());
    std::vector<size_t> seen;
    for (int32_t h = 0; h < n_head_kv; ++h) {
        for (size_t i = h * n_distant; i < (h + 1) * n_distant; ++i) {
            const int64_t page     = sources.page_of(serials[i]);
            const size_t  i_source = sources.source_of(page);
            if (i_source == sources.all().size() || !(votes[i] > 0.0f)) {
                continue;
            }
            const auto & source = sources.all()[i_source];
            if (source.file ? page > source.first : serials[i] >= n_keep) {
                // files come first, and one behind the other
                const size_t i_page =
                    source.file ? page + sources.n_attached() : page - source.first + sources.n_attached();
                shares[i_page] += votes[i] / n_votes;
                seen.push_back(i_page);
            }
        }
        for (const size_t i_page : seen) {
            uses[i_page] += shares[i_page] * shares[i_page] * shares[i_page];
            shares[i_page] = 0.0f;  // it is seen once for each of its tokens
        }
        seen.clear();
    }
}

std::vector<int64_t> morphkv_following_pages(const morphkv_sources & sources, const morphkv_page_uses & uses,
                                             float need, size_t n_wanted) {
    const float most = uses.empty() ? 0.0f : *std::max_element(uses.begin(), uses.end());
    if (!(most > 0.0f && most >= need)) {
        return {};
    }
    std::vector<std::pair<float, int64_t>> order;
    size_t                                 i_first = 0;  // of a source
    for (const auto & source : sources.all()) {
        const size_t       n_pages = source.end - source.first;
        std::vector<float> scores(n_pages);
        for (size_t i = 0; i < n_pages; ++i) {
            for (size_t j = 0; j < std::size(NEXT) && i + j < n_pages; ++j) {
                scores[i + j] = std::max(scores[i + j], uses[i_first + i] * NEXT[j]);
            }
        }
        for (size_t i = 0; i < n_pages; ++i) {
            const int64_t page = source.first + i;
            if (scores[i] >= LEAST * most && !sources.is_damaged(page)) {
                order.emplace_back(-scores[i], page);
            }
        }
        i_first += n_pages;
    }
    std::sort(order.begin(), order.end());
    order.resize(std::min(n_wanted, order.size()));

    std::vector<int64_t> res;
    for (const auto & [_, page] : order) {
        res.push_back(page);
    }
    return res;
}
