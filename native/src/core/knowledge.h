// Knowledge: a text that was read once and for all, as a file that any number of chats and processes attach.
//
//   header  one block: magic, version, model, types, where what is, an id of all that is in it, a checksum of itself
//   pages   number, hash, bytes, as in the file of an archive (pages-file.cpp)
//   index   the mean keys of all pages, by layer, and
//   tokens  their ids, each with a checksum in the header
//
// Layers are in the model's order, whatever groups a context has.
//
// The file never changes. Its index is mapped, so that opening one takes no longer where it is longer, and processes share it;
// pages are read, so that a disk that fails costs a page and not the process.
#pragma once

#include "core/archive.h"
#include "core/file.h"

#include <cstdint>
#include <set>
#include <string>
#include <vector>

class morphkv_knowledge {
public:
    static constexpr int32_t N_PAGE = morphkv_page_layout::N_PAGE;

    // Of the model whose weights have this hash. own: how pages are given. Throws std::runtime_error that names the file and
    // what is wrong with it.
    morphkv_knowledge(const std::string & path, const morphkv_page_layout & own, uint64_t model);

    int64_t n_pages() const { return n_all_pages; }
    int64_t n_tokens() const { return n_all_pages * N_PAGE; }

    // Of model and content: what a state names it by.
    uint64_t            get_id() const { return id; }
    const std::string & get_path() const { return path; }
    // of the whole file
    int64_t             get_bytes() const { return n_bytes; }

    // Null where it cannot be had: then it is counted, and not tried again.
    morphkv_archive::page_ptr find_page(int64_t i_page) const noexcept;
    bool                      is_damaged(int64_t i_page) const { return damaged.count(i_page) > 0; }

    // The index of a layer: n_pages() rows of the layout's index_bytes(), aligned as tensors are.
    const void * index_rows(size_t i_layer) const { return map.data() + index_at[i_layer]; }
    // Whether the index has its checksum; reads all of it when it is asked for the first time.
    bool         is_index_right() const;

    // Of n tokens from `first` on, which are there. Throws std::runtime_error.
    std::vector<int32_t> get_tokens(int64_t first, int64_t n) const;

    // What the user should be told and has not been yet: of the first damage.
    std::string take_news() const;

private:
    void read(int64_t at, void * out, size_t n) const;
    void note(const std::string & why) const;

    const std::string         path;
    const morphkv_page_layout own;
    morphkv_page_layout       stored;
    morphkv_file              file;
    morphkv_file_map          map;
    int64_t                   n_all_pages = 0;
    int64_t                   n_bytes     = 0;
    int64_t                   tokens_at   = 0;
    uint64_t                  id          = 0;
    uint64_t                  index_hash  = 0;
    uint64_t                  tokens_hash = 0;
    std::vector<size_t>       index_at;  // in the file, by own layer

    // a cache asks in one thread
    mutable std::set<int64_t>    damaged;
    mutable int                  index_state = 0;  // 1 right, -1 wrong, 0 not known yet
    mutable std::vector<int32_t> tokens;           // of all, once they were asked for
    mutable bool                 was_told = false;
    mutable std::string          news;
};

// Of a model's file, by its size and samples all over it; the name and the place do not count. Throws std::runtime_error.
uint64_t morphkv_hash_model_file(const std::string & path);

// Writes all that an archive has, whose text has these tokens and no others: whole pages, and none has been dropped. The file is
// there when it is complete, or as it was. Throws std::runtime_error.
void morphkv_write_knowledge(const std::string & path, const morphkv_archive & archive, uint64_t model,
                             const std::vector<int32_t> & tokens);
