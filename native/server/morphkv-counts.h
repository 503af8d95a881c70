// What evictions and recalls have cost: of one response in its timings, of all in /metrics.
#pragma once

#include "json.h"

#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>

struct morphkv_counts {
    bool is_on = false;  // off: nothing is written

    int64_t n_evictions = 0;
    int64_t n_evicted   = 0;  // tokens per KV head
    int64_t n_rebases   = 0;
    double  evict_ms    = 0.0;
    int64_t n_kept      = 0;  // cells in use at the end: tokens that each KV head has

    bool    has_archive = false;
    int64_t n_recalls   = 0;
    int64_t n_recalled  = 0;  // tokens, summed over layers and KV heads
    int64_t n_reread    = 0;  // tokens of attached files that were decoded anew
    double  recall_ms   = 0.0;

    int64_t n_media        = 0;  // images and sounds that were evaluated
    int64_t n_media_tokens = 0;  // of these

    int64_t n_loaded   = 0;      // tokens of prompts that came from a chat on disk
    int64_t n_restored = 0;      // tokens of prompts that came back by the archive: not the same bits as evaluated

    std::map<std::string, int64_t> n_from;  // of n_recalled, by the path of a file that is attached

    std::string warning;                    // what a client should know, empty = nothing

    void add(const morphkv_counts & other);
    void write_timings(common_json & timings) const;
};

// Of all slots.
struct morphkv_metrics {
    morphkv_counts counts;

    int64_t n_cells     = 0;  // allocated
    int64_t n_used      = 0;
    int64_t kv_bytes    = 0;
    int64_t extra_bytes = 0;

    int64_t n_archived    = 0;  // tokens
    int64_t archive_bytes = 0;

    bool    has_chats  = false;  // on disk
    int64_t n_chats    = 0;
    int64_t chat_bytes = 0;
    int64_t n_written  = 0;
    int64_t n_failed   = 0;

    void write_prometheus(std::ostream & out) const;
};
