// How many layers fit, found by trying.
#pragma once

#include <cstdint>
#include <functional>

// The largest n up to n_max with which fits(n) is true, where more never fit better; 0, which is not asked, where none does.
// n_max is tried first, then halves: 1 + log2(n_max) tries at most.
int32_t morphkv_most_that_fit(int32_t n_max, const std::function<bool(int32_t n)> & fits);
