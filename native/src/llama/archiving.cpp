// Archiving: what a cut pushes out of the window goes to the host, keys as they were before RoPE.

#include "llama/memory.h"

#include <algorithm>

static constexpr uint32_t N_CHUNK   = 128;  // tokens that are archived by one graph
static constexpr size_t   N_TENSORS = 24;   // of a layer in it

morphkv_archive_params morphkv_archive_params_default(void) {
    morphkv_archive_params res{};
    res.size      = sizeof(res);
    res.type_k    = -1;
    res.type_v    = -1;
    res.max_bytes = 2ull << 30;
    return res;
}

void morphkv_cache::start_archive(llama_context * lctx, const morphkv_archive_params & p) {
    this->lctx   = lctx;
    auto invalid = [](const std::string & what) {
        throw morphkv_error(MORPHKV_STATUS_INVALID, what);
    };
    for (llama_seq_id s = 0; s < (llama_seq_id) streams.size(); ++s) {
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
    if (!side.layers.front().v) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "MorphKV cannot archive compressed keys (MLA)");
    }
    auto type_of = [&](int32_t type, ggml_type own, const char * name) {
        const auto res      = type < 0 ? own : (ggml_type) type;
        const bool is_known = res == GGML_TYPE_F32 || res == GGML_TYPE_F16 || res == GGML_TYPE_BF16 ||
                              res == GGML_TYPE_Q8_0 || res == GGML_TYPE_Q5_0 || res == GGML_TYPE_Q4_0;
        if (!is_known) {
            invalid(std::string(name) + " must be one of f32, f16, bf16, q8_0, q5_0, q4_0, got " +
                    std::to_string(type));
        }
        return res;
    };
    morphkv_page_layout layout(type_of(p.type_k, side.layers.front().k->type, "type_k"),
                               type_of(p.type_v, side.layers.front().v->type, "type_v"));
    for (const auto & layer : side.layers) {
        const int64_t n_embd_k = layer.k->ne[0] / layer.n_head_kv, n_embd_v = layer.v->ne[0] / layer.n_head_kv;
        if (n_embd_k % ggml_blck_size(layout.type_k) != 0 || n_embd_v % ggml_blck_size(layout.type_v) != 0) {
            invalid("type_k and type_v must fit heads of " + std::to_string(n_embd_k) + " and " +
                    std::to_string(n_embd_v) + " values, got " + ggml_type_name(layout.type_k) + " and " +
                    ggml_type_name(layout.type_v));
        }
        layout.add_layer(layer.n_head_kv, n_embd_k, n_embd_v);
    }
    const uint64_t max_bytes = p.max_bytes > 0 ? std::max<uint64_t>(1, p.max_bytes / streams.size()) : 0;

    std::vector<std::unique_ptr<morphkv_archive>> all;
    for (size_t s = 0; s < streams.size(); ++s) {
        const std::string path  = p.path ? p.path + (s > 0 ? "." + std::to_string(s) : std::string()) : std::string();
        auto              store = p.path ? morphkv_page_store_file(path, layout) : morphkv_page_store_ram();
        all.push_back(std::make_unique<morphkv_archive>(layout, std::move(store), max_bytes));
    }
    const auto elsewhere = std::find_if(side.layers.begin(), side.layers.end(),
                                        [](const morphkv_side_layer & layer) { return !layer.is_on_cpu(); });
    const bool is_beside = elsewhere != side.layers.end();

    ggml_backend_buffer_type_t buft = ggml_backend_cpu_buffer_type();
    if (is_beside) {
        ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(elsewhere->k->buffer));
        if (ggml_backend_buffer_type_t for_device = ggml_backend_dev_host_buffer_type(dev)) {
            buft = for_device;
        }
    }
    // fewer bytes to read where the archive has no use for more
    const ggml_type       type_k = layout.type_k == GGML_TYPE_F16 ? GGML_TYPE_F16 : GGML_TYPE_F32;
    const morphkv_staging staging(layout, N_CHUNK, type_k, side.layers.front().v->type);
    keeps_originals       = p.path != nullptr;
    archives              = std::make_unique<morphkv_archives>(std::move(all), staging, buft, is_beside);
    const std::string why = why_not_archived();
    n_sched_uses++;
    if (!why.empty()) {
        archives.reset();
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "MorphKV cannot archive for this context: " + why);
    }
}

