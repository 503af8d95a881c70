// What a cut pushes out of the window goes to the host, into the archive that a recall (recall.cpp) brings it back from.

#include "core/types.h"
#include "device/graph-archive.h"
#include "llama-impl.h"
#include "llama/memory.h"

#include <algorithm>

static constexpr uint32_t N_CHUNK = 128;  // tokens that are archived by one graph

morphkv_archive_params morphkv_archive_params_default(void) {
    morphkv_archive_params res{};
    res.size      = sizeof(res);
    res.type_k    = -1;
    res.type_v    = -1;
    res.max_bytes = 2ull << 30;
    return res;
}

[[noreturn]] static void invalid(const std::string & what) {
    throw morphkv_error(MORPHKV_STATUS_INVALID, what);
}

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
        res.add_layer(layer.n_head_kv, n_embd_k, n_embd_v, layer.il);
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
    set_context(lctx);
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
                morphkv_runner runner(cut_engine);
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
