// TEST_CASE(what_is_true) { CHECK(...); } and no main(): a program runs its cases in their order, those with a name that holds
// its argument if it has one, and stops at the first that fails.
#pragma once

#include "check.h"

#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

inline std::vector<std::pair<const char *, void (*)()>> & test_cases() {
    static std::vector<std::pair<const char *, void (*)()>> all;
    return all;
}

#define TEST_CASE(name)                                                                                                \
    static void       name();                                                                                          \
    static const bool name##_is_known = (test_cases().push_back({ #name, name }), true);                               \
    static void       name()

// What a call throws, or "".
inline std::string error_of(const std::function<void()> & call) {
    try {
        call();
    } catch (const std::exception & error) {
        return error.what();
    }
    return "";
}

inline bool has(const std::string & text, const char * part) {
    return text.find(part) != std::string::npos;
}

int main(int argc, char ** argv) {
    static const char * running = nullptr;
    // CHECK exits
    atexit([] {
        if (running) {
            fprintf(stderr, "in the case %s\n", running);
        }
    });
    int n = 0;
    for (const auto & [name, run] : test_cases()) {
        if (argc < 2 || strstr(name, argv[1])) {
            running                 = name;
            const std::string error = error_of(run);
            if (!error.empty()) {
                fprintf(stderr, "thrown: %s\n", error.c_str());
                return 1;
            }
            n++;
        }
    }
    running = nullptr;
    printf("%d cases\n", n);
    return n > 0 ? 0 : 1;
}
