#include "core/moves.h"

#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace {

constexpr int64_t MAX_TURN = 1 << 30;
constexpr int64_t NONE     = morphkv_sources::NONE;

// A key that has to move, or a token that comes into a slot.
struct origin {
    int64_t i_page;  // NONE: it is in none, or needs none
    int32_t i_row;   // of the page
    int32_t serial;
    int32_t i_layer;
    int32_t row;
    int32_t head;
    int32_t at;
    int32_t by;
    bool    is_new;
    bool    has_original;  // among those that are at hand
};

// Whether a page is at hand, or in a source.
bool is_held(const morphkv_sources & sources, const morphkv_pages & pages, int64_t i_page) {
    return sources.holds(i_page) ||
           std::any_of(pages.begin(), pages.end(), [i_page](const auto & page) { return page.first == i_page; });
}

// Adds what the archive has of these, a page at a time, as a page may be megabytes in a file. kept: by layer, or empty.
void add_moves(std::vector<origin> origins, const morphkv_sources & sources, size_t i_first,
               const morphkv_pages & pages, std::vector<morphkv_originals> & kept, std::vector<morphkv_move> & moves) {
    for (origin & from : origins) {
        from.has_original = !from.is_new && !kept.empty() && kept[from.i_layer].serial[from.row] == from.serial;
        from.i_page       = from.has_original ? NONE : from.i_page;
    }
    std::stable_sort(origins.begin(), origins.end(),
                     [](const origin & a, const origin & b) { return a.i_page < b.i_page; });
    const std::map<int64_t, morphkv_archive::page_ptr> held(pages.begin(), pages.end());

    morphkv_archive::page_ptr page;
    for (size_t i = 0; i < origins.size(); ++i) {
        const origin & from = origins[i];
        if (from.i_page != NONE && (i == 0 || from.i_page != origins[i - 1].i_page)) {
            const auto it = held.find(from.i_page);
            page          = it != held.end() ? it->second : sources.find_page(from.i_page);
        }
        auto & move = moves[from.i_layer];
        if (!page && !from.has_original) {
            GGML_ASSERT(!from.is_new);
            move.turned.push_back(from.row);
            move.by.push_back(from.by);
            continue;
        }
        const auto &    layer = sources.own().layout.layers[i_first + from.i_layer];
        const size_t    n_k   = ggml_row_size(sources.own().layout.type_k, layer.n_embd_k);
        const size_t    n_v   = ggml_row_size(sources.own().layout.type_v, layer.n_embd_v);
        const size_t    i_row = from.i_row * layer.n_head_kv + from.head;
        const uint8_t * k =
            from.has_original ? kept[from.i_layer].k.data() + from.row * n_k : page->data() + layer.k_at + i_row * n_k;
        move.placed.push_back(from.row);
        move.at.push_back(from.at);
        move.k.insert(move.k.end(), k, k + n_k);
        if (from.is_new) {
            const uint8_t * v = page->data() + layer.v_at + i_row * n_v;
            move.filled.push_back(from.row);
            move.v.insert(move.v.end(), v, v + n_v);
        }
        if (!kept.empty() && !from.has_original && from.serial >= 0) {
            kept[from.i_layer].serial[from.row] = from.serial;
            memcpy(kept[from.i_layer].k.data() + from.row * n_k, k, n_k);
        }
    }
}

// Room for the originals of all slots, once there is one to put.
void reserve_originals(const morphkv_page_layout & layout, size_t i_first, size_t n_layers, uint32_t n_distant,
                       std::vector<morphkv_originals> & kept) {
    for (size_t il = i_first + kept.size(); il < i_first + n_layers; ++il) {
        const size_t n_rows = n_distant * layout.layers[il].n_head_kv;
        kept.push_back({ std::vector<int32_t>(n_rows, -1), std::vector<uint8_t>(n_distant * layout.k_bytes(il)) });
    }
}

}  // namespace

morphkv_move_plan morphkv_plan_moves(const morphkv_text & text, size_t i_group,
                                     const std::vector<morphkv_moved_layer> & layers,
                                     const std::vector<morphkv_slots> & slots, const morphkv_pages & pages,
                                     const morphkv_sources & sources, bool is_exact,
                                     std::vector<morphkv_originals> * originals, int32_t offset, int32_t base,
                                     size_t i_first) {
    const auto &  group       = text.groups[i_group];
    const bool    has_evicted = group.has_evicted();
    const int32_t n_distant   = group.shape.n_distant();
    const int32_t recent_by   = text.rotary_offset - offset;

    morphkv_move_plan   res{ offset, base, {}, std::vector<morphkv_move>(layers.size()) };
    std::vector<origin> origins;
    size_t              i_head = 0;  // of all layers
    for (size_t il = 0; il < layers.size(); ++il) {
        const bool    rotates = layers[il].rotates;
        const int32_t n_head  = layers[il].n_head_kv;
        if (rotates && recent_by != 0) {
            auto & move = res.layers[il];
            for (int32_t row = has_evicted ? n_distant * n_head : 0; row < text.n_used(i_group) * n_head; ++row) {
                move.turned.push_back(row);
            }
            move.by.assign(move.turned.size(), recent_by);
        }
        for (int32_t h = 0; has_evicted && h < n_head; ++h, ++i_head) {
            const auto           before = slots[il].before.begin() + h * n_distant;
            const auto           after  = slots[il].after.begin() + h * n_distant;
            std::vector<int32_t> ordered(after, after + n_distant);
            std::sort(ordered.begin(), ordered.end());
            const std::vector<int32_t> was    = text.ranked_places(i_group, i_head);
            const std::vector<int32_t> places = text.positions.packed(ordered.data(), n_distant);
            for (int32_t i = 0; i < n_distant; ++i) {
                // a hostile state may have any bits for serials
                const int32_t serial = after[i];
                const bool    is_new = before[i] != serial;
                const int64_t rank   = std::lower_bound(ordered.begin(), ordered.end(), serial) - ordered.begin();
                const int64_t moved  = (int64_t) text.pos_of(serial) - offset;
                const int64_t to     = moved < (int64_t) base + n_distant ? (int64_t) base + places[rank] : moved;
                const int64_t by     = to - text.rotary_position(i_group, i_head, serial, was);
                if (!is_new && (by == 0 || !rotates)) {
                    continue;
                }
                // what came of an attached file may have been read again, and is then not what the file has
                const bool    is_as_held = is_exact && serial >= 0;
                const int64_t i_page     = is_as_held || is_new ? sources.page_of(serial) : NONE;

                origin from{};
                from.i_page  = i_page != NONE && is_held(sources, pages, i_page) ? i_page : NONE;
                from.i_row   = i_page == NONE ? 0 : serial - sources.serial_of(i_page);
                from.serial  = serial;
                from.i_layer = il;
                from.row     = i * n_head + h;
                from.head    = h;
                from.at      = std::clamp<int64_t>(to, 0, MAX_TURN);
                from.by      = std::clamp<int64_t>(by, -MAX_TURN, MAX_TURN);
                from.is_new  = is_new;
                origins.push_back(from);
            }
            res.ranked.insert(res.ranked.end(), ordered.begin(), ordered.end());
        }
    }
    std::vector<morphkv_originals> none;
    auto &                         kept = originals ? *originals : none;
    if (originals && sources.has_archive() && is_exact && !origins.empty()) {
        reserve_originals(sources.own().layout, i_first, layers.size(), n_distant, kept);
    }
    add_moves(std::move(origins), sources, i_first, pages, kept, res.layers);
    return res;
}
