// The contexts that fuzz_state loads states into.
#pragma once

#include "fuzz_target.h"
#include "support/archived_context.h"
#include "support/state_parts.h"

constexpr llama_seq_id FUZZ_N_SEQ      = 2;
constexpr int          FUZZ_N_CONTEXTS = 5;

// A context, and what its sequences hold before each input.
struct fuzz_context {
    context_ptr          ctx;
    bytes                base[FUZZ_N_SEQ];
    bytes                prefix_whole;  // what llama.cpp writes before what we write
    bytes                prefix_seq;
    bytes                prefix_file;
    morphkv_state_header header[FUZZ_N_SEQ];  // of a state of one sequence and of two
    int32_t              n_limit;
    int32_t              i_layer = 0;         // one that is cut

    bool has_archive() const { return header[0].archive != 0; }
};

const fuzz_context & fuzz_get_context(int i_context);
// Back to what its sequences held.
void                 fuzz_load_base(const fuzz_context & c);
