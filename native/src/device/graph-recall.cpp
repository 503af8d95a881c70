#include "device/graph-recall.h"

#include "core/params.h"
#include "device/evict.h"
#include "device/graph-turn.h"
#include "device/stack.h"
#include "device/votes-cpu.h"

#include "ggml-alloc.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cstring>
#include <numeric>

static constexpr int32_t N_PAGE    = morphkv_archive::N_PAGE;
static constexpr size_t  N_BYTES   = 256u << 20;  // of rows at once, where that is more than one layer's
static constexpr size_t  N_TENSORS = 30;          // of a layer in a graph, votes apart

// An index of so many places or more is looked at in one layer of N_LAYERS_TO_ONE: those that tell its pages apart best, known from
// one place in SAMPLE.
static constexpr int64_t N_MANY_PLACES   = 2048;
static constexpr int64_t SAMPLE          = 16;
static constexpr size_t  N_LAYERS_TO_ONE = 4;
static_assert(N_PAGE == MORPHKV_VOTES_PAGE);

// Keys of the archive are without weights, so that queries get those of both. q: (n_votes, n_head*n_embd_k)
static ggml_tensor * build_weights_of_both(ggml_context * ctx, ggml_tensor * q, const morphkv_side_layer & layer) {
    for (ggml_tensor * weights : { layer.query_weights, layer.rope.weights }) {
        if (weights) {
            const int64_t n_row = q->ne[0], n_votes = q->ne[1];
            q = ggml_mul(ctx, ggml_reshape_3d(ctx, q, n_row / layer.n_head, layer.n_head, n_votes), weights);
            q = ggml_reshape_2d(ctx, q, n_row, n_votes);
        }
    }
    return q;
}

std::string morphkv_read_votes(morphkv_runner & runner, const std::vector<morphkv_side_layer> & layers,
                               const morphkv_k_rot & k_rot, uint32_t i_stream, int32_t n_distant,
                               const morphkv_evict_policy & policy, const std::vector<int32_t> & vote_rows,
                               const std::vector<int32_t> & turn, morphkv_layer_floats & queries,
                               morphkv_layer_floats & votes) {
    morphkv_evict_shape shape{};
    shape.n_distant = n_distant;
    shape.n_votes   = vote_rows.size();

    ggml_tensor * rot    = nullptr;
    ggml_tensor * deltas = nullptr;
    size_t        il     = 0;

    morphkv_evict_inputs inp{};
    auto                 begin = [&](morphkv_inputs & inputs) {
        inp.vote_rows = inputs.add(GGML_TYPE_I32, vote_rows.size(), 1, vote_rows);
        deltas        = nullptr;
        rot           = k_rot.add_to(inputs);
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        ggml_context *            ctx = inputs.ctx;
        const morphkv_evict_layer cur = morphkv_stack_layer(ctx, { &layer }, i_stream, inputs.backend);
        ggml_tensor *             v   = morphkv_build_votes(ctx, cur, shape, policy, inp);
        ggml_build_forward_expand(gf, v);
        inputs.read(v, [&votes, i = il](const std::vector<float> & data) { votes[i] = data; });

        const bool rotates = layer.rope.is == morphkv_rope::kind::ROTATED;
        if (rotates && !deltas) {  // the same for all layers
            const std::vector<int32_t> by = layer.rope.turns(turn);
            deltas                        = inputs.add(GGML_TYPE_I32, by.size(), 1, by);
        }
        ggml_tensor * q = morphkv_build_voters(ctx, cur, inp.vote_rows);
        q = morphkv_build_unrotated(ctx, q, layer.n_head, rotates ? deltas : nullptr, layer.query_rope(), rot);
        q = build_weights_of_both(ctx, q, layer);
        ggml_build_forward_expand(gf, q);
        inputs.read(q, [&queries, i = il](const std::vector<float> & data) { queries[i] = data; });
        il++;
    };
    queries.resize(layers.size());
    votes.resize(layers.size());
    return runner.run(morphkv_refs(layers), morphkv_max_vote_tensors(layers, vote_rows.size()) + N_TENSORS, begin,
                      build);
}

[[noreturn]] static void fail(const std::string & why) {
    throw morphkv_error(MORPHKV_STATUS_FAILED, "recall failed: " + why);
}

std::vector<float> morphkv_device_scorer::score(const std::vector<morphkv_side_layer> & host,
                                                const std::vector<size_t> & i_layers, int32_t n_page, int32_t n_skip,
                                                std::vector<float> &                           scores,
                                                const std::vector<std::vector<const void *>> & pages) const {
    std::vector<float> peaks(host.size(), 0.0f);
    size_t             i     = 0;
    auto               begin = [](morphkv_inputs &) {
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        const int64_t n_embd_q   = layer.k->ne[0] / layer.n_head_kv * layer.n_head;
        const auto &  queries_of = queries[i_layers[i]];
        ggml_tensor * q          = inputs.add(GGML_TYPE_F32, n_embd_q, queries_of.size() / n_embd_q, queries_of);
        ggml_tensor * k          = morphkv_side::stream(inputs.ctx, layer.k, 0);

        morphkv_votes_params params{};
        params.n_old     = pages.empty() ? k->ne[1] : pages[i].size() * N_PAGE;
        params.n_head_kv = layer.n_head_kv;
        params.scale     = layer.kq_scale;
        params.softcap   = layer.softcap;
        params.n_page    = n_page;
        params.n_skip    = n_skip;
        ggml_tensor * s =
            morphkv_build_page_scores(inputs.ctx, k, q, params, pages.empty() ? nullptr : pages[i].data());
        ggml_build_forward_expand(gf, s);
        inputs.read(s, [&scores, &peak = peaks[i]](const std::vector<float> & data) {
            std::vector<float> of_layer(scores.size());
            for (size_t j = 0; j < data.size(); ++j) {
                // a cache may hold NaN, which cannot be sorted
                of_layer[j % scores.size()] += data[j] > 0.0f ? data[j] : 0.0f;
            }
            for (size_t j = 0; j < scores.size(); ++j) {
                scores[j] += of_layer[j];
                peak = std::max(peak, of_layer[j]);
            }
        });
        i++;
    };
    morphkv_runner    runner(engine);
    const std::string why = runner.run(morphkv_refs(host), N_TENSORS, begin, build);
    if (!why.empty()) {
        fail(why);
    }
    return peaks;
}

