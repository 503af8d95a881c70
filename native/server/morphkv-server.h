// MorphKV in llama-server: an observer of its slots. Patches of tools/server call it and decide nothing; without --morphkv
// each call returns what it was given.
//
// A slot is a sequence; its text has no end but -c.
#pragma once

#include "morphkv-chats.h"
#include "morphkv-keep.h"
#include "morphkv-page.h"
#include "morphkv-retained.h"
#include "morphkv-view.h"

#include "llama.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

struct common_adapter_lora_info;
struct common_params;
struct llama_vocab;
struct mtmd_context;
struct server_context;
struct server_chat_params;
struct server_prompt;
struct server_task;

// Templates: llama-server's slots are a type of its own source.
class morphkv_observer {
public:
    // Before a model is loaded: slots and limits as MorphKV has them, and what routes say. False, after a log line, if they
    // contradict.
    bool prepare(common_params & params, server_routes & routes);

    // Before a model is loaded: its projector is left out, after a line that says why, where it came by itself and its images
    // cannot be served. False, after a log line, if one that was asked for cannot.
    bool choose_projector(common_params & params);

    // Once a context is there, also when the server wakes. False, after a log line, if it cannot be served.
    // n_swa: llama-server makes and uses context checkpoints for sliding windows. To it, this cache is one with a window of
    // one token: a text goes on from any place that is complete, and from before by a checkpoint. Of these as many are made
    // as memory allows.
    bool init(common_params & params, llama_context * ctx_tgt, int32_t & n_swa);

    // Most tokens of a slot, in place of the context's.
    int32_t n_ctx_slot(int32_t n_ctx) const { return is_on() ? n_ctx_max : n_ctx; }

    // A request becomes a task. Throws what it wants and cannot have.
    void accept(server_task & task, const server_chat_params & chat, const common_json & request,
                const llama_vocab * vocab, const mtmd_context * mctx) const;

    // is_decoding: the context cannot be read, nor the slots.
    template <typename slots_type>
    void before_task(const server_task & task, bool is_decoding, const slots_type & slots) {
        look_before_task(task, is_decoding);
        if (is_on() && !is_decoding) {
            retained.show_all(slots);
        }
    }

    // What stands at /morphkv and /morphkv/retained. Without --morphkv the page is a chat alone.
    server_http_context::handler_t get_page(const common_params & params) { return morphkv_get_page(params); }
    server_http_context::handler_t get_retained(server_context & server) { return retained.get_retained(server); }

    // Whether a prompt that has its first n_past tokens in the slot, up to pos_next, goes on without a checkpoint where what is
    // behind cannot be taken back anywhere: nothing is behind, or it goes on from the slot's mark, or by the archive. Sets both
    // to where.
    template <typename slot_type> bool goes_on(const slot_type & slot, int32_t & n_past, int32_t & pos_next) {
        // of a prompt that is known to its end the last token is decoded again
        const bool    has_new = n_past < slot.task->n_tokens();
        const int32_t pos     = is_on() ? find_start(slot.id, has_new ? pos_next : pos_next - 1) : -1;
        if (pos < 0) {
            if (!is_on() || !restores(slot.id, *slot.task, slot.prompt, slot.ctx_dft, n_past)) {
                return false;
            }
            pos_next = slot.prompt.tokens.pos_next(n_past);
            return true;
        }
        if (pos != pos_next) {
            n_past   = (int32_t) slot.prompt.tokens.size_up_to_pos(pos);
            pos_next = pos;
        }
        return true;
    }

    // Before a prompt is decoded behind the n_past tokens of it that are in the cache. Returns n_past; or more, where the slot
    // has been given a chat from disk; or 0, and the slot is empty, where more tokens are to be kept than it is sure to have.
    template <typename slot_type> int32_t begin(slot_type & slot, int32_t n_past) {
        if (!is_on()) {
            return n_past;
        }
        if (chats.is_on() && slot.alora_invocation_start <= 0) {
            n_past = find_chat(slot.id, *slot.task, slot.prompt, slot.lora, slot.ctx_dft, n_past);
        }
        // tokens before an adapter's invocation are decoded without it, and not again
        return begin_prompt(slot.id, *slot.task, slot.prompt, n_past, slot.alora_invocation_start - 1);
    }

