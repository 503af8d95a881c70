// Recall: what has gone into the archive (archiving.cpp) comes back when the newest queries ask for it.
//
// The pages that they ask for (core/search.h) go into distant slots of every head, in place of the tokens that the same
// queries attend to least. The archive is asked as if all of it lay at one rotary distance, and what is distant comes to stand at
// consecutive positions before the recent tokens: a model answers about what lies within the distances that it has seen most.

#include "core/search.h"
#include "device/graph-turn.h"
#include "llama-context.h"
#include "llama/memory.h"

#include <algorithm>
#include <set>

static constexpr int32_t N_PAGE   = morphkv_archive::N_PAGE;
static constexpr int32_t DISTANCE = 256;

morphkv_recall_params morphkv_recall_params_default(void) {
    morphkv_recall_params res{};
    res.size     = sizeof(res);
    res.votes    = 0;
    res.share    = 0.2f;
    res.distance = -1;
    res.look     = 32;
    res.need     = 0.4f;
    res.reread   = 1;
    return res;
}

[[noreturn]] static void invalid(const std::string & what) {
    throw morphkv_error(MORPHKV_STATUS_INVALID, what);
}

static void check(const morphkv_recall_params & p, int32_t n_votes, int32_t rope_limit) {
    if (p.votes < 0 || p.votes > n_votes) {
        invalid("votes must be in 0.." + std::to_string(n_votes) + ", got " + std::to_string(p.votes));
    }
    if (!(p.share > 0.0f && p.share <= 1.0f)) {
        invalid("share must be in (0, 1], got " + std::to_string(p.share));
    }
    if (p.distance < -1 || p.distance >= rope_limit) {
        invalid("distance must be in -1.." + std::to_string(rope_limit - 1) + ", got " + std::to_string(p.distance));
    }
    if (p.look < 1) {
        invalid("look must be at least 1, got " + std::to_string(p.look));
    }
    if (!(p.need >= 0.0f)) {
        invalid("need must not be negative, got " + std::to_string(p.need));
    }
    if (p.reread != 0 && p.reread != 1) {
        invalid("reread must be 0 or 1, got " + std::to_string(p.reread));
    }
}

void morphkv_cache::check_recall(const morphkv_recall_params & p) const {
    if (!archives) {
        invalid("a recall needs an archive, and none was started");
    }
    check(p, params.votes, rope_limit());
}

static void fail_recall(llama_seq_id seq_id, const std::string & why) {
    throw morphkv_error(MORPHKV_STATUS_FAILED,
                        "recall failed: " + why + "; sequence " + std::to_string(seq_id) + " is unchanged");
}

morphkv_sources morphkv_cache::sources_of(llama_seq_id seq_id) const {
    return archives ? morphkv_sources(archives->of(seq_id), attached) : morphkv_sources(nullptr);
}

int64_t morphkv_cache::n_archived_pages(llama_seq_id seq_id) const {
    return sequences[seq_id].text.has_evicted() ? sources_of(seq_id).n_pages() : 0;
}

morphkv_cache::asked morphkv_cache::ask(llama_seq_id seq_id, const morphkv_recall_params & p, int32_t n_ask) {
    const auto &         text   = sequences[seq_id].text;
    std::vector<int32_t> voters = text.voters();
    voters.erase(voters.begin(), voters.end() - std::min<size_t>(n_ask, voters.size()));

    asked         res;
    const int32_t distance = p.distance < 0 ? std::min(DISTANCE, rope_limit() - 1) : p.distance;
    for (const int32_t serial : voters) {
        res.rows.push_back(text.query_row(serial));
        res.turn.push_back(distance + text.rotary_offset - text.pos_of(serial));
    }
    res.n_votes = voters.size();
    if (voters.empty()) {
        return res;
    }
    for (const auto & group : groups) {
        morphkv_layer_floats queries, votes;
        morphkv_runner       runner(cut_engine);
        const std::string    why =
            morphkv_read_votes(runner, group.side.layers, group.k_rot, seq_id, group.shape.n_distant(), vote_policy(),
                               res.rows, res.turn, queries, votes);
        if (!why.empty()) {
            fail_recall(seq_id, why);
        }
        std::move(queries.begin(), queries.end(), std::back_inserter(res.queries));
        std::move(votes.begin(), votes.end(), std::back_inserter(res.votes));
    }
    return res;
}

