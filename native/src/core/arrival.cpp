#include "core/arrival.h"

#include <algorithm>

static std::string name(const morphkv_position & pos) {
    return "(" + std::to_string(pos.t) + ", " + std::to_string(pos.h) + ", " + std::to_string(pos.w) + ")";
}

// Tokens of an image that the text ends with may be in it already, as hosts decode an image in pieces.
static std::string note_image(const morphkv_run * begun, const std::vector<morphkv_position> & tokens,
                              morphkv_batch_part & part) {
    const int32_t t        = tokens[0].t;
    int32_t       n_before = begun ? begun->n : 0;
    int32_t       n_column = begun ? begun->n_column : 0;
    if (!begun || n_column == n_before) {
        // the first row may go on
        n_column = n_before;
        for (size_t i = 0; i < tokens.size() && tokens[i].h == t; ++i) {
            n_column++;
        }
        n_column = std::max(n_column, 1);
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
        const int32_t          k    = n_before + (int32_t) i;
        const morphkv_position want = { t, t + k / n_column, t + k % n_column };
        if (!(tokens[i] == want)) {
            return "an image's tokens must share one time and follow each other by rows and columns, and be alone in "
                   "their batch, got " +
                   name(tokens[i]) + " for " + name(want);
        }
    }
    const int32_t n = n_before + (int32_t) tokens.size();
    part.n_column   = n_column;
    part.end        = t + std::max(std::min(n, n_column), (n + n_column - 1) / n_column);
    return "";
}

std::string morphkv_note_arrival(const morphkv_positions & positions, const std::vector<morphkv_position> & tokens,
                                 bool has_rows, bool attends_both_ways, morphkv_batch_part & part) {
    const auto &           runs  = positions.runs();
    const morphkv_position first = tokens[0];
    const bool             goes_on =
        !runs.empty() && runs.back().n_column > 0 && runs.back().pos == first.t && first.t < positions.next();

    part.pos         = first.t;
    part.is_embedded = true;
    part.is_whole    = attends_both_ways;
    if (!goes_on && positions.n_tokens() > 0 && first.t != positions.next()) {
        return "positions must be consecutive, got " + std::to_string(first.t) + " after " +
               std::to_string(positions.next() - 1);
    }
    // one token alone may be the first of an image
    const bool is_line = !has_rows || (tokens.size() > 1 && first.h == first.t && tokens[1].t != first.t);
    if (goes_on || !is_line) {
        return note_image(goes_on ? &runs.back() : nullptr, tokens, part);
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
        const auto             pos  = (int32_t) (first.t + i);
        const morphkv_position want = { pos, pos, pos };
        if (!(tokens[i] == want)) {
            return "tokens must stand one behind the other, or be those of an image at one time, got " +
                   name(tokens[i]) + " for " + name(want);
        }
    }
    part.n_column = attends_both_ways ? MORPHKV_BOTH_WAYS : 0;
    part.end      = first.t + (int32_t) tokens.size();
    return "";
}

std::string morphkv_why_no_room(const morphkv_text & text, int32_t n) {
    for (size_t i = 0; i < text.groups.size(); ++i) {
        const auto &  shape  = text.groups[i].shape;
        const int32_t n_used = text.n_used(i);
        if (n_used + n > shape.n_limit && std::min(n_used, shape.capacity) + n > shape.n_limit) {
            return "tokens that attend to each other both ways must come together and fit beside the capacity, at most "
                   "max(interval, prompt_room) = " +
                   std::to_string(shape.n_limit - shape.capacity) + " of them, got " + std::to_string(n);
        }
    }
    return "";
}
