// State of a MorphKV cache: what must fit, the cells of each sequence, a checksum of all that, and then the tensors.
//
//   header   magic, version, parameters, shape of the model's layers, number of sequences
//   stream   for each sequence: counters, first positions, the ring's positions, the cells' tokens; those of windowed layers;
//            what its archive holds
//   checksum of everything before it
//   tensors  for each sequence and layer: the used cells of K and V, the ring, the slots' positions and scores; windowed
//            layers' K and V; the archive's pages
//            each followed by a mark, as most damage to a file is a block or an end that is missing, and llama.cpp's file
//            reader gives less than was asked for without a word
//
// A page that could not be read is saved with another mark: its hash, and zeros. So a state has the size that was announced,
// whatever the disk does meanwhile.
//
// All or nothing: nothing is changed before everything has been read and found right. A sequence has its cells in one piece
// and its positions in one or two runs, so its size depends on the number of used cells alone: once a sequence has been cut,
// it stays between those of capacity and of capacity + room.
#pragma once

#include "llama/memory.h"

#include "llama-io.h"

#include <cstdint>
#include <stdexcept>
#include <vector>

constexpr uint32_t MORPHKV_STATE_MAGIC       = 0x564b4d4d;  // "MMKV"
constexpr uint32_t MORPHKV_STATE_VERSION     = 5;
// 5: pages may be lost, rotary_base, recurrent parts have an end
constexpr uint32_t MORPHKV_STATE_VERSION_MIN = 4;

constexpr uint64_t MORPHKV_STATE_LOST = 0xa5a5a5a5a5a5a5a5;  // in the mark of a page that is

// FNV-1a, 64 bits: against flipped bits, not against an attacker; what is read is checked value by value all the same.
class morphkv_fnv_hash {
public:
    void add(const void * data, size_t size) {
        for (size_t i = 0; i < size; ++i) {
            value = (value ^ ((const uint8_t *) data)[i]) * 0x100000001b3;
        }
    }

    uint64_t value = 0xcbf29ce484222325;
};

// what two caches must share for the state of one to be right in the other
struct morphkv_state_header {
    uint32_t magic   = MORPHKV_STATE_MAGIC;
    uint32_t version = MORPHKV_STATE_VERSION;
    int32_t  capacity;
    int32_t  window;
    int32_t  interval;
    int32_t  keep;
    int32_t  prompt_room;
    int32_t  votes;
    int32_t  fusion;
    int32_t  policy;
    float    decay;
    uint32_t seed;
    int32_t  rope_limit;
    uint32_t n_rot;    // size of the matrix that K is rotated with, 0 = none
    uint64_t layers;   // hash of their shapes and types
    uint32_t n_layer;
    uint32_t n_seq;    // sequences that follow
    uint64_t archive;  // hash of its layout, 0 = none
    uint32_t has_no_pages;
    uint32_t zero;
};

// The fixed part of a sequence. Of its cells only the first positions are stored, the others follow.
struct morphkv_stream_header {
    int64_t   n_evictions;
    int64_t   n_evicted;
    int64_t   n_rebases;
    int64_t   n_recalls;
    int64_t   n_recalled;
    llama_pos pos_exact;
    llama_pos pos_prompt;
    llama_pos rotary_offset;
    uint32_t
        n_rebased;  // distant tokens of all layers and heads at the last rebase or recall, whose positions follow; or 0
    int32_t   n_keep;
    uint32_t  n_used;
    llama_pos first_distant;  // position of cell 0
    llama_pos first_recent;   // position of cell n_distant; the same run as cell 0 before the first eviction
    llama_pos rotary_base;    // from version 5 on
    int32_t   zero;
};

// The cells of the windowed layers, whose tokens follow; only of models that have such layers.
struct morphkv_window_header {
    llama_pos newest;
    uint32_t  i_newest;
    uint32_t  n_cells;
};

morphkv_state_header morphkv_make_state_header(const morphkv_params & p, const morphkv_side & side,
                                               const morphkv_window * window, int32_t rope_limit, uint32_t n_rot,
                                               uint32_t n_seq, const morphkv_archive * archive,
                                               llama_state_seq_flags flags);

class morphkv_hashed_writer {
public:
    explicit morphkv_hashed_writer(llama_io_write_i & io) : io(io) {}

    void write(const void * data, size_t size) {
        // an empty vector's data() may be null, which llama.cpp would give to memcpy
        if (size > 0) {
            io.write(data, size);
            hash.add(data, size);
        }
    }

    // of what has been written so far, itself not included
    void write_checksum() { io.write(&hash.value, sizeof(hash.value)); }
    // the i-th mark: no two are alike
    void write_mark(uint64_t i, bool is_lost = false) {
        const uint64_t value = (hash.value + i) ^ (is_lost ? MORPHKV_STATE_LOST : 0);
        io.write(&value, sizeof(value));
    }

private:
    llama_io_write_i & io;
    morphkv_fnv_hash   hash;
};

class morphkv_hashed_reader {
public:
    explicit morphkv_hashed_reader(llama_io_read_i & io) : io(io) {}

    void read(void * data, size_t size) {
        if (size > 0) {
            io.read(data, size);
            hash.add(data, size);
        }
    }

    void read_checksum() { read_mark(0); }

    // Whether what it stands behind is lost.
    bool read_mark(uint64_t i, bool may_be_lost = false) {
        uint64_t value = ~(hash.value + i);  // a file may end here
        io.read(&value, sizeof(value));
        const bool is_lost = may_be_lost && value == ((hash.value + i) ^ MORPHKV_STATE_LOST);
        if (value != hash.value + i && !is_lost) {
            throw std::runtime_error("the state is damaged or truncated: a checksum is wrong");
        }
        return is_lost;
    }

private:
    llama_io_read_i & io;
    morphkv_fnv_hash  hash;
};

// A state, and one sequence of it, that has been read and found right, and not been applied.
struct morphkv_cache::loaded_sequence {
    stream_state             state;
    cell_list                cells;
    morphkv_window::cell_run window;
    morphkv_archive_header   archive;

    std::vector<std::vector<uint8_t>> slices;  // of tensors, in their order; those on a device follow by themselves
    std::vector<morphkv_archive::saved_page> pages;
    morphkv_page                             tail;
};

struct morphkv_cache::loaded_state {
    uint32_t                     version;
    llama_seq_id                 first;
    std::vector<loaded_sequence> sequences;
    bool                         has_pages = false;  // a checkpoint has none
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
