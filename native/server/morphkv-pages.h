// Pages of archives on disk, each file beside that of its chat (morphkv-chats.h). Full pages never change, so behind an answer
// the new ones are appended. A file of another text than its chat, which a killed server may leave, is noticed by its hashes.
#pragma once

#include "morphkv.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

struct llama_context;

// The file beside a chat's.
std::filesystem::path morphkv_pages_path(const std::filesystem::path & chat);
// Its bytes; 0 where there is none.
uint64_t              morphkv_pages_bytes(const std::filesystem::path & chat);

class morphkv_page_files {
public:
    // What is to be written, by any thread.
    struct update {
        std::filesystem::path path;        // empty: nothing is
        std::filesystem::path copied;      // the file of another chat with the same beginning, or empty
        uint64_t              n_kept = 0;  // bytes that stay; 0 = the file is written anew
        std::vector<char>     bytes;       // behind them

        // Returns why it could not be, or "".
        std::string write() const;
    };

    // What a slot's archive has and the file beside a chat has not.
    update next(llama_context * ctx, int32_t id_slot, const std::filesystem::path & chat);
    // The file beside a chat is not what was written there, or has been removed.
    void   forget(const std::filesystem::path & chat);

    // Gives an empty slot the pages beside a chat. False where there are none, or they do not fit.
    bool load(llama_context * ctx, int32_t id_slot, const std::filesystem::path & chat);

private:
    // What is in the file of a slot's chat.
    struct state {
        std::filesystem::path chat;
        morphkv_page_range    pages{};
        std::vector<uint64_t> hashes;  // of pages [first, end)
    };

    state & of(int32_t id_slot);

    std::vector<state> states;  // (n_slots)
};
