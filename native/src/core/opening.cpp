#include "core/opening.h"

#include <algorithm>
#include <set>

constexpr int32_t N_PAGE = morphkv_sources::N_PAGE;

std::optional<morphkv_text> morphkv_opened(const morphkv_text & text, int32_t n_recent) {
    const int32_t n     = text.n_tokens();
    const int32_t first = std::max(text.n_keep, n - n_recent);  // that is recent
    if (first >= n || text.has_evicted()) {
        return std::nullopt;
    }
    morphkv_text res  = text;
    int32_t      most = 0;
    for (auto & group : res.groups) {
        if (n > group.shape.capacity) {
            return std::nullopt;
        }
        group.n_evicted   = first - group.shape.n_distant();
        group.n_evictions = 1;
        most              = std::max(most, group.shape.n_distant());
    }
    res.rotary_offset = std::min(text.rotary_offset, text.pos_of(first) - most);
    for (auto & group : res.groups) {
        group.base = std::max(0, text.pos_of(first) - res.rotary_offset - group.shape.n_distant());
    }
    return res;
}

int32_t morphkv_n_opened(const morphkv_text & opened) {
    int32_t res = 0;
    for (const auto & group : opened.groups) {
        res = std::max(res, -group.n_evicted);
    }
    return res;
}

std::vector<int32_t> morphkv_open_slots(const morphkv_text & opened, size_t i_group, const morphkv_sources & sources,
                                        const morphkv_pages & pages) {
    const auto &         group     = opened.groups[i_group];
    const size_t         n_distant = group.shape.n_distant();
    std::vector<int32_t> res;
    for (int32_t serial = 0; serial < group.first_recent(); ++serial) {
        res.push_back(serial);
    }
    for (const auto & [page, _] : pages) {
        for (int32_t i = 0; i < N_PAGE && res.size() < n_distant; ++i) {
            res.push_back(sources.serial_of(page) + i);
        }
    }
    if (res.size() < n_distant) {
        res.clear();
    }
    return res;
}

void morphkv_fill_up(const morphkv_sources & sources, int32_t n, morphkv_pages & pages) {
    std::set<int64_t> there;
    for (const auto & [page, _] : pages) {
        there.insert(page);
    }
    const auto add = [&](int64_t page) {
        if ((int64_t) pages.size() * N_PAGE >= n || there.count(page) > 0) {
            return;
        }
        if (auto found = sources.find_page(page)) {
            pages.emplace_back(page, std::move(found));
        }
    };
    std::vector<int64_t> firsts;
    for (const auto & source : sources.all()) {
        if (!source.file || !source.file->is_index_right()) {
            continue;
        }
        for (int64_t page = source.first + 1; page < source.end; ++page) {
            add(page);
        }
        firsts.push_back(source.first);
    }
    // what all tokens of a file attend to is in its first page, and the text has such tokens of its own
    for (const int64_t page : firsts) {
        add(page);
    }
}
