// Archive and recall inside a context: what comes back is what left, a failure changes nothing, and states, forks and
// rollbacks carry the archive.

#include "support/tiny_context.h"

#include "core/search.h"
#include "device/graph-recall.h"
#include "llama/hybrid.h"
#include "llama/memory.h"

#include <cstring>
#include <numeric>
#include <set>

using step = morphkv_runner::step;

static morphkv_cache & cache_of(const context_ptr & ctx) {
    return *morphkv_find_cache((llama_memory_i *) memory(ctx));
}

// Slots: 100 - 8 = 92.
static morphkv_params recalling_params() {
    auto res       = small_params();
    res.capacity   = 100;
    res.rope_limit = 400;
    return res;
}

// Whether archives are appended to by a thread of their own, as where a GPU computes.
static bool is_beside = false;

static void append_beside(const context_ptr & ctx, bool is_beside);
static void wait_for_archives(const context_ptr & ctx);

// Once all is archived that is on its way.
static morphkv_stats settled(const context_ptr & ctx, int32_t seq = 0) {
    wait_for_archives(ctx);
    CHECK(morphkv_archive_why_stopped(ctx.get(), seq)[0] == 0);
    return stats(ctx, seq);
}

static context_ptr create_archived(llama_model * model, uint32_t n_seq = 1, ggml_type type = GGML_TYPE_F16,
                                   uint64_t max_bytes = 0) {
    auto cparams    = context_params(n_seq);
    cparams.n_batch = 1024;
    cparams.type_k = cparams.type_v = type;
    auto ctx                        = create(model, recalling_params(), cparams);
    auto params                     = morphkv_archive_params_default();
    params.max_bytes                = max_bytes;
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_OK);
    append_beside(ctx, is_beside);
    return ctx;
}

static morphkv_recall_params all_slots() {
    auto res  = morphkv_recall_params_default();
    res.share = 1.0f;
    return res;
}

static morphkv_status try_recall(const context_ptr & ctx, morphkv_recalled & out, int32_t seq = 0) {
    const auto params = all_slots();
    out.size          = sizeof(out);
    return morphkv_recall(ctx.get(), seq, &params, &out);
}

static morphkv_recalled recall(const context_ptr & ctx, int32_t seq = 0) {
    morphkv_recalled res{};
    if (try_recall(ctx, res, seq) != MORPHKV_STATUS_OK) {
        fprintf(stderr, "%s\n", morphkv_last_error());
        CHECK(false);
    }
    return res;
}

static std::vector<uint8_t> save(const context_ptr & ctx, llama_seq_id seq = 0, llama_state_seq_flags flags = 0) {
    std::vector<uint8_t> res(llama_state_seq_get_size_ext(ctx.get(), seq, flags));
    CHECK(llama_state_seq_get_data_ext(ctx.get(), res.data(), res.size(), seq, flags) == res.size());
    return res;
}

static bool load(const context_ptr & ctx, const std::vector<uint8_t> & state, llama_seq_id seq = 0,
                 llama_state_seq_flags flags = 0) {
    return llama_state_seq_set_data_ext(ctx.get(), state.data(), state.size(), seq, flags) == state.size();
}

// K or V of a cell, a layer and a head as floats.
static floats row_of(const context_ptr & ctx, const ggml_tensor * t, int32_t i_cell, int32_t head, int32_t n_head_kv,
                     llama_seq_id seq = 0) {
    GGML_UNUSED(ctx);
    const int64_t        n = t->ne[0] / n_head_kv;
    std::vector<uint8_t> data(ggml_row_size(t->type, n));
    ggml_backend_tensor_get(t, data.data(), seq * t->nb[2] + i_cell * t->nb[1] + head * data.size(), data.size());
    floats res(n);
    morphkv_convert_rows(t->type, data.data(), GGML_TYPE_F32, res.data(), 1, n);
    return res;
}

static float largest_difference(const floats & a, const floats & b) {
    float res = 0.0f;
    for (size_t i = 0; i < a.size(); ++i) {
        res = std::max(res, std::fabs(a[i] - b[i]));
    }
    return res;
}

