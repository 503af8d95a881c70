// Recall: archived tokens come back when the newest queries ask for them.
//
// The pages that they ask for (morphkv-choose.cpp) go into distant slots of every head, in place of the tokens that the same
// queries attend to least. The archive is asked as if all of it lay at one distance, and what is distant is placed at consecutive
// positions before the recent tokens: a model answers about what lies within the distances that it has seen most.

#include "llama/memory.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>
#include <unordered_map>

namespace {

constexpr int32_t N_PAGE    = morphkv_archive::N_PAGE;
constexpr int32_t N_VOTES   = 16;
constexpr int32_t DISTANCE  = 256;
constexpr size_t  N_LEAST   = 5;   // pages, where half of the slots have room for them
constexpr size_t  N_TENSORS = 24;  // of a layer in the graphs below, votes apart

// Of this many pages the rows of one are looked at, at least: the more there are, the more look like it by their mean.
constexpr size_t N_TO_ONE = 20;

// The k entries with the highest values, highest first; ties in their order.
std::vector<int64_t> top(const std::vector<float> & values, std::vector<int64_t> ids, size_t k) {
    k               = std::min(k, ids.size());
    const auto less = [&](int64_t a, int64_t b) {
        return values[a] != values[b] ? values[a] > values[b] : a < b;
    };
    std::partial_sort(ids.begin(), ids.begin() + k, ids.end(), less);
    ids.resize(k);
    return ids;
}

}  // namespace

morphkv_recall_params morphkv_recall_params_default(void) {
    morphkv_recall_params res{};
    res.size     = sizeof(res);
    res.votes    = 0;
    res.share    = 0.2f;
    res.distance = -1;
    res.look     = 32;
    return res;
}

std::string morphkv_cache::read_votes(llama_seq_id seq_id, const std::vector<int32_t> & rows, int32_t distance,
                                      layer_floats & queries, layer_floats & votes, morphkv_runner & runner) const {
    morphkv_evict_shape shape{};
    shape.n_distant = n_distant;
    shape.n_votes   = rows.size();

    std::vector<int32_t> turn;
    for (const int32_t row : rows) {
        turn.push_back(distance + streams[seq_id].rotary_offset - streams[seq_id].ring_pos[row]);
    }
    ggml_tensor * rot    = nullptr;
    ggml_tensor * deltas = nullptr;
    size_t        il     = 0;

    morphkv_evict_inputs inp{};
    auto                 begin = [&](morphkv_inputs & inputs) {
        inp.vote_rows = inputs.add(GGML_TYPE_I32, rows.size(), 1, rows);
        deltas        = inputs.add(GGML_TYPE_I32, rows.size(), 1, turn);
        rot           = build_input_k_rot(inputs.ctx);
        if (rot) {
            inputs.add(rot, [this](ggml_tensor * t) { set_input_k_rot(t); });
        }
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        ggml_context *            ctx = inputs.ctx;
        const morphkv_evict_layer cur = morphkv_stack_layer(ctx, { &layer }, seq_id, inputs.backend);
        ggml_tensor *             v   = morphkv_build_votes(ctx, cur, shape, vote_policy(), inp);
        ggml_build_forward_expand(gf, v);
        inputs.read(v, [&votes, i = il](const std::vector<float> & data) { votes[i] = data; });

        const bool    turns = layer.rope.is == morphkv_rope::kind::ROTATED;
        ggml_tensor * q     = ggml_get_rows(ctx, cur.ring, inp.vote_rows);
        q                   = morphkv_build_unrotated(ctx, q, layer.n_head, turns ? deltas : nullptr, layer.rope, rot);
        ggml_build_forward_expand(gf, q);
        inputs.read(q, [&queries, i = il](const std::vector<float> & data) { queries[i] = data; });
        il++;
    };
    queries.resize(side.layers.size());
    votes.resize(side.layers.size());
    return runner.run(n_max_vote_tensors(rows.size()) + N_TENSORS, begin, build);
}

morphkv_slots morphkv_cache::plan_slots(llama_seq_id seq_id, size_t i_layer, const morphkv_pages & pages,
                                        const std::vector<float> & votes) const {
    const auto &  archive = archives->of(seq_id);
    const int32_t n_keep  = streams[seq_id].n_keep;

    morphkv_slots res;
    res.before = side.get_positions(side.layers[i_layer], seq_id);
    res.after  = res.before;
    for (int32_t h = 0; h < side.layers[i_layer].n_head_kv; ++h) {
        int32_t *                            slots = res.after.data() + h * n_distant;
        std::unordered_map<int32_t, int32_t> held;
        for (uint32_t i = 0; i < n_distant; ++i) {
            held[slots[i]] = i;
        }
        std::vector<bool>    stays(n_distant, false);
        std::vector<int32_t> missing;
        for (const auto & [page, _] : pages) {
            for (int32_t j = 0; j < N_PAGE; ++j) {
                const int32_t pos = archive.pos_of(page) + j;
                const auto    it  = held.find(pos);
                if (it != held.end()) {
                    stays[it->second] = true;
                } else {
                    missing.push_back(pos);
                }
            }
        }
        // the slots that the queries attend to least
        std::vector<int64_t> free_slots;
        std::vector<float>   loss(n_distant);
        for (uint32_t i = n_keep; i < n_distant; ++i) {
            loss[i] = -votes[h * n_distant + i];
            if (!stays[i]) {
                free_slots.push_back(i);
            }
        }
        free_slots = top(loss, free_slots, missing.size());
        for (size_t i = 0; i < free_slots.size(); ++i) {
            slots[free_slots[i]] = missing[i];
        }
    }
    return res;
}

