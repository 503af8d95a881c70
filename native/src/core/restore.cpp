#include "core/restore.h"

#include "ggml.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

namespace {

constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

// What is read of an archive, each page once; the page that is not full yet is one of them.
class reader {
public:
    explicit reader(const morphkv_archive & archive) : archive(archive) {}

    bool has(int32_t serial) {
        return serial >= archive.serial_of(0) && serial < archive.end() && find(page_of(serial)) != nullptr;
    }

    int64_t                   page_of(int32_t serial) const { return (serial - archive.serial_of(0)) / N_PAGE; }
    int32_t                   row_of(int32_t serial) const { return (serial - archive.serial_of(0)) % N_PAGE; }
    morphkv_archive::page_ptr find(int64_t i_page) {
        const auto it = pages.find(i_page);
        if (it != pages.end()) {
            return it->second;
        }
        morphkv_archive::page_ptr page;
        if (i_page == archive.n_full()) {
            page = std::make_shared<const morphkv_page>(archive.get_tail());
        } else if (i_page >= archive.n_dropped()) {
            page = archive.find_page(i_page);
        }
        return pages[i_page] = page;
    }

    void forget_all_but(int64_t i_page) {
        if (pages.size() > 1) {
            const auto page = pages[i_page];
            pages           = { { i_page, page } };
        }
    }

    // All that has been found.
    morphkv_pages found() const {
        morphkv_pages res;
        for (const auto & [i_page, page] : pages) {
            if (page) {
                res.emplace_back(i_page, page);
            }
        }
        return res;
    }

private:
    const morphkv_archive &                      archive;
    std::map<int64_t, morphkv_archive::page_ptr> pages;
};

// Tokens `first` to first + n of all heads come into the cells from i_cell on.
//   i_first: of the layers among those of the archive.
void add_recent(reader & from, const morphkv_page_layout & layout, size_t i_first, const morphkv_text & text,
                int32_t first, int32_t n, int32_t i_cell, std::vector<morphkv_move> & layers) {
    for (int32_t i = 0; i < n; ++i) {
        const auto    page  = from.find(from.page_of(first + i));
        const int32_t i_row = from.row_of(first + i);
        for (size_t il = 0; il < layers.size(); ++il) {
            const auto &    layer = layout.layers[i_first + il];
            const size_t    n_k = layout.k_bytes(i_first + il), n_v = layout.v_bytes(i_first + il);
            const uint8_t * k    = page->data() + layer.k_at + i_row * n_k;
            const uint8_t * v    = page->data() + layer.v_at + i_row * n_v;
            auto &          move = layers[il];
            for (int32_t h = 0; h < layer.n_head_kv; ++h) {
                move.placed.push_back((i_cell + i) * layer.n_head_kv + h);
                move.at.push_back(text.pos_of(first + i) - text.rotary_offset);
                move.filled.push_back(move.placed.back());
            }
            move.k.insert(move.k.end(), k, k + n_k);
            move.v.insert(move.v.end(), v, v + n_v);
        }
    }
}

// Slots of a head: those before serial `first` stay; the others get what is to be kept, and then the newest tokens before
// `first`, of those that no slot has.
std::vector<int32_t> refill(const int32_t * slots, int32_t n_slots, int32_t n_keep, int32_t first,
                            const morphkv_sources & sources, reader & from) {
    std::vector<int32_t> res(slots, slots + n_slots);
    std::vector<int32_t> ordered = res;
    std::sort(ordered.begin(), ordered.end());
    auto is_free = [&](int32_t serial) {
        return !std::binary_search(ordered.begin(), ordered.end(), serial) && from.has(serial);
    };
    int32_t next_kept = 0, next = first;
    for (int32_t & serial : res) {
        if (serial < first && (serial >= 0 || sources.page_of(serial) != morphkv_sources::NONE)) {
            continue;
        }
        while (next_kept < n_keep && !is_free(next_kept)) {
            next_kept++;
        }
        if (next_kept < n_keep) {
            serial = next_kept++;
            continue;
        }
        do {
            next--;
        } while (next >= n_keep && !is_free(next));
        if (next < n_keep) {
            throw std::runtime_error("the archive has too few tokens before position " + std::to_string(first));
        }
        serial = next;
    }
    return res;
}

// A text that nothing has been evicted of, or that has been cut just now.
morphkv_text just_cut(const morphkv_text & text, int32_t limit) {
    morphkv_text  res = text;
    const int32_t n   = res.n_tokens();
    res.queries.assign(res.queries.size(), -1);
    res.decoded_since_cut = n;
    for (auto & group : res.groups) {
        group.n_evicted   = std::max(0, n - group.shape.capacity);
        group.n_evictions = group.n_evicted > 0 ? std::max<int64_t>(group.n_evictions, 1) : 0;
        group.base        = 0;
        group.ranked      = nullptr;
    }
    res.rotary_offset = res.positions.next() < limit ? 0 : std::max(0, res.rebase_offset(limit));
    // it is both at once, and those before the place are undone
    res.n_rebases     = res.rotary_offset > 0;
    res.n_recalls += res.has_evicted();
    return res;
}

// The text whose slots are moved: without recent tokens, of which nothing stays.
morphkv_text slots_alone(const morphkv_text & text, size_t i_group) {
    morphkv_text res   = text;
    auto &       group = res.groups[i_group];
    group.n_evictions  = std::max<int64_t>(group.n_evictions, 1);
    res.remove_from(std::min(res.n_tokens(), group.first_recent()));
    return res;
}

// What the slots of a group get that is evicted then.
std::vector<morphkv_slots> refill_all(const morphkv_text & text, const morphkv_text & then, size_t i_group,
                                      const morphkv_group_slots & held, const morphkv_sources & sources,
                                      reader & from) {
    const auto &               group     = then.groups[i_group];
    const int32_t              n_distant = group.shape.n_distant();
    std::vector<morphkv_slots> res;
    for (size_t il = 0; il < held.layers.size(); ++il) {
        morphkv_slots slots{ held.serials[il], {} };
        if (!text.groups[i_group].has_evicted()) {
            slots.before.assign(slots.before.size(), -1);
        }
        for (int32_t h = 0; h < held.layers[il].n_head_kv; ++h) {
            const auto of_head = refill(slots.before.data() + h * n_distant, n_distant, text.n_keep,
                                        group.first_recent(), sources, from);
            slots.after.insert(slots.after.end(), of_head.begin(), of_head.end());
        }
        res.push_back(std::move(slots));
    }
    return res;
}

}  // namespace

