#include "core/text.h"

#include <algorithm>
#include <limits>
#include <map>

morphkv_text::morphkv_text(const morphkv_text_shape & shape, int32_t n_keep)
    : votes(shape.votes),
      queries(shape.n_query_rows, -1),
      n_keep(n_keep) {
    for (const auto & group : shape.groups) {
        groups.emplace_back();
        groups.back().shape = group;
    }
    if (shape.n_ring_cells > 0) {
        windowed = morphkv_ring_group{ shape.n_ring_cells, 0, 0 };
    }
}

bool morphkv_text::has_evicted() const {
    return std::any_of(groups.begin(), groups.end(), [](const auto & group) { return group.has_evicted(); });
}

//
// what comes and goes
//

void morphkv_text::append(int32_t pos, int32_t n, bool is_prompt, int32_t n_column) {
    const int32_t first = n_tokens();
    if (n_column > 0) {
        positions.append_image(pos, n_column, n);
    } else if (n_column == MORPHKV_BOTH_WAYS) {
        positions.append_both_ways(pos, n);
    } else {
        positions.append(pos, n);
    }
    for (int32_t serial = std::max<int32_t>(first, n_tokens() - queries.size()); serial < n_tokens(); ++serial) {
        queries[query_row(serial)] = serial;
    }
    if (windowed) {
        windowed->i_next = (windowed->i_next + n) % windowed->n_cells;
        windowed->n_held = std::min(windowed->n_held + n, windowed->n_cells);
    }
    if (is_prompt) {
        newest_of_prompt = n_tokens() - 1;
    }
}

void morphkv_text::note_cut(size_t i_group) {
    groups[i_group].n_evicted += n_used(i_group) - groups[i_group].shape.capacity;
    groups[i_group].n_evictions++;
    decoded_since_cut = n_tokens();
}

std::vector<size_t> morphkv_text::groups_over_capacity() const {
    std::vector<size_t> res;
    for (size_t i = 0; i < groups.size(); ++i) {
        if (n_used(i) > groups[i].shape.capacity) {
            res.push_back(i);
        }
    }
    return res;
}

void morphkv_text::remove_from(int32_t serial) {
    const int32_t n = n_tokens() - serial;
    positions.truncate(serial);
    for (int32_t & held : queries) {
        held = held >= serial ? -1 : held;
    }
    if (windowed) {
        windowed->n_held -= n;
        windowed->i_next = windowed->cell_of(n - 1);
    }
    if (came_back && !came_back->empty() && came_back->back().serial >= serial) {
        auto res = std::make_shared<std::vector<morphkv_came_back>>(*came_back);
        while (!res->empty() && res->back().serial >= serial) {
            res->pop_back();
        }
        came_back = std::move(res);
    }
    brought_at        = std::min(brought_at, serial);
    decoded_since_cut = std::min(decoded_since_cut, serial);
    // the next token is in the place of the prompt's last one
    newest_of_prompt  = std::min(newest_of_prompt, serial);
}

void morphkv_text::note_rebase(int32_t offset, std::vector<std::vector<int32_t>> ranked) {
    rotary_offset = offset;
    for (size_t i = 0; i < groups.size(); ++i) {
        groups[i].base   = 0;
        groups[i].ranked = ranked[i].empty() ? nullptr : std::make_shared<std::vector<int32_t>>(std::move(ranked[i]));
    }
    n_rebases++;
    decoded_since_cut = n_tokens();
}

void morphkv_text::note_placed(size_t i_group, int32_t base, std::vector<int32_t> ranked) {
    groups[i_group].base   = base;
    groups[i_group].ranked = std::make_shared<std::vector<int32_t>>(std::move(ranked));
}

void morphkv_text::note_recall(size_t i_group, int32_t base, std::vector<int32_t> ranked, int64_t n_brought) {
    note_placed(i_group, base, std::move(ranked));
    if (n_brought > 0) {
        brought_at = n_tokens();
    }
    n_recalls++;
    n_recalled += n_brought;
    decoded_since_cut = n_tokens();
}

void morphkv_text::note_came_back(const std::vector<int32_t> & serials) {
    std::map<int32_t, int32_t> all;
    for (const auto & page : came_back ? *came_back : std::vector<morphkv_came_back>()) {
        all[page.serial] = page.i_recall;
    }
    for (const int32_t serial : serials) {
        all[serial] = n_recalls;
    }
    auto res = std::make_shared<std::vector<morphkv_came_back>>();
    for (const auto & [serial, i_recall] : all) {
        res->push_back({ serial, i_recall });
    }
    came_back = std::move(res);
}

//
// what follows
//

