// What the heads of a slot hold from one eviction or recall to the next. Reckoned once, by the first who asks, however often it is
// asked for: JSON of many numbers is written here, and copied into answers.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

// An image or a sound in a text: one position for each token, or fewer.
struct morphkv_medium {
    int32_t first, n_tokens;  // tokens
    int32_t pos, n_pos;
    bool    is_sound;

    bool operator==(const morphkv_medium & other) const {
        return first == other.first && n_tokens == other.n_tokens && pos == other.pos && n_pos == other.n_pos &&
               is_sound == other.is_sound;
    }
};

struct morphkv_held_layer {
    int32_t              il;
    int32_t              n_head_kv;
    std::vector<int32_t> pos;  // (n_head_kv, n_distant), -1 where empty, below that where it is of an attached file

    bool operator==(const morphkv_held_layer & other) const {
        return il == other.il && n_head_kv == other.n_head_kv && pos == other.pos;
    }
};

class morphkv_held {
public:
    std::vector<morphkv_held_layer> layers;
    std::vector<morphkv_medium>     media;         // ascending
    std::vector<int32_t>            recalled_pos;  // (n_pages), of each page's first token
    std::vector<int32_t>            recalled_by;   // (n_pages), which recall
    int32_t                         first_recent;  // token, from here on every head keeps all

    // Whether what is reckoned of both is the same.
    bool is_same(const morphkv_held & other) const {
        return first_recent == other.first_recent && layers == other.layers && media == other.media &&
               recalled_pos == other.recalled_pos && recalled_by == other.recalled_by;
    }

    struct sums {
        int32_t     n_heads          = 0;
        int32_t     n_heads_with_all = 0;  // heads that have evicted nothing
        int32_t     n_kept           = 0;  // tokens before first_recent that some head keeps
        std::string kept;                  // JSON: tokens, each less the one before, and by how many heads
        std::string recalled;              // JSON: pairs of a page's first token, and which recall
        std::string media;                 // JSON: first token, how many, and what
    };

    // Thread-safe. is_first: set if this call has reckoned.
    const sums &        get_sums(bool & is_first) const;
    const std::string & get_layers(bool & is_first) const;  // JSON

private:
    int32_t              token_at(int32_t pos) const;  // below 0 = none
    std::vector<int32_t> tokens_of(const morphkv_held_layer & layer, int32_t i_head) const;

    mutable std::once_flag                    has_sums, has_layers;
    mutable std::vector<std::vector<int32_t>> heads;  // of all layers: tokens before first_recent, ascending
    mutable sums                              counted;
    mutable std::string                       written;
};
