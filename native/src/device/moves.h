// The graphs that bring tokens of slots to where a rebase or a recall wants them.
#pragma once

#include "core/moves.h"
#include "device/engine.h"
#include "device/layers.h"

#include <cstdint>
#include <string>
#include <vector>

// Windowed layers, which hold recent tokens alone: all their keys turn by as much as the queries.
struct morphkv_turned_window {
    const std::vector<morphkv_side_layer> & layers;
    const morphkv_k_rot &                   k_rot;
    int32_t                                 n_cells;  // up to the last one in use
};

// query_delta: what the ring's queries and the window's keys are turned by. window, layout: null where there is none.
// Why it failed, or "".
std::string morphkv_run_moves(morphkv_runner & runner, const std::vector<morphkv_side_layer> & layers,
                              const morphkv_k_rot & k_rot, const morphkv_turned_window * window, uint32_t i_stream,
                              const std::vector<morphkv_move> & moves, const morphkv_page_layout * layout,
                              int32_t query_delta);
