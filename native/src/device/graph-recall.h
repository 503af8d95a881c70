// What a recall asks of the device: the newest queries, their votes on the slots, and what pages of an archive get of them.
#pragma once

#include "core/search.h"
#include "device/engine.h"
#include "device/graph-evict.h"
#include "device/layers.h"

#include <cstdint>
#include <string>
#include <vector>

// Newest queries that ask, where the caller says nothing of it.
constexpr int32_t MORPHKV_RECALL_VOTES = 16;

// by layer
using morphkv_layer_floats = std::vector<std::vector<float>>;

// Of the voters: queries (n_votes, n_head*n_embd_k) as they would be `turn` (n_votes) positions on; and their votes on the
// distant slots, (n_head_kv, n_distant). Why it failed, or "".
std::string morphkv_read_votes(morphkv_runner & runner, const std::vector<morphkv_side_layer> & layers,
                               const morphkv_k_rot & k_rot, uint32_t i_stream, int32_t n_distant,
                               const morphkv_evict_policy & policy, const std::vector<int32_t> & vote_rows,
                               const std::vector<int32_t> & turn, morphkv_layer_floats & queries,
                               morphkv_layer_floats & votes);

// Scores the pages of sources for queries. Throws morphkv_error where it fails.
class morphkv_device_scorer : public morphkv_page_scorer {
public:
    morphkv_device_scorer(morphkv_engine & engine, const std::vector<morphkv_side_layer> & layers,
                          const morphkv_sources & sources, const morphkv_layer_floats & queries)
        : engine(engine),
          layers(layers),
          sources(sources),
          queries(queries) {}

    std::vector<float> by_index(size_t i_source) override;
    std::vector<float> by_rows(const std::vector<int64_t> & pages, int32_t n_skip) override;

private:
    // Adds what pages get to scores, and returns the most that one got, by layer. host: the layers i_layers with k set to rows
    // in the host's memory, n_page of them to a page; of the first, n_skip do not count. pages: by layer, where the keys
    // of each page lie, if not in k.
    std::vector<float> score(const std::vector<morphkv_side_layer> & host, const std::vector<size_t> & i_layers,
                             int32_t n_page, int32_t n_skip, std::vector<float> & scores,
                             const std::vector<std::vector<const void *>> & pages = {}) const;

    morphkv_engine &                        engine;
    const std::vector<morphkv_side_layer> & layers;
    const morphkv_sources                   sources;
    const morphkv_layer_floats &            queries;
};