    // A slot has come to the end of a task, and its answer was sent: its chat goes to disk.
    template <typename slot_type> void end(const slot_type & slot) {
        if (is_on()) {
            end_text(slot.id, slot.prompt, slot.lora);
        }
    }

    // Before tokens of a prompt join a batch, while all that is in the slot has been decoded: up to how many tokens. May take
    // back the newest, to be decoded again; they have their checkpoints.
    template <typename slot_type> int32_t read(slot_type & slot, bool & do_checkpoint) {
        if (!is_on()) {
            return slot.task->n_tokens();
        }
        const moved_passage & moved = states.at(slot.id).moved;
        if (moved.n > 0 && slot.prompt.n_tokens() < moved.to) {
            return moved.to;
        }
        if (moved.n > 0) {
            int32_t       n_held = slot.prompt.n_tokens();
            const int32_t n_new  = put_moved(slot.id, *slot.task, n_held);
            slot.prompt.tokens.keep_first(n_held);
            for (int32_t i = 0; i < n_new; ++i) {
                slot.prompt.tokens.push_back(slot.task->tokens[n_held + i]);
            }
            slot.stats.n_prompt_cached += n_new;
        }
        // what is not words is not read again
        int32_t n_fixed = 0;
        for (int32_t i = slot.prompt.n_tokens(); i > n_read(slot.id) && n_fixed == 0; --i) {
            n_fixed = slot.prompt.tokens[i - 1] == LLAMA_TOKEN_NULL ? i : 0;
        }
        const morphkv_prompt & prompt = read_prompt(slot.id, *slot.task, slot.prompt.n_tokens(),
                                                    slot.prompt.tokens.pos_next(), n_fixed, do_checkpoint);
        if (prompt.n_back > 0) {
            slot.prompt.tokens.keep_first(slot.prompt.n_tokens() - prompt.n_back);
            slot.mem.seq_rm(slot.id, slot.prompt.tokens.pos_next(), -1);
            slot.stats.n_prompt_processed -= prompt.n_back;
        }
        // Of a text that is read from its start, those that others would soon push out are not made.
        const int32_t n_first = first_checkpoint(slot.id);
        const bool    is_far  = do_checkpoint && slot.prompt.n_tokens() < n_first;
        do_checkpoint         = do_checkpoint && prompt.stage != MORPHKV_PROMPT_STAGE_AGAIN && !is_far;
        return is_far ? std::min(n_first, prompt.n_end) : prompt.n_end;
    }

    // Before a written token joins a batch. The longest draft that can be verified with it, and taken back, in one step: it ends
    // where an eviction or a rebase falls due, so that these fall between the same tokens as without drafts.
    template <typename slot_type> int32_t before_token(const slot_type & slot) {
        return is_on() ? write_token(slot.id, *slot.task, slot.ctx_dft) : std::numeric_limits<int32_t>::max();
    }

    // After a decode that succeeded: what it has cost goes to the slots' timings.
    template <typename slots_type> void after(slots_type & slots) {
        if (!is_on()) {
            return;
        }
        for (auto & slot : slots) {
            if (slot.is_processing()) {
                slot.stats.morphkv.add(cost(slot.id, *slot.task));
            }
        }
        retained.show_all(slots);
    }

    // Whether the slot still holds its text after a file was not restored: a refused state changes nothing. n_read: what
    // llama_state_seq_load_file() returned; if not 0 the state was loaded, and its tokens were refused.
    template <typename slot_type> bool keeps_text(const slot_type & slot, size_t n_read) const {
        return is_on() && n_read == 0 && holds(slot.id, slot.prompt.tokens.pos_next());
    }

private:
    // Tokens that are put behind the first `to` of a prompt.
    struct moved_passage {
        std::shared_ptr<morphkv_passage> passage;
        int32_t                          to = 0;
        int32_t                          n  = 0;
    };

