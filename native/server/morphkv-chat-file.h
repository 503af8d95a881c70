// A chat's file: what is written, how it is checked, and which files a folder has.
//
//   head, settings, tokens, a part for each state, a hash of all that; then the states' bytes
#pragma once

#include "llama.h"

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

// A sequence's state as llama_state_seq_get_data_ext() gives it, with PARTIAL_ONLY.
struct morphkv_chat_state {
    int32_t n_tokens;  // first tokens of the text that it holds
    int32_t pos_min;   // as llama_memory_seq_pos_min() says
    int32_t pos_max;

    std::vector<uint8_t> data;
};

// What a file says of a state.
struct morphkv_chat_part {
    int32_t  n_tokens;
    int32_t  pos_min;
    int32_t  pos_max;
    int32_t  zero;
    uint64_t n_bytes;
    uint64_t hash;
};

struct morphkv_chat_head {
    std::string                    settings;  // a model's, and what else a state is of
    std::vector<llama_token>       tokens;    // as server_tokens::serialize() has them
    int32_t                        n_prompt = 0;
    std::vector<morphkv_chat_part> parts;
};

// Written beside the file and renamed. Returns why not, or "".
std::string morphkv_chat_write(const std::filesystem::path & path, const morphkv_chat_head & head,
                               const std::vector<morphkv_chat_state> & states);

// Throws std::runtime_error where it is damaged.
morphkv_chat_head               morphkv_chat_read_head(const std::filesystem::path & path);
std::vector<morphkv_chat_state> morphkv_chat_read_states(const std::filesystem::path & path,
                                                         const morphkv_chat_head &     head);

std::vector<morphkv_chat_part> morphkv_chat_parts(const std::vector<morphkv_chat_state> & states);

struct morphkv_chat_file {
    std::filesystem::path           path;
    uint64_t                        n_bytes;
    std::filesystem::file_time_type used;
};

// Those with this extension, the least recently used first.
std::vector<morphkv_chat_file> morphkv_chat_files(const std::filesystem::path & dir, const char * extension);
