// Where the tokens of a text stand: from serials to positions, by runs.
//
// A serial is the number of a token in its text: 0, 1, 2, ... A position is what attention and RoPE see of it, and what a host
// calls it. Of words they grow together; the tokens of an image share one time, and stand at a row and a column each.
#pragma once

#include <cstdint>
#include <vector>

// As M-RoPE has them; of a model with one position a token all three are equal.
struct morphkv_position {
    int32_t t, h, w;
};

inline bool operator==(const morphkv_position & a, const morphkv_position & b) {
    return a.t == b.t && a.h == b.h && a.w == b.w;
}

// Tokens that follow each other.
struct morphkv_run {
    int32_t serial;    // of the first
    int32_t n;
    int32_t pos;       // of the first, t, h and w alike
    int32_t n_column;  // 0 = words, one behind the other; else an image with so many tokens in a row, all at one time;
                       // MORPHKV_BOTH_WAYS
};

// Tokens one behind the other that attend to each other both ways, as those of an image do in some models: they come and go
// together.
constexpr int32_t MORPHKV_BOTH_WAYS = -1;

class morphkv_positions {
public:
    // Behind what is there; pos is that of the first token, at least next().
    void append(int32_t pos, int32_t n);
    // An image goes on where pos is the time of the one before. n_column: of all of its rows that are there.
    void append_image(int32_t pos, int32_t n_column, int32_t n);
    void append_both_ways(int32_t pos, int32_t n);

    // Forgets tokens from serial n on.
    void truncate(int32_t n);

    int32_t              n_tokens() const;
    // Smallest position behind all; 0 when empty.
    int32_t              next() const;
    // Any serial, also of no token: words go on in front of the first run, and behind the last token.
    morphkv_position     at(int32_t serial) const;
    // The first token at pos or behind it; n_tokens() if there is none.
    int32_t              serial_from(int32_t pos) const;
    // The first position from which on no token is before this one: behind an image where it stands inside of it.
    int32_t              pos_from(int32_t serial) const;
    // Whether a text can end before this token: it is not inside of tokens that come and go together.
    bool                 can_end_at(int32_t serial) const;
    // Where these tokens, ascending, come to stand one behind the other from 0 on, each with its image: those of one share
    // a place, and take no more places than the whole image has positions.
    std::vector<int32_t> packed(const int32_t * serials, int32_t n) const;

    const std::vector<morphkv_run> & runs() const { return all; }
    // Whether these can be the runs of a text, whose positions stay below `end`. What breaks it is in why.
    static bool                      are_right(const std::vector<morphkv_run> & runs, int32_t end, const char ** why);
    void                             set(std::vector<morphkv_run> runs) { all = std::move(runs); }

private:
    const morphkv_run * find(int32_t serial) const;  // null where no token is

    std::vector<morphkv_run> all;                    // none is empty; joined where words go on
};