    // What a slot is at.
    struct state {
        int32_t              id_task            = -1;     // of its prompt, or of the tokens that it writes
        bool                 is_new             = false;  // something was evaluated since the chat was last written
        int32_t              n_first_checkpoint = 0;      // tokens
        morphkv_prompt       prompt{};
        moved_passage        moved;                       // while a prompt is read up to where it comes
        int32_t              next_recall_pos = 0;         // while the answer is written
        std::vector<int64_t> n_from;             // tokens that recalls had brought from each file at the last look
        morphkv_counts       pending;            // since the last decode: recalls, a warning

        std::vector<llama_token> asked;          // with an archive: the last prompt that was read to its end,
        int64_t                  n_recalls = 0;  // and recalls of the text by then
    };

    bool is_on() const { return ctx != nullptr; }
    bool asks() const { return !given.archive.empty() && given.recalls; }  // a prompt, an archive

    using loras = std::vector<common_adapter_lora_info>;

    void                            look_before_task(const server_task & task, bool is_decoding);
    bool                            start_archive(const common_params & params);
    bool                            attach_files(const std::string & model_path);
    std::vector<morphkv_attachment> attachments(int32_t id_slot) const;
    std::string                     name_archive() const;
    bool                            start_chats(const common_params & params);
    void                            choose_checkpoints(common_params & params) const;
    void                            say_what_is_on(const common_params & params) const;
    int32_t begin_prompt(int32_t id_slot, const server_task & task, const server_prompt & prompt, int32_t n_past,
                         int32_t n_fixed);
    void    say_why_anew(int32_t id_slot, const server_task & task, const server_prompt & prompt, int32_t n_past) const;
    int32_t first_checkpoint(int32_t id_slot) const { return states.at(id_slot).n_first_checkpoint; }
    int32_t find_chat(int32_t id_slot, const server_task & task, server_prompt & prompt, const loras & lora,
                      llama_context * ctx_dft, int32_t n_past);
    bool    take_chat(int32_t id_slot, morphkv_chats::found & chat, server_prompt & prompt, llama_context * ctx_dft);
    void    end_text(int32_t id_slot, const server_prompt & prompt, const loras & lora);
    int32_t keep_first_tokens(int32_t id_slot, const morphkv_keep & keep, int32_t n_past) const;
    int32_t find_start(int32_t id_slot, int32_t pos_end);
    bool    restores(int32_t id_slot, const server_task & task, const server_prompt & prompt,
                     const llama_context * ctx_dft, int32_t & n_past);
    // How many tokens came. n_held: in the slot; 0 where it has been cleared.
    int32_t put_moved(int32_t id_slot, const server_task & task, int32_t & n_held);
    int32_t n_read(int32_t id_slot) const { return states.at(id_slot).prompt.n_past; }
    bool    is_asked_again(int32_t id_slot, const server_task & task, int32_t n_past) const;
    void    note_asked(int32_t id_slot, const server_task & task);
    const morphkv_prompt & read_prompt(int32_t id_slot, const server_task & task, int32_t n_held, int32_t pos_next,
                                       int32_t n_fixed, bool has_checkpoints);
    int32_t                write_token(int32_t id_slot, const server_task & task, llama_context * ctx_dft);
    bool                   holds(int32_t id_slot, int32_t pos_next) const;
    morphkv_counts         cost(int32_t id_slot, const server_task & task);
    morphkv_recall_params  recall_params() const;
    void                   recalled(int32_t id_slot, morphkv_status status, const morphkv_recalled & brought);

    llama_context *       ctx = nullptr;
    morphkv_common_params given;
    int32_t               n_between     = 0;  // tokens between recalls while an answer is written, 0 = none then
    int32_t               n_ctx_max     = 0;  // of a slot
    int32_t               n_checkpoints = 0;  // most of a slot
    std::string           archive_type;       // of K and V, as it was started
    std::string           lora_of_all;        // adapters that requests have which name none
    bool                  has_warned          = false;  // of a system prompt that is too long
    bool                  has_given_projector = false;  // --mmproj, and not one that came with the model
    std::string           why_no_images;                // of a projector that was left out

    std::vector<state>    states;                       // (n_slots)
    morphkv_keeper        keeper;
    morphkv_chats         chats;
    morphkv_view          view;
    morphkv_retained_view retained;
};

// llama-server has one model in a process.
extern morphkv_observer g_morphkv;
