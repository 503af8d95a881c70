#include "morphkv-keep.h"

#include "common.h"

#include <algorithm>

void morphkv_keeper::start(const morphkv_common_params & given, int32_t n_bos) {
    params      = given.params;
    keep_system = given.keep_system;
    this->n_bos = n_bos;
}

int32_t morphkv_keeper::n_wanted(const morphkv_keep & keep) const {
    // llama-server counts --keep without the tokenizer's first token
    int32_t n = keep.n_keep > 0 ? std::min(keep.n_keep, params.capacity) + n_bos : params.keep;
    if (keep.n_keep < 0) {
        n = std::min(keep.n_tokens, n_keep_max());
    }
    const bool fits = keep.n_system <= n_keep_max();
    return keep_system && fits ? std::max(n, keep.n_system) : n;
}

std::string morphkv_keeper::why_not(const morphkv_keep & keep) const {
    if (n_wanted(keep) <= n_keep_max()) {
        return "";
    }
    return "n_keep must be below capacity - window = " + std::to_string(n_keep_max() + 1) + " tokens to be kept, got " +
           std::to_string(n_wanted(keep)) + ": start the server with a larger --morphkv-capacity";
}

// Kept in part it would leave no room for what else the chat holds: then it is text like any other.
std::string morphkv_keeper::warning(const morphkv_keep & keep) const {
    if (!keep_system || keep.n_system <= n_keep_max()) {
        return "";
    }
    return string_format(
        "the system prompt can be evicted: it has %d tokens, and capacity - window - 1 = %d can be kept; start the "
        "server with --morphkv-capacity %d",
        keep.n_system, n_keep_max(), GGML_PAD(keep.n_system + params.capacity, 256));
}
