// Which pages a recall chooses: scores against plain C++, and the index against a look at every row.

#include "support/archived_context.h"

#include "core/search.h"
#include "device/graph-recall.h"

#include <functional>
#include <numeric>

using layer_floats = morphkv_layer_floats;

static layer_floats random_queries(const context_ptr & ctx, int32_t n_votes, float scale, uint32_t seed) {
    std::mt19937                    rng(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    layer_floats                    res;
    for (const auto & layer : cache_of(ctx).get_side().layers) {
        floats of_layer(n_votes * layer.ring->ne[0]);
        for (float & q : of_layer) {
            q = normal(rng);
        }
        res.push_back(of_layer);
    }
    return res;
}

// Every archived key, (n_pages*N_PAGE, n_head_kv*n_embd_k) by layer.
static layer_floats archived_keys(const context_ptr & ctx) {
    const auto & archive = archive_of(ctx);
    layer_floats res;
    for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
        const int64_t n_row = archive.layout.layers[il].n_head_kv * archive.layout.layers[il].n_embd_k;
        const int64_t n     = n_row * morphkv_archive::N_PAGE;

        floats k(archive.n_full() * n);
        for (int64_t i = 0; i < archive.n_full(); ++i) {
            morphkv_convert_rows(archive.layout.type_k, archive.find_page(i)->data() + archive.layout.layers[il].k_at,
                                 GGML_TYPE_F32, k.data() + i * n, morphkv_archive::N_PAGE, n_row);
        }
        res.push_back(k);
    }
    return res;
}

// The mean key of each page, (n_pages, n_head_kv*n_embd_k) by layer.
static layer_floats mean_keys(const context_ptr & ctx) {
    const auto & archive = archive_of(ctx);
    layer_floats res;
    for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
        const auto &  layer  = archive.layout.layers[il];
        const int64_t n_rows = archive.n_places() * layer.n_head_kv;
        floats        k(n_rows * layer.n_embd_k);
        morphkv_convert_rows(archive.layout.index_type(il), archive.index_rows(il), GGML_TYPE_F32, k.data(), n_rows,
                             layer.n_embd_k);
        res.push_back(k);
    }
    return res;
}

// As the CPU multiplies them with keys of a type.
static layer_floats rounded(layer_floats queries, ggml_type type_k) {
    const ggml_type type = ggml_is_quantized(type_k)  ? GGML_TYPE_Q8_0
                           : type_k == GGML_TYPE_BF16 ? type_k
                                                      : GGML_TYPE_F32;
    for (floats & of_layer : queries) {
        bytes as_bytes(ggml_row_size(type, of_layer.size()));
        morphkv_convert_rows(GGML_TYPE_F32, of_layer.data(), type, as_bytes.data(), 1, of_layer.size());
        morphkv_convert_rows(type, as_bytes.data(), GGML_TYPE_F32, of_layer.data(), 1, of_layer.size());
    }
    return queries;
}

// What every page of n_page keys gets, in plain C++ and double: the sum over layers, heads and voters of its share to
// this power. only: layers that count, if not all.
static std::vector<double> plain_scores(const context_ptr & ctx, const layer_floats & keys,
                                        const layer_floats & queries, int32_t n_page, int32_t n_keep, int32_t power) {
    const auto &        layers = cache_of(ctx).get_side().layers;
    std::vector<double> res(keys[0].size() / layers[0].k->ne[0] / n_page);
    for (size_t il = 0; il < layers.size(); ++il) {
        const auto &  layer   = layers[il];
        const int64_t n_row   = layer.k->ne[0];
        const int64_t n_rows  = keys[il].size() / n_row;
        const int32_t n_embd  = n_row / layer.n_head_kv;
        const int32_t n_group = layer.n_head / layer.n_head_kv;
        const int32_t n_votes = queries[il].size() / layer.ring->ne[0];
        for (int32_t v = 0; v < n_votes; ++v) {
            for (int32_t h = 0; h < layer.n_head_kv; ++h) {
                std::vector<double> vote(n_rows);
                for (int32_t g = 0; g < n_group; ++g) {
                    std::vector<double> a(n_rows);
                    double              sum = 0.0;
                    for (int64_t i = 0; i < n_rows; ++i) {
                        double dot = 0.0;
                        for (int32_t e = 0; e < n_embd; ++e) {
                            dot += (double) queries[il][(v * layer.n_head + h * n_group + g) * n_embd + e] *
                                   keys[il][i * n_row + h * n_embd + e];
                        }
                        sum += a[i] = std::exp(dot * layer.kq_scale);
                    }
                    for (int64_t i = 0; i < n_rows; ++i) {
                        vote[i] = std::max(vote[i], a[i] / sum);
                    }
                }
                for (size_t i = 0; i < res.size(); ++i) {
                    double share = 0.0;
                    for (int32_t j = i == 0 ? n_keep : 0; j < n_page; ++j) {
                        share += vote[i * n_page + j];
                    }
                    res[i] += std::pow(share, power);
                }
            }
        }
    }
    return res;
}

