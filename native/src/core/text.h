// What a sequence is, apart from its tensors: which tokens there are, where they stand, and in which cells they lie.
//
//   tokens   by serial: 0, 1, 2, ... in the order of the text, never reused but for tokens that were taken back
//   groups   layers that hold the same tokens. All that are cut are cut at the same moments, so that the same tokens are
//            recent in each; one of a larger capacity holds more distant ones, or still all. Of a group that is cut:
//
//            cells: [0 ........ n_distant) [n_distant .................. n_used)
//                   distant slots          recent region, in the order of serials
//
//            Before its first eviction cell i holds token i. Then each head has tokens of its own in its slots, which its
//            tensors name, and the recent region goes from token first_recent() on. Of a windowed group the cells are a ring.
//   queries  of the newest tokens, in rows that are a ring, too: that of a token is serial % n_query_rows
//
// Plain data and what follows from it. A copy of a text is a text: plans are made on copies.
#pragma once

#include "core/positions.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

// Cells of a group that is cut.
struct morphkv_cut_shape {
    int32_t capacity;
    int32_t window;
    int32_t interval;
    int32_t n_limit;  // most cells that a text uses

    int32_t n_distant() const { return capacity - window; }
};

// What the texts of a cache have in common.
struct morphkv_text_shape {
    std::vector<morphkv_cut_shape> groups;
    int32_t                        n_ring_cells;  // of windowed layers, 0 = there are none
    int32_t                        votes;
    int32_t                        n_query_rows;  // more than votes by as many as a draft may have
};

// Whether a token at position pos attends, in windowed layers, to none that is at `lost` or before.
using morphkv_can_lose = std::function<bool(int32_t lost, int32_t pos)>;

struct morphkv_cut_group {
    morphkv_cut_shape shape;

    int64_t n_evictions = 0;
    int32_t n_evicted   = 0;  // tokens of each head; below 0 where slots had been free (opening.h)

    // Rotary positions: a token's is its position less the text's offset where that is base + n_distant or more, and always
    // before the first rebase or recall. Below it stand, from base on one behind the other (packed()), head by head, the
    // oldest of those that were in a distant slot at the last rebase or recall: `ranked` has the serials of all that were,
    // ascending in each head, (n_layer, n_head_kv, n_distant). Null before the first. A rebase lets the offset grow, and its
    // base is 0. A recall leaves the offset alone, so that recent keys, of which there is no original, are not turned; distant
    // tokens come to stand right before them.
    int32_t                                     base = 0;
    std::shared_ptr<const std::vector<int32_t>> ranked;

    bool    has_evicted() const { return n_evictions > 0; }
    int32_t first_recent() const { return shape.n_distant() + n_evicted; }
    // of a cell's token; of a distant slot the one that was there before the first eviction, by which llama.cpp knows it, or,
    // where none was (opening.h), the one before the recent ones
    int32_t serial_in(int32_t i_cell) const {
        return i_cell < shape.n_distant() ? std::min(i_cell, std::max(first_recent() - 1, 0)) : i_cell + n_evicted;
    }
};

struct morphkv_ring_group {
    int32_t n_cells;
    int32_t n_held = 0;  // newest tokens that are there
    int32_t i_next = 0;  // cell of the next token

    int32_t cell_of(int32_t n_before_newest) const { return (i_next + n_cells - 1 - n_before_newest) % n_cells; }
    // up to the last one in use
    int32_t n_spanned() const { return n_held == 0 ? 0 : i_next >= n_held && i_next > 0 ? i_next : n_cells; }
};

// A page of the archive of which a recall has brought tokens.
struct morphkv_came_back {
    int32_t serial;    // of its first token
    int32_t i_recall;  // the last that did, from 1
};

class morphkv_text {
public:
    morphkv_text(const morphkv_text_shape & shape, int32_t n_keep);