morphkv_recalled morphkv_cache::recall(llama_seq_id seq_id, const morphkv_recall_params & p) {
    const int64_t t_start_us = ggml_time_us();
    check_recall(p);

    morphkv_recalled res{};
    res.size = sizeof(res);

    if (!attached.empty() && !sequences[seq_id].text.has_evicted() && open_slots(seq_id, p, t_start_us, res)) {
        return res;
    }
    const auto &  text     = sequences[seq_id].text;
    const auto    sources  = sources_of(seq_id);
    const size_t  n_wanted = n_wanted_pages(seq_id, p);
    const int64_t n_pages  = n_archived_pages(seq_id);
    if (n_pages == 0 || n_wanted == 0) {
        return res;
    }
    const asked now = ask(seq_id, p, p.votes > 0 ? p.votes : std::min(MORPHKV_RECALL_VOTES, params.votes));
    if (now.n_votes == 0) {
        return res;
    }
    res.n_archived               = n_pages * N_PAGE;
    const size_t          n_look = morphkv_n_pages_to_look_at(n_wanted, p.look, n_pages);
    const auto            layers = cut_layers();
    morphkv_device_scorer scorer(engine, layers, sources, now.queries);
    bring(seq_id, p, morphkv_choose_pages(sources, n_wanted, n_look, text.n_keep, scorer), now, t_start_us, res);
    return res;
}

size_t morphkv_cache::n_wanted_pages(llama_seq_id seq_id, const morphkv_recall_params & p) const {
    return morphkv_n_wanted_pages(p.share, params.capacity - params.window - sequences[seq_id].text.n_keep);
}