void morphkv_cache::archive_cells(llama_seq_id seq_id, uint32_t n_old) {
    const int64_t t_start_us = ggml_time_us();
    const auto &  cells      = get_cells(seq_id);
    auto &        archive    = archives->of(seq_id);
    if (!has_evicted(seq_id)) {
        archive.clear();  // what another process left in its file is of another text
    }
    if (!archive.why_stopped().empty()) {
        return;
    }
    uint32_t    i = has_evicted(seq_id) ? n_distant : 0;
    std::string why;
    if (archive.end() >= 0 && i < n_old && cells.pos_get(i) != archive.end()) {
        why = "tokens before position " + std::to_string(cells.pos_get(i)) + " are not in it";
    }
    for (; why.empty() && i < n_old; i += N_CHUNK) {
        const uint32_t       n = std::min(N_CHUNK, n_old - i);
        std::vector<int32_t> turn;
        for (uint32_t j = i; j < i + n; ++j) {
            turn.push_back(streams[seq_id].rotary_offset - cells.pos_get(j));
        }
        try {
            morphkv_runner runner(lctx, layers());
            why = read_cells(seq_id, i, turn, archives->free_rows(), runner);
        } catch (const std::exception & err) {
            why = err.what();
        }
        if (why.empty()) {
            archives->append(seq_id, cells.pos_get(i), n);
        }
    }
    if (!why.empty()) {
        archives->stop(seq_id, why);
    }
    archive_ms += (ggml_time_us() - t_start_us) / 1000.0;
}

std::string morphkv_cache::read_cells(llama_seq_id seq_id, uint32_t i_first, const std::vector<int32_t> & turn,
                                      char * out, morphkv_runner & runner) const {
    const auto &  staging = archives->staging;
    const int64_t n       = turn.size();
    ggml_tensor * rot     = nullptr;
    ggml_tensor * deltas  = nullptr;
    size_t        il      = 0;

    auto begin = [&](morphkv_inputs & inputs) {
        deltas = inputs.add(GGML_TYPE_I32, n, 1, turn);
        rot    = build_input_k_rot(inputs.ctx);
        if (rot) {
            inputs.add(rot, [this](ggml_tensor * t) { set_input_k_rot(t); });
        }
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        const bool    turns = layer.rope.is == morphkv_rope::kind::ROTATED;
        ggml_tensor * k     = layer.k;
        ggml_tensor * v     = layer.v;
        ggml_tensor * rows = ggml_view_2d(inputs.ctx, k, k->ne[0], n, k->nb[1], seq_id * k->nb[2] + i_first * k->nb[1]);
        ggml_tensor * keys =
            morphkv_build_unrotated(inputs.ctx, rows, layer.n_head_kv, turns ? deltas : nullptr, layer.rope, rot);
        if (keys->type != staging.type_k) {
            keys = ggml_cast(inputs.ctx, keys, staging.type_k);
        }
        ggml_build_forward_expand(gf, keys);
        inputs.read(keys, 0, ggml_nbytes(keys), out + staging.layers[il].k_at);
        inputs.read(v, seq_id * v->nb[2] + i_first * v->nb[1], n * v->nb[1], out + staging.layers[il].v_at);
        il++;
    };
    return runner.run(N_TENSORS, begin, build);
}

std::string morphkv_cache::why_not_archived() const {
    morphkv_runner runner(lctx, layers());
    runner.check_only     = true;
    const std::string why = read_cells(0, 0, std::vector<int32_t>(N_CHUNK), nullptr, runner);
    return why.empty() ? why_not_recalled() : why;
}
