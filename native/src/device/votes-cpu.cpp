// Votes as ggml's custom operations; what they loop over is in votes-kernels.cpp.

#include "device/votes-cpu.h"

#include "device/votes-int8.h"
#include "device/votes-kernels.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t N_TILE = MORPHKV_VOTES_PAGE;  // keys

// Voters of a task: some 24 queries.
int64_t n_part_votes(int64_t n_group) {
    return std::max<int64_t>(1, 24 / n_group);
}

// Behind what ggml_custom_4d() puts into a tensor's op_params.
constexpr size_t PARAMS_OFFSET = 32;
static_assert(PARAMS_OFFSET + sizeof(morphkv_votes_params) <= GGML_MAX_OP_PARAMS);

const morphkv_votes_params & params_of(const ggml_tensor * t) {
    return *(const morphkv_votes_params *) ((const char *) t->op_params + PARAMS_OFFSET);
}

ggml_tensor * build_op(ggml_context * ctx, int64_t ne0, int64_t ne1, int64_t ne2, std::vector<ggml_tensor *> args,
                       ggml_custom_op_t op, const morphkv_votes_params & params, const void * const * pages = nullptr) {
    ggml_tensor * res = ggml_custom_4d(ctx, GGML_TYPE_F32, ne0, ne1, ne2, 1, args.data(), args.size(), op,
                                       GGML_N_TASKS_MAX, const_cast<const void **>(pages));
    memcpy((char *) res->op_params + PARAMS_OFFSET, &params, sizeof(params));
    return res;
}