void morphkv_cache::bring(llama_seq_id seq_id, const morphkv_recall_params & p, const std::vector<int64_t> & chosen,
                          const asked & now, int64_t t_start_us, morphkv_recalled & res) {
    auto &        text    = sequences[seq_id].text;
    const auto    sources = sources_of(seq_id);
    morphkv_pages pages;
    for (const int64_t page : chosen) {
        if (auto found = sources.find_page(page)) {
            pages.emplace_back(page, std::move(found));
        }
    }
    if (pages.empty()) {
        return;
    }
    res.ask_ms = (ggml_time_us() - t_start_us) / 1000.0;

    const std::set<int32_t> reread = read_again(seq_id, p, pages, res);

    struct group_moves {
        size_t                     i_group;
        std::vector<morphkv_slots> slots;
        morphkv_pages              pages;
        morphkv_move_plan          plan;
    };
    std::vector<group_moves> all;
    bool                     is_new = false;
    for (size_t i = 0; i < groups.size(); ++i) {
        const auto & group = groups[i];
        const auto & held  = text.groups[i];
        if (!held.has_evicted()) {
            continue;  // all is there
        }
        // the best, in small groups fewer
        morphkv_pages best(pages.begin(), pages.begin() + std::min(pages.size(), n_best_pages(seq_id, p, i)));
        group_moves   moved{ i, {}, {}, {} };
        for (size_t il = 0; il < group.side.layers.size(); ++il) {
            const auto & layer  = group.side.layers[il];
            auto         before = group.side.get_serials(layer, seq_id);
            auto         votes  = now.votes[group.i_first + il];
            for (size_t j = 0; j < before.size(); ++j) {
                if (reread.count(before[j]) > 0) {
                    before[j] = -1;
                    votes[j]  = -1.0f;  // less than any: it makes room first
                }
            }
            moved.slots.push_back(morphkv_choose_slots(sources, best, before, votes, layer.n_head_kv, text.n_keep));
            is_new |= moved.slots.back().before != moved.slots.back().after;
        }
        moved.pages = std::move(best);
        all.push_back(std::move(moved));
    }
    if (!is_new) {
        // all that is asked for is there, and stays where it is
        text.n_recalls++;
        res.took_ms = (ggml_time_us() - t_start_us) / 1000.0;
        sequences[seq_id].recall_ms += res.took_ms;
        return;
    }
    for (auto & moved : all) {
        const auto &  held         = text.groups[moved.i_group];
        // recent tokens stay where they are, and distant ones come to stand right before them
        const int32_t first_recent = text.pos_of(held.first_recent()) - text.rotary_offset;
        // an image's tokens share a position, so that there may be fewer positions than slots
        const int32_t base         = std::max(0, first_recent - held.shape.n_distant());
        moved.plan = plan_moves(seq_id, moved.i_group, text.rotary_offset, base, moved.slots, moved.pages);
        for (const auto & move : moved.plan.layers) {
            res.n_recalled += move.filled.size();
        }
    }

    // what to go back to
    std::vector<morphkv_slice> changing;
    for (const auto & moved : all) {
        const auto & group = groups[moved.i_group];
        for (const auto & slice : group.side.slices(seq_id, group.shape.n_distant())) {
            changing.push_back(slice);
        }
    }
    std::vector<std::vector<uint8_t>> before;
    for (const auto & slice : changing) {
        before.emplace_back(slice.size);
        ggml_backend_tensor_get(slice.tensor, before.back().data(), slice.offset, slice.size);
    }
    morphkv_runner runner(engine);
    runner.inject_failure = inject_failure;
    std::string why;
    const bool  carries = get_side().carries_sums();
    for (size_t i = 0; i < all.size() && why.empty(); ++i) {
        try {
            why = run_moves(seq_id, all[i].i_group, all[i].plan.layers, /*query_delta =*/0, runner);
        } catch (const std::exception & err) {
            why = err.what();
        }
    }
    for (size_t i = 0; i < all.size() && why.empty() && carries; ++i) {
        // tokens that have come begin with what those that ask for them give them
        auto &               group = groups[all[i].i_group];
        morphkv_layer_floats queries, votes;
        why = morphkv_read_votes(runner, group.side.layers, group.k_rot, seq_id, group.shape.n_distant(), vote_policy(),
                                 now.rows, now.turn, queries, votes);
        for (size_t il = 0; il < votes.size() && why.empty(); ++il) {
            const auto & slots = all[i].slots[il];
            group.side.set_sums_of_new(group.side.layers[il], seq_id, slots.before, slots.after, votes[il]);
        }
    }
    if (!why.empty()) {
        synchronize();
        for (size_t i = 0; i < changing.size(); ++i) {
            ggml_backend_tensor_set(changing[i].tensor, before[i].data(), changing[i].offset, changing[i].size);
        }
        fail_recall(seq_id, why);
    }
    for (auto & moved : all) {
        auto & side = groups[moved.i_group].side;
        for (size_t il = 0; il < side.layers.size(); ++il) {
            side.set_serials(side.layers[il], seq_id, moved.slots[il].after);
        }
        if (moved.i_group == GROUP) {
            text.note_recall(GROUP, moved.plan.base, std::move(moved.plan.ranked), res.n_recalled);
        } else {
            text.note_placed(moved.i_group, moved.plan.base, std::move(moved.plan.ranked));
        }
    }
    for (const auto & moved : all) {
        note_brought(seq_id, pages, moved.slots);
    }
    if (res.n_recalled > 0) {
        std::vector<int32_t> serials;
        for (const auto & page : pages) {
            // what files hold is below 0, and no part of the text
            if (page.first >= 0) {
                serials.push_back(sources.serial_of(page.first));
            }
        }
        text.note_came_back(serials);
    }
    res.took_ms = (ggml_time_us() - t_start_us) / 1000.0;
    sequences[seq_id].recall_ms += res.took_ms;
}