// In the first layer a token's K and V depend on itself and where it stands alone: the recalled rows are those of a context
// that decodes the same token at that rotary position.
static void test_what_comes_back_is_what_left(ggml_type type, float tolerance) {
    tiny_shape shape;
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), 1, type);
    const auto text  = some_tokens(700);
    CHECK(decode(ctx, text) == 0);
    const auto before = settled(ctx);
    CHECK(before.n_archived == before.logical_pos + 1 - (before.n_used - before.n_distant));
    CHECK(before.archive_bytes > 0 && before.n_archive_lost == 0 && before.archive_ms > 0.0);
    const auto slots_before = retained(ctx, 0, 0);

    const auto got = recall(ctx);
    const auto s   = stats(ctx);
    CHECK(got.n_archived == before.n_archived / 16 * 16 && got.n_recalled > 0 && got.took_ms >= got.ask_ms);
    CHECK(s.n_recalls == 1 && s.n_recalled == got.n_recalled && s.recall_ms > 0.0);
    CHECK(s.n_used == before.n_used && s.kv_bytes == before.kv_bytes && s.logical_pos == before.logical_pos);
    CHECK(s.exact_pos == s.logical_pos + 1);

    const auto & layer     = cache_of(ctx).get_side().layers[0];
    const auto   slots     = retained(ctx, 0, 0);
    const int    n_distant = s.n_distant;
    const int    base  = s.logical_pos + 1 - s.n_used - s.rotary_offset;  // distant ones end where recent ones begin
    int          n_new = 0;
    for (int32_t h = 0; h < layer.n_head_kv; ++h) {
        const std::vector<int32_t> of_head(slots.begin() + h * n_distant, slots.begin() + (h + 1) * n_distant);
        std::vector<int32_t>       ordered = of_head;
        std::sort(ordered.begin(), ordered.end());
        CHECK(std::adjacent_find(ordered.begin(), ordered.end()) == ordered.end());
        CHECK(ordered.front() == 0 && ordered[1] == 1 && ordered[2] == 2);  // keep
        CHECK(ordered.back() < s.logical_pos - 7);
        for (int32_t i = 0; i < n_distant; ++i) {
            n_new += of_head[i] != slots_before[h * n_distant + i];
            const int32_t rank = std::lower_bound(ordered.begin(), ordered.end(), of_head[i]) - ordered.begin();
            if (i % 9 != 0) {
                continue;
            }
            // the same token where this one stands now
            auto cparams   = context_params();
            cparams.type_k = cparams.type_v = type;
            auto roomy                      = recalling_params();
            roomy.capacity                  = 900;
            roomy.rope_limit                = -1;
            const auto other                = create(model.get(), roomy, cparams);
            tokens     fill(base + rank, 1);
            fill.push_back(text[of_head[i]]);
            CHECK(decode(other, fill) == 0);
            const auto & same = cache_of(other).get_side().layers[0];
            for (const bool is_k : { true, false }) {
                const floats a = row_of(ctx, is_k ? layer.k : layer.v, i, h, layer.n_head_kv);
                const floats b = row_of(other, is_k ? same.k : same.v, base + rank, h, layer.n_head_kv);
                CHECK(largest_difference(a, b) <= tolerance);
            }
        }
    }
    CHECK(n_new > n_distant / 2);
    // and the chat goes on: evictions, rebases, recalls
    for (int i = 0; i < 5; ++i) {
        decode_singly(ctx, some_tokens(37, i));
        recall(ctx);
        CHECK(all_finite(logits(ctx)));
        CHECK(decode(ctx, some_tokens(150, 10 + i)) == 0 && all_finite(logits(ctx)));
    }
    CHECK(stats(ctx).n_recalls == 6);
    CHECK(stats(ctx).logical_pos - stats(ctx).rotary_offset < 400);
}

static void test_nothing_comes_back_before_the_first_eviction(llama_model * model) {
    const auto ctx = create_archived(model);
    CHECK(recall(ctx).n_recalled == 0);
    CHECK(decode(ctx, some_tokens(60)) == 0);
    const auto state = save(ctx);
    CHECK(recall(ctx).n_recalled == 0 && stats(ctx).n_recalls == 0);
    CHECK(save(ctx) == state);
}

