// Memory as tensors want it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

// The pointer that malloc() gave stands right before what is given out. Null where there is none.
inline void * morphkv_malloc_aligned(size_t n_bytes) {
    constexpr size_t ALIGNMENT = 64;
    void *           whole     = malloc(n_bytes + ALIGNMENT + sizeof(void *));
    if (!whole) {
        return nullptr;
    }
    const uintptr_t at = ((uintptr_t) whole + sizeof(void *) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    ((void **) at)[-1] = whole;
    return (void *) at;
}

struct morphkv_free_aligned {
    void operator()(void * p) const {
        if (p) {
            free(((void **) p)[-1]);
        }
    }
};
