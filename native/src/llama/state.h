// State of a MorphKV cache in llama.cpp's streams: the texts (core/state-format.h), and then the tensors.
//
//   tensors  for each sequence and layer: the used cells of K and V, the ring, the slots' tokens and scores; windowed layers'
//            K and V; the archive's pages and tail
//
// A page that could not be read is saved with another mark: its hash, and zeros. So a state has the size that was announced,
// whatever the disk does meanwhile.
//
// All or nothing: nothing is changed before everything has been read and found right. A sequence has its cells in one piece
// and its positions in few runs, so its size depends on the number of used cells alone: once a sequence has been cut, it stays
// between those of capacity and of capacity + room.
#pragma once

#include "core/archive.h"
#include "core/state-format.h"
#include "llama/memory.h"

#include "llama-io.h"

#include <cstdint>
#include <vector>

// One sequence of a state, and a state, that has been read and found right, and not been applied.
struct morphkv_loaded_sequence {
    morphkv_saved_text text;

    std::vector<std::vector<uint8_t>> slices;  // of tensors, in their order; those on a device follow by themselves
    std::vector<morphkv_archive::saved_page> pages;
    morphkv_page                             tail;
};

struct morphkv_loaded_state {
    uint32_t                             version;
    llama_seq_id                         first;
    std::vector<morphkv_loaded_sequence> sequences;
    bool                                 has_pages = false;  // a checkpoint has none
};

// layers: those that are cut, of all groups.
morphkv_state_header morphkv_make_state_header(const morphkv_params & p, const std::vector<morphkv_side_layer> & layers,
                                               const morphkv_window * window, int32_t rope_limit, uint32_t n_rot,
                                               uint32_t n_seq, const morphkv_archive * archive,
                                               llama_state_seq_flags flags);

// llama.cpp's streams
class morphkv_io_writer : public morphkv_byte_writer {
public:
    explicit morphkv_io_writer(llama_io_write_i & io) : io(io) {}

    void write(const void * data, size_t n) override { io.write(data, n); }

private:
    llama_io_write_i & io;
};

class morphkv_io_reader : public morphkv_byte_reader {
public:
    explicit morphkv_io_reader(llama_io_read_i & io) : io(io) {}

    void read(void * data, size_t n) override { io.read(data, n); }

private:
    llama_io_read_i & io;
};

// A state that is in memory as a whole. Tensors are set when apply() is called.
class morphkv_buffer_reader : public llama_io_read_i {
public:
    morphkv_buffer_reader(const void * data, size_t size) : data((const uint8_t *) data), size(size) {}

    void   read(void * dst, size_t n) override;
    void   read_tensor(ggml_tensor * tensor, size_t offset, size_t n) override;
    void   discard() override { tensors.clear(); }
    size_t n_bytes() override { return n_read; }

    size_t n_left() const { return size - n_read; }
    void   apply();

private:
    const uint8_t * take(size_t n);

    struct slice {
        ggml_tensor *   tensor;
        size_t          offset;
        const uint8_t * data;
        size_t          n;
    };
    const uint8_t *    data;
    const size_t       size;
    size_t             n_read = 0;
    std::vector<slice> tensors;
};

// What llama.cpp writes before what its memory writes, and then that: as llama_context reads it. Throws.
void morphkv_load_state(llama_context & ctx, llama_seq_id seq_id, morphkv_buffer_reader io,
                        llama_state_seq_flags flags);

// To be called between reading and applying: throws where it is known that bytes are left over.
void morphkv_require_end(llama_io_read_i & io);
