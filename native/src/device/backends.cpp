#include "device/backends.h"

#include <algorithm>

ggml_backend_t morphkv_backend_of(ggml_backend_sched_t sched, ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(buft);
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        if (dev ? ggml_backend_get_device(backend) == dev : ggml_backend_supports_buft(backend, buft)) {
            return backend;
        }
    }
    return nullptr;
}

std::string morphkv_describe(const ggml_tensor * node) {
    std::string  res  = ggml_op_desc(node);
    const char * and_ = " of ";
    for (const ggml_tensor * src : node->src) {
        if (!src) {
            continue;
        }
        res += and_ + std::string(ggml_type_name(src->type)) + " [";
        for (int i = 0; i < ggml_n_dims(src); ++i) {
            res += (i ? ", " : "") + std::to_string(src->ne[i]);
        }
        res += "]";
        and_ = " and ";
    }
    if (node->op == GGML_OP_VIEW && node->src[0] && node->type != node->src[0]->type) {
        res += std::string(" as ") + ggml_type_name(node->type);
    }
    return res;
}

std::string morphkv_why_not_there(ggml_backend_t backend, ggml_cgraph * gf, int i_first, int i_last) {
    if (!backend) {
        return "no device of this context computes there";
    }
    for (int i = i_first; i < i_last; ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        if (!ggml_backend_supports_op(backend, node)) {
            return std::string(ggml_backend_name(backend)) + " does not support " + morphkv_describe(node);
        }
    }
    return "";
}

const ggml_tensor * morphkv_find_out_of_reach(ggml_cgraph * gf, const std::vector<ggml_backend_t> & backends) {
    for (size_t i = 0; i < backends.size(); ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        const bool is_view = node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE || node->op == GGML_OP_PERMUTE ||
                             node->op == GGML_OP_TRANSPOSE;
        for (const ggml_tensor * src : node->src) {
            const ggml_tensor * whole = src && src->view_src ? src->view_src : src;
            if (!is_view && whole && whole->buffer &&
                !ggml_backend_supports_buft(backends[i], ggml_backend_buffer_get_type(whole->buffer))) {
                return src;
            }
        }
    }
    return nullptr;
}

morphkv_crossings::morphkv_crossings(ggml_cgraph * gf) {
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        for (int j = 0; j < GGML_MAX_SRC; ++j) {
            if (node->src[j]) {
                sources.push_back({ node, j, node->src[j] });
            }
        }
    }
}

std::vector<const ggml_tensor *> morphkv_crossings::find() const {
    std::vector<const ggml_tensor *> res;
    for (const source & s : sources) {
        const ggml_tensor * whole = s.tensor->view_src ? s.tensor->view_src : s.tensor;
        const bool          is_weight =
            whole->buffer && ggml_backend_buffer_get_usage(whole->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
        if (s.node->src[s.i_src] != s.tensor && !is_weight && !(whole->flags & GGML_TENSOR_FLAG_INPUT) &&
            std::find(res.begin(), res.end(), whole) == res.end()) {
            res.push_back(whole);
        }
    }
    return res;
}