morphkv_restore_plan morphkv_plan_restore(const morphkv_text & text, const morphkv_text & wanted,
                                          const std::vector<morphkv_group_slots> & groups,
                                          const morphkv_sources & sources, int32_t limit) {
    GGML_ASSERT(text.groups.size() == groups.size() && !text.windowed && !wanted.is_empty());
    morphkv_restore_plan res{ just_cut(wanted, limit), {}, 0 };
    const int32_t        n = res.text.n_tokens();
    reader               from(sources.own());
    size_t               i_first = 0;  // layer
    for (size_t i = 0; i < groups.size(); ++i) {
        auto &                      group = res.text.groups[i];
        const int32_t               first = group.has_evicted() ? group.first_recent() : 0;
        morphkv_restore_plan::group moved{ {}, std::vector<morphkv_move>(groups[i].layers.size()) };
        for (int32_t serial = first; serial < n; ++serial) {
            if (!from.has(serial)) {
                throw std::runtime_error("the archive does not have the token at position " +
                                         std::to_string(res.text.pos_of(serial)));
            }
        }
        if (group.has_evicted()) {
            const auto slots = refill_all(text, res.text, i, groups[i], sources, from);
            for (const auto & layer : slots) {
                moved.serials.push_back(layer.after);
            }
            // distant tokens come to stand right before the recent ones, as at a recall
            group.base = std::max(0, res.text.pos_of(first) - res.text.rotary_offset - group.shape.n_distant());
            auto plan  = morphkv_plan_moves(slots_alone(text, i), i, groups[i].layers, slots, from.found(), sources,
                                            groups[i].is_exact, groups[i].originals, res.text.rotary_offset, group.base,
                                            i_first);
            group.ranked = std::make_shared<std::vector<int32_t>>(std::move(plan.ranked));
            moved.layers = std::move(plan.layers);
        }
        add_recent(from, sources.own().layout, i_first, res.text, first, n - first,
                   group.has_evicted() ? group.shape.n_distant() : 0, moved.layers);
        i_first += groups[i].layers.size();
        res.archive_end = std::max(res.archive_end, first);
        res.groups.push_back(std::move(moved));
    }
    return res;
}

morphkv_passage morphkv_take_passage(const morphkv_archive & archive, int32_t first, int32_t n) {
    const auto &    layout  = archive.layout;
    const size_t    n_layer = layout.layers.size();
    morphkv_passage res;
    reader          from(archive);
    res.n      = n;
    res.layout = layout.hash();
    res.rows.k.resize(n_layer);
    res.rows.v.resize(n_layer);
    for (int32_t serial = first; serial < first + n; ++serial) {
        if (!from.has(serial)) {
            throw std::runtime_error("the archive does not have token " + std::to_string(serial) + " of the text");
        }
        const auto page = from.find(from.page_of(serial));
        for (size_t il = 0; il < n_layer; ++il) {
            const size_t    n_k = layout.k_bytes(il), n_v = layout.v_bytes(il);
            const uint8_t * k = page->data() + layout.layers[il].k_at + from.row_of(serial) * n_k;
            const uint8_t * v = page->data() + layout.layers[il].v_at + from.row_of(serial) * n_v;
            res.rows.k[il].insert(res.rows.k[il].end(), k, k + n_k);
            res.rows.v[il].insert(res.rows.v[il].end(), v, v + n_v);
        }
        from.forget_all_but(from.page_of(serial));
    }
    return res;
}
