// The memory of draft heads that have no K and V of their own and attend to the target's (Gemma 4's assistant): its cells as
// they are, cut or not, and rotary positions as the target has them. Nothing is written, and nothing can be taken back.
#pragma once

#include "llama/memory.h"

class morphkv_borrowed : public llama_memory_i {
public:
    // Throws morphkv_error where these heads cannot read this target, which has to be empty.
    morphkv_borrowed(const llama_model & model, ggml_type type_k, ggml_type type_v, uint32_t n_seq_max,
                     const llama_model & target_model, morphkv_cache & target);

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override { return false; }

    // A text is the target's to change.
    void clear(bool) override {}

    bool seq_rm(llama_seq_id, llama_pos, llama_pos) override { return true; }

    void seq_cp(llama_seq_id, llama_seq_id, llama_pos, llama_pos) override {}

    void seq_keep(llama_seq_id) override {}

    void seq_add(llama_seq_id, llama_pos, llama_pos, llama_pos) override {}

    void seq_div(llama_seq_id, llama_pos, llama_pos, int) override {}

    llama_pos seq_pos_min(llama_seq_id seq_id) const override { return target.seq_pos_min(seq_id); }

    llama_pos seq_pos_max(llama_seq_id seq_id) const override { return target.seq_pos_max(seq_id); }

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override { return {}; }

    // A mark alone: to hosts 0 bytes are a state that could not be saved.
    void state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override;

private:
    morphkv_cache & target;

    // views of the target's layers, with its cells
    std::unique_ptr<llama_kv_cache> full;
    std::unique_ptr<llama_kv_cache> windowed;
};
