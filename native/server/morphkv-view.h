// What clients see of MorphKV: in /props, /slots and /metrics. The server's thread writes it while nothing is decoded, since
// llama-server answers also while it decodes; threads of HTTP read it.
#pragma once

#include "morphkv-chats.h"
#include "morphkv-common.h"
#include "morphkv-counts.h"

#include <mutex>
#include <ostream>
#include <string>
#include <vector>

struct llama_context;
struct server_routes;

// What the server has chosen, or was told, beside MorphKV's own settings.
struct morphkv_chosen {
    std::string archive_type;             // of K and V
    int32_t     n_checkpoints       = 0;  // most of a slot
    int32_t     checkpoint_min_step = 0;  // tokens
    int32_t     cache_ram_mib       = 0;
};

class morphkv_view {
public:
    // Once a context is there; what was counted before it stays.
    void start(const morphkv_common_params & given, llama_context * ctx, int32_t n_slots);

    void look_at(int32_t id_slot);
    void look_at_all();

    // As it was at the last look. For the server's thread.
    const morphkv_stats & of(int32_t id_slot) const { return stats.at(id_slot); }

    void count(const morphkv_counts & cost);

    void tell(const morphkv_chosen & chosen);
    void tell(const morphkv_chats::counts & chats);

    // Adds it to the answers of these routes.
    void join(server_routes & routes);

private:
    void add_to_props(common_json & props) const;
    void add_to_slot(common_json & slot) const;
    void write_metrics(std::ostream & out) const;

    mutable std::mutex    mutex;
    llama_context *       ctx = nullptr;
    morphkv_common_params given;

    std::vector<morphkv_stats> stats;    // (n_slots)
    std::vector<std::string>   stopped;  // (n_slots), why the archive grows no more, or empty
    morphkv_counts             total;    // of all decodes
    morphkv_chosen             chosen;
    morphkv_chats::counts      chats;
};
