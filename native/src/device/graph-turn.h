// How a layer rotates its keys, read from the model's own graph, and the graph that rotates cached rows on.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

struct morphkv_rope {
    enum class kind {
        UNSEEN,   // no graph of the layer has been built yet
        NONE,     // keys are not rotated
        ROTATED,  // by the parameters below
        UNKNOWN,  // rotated in a way that is not undone by another rotation
    };

    kind          is          = kind::UNSEEN;
    int32_t       n_dims      = 0;
    int32_t       n_offs      = 0;
    int32_t       mode        = 0;
    int32_t       n_ctx_orig  = 0;
    float         freq_base   = 0.0f;
    float         freq_scale  = 0.0f;
    float         ext_factor  = 0.0f;
    float         beta_fast   = 0.0f;
    float         beta_slow   = 0.0f;
    int32_t       sections[4] = {};       // of M-RoPE: pairs of values that time, row, column and a fourth turn
    ggml_tensor * factors     = nullptr;  // the model's, or null

    // Whether keys, and queries, are then multiplied with the cache's matrix. MLA's are not, though the cache has one where
    // they are quantized.
    bool is_multiplied = false;

    // Of a norm behind the rotation: what multiplies each value of a head; (n_embd_head) F32, the model's, or null.
    ggml_tensor * weights = nullptr;

    // Numbers that turn one row: with M-RoPE four.
    int32_t              n_pos() const { return mode & GGML_ROPE_TYPE_MROPE ? 4 : 1; }
    // As RoPE wants them where row i goes on by x[i]: with M-RoPE time, row and column alike, in a block each. The fourth
    // stays 0, as llama.cpp has it for words and images.
    std::vector<int32_t> turns(const std::vector<int32_t> & x) const;
};

// k: keys as a layer's attention gets them.
morphkv_rope morphkv_find_rope(const ggml_tensor * k);

// Rotates each head of rows by its own number of positions, in place.
//   rows:   (n_rows, n_heads*n_embd_head), contiguous, any K type
//   deltas: (n_rows*n_heads) I32, positions to go on by, as turns() has them; may be negative. Below, too
//   rot:    matrix that quantized K is multiplied with where rope says so; may be null where it does not
// Positions enter a rotation linearly, also with YaRN and frequency factors, so turning by a difference is exact but for
// rounding. YaRN's magnitude scale, which the rows have already, is divided out.
ggml_tensor * morphkv_build_rotate(ggml_context * ctx, ggml_tensor * rows, int32_t n_heads, ggml_tensor * deltas,
                                   const morphkv_rope & rope, ggml_tensor * rot);

// The same for rows that are F32 and a head's each: (n, n_embd_head), deltas (n) I32. Returns the same shape.
ggml_tensor * morphkv_build_turned(ggml_context * ctx, ggml_tensor * rows, ggml_tensor * deltas,
                                   const morphkv_rope & rope, ggml_tensor * rot);

// Rows as they were before RoPE, weights and rot, if delta is less their rotary position; all heads of a row together.
//   rows:   (n_rows, n_heads*n_embd_head), any K type, contiguous
//   deltas: (n_rows) I32; null where the layer does not rotate
// Returns the same shape in F32.
ggml_tensor * morphkv_build_unrotated(ggml_context * ctx, ggml_tensor * rows, int32_t n_heads, ggml_tensor * deltas,
                                      const morphkv_rope & rope, ggml_tensor * rot);

// The way back: (n, n_embd_head) F32 rows, each of them a head's, to positions (n) I32, null where the layer does not
// rotate.
ggml_tensor * morphkv_build_rotated(ggml_context * ctx, ggml_tensor * rows, ggml_tensor * positions,
                                    const morphkv_rope & rope, ggml_tensor * rot);

// Most tensors that one of them makes, views included.
constexpr int32_t MORPHKV_ROTATE_MAX_TENSORS = 16;
