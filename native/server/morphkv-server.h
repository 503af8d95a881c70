// MorphKV in llama-server. What patches of tools/server call; without --morphkv each function returns before it touches
// anything.
//
// A slot is a sequence; its text has no end but -c. What clients may see of it is read from the context while nothing is
// decoded and kept here, since llama-server answers /slots and /metrics also while it decodes.
#pragma once

#include "morphkv-counts.h"
#include "morphkv.h"

#include <exception>
#include <string>
#include <vector>

struct common_params;
struct llama_context;

// Before a model is loaded: slots and limits as MorphKV has them. False, after a log line, if they contradict.
bool morphkv_server_prepare(common_params & params);

// A request whose body is no JSON, or JSON of other types than expected: llama-server calls that its own error (500).
bool morphkv_server_is_bad_request(const std::exception & error);

// How many first tokens a request wants never to be evicted.
struct morphkv_keep {
    int32_t n_keep;    // as in the request: 0 = --keep, -1 = the prompt that the slot begins with
    int32_t n_tokens;  // of the prompt
    int32_t n_system;  // of these, tokens of the system prompt; 0 without --morphkv-keep-system
};

class morphkv_server {
public:
    // False, after a log line, if this context cannot be served.
    bool init(const common_params & params, llama_context * ctx_tgt);

    // The context will be freed; what was counted stays.
    void stop() { ctx = nullptr; }

    // Most tokens of a slot, in place of the context's.
    int32_t n_ctx_slot(int32_t n_ctx) const { return is_on() ? n_ctx_max : n_ctx; }

    // llama-server makes and uses context checkpoints for sliding windows. To it, this cache is one with a window of one
    // token: a text goes on from any place that is complete, and from before by a checkpoint.
    int32_t n_swa(int32_t n_swa) const { return is_on() ? 1 : n_swa; }

    // A task that names a busy slot waits; llama-server would first swap the slot's prompt, under the running task.
    bool must_wait(bool is_processing) const { return is_on() && is_processing; }

    // llama-server wakes one waiting task when a slot becomes free. Where that one needs another slot it waits again, and
    // the others would wait for ever once all slots are idle. So any idle slot wakes one.
    bool wakes(bool is_processing, size_t n_waiting) const { return is_on() && !is_processing && n_waiting > 0; }

    bool keeps_system() const { return is_on() && keep_system; }

    // Why a request's n_keep cannot be kept, or an empty string.
    std::string why_not(const morphkv_keep & keep) const;

    // Before a prompt is decoded behind the n_past tokens of it that are in the cache. Returns n_past, or 0, and the slot is
    // empty, where more tokens are to be kept than the slot is sure to have. A system prompt that is too long to be kept is
    // answered, with a warning in the timings.
    int32_t begin_prompt(int32_t id_slot, const morphkv_keep & keep, int32_t n_past);

    // A prompt is decoded up to its last token; then what it asks for is recalled from the slot's archive, its end is
    // decoded again, and it asks once more.

    // While all that is in the slot has been decoded: how many of its n_prompt tokens are to be decoded again. n_task: of the
    // whole prompt.
    int32_t recall(int32_t id_slot, int32_t n_prompt, int32_t n_task);
    // Whether the next token must wait for a recall.
    bool    waits_for_recall(int32_t id_slot, int32_t n_prompt, int32_t n_task) const;
    // Whether the slot decodes a prompt's end again, which has its checkpoints.
    bool    decodes_again(int32_t id_slot) const;

    // The longest draft that can be verified, and taken back, in one step. It ends where an eviction falls due, so that
    // evictions fall between the same tokens as without drafts.
    int32_t n_draft_max(int32_t id_slot, int32_t n_max) const;

    // A slot was read from a file: a draft model's sequence has nothing to do with it.
    void forget_draft(llama_context * ctx_dft, int32_t id_slot) const;

    // Whether the slot still holds its text of n_prompt tokens after a file was not restored: a refused state changes nothing.
    // n_read: what llama_state_seq_load_file() returned; if not 0 the state was loaded, and its tokens were refused.
    bool keeps_text(int32_t id_slot, int32_t n_prompt, size_t n_read) const;

    // Around a decode that succeeds; then what it has cost a slot that was decoded.
    void           before_decode();
    morphkv_counts after_decode(int32_t id_slot);

    // Before a task, which may be a look at the slots. may_wait: nothing has happened since the last look, or something is
    // being decoded, and the context cannot be read.
    void before_task(bool may_wait);

    // null when off
    common_json props() const;
    void        add_to_slot(common_json & slot, int32_t id_slot) const;

    morphkv_metrics metrics() const;

private:
    // How far a slot is with its prompt.
    struct reading {
        enum { FIRST, AGAIN, DONE } stage = DONE;

        int32_t n_past          = 0;  // tokens of the prompt that were there already
        int32_t next_recall_pos = 0;  // while the answer is written
    };

    bool    is_on() const { return ctx != nullptr; }
    void    look_at(int32_t id_slot);
    void    look_at_all();
    bool    start_archive(const struct morphkv_common_params & params);
    int64_t recall_now(int32_t id_slot);
    void    recall_while_writing();
    void    warn_of_system(int32_t id_slot, const morphkv_keep & keep);
    int32_t keep_first_tokens(int32_t id_slot, const morphkv_keep & keep, int32_t n_past);
    int32_t n_wanted(const morphkv_keep & keep) const;
    int32_t n_keep_max() const { return params.capacity - params.window - 1; }

    llama_context * ctx = nullptr;

    morphkv_params params{};
    bool           has_archive = false;
    bool           recalls     = false;
    int32_t        n_between   = 0;          // tokens between recalls while an answer is written, 0 = none then
    float          share       = 0.0f;
    std::string    archive;                  // "ram" or its path
    int64_t        archive_max_mib = 0;      // of all slots, 0 = no limit
    bool           keep_system     = false;
    bool           has_warned      = false;  // of a system prompt that is too long
    int32_t        n_ctx_max       = 0;      // of a slot
    int32_t        n_bos           = 0;      // tokens that the tokenizer puts before a prompt

    std::vector<std::string>    stopped;     // (n_slots), why the archive grows no more, or empty
    std::vector<morphkv_stats>  stats;       // (n_slots)
    std::vector<morphkv_counts> pending;     // (n_slots), since the last decode: recalls, a warning
    std::vector<reading>        reads;       // (n_slots)
    morphkv_counts              total;       // of all decodes
};
