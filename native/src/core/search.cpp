#include "core/search.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_map>

namespace {

constexpr int32_t N_PAGE    = morphkv_archive::N_PAGE;
constexpr size_t  N_LEAST   = 5;  // pages, where half of the slots have room for them
constexpr float   NEIGHBOUR = 0.3f;

using scored = std::map<int64_t, float>;  // pages

// Up to n, best first; of equal ones the older.
std::vector<int64_t> best(const scored & pages, size_t n) {
    std::vector<std::pair<float, int64_t>> order;
    for (const auto & [page, score] : pages) {
        order.emplace_back(-score, page);
    }
    n = std::min(n, order.size());
    std::partial_sort(order.begin(), order.begin() + n, order.end());
    std::vector<int64_t> res;
    for (size_t i = 0; i < n; ++i) {
        res.push_back(order[i].second);
    }
    return res;
}

// The k ids with the highest values, highest first; ties in their order.
std::vector<int32_t> top(const std::vector<float> & values, std::vector<int32_t> ids, size_t k) {
    k               = std::min(k, ids.size());
    const auto less = [&](int32_t a, int32_t b) {
        return values[a] != values[b] ? values[a] > values[b] : a < b;
    };
    std::partial_sort(ids.begin(), ids.begin() + k, ids.end(), less);
    ids.resize(k);
    return ids;
}

void remove_damaged(const morphkv_archive & archive, std::vector<int64_t> & pages) {
    pages.erase(std::remove_if(pages.begin(), pages.end(), [&](int64_t page) { return archive.is_damaged(page); }),
                pages.end());
}

}  // namespace

size_t morphkv_n_wanted_pages(float share, size_t n_slots) {
    const size_t n_least = std::min(N_LEAST, std::max<size_t>(n_slots / 2 / N_PAGE, 1));
    return std::min<size_t>(std::max<size_t>(share * n_slots / N_PAGE, n_least), n_slots / N_PAGE);
}

std::vector<int64_t> morphkv_choose_pages(const morphkv_archive & archive, size_t n_wanted, size_t n_look,
                                          int32_t n_keep, morphkv_page_scorer & scorer, float need) {
    std::vector<int64_t> pages(archive.n_full() - archive.n_dropped());
    std::iota(pages.begin(), pages.end(), archive.n_dropped());
    if (pages.size() > n_look) {
        scored                   index;
        const std::vector<float> by_place = scorer.by_index();
        for (size_t i = 0; i < by_place.size(); ++i) {
            if (archive.page_in(i) >= 0 && !archive.is_damaged(archive.page_in(i))) {
                index[archive.page_in(i)] = by_place[i];
            }
        }
        pages = best(index, n_look);
        // what every token attends to is in the first: with it there, nobody's votes go to the rest for want of another
        if (archive.n_dropped() == 0 && std::find(pages.begin(), pages.end(), 0) == pages.end()) {
            pages.push_back(0);
        }
        std::sort(pages.begin(), pages.end());
    }
    std::vector<float> scores;
    while (scores.empty()) {
        // those that turn out to be damaged have no part in the votes
        remove_damaged(archive, pages);
        if (pages.empty()) {
            return {};
        }
        scores = scorer.by_rows(pages, archive.serial_of(pages[0]) == 0 ? std::min(n_keep, N_PAGE) : 0);
    }
    if (*std::max_element(scores.begin(), scores.end()) < need) {
        return {};
    }

    // what a page continues, and what continues it, belongs to it
    scored spread;
    for (size_t i = 0; i < pages.size(); ++i) {
        for (int64_t page = pages[i] - 1; page <= pages[i] + 1; ++page) {
            if (page >= archive.n_dropped() && page < archive.n_full() && !archive.is_damaged(page)) {
                float & score = spread[page];
                score         = std::max(score, page == pages[i] ? scores[i] : NEIGHBOUR * scores[i]);
            }
        }
    }
    return best(spread, n_wanted);
}

morphkv_slots morphkv_choose_slots(const morphkv_archive & archive, const morphkv_pages & pages,
                                   const std::vector<int32_t> & before, const std::vector<float> & votes,
                                   int32_t n_head_kv, int32_t n_keep) {
    const int32_t n_distant = before.size() / n_head_kv;
    morphkv_slots res{ before, before };
    for (int32_t h = 0; h < n_head_kv; ++h) {
        int32_t *                            slots = res.after.data() + h * n_distant;
        std::unordered_map<int32_t, int32_t> held;
        for (int32_t i = 0; i < n_distant; ++i) {
            held[slots[i]] = i;
        }
        std::vector<bool>    stays(n_distant, false);
        std::vector<int32_t> missing;
        for (const auto & [page, _] : pages) {
            for (int32_t serial = archive.serial_of(page); serial < archive.serial_of(page + 1); ++serial) {
                const auto it = held.find(serial);
                if (it != held.end()) {
                    stays[it->second] = true;
                } else {
                    missing.push_back(serial);
                }
            }
        }
        // the slots that the queries attend to least
        std::vector<int32_t> free_slots;
        std::vector<float>   loss(n_distant);
        for (int32_t i = n_keep; i < n_distant; ++i) {
            loss[i] = -votes[h * n_distant + i];
            if (!stays[i]) {
                free_slots.push_back(i);
            }
        }
        free_slots = top(loss, free_slots, missing.size());
        for (size_t i = 0; i < free_slots.size(); ++i) {
            slots[free_slots[i]] = missing[i];
        }
    }
    return res;
}
