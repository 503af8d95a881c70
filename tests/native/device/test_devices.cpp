// Layers split over devices whose memory is not the host's: each eviction and rebase runs where the layer's cache is, and
// nothing of the cache leaves it; what a device cannot run is refused by name.

#include "support/archived_context.h"
#include "support/fake_device.h"

#include "device/backends.h"

#include <cstring>

constexpr int32_t N_LAYER = 4;

struct devices {
    fake_device a{ "FakeA" };
    fake_device b{ "FakeB" };

    // layers of the model: A A B B, and the output on B
    model_ptr load(int32_t n_gpu_layers = 99) {
        ggml_backend_dev_t list[]  = { &a.dev, &b.dev, nullptr };
        float              split[] = { 2.0f, 3.0f };
        auto               mparams = llama_model_default_params();
        std::vector<float> all(llama_max_devices());
        std::copy(std::begin(split), std::end(split), all.begin());
        mparams.devices      = list;
        mparams.tensor_split = all.data();
        mparams.n_gpu_layers = n_gpu_layers;
        return tiny_model_load({ 6, 2, 32, "llama", N_LAYER }, mparams);
    }

    void forget() {
        for (fake_device * dev : { &a, &b }) {
            dev->n_read.clear();
            dev->n_written.clear();
            dev->n_graphs = 0;
        }
    }

    // Names of cache tensors that were read from a device or written to it, with those of their views and copies.
    std::vector<std::string> cache_traffic() const {
        std::vector<std::string> res;
        for (const fake_device * dev : { &a, &b }) {
            for (const auto * counts : { &dev->n_read, &dev->n_written }) {
                for (const auto & [name, _] : *counts) {
                    for (const char * part : { "cache_k", "cache_v", "morphkv_ring", "morphkv_pos", "morphkv_score" }) {
                        if (name.find(part) != std::string::npos) {
                            res.push_back(name);
                        }
                    }
                }
            }
        }
        return res;
    }
};

static morphkv_params rebased_params(int32_t rope_limit = 110) {
    auto res       = small_params();
    res.rope_limit = rope_limit;
    res.decay      = 0.5f;
    return res;
}

static llama_context_params cache_type(ggml_type type, bool offload = true) {
    auto res        = context_params(2);
    res.type_k      = type;
    res.type_v      = type;
    res.offload_kqv = offload;
    return res;
}

static const char * device_of(const ggml_tensor * t) {
    return ggml_backend_buft_name(ggml_backend_buffer_get_type(t->buffer));
}

static void test_side_tensors_live_with_their_layers_cache() {
    devices    devs;
    const auto model = devs.load();
    const auto ctx   = create(model.get(), rebased_params(), cache_type(GGML_TYPE_F16));
    for (const auto & layer : cache_of(ctx).get_side().layers) {
        for (const ggml_tensor * t : { layer.k, layer.v, layer.ring, layer.serial, layer.score }) {
            CHECK(strcmp(device_of(t), layer.il < 2 ? "FakeA" : "FakeB") == 0);
        }
    }
}

