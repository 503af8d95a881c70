// A driver for compilers without libFuzzer, and the test of the committed corpus. Inputs are files, and mutations of
// these at random: nothing guides them.
//
//   fuzz_state [--runs=N] [--seconds=S] [--seed=I] FILE|FOLDER...
//   fuzz_state --write-corpus FOLDER

#include "fuzz_state.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

namespace fs = std::filesystem;
using bytes  = std::vector<uint8_t>;

// where the current input is, should it be the program's last
static const char * const LAST_INPUT = "fuzz-state-last-input";

static bytes read_file(const fs::path & path) {
    std::ifstream in(path, std::ios::binary);
    return bytes(std::istreambuf_iterator<char>(in), {});
}

class mutator {
public:
    mutator(uint64_t seed, const std::vector<bytes> & corpus) : rng(seed), corpus(corpus) {}

    bytes next() {
        bytes res = pick();
        for (int n = 1 + below(4); n > 0; --n) {
            mutate(res);
        }
        return res;
    }

private:
    size_t below(size_t n) { return n > 0 ? rng() % n : 0; }

    const bytes & pick() { return corpus[below(corpus.size())]; }

    void mutate(bytes & x) {
        static const int64_t integers[] = {
            0, 1, -1, 2, 255, INT32_MAX, INT32_MIN, INT32_MAX - 1, INT64_MAX, INT64_MIN
        };
        if (x.size() < 8) {
            x.resize(8);
        }
        switch (below(6)) {
            case 0:
                x[below(x.size())] ^= 1 << below(8);
                break;
            case 1:
                x[below(x.size())] = rng();
                break;
            case 2:
                x.resize(below(x.size() + 1));
                break;
            case 3: {  // the head of one, the tail of another
                const bytes & other = pick();
                x.resize(below(std::min(x.size(), other.size())) + 1);
                x.insert(x.end(), other.begin() + std::min(x.size(), other.size()), other.end());
            } break;
            case 4: {  // an integer: any, or one that is near to what is there
                const size_t size  = below(2) ? 4 : 8;
                // behind the two bytes of the recipe fields are aligned
                const size_t i     = x.size() < size + 2 ? 0 : 2 + below((x.size() - size - 2) / 4 + 1) * 4;
                int64_t      value = integers[below(std::size(integers))];
                if (below(2)) {
                    memcpy(&value, &x[i], size);
                    value = (uint64_t) value + below(9) - 4;
                }
                memcpy(&x[i], &value, std::min(size, x.size() - i));
            } break;
            case 5:  // what is done with it
                x[below(2)] = rng();
                break;
        }
    }

    std::mt19937_64            rng;
    const std::vector<bytes> & corpus;
};

int main(int argc, char ** argv) {
    uint64_t              n_runs = 0, n_seconds = 0, seed = std::random_device()();
    std::vector<fs::path> paths;
    for (int i = 1; i < argc; ++i) {
        const std::string arg = argv[i];
        if (arg == "--write-corpus" && i + 1 < argc) {
            fuzz_write_corpus(argv[i + 1]);
            return 0;
        }
        if (arg.rfind("--runs=", 0) == 0) {
            n_runs = std::stoull(arg.substr(7));
        } else if (arg.rfind("--seconds=", 0) == 0) {
            n_seconds = std::stoull(arg.substr(10));
        } else if (arg.rfind("--seed=", 0) == 0) {
            seed = std::stoull(arg.substr(7));
        } else if (fs::is_directory(arg)) {
            for (const auto & entry : fs::directory_iterator(arg)) {
                paths.push_back(entry.path());
            }
        } else {
            paths.push_back(arg);
        }
    }
    std::sort(paths.begin(), paths.end());  // folders are read in any order

    std::vector<bytes> corpus;
    for (const auto & path : paths) {
        const bytes input    = read_file(path);
        const auto  n_loaded = g_fuzz_counters.n_loaded;
        LLVMFuzzerTestOneInput(input.data(), input.size());
        if (path.filename().string().rfind("seed-", 0) == 0 && g_fuzz_counters.n_loaded == n_loaded) {
            fprintf(stderr,
                    "%s is no valid state any more. If states have a new format or other parameters, write them anew:\n"
                    "  fuzz_state --write-corpus tests/fuzz/corpus\n",
                    path.string().c_str());
            return 1;
        }
        corpus.push_back(input);
    }
    if (corpus.empty()) {
        fprintf(stderr, "no inputs: name a file or a folder of files\n");
        return 1;
    }

    printf("%zu files, then mutations with --seed=%llu\n", corpus.size(), (unsigned long long) seed);
    fflush(stdout);
    mutator    mutate(seed, corpus);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(n_seconds);
    uint64_t   i   = 0;
    while (n_runs > 0 ? i < n_runs : std::chrono::steady_clock::now() < end) {
        const bytes input = mutate.next();
        std::ofstream(LAST_INPUT, std::ios::binary).write((const char *) input.data(), input.size());
        LLVMFuzzerTestOneInput(input.data(), input.size());
        ++i;
    }
    std::remove(LAST_INPUT);
    printf("%llu mutations\n", (unsigned long long) i);
    return 0;
}
