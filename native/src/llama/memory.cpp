#include "llama/memory.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>

// Of the layers that the filter lets through, those with or without a sliding window.
static llama_memory_i::layer_filter_cb filter_windowed(const llama_hparams &                   hparams,
                                                       const llama_memory_i::layer_filter_cb & filter, bool is_swa) {
    return [&hparams, filter, is_swa](int32_t il) {
        return (!filter || filter(il)) && hparams.is_swa(il) == is_swa;
    };
}

morphkv_cache::morphkv_cache(const llama_model & model, const llama_hparams & hparams, const morphkv_params & params,
                             ggml_type type_k, ggml_type type_v, bool offload, uint32_t n_seq_max,
                             const layer_filter_cb & filter, const layer_reuse_cb & reuse, uint32_t n_window_cells)
    : llama_kv_cache(model, hparams, type_k, type_v, /*v_trans =*/false, offload, /*unified =*/false, n_cells(params),
                     n_seq_max, /*n_pad =*/1, /*n_swa =*/0, LLAMA_SWA_TYPE_NONE, /*mem_other =*/nullptr,
                     filter_windowed(hparams, filter, false), reuse, /*share =*/nullptr),
      window(hparams.is_swa_any() ? new morphkv_window(model, hparams, type_k, type_v, offload, n_window_cells,
                                                       n_seq_max, filter_windowed(hparams, filter, true), reuse)
                                  : nullptr),
      params(params),
      n_ctx_train(std::min<uint32_t>(hparams.n_ctx_train, std::numeric_limits<int32_t>::max())),
      n_pos(hparams.n_pos_per_embd()),
      pos_end(model.pos_embd ? hparams.n_ctx_train : 0),
      n_distant(params.capacity - params.window) {
    auto layers = morphkv_layers_of(*this, hparams);
    if (model.arch == LLM_ARCH_GROK) {
        // the soft-cap of its own in llama.cpp's graph, and the scale before it
        for (auto & layer : layers) {
            layer.softcap       = hparams.f_attn_logit_softcapping;
            layer.softcap_scale = hparams.f_attn_out_scale;
        }
    }
    side.init(std::move(layers), params.votes + N_SPARE, n_distant, get_n_stream(), params.decay > 0.0f,
              hparams.no_alloc);
    streams.assign(get_n_stream(), empty_stream());
    seq_evict_ms.assign(get_n_stream(), 0.0);

    LLAMA_LOG_INFO("%s: MorphKV: capacity = %d, window = %d, interval = %d, keep = %d, prompt_room = %d, cells = %u, "
                   "%.2f MiB beside K and V\n",
                   __func__, params.capacity, params.window, params.interval, params.keep, params.prompt_room,
                   get_size(), side.n_bytes() / 1024.0 / 1024.0);
}

uint32_t morphkv_cache::n_limit(const morphkv_params & params) {
    return params.capacity + morphkv_params_room(params);
}

uint32_t morphkv_cache::n_cells(const morphkv_params & params) {
    return GGML_PAD(n_limit(params), 256);
}

int32_t morphkv_cache::rope_limit() const {
    if (params.rope_limit == 0 || n_pos > 1 || pos_end > 0 || find_unknown_rope()) {
        return 0;
    }
    // a rebase cannot bring positions below the number of cells
    return params.rope_limit > 0 ? params.rope_limit : std::max(n_ctx_train, n_limit(params));
}

uint32_t morphkv_cache::n_used(llama_seq_id seq_id) const {
    return get_cells(seq_id).used_max_p1();
}

//
// batches
//

