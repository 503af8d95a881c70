#include "llama/memory.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"
#include "llama/batch-context.h"

#include <algorithm>
#include <limits>

// Of the layers that the filter lets through, those with or without a sliding window.
static llama_memory_i::layer_filter_cb filter_windowed(const llama_hparams &                   hparams,
                                                       const llama_memory_i::layer_filter_cb & filter, bool is_swa) {
    return [&hparams, filter, is_swa](int32_t il) {
        return (!filter || filter(il)) && hparams.is_swa(il) == is_swa;
    };
}

// Of those, a group's.
static llama_memory_i::layer_filter_cb filter_group(const llama_hparams &                   hparams,
                                                    const llama_memory_i::layer_filter_cb & filter,
                                                    const morphkv_layer_plan & plan, int32_t i_group) {
    return [all = filter_windowed(hparams, filter, false), &plan, i_group](int32_t il) {
        return all(il) && plan.of(il) == i_group;
    };
}

static uint32_t group_cells(const morphkv_params & params, const morphkv_layer_plan & plan, size_t i_group) {
    return GGML_PAD(plan.capacities[i_group] + morphkv_params_room(params), 256);
}

morphkv_cache::morphkv_cache(const llama_model & model, const llama_hparams & hparams, const morphkv_params & params,
                             const morphkv_layer_plan & plan, ggml_type type_k, ggml_type type_v, bool offload,
                             uint32_t n_seq_max, const layer_filter_cb & filter, const layer_reuse_cb & reuse,
                             uint32_t n_window_cells)
    : llama_kv_cache(model, hparams, type_k, type_v, /*v_trans =*/false, offload, /*unified =*/false,
                     group_cells(params, plan, GROUP), n_seq_max, /*n_pad =*/1, /*n_swa =*/0, LLAMA_SWA_TYPE_NONE,
                     /*mem_other =*/nullptr, filter_group(hparams, filter, plan, GROUP), reuse, /*share =*/nullptr),
      window(hparams.is_swa_any() ? new morphkv_window(model, hparams, type_k, type_v, offload, n_window_cells,
                                                       n_seq_max, filter_windowed(hparams, filter, true), reuse)
                                  : nullptr),
      params(params),
      plan(plan),
      n_ctx_train(std::min<uint32_t>(hparams.n_ctx_train, std::numeric_limits<int32_t>::max())),
      n_pos(hparams.n_pos_per_embd()),
      pos_end(model.pos_embd ? hparams.n_ctx_train : 0) {
    size_t n_bytes = 0, n_layers = 0;
    for (size_t i = 0; i < plan.capacities.size(); ++i) {
        const int32_t           capacity = plan.capacities[i];
        const morphkv_cut_shape shape    = { capacity, params.window, params.interval,
                                             capacity + morphkv_params_room(params) };

        std::unique_ptr<llama_kv_cache> own;
        if (i != GROUP) {
            own = std::make_unique<llama_kv_cache>(
                model, hparams, type_k, type_v, /*v_trans =*/false, offload, /*unified =*/false,
                group_cells(params, plan, i), n_seq_max, /*n_pad =*/1, /*n_swa =*/0, LLAMA_SWA_TYPE_NONE,
                /*mem_other =*/nullptr, filter_group(hparams, filter, plan, i), reuse, /*share =*/nullptr);
        }
        llama_kv_cache & cells  = own ? *own : *this;
        auto             layers = morphkv_layers_of(cells, hparams, reuse);
        if (model.arch == LLM_ARCH_GROK) {
            // the soft-cap of its own in llama.cpp's graph, and the scale before it
            for (auto & layer : layers) {
                layer.softcap       = hparams.f_attn_logit_softcapping;
                layer.softcap_scale = hparams.f_attn_out_scale;
            }
        }
        groups.push_back({ shape, n_layers, &cells, std::move(own), morphkv_k_rot_of(cells), {} });
        n_layers += layers.size();
        // so many tokens can be taken back and others decoded in their place without a voter missing
        auto & side = groups.back().side;
        side.init(std::move(layers), params.votes + MORPHKV_DRAFT_MAX, shape.n_distant(), get_n_stream(),
                  morphkv_params_carried(params) > 0.0f, hparams.no_alloc);
        n_bytes += side.n_bytes();
        if (plan.capacities.size() > 1) {
            LLAMA_LOG_INFO("%s: MorphKV: capacity = %d in %zu layers\n", __func__, capacity, side.layers.size());
        }
    }
    if (params.n_large > 0 && params.large_capacity == 0 && groups.size() == 1) {
        LLAMA_LOG_WARN(
            "%s: MorphKV: all layers keep %d tokens: with room for %d more in each nothing is left to share\n",
            __func__, params.capacity, morphkv_params_room(params));
    }
    if (params.rope_limit > 0 && params.rope_limit < max_limit()) {
        throw morphkv_error(
            MORPHKV_STATUS_INVALID,
            "rope_limit must be 0, -1 or at least the largest capacity + max(interval, prompt_room), got " +
                std::to_string(params.rope_limit) + " with " + std::to_string(max_limit()));
    }
    sequences.assign(get_n_stream(), empty_sequence());
    seq_evict_ms.assign(get_n_stream(), 0.0);

    LLAMA_LOG_INFO("%s: MorphKV: capacity = %d, window = %d, interval = %d, keep = %d, prompt_room = %d, cells = %u, "
                   "%.2f MiB beside K and V\n",
                   __func__, params.capacity, params.window, params.interval, params.keep, params.prompt_room,
                   get_size(), n_bytes / 1024.0 / 1024.0);
}

