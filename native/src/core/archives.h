// The archives of a cache, one for each sequence, and the tokens that are on their way into one of them.
//
// What a GPU or another machine computes leaves the cores of this one free: there tokens are appended beside the decode that
// goes on, one append at a time. Whoever asks for an archive waits for it.
#pragma once

#include "core/archive.h"

#include "llama.h"

#include <array>
#include <cstdint>
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
    // Of sequences 0, 1, ...; buft: of memory that the devices can write to. is_beside: appends have a thread of their own.
    morphkv_archives(std::vector<std::unique_ptr<morphkv_archive>> all, const morphkv_staging & staging,
                     ggml_backend_buffer_type_t buft, bool is_beside);
    morphkv_archives(morphkv_archives && other) = default;
    ~morphkv_archives();

    // Waits for what is being appended.
    morphkv_archive & of(llama_seq_id seq_id) const;
    // "" while it grows. Does not wait.
    std::string       why_stopped(llama_seq_id seq_id) const { return all.at(seq_id)->why_stopped(); }

    // Where the next tokens are to be put, staging.n_bytes. Throws std::runtime_error where there is no memory.
    char * free_rows();
    // Appends the n tokens that are there.
    void   append(llama_seq_id seq_id, int32_t first, int32_t n) noexcept;
    void   stop(llama_seq_id seq_id, const std::string & why);

    // Of what has happened to an archive the log tells, in the thread that next asks something of any.
    void tell() const;

    struct counts {
        int64_t n_held;
        int64_t n_lost;
        int64_t n_damaged;  // pages
        size_t  n_bytes;
    };
    // Does not wait: before an append ends, as it was when that began.
    counts count(llama_seq_id seq_id) const;
    size_t n_bytes() const;         // of all
    size_t n_staged_bytes() const;  // of tokens on their way

    const morphkv_staging staging;

private:
    friend struct morphkv_recall_test;

    void wait() const;

    std::vector<std::unique_ptr<morphkv_archive>> all;

    // one is filled while the other is being appended
    const ggml_backend_buffer_type_t       buft;
    std::array<ggml_backend_buffer_ptr, 2> rows;
    size_t                                 i_free = 0;

    bool                      is_beside;
    std::vector<counts>       before;   // by sequence, when the append began
    mutable std::future<void> running;  // last: its end is waited for before anything is destroyed
};
