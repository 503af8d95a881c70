// The memory of a model with recurrent layers: a MorphKV cache for the layers that attend, and llama.cpp's own memory of
// constant size for the others. Both get the same micro-batches.
//
// A recurrent state goes back to a mark alone (llama/marks.h), or by a draft that was just decoded (n_rs_seq), and so does the
// pair: a tail is removed if it begins there, or else the whole sequence.
#pragma once

#include "llama/marks.h"
#include "llama/memory.h"

#include "llama-memory-recurrent.h"

class morphkv_hybrid : public llama_memory_i {
public:
    morphkv_hybrid(std::unique_ptr<morphkv_cache> attn, std::unique_ptr<llama_memory_recurrent> recr);

    //
    // llama_memory_i
    //

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    bool get_can_shift() const override;

    void clear(bool data) override;

    // A tail that begins at the mark or in the last draft, or the whole sequence; anything else is refused without a change.
    bool seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    // The cache's state, then the recurrent one in llama.cpp's format (llama/recurrent.h). All or nothing. Without marks: a
    // sequence that is loaded has none.
    void state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const override;
    void state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) override;

    //
    // morphkv
    //

    void get_stats(llama_seq_id seq_id, morphkv_stats & out) const;

    // Where the sequence ends now it can be gone back to, in place of its last mark. An empty one has no mark.
    void set_mark(llama_seq_id seq_id);

    morphkv_cache & get_cache() const { return *attn; }

private:
    // How recurrent layers come to lose a text's tokens from a serial on.
    enum class way { MARK, DRAFT, NONE };
    way  find_way(llama_seq_id seq_id, int32_t serial) const;
    void go_back(llama_seq_id seq_id, int32_t serial);

    void note_decoded(const llama_ubatch & ubatch);

    // The position of the first token behind the mark, if that can be gone back to; else -1.
    llama_pos mark_pos(llama_seq_id seq_id) const;

    llama_memory_context_ptr make_context(std::vector<llama_ubatch> ubatches, llama_memory_context_ptr ctx_attn,
                                          llama_memory_context_ptr ctx_recr);

    const std::unique_ptr<morphkv_cache>          attn;
    const std::unique_ptr<llama_memory_recurrent> recr;
    morphkv_marks                                 marks;
    std::vector<int32_t> n_drafted;  // (n_seq) newest tokens that llama.cpp's snapshots (n_rs_seq) can take back
};

// The MorphKV cache of a memory, or null.
morphkv_cache * morphkv_find_cache(llama_memory_i * memory);

// Bytes of the layers that attend, with or without MorphKV.
std::map<ggml_backend_buffer_type_t, size_t> morphkv_kv_breakdown(llama_memory_i * memory);
