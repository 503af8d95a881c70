// What tests ask of stand_in_kernels.cpp, which they open like libllama does.
#pragma once

#include <cstdint>

enum stand_in_mode {
    STAND_IN_RIGHT,
    STAND_IN_WRONG,
    STAND_IN_WITHOUT_MEMORY,  // fails before anything has changed
    STAND_IN_HALF,            // fails afterwards
};

// What it says that it holds once it has cut.
static const uint64_t STAND_IN_BYTES = 12345;

extern "C" {

__attribute__((visibility("default"))) void    stand_in_set(stand_in_mode mode);
// since the last stand_in_set()
__attribute__((visibility("default"))) int32_t stand_in_n_calls();
__attribute__((visibility("default"))) int32_t stand_in_n_layers();
}