uint32_t morphkv_cache::n_limit(const morphkv_params & params) {
    return params.capacity + morphkv_params_room(params);
}

uint32_t morphkv_cache::n_cells(const morphkv_params & params) {
    return GGML_PAD(n_limit(params), 256);
}

morphkv_text_shape morphkv_cache::text_shape() const {
    std::vector<morphkv_cut_shape> shapes;
    for (const auto & group : groups) {
        shapes.push_back(group.shape);
    }
    return { shapes, window ? (int32_t) window->get_size() : 0, params.votes, get_side().n_ring };
}

morphkv_can_lose morphkv_cache::can_lose() const {
    return [this](int32_t lost, int32_t pos) {
        return !window || window->can_lose(lost, pos);
    };
}

int32_t morphkv_cache::rope_limit() const {
    if (params.rope_limit == 0 || pos_end > 0 || find_unknown_rope()) {
        return 0;
    }
    // a rebase cannot bring positions below the number of cells
    return params.rope_limit > 0 ? params.rope_limit : std::max<int32_t>(n_ctx_train, max_limit());
}

//
// batches
//

llama_memory_context_ptr morphkv_cache::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);
    morphkv_error_clear();
    if (follows_target) {
        clear_before_gaps(balloc.get_batch());
    }
    if (!accepts(balloc.get_batch())) {
        return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_COMPUTE);
    }

    auto split = [&](uint32_t n_max) {
        return get_n_stream() == 1 && !window ? balloc.split_simple(n_max) : balloc.split_equal(n_max, true, 0);
    };
    for (const bool is_careful : { false, true }) {
        if (auto plan = plan_batch(balloc, n_ubatch, is_careful, split)) {
            return make_context(std::move(*plan));
        }
    }
    return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr morphkv_cache::make_context(batch_plan plan) {
    if (!window) {
        return std::make_unique<morphkv_cache_context>(this, std::move(plan));
    }
    std::vector<morphkv_ring_group> rings;
    for (const auto & sequence : sequences) {
        rings.push_back(*sequence.text.windowed);
    }
    auto ubatches = plan.ubatches;
    auto windowed = std::make_unique<morphkv_window_context>(
        window.get(), window->assign_cells(std::move(rings), ubatches), ubatches);
    auto base = std::make_unique<morphkv_cache_context>(this, std::move(plan));
    return std::make_unique<morphkv_iswa_context>(std::move(ubatches), std::move(base), std::move(windowed));
}

llama_memory_context_ptr morphkv_cache::init_full() {
    auto base = std::make_unique<morphkv_cache_context>(this);
    if (!window) {
        return base;
    }
    return std::make_unique<morphkv_iswa_context>(std::vector<llama_ubatch>(), std::move(base),
                                                  std::make_unique<morphkv_window_context>(window.get()));
}

llama_memory_context_ptr morphkv_cache::init_update(llama_context * lctx, bool optimize) {
    set_context(lctx);
    return llama_kv_cache::init_update(lctx, optimize);
}

void morphkv_cache::set_context(llama_context * lctx) {
    engine.set(lctx);
    cut_engine.set(lctx);
}

void morphkv_cache::synchronize() const {
    if (engine.context()) {
        ggml_backend_sched_synchronize(engine.context()->get_sched());
    }
}

//
// sequences
//

bool morphkv_cache::get_can_shift() const {
    return false;
}

void morphkv_cache::clear(bool data) {
    synchronize();
    llama_kv_cache::clear(data);
    for (auto & sequence : sequences) {
        // these are counted on
        auto n_brought         = std::move(sequence.from.n_tokens);
        sequence               = empty_sequence();
        sequence.from.n_tokens = std::move(n_brought);
    }
    for (llama_seq_id s = 0; archives && s < (llama_seq_id) sequences.size(); ++s) {
        archives->of(s).clear();
    }
    if (window) {
        window->clear(data);
    }
    for (auto & group : groups) {
        if (group.own) {
            group.own->clear(data);
        }
        if (data) {
            group.side.clear();
        }
    }
}