void to_float(ggml_type type, const void * src, float * dst, int64_t n) {
    if (type == GGML_TYPE_F32) {
        memcpy(dst, src, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

// Products of bytes, for quantized keys and queries; null where this CPU has none.
const morphkv_int8_kernels * int8_kernels() {
    static const auto all = morphkv_int8_all_kernels();
    return all.empty() ? nullptr : &all[0];
}

bool is_int8(const ggml_tensor * tiles, int64_t n_embd) {
    return tiles->ne[0] != N_TILE * n_embd;
}

// dst: (n_head_kv, n_tiles, n_embd, N_TILE), or as votes-int8.h has tiles; keys beyond n_old repeat the last
void lay_out_keys(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor *          k      = dst->src[0];
    const auto *                 pages  = (const void * const *) userdata;
    const morphkv_votes_params & params = params_of(dst);

    const int64_t n_embd  = params.n_embd;
    const int64_t n_tiles = dst->ne[1];
    const size_t  k_bytes = ggml_row_size(k->type, n_embd);

    // heads innermost: their keys lie side by side
    std::vector<float> rows(N_TILE * n_embd);
    const int64_t      n_heads = dst->ne[2];
    for (int64_t i = ith; i < n_tiles * n_heads; i += nth) {
        const int64_t i_tile = i / n_heads, h = i % n_heads;
        const char *  keys[N_TILE];
        for (int64_t j = 0; j < N_TILE; ++j) {
            const int64_t cell = std::min<int64_t>(i_tile * N_TILE + j, params.n_old - 1);
            const char *  row =
                pages ? (const char *) pages[i_tile] + j * k->nb[1] : (const char *) k->data + cell * k->nb[1];
            keys[j] = row + h * k_bytes;
        }
        float * tile = (float *) ((char *) dst->data + h * dst->nb[2] + i_tile * dst->nb[1]);
        if (is_int8(dst, n_embd)) {
            int8_kernels()->lay_out(k->type, keys, n_embd, tile);
        } else {
            morphkv_votes_best_kernels().lay_out(k->type, keys, n_embd, rows.data(), tile);
        }
    }
}

// dst: (n_head_kv, n_parts, n_old or n_pages)
void compute_votes(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    const ggml_tensor * tiles = dst->src[0];
    const ggml_tensor * q     = dst->src[1];
    const ggml_tensor * sinks = dst->src[2];

    const int64_t n_embd  = params_of(dst).n_embd;
    const int64_t n_tiles = tiles->ne[1];
    const int64_t n_group = q->ne[0] / n_embd / dst->ne[2];
    const int64_t n_votes = q->ne[1];
    const int64_t n_parts = dst->ne[1];
    const size_t  q_bytes = ggml_row_size(q->type, n_embd);
    const int64_t n_part  = n_part_votes(n_group);
    const int64_t n_most  = n_part * n_group;

    std::vector<float> queries(n_most * n_embd), logits(n_most * n_tiles * N_TILE), inv_sum(n_most);
    for (int64_t i = ith; i < n_parts * dst->ne[2]; i += nth) {
        const int64_t h     = i / n_parts;
        const int64_t first = i % n_parts * n_part;

        const morphkv_votes_task t{ (const float *) tiles->data + h * tiles->ne[0] * n_tiles,
                                    queries.data(),
                                    sinks ? (const float *) sinks->data + h * n_group : nullptr,
                                    logits.data(),
                                    inv_sum.data(),
                                    (float *) dst->data + i * dst->ne[0],
                                    n_tiles,
                                    n_embd,
                                    std::min(n_part, n_votes - first),
                                    n_group,
                                    params_of(dst) };
        for (int64_t j = 0; j < t.n_votes; ++j) {
            const char * row = (const char *) q->data + (first + j) * q->nb[1] + h * n_group * q_bytes;
            if (is_int8(tiles, n_embd)) {
                memcpy((char *) queries.data() + j * n_group * q_bytes, row, n_group * q_bytes);
            } else {
                to_float(q->type, row, queries.data() + j * n_group * n_embd, n_group * n_embd);
            }
        }
        (is_int8(tiles, n_embd) ? int8_kernels()->run : morphkv_votes_best_kernels().run)(t);
    }
}

}  // namespace

bool morphkv_votes_on_cpu(ggml_backend_t backend, ggml_type type_k, int64_t n_embd_head) {
    ggml_backend_dev_t dev = backend ? ggml_backend_get_device(backend) : nullptr;
    return dev && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU &&
           ggml_backend_buft_is_host(ggml_backend_get_default_buffer_type(backend)) &&
           n_embd_head % ggml_blck_size(type_k) == 0 &&
           (type_k == GGML_TYPE_F32 || ggml_get_type_traits(type_k)->to_float);
}

static ggml_tensor * build_votes(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q, ggml_tensor * sinks,
                                 morphkv_votes_params params, const void * const * pages = nullptr) {
    const int64_t n_embd  = k->ne[0] / params.n_head_kv;
    const bool    is_int8 = q->type == GGML_TYPE_Q8_0 && int8_kernels();
    const int64_t n_tiles = (params.n_old + N_TILE - 1) / N_TILE;
    const int64_t n_part  = n_part_votes(q->ne[0] / k->ne[0]);
    const int64_t n_parts = (q->ne[1] + n_part - 1) / n_part;
    const int64_t n_tile  = is_int8 ? morphkv_int8_tile_size(n_embd) : N_TILE * n_embd;
    params.n_embd         = n_embd;
    ggml_tensor * tiles   = build_op(ctx, n_tile, n_tiles, params.n_head_kv, { k }, lay_out_keys, params, pages);

    std::vector<ggml_tensor *> args = { tiles, q };
    if (sinks) {
        args.push_back(sinks);
    }
    const int64_t n_out = params.n_page > 0 ? params.n_old / params.n_page : params.n_old;
    return build_op(ctx, n_out, n_parts, params.n_head_kv, args, compute_votes, params);
}

// Queries as the CPU's matrix product takes them.
static ggml_tensor * build_queries(ggml_context * ctx, ggml_tensor * q, ggml_type type_k) {
    if (ggml_is_quantized(type_k)) {
        return ggml_cast(ctx, q, GGML_TYPE_Q8_0);
    }
    return type_k == GGML_TYPE_BF16 ? ggml_cast(ctx, q, GGML_TYPE_BF16) : q;
}

ggml_tensor * morphkv_build_votes_on_cpu(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q, ggml_tensor * sinks,
                                         const morphkv_votes_params & params) {
    return build_votes(ctx, k, build_queries(ctx, q, k->type), sinks, params);
}

ggml_tensor * morphkv_build_page_scores(ggml_context * ctx, ggml_tensor * k, ggml_tensor * q,
                                        const morphkv_votes_params & params, const void * const * pages) {
    return build_votes(ctx, k, build_queries(ctx, q, k->type), nullptr, params, pages);
}
