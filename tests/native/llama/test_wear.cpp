// Keys do not wear: after many recalls they are as near to keys that were rotated once as after one.
//
// With a model and a text as arguments: a table for each K type of that model, with the perplexity of what comes next.

#include "support/archived_context.h"

#include "ggml-cpu.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>

static constexpr int32_t N_RECALLS = 60;
static int32_t           n_threads = 1;

struct wear_setup {
    llama_model * model;
    tokens        text;
    int32_t       n_first;  // tokens before the first recall
    int32_t       n_step;   // between recalls
    int32_t       n_next;   // behind the last one, whose perplexity is taken
    int32_t       capacity;
    int32_t       n_vocab;
    int32_t       rope_limit;
};

static context_ptr create_for(const wear_setup & setup, ggml_type type, int32_t capacity) {
    auto cparams    = context_params();
    cparams.n_ctx   = 8192;
    cparams.n_batch = cparams.n_ubatch = 128;
    cparams.type_k                     = type;
    cparams.n_threads = cparams.n_threads_batch = n_threads;
    auto params                                 = morphkv_params_default();
    params.capacity                             = capacity;
    params.window                               = 32;
    params.interval                             = 32;
    params.prompt_room                          = 64;
    params.votes                                = 16;
    params.rope_limit                           = setup.rope_limit;
    return create(setup.model, params, cparams);
}

static context_ptr create_with_archive(const wear_setup & setup, ggml_type type, const char * path = nullptr) {
    auto           ctx = create_for(setup, type, setup.capacity);
    archived_setup archive;
    archive.path = path;
    CHECK(start_archive(ctx, archive));
    return ctx;
}

static morphkv_recalled recall_by_default(const context_ptr & ctx) {
    return recall(ctx, 0, morphkv_recall_params_default());
}

static tokens part(const tokens & text, int32_t first, int32_t n) {
    return tokens(text.begin() + first, text.begin() + first + n);
}

static void decode_all(const context_ptr & ctx, const tokens & t) {
    for (size_t i = 0; i < t.size(); i += 128) {
        CHECK(decode(ctx, part(t, i, std::min<size_t>(128, t.size() - i))) == 0);
    }
}

// Keys of the first layer as they were before RoPE, of heads of cells that stand at these rotary positions; a key for each.
// It depends on its token alone.
static std::vector<floats> unrotated_keys(const context_ptr & ctx, const std::vector<int32_t> & rows,
                                          const std::vector<int32_t> & rotary) {
    const auto &           cache = cache_of(ctx);
    const auto &           layer = cache.get_side().layers[0];
    const int64_t          n     = layer.k->ne[0] / layer.n_head_kv;
    const ggml_backend_ptr cpu(ggml_backend_cpu_init());
    const ggml_context_ptr ggml(ggml_init({ (size_t) 1 << 20, nullptr, /*.no_alloc =*/true }));
    ggml_tensor *          k      = ggml_new_tensor_2d(ggml.get(), layer.k->type, n, rows.size());
    ggml_tensor *          deltas = ggml_new_tensor_1d(ggml.get(), GGML_TYPE_I32, rows.size());
    ggml_tensor *          rot    = cache.build_input_k_rot(ggml.get());
    ggml_tensor *          res    = morphkv_build_unrotated(ggml.get(), k, 1, deltas, layer.rope, rot);
    ggml_cgraph *          gf     = ggml_new_graph(ggml.get());
    ggml_build_forward_expand(gf, res);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ggml.get(), cpu.get()));
    CHECK(buffer);
    if (rot) {
        cache.set_input_k_rot(rot);
    }
    for (size_t i = 0; i < rows.size(); ++i) {
        memcpy((char *) k->data + i * k->nb[1], (const char *) layer.k->data + rows[i] * k->nb[1], k->nb[1]);
        ((int32_t *) deltas->data)[i] = -rotary[i];
    }
    CHECK(ggml_backend_graph_compute(cpu.get(), gf) == GGML_STATUS_SUCCESS);
    std::vector<floats> keys;
    for (size_t i = 0; i < rows.size(); ++i) {
        const auto * data = (const float *) res->data + i * n;
        keys.emplace_back(data, data + n);
    }
    return keys;
}

// By token of the text and head: keys that were rotated once, and never rounded.
static std::vector<floats> keys_of_text(wear_setup setup) {
    setup.rope_limit = -1;
    const auto ctx   = create_for(setup, GGML_TYPE_F32, setup.text.size() + 100);
    decode_all(ctx, setup.text);
    const int32_t        n_head = cache_of(ctx).get_side().layers[0].n_head_kv;
    std::vector<int32_t> rows, rotary;
    for (int32_t i = 0; i < (int32_t) setup.text.size() * n_head; ++i) {
        rows.push_back(i);
        rotary.push_back(i / n_head);
    }
    CHECK(stats(ctx).n_evictions == 0);
    return unrotated_keys(ctx, rows, rotary);
}

