// What all targets share: the input's way in, its corpus, and how often what became of inputs.
#pragma once

#include "support/check.h"

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

using bytes = std::vector<uint8_t>;

inline void append(bytes & out, const void * data, size_t size) {
    out.insert(out.end(), (const uint8_t *) data, (const uint8_t *) data + size);
}

// Bytes before an input's content. Behind them numbers are aligned.
extern const size_t fuzz_n_recipe;

// libFuzzer's main() calls this alone.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

// Valid inputs that the library itself writes, named seed-*.
void fuzz_write_corpus(const std::string & folder);

inline void fuzz_write_seed(const std::string & folder, int i_seed, const bytes & input) {
    const std::string path = folder + "/seed-" + std::to_string(i_seed);
    FILE *            f    = fopen(path.c_str(), "wb");
    CHECK(f && fwrite(input.data(), 1, input.size(), f) == input.size() && fclose(f) == 0);
}

// Inputs by what became of them. Each seed-* must be "loaded".
inline std::map<std::string, uint64_t> g_fuzz_counts;

// Prints the counts at the end of the program, whoever has its main(): call it first of all.
inline void fuzz_report_at_exit() {
    struct report {
        ~report() {
            for (const auto & [what, n] : g_fuzz_counts) {
                printf("%-28s %llu\n", what.c_str(), (unsigned long long) n);
            }
        }
    };
    static const report at_exit;
}