// One recall of a model whose layers are in part windowed or recurrent.
static void test_other_layers(const tiny_shape & shape, bool is_recurrent) {
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get());
    CHECK(decode(ctx, some_tokens(700)) == 0);
    decode_singly(ctx, some_tokens(9, 2));
    const auto before = save(ctx);
    for (const step which : { step::ALLOC, step::COMPUTE }) {
        cache_of(ctx).inject_failure = [&](step s) {
            return s == which;
        };
        morphkv_recalled out{};
        CHECK(is_recurrent || (try_recall(ctx, out) == MORPHKV_STATUS_FAILED && save(ctx) == before));
        cache_of(ctx).inject_failure = nullptr;
    }
    CHECK(recall(ctx).n_recalled > 0);
    const auto s = stats(ctx);
    // recurrent layers cannot go back, so nothing is decoded again
    CHECK(!is_recurrent || s.complete_pos == s.logical_pos);
    const auto state = save(ctx);
    const auto other = create_archived(model.get());
    CHECK(load(other, state));
    for (const llama_token token : some_tokens(40, 3)) {
        decode_singly(ctx, { token });
        decode_singly(other, { token });
        CHECK(all_finite(logits(ctx)) && logits(ctx) == logits(other));
    }
}

static void test_windowed_and_recurrent_layers() {
    tiny_shape windowed;
    windowed.arch        = "granite_swa";
    windowed.n_layer     = 4;
    windowed.is_windowed = { 1, 0, 1, 0 };
    windowed.sink        = 0.5f;
    test_other_layers(windowed, false);

    tiny_shape recurrent;
    recurrent.arch         = "lfm2";
    recurrent.n_layer      = 4;
    recurrent.n_head       = 2;
    recurrent.n_head_kv    = 1;
    recurrent.is_recurrent = { 1, 0, 1, 0 };
    test_other_layers(recurrent, true);
}

// Its graphs have four layers: the first fails, or the second, when slots have been filled.
static void test_a_recall_that_fails_changes_nothing(step which) {
    tiny_shape shape;
    shape.n_layer    = 6;
    const auto model = tiny_model_load(shape);
    const auto ctx   = create_archived(model.get(), 2);
    CHECK(decode(ctx, some_tokens(500), { 0 }) == 0);
    CHECK(decode(ctx, some_tokens(20, 2), { 1 }) == 0);
    const auto before = save(ctx), other = save(ctx, 1);
    for (int n_good = 0; n_good < 2; ++n_good) {
        int n                        = 0;
        cache_of(ctx).inject_failure = [&](step s) {
            return s == which && n++ == n_good;
        };
        morphkv_recalled out{};
        CHECK(try_recall(ctx, out) == MORPHKV_STATUS_FAILED);
        CHECK(strstr(morphkv_last_error(), "recall failed") && strstr(morphkv_last_error(), "sequence 0 is unchanged"));
        CHECK(save(ctx) == before && save(ctx, 1) == other);
    }
    cache_of(ctx).inject_failure = nullptr;
    CHECK(recall(ctx).n_recalled > 0);
    decode_singly(ctx, some_tokens(30, 4), { 0, 1 });
    CHECK(all_finite(logits(ctx, 0)) && all_finite(logits(ctx, 1)));
}

// An eviction that fails takes back what it had archived.
static void test_a_cut_that_fails_archives_nothing(llama_model * model) {
    const auto ctx = create_archived(model);
    CHECK(decode(ctx, some_tokens(300)) == 0);
    decode_to_a_cut(ctx);
    decode_singly(ctx, some_tokens(5));
    const auto before            = save(ctx);
    cache_of(ctx).inject_failure = [](step s) {
        return s == step::ALLOC;
    };
    CHECK(decode(ctx, { 1 }) == -3);
    CHECK(save(ctx) == before);
    cache_of(ctx).inject_failure = nullptr;
    const int64_t n_archived     = settled(ctx).n_archived;
    decode_singly(ctx, { 1 });
    CHECK(settled(ctx).n_archived == n_archived + 6);
}

