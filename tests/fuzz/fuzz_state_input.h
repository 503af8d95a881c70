// How an input of fuzz_state becomes a state.
#pragma once

#include "fuzz_state_context.h"

enum class way { SEQUENCE, CHECKPOINT, WHOLE, FILE };

// Mutations seldom keep a header or hit a checksum, and tensors are long and all alike. So all forms but the first begin
// behind the header and go on, without a checksum, with bytes that are repeated until the tensors are full.
enum class form {
    VERBATIM,
    COMPLETE,
    CUT,    // a few bytes of the end are missing
    SHORT,  // not repeated: the tensors end where the input ends
};

enum class next { NOTHING, RECALL, SINGLE, BOTH, PROMPT, DRAFT, REMOVE, COPY };

struct recipe {
    way          load;
    llama_seq_id seq;
    form         content;
    bool         is_mended;  // each number is one that can be, see made_up_text.h; the texts are as version 6 has them
    uint32_t     version;    // as which they are written
    next         then;
    int32_t      n;          // 0..31, for what follows
    int          i_context;
    bool         has_lost = false;  // pages

    int n_seq() const { return load == way::WHOLE ? FUZZ_N_SEQ : 1; }
};

recipe read_recipe(const uint8_t * data);
bytes  write_recipe(const recipe & r);

struct made_state {
    bytes       data;
    state_parts parts;  // where its texts are right
    bool        is_right = false;
};

// Of an input's content.
made_state make_state(const fuzz_context & c, const recipe & r, const uint8_t * data, size_t size);
