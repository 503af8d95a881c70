// Faults of stores, for tests (morphkv-testing.h): calls are counted, and one of them fails.

#include "core/pages.h"
#include "morphkv-testing.h"

#include <atomic>

static std::atomic<int64_t> n_calls{ 0 };
static std::atomic<int64_t> i_failing{ 0 };
static std::atomic<int32_t> failing_errno{ 0 };

int morphkv_store_fault() {
    return ++n_calls == i_failing ? failing_errno.load() : 0;
}

void morphkv_testing_fail_store(int64_t n, int32_t error) {
    failing_errno = error;
    i_failing     = n;
    n_calls       = 0;
}

int64_t morphkv_testing_n_store_calls(void) {
    return n_calls;
}
