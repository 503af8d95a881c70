// Whether devices can compute what will be asked of them, found out when a context is created: the graphs are built with the
// shapes that can occur, and memory for them is reserved.

#include "device/evict.h"
#include "device/graph-archive.h"
#include "device/graph-recall.h"
#include "device/graph-turn.h"
#include "device/moves.h"
#include "llama/memory.h"

#include <algorithm>

// For which memory is reserved, largest first, 1 last: a graph of fewer rows may need more, where they fit no gap.
static std::vector<uint32_t> sizes_up_to(uint32_t n) {
    constexpr uint32_t    N_STEPS = 16;
    std::vector<uint32_t> res;
    for (uint32_t i = N_STEPS; i > 0; --i) {
        res.push_back(std::max(1u, n * i / N_STEPS));
    }
    res.push_back(1);
    return res;
}

// All sequences at once.
std::string morphkv_cache::why_not_evicted() {
    // the largest eviction that there can be, the smallest, and one that nobody is left to vote in
    const int32_t n_most  = morphkv_params_room(params);
    const int32_t n_votes = morphkv_params_votes(params) ? params.votes : 0;
    for (const auto & [n_grad, votes] : { std::pair(n_most, n_votes), std::pair(1, n_votes), std::pair(n_most, 0) }) {
        std::vector<morphkv_evict_job> jobs;
        for (uint32_t i_stream = 0; i_stream < sequences.size(); ++i_stream) {
            for (const auto & group : groups) {
                morphkv_eviction eviction{};
                eviction.policy = vote_policy();
                eviction.shape  = { params.keep, group.shape.n_distant(), n_grad, params.window, votes };
                eviction.graduates.assign(n_grad, 0);
                eviction.vote_rows.assign(votes, 0);
                jobs.push_back({ &group.side.layers, i_stream, std::move(eviction) });
            }
        }
        morphkv_runner runner(cut_engine);
        runner.check_only     = true;
        const std::string why = morphkv_run_evictions(runner, jobs).why;
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}

std::string morphkv_cache::why_not_moved(size_t i_group, uint32_t n_turned, uint32_t n_placed, bool is_recall) {
    const auto &              side = groups[i_group].side;
    std::vector<morphkv_move> moves(side.layers.size());
    for (size_t il = 0; il < moves.size(); ++il) {
        const auto & layer = side.layers[il];
        auto         rows  = [&](uint32_t n_cells) {
            return std::vector<int32_t>(n_cells * layer.n_head_kv);
        };
        if (layer.rope.is == morphkv_rope::kind::ROTATED) {
            moves[il].turned = moves[il].by = rows(n_turned);
        }
        moves[il].placed = moves[il].at = rows(n_placed);
        moves[il].filled                = rows(is_recall ? n_placed : 0);
    }
    morphkv_runner runner(engine);
    runner.check_only = true;
    return run_moves(0, i_group, moves, /*query_delta =*/is_recall ? 0 : 1, runner);
}

std::string morphkv_cache::why_not_rebased(size_t i_group) {
    for (const uint32_t n_used : sizes_up_to(groups[i_group].shape.n_limit)) {
        const std::string why = why_not_moved(i_group, n_used, 0, /*is_recall =*/false);
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}

std::string morphkv_cache::why_not_recalled(size_t i_group) {
    const auto &               group     = groups[i_group];
    const uint32_t             n_distant = group.shape.n_distant();
    morphkv_layer_floats       queries, votes;
    const std::vector<int32_t> rows(std::min(MORPHKV_RECALL_VOTES, params.votes));
    morphkv_runner             ask(cut_engine);
    ask.check_only  = true;
    std::string why = morphkv_read_votes(ask, group.side.layers, group.k_rot, 0, n_distant, vote_policy(), rows, rows,
                                         queries, votes);
    if (!why.empty()) {
        return why;
    }
    // a key comes from the archive, or is turned where that has lost it; with a rebase recent ones are turned too
    for (const bool is_recall : { true, false }) {
        const uint32_t n_recent = is_recall ? 0 : group.shape.n_limit - n_distant;
        for (const uint32_t n_placed : sizes_up_to(n_distant)) {
            why = why_not_moved(i_group, n_recent + n_distant - n_placed, n_placed, is_recall);
            if (!why.empty()) {
                return why;
            }
        }
    }
    return "";
}

std::string morphkv_cache::why_not_archived() {
    const auto & staging = archives->staging;
    std::string  why;
    for (size_t i = 0; i < groups.size() && why.empty(); ++i) {
        morphkv_runner runner(cut_engine);
        runner.check_only = true;
        why = morphkv_read_cells(runner, groups[i].side.layers, groups[i].k_rot, 0, 0,
                                 std::vector<int32_t>(staging.n_tokens), staging, groups[i].i_first, nullptr);
        why = why.empty() ? why_not_recalled(i) : why;
    }
    return why;
}

std::string morphkv_cache::why_not_computed(llama_context * lctx) {
    set_context(lctx);
    std::string why = why_not_evicted();
    for (size_t i = 0; i < groups.size() && why.empty() && rope_limit() > 0; ++i) {
        why = why_not_rebased(i);
    }
    return why;
}