// How far the distant keys of the first layer are from these, in parts of their length, on average. A recall came last.
static double key_error(const context_ptr & ctx, const std::vector<floats> & of_text) {
    const auto           s         = stats(ctx);
    const int32_t        n_distant = s.n_distant;
    const int32_t        base      = s.logical_pos + 1 - s.n_used - s.rotary_offset;
    const int32_t        n_head    = cache_of(ctx).get_side().layers[0].n_head_kv;
    const auto           slots     = retained(ctx, 0, 0);
    std::vector<int32_t> rows, rotary;
    for (int32_t h = 0; h < n_head; ++h) {
        std::vector<int32_t> ordered(slots.begin() + h * n_distant, slots.begin() + (h + 1) * n_distant);
        std::sort(ordered.begin(), ordered.end());
        for (int32_t i = 0; i < n_distant; ++i) {
            rows.push_back(i * n_head + h);
            const auto rank = std::lower_bound(ordered.begin(), ordered.end(), slots[h * n_distant + i]);
            rotary.push_back(base + (rank - ordered.begin()));
        }
    }
    const auto keys = unrotated_keys(ctx, rows, rotary);
    double     sum  = 0.0;
    for (size_t i = 0; i < rows.size(); ++i) {
        const int32_t h    = rows[i] % n_head;
        const auto &  then = of_text[slots[h * n_distant + rows[i] / n_head] * n_head + h];
        double        off = 0.0, all = 0.0;
        for (size_t e = 0; e < then.size(); ++e) {
            off += std::pow(keys[i][e] - then[e], 2);
            all += std::pow(then[e], 2);
        }
        sum += std::sqrt(off / all);
    }
    return sum / rows.size();
}

// Of each of t behind what is there, and one before: decoded as one text.
static std::vector<double> surprises(const context_ptr & ctx, const tokens & t, int32_t n_vocab) {
    std::vector<double> res;
    for (size_t i = 0; i + 1 < t.size(); ++i) {
        decode_singly(ctx, { t[i] });
        const float * x   = llama_get_logits_ith(ctx.get(), -1);
        const float   max = *std::max_element(x, x + n_vocab);
        double        sum = 0.0;
        for (int32_t j = 0; j < n_vocab; ++j) {
            sum += std::exp((double) x[j] - max);
        }
        res.push_back(std::log(sum) - (x[t[i + 1]] - max));
    }
    return res;
}

struct worn {
    double              error;  // -1 without a recall
    std::vector<double> surprises;
};

// The same text, with so many recalls of which the last comes at its end.
static worn wear(const wear_setup & setup, const context_ptr & ctx, int32_t n_recalls,
                 const std::vector<floats> & of_text) {
    worn res{ -1.0, {} };
    for (int32_t i = 0; i < N_RECALLS; ++i) {
        decode_all(ctx, part(setup.text, setup.n_first + i * setup.n_step, setup.n_step));
        if (i >= N_RECALLS - n_recalls) {
            CHECK(recall_by_default(ctx).n_archived > 0);
        }
    }
    CHECK(stats(ctx).n_recalls == n_recalls);
    if (n_recalls > 0) {
        res.error = key_error(ctx, of_text);
    }
    if (setup.n_next > 0) {
        const int32_t first = setup.n_first + N_RECALLS * setup.n_step;
        res.surprises       = surprises(ctx, part(setup.text, first, setup.n_next + 1), setup.n_vocab);
    }
    return res;
}

static void test_keys_do_not_wear(llama_model * model, ggml_type type) {
    const wear_setup setup{ model, some_tokens(400 + N_RECALLS * 23), 400, 23, 0, 200, TINY_N_VOCAB, 1000 };
    const auto       of_text = keys_of_text(setup);
    double           errors[2];
    for (const int32_t n : { 1, N_RECALLS }) {
        const auto ctx = create_with_archive(setup, type);
        decode_all(ctx, part(setup.text, 0, setup.n_first));
        errors[n > 1] = wear(setup, ctx, n, of_text).error;
    }
    printf("%-5s mean error of a key after 1 recall %.2e, after %d %.2e\n", ggml_type_name(type), errors[0], N_RECALLS,
           errors[1]);
    CHECK(errors[1] <= 1.5 * errors[0]);
}

