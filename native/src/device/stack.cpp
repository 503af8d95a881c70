#include "device/stack.h"

#include <algorithm>

namespace {

ggml_tensor * morphkv_side_layer::* const TENSORS[] = { &morphkv_side_layer::k, &morphkv_side_layer::v,
                                                        &morphkv_side_layer::ring, &morphkv_side_layer::serial,
                                                        &morphkv_side_layer::score };

bool is_alike(const ggml_tensor * a, const ggml_tensor * b) {
    if (!a || !b) {
        return a == b;
    }
    return a->buffer == b->buffer && a->type == b->type && ggml_are_same_shape(a, b) && ggml_are_same_stride(a, b);
}

size_t n_bytes_allocated(const ggml_tensor * t) {
    ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(t->buffer);
    return GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), ggml_backend_buft_get_alignment(buft));
}

// In bytes, from a layer's tensor to that of the next one; 0 where there is none. Where nothing is allocated (a probe), as it
// will be: the layers of a buffer one behind the other, K and V in one, what is beside them in another.
ptrdiff_t stride(const morphkv_side_layer & from, const morphkv_side_layer & to,
                 ggml_tensor * morphkv_side_layer::* tensor) {
    if (!(from.*tensor)) {
        return 0;
    }
    if ((from.*tensor)->data) {
        return (const char *) (to.*tensor)->data - (const char *) (from.*tensor)->data;
    }
    const bool is_beside = tensor != &morphkv_side_layer::k && tensor != &morphkv_side_layer::v;
    ptrdiff_t  res       = 0;
    for (const auto t : TENSORS) {
        if (from.*t && is_beside == (t != &morphkv_side_layer::k && t != &morphkv_side_layer::v)) {
            res += n_bytes_allocated(from.*t);
        }
    }
    return res;
}

// Whether b, behind the layers of the stack, is one more of them.
bool goes_on(const morphkv_stack & stack, const morphkv_side_layer & b) {
    const morphkv_side_layer & a = *stack.back();
    if (a.n_head != b.n_head || a.n_readers() != b.n_readers() || a.n_head_kv != b.n_head_kv ||
        a.softcap != b.softcap || a.kq_scale != b.kq_scale || a.sinks || b.sinks) {
        return false;
    }
    for (const auto t : TENSORS) {
        if (!is_alike(a.*t, b.*t)) {
            return false;
        }
        const ptrdiff_t n_bytes = stride(a, b, t);
        // strides are counted in blocks of a type
        if (a.*t && (n_bytes < (ptrdiff_t) ggml_nbytes(a.*t) || n_bytes % ggml_type_size((a.*t)->type) != 0)) {
            return false;
        }
        if (stack.size() > 1 && n_bytes != stride(*stack[0], *stack[1], t)) {
            return false;
        }
    }
    return true;
}

// (n_layers, ne1, ne0), or null
ggml_tensor * stream(ggml_context * ctx, const morphkv_stack & stack, ggml_tensor * morphkv_side_layer::* tensor,
                     uint32_t i_stream) {
    ggml_tensor * first = stack[0]->*tensor;
    if (!first || stack.size() == 1) {
        return morphkv_side::stream(ctx, first, i_stream);
    }
    const size_t  n_bytes = stride(*stack[0], *stack[1], tensor);
    const int64_t n       = stack.size();

    // bytes: of quantized rows CUDA would clear what it takes for padding behind the last
    ggml_tensor * all = ggml_new_tensor_1d(ctx, GGML_TYPE_I8, (n - 1) * n_bytes + ggml_nbytes(first));
    if (first->data) {
        ggml_backend_tensor_alloc(first->buffer, all, first->data);
    } else {
        all->buffer = first->buffer;
    }

    ggml_tensor * res = ggml_view_1d(ctx, all, 1, i_stream * first->nb[2]);
    res->type         = first->type;
    std::copy(first->ne, first->ne + 2, res->ne);
    std::copy(first->nb, first->nb + 2, res->nb);
    res->ne[2] = n;
    res->nb[2] = n_bytes;
    res->nb[3] = n * n_bytes;
    return res;
}

}  // namespace

std::vector<morphkv_stack> morphkv_make_stacks(const std::vector<morphkv_side_layer> &                         layers,
                                               const std::function<size_t(const morphkv_side_layer & layer)> & n_most) {
    std::vector<morphkv_stack> res;
    for (const auto & layer : layers) {
        if (res.empty() || res.back().size() >= n_most(*res.back()[0]) || !goes_on(res.back(), layer)) {
            res.emplace_back();
        }
        res.back().push_back(&layer);
    }
    return res;
}

morphkv_evict_layer morphkv_stack_layer(ggml_context * ctx, const morphkv_stack & stack, uint32_t i_stream,
                                        ggml_backend_t backend) {
    morphkv_evict_layer res{};
    res.k         = stream(ctx, stack, &morphkv_side_layer::k, i_stream);
    res.v         = stream(ctx, stack, &morphkv_side_layer::v, i_stream);
    res.ring      = stream(ctx, stack, &morphkv_side_layer::ring, i_stream);
    res.serial    = stream(ctx, stack, &morphkv_side_layer::serial, i_stream);
    res.score     = stream(ctx, stack, &morphkv_side_layer::score, i_stream);
    res.sinks     = stack[0]->sinks;
    res.n_head    = stack[0]->n_head;
    res.n_readers = stack[0]->n_readers();
    res.n_head_kv = stack[0]->n_head_kv;
    res.kq_scale  = stack[0]->kq_scale;
    res.softcap   = stack[0]->softcap;
    res.backend   = backend;
    return res;
}