static void test_states_carry_the_archive(llama_model * model, uint64_t max_bytes) {
    const auto ctx = create_archived(model, 1, GGML_TYPE_F16, max_bytes);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    recall(ctx);
    decode_singly(ctx, some_tokens(20, 2));
    const auto state = save(ctx);
    const auto other = create_archived(model, 1, GGML_TYPE_F16, max_bytes);
    CHECK(decode(other, some_tokens(333, 5)) == 0);
    CHECK(load(other, state));
    CHECK(save(other) == state);
    for (const auto * c : { &ctx, &other }) {
        CHECK(decode(*c, some_tokens(80, 3)) == 0);
        recall(*c);
        decode_singly(*c, some_tokens(40, 4));
    }
    CHECK(logits(ctx) == logits(other) && save(ctx) == save(other));
    CHECK(retained(ctx, 0, 1) == retained(other, 0, 1));
    CHECK((settled(other).n_archive_lost > 0) == (max_bytes > 0));

    // with other settings, with damage, cut short: refused, and the context goes on
    const auto before = save(other);
    auto       bad    = state;
    bad[bad.size() / 2] ^= 1;
    CHECK(!load(create(model, recalling_params(), context_params()), state));
    CHECK(!load(other, state, 0, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) && save(other) == before);
    for (size_t n : { state.size() - 1, state.size() / 2, state.size() / 3, size_t(50) }) {
        CHECK(!load(other, std::vector<uint8_t>(state.begin(), state.begin() + n)) && save(other) == before);
    }
    for (int i = 0; i < 3; ++i) {
        CHECK(decode(other, some_tokens(300)) == 0 && all_finite(logits(other)));
        CHECK(recall(other).n_archived > 0);
    }
}

static void test_a_checkpoint_goes_back(llama_model * model) {
    const auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    const auto ctx   = create_archived(model);
    CHECK(decode(ctx, some_tokens(600)) == 0);
    const auto state = save(ctx), checkpoint = save(ctx, 0, flags);
    CHECK(checkpoint.size() < state.size() / 2);
    CHECK(decode(ctx, some_tokens(200, 2)) == 0);
    recall(ctx);
    CHECK(load(ctx, checkpoint, 0, flags));
    CHECK(save(ctx) == state);
    // of another text's archive nothing is left
    llama_memory_clear(memory(ctx), true);
    CHECK(decode(ctx, some_tokens(700, 9)) == 0);
    CHECK(load(ctx, checkpoint, 0, flags));
    CHECK(settled(ctx).n_archived == 0 && recall(ctx).n_recalled == 0);
    decode_singly(ctx, some_tokens(60, 3));
    CHECK(settled(ctx).n_archived > 0 && all_finite(logits(ctx)));
}

static void test_forks_and_rollbacks(llama_model * model) {
    const auto ctx = create_archived(model, 2);
    CHECK(decode(ctx, some_tokens(600), { 0 }) == 0);
    llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
    CHECK(settled(ctx, 1).n_archived == settled(ctx, 0).n_archived);
    CHECK(recall(ctx, 0).n_recalled == recall(ctx, 1).n_recalled);
    decode_singly(ctx, some_tokens(70, 2), { 0, 1 });
    CHECK(logits(ctx, 0) == logits(ctx, 1));
    CHECK(decode(ctx, some_tokens(100, 3), { 0 }) == 0);
    CHECK(settled(ctx, 1).n_archived < settled(ctx, 0).n_archived);

    // behind the last eviction: the archive is untouched; everything: it is empty
    decode_to_a_cut(ctx, 0);
    const int64_t n_archived = settled(ctx, 0).n_archived;
    CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx, 0).logical_pos - 1, -1));
    CHECK(settled(ctx, 0).n_archived == n_archived);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    CHECK(settled(ctx, 0).n_archived == 0 && settled(ctx, 1).n_archived > 0);
}

// max_bytes is of all sequences together, each has its share; unless another is given there is one.
static void test_a_bound_of_all_sequences(llama_model * model) {
    CHECK(morphkv_archive_params_default().max_bytes == 2ull << 30);
    int64_t n_alone = 0;
    for (const uint32_t n_seq : { 1, 2, 4 }) {
        const auto ctx = create_archived(model, n_seq, GGML_TYPE_F16, 400000);
        int64_t    n   = 0;
        for (llama_seq_id s = 0; s < (llama_seq_id) n_seq; ++s) {
            CHECK(decode(ctx, some_tokens(900, s), { s }) == 0);
            n = settled(ctx, s).n_archived / 16;
            CHECK(n == settled(ctx, 0).n_archived / 16 && settled(ctx, s).n_archive_lost > 0);
        }
        n_alone = n_seq == 1 ? n : n_alone;
        CHECK(n == n_alone / n_seq);
        CHECK(stats(ctx).archive_bytes <= 400000);
    }
}

