#include "core/search.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace {

constexpr int32_t N_PAGE    = morphkv_archive::N_PAGE;
constexpr size_t  N_LEAST   = 5;  // pages, where half of the slots have room for them
constexpr float   NEIGHBOUR = 0.3f;
constexpr int64_t N_TO_ONE  = 20;

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

void remove_damaged(const morphkv_sources & sources, std::vector<int64_t> & pages) {
    pages.erase(std::remove_if(pages.begin(), pages.end(), [&](int64_t page) { return sources.is_damaged(page); }),
                pages.end());
}

bool can_be_asked(const morphkv_sources::source & source) {
    return source.first < source.end && (!source.file || source.file->is_index_right());
}

// The best n of a source by its index.
std::vector<int64_t> best_by_index(const morphkv_sources & sources, size_t i_source, size_t n,
                                   morphkv_page_scorer & scorer) {
    const auto &             source = sources.all()[i_source];
    scored                   index;
    const std::vector<float> by_place = scorer.by_index(i_source);
    for (size_t i = 0; i < by_place.size(); ++i) {
        const int64_t page = source.file ? source.first + (int64_t) i : sources.own().page_in(i);
        if (sources.holds(page) && !sources.is_damaged(page)) {
            index[page] = by_place[i];
        }
    }
    std::vector<int64_t> res = best(index, n);
    // what every token attends to is in the first: with it there, nobody's votes go to the rest for want of another
    if ((source.file || source.first == 0) && std::find(res.begin(), res.end(), source.first) == res.end()) {
        res.push_back(source.first);
    }
    std::sort(res.begin(), res.end());
    return res;
}

// Pages whose rows are looked at: all, or the best of each source, as many of it as it has of all pages, or as there are of each.
std::vector<int64_t> pages_to_look_at(const morphkv_sources & sources, size_t n_look, morphkv_page_scorer & scorer) {
    size_t n_pages = 0, n_sources = 0;
    for (const auto & source : sources.all()) {
        if (can_be_asked(source)) {
            n_pages += source.end - source.first;
            n_sources++;
        }
    }
    std::vector<int64_t> res;
    for (size_t i = 0; i < sources.all().size(); ++i) {
        const auto & source = sources.all()[i];
        if (!can_be_asked(source)) {
            continue;
        }
        std::vector<int64_t> pages(source.end - source.first);
        const size_t n_of_it = std::max(n_look / n_sources, (size_t) ((double) n_look * pages.size() / n_pages));
        std::iota(pages.begin(), pages.end(), source.first);
        if (n_pages > n_look && pages.size() > n_of_it) {
            pages = best_by_index(sources, i, n_of_it, scorer);
        }
        // the text's own first page comes first, as its rows may not all count
        res.insert(source.file ? res.end() : res.begin(), pages.begin(), pages.end());
    }
    return res;
}

}  // namespace

size_t morphkv_n_wanted_pages(float share, size_t n_slots) {
    const size_t n_least = std::min(N_LEAST, std::max<size_t>(n_slots / 2 / N_PAGE, 1));
    return std::min<size_t>(std::max<size_t>(share * n_slots / N_PAGE, n_least), n_slots / N_PAGE);
}

size_t morphkv_n_pages_to_look_at(size_t n_wanted, int32_t look, int64_t n_pages) {
    return std::max<size_t>(n_wanted * look, n_pages / N_TO_ONE);
}

std::vector<int64_t> morphkv_choose_pages(const morphkv_sources & sources, size_t n_wanted, size_t n_look,
                                          int32_t n_keep, morphkv_page_scorer & scorer, float need) {
    std::vector<int64_t> pages = pages_to_look_at(sources, n_look, scorer);
    std::vector<float>   scores;
    while (scores.empty()) {
        // those that turn out to be damaged have no part in the votes
        remove_damaged(sources, pages);
        if (pages.empty()) {
            return {};
        }
        scores = scorer.by_rows(pages, sources.serial_of(pages[0]) == 0 ? std::min(n_keep, N_PAGE) : 0);
    }
    for (size_t i = 0; i < pages.size(); ++i) {
        const auto & source = sources.all()[sources.source_of(pages[i])];
        scores[i]           = source.file && pages[i] == source.first ? 0.0f : scores[i];
    }
    if (*std::max_element(scores.begin(), scores.end()) < need) {
        return {};
    }

    // what a page continues, and what continues it, belongs to it
    scored spread;
    for (size_t i = 0; i < pages.size(); ++i) {
        const size_t i_source = sources.source_of(pages[i]);
        for (int64_t page = pages[i] - 1; page <= pages[i] + 1; ++page) {
            if (sources.source_of(page) == i_source && !sources.is_damaged(page)) {
                float & score = spread[page];
                score         = std::max(score, page == pages[i] ? scores[i] : NEIGHBOUR * scores[i]);
            }
        }
    }
    return best(spread, n_wanted);
}

morphkv_slots morphkv_choose_slots(const morphkv_sources & sources, const morphkv_pages & pages,
                                   const std::vector<int32_t> & before, const std::vector<float> & votes,
                                   int32_t n_head_kv, int32_t n_keep) {
    const int32_t n_distant = before.size() / n_head_kv;
    morphkv_slots res{ before, before };

    // by their first serials
    std::vector<std::pair<int32_t, size_t>> firsts;
    for (size_t i = 0; i < pages.size(); ++i) {
        firsts.emplace_back(sources.serial_of(pages[i].first), i);
    }
    std::sort(firsts.begin(), firsts.end());

    for (int32_t h = 0; h < n_head_kv; ++h) {
        int32_t *         slots = res.after.data() + h * n_distant;
        std::vector<bool> stays(n_distant, false);
        std::vector<bool> is_there(pages.size() * N_PAGE, false);
        for (int32_t i = 0; i < n_distant; ++i) {
            const auto next = std::upper_bound(firsts.begin(), firsts.end(), std::pair(slots[i], SIZE_MAX));
            if (next != firsts.begin() && (int64_t) slots[i] - (next - 1)->first < N_PAGE) {
                stays[i]                                                             = true;
                is_there[(next - 1)->second * N_PAGE + slots[i] - (next - 1)->first] = true;
            }
        }
        std::vector<int32_t> missing;
        for (size_t i = 0; i < pages.size(); ++i) {
            const int32_t first = sources.serial_of(pages[i].first);
            for (int32_t j = 0; j < N_PAGE; ++j) {
                if (!is_there[i * N_PAGE + j]) {
                    missing.push_back(first + j);
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
