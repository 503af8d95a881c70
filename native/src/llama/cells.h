// What both caches, the one that is cut and the one of windowed layers, do with llama.cpp's cells.
#pragma once

#include "core/positions.h"
#include "device/engine.h"
#include "device/layers.h"

#include "llama-kv-cache.h"

#include <cstdint>
#include <vector>

struct llama_hparams;

// The layers of a cache, without what is beside K and V.
std::vector<morphkv_side_layer> morphkv_layers_of(const llama_kv_cache & cache, const llama_hparams & hparams,
                                                  const llama_memory_i::layer_reuse_cb & reuse);

morphkv_k_rot morphkv_k_rot_of(const llama_kv_cache & cache);

// Tokens of a text and the cells that they are in.
struct morphkv_cells {
    std::vector<uint32_t>    cell;
    std::vector<int32_t>     serial;
    std::vector<llama_token> token;  // by llama.cpp's count

    void add(uint32_t i_cell, int32_t i_serial, llama_token i_token) {
        cell.push_back(i_cell);
        serial.push_back(i_serial);
        token.push_back(i_token);
    }
};

// Tells llama.cpp of them: the cells must be free. n_pos: positions of a token.
void morphkv_set_cells(llama_kv_cache & cache, llama_seq_id seq_id, const morphkv_cells & cells,
                       const morphkv_positions & positions, uint32_t n_pos);
