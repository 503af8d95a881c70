// Archive and recall: what a cut pushes out of the window goes to the host, and comes back when the newest queries ask for it.
//
// The pages that they ask for (core/search.h) go into distant slots of every head, in place of the tokens that the same
// queries attend to least. The archive is asked as if all of it lay at one rotary distance, and what is distant comes to stand at
// consecutive positions before the recent tokens: a model answers about what lies within the distances that it has seen most.

#include "core/search.h"
#include "core/types.h"
#include "device/graph-archive.h"
#include "device/graph-turn.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama/memory.h"

#include <algorithm>

static constexpr int32_t  N_PAGE   = morphkv_archive::N_PAGE;
static constexpr int32_t  DISTANCE = 256;
static constexpr uint32_t N_CHUNK  = 128;  // tokens that are archived by one graph

// Of this many pages the rows of one are looked at, at least: the more there are, the more look like it by their mean.
static constexpr size_t N_TO_ONE = 20;

morphkv_archive_params morphkv_archive_params_default(void) {
    morphkv_archive_params res{};
    res.size      = sizeof(res);
    res.type_k    = -1;
    res.type_v    = -1;
    res.max_bytes = 2ull << 30;
    return res;
}

morphkv_recall_params morphkv_recall_params_default(void) {
    morphkv_recall_params res{};
    res.size     = sizeof(res);
    res.votes    = 0;
    res.share    = 0.2f;
    res.distance = -1;
    res.look     = 32;
    res.need     = 0.4f;
    return res;
}

[[noreturn]] static void invalid(const std::string & what) {
    throw morphkv_error(MORPHKV_STATUS_INVALID, what);
}

//
// archive
//

morphkv_page_layout morphkv_cache::archive_layout(const morphkv_archive_params & p) const {
    auto type_of = [&](int32_t type, ggml_type own, const char * name) {
        if (type >= 0 && !morphkv_is_row_type((ggml_type) type)) {
            invalid(std::string(name) + " must be one of " + morphkv_row_type_names() + ", got " +
                    std::to_string(type));
        }
        return type < 0 ? own : (ggml_type) type;
    };
    const auto          layers = cut_layers();
    const auto &        first  = layers.front();
    const ggml_type     own_v  = first.v ? first.v->type : first.k->type;
    morphkv_page_layout res(type_of(p.type_k, first.k->type, "type_k"), type_of(p.type_v, own_v, "type_v"));
    for (const auto & layer : layers) {
        const int64_t n_embd_k = layer.k->ne[0] / layer.n_head_kv;
        const int64_t n_embd_v = layer.v ? layer.v->ne[0] / layer.n_head_kv : 0;  // 0: it is a part of K (MLA)
        if (n_embd_k % ggml_blck_size(res.type_k) != 0 || n_embd_v % ggml_blck_size(res.type_v) != 0) {
            invalid("type_k and type_v must fit heads of " + std::to_string(n_embd_k) + " and " +
                    std::to_string(n_embd_v) + " values, got " + ggml_type_name(res.type_k) + " and " +
                    ggml_type_name(res.type_v));
        }
        res.add_layer(layer.n_head_kv, n_embd_k, n_embd_v);
    }
    return res;
}

static morphkv_archives::alloc_fn alloc_from(ggml_backend_buffer_type_t buft) {
    return [buft](size_t n_bytes) -> std::shared_ptr<char> {
        std::shared_ptr<ggml_backend_buffer> buffer(ggml_backend_buft_alloc_buffer(buft, n_bytes),
                                                    ggml_backend_buffer_free);
        return buffer ? std::shared_ptr<char>(buffer, (char *) ggml_backend_buffer_get_base(buffer.get())) : nullptr;
    };
}

