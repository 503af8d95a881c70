// Pages of an archive: how one is laid out, and where they are kept, in memory or in a file.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

using morphkv_page = std::vector<uint8_t>;

// The same for all sequences.
struct morphkv_page_layout {
    static constexpr int32_t N_PAGE = 16;  // tokens

    struct layer {
        int32_t n_head_kv;
        int64_t n_embd_k;  // of a head
        int64_t n_embd_v;
        int32_t il;        // of the model
        size_t  k_at;      // offsets in a page: (N_PAGE, n_head_kv*n_embd), of K and of V
        size_t  v_at;
    };

    morphkv_page_layout(ggml_type type_k, ggml_type type_v) : type_k(type_k), type_v(type_v) {}

    // il: -1 = the next
    void add_layer(int32_t n_head_kv, int64_t n_embd_k, int64_t n_embd_v, int32_t il = -1);

    // Of the same layers in the model's order, which groups of layers (llama/group.h) do not have.
    morphkv_page_layout in_model_order(ggml_type type_k, ggml_type type_v) const;
    size_t              find(int32_t il) const;  // the layer, which is there

    // bytes of a token's keys, or values, of all heads
    size_t k_bytes(size_t i_layer) const;
    size_t v_bytes(size_t i_layer) const;

    // of an archive's index, which has one row for a page: their mean key, of all heads
    ggml_type index_type(size_t i_layer) const;
    size_t    index_bytes(size_t i_layer) const;

    uint64_t hash() const;  // never 0; of the layers' order, too

    ggml_type          type_k;
    ggml_type          type_v;
    std::vector<layer> layers;
    size_t             page_bytes = 0;
};

uint64_t morphkv_hash_page(const morphkv_page & page);

// Which tokens there are: consecutive positions, in pages that are full but for the last.
struct morphkv_archive_header {
    int32_t  first    = -1;  // serial of the first token that was archived, -1 = none was
    int32_t  zero     = 0;
    int64_t  n_tokens = 0;
    int64_t  dropped  = 0;  // oldest pages that had to make room
    uint64_t newest   = 0;  // hash of the last full page, which depends on all text before it; 0 = none

    int64_t n_full() const { return n_tokens / morphkv_page_layout::N_PAGE; }
    int64_t end() const { return first < 0 ? -1 : first + n_tokens; }

    // Why no archive has this header, or "".
    std::string why_not() const;
};

// Which page is in which place: page i in (i - i_first) % n_ring.
struct morphkv_page_places {
    int64_t i_first = 0;
    int64_t n_ring  = 0;  // 0 = without an end

    size_t of(int64_t i_page) const { return n_ring > 0 ? (i_page - i_first) % n_ring : i_page - i_first; }
};

// Places of the size of a page. Throws std::runtime_error with the reason, or std::bad_alloc.
class morphkv_page_store {
public:
    virtual ~morphkv_page_store() = default;

    // No page: one whose bytes are lost, but not their hash. On failure the place holds what it held, or, in a file, nothing.
    virtual void put(size_t i_place, int64_t i_page, uint64_t hash, std::shared_ptr<const morphkv_page> page) = 0;
    // The page that was put as this, with this hash.
    virtual std::shared_ptr<const morphkv_page> get(size_t i_place, int64_t i_page, uint64_t hash) const      = 0;
    // What is there now counts: the next process finds it. Where that is nothing, the places are given back.
    virtual void commit(const morphkv_archive_header & header, const morphkv_page_places & places)            = 0;

    // What a process before this one left; n_ring and i_first are 0 where that was of an older version.
    struct content {
        morphkv_archive_header archive;
        morphkv_page_places    places;
    };
    virtual content found() const { return {}; }

    // What a place says of itself.
    struct record {
        int64_t  i_page  = -1;  // -1 = nothing is there
        uint64_t hash    = 0;
        bool     is_lost = false;
    };
    virtual record record_in(size_t i_place) const = 0;
};

// Copies of an archive share their pages.
std::unique_ptr<morphkv_page_store> morphkv_page_store_ram();

// Creates the file, or opens one of the same layout; no other process may have it open. Refuses any other file, and one
// that is shorter than it says.
std::unique_ptr<morphkv_page_store> morphkv_page_store_file(const std::string &         path,
                                                            const morphkv_page_layout & layout);

// Every store calls this before it does something that can fail. 0, or the errno with which it is to fail: for tests, see
// morphkv-testing.h.
int morphkv_store_fault();

// Rows of type `from` as rows of type `to`; n_row values each.
void morphkv_convert_rows(ggml_type from, const void * data, ggml_type to, void * out, int64_t n_rows, int64_t n_row);
