// A text that goes back to where it has been evicted in part: what its cells get, and from which rows of the archive.
//
// The recent region gets the tokens right before the place. A distant slot keeps its token where that is older than these, and
// the others get the newest that are: which tokens were there when the text was at this place is not known any more.
#pragma once

#include "core/moves.h"

#include <cstdint>
#include <vector>

// A group as it is.
struct morphkv_group_slots {
    std::vector<morphkv_moved_layer> layers;
    std::vector<std::vector<int32_t>>
         serials;   // by layer, (n_head_kv, n_distant); of no meaning before its first eviction
    bool is_exact;  // as in morphkv_plan_moves(), and the next
    std::vector<morphkv_originals> * originals;
};

struct morphkv_restore_plan {
    struct group {
        std::vector<std::vector<int32_t>> serials;  // by layer, of its slots; empty where nothing is evicted then
        std::vector<morphkv_move>         layers;
    };

    morphkv_text       text;         // as it is then, without a query
    std::vector<group> groups;
    int32_t            archive_end;  // serial from which on the archive's tokens are in cells of each group again
};

// Of a text without a window.
//   wanted:  the text whose tokens cells are to get, a copy of `text` that lost its tail or got tokens behind it
//   groups:  of the text, their layers in the order of the archive's
//   sources: of the wanted text; what is attached stays in slots, too
//   limit:   rotary positions stay below it
// Throws std::runtime_error with the reason where the archive does not have what it takes.
morphkv_restore_plan morphkv_plan_restore(const morphkv_text & text, const morphkv_text & wanted,
                                          const std::vector<morphkv_group_slots> & groups,
                                          const morphkv_sources & sources, int32_t limit);

// Tokens of a text, aside: their keys and values as an archive has them.
struct morphkv_passage {
    int32_t               n = 0;
    morphkv_archive::rows rows;
    uint64_t              layout = 0;  // hash of the archive's
};

// Throws std::runtime_error with the reason where the archive does not have them.
morphkv_passage morphkv_take_passage(const morphkv_archive & archive, int32_t first, int32_t n);
