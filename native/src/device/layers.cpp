#include "device/layers.h"

#include "core/params.h"

#include "ggml-alloc.h"

#include <algorithm>

bool morphkv_side_layer::is_on_cpu() const {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(k->buffer));
    return !dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

morphkv_rope morphkv_side_layer::query_rope() const {
    morphkv_rope res = rope;
    res.weights      = query_weights;
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

        layer.ring   = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, n_embd_q, n_ring, n_stream);
        layer.serial = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_distant, layer.n_head_kv, n_stream);
        layer.score =
            with_scores ? ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_distant, layer.n_head_kv, n_stream) : nullptr;

        ggml_format_name(layer.ring, "morphkv_ring_l%d", layer.il);
        ggml_format_name(layer.serial, "morphkv_serial_l%d", layer.il);
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

std::vector<morphkv_slice> morphkv_side::slices(uint32_t i_stream, uint32_t n_used) const {
    std::vector<morphkv_slice> res;
    for (const auto & layer : layers) {
        for (ggml_tensor * t : { layer.k, layer.v }) {
            if (t) {
                res.push_back({ t, i_stream * t->nb[2], n_used * t->nb[1] });
            }
        }
        for (ggml_tensor * t : { layer.ring, layer.serial, layer.score }) {
            if (t) {
                res.push_back({ t, i_stream * t->nb[2], t->nb[2] });
            }
        }
    }
    return res;
}

void morphkv_copy_slices(const std::vector<morphkv_slice> & slices, uint32_t i_src, uint32_t i_dst) {
    ggml_init_params params = { 2 * slices.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true };
    ggml_context_ptr ctx(ggml_init(params));

    // whole rows: a slice of a quantized tensor has no other shape
    for (const auto & slice : slices) {
        ggml_tensor * t = slice.tensor;
        if (slice.size == 0) {
            continue;
        }
        auto view = [&](size_t offset) {
            ggml_tensor * res = ggml_view_2d(ctx.get(), t, t->ne[0], slice.size / t->nb[1], t->nb[1], offset);
            ggml_backend_view_init(res);
            return res;
        };
        ggml_backend_tensor_copy(view(slice.offset), view(slice.offset - i_src * t->nb[2] + i_dst * t->nb[2]));
    }
}

void morphkv_side::set_first_serials(uint32_t i_stream) {
    for (const auto & layer : layers) {
        std::vector<int32_t> serials(layer.n_head_kv * n_distant);
        for (size_t i = 0; i < serials.size(); ++i) {
            serials[i] = i % n_distant;
        }
        set_serials(layer, i_stream, serials);
    }
    clear_sums(i_stream);
}

void morphkv_side::clear_sums(uint32_t i_stream) {
    for (const auto & layer : layers) {
        if (layer.score) {
            ggml_backend_tensor_memset(layer.score, 0, i_stream * layer.score->nb[2], layer.score->nb[2]);
        }
    }
}

void morphkv_side::set_sums_of_new(const morphkv_side_layer & layer, uint32_t i_stream,
                                   const std::vector<int32_t> & before, const std::vector<int32_t> & after,
                                   const std::vector<float> & votes) {
    GGML_ASSERT(before.size() == after.size() && votes.size() == after.size());
    std::vector<float> sums(after.size());
    const size_t       n_bytes = sums.size() * sizeof(float);
    ggml_backend_tensor_get(layer.score, sums.data(), i_stream * layer.score->nb[2], n_bytes);
    for (size_t i = 0; i < sums.size(); ++i) {
        if (before[i] != after[i]) {
            // a cache may hold NaN, which cannot be ranked
            sums[i] = votes[i] > 0.0f ? votes[i] : 0.0f;
        }
    }
    ggml_backend_tensor_set(layer.score, sums.data(), i_stream * layer.score->nb[2], n_bytes);
}

void morphkv_side::set_serials(const morphkv_side_layer & layer, uint32_t i_stream,
                               const std::vector<int32_t> & serials) {
    GGML_ASSERT((int64_t) serials.size() == layer.serial->ne[0] * layer.serial->ne[1]);
    ggml_backend_tensor_set(layer.serial, serials.data(), i_stream * layer.serial->nb[2],
                            serials.size() * sizeof(int32_t));
}

std::vector<int32_t> morphkv_side::get_serials(const morphkv_side_layer & layer, uint32_t i_stream) const {
    std::vector<int32_t> res(layer.n_head_kv * n_distant);
    ggml_backend_tensor_get(layer.serial, res.data(), i_stream * layer.serial->nb[2], res.size() * sizeof(int32_t));
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

std::vector<const morphkv_side_layer *> morphkv_refs(const std::vector<morphkv_side_layer> & layers) {
    std::vector<const morphkv_side_layer *> res;
    for (const auto & layer : layers) {
        res.push_back(&layer);
    }
    return res;
}
