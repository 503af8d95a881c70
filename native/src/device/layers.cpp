#include "device/layers.h"

#include "core/params.h"

#include "ggml-alloc.h"
#include "llama-hparams.h"
#include "llama-kv-cache.h"

#include <algorithm>

bool morphkv_side_layer::is_on_cpu() const {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(k->buffer));
    return !dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

std::vector<morphkv_side_layer> morphkv_layers_of(const llama_kv_cache & cache, const llama_hparams & hparams) {
    // the one way from here to V
    ggml_context_ptr ctx(
        ggml_init({ ggml_tensor_overhead() * cache.get_layer_ids().size(), nullptr, /*.no_alloc =*/true }));

    std::vector<morphkv_side_layer> res;
    for (const uint32_t il : cache.get_layer_ids()) {
        const llama_kv_cache::slot_info first_stream = { 0, 0, { 0 }, { { 0 } } };

        morphkv_side_layer layer{};
        layer.il        = il;
        layer.n_head    = hparams.n_head(il);
        layer.n_head_kv = hparams.n_head_kv(il);
        layer.softcap   = hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f;
        layer.k         = cache.get_k_storage(il);
        layer.v         = hparams.is_mla() ? nullptr : cache.get_v(ctx.get(), il, 1, first_stream)->view_src;
        res.push_back(layer);
    }
    return res;
}

void morphkv_side::init(std::vector<morphkv_side_layer> layers_in, int32_t n_ring_in, int32_t n_distant_in,
                        uint32_t n_stream, bool with_scores, bool dry) {
    layers    = std::move(layers_in);
    n_ring    = n_ring_in;
    n_distant = n_distant_in;

    for (auto & layer : layers) {
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(layer.k->buffer);

        auto it = std::find_if(buffers.begin(), buffers.end(), [&](const buffer & b) { return b.buft == buft; });
        if (it == buffers.end()) {
            ggml_init_params params = { 3 * layers.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true };
            buffers.push_back({ ggml_context_ptr(ggml_init(params)), nullptr, buft, 0 });
            it = buffers.end() - 1;
        }
        ggml_context * ctx = it->ctx.get();

        const int64_t n_embd_q = layer.k->ne[0] / layer.n_head_kv * layer.n_head;

        layer.ring = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, n_embd_q, n_ring, n_stream);
        layer.pos  = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_distant, layer.n_head_kv, n_stream);
        layer.score =
            with_scores ? ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_distant, layer.n_head_kv, n_stream) : nullptr;

        ggml_format_name(layer.ring, "morphkv_ring_l%d", layer.il);
        ggml_format_name(layer.pos, "morphkv_pos_l%d", layer.il);
        if (layer.score) {
            ggml_format_name(layer.score, "morphkv_score_l%d", layer.il);
        }
    }

    for (auto & b : buffers) {
        b.n_bytes = ggml_backend_alloc_ctx_tensors_from_buft_size(b.ctx.get(), b.buft);
        if (dry) {
            b.buf.reset(ggml_backend_buft_alloc_buffer(b.buft, 0));
            for (ggml_tensor * t = ggml_get_first_tensor(b.ctx.get()); t; t = ggml_get_next_tensor(b.ctx.get(), t)) {
                t->buffer = b.buf.get();
            }
            continue;
        }
        b.buf.reset(ggml_backend_alloc_ctx_tensors_from_buft(b.ctx.get(), b.buft));
        if (!b.buf) {
            throw morphkv_error(MORPHKV_STATUS_FAILED, "cannot allocate " + std::to_string(b.n_bytes) +
                                                           " bytes for MorphKV on " + ggml_backend_buft_name(b.buft));
        }
        b.n_bytes = ggml_backend_buffer_get_size(b.buf.get());
    }
    if (!dry) {
        clear();
    }
}

ggml_tensor * morphkv_side::stream(ggml_context * ctx, ggml_tensor * t, uint32_t i_stream) {
    return t ? ggml_view_2d(ctx, t, t->ne[0], t->ne[1], t->nb[1], i_stream * t->nb[2]) : nullptr;
}

void morphkv_side::copy(uint32_t i_src, uint32_t i_dst, uint32_t n_used) {
    ggml_init_params params = { 10 * layers.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true };
    ggml_context_ptr ctx(ggml_init(params));

    // whole rows: a slice of a quantized tensor has no other shape
    for_each_slice(i_src, n_used, [&](ggml_tensor * t, size_t, size_t size) {
        if (size == 0) {
            return;
        }
        auto view = [&](uint32_t i_stream) {
            ggml_tensor * res = ggml_view_2d(ctx.get(), t, t->ne[0], size / t->nb[1], t->nb[1], i_stream * t->nb[2]);
            ggml_backend_view_init(res);
            return res;
        };
        ggml_backend_tensor_copy(view(i_src), view(i_dst));
    });
}

void morphkv_side::set_positions(uint32_t i_stream, const std::vector<int32_t> & pos) {
    GGML_ASSERT((int32_t) pos.size() == n_distant);
    for (const auto & layer : layers) {
        for (int32_t h = 0; h < layer.n_head_kv; ++h) {
            ggml_backend_tensor_set(layer.pos, pos.data(), i_stream * layer.pos->nb[2] + h * layer.pos->nb[1],
                                    pos.size() * sizeof(int32_t));
        }
        if (layer.score) {
            ggml_backend_tensor_memset(layer.score, 0, i_stream * layer.score->nb[2], layer.score->nb[2]);
        }
    }
}

std::vector<int32_t> morphkv_side::get_positions(const morphkv_side_layer & layer, uint32_t i_stream) const {
    std::vector<int32_t> res(layer.n_head_kv * n_distant);
    ggml_backend_tensor_get(layer.pos, res.data(), i_stream * layer.pos->nb[2], res.size() * sizeof(int32_t));
    return res;
}

void morphkv_side::clear() {
    for (auto & b : buffers) {
        ggml_backend_buffer_clear(b.buf.get(), 0);
    }
}

size_t morphkv_side::n_bytes() const {
    size_t res = 0;
    for (const auto & b : buffers) {
        res += b.n_bytes;
    }
    return res;
}

void morphkv_side::add_breakdown(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const {
    for (const auto & b : buffers) {
        sizes[b.buft] += b.n_bytes;
    }
}
