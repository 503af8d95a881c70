// Doors for tests of libllama; no part of the C API of morphkv.h, and none of the Python package's.
#ifndef MORPHKV_TESTING_H
#define MORPHKV_TESTING_H

#include "morphkv.h"

#ifdef __cplusplus
extern "C" {
#endif

// The n-th call from now on (1 = the next) that an archive makes to its store fails with this errno, and no other does.
// Store calls are each open, read, write, truncation, ... of an archive's file, and each page that is put into one in memory
// or taken out of it, there with std::bad_alloc where error is ENOMEM. n = 0: none fails. Of all contexts of the process.
MORPHKV_API void morphkv_testing_fail_store(int64_t n, int32_t error);

// Store calls since the last morphkv_testing_fail_store().
MORPHKV_API int64_t morphkv_testing_n_store_calls(void);

#ifdef __cplusplus
}
#endif

#endif