void morphkv_cache::clear_sequence(llama_seq_id seq_id, bool clears_archive) {
    for (auto & group : groups) {
        group.cells->llama_kv_cache::seq_rm(seq_id, -1, -1);
    }
    auto n_brought                  = std::move(sequences[seq_id].from.n_tokens);
    sequences[seq_id]               = empty_sequence();
    sequences[seq_id].from.n_tokens = std::move(n_brought);
    if (clears_archive && archives) {
        archives->of(seq_id).clear();
    }
    if (window) {
        window->seq_rm(seq_id, -1, -1);
    }
    if (on_clear) {
        on_clear(seq_id);
    }
}

morphkv_removal morphkv_cache::plan_removal(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    return morphkv_plan_removal(sequences[seq_id].text, p0, p1, can_lose());
}

bool morphkv_cache::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= (llama_seq_id) sequences.size()) {
        return true;
    }

    const llama_seq_id s0 = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id s1 = seq_id < 0 ? sequences.size() : seq_id + 1;

    for (llama_seq_id s = s0; s < s1; ++s) {
        if (plan_removal(s, p0, p1) == morphkv_removal::REFUSED) {
            return false;
        }
    }
    for (llama_seq_id s = s0; s < s1; ++s) {
        switch (plan_removal(s, p0, p1)) {
            case morphkv_removal::ALL: {
                clear_sequence(s);
            } break;
            case morphkv_removal::TAIL: {
                auto &        text  = sequences[s].text;
                const int32_t first = text.positions.serial_from(std::max(p0, 0));
                for (auto & group : groups) {
                    group.cells->llama_kv_cache::seq_rm(s, p0, p1);
                }
                if (window) {
                    window->seq_rm(s, p0, p1);
                }
                if (archives) {
                    archives->of(s).truncate(first);
                }
                text.remove_from(first);
            } break;
            default:
                break;
        }
    }
    return true;
}

void morphkv_cache::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    copy(seq_id_src, seq_id_dst, p0, p1);
}

bool morphkv_cache::copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    if (seq_id_src == seq_id_dst) {
        return false;
    }
    const llama_seq_id n_seq = sequences.size();
    if (seq_id_src < 0 || seq_id_src >= n_seq || seq_id_dst < 0 || seq_id_dst >= n_seq) {
        LLAMA_LOG_ERROR("%s: MorphKV: sequence ids must be in 0..%d, got %d and %d: nothing copied\n", __func__,
                        n_seq - 1, seq_id_src, seq_id_dst);
        return false;
    }
    if (p0 > llama_kv_cache::seq_pos_min(seq_id_src) || (p1 >= 0 && p1 <= seq_pos_max(seq_id_src))) {
        LLAMA_LOG_ERROR(
            "%s: MorphKV: only a whole sequence can be copied, got positions [%d, %d) of sequence %d: nothing "
            "copied\n",
            __func__, p0, p1, seq_id_src);
        return false;
    }
    synchronize();
    clear_sequence(seq_id_dst);
    const auto & text                   = sequences[seq_id_src].text;
    auto         n_brought              = std::move(sequences[seq_id_dst].from.n_tokens);
    sequences[seq_id_dst]               = sequences[seq_id_src];
    sequences[seq_id_dst].from.n_tokens = std::move(n_brought);
    for (size_t i = 0; i < groups.size(); ++i) {
        morphkv_set_tokens(groups[i], seq_id_dst, text, i, 0,
                           morphkv_get_tokens(groups[i], seq_id_src, 0, text.n_used(i)), n_pos);
    }
    if (window) {
        window->set_tokens(seq_id_dst, text, window->get_tokens(seq_id_src, *text.windowed));
    }
    morphkv_copy_slices(slices(seq_id_src, text), seq_id_src, seq_id_dst);
    if (archives) {
        archives->of(seq_id_dst).copy(archives->of(seq_id_src));
    }
    return true;
}

void morphkv_cache::seq_keep(llama_seq_id seq_id) {
    for (llama_seq_id s = 0; s < (llama_seq_id) sequences.size(); ++s) {
        if (s != seq_id) {
            clear_sequence(s);
        }
    }
}

void morphkv_cache::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (shift != 0 && p0 != p1) {
        LLAMA_LOG_ERROR("%s: MorphKV: positions cannot be shifted: sequence %d unchanged\n", __func__, seq_id);
    }
}

void morphkv_cache::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    if (d != 1 && p0 != p1) {
        LLAMA_LOG_ERROR("%s: MorphKV: positions cannot be divided: sequence %d unchanged\n", __func__, seq_id);
    }
}

llama_pos morphkv_cache::seq_pos_min(llama_seq_id seq_id) const {
    if (seq_id >= (llama_seq_id) sequences.size() || sequences[seq_id].text.is_empty()) {
        return llama_kv_cache::seq_pos_min(seq_id);
    }
    const auto & text = sequences[seq_id].text;
    return text.pos_of(text.first_complete(can_lose()));
}