static void test_what_is_refused(llama_model * model) {
    auto       params = morphkv_archive_params_default();
    const auto ctx    = create(model, recalling_params(), context_params());

    morphkv_recalled out{};
    CHECK(try_recall(ctx, out) == MORPHKV_STATUS_INVALID && strstr(morphkv_last_error(), "needs an archive"));
    params.type_k = GGML_TYPE_Q4_K;
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "type_k must be one of"));
    params.type_k = -1;
    CHECK(decode(ctx, some_tokens(10)) == 0);
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "before anything is decoded"));
    llama_memory_clear(memory(ctx), true);
    params.path = "/no/such/folder/archive";
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_FAILED);
    params.path = nullptr;
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_OK);
    CHECK(morphkv_archive_start(ctx.get(), &params) == MORPHKV_STATUS_INVALID);
    CHECK(strstr(morphkv_last_error(), "once"));

    auto refuse = [&](auto change, const char * sentence) {
        auto p = morphkv_recall_params_default();
        change(p);
        out.size = sizeof(out);
        CHECK(morphkv_recall(ctx.get(), 0, &p, &out) == MORPHKV_STATUS_INVALID);
        CHECK(strstr(morphkv_last_error(), sentence));
    };
    refuse([](auto & p) { p.share = 0.0f; }, "share must be in (0, 1]");
    refuse([](auto & p) { p.share = NAN; }, "share must be in (0, 1]");
    refuse([](auto & p) { p.votes = 9; }, "votes must be in 0..8, got 9");
    refuse([](auto & p) { p.distance = 400; }, "distance must be in -1..399, got 400");
    refuse([](auto & p) { p.look = 0; }, "look must be at least 1");
    refuse([](auto & p) { p.size = 1; }, "size must be");
    CHECK(morphkv_recall(ctx.get(), 7, nullptr, &out) == MORPHKV_STATUS_INVALID);

    // positions that are not rebased
    auto never       = recalling_params();
    never.rope_limit = 0;
    const auto fixed = create(model, never, context_params());
    CHECK(morphkv_archive_start(fixed.get(), &params) == MORPHKV_STATUS_UNSUPPORTED);
    CHECK(strstr(morphkv_last_error(), "rope_limit"));
}

// Access to the steps of a recall.
struct morphkv_recall_test {
    using layer_floats = morphkv_layer_floats;

    static void append_beside(const context_ptr & ctx, bool is_beside) {
        cache_of(ctx).archives->has_thread = is_beside;
    }

    static void wait(const context_ptr & ctx) { cache_of(ctx).archives->of(0); }

