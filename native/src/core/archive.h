// What has left the window of a text: K and V of each token and head, in the order of serials, on the host.
//
//   pages  of 16 tokens: for each layer their keys, then their values (pages.h)
//   tail   the page that is not full yet
//   index  the mean key of each page, layer and KV head
//
// Keys are stored as they were before RoPE (and before the rotation that quantized K has), so that they can be put at any
// position. A full page never changes. Knows rows of bytes, no graphs.
//
// A text outlives its archive: once one is there, nothing that it does throws. A store that fails stops it, and a page that
// cannot be read is one that nobody recalls.
#pragma once

#include "core/aligned.h"
#include "core/pages.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

class morphkv_archive {
public:
    static constexpr int32_t N_PAGE = morphkv_page_layout::N_PAGE;

    using page_ptr = std::shared_ptr<const morphkv_page>;

    // max_bytes of pages and index: the oldest page makes room for the newest; 0 = no limit. Throws std::runtime_error
    // where the store holds pages that are damaged.
    morphkv_archive(const morphkv_page_layout & layout, std::unique_ptr<morphkv_page_store> store, uint64_t max_bytes);

    // Tokens that follow each other, all layers, in the archive's types: (n, n_head_kv*n_embd) each.
    struct rows {
        std::vector<std::vector<uint8_t>> k, v;  // by layer
    };
    // Appends tokens behind the newest; an empty archive begins anywhere.
    void append(int32_t first, int32_t n, const rows & rows) noexcept;

    // Forgets tokens from serial on.
    void truncate(int32_t serial) noexcept;
    void clear() noexcept;
    // The same tokens.
    void copy(const morphkv_archive & other) noexcept;

    // Serial behind the newest token; -1 when empty.
    int32_t end() const { return held.end(); }

    // Pages [n_dropped, n_full) are there. Of the others, those before had to make room, those behind are not full.
    int64_t n_full() const { return held.n_full(); }
    int64_t n_dropped() const { return held.dropped; }
    int64_t n_held() const { return held.n_tokens - held.dropped * N_PAGE; }
    int32_t serial_of(int64_t i_page) const { return held.first + i_page * N_PAGE; }  // of its first token

    // A page, its checksum right. Null where that cannot be had: then it is counted, and not tried again.
    page_ptr find_page(int64_t i_page) const noexcept;
    bool     is_damaged(int64_t i_page) const { return damaged.count(i_page) > 0; }
    int64_t  n_damaged() const { return damaged.size(); }  // of the pages that are there

    // The index of a layer: n_places() rows of layout.index_bytes(), of which those that hold no page have anything.
    // Aligned as tensors are; there until the archive changes.
    void *  index_rows(size_t i_layer) const { return index.get() + index_at[i_layer]; }
    int64_t n_places() const;
    // -1 where the place is empty
    int64_t page_in(int64_t i_place) const;

    size_t n_bytes() const;  // of pages and index

    // Empty while it works. What was archived before stays; nothing is added until clear(). From any thread, at once.
    std::string why_stopped() const;
    void        stop(const std::string & why) noexcept;

    // What the user should be told and has not been yet: why it stopped, and of the first page that is damaged.
    std::string take_news() const;

    //
    // states
    //

    const morphkv_archive_header & get_header() const { return held; }
    const morphkv_page &           get_tail() const { return tail; }
    uint64_t                       hash_of(int64_t i_page) const { return hashes[places.of(i_page)]; }

    // Of a page whose bytes are lost there is a hash at best.
    struct saved_page {
        page_ptr page;
        uint64_t hash = 0;  // 0 where there is a page: not known yet
    };
    // pages: [header.dropped, header.n_full()). tail has the bytes of a page.
    void load(const morphkv_archive_header & header, std::vector<saved_page> pages, morphkv_page tail) noexcept;
    // Goes back to a moment that had this header and tail, if it has been through it; else it is emptied.
    bool go_back(const morphkv_archive_header & header, const morphkv_page & tail) noexcept;

    const morphkv_page_layout layout;

private:
    // Takes over what the store holds from before.
    void    find_pages();
    bool    are_right(const morphkv_archive_header & header, const morphkv_page_places & places) const;
    int64_t n_most() const;
    void    begin(const morphkv_archive_header & header);
    // As number n_full(). same: has it under this number, and so its row of the index.
    void    store_page(const saved_page & page, const morphkv_archive * same = nullptr);
    void    index_page(size_t i_place, const morphkv_page * page);
    void    reserve_places(size_t n);
    void    set_tail(const morphkv_archive_header & header, morphkv_page page);
    void    clear_tail_behind(size_t n_rows);  // so that equal archives have equal bytes
    void    set_held(const morphkv_archive_header & header);
    void    commit();
    void    note_damage(int64_t i_page, const char * why) const noexcept;
    // f(); where that throws, the archive stops.
    template <typename F> void try_to(F && f) noexcept;

    std::unique_ptr<morphkv_page_store> store;
    const int64_t                       n_max_pages;  // 0 = no limit

    morphkv_archive_header    held;
    morphkv_page_places       places;
    bool                      is_committed = true;        // the store's header is that of what is held
    morphkv_page              tail;
    std::vector<uint64_t>     hashes;                     // (n_places)
    mutable std::set<int64_t> damaged;                    // pages

    std::unique_ptr<char[], morphkv_free_aligned> index;  // by layer: (n_reserved) rows
    size_t                                        index_bytes = 0;
    size_t                                        n_reserved  = 0;
    std::vector<size_t>                           index_at;  // by layer

    mutable std::mutex  mutex;                               // of what follows
    std::string         stopped;
    mutable std::string news;
};