static std::vector<int64_t> choose(const context_ptr & ctx, const layer_floats & queries, size_t n_wanted,
                                   size_t n_look, int32_t n_keep = 0) {
    morphkv_device_scorer scorer(morphkv_inside::engine(ctx), cache_of(ctx).get_side().layers, archive_of(ctx),
                                 queries);
    return morphkv_choose_pages(archive_of(ctx), n_wanted, n_look, n_keep, scorer);
}

static void check_scores(const context_ptr & ctx, uint32_t seed) {
    const auto &  archive  = archive_of(ctx);
    const auto    queries  = random_queries(ctx, 5, 2.0f, seed);
    const int32_t n_keep   = 3;
    const auto &  layout   = archive.layout;
    const auto    by_rows  = plain_scores(ctx, archived_keys(ctx), rounded(queries, layout.type_k), 16, n_keep, 3);
    const auto    by_index = plain_scores(ctx, mean_keys(ctx), rounded(queries, layout.index_type(0)), 1, 0, 3);
    std::vector<int64_t> all(archive.n_full());
    std::iota(all.begin(), all.end(), 0);
    morphkv_device_scorer scorer(morphkv_inside::engine(ctx), cache_of(ctx).get_side().layers, archive, queries);
    const floats          rows  = scorer.by_rows(all, n_keep);
    const floats          index = scorer.by_index(0);
    CHECK(rows.size() == by_rows.size() && index.size() == by_index.size());
    for (size_t i = 0; i < all.size(); ++i) {
        CHECK(std::fabs(rows[i] - by_rows[i]) <= 1e-4 * by_rows[i] + 1e-9);
        CHECK(std::fabs(index[i] - by_index[i]) <= 1e-4 * by_index[i] + 1e-9);
    }
    const int64_t best = std::max_element(by_rows.begin(), by_rows.end()) - by_rows.begin();
    CHECK(choose(ctx, queries, 3, all.size(), n_keep)[0] == best);
}

// Of random queries over random keys: the mass that the pages have which the index and a look at some rows choose, as a
// share of that of the pages which every row chooses.
static double mass_of_choice(const context_ptr & ctx, uint32_t seed, size_t look, int32_t power) {
    const size_t n_pages = archive_of(ctx).n_full(), n_wanted = 5;
    const auto   queries = random_queries(ctx, 8, 1.0f, seed);
    const auto   scores  = plain_scores(ctx, archived_keys(ctx), queries, 16, 0, power);
    auto         mass    = [&](size_t n_look) {
        const auto pages = choose(ctx, queries, n_wanted, n_look);
        CHECK(!pages.empty() && pages.size() <= n_wanted);
        double res = 0.0;
        for (const int64_t page : pages) {
            res += scores[page];
        }
        return res;
    };
    return mass(n_wanted * look) / mass(n_pages);
}

// n_pages of random keys. plant: changes those of a layer.
static void fill_archive(const context_ptr & ctx, int64_t n_pages, uint32_t seed,
                         const std::function<void(size_t il, floats & k)> & plant = nullptr) {
    auto &                          archive = archive_of(ctx);
    std::mt19937                    rng(seed);
    std::normal_distribution<float> normal;
    morphkv_archive::rows           rows;
    archive.clear();
    const int32_t n = n_pages * morphkv_archive::N_PAGE;
    for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
        const auto & layer = archive.layout.layers[il];
        floats       k(n * layer.n_head_kv * layer.n_embd_k), v(n * layer.n_head_kv * layer.n_embd_v);
        for (float & x : k) {
            x = normal(rng);
        }
        if (plant) {
            plant(il, k);
        }
        rows.k.emplace_back(n * archive.layout.k_bytes(il));
        rows.v.emplace_back(n * archive.layout.v_bytes(il));
        morphkv_convert_rows(GGML_TYPE_F32, k.data(), archive.layout.type_k, rows.k[il].data(), n * layer.n_head_kv,
                             layer.n_embd_k);
    }
    archive.append(0, n, rows);
    CHECK(archive.n_full() == n_pages);
}

