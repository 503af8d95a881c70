// Where the tokens of slots come to stand at a rebase or a recall: which keys are turned where they are, and which rows come
// from the archive.
//
// A turn reads a key, rotates it and rounds it anew, and what is rounded often wears out. So a key that has to stand elsewhere
// is rotated from its original in the archive where that holds it, and one that stands right is left alone.
#pragma once

#include "core/sources.h"
#include "core/text.h"

#include <cstdint>
#include <utility>
#include <vector>

// Of one layer. Rows are those of a head in a cell: cell*n_head_kv + head.
struct morphkv_move {
    std::vector<int32_t> turned;  // keys that go on by so many positions
    std::vector<int32_t> by;      // (n_turned)
    std::vector<int32_t> placed;  // keys from the archive that come to these rotary positions
    std::vector<int32_t> at;      // (n_placed)
    std::vector<int32_t> filled;  // values from the archive
    std::vector<uint8_t> k, v;    // (n_placed, n_embd_k), (n_filled, n_embd_v) in the archive's types
};

// Keys of the tokens in a layer's slots, as the archive has them, so that a page of a file is not read at each recall for
// the few that one head kept of it.
struct morphkv_originals {
    std::vector<int32_t> serial;  // (n_distant*n_head_kv), -1 = none
    std::vector<uint8_t> k;       // (n_distant*n_head_kv, n_embd_k) in the archive's type
};

// Tokens in a layer's slots, (n_head_kv, n_distant); empty before the first eviction.
struct morphkv_slots {
    std::vector<int32_t> before, after;
};

// By their numbers, best first.
using morphkv_pages = std::vector<std::pair<int64_t, morphkv_archive::page_ptr>>;

// What a plan has to know of a layer of the group.
struct morphkv_moved_layer {
    int32_t n_head_kv;
    bool    rotates;
};

struct morphkv_move_plan {
    int32_t                   offset = 0, base = 0;
    std::vector<int32_t>      ranked;  // as in morphkv_cut_group; empty before the first eviction
    std::vector<morphkv_move> layers;
};

// The text's recent tokens come to stand at their position less offset; of the distant ones those that would stand before
// base + n_distant one behind the other from base on, head by head (packed()). Slots that get other tokens get them from `pages`,
// of which the archive's last one need not be full.
//   sources:   of the text
//   is_exact:  its keys are no less exact than those of the cache, so that a key is placed anew from there
//   originals: by layer of the group, to be looked at and added to; null where pages are in memory
//   i_first:   of the group's layers among those of the archive
morphkv_move_plan morphkv_plan_moves(const morphkv_text & text, size_t i_group,
                                     const std::vector<morphkv_moved_layer> & layers,
                                     const std::vector<morphkv_slots> & slots, const morphkv_pages & pages,
                                     const morphkv_sources & sources, bool is_exact,
                                     std::vector<morphkv_originals> * originals, int32_t offset, int32_t base,
                                     size_t i_first = 0);