llama_memory_context_ptr morphkv_cache::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    GGML_UNUSED(embd_all);
    morphkv_error_clear();
    if (!accepts(balloc.get_batch())) {
        return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_COMPUTE);
    }

    auto split = [&](uint32_t n_max) {
        return get_n_stream() == 1 && !window ? balloc.split_simple(n_max) : balloc.split_equal(n_max, true, 0);
    };
    for (const bool careful : { false, true }) {
        if (auto plan = plan_batch(balloc, n_ubatch, careful, split)) {
            return make_context(std::move(*plan));
        }
    }
    return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr morphkv_cache::make_context(batch_plan plan) {
    if (!window) {
        return std::make_unique<morphkv_cache_context>(this, std::move(plan));
    }
    auto ubatches = plan.ubatches;
    auto windowed = std::make_unique<morphkv_window_context>(window.get(), window->place(ubatches), ubatches);
    auto base     = std::make_unique<morphkv_cache_context>(this, std::move(plan));
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
    this->lctx = lctx;
    return llama_kv_cache::init_update(lctx, optimize);
}

//
// sequences
//

bool morphkv_cache::get_can_shift() const {
    return false;
}

void morphkv_cache::clear(bool data) {
    llama_kv_cache::clear(data);
    streams.assign(streams.size(), empty_stream());
    for (llama_seq_id s = 0; archives && s < (llama_seq_id) streams.size(); ++s) {
        archives->of(s).clear();
    }
    if (window) {
        window->clear(data);
    }
    if (data) {
        side.clear();
    }
}

void morphkv_cache::clear_stream(llama_seq_id seq_id, bool clear_archive) {
    llama_kv_cache::seq_rm(seq_id, -1, -1);
    streams[seq_id] = empty_stream();
    if (clear_archive && archives) {
        archives->of(seq_id).clear();
    }
    if (window) {
        window->seq_rm(seq_id, -1, -1);
    }
    if (on_clear) {
        on_clear(seq_id);
    }
}

morphkv_cache::cell_list morphkv_cache::get_cell_list(llama_seq_id seq_id, uint32_t i_first) const {
    const auto & cells = get_cells(seq_id);

    cell_list res;
    for (uint32_t i = i_first; i < n_used(seq_id); ++i) {
        res.pos.push_back(cells.pos_get(i));
        res.token.push_back(cells.ext_get(i).tok);
    }
    return res;
}

void morphkv_cache::set_cell_list(llama_seq_id seq_id, uint32_t i_first, const cell_list & list) {
    const uint32_t n = list.pos.size();
    if (n == 0) {
        return;
    }
    llama_batch_allocr balloc(1);
    llama_ubatch       ubatch = balloc.ubatch_reserve(n, 1);
    ubatch.seq_id_unq[0]      = seq_id;

    slot_info sinfo = { (uint32_t) seq_id, (uint32_t) seq_id, { seq_id }, { {} } };
    for (uint32_t i = 0; i < n; ++i) {
        ubatch.pos[i]      = list.pos[i];
        ubatch.token[i]    = list.token[i];
        ubatch.n_seq_id[i] = 1;
        ubatch.seq_id[i]   = &seq_id;
        sinfo.idxs[0].push_back(i_first + i);
    }
    apply_ubatch(sinfo, ubatch);
}

morphkv_cache::removal morphkv_cache::plan_removal(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    p0 = std::max(p0, 0);
    p1 = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    const llama_pos newest = seq_pos_max(seq_id);
    if (newest < 0 || p0 > newest || p1 <= p0) {
        return removal::NOTHING;
    }
    if (p1 <= newest) {
        return removal::REFUSED;
    }
    if (p0 <= llama_kv_cache::seq_pos_min(seq_id)) {
        return removal::ALL;
    }
    // one recent token must stay: its position is where the sequence goes on
    return p0 > seq_pos_min(seq_id) ? removal::TAIL : removal::REFUSED;
}