// The same text on the CPU and on devices: prompts, single tokens, a rollback, a copy, a state saved and loaded.
static void same_as_on_the_cpu(devices & devs, ggml_type type, bool offload, int32_t n_gpu_layers) {
    const auto model_there = devs.load(n_gpu_layers);
    const auto model_here  = tiny_model_load({ 6, 2, 32, "llama", N_LAYER });
    const auto there       = create(model_there.get(), rebased_params(), cache_type(type, offload));
    const auto here        = create(model_here.get(), rebased_params(), cache_type(type));

    auto both = [&](const auto & action) {
        action(here);
        action(there);
    };
    auto compare = [&](llama_seq_id seq) {
        // the same kernels on the same rows; graphs are only cut in other places
        const floats x = logits(here), y = logits(there);
        for (size_t i = 0; i < x.size(); ++i) {
            CHECK(std::fabs(x[i] - y[i]) <= 1e-5f);
        }
        for (int32_t il = 0; il < N_LAYER; ++il) {
            CHECK(retained(here, seq, il) == retained(there, seq, il));
        }
        const auto s = stats(here, seq), t = stats(there, seq);
        CHECK(s.n_evictions == t.n_evictions && s.n_rebases == t.n_rebases && s.n_used == t.n_used);
    };

    both([](const context_ptr & ctx) { CHECK(decode(ctx, some_tokens(300)) == 0); });
    compare(0);
    both([](const context_ptr & ctx) { decode_singly(ctx, some_tokens(100, 2)); });
    compare(0);
    both([](const context_ptr & ctx) {
        const llama_pos newest = stats(ctx).logical_pos;
        CHECK(llama_memory_seq_rm(memory(ctx), 0, newest - 2, -1));
        decode_singly(ctx, some_tokens(40, 3));
        llama_memory_seq_cp(memory(ctx), 0, 1, -1, -1);
        decode_singly(ctx, some_tokens(70, 4), { 1 });
    });
    compare(1);

    // states go on anywhere
    const auto state = save(there, 1);
    CHECK(state == save(there, 1));
    both([&](const context_ptr & ctx) {
        CHECK(load(ctx, state));
        decode_singly(ctx, some_tokens(150, 5), { 0 });
    });
    compare(0);
    CHECK(stats(there).n_rebases > 2 && stats(there).n_evictions > 40);
}

static void test_devices_give_what_the_cpu_gives() {
    devices devs;
    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        same_as_on_the_cpu(devs, type, true, 99);   // all layers on devices
        same_as_on_the_cpu(devs, type, false, 99);  // their cache on the CPU
        same_as_on_the_cpu(devs, type, true, 3);    // two layers on the CPU
    }
}

static int n_layers_on(const context_ptr & ctx, const fake_device & dev) {
    const auto & layers = cache_of(ctx).get_side().layers;
    return std::count_if(layers.begin(), layers.end(),
                         [&](const morphkv_side_layer & layer) { return device_of(layer.k) == dev.name; });
}

// Every eviction and every rebase, from when its graph is allocated to when it has run.
static void no_traffic(devices & devs, bool offload, int32_t n_gpu_layers, int n_on_devices) {
    const auto model = devs.load(n_gpu_layers);
    const auto ctx   = create(model.get(), rebased_params(), cache_type(GGML_TYPE_Q8_0, offload));
    CHECK(n_layers_on(ctx, devs.a) + n_layers_on(ctx, devs.b) == n_on_devices);

    int n_runs                   = 0;
    cache_of(ctx).inject_failure = [&](morphkv_runner::step step) {
        if (step == morphkv_runner::step::ALLOC) {
            devs.forget();
        } else {
            CHECK(devs.cache_traffic().empty());
            for (const fake_device * dev : { &devs.a, &devs.b }) {
                CHECK(dev->n_graphs == (n_layers_on(ctx, *dev) > 0 ? 1 : 0));
            }
            n_runs++;
        }
        return false;
    };
    CHECK(decode(ctx, some_tokens(300)) == 0);
    decode_singly(ctx, some_tokens(200, 2));
    const auto s = stats(ctx);
    CHECK(s.n_evictions > 30 && s.n_rebases > 3 && n_runs == s.n_evictions + s.n_rebases);
}

static void test_no_tensor_of_the_cache_crosses_devices() {
    devices devs;
    no_traffic(devs, true, 99, 4);
    no_traffic(devs, true, 3, 2);
    no_traffic(devs, false, 99, 0);
}

// Neither in the decode graph, where the ring is written.
static void test_decoding_copies_nothing_of_the_cache() {
    devices    devs;
    const auto model = devs.load();
    const auto ctx   = create(model.get(), rebased_params(2000), cache_type(GGML_TYPE_F16));
    CHECK(decode(ctx, some_tokens(100)) == 0);
    decode_to_a_cut(ctx);
    devs.forget();
    decode_singly(ctx, some_tokens(30, 2));
    CHECK(devs.cache_traffic().empty() && devs.a.n_graphs > 30);
}

