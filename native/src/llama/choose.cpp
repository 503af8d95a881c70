// Which pages of an archive the newest queries ask for.
//
// A page gets the third power of its share of each vote, summed over voters, heads and layers: few heads look for what a
// question is about, but those look at one page, and the others at many. All pages are judged by their mean keys, the best of
// them by their rows.

#include "llama/memory.h"
#include "device/votes-cpu.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

namespace {

constexpr int32_t N_PAGE    = morphkv_archive::N_PAGE;
constexpr size_t  N_BYTES   = 256u << 20;  // of rows in memory at once, where that is more than one layer's
constexpr size_t  N_TENSORS = 8;           // of a layer in a graph
constexpr float   NEIGHBOUR = 0.3f;
static_assert(N_PAGE == MORPHKV_VOTES_PAGE);

using scored = std::map<int64_t, float>;  // pages

// Up to n, best first; of equal ones the older.
std::vector<int64_t> best(const scored & pages, size_t n) {
    std::vector<std::pair<float, int64_t>> order;
    for (const auto & [page, score] : pages) {
        order.emplace_back(-score, page);
    }
    n = std::min(n, order.size());
    std::partial_sort(order.begin(), order.begin() + n, order.end());
    std::vector<int64_t> res;
    for (size_t i = 0; i < n; ++i) {
        res.push_back(order[i].second);
    }
    return res;
}

}  // namespace

std::string morphkv_cache::score_pages(const std::vector<morphkv_side_layer> & host, const layer_floats & queries,
                                       int32_t n_page, int32_t n_skip, std::vector<float> & scores) const {
    std::vector<const morphkv_side_layer *> refs;
    for (const auto & layer : host) {
        refs.push_back(&layer);
    }
    size_t il    = 0;
    auto   begin = [](morphkv_inputs &) {
    };
    auto build = [&](morphkv_inputs & inputs, ggml_cgraph * gf, const morphkv_side_layer & layer) {
        const int64_t n_embd_q = layer.k->ne[0] / layer.n_head_kv * layer.n_head;
        ggml_tensor * q        = inputs.add(GGML_TYPE_F32, n_embd_q, queries[il].size() / n_embd_q, queries[il]);
        ggml_tensor * k        = morphkv_side::stream(inputs.ctx, layer.k, 0);

        morphkv_votes_params params{};
        params.n_old     = k->ne[1];
        params.n_head_kv = layer.n_head_kv;
        params.scale     = layer.kq_scale;
        params.softcap   = layer.softcap;
        params.n_page    = n_page;
        params.n_skip    = n_skip;
        ggml_tensor * s  = morphkv_build_page_scores(inputs.ctx, k, q, params);
        ggml_build_forward_expand(gf, s);
        inputs.read(s, [&scores](const std::vector<float> & data) {
            for (size_t i = 0; i < data.size(); ++i) {
                // a cache may hold NaN, which cannot be sorted
                scores[i % scores.size()] += data[i] > 0.0f ? data[i] : 0.0f;
            }
        });
        il++;
    };
    morphkv_runner runner(lctx, refs);
    return runner.run(N_TENSORS, begin, build);
}

std::vector<float> morphkv_cache::score_by_index(const morphkv_archive & archive, const layer_floats & queries) const {
    ggml_context_ptr ctx(ggml_init({ queries.size() * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
    std::vector<morphkv_side_layer> host(side.layers.begin(), side.layers.begin() + queries.size());
    for (size_t il = 0; il < host.size(); ++il) {
        host[il].k = archive.index_tensor(ctx.get(), il);
    }
    std::vector<float> res(archive.n_places());
    const std::string  why = score_pages(host, queries, 1, 0, res);
    if (!why.empty()) {
        throw morphkv_error(MORPHKV_STATUS_FAILED, "recall failed: " + why);
    }
    return res;
}

std::vector<float> morphkv_cache::score_by_rows(const morphkv_archive & archive, const std::vector<int64_t> & pages,
                                                int32_t n_keep, const layer_floats & queries) const {
    std::vector<float> res(pages.size());
    size_t             last = 0;
    for (size_t first = 0; first < queries.size(); first = last) {
        for (size_t n_bytes = 0; last < queries.size() && (last == first || n_bytes <= N_BYTES); ++last) {
            n_bytes += pages.size() * N_PAGE * archive.layout.k_bytes(last);
        }
        ggml_context_ptr ctx(ggml_init({ (last - first) * ggml_tensor_overhead(), nullptr, /*.no_alloc =*/true }));
        std::vector<morphkv_side_layer> host(side.layers.begin() + first, side.layers.begin() + last);
        for (auto & layer : host) {
            layer.k = ggml_new_tensor_3d(ctx.get(), archive.layout.type_k, layer.k->ne[0], pages.size() * N_PAGE, 1);
        }
        ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
        if (!buffer) {
            throw morphkv_error(MORPHKV_STATUS_FAILED, "recall failed: out of memory");
        }
        for (size_t i = 0; i < pages.size(); ++i) {
            const auto page = archive.find_page(pages[i]);
            if (!page) {
                return {};
            }
            for (size_t il = first; il < last; ++il) {
                const size_t n = N_PAGE * archive.layout.k_bytes(il);
                memcpy((char *) host[il - first].k->data + i * n, page->data() + archive.layout.layers[il].k_at, n);
            }
        }
        const int32_t     n_skip = archive.pos_of(pages[0]) == 0 ? std::min(n_keep, N_PAGE) : 0;
        const std::string why =
            score_pages(host, { queries.begin() + first, queries.begin() + last }, N_PAGE, n_skip, res);
        if (!why.empty()) {
            throw morphkv_error(MORPHKV_STATUS_FAILED, "recall failed: " + why);
        }
    }
    return res;
}

std::vector<int64_t> morphkv_cache::choose_pages(const morphkv_archive & archive, size_t n_wanted, size_t n_look,
                                                 int32_t n_keep, const layer_floats & queries) const {
    std::vector<int64_t> pages(archive.n_full() - archive.n_dropped());
    std::iota(pages.begin(), pages.end(), archive.n_dropped());
    if (pages.size() > n_look) {
        scored                   index;
        const std::vector<float> by_place = score_by_index(archive, queries);
        for (size_t i = 0; i < by_place.size(); ++i) {
            if (archive.page_in(i) >= 0 && !archive.is_damaged(archive.page_in(i))) {
                index[archive.page_in(i)] = by_place[i];
            }
        }
        pages = best(index, n_look);
        // what every token attends to is in the first: with it there, nobody's votes go to the rest for want of another
        if (archive.n_dropped() == 0 && std::find(pages.begin(), pages.end(), 0) == pages.end()) {
            pages.push_back(0);
        }
        std::sort(pages.begin(), pages.end());
    }
    std::vector<float> scores;
    while (scores.empty()) {
        // those that turn out to be damaged have no part in the votes
        pages.erase(std::remove_if(pages.begin(), pages.end(), [&](int64_t page) { return archive.is_damaged(page); }),
                    pages.end());
        if (pages.empty()) {
            return {};
        }
        scores = score_by_rows(archive, pages, n_keep, queries);
    }

    // what a page continues, and what continues it, belongs to it
    scored spread;
    for (size_t i = 0; i < pages.size(); ++i) {
        for (int64_t page = pages[i] - 1; page <= pages[i] + 1; ++page) {
            if (page >= archive.n_dropped() && page < archive.n_full() && !archive.is_damaged(page)) {
                float & score = spread[page];
                score         = std::max(score, page == pages[i] ? scores[i] : NEIGHBOUR * scores[i]);
            }
        }
    }
    return best(spread, n_wanted);
}