    static layer_floats random_queries(const context_ptr & ctx, int32_t n_votes, float scale, uint32_t seed) {
        const auto &                    cache = cache_of(ctx);
        std::mt19937                    rng(seed);
        std::normal_distribution<float> normal(0.0f, scale);
        layer_floats                    res;
        for (const auto & layer : cache.side.layers) {
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
        const auto & archive = cache_of(ctx).archives->of(0);
        layer_floats res;
        for (size_t il = 0; il < archive.layout.layers.size(); ++il) {
            const int64_t n_row = archive.layout.layers[il].n_head_kv * archive.layout.layers[il].n_embd_k;
            const int64_t n     = n_row * morphkv_archive::N_PAGE;

            floats k(archive.n_full() * n);
            for (int64_t i = 0; i < archive.n_full(); ++i) {
                morphkv_convert_rows(archive.layout.type_k,
                                     archive.find_page(i)->data() + archive.layout.layers[il].k_at, GGML_TYPE_F32,
                                     k.data() + i * n, morphkv_archive::N_PAGE, n_row);
            }
            res.push_back(k);
        }
        return res;
    }

    // The mean key of each page, (n_pages, n_head_kv*n_embd_k) by layer.
    static layer_floats mean_keys(const context_ptr & ctx) {
        const auto & archive = cache_of(ctx).archives->of(0);
        layer_floats res;
        for (const auto & layer : archive.layout.layers) {
            const int64_t n_row = layer.n_head_kv * layer.n_embd_k;
            floats        k(archive.n_places() * n_row);
            morphkv_convert_rows(GGML_TYPE_F16, archive.index_rows(res.size()), GGML_TYPE_F32, k.data(),
                                 archive.n_places(), n_row);
            res.push_back(k);
        }
        return res;
    }

    // What every page of n_page keys gets, in plain C++ and double: the sum over layers, heads and voters of its share to
    // this power.
    static std::vector<double> plain_scores(const context_ptr & ctx, const layer_floats & keys,
                                            const layer_floats & queries, int32_t n_page, int32_t n_keep,
                                            int32_t power) {
        const auto &        layers = cache_of(ctx).side.layers;
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
        auto &                cache = cache_of(ctx);
        morphkv_device_scorer scorer(cache.engine, cache.side.layers, cache.archives->of(0), queries);
        return morphkv_choose_pages(cache.archives->of(0), n_wanted, n_look, n_keep, scorer);
    }

    static void check_scores(const context_ptr & ctx, uint32_t seed) {
        auto &               cache    = cache_of(ctx);
        const auto &         archive  = cache.archives->of(0);
        const auto           queries  = random_queries(ctx, 5, 2.0f, seed);
        const int32_t        n_keep   = 3;
        const auto           by_rows  = plain_scores(ctx, archived_keys(ctx), queries, 16, n_keep, 3);
        const auto           by_index = plain_scores(ctx, mean_keys(ctx), queries, 1, 0, 3);
        std::vector<int64_t> all(archive.n_full());
        std::iota(all.begin(), all.end(), 0);
        morphkv_device_scorer scorer(cache.engine, cache.side.layers, archive, queries);
        const floats          rows  = scorer.by_rows(all, n_keep);
        const floats          index = scorer.by_index();
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
        const size_t n_pages = cache_of(ctx).archives->of(0).n_full(), n_wanted = 5;
        const auto   queries = random_queries(ctx, 8, 1.0f, seed);
        const auto   scores  = plain_scores(ctx, archived_keys(ctx), queries, 16, 0, power);
        auto         mass    = [&](size_t n_look) {
            const auto pages = choose(ctx, queries, n_wanted, n_look);
            CHECK(pages.size() == n_wanted);
            double res = 0.0;
            for (const int64_t page : pages) {
                res += scores[page];
            }
            return res;
        };
        return mass(n_wanted * look) / mass(n_pages);
    }

    // n_pages of random keys.
    static void fill_archive(const context_ptr & ctx, int64_t n_pages, uint32_t seed) {
        auto &                          archive = cache_of(ctx).archives->of(0);
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
            rows.k.emplace_back(n * archive.layout.k_bytes(il));
            rows.v.emplace_back(n * archive.layout.v_bytes(il));
            morphkv_convert_rows(GGML_TYPE_F32, k.data(), archive.layout.type_k, rows.k[il].data(), n * layer.n_head_kv,
                                 layer.n_embd_k);
        }
        archive.append(0, n, rows);
        CHECK(archive.n_full() == n_pages);
    }
};

static void append_beside(const context_ptr & ctx, bool is_beside) {
    morphkv_recall_test::append_beside(ctx, is_beside);
}

static void wait_for_archives(const context_ptr & ctx) {
    morphkv_recall_test::wait(ctx);
}

// The same tokens, whoever appends them, however they come.
static void test_who_appends_makes_no_difference(llama_model * model, uint64_t max_bytes) {
    std::vector<std::vector<uint8_t>> states;
    for (const bool beside : { false, true }) {
        const auto ctx = create_archived(model, 2, GGML_TYPE_F16, max_bytes);
        append_beside(ctx, beside);
        CHECK(decode(ctx, some_tokens(400), { 0 }) == 0 && decode(ctx, some_tokens(300, 3), { 1 }) == 0);
        for (int32_t i = 0; i < 60; ++i) {
            decode_singly(ctx, some_tokens(3, i), { 0, 1 });
        }
        CHECK(llama_memory_seq_rm(memory(ctx), 0, stats(ctx, 0).exact_pos, -1));
        llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
        decode_singly(ctx, some_tokens(50, 4), { 0, 1 });
        for (const llama_seq_id seq : { 0, 1 }) {
            recall(ctx, seq);
            states.push_back(save(ctx, seq));
        }
    }
    CHECK(states[0] == states[2] && states[1] == states[3] && states[0] != states[1]);
}

