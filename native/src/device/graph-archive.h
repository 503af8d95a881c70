// What goes from the cache into an archive: keys as they were before RoPE, and values.
#pragma once

#include "core/archives.h"
#include "device/engine.h"
#include "device/layers.h"

#include <cstdint>
#include <string>
#include <vector>

// Cells from i_first on as tokens on their way, keys turned by `turn` (n). out: as staging says, in memory that devices can
// write to. Why it failed, or "".
std::string morphkv_read_cells(morphkv_runner & runner, const std::vector<morphkv_side_layer> & layers,
                               const morphkv_k_rot & k_rot, uint32_t i_stream, uint32_t i_first,
                               const std::vector<int32_t> & turn, const morphkv_staging & staging, size_t i_first_layer,
                               char * out);