// As many pages, of `share` of the slots that can be had.
static size_t n_wanted_pages(float share, size_t n_slots) {
    const size_t n_least = std::min(N_LEAST, std::max<size_t>(n_slots / 2 / N_PAGE, 1));
    return std::min<size_t>(std::max<size_t>(share * n_slots / N_PAGE, n_least), n_slots / N_PAGE);
}

std::string morphkv_cache::why_not_recalled() const {
    layer_floats   queries, votes;
    morphkv_runner ask(lctx, layers());
    ask.check_only  = true;
    std::string why = read_votes(0, std::vector<int32_t>(std::min(N_VOTES, params.votes)), 0, queries, votes, ask);
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

morphkv_recalled morphkv_cache::recall(llama_seq_id seq_id, const morphkv_recall_params & p) {
    const int64_t t_start_us = ggml_time_us();
    auto          invalid    = [](const std::string & what) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, what);
    };
    if (!archives) {
        invalid("a recall needs an archive, and none was started");
    }
    if (p.votes < 0 || p.votes > params.votes) {
        invalid("votes must be in 0.." + std::to_string(params.votes) + ", got " + std::to_string(p.votes));
    }
    if (!(p.share > 0.0f && p.share <= 1.0f)) {
        invalid("share must be in (0, 1], got " + std::to_string(p.share));
    }
    if (p.distance < -1 || p.distance >= rope_limit()) {
        invalid("distance must be in -1.." + std::to_string(rope_limit() - 1) + ", got " + std::to_string(p.distance));
    }

    if (p.look < 1) {
        invalid("look must be at least 1, got " + std::to_string(p.look));
    }

    morphkv_recalled res{};
    res.size = sizeof(res);

    auto &               stream   = streams[seq_id];
    const auto &         archive  = archives->of(seq_id);
    const size_t         n_slots  = n_distant - stream.n_keep;
    const size_t         n_wanted = n_wanted_pages(p.share, n_slots);
    const int32_t        n_ask    = p.votes > 0 ? p.votes : std::min(N_VOTES, params.votes);
    std::vector<int32_t> rows     = vote_rows(seq_id);
    rows.erase(rows.begin(), rows.end() - std::min<size_t>(n_ask, rows.size()));
    if (!has_evicted(seq_id) || archive.n_full() == archive.n_dropped() || rows.empty() || n_wanted == 0) {
        return res;
    }
    res.n_archived = (archive.n_full() - archive.n_dropped()) * N_PAGE;

    auto failed = [&](const std::string & why) {
        throw morphkv_error(MORPHKV_STATUS_FAILED,
                            "recall failed: " + why + "; sequence " + std::to_string(seq_id) + " is unchanged");
    };
    layer_floats   queries, slot_votes;
    morphkv_runner ask(lctx, layers());
    const int32_t  distance = p.distance < 0 ? std::min(DISTANCE, rope_limit() - 1) : p.distance;
    std::string    why      = read_votes(seq_id, rows, distance, queries, slot_votes, ask);
    n_sched_uses++;
    if (!why.empty()) {
        failed(why);
    }
    const size_t  n_look = std::max<size_t>(n_wanted * p.look, (archive.n_full() - archive.n_dropped()) / N_TO_ONE);
    morphkv_pages pages;
    for (const int64_t page : choose_pages(archive, n_wanted, n_look, stream.n_keep, queries)) {
        if (auto found = archive.find_page(page)) {
            pages.emplace_back(page, std::move(found));
        }
    }
    if (pages.empty()) {
        return res;
    }
    std::vector<morphkv_slots> slots;
    for (size_t il = 0; il < side.layers.size(); ++il) {
        slots.push_back(plan_slots(seq_id, il, pages, slot_votes[il]));
    }
    res.ask_ms = (ggml_time_us() - t_start_us) / 1000.0;

    // recent tokens stay where they are, and distant ones come to stand right before them
    const llama_pos first_recent = get_cells(seq_id).pos_get(n_distant) - stream.rotary_offset;
    move_plan       plan = plan_moves(seq_id, stream.rotary_offset, first_recent - (llama_pos) n_distant, slots, pages);
    for (const auto & move : plan.layers) {
        res.n_recalled += move.filled.size();
    }

    // what to go back to
    std::vector<std::vector<uint8_t>> before;
    auto                              for_each_slice = [&](auto && f) {
        side.for_each_slice(seq_id, n_distant, f);
    };
    for_each_slice([&](ggml_tensor * t, size_t offset, size_t size) {
        before.emplace_back(size);
        ggml_backend_tensor_get(t, before.back().data(), offset, size);
    });
    morphkv_runner runner(lctx, layers());
    runner.inject_failure = inject_failure;
    try {
        why = compute_moves(seq_id, plan.layers, /*query_delta =*/0, runner);
    } catch (const std::exception & err) {
        why = err.what();
    }
    n_sched_uses++;
    if (!why.empty()) {
        size_t i = 0;
        for_each_slice(
            [&](ggml_tensor * t, size_t at, size_t size) { ggml_backend_tensor_set(t, before[i++].data(), at, size); });
        failed(why);
    }
    for (size_t il = 0; il < side.layers.size(); ++il) {
        const auto & layer = side.layers[il];
        const auto & after = slots[il].after;
        ggml_backend_tensor_set(layer.pos, after.data(), seq_id * layer.pos->nb[2], after.size() * sizeof(int32_t));
    }
    note_moves(seq_id, std::move(plan));
    stream.n_recalls++;
    stream.n_recalled += res.n_recalled;
    res.took_ms = (ggml_time_us() - t_start_us) / 1000.0;
    stream.recall_ms += res.took_ms;
    return res;
}