// The default distance fits any limit.
static void test_a_recall_within_a_short_limit(llama_model * model) {
    auto params        = small_params();
    params.rope_limit  = 100;
    const auto ctx     = create(model, params, context_params());
    const auto archive = morphkv_archive_params_default();
    CHECK(morphkv_archive_start(ctx.get(), &archive) == MORPHKV_STATUS_OK);
    CHECK(decode(ctx, some_tokens(300)) == 0);
    const auto       by_default = morphkv_recall_params_default();
    morphkv_recalled out{};
    out.size = sizeof(out);
    CHECK(morphkv_recall(ctx.get(), 0, &by_default, &out) == MORPHKV_STATUS_OK && out.n_recalled > 0);
    CHECK(decode(ctx, some_tokens(100, 2)) == 0 && all_finite(logits(ctx)));
}

// llama.cpp warns of compute buffers that are larger than it reserved them: ours may be.
static void test_a_context_ends_without_a_warning(llama_model * model) {
    static std::string log;
    llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level >= GGML_LOG_LEVEL_WARN) {
                log += text;
            }
        },
        nullptr);
    {
        const auto ctx = create_archived(model);
        CHECK(decode(ctx, some_tokens(900)) == 0);
        recall(ctx);
        decode_singly(ctx, some_tokens(20));
    }
    CHECK(log.find("does not match") == std::string::npos);
    log_errors_only();
}

static void test_a_page_gets_the_third_power_of_its_share(llama_model * model, ggml_type type) {
    for (uint32_t seed = 0; seed < 3; ++seed) {
        const auto ctx = create_archived(model, 1, type);
        CHECK(decode(ctx, some_tokens(10)) == 0);
        morphkv_recall_test::fill_archive(ctx, 23, seed);
        morphkv_recall_test::check_scores(ctx, seed);
    }
}

static void test_the_index_finds_what_rows_would(llama_model * model) {
    const int32_t look  = morphkv_recall_params_default().look;
    double        worst = 1.0, votes = 0.0, scores = 0.0;
    for (uint32_t seed = 0; seed < 20; ++seed) {
        const auto ctx = create_archived(model);
        CHECK(decode(ctx, some_tokens(10)) == 0);
        morphkv_recall_test::fill_archive(ctx, 800, seed);
        const double mass = morphkv_recall_test::mass_of_choice(ctx, 100 + seed, look, 1);
        worst             = std::min(worst, mass);
        votes += mass;
        scores += morphkv_recall_test::mass_of_choice(ctx, 100 + seed, look, 3);
    }
    printf("votes for the index's choice, of those for the exact choice: %.3f, at worst %.3f; scores: %.3f\n",
           votes / 20, worst, scores / 20);
    CHECK(worst >= 0.9);
}

static void test_archiving_and_recall(llama_model * model) {
    test_what_comes_back_is_what_left(GGML_TYPE_F32, 1e-4f);
    test_what_comes_back_is_what_left(GGML_TYPE_F16, 0.01f);
    test_what_comes_back_is_what_left(GGML_TYPE_Q8_0, 0.1f);
    test_nothing_comes_back_before_the_first_eviction(model);
    test_a_recall_that_fails_changes_nothing(step::ALLOC);
    test_a_recall_that_fails_changes_nothing(step::COMPUTE);
    test_windowed_and_recurrent_layers();
    test_a_cut_that_fails_archives_nothing(model);
    test_states_carry_the_archive(model, 0);
    test_states_carry_the_archive(model, 100000);
    test_a_checkpoint_goes_back(model);
    test_forks_and_rollbacks(model);
}

int main() {
    log_errors_only();
    llama_backend_init();
    const auto model = tiny_model_load({});
    for (const bool beside : { false, true }) {
        is_beside = beside;
        test_archiving_and_recall(model.get());
    }
    is_beside = false;
    test_who_appends_makes_no_difference(model.get(), 0);
    test_who_appends_makes_no_difference(model.get(), 100000);
    test_a_bound_of_all_sequences(model.get());
    test_what_is_refused(model.get());
    test_a_recall_within_a_short_limit(model.get());
    test_a_context_ends_without_a_warning(model.get());
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        test_a_page_gets_the_third_power_of_its_share(model.get(), type);
    }
    test_the_index_finds_what_rows_would(model.get());
    llama_backend_free();
    return 0;
}