    // what comes and goes
    // n_column: as in a run.
    void                append(int32_t pos, int32_t n, bool is_prompt, int32_t n_column = 0);
    void                note_cut(size_t i_group);
    // Groups that a cut of the text evicts from: those that hold more than their capacity.
    std::vector<size_t> groups_over_capacity() const;
    void                remove_from(int32_t serial);
    // Keys and queries have been turned. ranked: of each group; empty where it has not evicted.
    void                note_rebase(int32_t offset, std::vector<std::vector<int32_t>> ranked);
    void                note_recall(size_t i_group, int32_t base, std::vector<int32_t> ranked, int64_t n_brought);
    // The last recall that was noted brought tokens of pages with these first tokens.
    void                note_came_back(const std::vector<int32_t> & serials);
    // By the same recall, in another group.
    void                note_placed(size_t i_group, int32_t base, std::vector<int32_t> ranked);

    bool    is_empty() const { return positions.n_tokens() == 0; }
    int32_t n_tokens() const { return positions.n_tokens(); }
    int32_t pos_of(int32_t serial) const { return positions.at(serial).t; }
    int32_t n_used(size_t i_group) const { return n_tokens() - groups[i_group].n_evicted; }
    bool    has_evicted() const;  // any group

    // Serials of the newest tokens whose queries are there, newest last; at most `votes`.
    std::vector<int32_t> voters() const;
    int32_t              query_row(int32_t serial) const { return serial % (int32_t) queries.size(); }

    // The smallest serial from which on all that windowed layers attend to is there.
    int32_t first_possible(const morphkv_can_lose & can_lose) const;
    // Tokens behind it can be taken back: every head still holds them, and windowed layers what they attend to.
    int32_t first_complete(const morphkv_can_lose & can_lose) const;
    // From here on they can be taken back and decoded again with the same bits.
    int32_t first_exact(const morphkv_can_lose & can_lose) const;
    // How many of the newest tokens, words alone, can be taken back.
    int32_t n_removable_words(const morphkv_can_lose & can_lose) const;

    // Offset and distance of a rebase that brings positions below limit: tokens up to n_near() before the recent ones keep
    // their distance to these.
    int32_t              n_near(int32_t limit) const;
    int32_t              rebase_offset(int32_t limit) const;
    // Where the ranked tokens of a head stand behind the base; i_head is counted over all layers of the group.
    std::vector<int32_t> ranked_places(size_t i_group, size_t i_head) const;
    // Where RoPE has a token of a slot, by its head's places.
    int64_t rotary_position(size_t i_group, size_t i_head, int32_t serial, const std::vector<int32_t> & places) const;
    int64_t rotary_position(size_t i_group, size_t i_head, int32_t serial) const {
        return rotary_position(i_group, i_head, serial, ranked_places(i_group, i_head));
    }

    morphkv_positions                 positions;
    std::vector<morphkv_cut_group>    groups;
    std::optional<morphkv_ring_group> windowed;

    int32_t              votes;
    int32_t              brought_at = 0;  // tokens that there were when a recall last brought something, 0 = none has
    std::vector<int32_t> queries;         // (n_query_rows) serial whose query a row holds, -1 = none

    int32_t n_keep;                       // first tokens that are never evicted
    int32_t decoded_since_cut = 0;        // the first token decoded since the last eviction, rebase or recall
    int32_t newest_of_prompt  = -1;       // the newest token that came in a prompt

    int32_t rotary_offset = 0;            // of recent tokens: position less the rotary one
    int64_t n_rebases     = 0;
    int64_t n_recalls     = 0;
    int64_t n_recalled    = 0;  // tokens that came into slots, of all layers and heads

    // Ascending; null = none. Copies of a text share it. Not a part of states.
    std::shared_ptr<const std::vector<morphkv_came_back>> came_back;
};

enum class morphkv_removal { NOTHING, ALL, TAIL, REFUSED };

// Of positions [p0, p1), -1 = to the end. A tail must begin behind what is complete; a hole is refused.
morphkv_removal morphkv_plan_removal(const morphkv_text & text, int32_t p0, int32_t p1,
                                     const morphkv_can_lose & can_lose);
