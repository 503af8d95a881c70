// A tiny model whose layers 0 and 2 are recurrent, while 1 and 3 attend.
#pragma once

#include "support/tiny_model.h"

#include "llama-model.h"

inline tiny_shape hybrid_shape() {
    tiny_shape res;
    res.arch         = "lfm2";
    res.n_layer      = 4;
    res.n_head       = 2;
    res.n_head_kv    = 1;
    res.is_recurrent = { 1, 0, 1, 0 };
    return res;
}

// has_window: layer 3 attends to a sliding window. Of the architectures of this upstream version LFM2 alone can have both
// windows and recurrent layers, and then a window in every layer that attends; so one of them is widened here.
inline model_ptr hybrid_model_load(bool has_window = false) {
    auto shape       = hybrid_shape();
    shape.has_window = has_window;
    shape.n_swa      = 24;
    auto res         = tiny_model_load(shape);
    CHECK(res->hparams.is_swa(1) == has_window && res->hparams.is_swa(3) == has_window);
    if (has_window) {
        res->hparams.is_swa_impl[1] = false;
    }
    return res;
}