// What a recall leaves where it is keeps its bytes: recent tokens, and all of them where it brings nothing.
static void test_what_stands_right_is_not_touched(llama_model * model, ggml_type type) {
    const wear_setup setup{ model, some_tokens(700), 400, 20, 0, 200, TINY_N_VOCAB, 1000 };
    const auto       ctx = create_with_archive(setup, type);
    decode_all(ctx, part(setup.text, 0, 400));
    auto ring = [&] {
        const auto *         t = cache_of(ctx).get_side().layers[1].ring;
        std::vector<uint8_t> res(ggml_nbytes(t));
        ggml_backend_tensor_get(t, res.data(), 0, res.size());
        return res;
    };
    for (int32_t i = 0; i < 15; ++i) {
        decode_all(ctx, part(setup.text, 400 + i * 20, 20));
        const size_t n_distant = stats(ctx).n_distant * cache_of(ctx).get_side().layers[1].k->nb[1];
        const auto   before = keys_of(ctx, 1), queries = ring();
        CHECK(recall_by_default(ctx).n_recalled > 0);
        const auto after = keys_of(ctx, 1);
        CHECK(before != after && queries == ring());
        CHECK(std::equal(before.begin() + n_distant, before.end(), after.begin() + n_distant));
        CHECK(recall_by_default(ctx).n_recalled == 0 && keys_of(ctx, 1) == after && queries == ring());
    }
}

// Of a file's keys those in slots are kept, and are the same ones; also where rebases come between.
static void test_a_file_gives_the_same_keys(llama_model * model, ggml_type type) {
    const std::string path = "test-wear-" + std::to_string(std::random_device()()) + ".archive";
    const wear_setup  setup{ model, some_tokens(2000), 400, 40, 0, 200, TINY_N_VOCAB, 1000 };
    const auto in_ram = create_with_archive(setup, type), in_file = create_with_archive(setup, type, path.c_str());
    std::remove(path.c_str());
    const auto extra_before = stats(in_file).extra_bytes;
    for (const auto * ctx : { &in_ram, &in_file }) {
        decode_all(*ctx, part(setup.text, 0, 400));
    }
    for (int32_t i = 0; i < 40; ++i) {
        for (const auto * ctx : { &in_ram, &in_file }) {
            decode_all(*ctx, part(setup.text, 400 + i * 40, 40));
            CHECK(i % 3 == 0 || recall_by_default(*ctx).n_recalled > 0);
        }
        CHECK(stats(in_ram).extra_bytes < stats(in_file).extra_bytes || i == 0);
        for (const int32_t il : { 0, 1 }) {
            CHECK(keys_of(in_ram, il) == keys_of(in_file, il));
        }
    }
    CHECK(stats(in_file).n_rebases > 0 && stats(in_file).extra_bytes > extra_before);
}

static double mean(const std::vector<double> & x) {
    double sum = 0.0;
    for (const double v : x) {
        sum += v;
    }
    return sum / x.size();
}

static int print_table(const char * model_path, const char * text_path) {
    auto mparams            = llama_model_default_params();
    mparams.use_extra_bufts = false;  // the same kernels on every CPU
    const model_ptr    model(llama_model_load_from_file(model_path, mparams));
    std::ifstream      file(text_path);
    std::ostringstream content;
    content << file.rdbuf();
    const std::string text = content.str();
    CHECK(model && !text.empty());
    const llama_vocab * vocab = llama_model_get_vocab(model.get());

    wear_setup setup{ model.get(), tokens(text.size()), 2000, 16, 400, 512, llama_vocab_n_tokens(vocab), -1 };
    const int  n = llama_tokenize(vocab, text.data(), text.size(), setup.text.data(), setup.text.size(), true, false);
    CHECK(n >= setup.n_first + N_RECALLS * setup.n_step + setup.n_next + 1);
    setup.text.resize(setup.n_first + N_RECALLS * setup.n_step + setup.n_next + 1);
    const auto of_text = keys_of_text(setup);

    printf("type recalls key_error perplexity to_one_recall standard_error\n");
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 }) {
        const auto ctx = create_with_archive(setup, type);
        decode_all(ctx, part(setup.text, 0, setup.n_first));
        const auto          state = save(ctx);
        std::vector<double> one;
        for (const int32_t n_recalls : { 1, 0, N_RECALLS }) {
            CHECK(load(ctx, state));
            const auto res = wear(setup, ctx, n_recalls, of_text);
            one            = n_recalls == 1 ? res.surprises : one;
            std::vector<double> more, squares;
            for (size_t i = 0; i < one.size(); ++i) {
                more.push_back(res.surprises[i] - one[i]);
                squares.push_back(more.back() * more.back());
            }
            const double variance = mean(squares) - mean(more) * mean(more);
            printf("%s %d %.4g %.3f %.4f %.4f\n", ggml_type_name(type), n_recalls, res.error,
                   std::exp(mean(res.surprises)), std::exp(mean(more)), std::sqrt(variance / more.size()));
            fflush(stdout);
        }
    }
    return 0;
}

int main(int argc, char ** argv) {
    log_errors_only();
    llama_backend_init();
    if (argc == 3) {
        return print_table(argv[1], argv[2]);
    }
    const auto model = tiny_model_load({});
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 }) {
        test_keys_do_not_wear(model.get(), type);
        test_what_stands_right_is_not_touched(model.get(), type);
        test_a_file_gives_the_same_keys(model.get(), type);
    }
    llama_backend_free();
    return 0;
}
