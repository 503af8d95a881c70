// Recall while a text is written. A prompt's recalls bring what its question asks for; what an answer asks for shows while it is
// written, and what it repeats is longer than what they bring.

#include "core/follow.h"

#include "core/search.h"
#include "llama/memory.h"

#include "ggml.h"

#include <algorithm>

static constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

// Pages whose rows a search looks at for each that is wanted: fewer than a prompt's, as there is another one soon.
static constexpr size_t N_LOOK = 4;

// Of the first pages that are wanted this many have to be there, but for one token in N_SPARED of all layers and heads.
static constexpr size_t  N_FIRST  = 3;
static constexpr int64_t N_SPARED = 8;

bool morphkv_cache::is_follow_due(llama_seq_id seq_id) const {
    return morphkv_follow_when(sequences[seq_id].text, GROUP).looks;
}

bool morphkv_cache::are_there(const std::vector<int64_t> & pages, const std::vector<layer_slots> & slots,
                              const morphkv_sources & sources) const {
    int64_t n_missing = 0, n_all = 0;
    for (size_t i = 0; i < std::min(N_FIRST, pages.size()); ++i) {
        const int32_t first = sources.serial_of(pages[i]);
        for (const auto & layer : slots) {
            const int64_t n = layer.n_head_kv * N_PAGE;
            n_all += n;
            n_missing += n - std::count_if(layer.serials.begin(), layer.serials.end(),
                                           [&](int32_t serial) { return serial >= first && serial < first + N_PAGE; });
        }
    }
    return n_missing * N_SPARED <= n_all;
}

morphkv_recalled morphkv_cache::follow(llama_seq_id seq_id, const morphkv_recall_params & p, int32_t & n_recalls) {
    const int64_t    t_start_us = ggml_time_us();
    morphkv_recalled res{};
    res.size = sizeof(res);

    const auto &  text     = sequences[seq_id].text;
    const auto    sources  = sources_of(seq_id);
    const size_t  n_wanted = n_wanted_pages(seq_id, p);
    const int64_t n_pages  = n_archived_pages(seq_id);
    if (n_pages == 0 || n_wanted == 0) {
        return res;
    }
    const asked now = ask(seq_id, p, std::min(MORPHKV_FOLLOW_VOTES, p.votes > 0 ? p.votes : params.votes));
    if (now.n_votes == 0) {
        return res;
    }
    morphkv_page_uses        uses;
    std::vector<layer_slots> slots;
    for (size_t i = 0; i < groups.size(); ++i) {
        const auto & group = groups[i];
        for (size_t il = 0; text.groups[i].has_evicted() && il < group.side.layers.size(); ++il) {
            const auto & layer = group.side.layers[il];
            slots.push_back({ layer.n_head_kv, group.side.get_serials(layer, seq_id) });
            morphkv_add_page_uses(sources, slots.back().serials, now.votes[group.i_first + il], layer.n_head_kv,
                                  now.n_votes, text.n_keep, uses);
        }
    }
    std::vector<int64_t> pages = morphkv_following_pages(sources, uses, p.need, n_wanted);
    if (pages.empty() && morphkv_follow_when(text, GROUP).searches) {
        const auto            layers = cut_layers();
        morphkv_device_scorer scorer(engine, layers, sources, now.queries);
        pages = morphkv_choose_pages(sources, n_wanted, n_wanted * N_LOOK, text.n_keep, scorer, p.need * now.n_votes);
    }
    if (!pages.empty() && !are_there(pages, slots, sources)) {
        res.n_archived                = n_pages * N_PAGE;
        morphkv_recall_params as_read = p;
        as_read.reread                = 0;  // an answer is not to wait for it
        bring(seq_id, as_read, pages, now, t_start_us, res);
        n_recalls = 1;
    } else {
        sequences[seq_id].recall_ms += (ggml_time_us() - t_start_us) / 1000.0;
    }
    return res;
}
