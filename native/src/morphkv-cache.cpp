#include "morphkv-cache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>

morphkv_cache::morphkv_cache(const llama_model & model, const llama_hparams & hparams, const morphkv_params & params,
                             ggml_type type_k, ggml_type type_v, bool offload, uint32_t n_seq_max,
                             const layer_filter_cb & filter)
    : llama_kv_cache(model, hparams, type_k, type_v, /*v_trans =*/false, offload, /*unified =*/false, n_cells(params),
                     n_seq_max, /*n_pad =*/1, /*n_swa =*/0, LLAMA_SWA_TYPE_NONE, /*mem_other =*/nullptr, filter,
                     /*reuse =*/nullptr, /*share =*/nullptr),
      params(params),
      n_ctx_train(hparams.n_ctx_train),
      n_distant(params.capacity - params.window) {
    // the one way from here to V
    ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead() * get_layer_ids().size(), nullptr, /*.no_alloc =*/true }));

    std::vector<morphkv_side_layer> layers;
    for (const uint32_t il : get_layer_ids()) {
        const slot_info first_stream = { 0, 0, { 0 }, { { 0 } } };

        morphkv_side_layer layer{};
        layer.il        = il;
        layer.n_head    = hparams.n_head(il);
        layer.n_head_kv = hparams.n_head_kv(il);
        layer.softcap   = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f;
        layer.k         = get_k_storage(il);
        layer.v         = get_v(ctx.get(), il, 1, first_stream)->view_src;
        layers.push_back(layer);
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
    if (params.rope_limit == 0 || find_unknown_rope()) {
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

    for (const bool careful : { false, true }) {
        if (auto plan = plan_batch(balloc, n_ubatch, careful)) {
            return std::make_unique<morphkv_cache_context>(this, std::move(*plan));
        }
    }
    return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
}

llama_memory_context_ptr morphkv_cache::init_full() {
    return std::make_unique<morphkv_cache_context>(this);
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
    if (data) {
        side.clear();
    }
}

void morphkv_cache::clear_stream(llama_seq_id seq_id) {
    llama_kv_cache::seq_rm(seq_id, -1, -1);
    streams[seq_id] = empty_stream();
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

bool morphkv_cache::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (seq_id >= (llama_seq_id) streams.size()) {
        return true;
    }
    if (p0 < 0) {
        p0 = 0;
    }
    if (p1 < 0) {
        p1 = std::numeric_limits<llama_pos>::max();
    }

    enum class action { NOTHING, ALL, TAIL, REFUSE };
    auto plan = [&](llama_seq_id s) {
        const llama_pos newest = seq_pos_max(s);
        if (newest < 0 || p0 > newest || p1 <= p0) {
            return action::NOTHING;
        }
        if (p1 <= newest) {
            return action::REFUSE;
        }
        if (p0 <= llama_kv_cache::seq_pos_min(s)) {
            return action::ALL;
        }
        // one recent token must stay: its position is where the sequence goes on
        return !has_evicted(s) || p0 > seq_pos_min(s) ? action::TAIL : action::REFUSE;
    };

    const llama_seq_id s0 = seq_id < 0 ? 0 : seq_id;
    const llama_seq_id s1 = seq_id < 0 ? streams.size() : seq_id + 1;

    for (llama_seq_id s = s0; s < s1; ++s) {
        if (plan(s) == action::REFUSE) {
            return false;
        }
    }
    for (llama_seq_id s = s0; s < s1; ++s) {
        switch (plan(s)) {
            case action::ALL: {
                clear_stream(s);
            } break;
            case action::TAIL: {
                llama_kv_cache::seq_rm(s, p0, p1);
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
    if (seq_id_src == seq_id_dst) {
        return;
    }
    const llama_seq_id n_seq = streams.size();
    if (seq_id_src < 0 || seq_id_src >= n_seq || seq_id_dst < 0 || seq_id_dst >= n_seq) {
        LLAMA_LOG_ERROR("%s: MorphKV: sequence ids must be in 0..%d, got %d and %d: nothing copied\n", __func__,
                        n_seq - 1, seq_id_src, seq_id_dst);
        return;
    }
    if (p0 > llama_kv_cache::seq_pos_min(seq_id_src) || (p1 >= 0 && p1 <= seq_pos_max(seq_id_src))) {
        LLAMA_LOG_ERROR(
            "%s: MorphKV: only a whole sequence can be copied, got positions [%d, %d) of sequence %d: nothing "
            "copied\n",
            __func__, p0, p1, seq_id_src);
        return;
    }
    if (lctx) {
        lctx->synchronize();
    }
    clear_stream(seq_id_dst);
    set_cell_list(seq_id_dst, 0, get_cell_list(seq_id_src, 0));
    streams[seq_id_dst] = streams[seq_id_src];
    side.copy(seq_id_src, seq_id_dst, n_used(seq_id_src));
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
    if (seq_id >= (llama_seq_id) streams.size() || !has_evicted(seq_id)) {
        return llama_kv_cache::seq_pos_min(seq_id);
    }
    return get_cells(seq_id).pos_get(n_distant);
}

std::map<ggml_backend_buffer_type_t, size_t> morphkv_cache::memory_breakdown() const {
    auto res = kv_breakdown();
    side.add_breakdown(res);
    return res;
}

std::map<ggml_backend_buffer_type_t, size_t> morphkv_cache::kv_breakdown() const {
    return llama_kv_cache::memory_breakdown();
}

//
// what hosts ask
//

void morphkv_cache::get_stats(llama_seq_id seq_id, morphkv_stats & out) const {
    const auto & stream = streams.at(seq_id);

    out.capacity      = params.capacity;
    out.keep          = stream.n_keep;
    out.n_cells       = get_size();
    out.n_limit       = n_limit(params);
    out.n_distant     = n_distant;
    out.n_used        = n_used(seq_id);
    out.n_seq_max     = streams.size();
    out.logical_pos   = seq_pos_max(seq_id);
    out.complete_pos  = seq_pos_min(seq_id);
    out.exact_pos     = stream.pos_exact;
    out.rope_limit    = rope_limit();
    out.rotary_offset = stream.rotary_offset;
    out.n_rebases     = stream.n_rebases;
    out.n_evictions   = stream.n_evictions;
    out.n_evicted     = stream.n_evicted;
    out.kv_bytes      = 0;
    out.extra_bytes   = side.n_bytes();
    for (const auto & s : streams) {
        out.extra_bytes += s.rebased.size() * sizeof(llama_pos);
    }
    out.scratch_bytes = scratch_bytes;
    out.evict_ms      = evict_ms;
    out.seq_evict_ms  = seq_evict_ms.at(seq_id);
    for (const auto & [_, n_bytes] : kv_breakdown()) {
        out.kv_bytes += n_bytes;
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

const morphkv_side_layer & morphkv_cache::side_layer(int32_t il) const {
    for (const auto & layer : side.layers) {
        if (layer.il == il) {
            return layer;
        }
    }
    throw morphkv_error(MORPHKV_STATUS_INVALID, "layer must be one that has a KV cache, got " + std::to_string(il));
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
