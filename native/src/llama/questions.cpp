// What hosts ask a cache.

#include "device/kernels.h"
#include "llama/memory.h"

#include <algorithm>

std::map<ggml_backend_buffer_type_t, size_t> morphkv_cache::memory_breakdown() const {
    auto res = kv_breakdown();
    for (const auto & group : groups) {
        group.side.add_breakdown(res);
    }
    cut_engine.add_breakdown(res);
    return res;
}

std::map<ggml_backend_buffer_type_t, size_t> morphkv_cache::kv_breakdown() const {
    auto res = llama_kv_cache::memory_breakdown();
    auto add = [&res](const llama_kv_cache * cache) {
        for (const auto & [buft, n_bytes] : cache->memory_breakdown()) {
            res[buft] += n_bytes;
        }
    };
    if (window) {
        add(window.get());
    }
    for (const auto & group : groups) {
        if (group.own) {
            add(group.own.get());
        }
    }
    return res;
}

void morphkv_cache::get_stats(llama_seq_id seq_id, morphkv_stats & out) const {
    const auto & sequence = sequences.at(seq_id);
    const auto & text     = sequence.text;
    const auto & group    = text.groups[GROUP];

    out.capacity          = params.capacity;
    out.keep              = text.n_keep;
    out.n_cells           = get_size();
    out.n_limit           = group.shape.n_limit;
    out.n_distant         = group.shape.n_distant();
    out.n_groups          = groups.size();
    out.min_capacity      = groups.front().shape.capacity;
    out.max_capacity      = groups.back().shape.capacity;
    out.n_used            = n_used(seq_id);
    out.n_seq_max         = sequences.size();
    out.logical_pos       = text.positions.next() - 1;
    out.complete_pos      = seq_pos_min(seq_id);
    out.exact_pos         = text.positions.pos_from(text.first_exact(can_lose()));
    out.mark_pos          = -1;
    out.rope_limit        = rope_limit();
    out.rotary_offset     = text.rotary_offset;
    out.n_rebases         = text.n_rebases;
    out.n_evictions       = group.n_evictions;
    out.n_evicted         = std::max(group.n_evicted, 0);
    out.kv_bytes          = 0;
    out.archive_bytes     = 0;
    out.n_archived        = 0;
    out.n_archive_lost    = 0;
    out.n_archive_damaged = 0;
    out.extra_bytes       = 0;
    std::vector<const std::vector<morphkv_side_layer> *> layers;
    for (const auto & of_group : groups) {
        out.extra_bytes += of_group.side.n_bytes();
        layers.push_back(&of_group.side.layers);
    }
    out.extra_bytes += reader ? reader->n_bytes() : 0;
    for (const auto & s : sequences) {
        for (const auto & of_group : s.text.groups) {
            out.extra_bytes += of_group.ranked ? of_group.ranked->size() * sizeof(int32_t) : 0;
        }
        for (const auto & of_group : s.originals) {
            for (const auto & of_layer : of_group) {
                out.extra_bytes += of_layer.serial.size() * sizeof(int32_t) + of_layer.k.size();
            }
        }
    }
    out.scratch_bytes = cut_engine.n_bytes() + morphkv_kernels_bytes_beside(layers);
    out.evict_ms      = evict_ms;
    out.seq_evict_ms  = seq_evict_ms.at(seq_id);
    for (const auto & [_, n_bytes] : kv_breakdown()) {
        out.kv_bytes += n_bytes;
    }
    out.n_recalls  = text.n_recalls;
    out.n_recalled = text.n_recalled;
    out.recall_ms  = sequence.recall_ms;
    out.archive_ms = archive_ms;
    if (archives) {
        const auto counts     = archives->count(seq_id);
        out.n_archived        = counts.n_held;
        out.n_archive_lost    = counts.n_lost;
        out.n_archive_damaged = counts.n_damaged;
        out.archive_bytes     = archives->n_bytes();
        out.extra_bytes += archives->n_staged_bytes();
    }
}

void morphkv_cache::set_keep(llama_seq_id seq_id, int32_t n_keep) {
    const int32_t     n_distant = groups[GROUP].shape.n_distant();
    const std::string got       = ", got " + std::to_string(n_keep);
    if (n_keep < 0 || n_keep >= n_distant) {
        throw morphkv_error(MORPHKV_STATUS_INVALID,
                            "keep must be in 0.." + std::to_string(n_distant - 1) + " (below capacity - window" +
                                (groups.size() > 1 ? " of the layers that keep least)" : ")") + got);
    }
    auto & text = sequences.at(seq_id).text;
    if (text.has_evicted() && n_keep > text.n_keep) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, "keep must not exceed " + std::to_string(text.n_keep) +
                                                        " after the sequence's first eviction" + got);
    }
    text.n_keep = n_keep;
}

int32_t morphkv_cache::n_complete_behind(llama_seq_id seq_id, int32_t n) const {
    return morphkv_text_behind_prompt(text_of(seq_id), n).first_complete(can_lose()) + 1;
}

std::vector<morphkv_side_layer> morphkv_cache::cut_layers() const {
    std::vector<morphkv_side_layer> res;
    for (const auto & group : groups) {
        res.insert(res.end(), group.side.layers.begin(), group.side.layers.end());
    }
    return res;
}

std::pair<const morphkv_side_layer *, size_t> morphkv_cache::find_layer(int32_t il) const {
    for (size_t i = 0; i < groups.size(); ++i) {
        for (const auto & layer : groups[i].side.layers) {
            if (layer.il == il) {
                return { &layer, i };
            }
        }
    }
    std::string got = ", got " + std::to_string(il);
    for (const auto & layer : window ? window->layers : std::vector<morphkv_side_layer>()) {
        if (layer.il == il) {
            got += ", which has a sliding window and no distant tokens";
        }
    }
    throw morphkv_error(MORPHKV_STATUS_INVALID, "layer must be one that has a KV cache" + got);
}

void morphkv_cache::get_retained_shape(int32_t il, int32_t & n_head_kv, int32_t & n_distant) const {
    const auto [layer, i_group] = find_layer(il);
    n_head_kv                   = layer->n_head_kv;
    n_distant                   = groups[i_group].shape.n_distant();
}

std::vector<int32_t> morphkv_cache::get_retained(llama_seq_id seq_id, int32_t il) const {
    const auto [layer, i_group] = find_layer(il);
    if (!text_of(seq_id).groups[i_group].has_evicted()) {
        return std::vector<int32_t>(layer->n_head_kv * groups[i_group].shape.n_distant(), -1);
    }
    std::vector<int32_t> res = groups[i_group].side.get_serials(*layer, seq_id);
    for (int32_t & token : res) {
        token = sequences[seq_id].text.pos_of(token);
    }
    return res;
}

std::vector<morphkv_came_back> morphkv_cache::get_came_back(llama_seq_id seq_id) const {
    const auto &                   text = text_of(seq_id);
    std::vector<morphkv_came_back> res  = text.came_back ? *text.came_back : std::vector<morphkv_came_back>();
    for (auto & page : res) {
        page.serial = text.pos_of(page.serial);
    }
    return res;
}