// What evictions and rebases need is there when the context is: they cannot be what a card has no memory for.
static void test_memory_is_taken_when_the_context_is_made() {
    devices devs;
    auto    params         = rebased_params(2000);
    params.prompt_room     = 500;
    // a decode of few tokens needs less than the cut of a long prompt
    auto cparams           = cache_type(GGML_TYPE_F16);
    cparams.n_ubatch       = 4;
    const auto model       = devs.load();
    const auto ctx         = create(model.get(), params, cparams);
    const int  n_buffers   = devs.a.n_buffers + devs.b.n_buffers;
    const int  n_evictions = 2;
    for (int i = 0; i < n_evictions; ++i) {
        CHECK(decode(ctx, some_tokens(500)) == 0);
        decode_to_a_cut(ctx);
    }
    CHECK(stats(ctx).n_evictions >= n_evictions && stats(ctx).n_evicted > 800);
    CHECK(devs.a.n_buffers + devs.b.n_buffers == n_buffers);
}

// The counters see traffic when there is some: a state is read from the devices.
static void test_traffic_is_seen() {
    devices    devs;
    const auto model = devs.load();
    const auto ctx   = create(model.get(), rebased_params(), cache_type(GGML_TYPE_F16));
    CHECK(decode(ctx, some_tokens(100)) == 0);
    devs.forget();
    save(ctx, 0);
    CHECK(devs.cache_traffic().size() >= 4 * N_LAYER);
}

