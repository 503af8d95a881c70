// The recurrent part of a state: read whole and checked before anything is changed.
//
// llama.cpp's reader changes its cells while it reads, and takes numbers on trust: two cells for one sequence end the
// process. So a state is read here by its format, each number is checked, and the same bytes are handed to that reader.
#pragma once

#include "llama-memory-recurrent.h"

#include <vector>

class morphkv_recurrent_state {
public:
    static void write(llama_io_write_i & io, const llama_memory_recurrent & memory, llama_seq_id seq_id,
                      llama_state_seq_flags flags);

    // Throws std::runtime_error. newest: positions that the other layers' part has, of seq_id alone or, where that is -1,
    // of all sequences; -1 = empty. has_end: false for states of older versions. Tensors that stay on devices are read when
    // it is applied: io must live until then.
    morphkv_recurrent_state(llama_io_read_i & io, const llama_memory_recurrent & memory, llama_seq_id seq_id,
                            llama_state_seq_flags flags, const std::vector<llama_pos> & newest, bool has_end);

    // into the memory that it was read for
    void apply(llama_memory_recurrent & memory) const noexcept;

private:
    class reader;
    class replay;

    llama_seq_id          seq_id;
    llama_state_seq_flags flags;
    std::vector<uint8_t>  bytes;             // as they were read
    llama_io_read_i *     device = nullptr;  // where tensors are to be taken from, if not from bytes
};
