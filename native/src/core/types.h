// The types that K and V may have, in a cache and in an archive.
#pragma once

#include "ggml.h"

#include <string>

constexpr ggml_type MORPHKV_ROW_TYPES[] = { GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,
                                            GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 };

inline bool morphkv_is_row_type(ggml_type type) {
    for (const ggml_type known : MORPHKV_ROW_TYPES) {
        if (type == known) {
            return true;
        }
    }
    return false;
}

// "f32, f16, ..."
inline std::string morphkv_row_type_names() {
    std::string res;
    for (const ggml_type type : MORPHKV_ROW_TYPES) {
        res += (res.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }
    return res;
}