// A graph that a scheduler splits: an op on the cache that its device lacks takes the cache along, and that is found.
static void test_a_crossing_is_found() {
    devices devs;
    devs.a.supports = [](const ggml_tensor * t) {
        return t->op != GGML_OP_SQR;
    };
    ggml_backend_ptr     on_a(ggml_backend_dev_init(&devs.a.dev, nullptr)), on_cpu(ggml_backend_cpu_init());
    ggml_backend_t       backends[] = { on_a.get(), on_cpu.get() };
    ggml_backend_sched_t sched      = ggml_backend_sched_new(backends, nullptr, 2, 64, false, true);

    ggml_context_ptr data(ggml_init({ 8 * ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor *    k = ggml_new_tensor_2d(data.get(), GGML_TYPE_F32, 8, 4);
    ggml_set_name(k, "cache_k_l0");
    ggml_backend_buffer_ptr buf(ggml_backend_alloc_ctx_tensors(data.get(), on_a.get()));

    for (const bool lacking : { false, true }) {
        ggml_context_ptr ctx(ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
        ggml_cgraph *    gf = ggml_new_graph(ctx.get());
        ggml_tensor *    x  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 4);
        ggml_set_input(x);
        ggml_tensor * rows = ggml_add(ctx.get(), ggml_view_2d(ctx.get(), k, 8, 4, k->nb[1], 0), x);
        ggml_build_forward_expand(gf, rows);
        if (lacking) {
            ggml_build_forward_expand(gf, ggml_sqr(ctx.get(), ggml_view_2d(ctx.get(), k, 8, 2, k->nb[1], 0)));
        }
        const std::string why = morphkv_why_not_there(on_a.get(), gf, 0, ggml_graph_n_nodes(gf));
        CHECK(why == (lacking ? "FakeA does not support SQR of f32 [8, 2]" : ""));

        ggml_backend_sched_reset(sched);
        const morphkv_crossings crossings(gf);
        CHECK(ggml_backend_sched_alloc_graph(sched, gf));
        CHECK(crossings.find() ==
              (lacking ? std::vector<const ggml_tensor *>{ k } : std::vector<const ggml_tensor *>{}));
    }
    ggml_backend_sched_free(sched);
}

// A view that is said to be elsewhere than what it is a view of.
static void test_memory_out_of_reach_is_found() {
    devices              devs;
    ggml_backend_ptr     on_a(ggml_backend_dev_init(&devs.a.dev, nullptr)), on_cpu(ggml_backend_cpu_init());
    ggml_backend_t       backends[] = { on_a.get(), on_cpu.get() };
    ggml_backend_sched_t sched      = ggml_backend_sched_new(backends, nullptr, 2, 64, false, true);
    for (const bool wrong : { false, true }) {
        ggml_context_ptr ctx(ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
        ggml_cgraph *    gf = ggml_new_graph(ctx.get());
        ggml_tensor *    x  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 8, 4);
        ggml_set_input(x);
        ggml_tensor * view = ggml_reshape_1d(ctx.get(), x, 32);
        ggml_tensor * node = ggml_sqr(ctx.get(), view);
        ggml_build_forward_expand(gf, node);
        CHECK(ggml_graph_n_nodes(gf) == 2);
        ggml_backend_sched_reset(sched);
        ggml_backend_sched_set_tensor_backend(sched, node, on_a.get());
        if (wrong) {
            ggml_backend_sched_set_tensor_backend(sched, view, on_a.get());
        }
        CHECK(ggml_backend_sched_alloc_graph(sched, gf));
        CHECK(morphkv_find_out_of_reach(gf, { on_a.get(), on_a.get() }) == (wrong ? view : nullptr));
    }
    ggml_backend_sched_free(sched);
}

static void refused(devices & devs, const morphkv_params & params, const char * op) {
    const auto      model   = devs.load();
    auto            cparams = cache_type(GGML_TYPE_F16);
    llama_context * ctx     = nullptr;
    CHECK(morphkv_context_create(model.get(), &cparams, &params, &ctx) == MORPHKV_STATUS_UNSUPPORTED && !ctx);
    const std::string sentence = morphkv_last_error();
    for (const char * word : { "layer 2", "FakeB does not support", op, "--no-kv-offload" }) {
        CHECK(sentence.find(word) != std::string::npos);
    }
}

static void test_a_device_that_lacks_an_op_is_refused_by_name() {
    devices devs;
    for (const ggml_op op : { GGML_OP_ARGSORT, GGML_OP_SOFT_MAX, GGML_OP_CONCAT }) {
        devs.b.supports = [op](const ggml_tensor * t) {
            return t->op != op;
        };
        refused(devs, rebased_params(), ggml_op_name(op));
    }
    // sizes count: as many graduates as the largest eviction has, in the heads of two layers
    devs.b.supports = [](const ggml_tensor * t) {
        return t->op != GGML_OP_ARGSORT || t->ne[0] < 30;
    };
    refused(devs, small_params(), "ARGSORT of f32 [30, 4]");

    // what only a rebase needs
    devs.b.supports = [](const ggml_tensor * t) {
        return t->op != GGML_OP_ROPE;
    };
    refused(devs, rebased_params(), "ROPE");
    auto never       = rebased_params();
    never.rope_limit = 0;
    const auto model = devs.load();
    create(model.get(), never, cache_type(GGML_TYPE_F16));
    // with the cache on the CPU it does not matter what devices lack
    create(model.get(), rebased_params(), cache_type(GGML_TYPE_F16, false));
}

// Supported when the context was made, and no more: nothing moves, and the sentence says why.
static void test_an_op_that_is_gone_stops_the_eviction() {
    devices    devs;
    const auto model = devs.load();
    const auto ctx   = create(model.get(), small_params(), cache_type(GGML_TYPE_F16));
    CHECK(decode(ctx, some_tokens(70)) == 0);
    decode_to_a_cut(ctx);
    decode_singly(ctx, some_tokens(5, 2));
    const auto before = save(ctx, 0);

    devs.b.supports = [](const ggml_tensor * t) {
        return t->op != GGML_OP_ARGSORT;
    };
    CHECK(decode(ctx, { 1 }) == -3);
    CHECK(strstr(morphkv_last_error(), "FakeB does not support ARGSORT"));
    CHECK(strstr(morphkv_last_error(), "sequence 0 is unchanged"));
    CHECK(save(ctx, 0) == before);

    devs.b.supports = [](const ggml_tensor *) {
        return true;
    };
    CHECK(decode(ctx, { 1 }) == 0 && stats(ctx).n_evictions == 2);
}

// What leaves the window comes to the host, and back to each layer's device.
static void test_archives_and_recalls(ggml_type type) {
    devices    devs;
    const auto model_there = devs.load(), model_here = tiny_model_load({ 6, 2, 32, "llama", N_LAYER });
    auto       params = rebased_params(400);
    params.capacity   = 100;
    const auto there  = create(model_there.get(), params, cache_type(type));
    const auto here   = create(model_here.get(), params, cache_type(type));

    std::vector<morphkv_recalled> got;
    for (const auto * ctx : { &here, &there }) {
        CHECK(start_archive(*ctx, {}));
        CHECK(decode(*ctx, some_tokens(500)) == 0);
        decode_singly(*ctx, some_tokens(100, 2));
        got.push_back(recall(*ctx));
        decode_singly(*ctx, some_tokens(30, 3));
    }
    CHECK(got[0].n_recalled == got[1].n_recalled && got[0].n_archived == got[1].n_archived && got[0].n_recalled > 0);
    for (int32_t il = 0; il < N_LAYER; ++il) {
        CHECK(retained(here, 0, il) == retained(there, 0, il));
    }
    const floats x = logits(here), y = logits(there);
    for (size_t i = 0; i < x.size(); ++i) {
        CHECK(std::fabs(x[i] - y[i]) <= 1e-4f);
    }
}

static void test_an_archive_that_a_device_cannot_read_is_refused() {
    devices    devs;
    const auto model   = devs.load();
    auto       cparams = cache_type(GGML_TYPE_F32);
    const auto ctx     = create(model.get(), rebased_params(), cparams);
    auto       archive = morphkv_archive_params_default();
    archive.type_k     = GGML_TYPE_F16;
    devs.b.supports    = [](const ggml_tensor * t) {
        return t->op != GGML_OP_CPY || t->type != GGML_TYPE_F16;
    };
    CHECK(morphkv_archive_start(ctx.get(), &archive) == MORPHKV_STATUS_UNSUPPORTED);
    CHECK(strstr(morphkv_last_error(), "layer 2 is on FakeB, and FakeB does not support CPY of f32"));
    devs.b.supports = [](const ggml_tensor *) {
        return true;
    };
    CHECK(decode(ctx, some_tokens(300)) == 0 && stats(ctx).n_evictions > 0 && stats(ctx).archive_bytes == 0);
    CHECK(llama_memory_seq_rm(memory(ctx), 0, -1, -1));
    CHECK(morphkv_archive_start(ctx.get(), &archive) == MORPHKV_STATUS_OK);
}

// Memory for archiving is there when the archive is started. What is read of all layers may be more than an eviction needs.
static void test_archiving_takes_no_memory_later() {
    fake_device        dev{ "Fake" };
    ggml_backend_dev_t list[]  = { &dev.dev, nullptr };
    auto               mparams = llama_model_default_params();
    mparams.devices            = list;
    mparams.n_gpu_layers       = 99;
    const auto model           = tiny_model_load({ 6, 2, 32, "llama", 16 }, mparams);
    auto       params          = rebased_params();
    auto       cparams         = cache_type(GGML_TYPE_F16);
    params.prompt_room         = 200;
    params.rope_limit          = 400;
    params.votes               = 1;
    cparams.n_ubatch           = 4;
    const auto ctx             = create(model.get(), params, cparams);
    const int  n_without       = dev.n_buffers;
    CHECK(start_archive(ctx, {}));
    const int n_before = dev.n_buffers;
    CHECK(n_before > n_without);
    CHECK(decode(ctx, some_tokens(500)) == 0 && stats(ctx).n_evictions > 1);
    CHECK(dev.n_buffers == n_before);
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    test_side_tensors_live_with_their_layers_cache();
    test_devices_give_what_the_cpu_gives();
    test_no_tensor_of_the_cache_crosses_devices();
    test_decoding_copies_nothing_of_the_cache();
    test_memory_is_taken_when_the_context_is_made();
    test_traffic_is_seen();
    test_a_crossing_is_found();
    test_memory_out_of_reach_is_found();
    test_a_device_that_lacks_an_op_is_refused_by_name();
    test_an_op_that_is_gone_stops_the_eviction();
    for (const ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0 }) {
        test_archives_and_recalls(type);
    }
    test_an_archive_that_a_device_cannot_read_is_refused();
    test_archiving_takes_no_memory_later();
    return 0;
}
