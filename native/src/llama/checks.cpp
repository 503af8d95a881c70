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

std::string morphkv_cache::why_not_evicted() {
    morphkv_eviction eviction{};
    auto &           shape = eviction.shape;
    eviction.policy        = vote_policy();
    shape.n_keep           = params.keep;
    shape.n_distant        = n_distant;
    shape.n_window         = params.window;

    // the largest eviction that there can be, the smallest, and one that nobody is left to vote in
    const int32_t n_most  = n_limit(params) - params.capacity;
    const int32_t n_votes = params.policy == MORPHKV_POLICY_MORPHKV ? params.votes : 0;
    for (const auto & [n_grad, votes] : { std::pair(n_most, n_votes), std::pair(1, n_votes), std::pair(n_most, 0) }) {
        shape.n_grad  = n_grad;
        shape.n_votes = votes;
        eviction.graduates.assign(n_grad, 0);
        eviction.vote_rows.assign(votes, 0);
        morphkv_runner runner(engine);
        runner.check_only     = true;
        const std::string why = morphkv_run_eviction(runner, side.layers, 0, eviction);
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}

std::string morphkv_cache::why_not_moved(uint32_t n_turned, uint32_t n_placed, bool is_recall) {
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
    return run_moves(0, moves, /*query_delta =*/is_recall ? 0 : 1, runner);
}

std::string morphkv_cache::why_not_rebased() {
    for (const uint32_t n_used : sizes_up_to(n_limit(params))) {
        const std::string why = why_not_moved(n_used, 0, /*is_recall =*/false);
        if (!why.empty()) {
            return why;
        }
    }
    return "";
}

std::string morphkv_cache::why_not_recalled() {
    morphkv_layer_floats       queries, votes;
    const std::vector<int32_t> rows(std::min(MORPHKV_RECALL_VOTES, params.votes));
    morphkv_runner             ask(engine);
    ask.check_only = true;
    std::string why =
        morphkv_read_votes(ask, side.layers, k_rot, 0, n_distant, vote_policy(), rows, rows, queries, votes);
    if (!why.empty()) {
        return why;
    }
    // a key comes from the archive, or is turned where that has lost it; with a rebase recent ones are turned too
    for (const bool is_recall : { true, false }) {
        const uint32_t n_recent = is_recall ? 0 : n_limit(params) - n_distant;
        for (const uint32_t n_placed : sizes_up_to(n_distant)) {
            why = why_not_moved(n_recent + n_distant - n_placed, n_placed, is_recall);
            if (!why.empty()) {
                return why;
            }
        }
    }
    return "";
}

std::string morphkv_cache::why_not_archived() {
    const auto &   staging = archives->staging;
    morphkv_runner runner(engine);
    runner.check_only = true;
    const std::string why =
        morphkv_read_cells(runner, side.layers, k_rot, 0, 0, std::vector<int32_t>(staging.n_tokens), staging, nullptr);
    return why.empty() ? why_not_recalled() : why;
}

std::string morphkv_cache::why_not_computed(llama_context * lctx) {
    engine.set(lctx);
    std::string why = why_not_evicted();
    return why.empty() && rope_limit() > 0 ? why_not_rebased() : why;
}
