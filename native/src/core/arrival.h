// What comes for a text in a batch of embeddings: words of another kind (an image's tokens of a model with one position a
// token, or sound), or an image's tokens in rows and columns.
#pragma once

#include "core/plan.h"

#include <string>
#include <vector>

// tokens: where the host puts those of a batch that are for this text, at least one. has_rows: as with M-RoPE, else a token
// has one position. attends_both_ways: to each other, whatever their order.
// Fills part but its counts. "", or the rule that is broken.
std::string morphkv_note_arrival(const morphkv_positions & positions, const std::vector<morphkv_position> & tokens,
                                 bool has_rows, bool attends_both_ways, morphkv_batch_part & part);

// "" where tokens that come in one piece find cells, at most after a cut.
std::string morphkv_why_no_room(const morphkv_text & text, int32_t n);
