// What the standalone driver needs of fuzz_state.cpp; libFuzzer's main() calls LLVMFuzzerTestOneInput() alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

// Inputs by what became of them, printed at the end of the program.
struct fuzz_counters {
    uint64_t n_loaded    = 0;
    uint64_t n_unchanged = 0;  // refused, nothing had changed
    uint64_t n_emptied   = 0;  // refused, the sequence was left empty
    uint64_t n_decoded   = 0;  // of any of the above: went on with tokens
    uint64_t n_cut       = 0;  // of those: at least one eviction
};

extern fuzz_counters g_fuzz_counters;

// Valid states that the library itself writes, as inputs named seed-*.
void fuzz_write_corpus(const std::string & folder);