static void test_a_page_gets_the_third_power_of_its_share(llama_model * model, ggml_type type) {
    // pages in memory are looked at where they lie, those of a file are read
    const char * path = "test_page_scores.archive";
    for (uint32_t seed = 0; seed < 4; ++seed) {
        auto setup     = alone(false, type);
        setup.path     = seed % 2 == 0 ? nullptr : path;
        const auto ctx = create_archived(model, setup);
        CHECK(decode(ctx, some_tokens(10)) == 0);
        fill_archive(ctx, 23, seed);
        check_scores(ctx, seed);
    }
    remove(path);
}

static void test_the_index_finds_what_rows_would(llama_model * model) {
    const int32_t look  = morphkv_recall_params_default().look;
    double        worst = 1.0, votes = 0.0, scores = 0.0;
    for (uint32_t seed = 0; seed < 20; ++seed) {
        const auto ctx = create_archived(model, alone(false));
        CHECK(decode(ctx, some_tokens(10)) == 0);
        fill_archive(ctx, 800, seed);
        const double mass = mass_of_choice(ctx, 100 + seed, look, 1);
        worst             = std::min(worst, mass);
        votes += mass;
        scores += mass_of_choice(ctx, 100 + seed, look, 3);
    }
    printf("votes for the index's choice, of those for the exact choice: %.3f, at worst %.3f; scores: %.3f\n",
           votes / 20, worst, scores / 20);
    CHECK(worst >= 0.9);
}

// What a page says shows in some layers and not in others. Of many pages the index of a quarter is asked, and the page is found;
// rows are looked at in all layers.
static void test_of_many_pages_the_index_is_asked_in_few_layers() {
    constexpr int64_t         N_PAGES = 2100, WANTED = 208;
    const std::vector<size_t> TELLING = { 2, 5 };

    const auto model   = tiny_model_load({ 6, 2, 32, "llama", 8 });
    const auto ctx     = create_archived(model.get(), alone(false));
    const auto queries = random_queries(ctx, 4, 1.0f, 3);
    CHECK(decode(ctx, some_tokens(10)) == 0);
    fill_archive(ctx, N_PAGES, 1, [&](size_t il, floats & k) {
        const auto & layer = cache_of(ctx).get_side().layers[il];
        const size_t n_row = layer.k->ne[0], n_embd = n_row / layer.n_head_kv, n_group = layer.n_head / layer.n_head_kv;
        for (int32_t i = 0; i < morphkv_archive::N_PAGE && std::count(TELLING.begin(), TELLING.end(), il) > 0; ++i) {
            for (size_t j = 0; j < n_row; ++j) {
                const size_t h = j / n_embd;
                k[(WANTED * morphkv_archive::N_PAGE + i) * n_row + j] =
                    2.0f * queries[il][h * n_group * n_embd + j % n_embd];
            }
        }
    });
    morphkv_device_scorer    scorer(morphkv_inside::engine(ctx), cache_of(ctx).get_side().layers, archive_of(ctx),
                                    queries);
    const std::vector<float> index = scorer.by_index(0);
    CHECK(index.size() == (size_t) N_PAGES);
    // of six layers the two that tell it apart: another page gets next to nothing of their votes
    const float most = *std::max_element(index.begin(), index.end()),
                all  = std::accumulate(index.begin(), index.end(), 0.0f);
    CHECK(index[WANTED] == most && most > 0.99f * all);
    const std::vector<int64_t> some = { 0, 7, WANTED, 1900 };
    const auto                 got  = scorer.by_rows(some, 0);
    auto                       keys = archived_keys(ctx);
    for (size_t il = 0; il < keys.size(); ++il) {
        const auto & layer = cache_of(ctx).get_side().layers[il];
        const size_t n     = morphkv_archive::N_PAGE * layer.k->ne[0];
        floats       of_some;
        for (const int64_t page : some) {
            of_some.insert(of_some.end(), keys[il].begin() + page * n, keys[il].begin() + (page + 1) * n);
        }
        keys[il] = of_some;
    }
    const auto want = plain_scores(ctx, keys, queries, morphkv_archive::N_PAGE, 0, 3);
    for (size_t i = 0; i < some.size(); ++i) {
        CHECK(std::fabs(got[i] - want[i]) <= 1e-3 * want[i] + 1e-9);
    }
    CHECK(choose(ctx, queries, 3, 300)[0] == WANTED);
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load();
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        test_a_page_gets_the_third_power_of_its_share(model.get(), type);
    }
    test_the_index_finds_what_rows_would(model.get());
    test_of_many_pages_the_index_is_asked_in_few_layers();
    llama_backend_free();
    return 0;
}