// In which one page gets most.
static std::vector<size_t> best_layers(const std::vector<float> & peaks) {
    std::vector<size_t> res(peaks.size());
    std::iota(res.begin(), res.end(), 0);
    std::stable_sort(res.begin(), res.end(), [&](size_t a, size_t b) { return peaks[a] > peaks[b]; });
    res.resize((res.size() + N_LAYERS_TO_ONE - 1) / N_LAYERS_TO_ONE);
    std::sort(res.begin(), res.end());
    return res;
}

std::vector<float> morphkv_device_scorer::by_index(size_t i_source) {
    const morphkv_knowledge * file     = sources.all()[i_source].file;
    const int64_t             n_places = file ? file->n_pages() : sources.own().n_places();

    ggml_context_ptr ctx(ggml_init({ 2 * layers.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
    std::vector<ggml_backend_buffer_ptr> buffers;
    // one place in `stride`
    auto                                 index_of = [&](const std::vector<size_t> & asked, int64_t stride) {
        std::vector<morphkv_side_layer> res;
        for (const size_t il : asked) {
            // only read
            void * rows = file ? const_cast<void *>(file->index_rows(il)) : sources.own().index_rows(il);
            res.push_back(layers[il]);
            ggml_tensor * k = ggml_new_tensor_3d(ctx.get(), sources.own().layout.index_type(il), layers[il].k->ne[0],
                                                 n_places / stride, 1);
            k->nb[1] *= stride;
            k->nb[2] = k->nb[3] = k->nb[1] * k->ne[1];
            buffers.emplace_back(ggml_backend_cpu_buffer_from_ptr(rows, n_places / stride * k->nb[1]));
            ggml_backend_tensor_alloc(buffers.back().get(), k, rows);
            res.back().k = k;
        }
        return res;
    };
    std::vector<size_t> all(queries.size());
    std::iota(all.begin(), all.end(), 0);
    std::vector<float> res(n_places);
    if (n_places < N_MANY_PLACES) {
        score(index_of(all, 1), all, 1, 0, res);
        return res;
    }
    std::vector<float>        sampled(n_places / SAMPLE);
    const std::vector<size_t> asked = best_layers(score(index_of(all, SAMPLE), all, 1, 0, sampled));
    score(index_of(asked, 1), asked, 1, 0, res);
    return res;
}

std::vector<float> morphkv_device_scorer::by_rows(const std::vector<int64_t> & pages, int32_t n_skip) {
    const morphkv_page_layout & layout = sources.own().layout;
    std::vector<float>          res(pages.size());
    for (size_t first = 0, last = 0; first < queries.size(); first = last) {
        for (size_t n_bytes = 0; last < queries.size() && (last == first || n_bytes <= N_BYTES); ++last) {
            n_bytes += pages.size() * N_PAGE * layout.k_bytes(last);
        }
        std::vector<size_t> part(last - first);
        std::iota(part.begin(), part.end(), first);
        ggml_context_ptr ctx(ggml_init({ part.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        std::vector<morphkv_side_layer> host;
        for (const size_t il : part) {
            host.push_back(layers[il]);
            host.back().k = ggml_new_tensor_3d(ctx.get(), layout.type_k, layers[il].k->ne[0], N_PAGE, 1);
        }
        ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
        if (!buffer) {
            fail("out of memory");
        }
        std::vector<std::vector<const void *>> keys(part.size());
        std::vector<morphkv_archive::page_ptr> in_memory;
        std::vector<std::vector<uint8_t>>      read;
        for (const int64_t i_page : pages) {
            auto page = sources.find_page(i_page);
            if (!page) {
                return {};
            }
            // what is in memory anyway stays where it is; of a page that was read from a file the keys stay
            const bool is_in_memory = page.use_count() > 1;
            for (size_t j = 0; j < part.size(); ++j) {
                const uint8_t * k = page->data() + layout.layers[part[j]].k_at;
                if (!is_in_memory) {
                    read.emplace_back(k, k + N_PAGE * layout.k_bytes(part[j]));
                    k = read.back().data();
                }
                keys[j].push_back(k);
            }
            if (is_in_memory) {
                in_memory.push_back(std::move(page));
            }
        }
        score(host, part, N_PAGE, n_skip, res, keys);
    }
    return res;
}
