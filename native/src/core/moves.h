// What a recall or a rebase does to one layer: which keys are turned where they are, and what comes from the archive.
//
// A turn reads a key, rotates it and rounds it anew, and what is rounded often wears out. So a key that has to stand
// elsewhere is rotated from its original in the archive where that holds it, and one that stands right is left alone.
#pragma once

#include "core/archive.h"

#include <cstdint>
#include <utility>
#include <vector>

// Rows are those of a head in a cell: cell*n_head_kv + head.
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
    std::vector<int32_t> pos;  // (n_distant*n_head_kv), -1 = none
    std::vector<uint8_t> k;    // (n_distant*n_head_kv, n_embd_k) in the archive's type
};

// Positions of the tokens in a layer's slots, (n_head_kv, n_distant); empty before the first eviction.
struct morphkv_slots {
    std::vector<int32_t> before, after;
};

// By their numbers, best first.
using morphkv_pages = std::vector<std::pair<int64_t, morphkv_archive::page_ptr>>;
