// Chats on disk (--morphkv-state-dir): what a slot holds is written behind each answer, and a prompt that begins like one of
// them goes on from there, also when the server was ended by kill -9. A file is written beside the one that it replaces and
// renamed. It holds the text's tokens and states of constant size: that at its end, and that before its last answer. Pages of an
// archive are in a file beside it.
//
// For the server's thread. One file at a time is written by a thread beside it.
#pragma once

#include "morphkv-chat-file.h"
#include "morphkv-pages.h"

#include <cstdint>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

struct server_tokens;

class morphkv_chats {
public:
    morphkv_chats();
    ~morphkv_chats();  // waits for the file that is being written

    bool is_on() const { return !dir.empty(); }

    // Looks at what is there; files of other settings stay as they are and count for the limit. max_bytes: 0 = no limit.
    // Returns why the folder cannot be used, or "".
    std::string start(const std::string & dir, uint64_t max_bytes, const std::string & settings, bool has_media);

    // n_prompt: where the last answer begins. A chat that the slot was given, or that it has written, is replaced unless the
    // text has left it before that. states: that of all tokens is the first. ctx: whose archive is kept too; may be null.
    void save(int32_t id_slot, const server_tokens & tokens, int32_t n_prompt, std::vector<morphkv_chat_state> states,
              llama_context * ctx);

    // The chat that saves most of a prompt, if that is more than n_past tokens by a few: its tokens and states.
    struct found {
        int32_t n_past  = 0;  // first tokens of the prompt that states.at(i_state) has; 0 = none is
        size_t  i_state = 0;
        std::unique_ptr<server_tokens>  tokens;
        std::vector<morphkv_chat_state> states;

        found();
        found(found &&);
        ~found();
    };
    found find(int32_t id_slot, const server_tokens & prompt, int32_t n_past);
    // Gives a slot the archive of a chat that was found for it; the slot is emptied first. False, and it stays as it is, where
    // no archive is beside the chat.
    bool  load_pages(int32_t id_slot, llama_context * ctx);
    // What was found cannot be used, and is not found again.
    void  refuse(int32_t id_slot);

    struct counts {
        int64_t n_files    = 0;  // of any settings
        int64_t n_bytes    = 0;
        int64_t n_written  = 0;
        int64_t n_failed   = 0;  // writes
        int64_t n_restored = 0;  // prompts that went on from a file
    };
    // Does not wait for the file that is being written.
    counts count_now();

private:
    struct entry;
    struct written {
        std::string                        why_not;
        std::string                        why_no_pages;
        std::vector<std::filesystem::path> removed;
        int64_t                            n_files = 0;
        int64_t                            n_bytes = 0;
    };

    void                  wait();
    entry *               find_entry(const std::filesystem::path & path);
    void                  forget(const std::filesystem::path & path);
    std::filesystem::path choose_path(int32_t id_slot, const server_tokens & tokens);

    std::filesystem::path dir;
    uint64_t              max_bytes = 0;
    std::string           settings;

    std::vector<std::unique_ptr<entry>> entries;
    std::vector<std::filesystem::path>  of_slot;             // (n_slots), the file of what it holds, or empty
    counts                              counted;
    bool                                has_warned = false;  // of a write that failed
    morphkv_page_files                  pages;

    std::unique_ptr<entry> pending;  // what is being written
    std::future<written>   running;  // last: its end is waited for before anything is destroyed
};