bool morphkv_cache::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= (llama_seq_id) streams.size()) {
        return true;
    }

    const llama_seq_id s0 = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id s1 = seq_id < 0 ? streams.size() : seq_id + 1;

    for (llama_seq_id s = s0; s < s1; ++s) {
        if (plan_removal(s, p0, p1) == removal::REFUSED) {
            return false;
        }
    }
    for (llama_seq_id s = s0; s < s1; ++s) {
        switch (plan_removal(s, p0, p1)) {
            case removal::ALL: {
                clear_stream(s);
            } break;
            case removal::TAIL: {
                llama_kv_cache::seq_rm(s, p0, p1);
                if (window) {
                    window->seq_rm(s, p0, p1);
                }
                if (archives) {
                    archives->of(s).truncate(p0);
                }
                for (llama_pos & pos : streams[s].ring_pos) {
                    pos = pos >= p0 ? -1 : pos;
                }
                streams[s].pos_exact  = std::min(streams[s].pos_exact, p0);
                // the next token is in the place of the prompt's last one
                streams[s].pos_prompt = std::min(streams[s].pos_prompt, p0);
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
    const llama_seq_id n_seq = streams.size();
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
    if (lctx) {
        lctx->synchronize();
    }
    clear_stream(seq_id_dst);
    set_cell_list(seq_id_dst, 0, get_cell_list(seq_id_src, 0));
    streams[seq_id_dst] = streams[seq_id_src];
    side.copy(seq_id_src, seq_id_dst, n_used(seq_id_src));
    if (archives) {
        archives->of(seq_id_dst).copy(archives->of(seq_id_src));
    }
    if (window) {
        window->copy(seq_id_src, seq_id_dst);
    }
    return true;
}

void morphkv_cache::seq_keep(llama_seq_id seq_id) {
    for (llama_seq_id s = 0; s < (llama_seq_id) streams.size(); ++s) {
        if (s != seq_id) {
            clear_stream(s);
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
    const llama_pos first = llama_kv_cache::seq_pos_min(seq_id);
    if (seq_id >= (llama_seq_id) streams.size() || first < 0) {
        return first;
    }
    const llama_pos res = has_evicted(seq_id) ? get_cells(seq_id).pos_get(n_distant) : first;
    return window ? std::max(res, window->first_possible(seq_id, first) - 1) : res;
}

std::map<ggml_backend_buffer_type_t, size_t> morphkv_cache::memory_breakdown() const {
    auto res = kv_breakdown();
    side.add_breakdown(res);
    return res;
}

std::map<ggml_backend_buffer_type_t, size_t> morphkv_cache::kv_breakdown() const {
    auto res = llama_kv_cache::memory_breakdown();
    if (window) {
        for (const auto & [buft, n_bytes] : window->memory_breakdown()) {
            res[buft] += n_bytes;
        }
    }
    return res;
}

//
// what hosts ask
//

void morphkv_cache::get_stats(llama_seq_id seq_id, morphkv_stats & out) const {
    const auto & stream = streams.at(seq_id);

    out.capacity     = params.capacity;
    out.keep         = stream.n_keep;
    out.n_cells      = get_size();
    out.n_limit      = n_limit(params);
    out.n_distant    = n_distant;
    out.n_used       = n_used(seq_id);
    out.n_seq_max    = streams.size();
    out.logical_pos  = seq_pos_max(seq_id);
    out.complete_pos = seq_pos_min(seq_id);
    out.exact_pos    = stream.pos_exact;
    if (window) {
        out.exact_pos = std::max(out.exact_pos, window->first_exact(seq_id, llama_kv_cache::seq_pos_min(seq_id)));
    }
    out.rope_limit        = rope_limit();
    out.rotary_offset     = stream.rotary_offset;
    out.n_rebases         = stream.n_rebases;
    out.n_evictions       = stream.n_evictions;
    out.n_evicted         = stream.n_evicted;
    out.kv_bytes          = 0;
    out.archive_bytes     = 0;
    out.n_archived        = 0;
    out.n_archive_lost    = 0;
    out.n_archive_damaged = 0;
    out.extra_bytes       = side.n_bytes();
    for (const auto & s : streams) {
        out.extra_bytes += s.rebased.size() * sizeof(llama_pos);
        for (const auto & of_layer : s.originals) {
            out.extra_bytes += of_layer.pos.size() * sizeof(int32_t) + of_layer.k.size();
        }
    }
    out.scratch_bytes = scratch_bytes;
    out.evict_ms      = evict_ms;
    out.seq_evict_ms  = seq_evict_ms.at(seq_id);
    for (const auto & [_, n_bytes] : kv_breakdown()) {
        out.kv_bytes += n_bytes;
    }
    out.n_recalls  = stream.n_recalls;
    out.n_recalled = stream.n_recalled;
    out.recall_ms  = stream.recall_ms;
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
    const std::string got = ", got " + std::to_string(n_keep);
    if (n_keep < 0 || n_keep >= (int32_t) n_distant) {
        throw morphkv_error(MORPHKV_STATUS_INVALID,
                            "keep must be in 0.." + std::to_string(n_distant - 1) + " (below capacity - window)" + got);
    }
    auto & stream = streams.at(seq_id);
    if (has_evicted(seq_id) && n_keep > stream.n_keep) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, "keep must not exceed " + std::to_string(stream.n_keep) +
                                                        " after the sequence's first eviction" + got);
    }
    stream.n_keep = n_keep;
}

std::vector<const morphkv_side_layer *> morphkv_cache::layers() const {
    std::vector<const morphkv_side_layer *> res;
    for (const auto & layer : side.layers) {
        res.push_back(&layer);
    }
    return res;
}

const morphkv_side_layer & morphkv_cache::side_layer(int32_t il) const {
    for (const auto & layer : side.layers) {
        if (layer.il == il) {
            return layer;
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
    n_head_kv = side_layer(il).n_head_kv;
    n_distant = this->n_distant;
}

std::vector<int32_t> morphkv_cache::get_retained(llama_seq_id seq_id, int32_t il) const {
    const auto & layer = side_layer(il);
    if (!has_evicted(seq_id)) {
        return std::vector<int32_t>(layer.n_head_kv * n_distant, -1);
    }
    return side.get_positions(layer, seq_id);
}

//
// batch context
//

morphkv_cache_context::morphkv_cache_context(morphkv_cache * mkv) : llama_kv_cache_context(mkv), mkv(mkv) {}

morphkv_cache_context::morphkv_cache_context(morphkv_cache * mkv, morphkv_cache::batch_plan plan)
    : llama_kv_cache_context(mkv, std::move(plan.sinfos), std::move(plan.ubatches)),
      mkv(mkv),
      cuts(std::move(plan.cuts)),
      is_prompt(std::move(plan.is_prompt)) {}

bool morphkv_cache_context::next() {
    i_next++;
    return llama_kv_cache_context::next();
}

bool morphkv_cache_context::apply() {
    for (const llama_seq_id seq_id : cuts.at(i_next)) {
        if (!mkv->cut(seq_id)) {
            return false;
        }
    }
    const auto &   ubatch       = get_ubatch();
    // the last token of each sequence stands highest
    const uint32_t n_seq_tokens = ubatch.n_tokens / ubatch.n_seqs_unq;
    for (uint32_t i = n_seq_tokens - 1; i < ubatch.n_tokens; i += n_seq_tokens) {
        if (!mkv->make_rotary_room(ubatch.seq_id[i][0], ubatch.pos[i])) {
            return false;
        }
    }
    if (!llama_kv_cache_context::apply()) {
        return false;
    }
    mkv->note_tokens(ubatch, is_prompt);
    return true;
}

morphkv_iswa_context::morphkv_iswa_context(std::vector<llama_ubatch>               ubatches,
                                           std::unique_ptr<morphkv_cache_context>  base,
                                           std::unique_ptr<morphkv_window_context> window)
    : morphkv_iswa_context(std::move(ubatches), base.release(), window.release()) {}

morphkv_iswa_context::morphkv_iswa_context(std::vector<llama_ubatch> ubatches, morphkv_cache_context * base,
                                           morphkv_window_context * window)
    : llama_kv_cache_iswa_context(std::move(ubatches), llama_memory_context_ptr(base),
                                  llama_memory_context_ptr(window)),
      base(base),
      window(window) {}

bool morphkv_iswa_context::apply() {
    return base->apply() && window->apply();
}