std::vector<int32_t> morphkv_text::voters() const {
    std::vector<int32_t> res;
    for (int32_t serial = std::max(0, n_tokens() - votes); serial < n_tokens(); ++serial) {
        if (queries[query_row(serial)] == serial) {
            res.push_back(serial);
        }
    }
    return res;
}

// Where a token comes once those from serial on have been taken back.
static int32_t pos_behind(const morphkv_positions & positions, int32_t serial) {
    morphkv_positions left = positions;
    left.truncate(serial);
    return left.next();
}

int32_t morphkv_text::first_possible(const morphkv_can_lose & can_lose) const {
    const int32_t oldest = windowed ? n_tokens() - windowed->n_held : 0;
    if (oldest <= 0) {
        return 0;
    }
    int32_t lo = oldest + 1;  // one that is there stays
    int32_t hi = n_tokens();
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (can_lose(pos_of(oldest - 1), pos_behind(positions, mid))) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return lo;
}

int32_t morphkv_text::first_complete(const morphkv_can_lose & can_lose) const {
    int32_t res = windowed ? std::max(0, first_possible(can_lose) - 1) : 0;
    for (const auto & group : groups) {
        res = group.has_evicted() ? std::max(res, group.first_recent()) : res;
    }
    return res;
}

// While the ring of windowed layers is full, attention reads all of it. Where its last 256 cells have become free it reads
// less, and on several threads it sums in another order.
int32_t morphkv_text::first_exact(const morphkv_can_lose & can_lose) const {
    const int32_t oldest = windowed ? n_tokens() - windowed->n_held : 0;
    if (oldest <= 0) {
        return decoded_since_cut;
    }
    const int32_t end = oldest + windowed->n_cells;  // behind the newest that there has been
    return std::max(decoded_since_cut, std::min(std::max(first_possible(can_lose), end - 256), n_tokens()));
}

int32_t morphkv_text::n_removable_words(const morphkv_can_lose & can_lose) const {
    if (is_empty() || positions.runs().back().n_column != 0) {
        return 0;
    }
    const int32_t first = std::max(positions.runs().back().serial, first_complete(can_lose) + 1);
    return std::max(0, n_tokens() - first);
}

int32_t morphkv_text::n_near(int32_t limit) const {
    int32_t n_most = 0;
    for (const auto & group : groups) {
        n_most = std::max(n_most, group.shape.n_limit);
    }
    return (limit - n_most) / 2;
}

// Without an eviction the first token of all comes to 0.
int32_t morphkv_text::rebase_offset(int32_t limit) const {
    int32_t res = std::numeric_limits<int32_t>::max();
    for (const auto & group : groups) {
        const int32_t of_group =
            group.has_evicted() ? pos_of(group.first_recent()) - group.shape.n_distant() - n_near(limit) : pos_of(0);
        res = std::min(res, of_group);
    }
    return res;
}

std::vector<int32_t> morphkv_text::ranked_places(size_t i_group, size_t i_head) const {
    const auto &  group     = groups[i_group];
    const int32_t n_distant = group.shape.n_distant();
    return group.ranked ? positions.packed(group.ranked->data() + i_head * n_distant, n_distant)
                        : std::vector<int32_t>();
}

int64_t morphkv_text::rotary_position(size_t i_group, size_t i_head, int32_t serial,
                                      const std::vector<int32_t> & places) const {
    const auto &  group     = groups[i_group];
    const int32_t n_distant = group.shape.n_distant();
    const int64_t rotary    = (int64_t) pos_of(serial) - rotary_offset;
    if (rotary < (int64_t) group.base + n_distant && group.ranked) {
        const auto ranked = group.ranked->begin() + i_head * n_distant;
        const auto it     = std::lower_bound(ranked, ranked + n_distant, serial);
        if (it != ranked + n_distant && *it == serial) {
            return (int64_t) group.base + places[it - ranked];
        }
    }
    return rotary;
}

morphkv_removal morphkv_plan_removal(const morphkv_text & text, int32_t p0, int32_t p1,
                                     const morphkv_can_lose & can_lose) {
    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? std::numeric_limits<int32_t>::max() : p1;

    const int32_t newest = text.positions.next() - 1;
    if (text.is_empty() || p0 > newest || p1 <= p0) {
        return morphkv_removal::NOTHING;
    }
    if (p1 <= newest) {
        return morphkv_removal::REFUSED;
    }
    const int32_t first = text.positions.serial_from(p0);
    if (first == 0) {
        return morphkv_removal::ALL;
    }
    if (first == text.n_tokens()) {
        return morphkv_removal::NOTHING;  // behind the time of an image
    }
    // one recent token must stay: its position is where the sequence goes on
    return first > text.first_complete(can_lose) && text.positions.can_end_at(first) ? morphkv_removal::TAIL
                                                                                     : morphkv_removal::REFUSED;
}
