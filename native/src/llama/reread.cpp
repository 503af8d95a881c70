// Recalled pages of files are read again, together (reader.h), unless they are in the slots.

#include "core/search.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama/memory.h"

#include <algorithm>
#include <map>

static constexpr int32_t N_PAGE = morphkv_archive::N_PAGE;

size_t morphkv_cache::n_best_pages(llama_seq_id seq_id, const morphkv_recall_params & p, size_t i_group) const {
    return morphkv_n_wanted_pages(p.share, groups[i_group].shape.n_distant() - sequences[seq_id].text.n_keep);
}

bool morphkv_cache::are_in_slots(llama_seq_id seq_id, const morphkv_recall_params & p, const morphkv_pages & pages,
                                 const std::set<int32_t> & serials) const {
    const auto & text    = sequences[seq_id].text;
    const auto   sources = sources_of(seq_id);
    for (size_t i = 0; i < groups.size(); ++i) {
        if (text.has_evicted() && !text.groups[i].has_evicted()) {
            continue;  // nothing comes
        }
        const size_t      n_best = std::min(pages.size(), n_best_pages(seq_id, p, i));
        std::set<int32_t> wanted;
        for (size_t j = 0; j < n_best; ++j) {
            const int32_t first = sources.serial_of(pages[j].first);
            wanted.insert(serials.lower_bound(first), serials.lower_bound(first + N_PAGE));
        }
        const auto & side = groups[i].side;
        for (const auto & layer : side.layers) {
            const auto    slots = side.get_serials(layer, seq_id);
            const int64_t n_there =
                std::count_if(slots.begin(), slots.end(), [&](int32_t serial) { return wanted.count(serial) > 0; });
            if (n_there < (int64_t) wanted.size() * layer.n_head_kv) {
                return false;
            }
        }
    }
    return true;
}

std::set<int32_t> morphkv_cache::read_again(llama_seq_id seq_id, const morphkv_recall_params & p, morphkv_pages & pages,
                                            morphkv_recalled & res) {
    const auto                                     sources = sources_of(seq_id);
    std::map<int64_t, morphkv_archive::page_ptr *> chosen;
    std::set<int32_t>                              serials;
    for (auto & [page, rows] : pages) {
        const size_t i_source = sources.source_of(page);
        if (i_source < attached.size() && page != sources.all()[i_source].first &&
            chosen.size() < morphkv_reader::N_PAGES_MAX) {
            chosen[page] = &rows;
            for (int32_t i = 0; i < N_PAGE; ++i) {
                serials.insert(sources.serial_of(page) + i);
            }
        }
    }
    if (!reader || p.reread == 0 || chosen.empty() || are_in_slots(seq_id, p, pages, serials) ||
        !engine.context()->adapters_lora_are_same(nullptr, 0, nullptr)) {
        return {};
    }
    const auto tokens_of = [&](int64_t page) {
        const auto & source = sources.all()[sources.source_of(page)];
        return source.file->get_tokens((page - source.first) * N_PAGE, N_PAGE);
    };
    try {
        std::vector<int32_t> tokens;
        for (const auto & [page, _] : chosen) {
            const auto of_page = tokens_of(page);
            tokens.insert(tokens.end(), of_page.begin(), of_page.end());
        }
        const auto first = tokens_of(sources.all()[sources.source_of(chosen.begin()->first)].first);
        const auto read  = reader->read(first[0], tokens);
        auto       next  = read.begin();
        for (auto & [_, rows] : chosen) {
            *rows = *next++;
        }
    } catch (const std::exception & err) {
        LLAMA_LOG_WARN("%s: MorphKV: recalled passages of files come as they were read: %s\n", __func__, err.what());
        return {};
    }
    res.n_reread = chosen.size() * N_PAGE;
    return serials;
}
