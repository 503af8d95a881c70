// Reads recalled pages of files again, together: a short text of its own, in a context of its own, which is cleared behind it.
//
// What a page said when it was read, it said among its neighbours. Passages that are alike and were far apart, such as facts in
// the same words, are told apart only by keys and values that know of each other: those of a text that has them side by side.
#pragma once

#include "core/archive.h"

#include <cstdint>
#include <memory>
#include <vector>

class morphkv_cache;
struct llama_context;

class morphkv_reader {
public:
    static constexpr int32_t N_PAGE      = morphkv_archive::N_PAGE;
    // Of one reading: with the token before them they fit into 256 cells.
    static constexpr size_t  N_PAGES_MAX = 15;

    // For a context: its model and settings, as far as they change what keys and values are. layout: of its pages.
    // Throws morphkv_error where there cannot be one.
    morphkv_reader(const llama_context & of, const morphkv_page_layout & layout);
    ~morphkv_reader();

    // Pages of these tokens, as a text has them that begins with the token before them: all attend to that. Throws
    // std::runtime_error.
    std::vector<morphkv_archive::page_ptr> read(int32_t before, const std::vector<int32_t> & tokens);

    size_t n_bytes() const;  // of its cells and buffers

private:
    struct free_context {
        void operator()(llama_context * ctx) const;
    };

    const llama_context &                        of;
    const morphkv_page_layout                    layout;
    std::unique_ptr<llama_context, free_context> ctx;
    morphkv_cache *                              cache = nullptr;
    std::vector<size_t>                          own;  // which of its cache's layers is layer i of the layout
};
