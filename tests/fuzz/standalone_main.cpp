// A driver for compilers without libFuzzer, and the test of the committed corpus. Inputs are files, and mutations of
// these at random: nothing guides them.
//
//   fuzz_NAME [--runs=N] [--seconds=S] [--seed=I] FILE|FOLDER...
//   fuzz_NAME --write-corpus FOLDER
//
// The program ends with the first failure, and with an input that takes longer than a minute.

#include "fuzz_target.h"
#include "mutator.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#ifndef _WIN32
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace fs = std::filesystem;

static bytes read_file(const fs::path & path) {
    std::ifstream in(path, std::ios::binary);
    return bytes(std::istreambuf_iterator<char>(in), {});
}

static void run(const bytes & input) {
#ifndef _WIN32
    alarm(60);
#endif
    LLVMFuzzerTestOneInput(input.data(), input.size());
#ifndef _WIN32
    alarm(0);
#endif
}

// of this process so far
static double rss_mb() {
#ifdef _WIN32
    return 0.0;
#else
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024.0;
#endif
}

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

    // where the current input is, should it be the program's last
    const std::string  last_input = fs::path(argv[0]).filename().string() + "-last-input";
    std::vector<bytes> corpus;
    for (const auto & path : paths) {
        const bytes input    = read_file(path);
        const auto  n_loaded = g_fuzz_counts["loaded"];
        run(input);
        if (path.filename().string().rfind("seed-", 0) == 0 && g_fuzz_counts["loaded"] == n_loaded) {
            fprintf(
                stderr,
                "%s is not valid any more. If there is a new format or there are other parameters, write them anew:\n"
                "  %s --write-corpus %s\n",
                path.string().c_str(), argv[0], path.parent_path().string().c_str());
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
    mutator      mutate(seed, corpus);
    const double mb    = rss_mb();
    const auto   begin = std::chrono::steady_clock::now();
    auto         took  = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    uint64_t i = 0;
    while (n_runs > 0 ? i < n_runs : took() < n_seconds) {
        const bytes input = mutate.next();
        std::ofstream(last_input, std::ios::binary).write((const char *) input.data(), input.size());
        run(input);
        ++i;
    }
    std::remove(last_input.c_str());
    printf("%llu mutations in %.0f s, largest RSS %.0f MB before and %.0f MB after them\n", (unsigned long long) i,
           took(), mb, rss_mb());
    return 0;
}
