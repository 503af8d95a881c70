// A cut, and a rebase: what a text says is due, the device's part, and what llama.cpp's cells have to know of it afterwards.
//
// Rebase: callers' positions go on for ever, those that RoPE sees stay below a limit. When the next rotary position would reach
// it, all keys and the queries in the ring are turned. The recent tokens and those that came up to n_near() before them keep
// their distances; older ones come to stand at 0, 1, 2, ... in their order, head by head. Only then: closing gaps at every
// eviction was measurably worse, and so was closing all of them, which puts the oldest tokens right before the recent ones
// (native/README.md).

#include "device/evict.h"
#include "device/graph-turn.h"
#include "device/moves.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama/memory.h"

#include <algorithm>
#include <cstring>

// A GPU takes longer to start operations than to compute them: one more sequence costs little in a graph that has to start anyway,
// and those that have been cut together once are due together from then on. On CPUs, and on servers, of which it is not known
// what they compute with, each is cut as if it were alone.
int32_t morphkv_cache::n_early() const {
    const auto & layers   = get_side().layers;
    const bool   is_alone = std::any_of(layers.begin(), layers.end(), [](const morphkv_side_layer & layer) {
        return layer.is_on_cpu() || strncmp(ggml_backend_buffer_name(layer.k->buffer), "RPC", 3) == 0;
    });
    return is_alone ? 0 : params.interval / 4;
}

// A sequence that is changed in part is cleared: no right state is left of it.
bool morphkv_cache::fail(const char * what, llama_seq_id seq_id, const std::string & why, bool has_changed) {
    if (has_changed) {
        clear_sequence(seq_id);
    }
    const std::string sentence = std::string(what) + " failed: " + why + "; sequence " + std::to_string(seq_id) +
                                 (has_changed ? " was half changed and has been cleared" : " is unchanged");
    LLAMA_LOG_ERROR("%s: MorphKV: %s\n", __func__, sentence.c_str());
    morphkv_error_set(MORPHKV_STATUS_FAILED, sentence.c_str());
    return false;
}

morphkv_evict_policy morphkv_cache::vote_policy() const {
    return { (morphkv_policy) params.policy, (morphkv_fusion) params.fusion, morphkv_params_carried(params) };
}

morphkv_evict_job morphkv_cache::evict_job(llama_seq_id seq_id, size_t i_group) const {
    const auto & text = sequences[seq_id].text;
    const auto & held = text.groups[i_group];

    morphkv_eviction eviction{};
    eviction.policy = vote_policy();
    if (morphkv_params_votes(params)) {
        for (const int32_t serial : text.voters()) {
            eviction.vote_rows.push_back(text.query_row(serial));
        }
    }
    auto & shape    = eviction.shape;
    shape.n_keep    = text.n_keep;
    shape.n_distant = held.shape.n_distant();
    shape.n_grad    = text.n_used(i_group) - held.shape.capacity;
    shape.n_window  = params.window;
    shape.n_votes   = eviction.vote_rows.size();
    GGML_ASSERT(shape.n_grad > 0);
    for (int32_t i = 0; i < shape.n_grad; ++i) {
        eviction.graduates.push_back(held.serial_in(shape.n_distant + i));
    }
    eviction.seed       = params.seed;
    eviction.i_eviction = held.n_evictions;
    return { &groups[i_group].side.layers, (uint32_t) seq_id, std::move(eviction) };
}

bool morphkv_cache::cut(const std::vector<llama_seq_id> & seq_ids) {
    if (seq_ids.empty()) {
        return true;
    }
    const int64_t t_start_us = ggml_time_us();

    for (const auto & layer : cut_layers()) {
        if (layer.kq_scale == 0.0f) {
            return fail("eviction", seq_ids[0],
                        "layer " + std::to_string(layer.il) +
                            " attends without showing its queries, so this architecture cannot be served",
                        false);
        }
    }

    struct due {
        llama_seq_id        seq_id;
        std::vector<size_t> over;
        int32_t             archive_end;
        size_t              first_job;
    };
    std::vector<due>               all;
    std::vector<morphkv_evict_job> jobs;
    for (const llama_seq_id seq_id : seq_ids) {
        const auto & text = sequences[seq_id].text;
        all.push_back({ seq_id, text.groups_over_capacity(), archives ? archives->of(seq_id).end() : 0, jobs.size() });
        if (archives) {
            archive_old(seq_id, text.n_tokens() - params.window);
        }
        for (const size_t i : all.back().over) {
            if (!text.groups[i].has_evicted()) {
                synchronize();
                groups[i].side.set_first_serials(seq_id);
            }
            jobs.push_back(evict_job(seq_id, i));
        }
    }

    morphkv_runner runner(cut_engine);
    runner.inject_failure = inject_failure;
    const auto   res      = morphkv_run_evictions(runner, jobs);
    const double took_ms  = (ggml_time_us() - t_start_us) / 1000.0;
    evict_ms += took_ms;

    bool is_whole = true;
    for (const auto & cur : all) {
        seq_evict_ms[cur.seq_id] += took_ms / all.size();
        if (res.n_done < cur.first_job + cur.over.size()) {
            if (archives) {
                archives->of(cur.seq_id).truncate(cur.archive_end);
            }
            is_whole = fail("eviction", cur.seq_id, res.why, res.n_begun > cur.first_job);
            continue;
        }
        // the graduates' cells are free, the window's stand at the start of the recent region
        auto & text = sequences[cur.seq_id].text;
        for (const size_t i : cur.over) {
            const morphkv_cut_cells cells(groups[i], cur.seq_id, text.n_used(i));
            text.note_cut(i);
            cells.set(text, i, n_pos);
        }
    }
    return is_whole;
}

