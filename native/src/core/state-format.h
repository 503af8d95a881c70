// State of a cache, without its tensors: what must fit, each text, and a checksum of all that.
//
//   header    magic, version, parameters, shape of the model's layers, number of texts
//   text      for each: counters, groups, runs of positions, rows of the query ring; the tokens and ranks of the cells of each
//             group that is cut; the windowed layers' cells; what its archive holds
//   checksum  of everything before it
//
// Then come the tensors (llama/state.h), each followed by a mark, as most damage to a file is a block or an end that is missing,
// and llama.cpp's file reader gives less than was asked for without a word.
//
// Versions: 6 names tokens by serials. 5 (pages may be lost, base of recalled tokens, recurrent parts have an end) and 4 named
// them by positions, and are read where their texts begin at 0, so that both are the same numbers.
#pragma once

#include "core/hash.h"
#include "core/pages.h"
#include "core/text.h"

#include <cstdint>
#include <string>
#include <vector>

constexpr uint32_t MORPHKV_STATE_MAGIC       = 0x564b4d4d;  // "MMKV"
constexpr uint32_t MORPHKV_STATE_VERSION     = 6;
constexpr uint32_t MORPHKV_STATE_VERSION_MIN = 4;

constexpr uint64_t MORPHKV_STATE_LOST = 0xa5a5a5a5a5a5a5a5;  // in the mark of a page that is

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
    uint32_t n_rot;     // size of the matrix that K is rotated with, 0 = none
    uint64_t layers;    // hash of their shapes and types
    uint32_t n_layer;
    uint32_t n_seq;     // texts that follow
    uint64_t archive;   // hash of its layout, 0 = none
    uint32_t has_no_pages;
    uint32_t attached;  // hash of the ids of attached files, in their order; 0 = none is
};

// The fixed part of a text.
struct morphkv_text_header {
    int64_t  n_rebases;
    int64_t  n_recalls;
    int64_t  n_recalled;
    int32_t  decoded_since_cut;
    int32_t  newest_of_prompt;
    int32_t  rotary_offset;
    int32_t  n_keep;
    uint32_t n_groups;
    uint32_t n_runs;
};

struct morphkv_group_header {
    int64_t  n_evictions;
    int32_t  n_evicted;
    int32_t  base;
    uint32_t n_ranked;    // as morphkv_cut_group::ranked, or 0
    int32_t  brought_at;  // of the text, in its first group; else 0
};

// Cells of the windowed layers, whose tokens follow.
struct morphkv_ring_header {
    int32_t  newest;  // serial
    uint32_t i_newest;
    uint32_t n_held;
};

// The fixed part of a text up to version 5.
struct morphkv_text_header_v5 {
    int64_t  n_evictions;
    int64_t  n_evicted;
    int64_t  n_rebases;
    int64_t  n_recalls;
    int64_t  n_recalled;
    int32_t  decoded_since_cut;
    int32_t  newest_of_prompt;
    int32_t  rotary_offset;
    uint32_t n_ranked;
    int32_t  n_keep;
    uint32_t n_used;
    int32_t  first_distant;  // position of cell 0
    int32_t  first_recent;   // position of cell n_distant; the same run as cell 0 before the first eviction
    int32_t  base;           // version 5 alone, as the next
    int32_t  zero;
};

class morphkv_byte_writer {
public:
    virtual ~morphkv_byte_writer()                  = default;
    virtual void write(const void * data, size_t n) = 0;
};

// Throws where there is no more.
class morphkv_byte_reader {
public:
    virtual ~morphkv_byte_reader()           = default;
    virtual void read(void * data, size_t n) = 0;
};

class morphkv_hashed_writer {
public:
    explicit morphkv_hashed_writer(morphkv_byte_writer & io) : io(io) {}

    void                       write(const void * data, size_t size);
    template <typename T> void write_all(const std::vector<T> & data) { write(data.data(), data.size() * sizeof(T)); }

    // of what has been written so far, itself not included
    void write_checksum() { write_mark(0); }
    // the i-th mark: no two are alike
    void write_mark(uint64_t i, bool is_lost = false);

private:
    morphkv_byte_writer & io;
    morphkv_byte_hash     hash;
};

class morphkv_hashed_reader {
public:
    explicit morphkv_hashed_reader(morphkv_byte_reader & io) : io(io) {}

    void                       read(void * data, size_t size);
    template <typename T> void read_all(std::vector<T> & data) { read(data.data(), data.size() * sizeof(T)); }

    void read_checksum() { read_mark(0); }
    // Whether what it stands behind is lost.
    bool read_mark(uint64_t i, bool may_be_lost = false);

private:
    morphkv_byte_reader & io;
    morphkv_byte_hash     hash;
};

// A text, and what cells know of it besides.
struct morphkv_saved_text {
    morphkv_text                      text;
    std::vector<std::vector<int32_t>> tokens;           // by group that is cut, (n_used)
    std::vector<int32_t>              windowed_tokens;  // (n_held), oldest first
    morphkv_archive_header            archive;
};

// What a cache expects of a text.
struct morphkv_text_rules {
    morphkv_text_shape  shape;
    int32_t             n_keep;
    std::vector<size_t> n_slots;  // by group, of all its layers and heads
    bool                has_archive;
    morphkv_can_lose    can_lose;
    bool                has_images     = true;  // positions may be other than those of words that follow each other
    int32_t             first_attached = 0;     // serial of the oldest token of attached files (sources.h); 0 = none is
};

// Throws std::runtime_error that says what is wrong.
void               morphkv_check_state_header(const morphkv_state_header & header, const morphkv_state_header & own);
void               morphkv_write_text(morphkv_hashed_writer & out, const morphkv_saved_text & saved, bool has_archive);
morphkv_saved_text morphkv_read_text(morphkv_hashed_reader & in, uint32_t version, const morphkv_text_rules & rules);