void morphkv_cache::start_archive(llama_context * lctx, const morphkv_archive_params & p) {
    engine.set(lctx);
    for (llama_seq_id s = 0; s < (llama_seq_id) sequences.size(); ++s) {
        if (n_used(s) > 0) {
            invalid("an archive must be started before anything is decoded, but sequence " + std::to_string(s) +
                    " holds " + std::to_string(n_used(s)) + " tokens");
        }
    }
    if (archives) {
        invalid("an archive can be started once");
    }
    if (rope_limit() == 0) {
        const auto * layer = find_unknown_rope();
        throw morphkv_error(
            MORPHKV_STATUS_UNSUPPORTED,
            "MorphKV cannot archive for this context: " +
                (layer ? "layer " + std::to_string(layer->il) + " rotates its keys in a way that cannot be turned back"
                       : std::string("positions are not rebased (rope_limit)")));
    }
    const morphkv_page_layout layout    = archive_layout(p);
    const uint64_t            max_bytes = p.max_bytes > 0 ? std::max<uint64_t>(1, p.max_bytes / sequences.size()) : 0;

    std::vector<std::unique_ptr<morphkv_archive>> all;
    for (size_t s = 0; s < sequences.size(); ++s) {
        const std::string path  = p.path ? p.path + (s > 0 ? "." + std::to_string(s) : std::string()) : std::string();
        auto              store = p.path ? morphkv_page_store_file(path, layout) : morphkv_page_store_ram();
        all.push_back(std::make_unique<morphkv_archive>(layout, std::move(store), max_bytes));
    }
    const auto layers = cut_layers();
    const auto elsewhere =
        std::find_if(layers.begin(), layers.end(), [](const morphkv_side_layer & layer) { return !layer.is_on_cpu(); });
    const bool has_thread = elsewhere != layers.end();

    ggml_backend_buffer_type_t buft = ggml_backend_cpu_buffer_type();
    if (has_thread) {
        ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(elsewhere->k->buffer));
        if (ggml_backend_buffer_type_t for_device = ggml_backend_dev_host_buffer_type(dev)) {
            buft = for_device;
        }
    }
    auto tell = [](int32_t i_text, const std::string & news) {
        LLAMA_LOG_WARN("%s: MorphKV: the archive of sequence %d: %s\n", "tell", i_text, news.c_str());
    };
    // fewer bytes to read where the archive has no use for more
    const ggml_type            type_k = layout.type_k == GGML_TYPE_F16 ? GGML_TYPE_F16 : GGML_TYPE_F32;
    const morphkv_side_layer & first  = layers.front();
    const morphkv_staging      staging(layout, N_CHUNK, type_k, first.v ? first.v->type : layout.type_v);
    keeps_originals = p.path != nullptr;
    archives        = std::make_unique<morphkv_archives>(std::move(all), staging, alloc_from(buft), tell, has_thread);
    const std::string why = why_not_archived();
    if (!why.empty()) {
        archives.reset();
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "MorphKV cannot archive for this context: " + why);
    }
}

void morphkv_cache::archive_old(llama_seq_id seq_id, int32_t end) {
    const int64_t t_start_us = ggml_time_us();
    const auto &  text       = sequences[seq_id].text;
    const auto &  leading    = text.groups[GROUP];
    auto &        archive    = archives->of(seq_id);
    if (!leading.has_evicted()) {
        archive.clear();  // what another process left in its file is of another text
    }
    if (!archive.why_stopped().empty()) {
        return;
    }
    int32_t     serial = leading.has_evicted() ? leading.first_recent() : 0;
    std::string why;
    if (archive.end() >= 0 && serial < end && serial != archive.end()) {
        why = "tokens before position " + std::to_string(text.pos_of(serial)) + " are not in it";
    }
    for (; why.empty() && serial < end; serial += N_CHUNK) {
        const int32_t        n = std::min<int32_t>(N_CHUNK, end - serial);
        std::vector<int32_t> turn;
        for (int32_t j = 0; j < n; ++j) {
            turn.push_back(text.rotary_offset - text.pos_of(serial + j));
        }
        try {
            char * rows = archives->free_rows();
            for (size_t i = 0; i < groups.size() && why.empty(); ++i) {
                morphkv_runner runner(engine);
                // in each group they are recent, or all is there
                why = morphkv_read_cells(runner, groups[i].side.layers, groups[i].k_rot, seq_id,
                                         serial - text.groups[i].n_evicted, turn, archives->staging, groups[i].i_first,
                                         rows);
            }
        } catch (const std::exception & err) {
            why = err.what();
        }
        if (why.empty()) {
            archives->append(seq_id, serial, n);
        }
    }
    if (!why.empty()) {
        archives->stop(seq_id, why);
    }
    archive_ms += (ggml_time_us() - t_start_us) / 1000.0;
}

//
// recall
//

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
        morphkv_runner       runner(engine);
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
    const size_t          n_look = std::max<size_t>(n_wanted * p.look, n_pages / N_TO_ONE);
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

    struct group_moves {
        size_t                     i_group;
        std::vector<morphkv_slots> slots;
        morphkv_move_plan          plan;
    };
    std::vector<group_moves> all;
    for (size_t i = 0; i < groups.size(); ++i) {
        const auto & group     = groups[i];
        const auto & held      = text.groups[i];
        const auto   n_distant = held.shape.n_distant();
        if (!held.has_evicted()) {
            continue;  // all is there
        }
        // the best, in small groups fewer
        morphkv_pages best(pages.begin(),
                           pages.begin() +
                               std::min(pages.size(), morphkv_n_wanted_pages(p.share, n_distant - text.n_keep)));
        group_moves   moved{ i, {}, {} };
        for (size_t il = 0; il < group.side.layers.size(); ++il) {
            const auto & layer = group.side.layers[il];
            moved.slots.push_back(morphkv_choose_slots(sources, best, group.side.get_serials(layer, seq_id),
                                                       now.votes[group.i_first + il], layer.n_head_kv, text.n_keep));
        }
        // recent tokens stay where they are, and distant ones come to stand right before them
        const int32_t first_recent = text.pos_of(held.first_recent()) - text.rotary_offset;
        // an image's tokens share a position, so that there may be fewer positions than slots
        const int32_t base         = std::max(0, first_recent - n_distant);
        moved.plan                 = plan_moves(seq_id, i, text.rotary_offset, base, moved.slots, best);
        for (const auto & move : moved.plan.layers) {
            res.n_recalled += move.filled.size();
        }
        all.push_back(std::move(moved));
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