//
// rebase
//

static float bits_of(ggml_type type) {
    return 8.0f * ggml_type_size(type) / ggml_blck_size(type);
}

bool morphkv_cache::is_archive_exact(llama_seq_id seq_id, size_t i_group) const {
    return archives && bits_of(archives->of(seq_id).layout.type_k) >= bits_of(groups[i_group].side.layers[0].k->type);
}

std::vector<morphkv_moved_layer> morphkv_cache::moved_layers(size_t i_group) const {
    std::vector<morphkv_moved_layer> res;
    for (const auto & layer : groups[i_group].side.layers) {
        res.push_back({ layer.n_head_kv, layer.rope.is == morphkv_rope::kind::ROTATED });
    }
    return res;
}

morphkv_move_plan morphkv_cache::plan_moves(llama_seq_id seq_id, size_t i_group, int32_t offset, int32_t base,
                                            const std::vector<morphkv_slots> & slots, const morphkv_pages & pages) {
    auto & originals = sequences[seq_id].originals;
    if (keeps_originals) {
        originals.resize(groups.size());
    }
    return morphkv_plan_moves(sequences[seq_id].text, i_group, moved_layers(i_group), slots, pages, sources_of(seq_id),
                              is_archive_exact(seq_id, i_group), keeps_originals ? &originals[i_group] : nullptr,
                              offset, base, groups[i_group].i_first);
}

// Windowed layers are turned with the first group.
std::string morphkv_cache::run_moves(llama_seq_id seq_id, size_t i_group, const std::vector<morphkv_move> & moves,
                                     int32_t query_delta, morphkv_runner & runner) {
    const auto &                group  = groups[i_group];
    const morphkv_page_layout * layout = archives ? &archives->of(seq_id).layout : nullptr;
    if (!window || i_group != GROUP) {
        return morphkv_run_moves(runner, group.side.layers, group.k_rot, nullptr, seq_id, moves, layout, query_delta);
    }
    const morphkv_turned_window turned = { window->layers, window->k_rot,
                                           sequences[seq_id].text.windowed->n_spanned() };
    return morphkv_run_moves(runner, group.side.layers, group.k_rot, &turned, seq_id, moves, layout, query_delta);
}

bool morphkv_cache::rebase(llama_seq_id seq_id) {
    auto &        text   = sequences[seq_id].text;
    const int32_t offset = text.rebase_offset(rope_limit());

    synchronize();
    morphkv_runner runner(engine);
    runner.inject_failure = inject_failure;
    std::vector<std::vector<int32_t>> ranked;
    std::string                       why;
    for (size_t i = 0; i < groups.size() && why.empty(); ++i) {
        const auto &               side = groups[i].side;
        std::vector<morphkv_slots> slots;
        for (size_t il = 0; text.groups[i].has_evicted() && il < side.layers.size(); ++il) {
            const auto serials = side.get_serials(side.layers[il], seq_id);
            slots.push_back({ serials, serials });
        }
        try {
            auto plan = plan_moves(seq_id, i, offset, /*base =*/0, slots, {});
            why       = run_moves(seq_id, i, plan.layers, text.rotary_offset - offset, runner);
            ranked.push_back(std::move(plan.ranked));
        } catch (const std::exception & err) {
            why = err.what();
        }
    }
    if (!why.empty()) {
        return fail("rebase", seq_id, why, runner.has_changed);
    }
    text.note_rebase(offset, std::move(ranked));
    return true;
}
