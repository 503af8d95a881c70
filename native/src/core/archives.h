// The archives of a cache, one for each text, and the tokens that are on their way into one of them.
//
// What a GPU or another machine computes leaves the cores of this one free: there tokens are appended in a thread beside the
// decode that goes on, one append at a time. Whoever asks for an archive waits for it.
#pragma once

#include "core/archive.h"

#include <array>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

// How tokens lie that come from the cache: by layer the keys of all, as they were before RoPE, then the values of all.
struct morphkv_staging {
    // n_tokens at most; the types in which they come
    morphkv_staging(const morphkv_page_layout & layout, int32_t n_tokens, ggml_type type_k, ggml_type type_v);

    struct layer {
        size_t k_at;  // (n_tokens, n_head_kv*n_embd)
        size_t v_at;
    };

    int32_t            n_tokens;
    ggml_type          type_k;
    ggml_type          type_v;
    std::vector<layer> layers;
    size_t             n_bytes = 0;
};

class morphkv_archives {
public:
    // Memory that devices can write to; null where there is none.
    using alloc_fn = std::function<std::shared_ptr<char>(size_t n_bytes)>;
    // What the user should be told of an archive.
    using tell_fn  = std::function<void(int32_t i_text, const std::string & news)>;

    // Of texts 0, 1, ...; has_thread: appends have a thread of their own.
    morphkv_archives(std::vector<std::unique_ptr<morphkv_archive>> all, const morphkv_staging & staging, alloc_fn alloc,
                     tell_fn tell, bool has_thread);
    morphkv_archives(morphkv_archives && other) = default;
    ~morphkv_archives();

    // Waits for what is being appended.
    morphkv_archive & of(int32_t i_text) const;
    // "" while it grows. Does not wait.
    std::string       why_stopped(int32_t i_text) const { return all.at(i_text)->why_stopped(); }

    // Where the next tokens are to be put, staging.n_bytes. Throws std::runtime_error where there is no memory.
    char * free_rows();
    // Appends the n tokens that are there, the first of them with serial `first`.
    void   append(int32_t i_text, int32_t first, int32_t n) noexcept;
    void   stop(int32_t i_text, const std::string & why);

    // Of what has happened to an archive the user is told in the thread that next asks something of any.
    void tell() const;

    struct counts {
        int64_t n_held;
        int64_t n_lost;
        int64_t n_damaged;  // pages
        size_t  n_bytes;
    };
    // Does not wait: before an append ends, as it was when that began.
    counts count(int32_t i_text) const;
    size_t n_bytes() const;         // of all
    size_t n_staged_bytes() const;  // of tokens on their way

    const morphkv_staging staging;

private:
    friend struct morphkv_inside;  // of tests

    void wait() const;

    std::vector<std::unique_ptr<morphkv_archive>> all;

    // one is filled while the other is being appended
    alloc_fn                             alloc;
    tell_fn                              tell_user;
    std::array<std::shared_ptr<char>, 2> rows;
    size_t                               i_free = 0;

    bool                      has_thread;
    std::vector<counts>       before;   // by text, when the append began
    mutable std::future<void> running;  // last: its end is waited for before anything is destroyed
};
