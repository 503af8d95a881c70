// What a model takes of devices is known before it takes anything, and as many layers as fit are found.

#include "support/fake_device.h"
#include "support/tiny_context.h"

#include "core/params.h"
#include "llama-context.h"
#include "llama-cpp.h"
#include "llama-model.h"
#include "llama/fit.h"

#include <cstring>

constexpr int32_t N_LAYER = 12;

static const tiny_shape SHAPE = { 6, 2, 32, "llama", N_LAYER };

// A model's file, and the parameters that it is loaded with.
struct model_file {
    explicit model_file(const tiny_shape & shape = SHAPE)
        : path("test-fit-" + std::to_string(std::random_device()()) + ".gguf") {
        tiny_model_write(path, shape);
    }
    ~model_file() { remove(path.c_str()); }

    const std::string  path;
    llama_model_params mparams = llama_model_default_params();
};

struct devices {
    fake_device        a{ "FakeA" };
    fake_device        b{ "FakeB" };
    ggml_backend_dev_t list[3] = { &a.dev, &b.dev, nullptr };
    model_file         file;

    devices(size_t n_free_a, size_t n_free_b) {
        a.n_free             = n_free_a;
        b.n_free             = n_free_b;
        file.mparams.devices = list;
    }

    morphkv_fitted fit(size_t n_margin = 0, const morphkv_params * params = nullptr) {
        return morphkv_fit_layers(file.path.c_str(), file.mparams, context_params(), params, n_margin);
    }
};

static void compare(const llama_memory_breakdown & expected, const llama_memory_breakdown & got) {
    for (const auto * map : { &expected, &got }) {
        for (const auto & [buft, _] : *map) {
            const auto a = expected.count(buft) ? expected.at(buft) : llama_memory_breakdown_data();
            const auto b = got.count(buft) ? got.at(buft) : llama_memory_breakdown_data();
            if (a.context != b.context || a.compute != b.compute || a.model != b.model) {
                fprintf(stderr, "%s: model %zu %zu, context %zu %zu, compute %zu %zu\n", ggml_backend_buft_name(buft),
                        a.model, b.model, a.context, b.context, a.compute, b.compute);
            }
            CHECK(a.context == b.context && a.compute == b.compute && a.model == b.model);
        }
    }
}

// Of the same model and context, what is taken and what was foreseen.
static void test_what_is_foreseen_is_what_is_taken() {
    tiny_shape hybrid{ 2, 1, 32, "lfm2", N_LAYER }, windowed{ 6, 2, 32, "granite_swa", N_LAYER };
    for (int32_t il = 0; il < N_LAYER; ++il) {
        hybrid.is_recurrent.push_back(il % 2 == 0);
        windowed.is_windowed.push_back(il % 2 == 0);
    }

    auto large        = small_params();
    large.capacity    = 600;
    large.prompt_room = 1400;
    for (const tiny_shape & shape : { SHAPE, hybrid, windowed }) {
        for (const auto & params : { small_params(), large }) {
            for (const uint32_t n_seq : { 1u, 3u }) {
                for (const bool on_device : { false, true }) {
                    fake_device        dev("Fake");
                    ggml_backend_dev_t list[] = { on_device ? &dev.dev : nullptr, nullptr };
                    model_file         file(shape);
                    file.mparams.devices      = list;
                    file.mparams.load_mode    = LLAMA_LOAD_MODE_NONE;
                    file.mparams.n_gpu_layers = 7;
                    auto cparams              = context_params(n_seq);
                    cparams.type_k = cparams.type_v = GGML_TYPE_Q8_0;

                    const auto probe = morphkv_probe_memory(file.path.c_str(), file.mparams, cparams, &params,
                                                            file.mparams.n_gpu_layers);
                    CHECK(dev.n_graphs == 0);
                    const model_ptr model(llama_model_load_from_file(file.path.c_str(), file.mparams));
                    const auto      ctx = create(model.get(), params, cparams);
                    compare(llama_get_memory_breakdown(ctx.get()), probe.bytes);
                    CHECK(probe.n_layers == N_LAYER + 1);
                    CHECK(probe.devices.size() == on_device);

                    const auto stock = morphkv_probe_memory(file.path.c_str(), file.mparams, cparams, nullptr, 7);
                    const llama_context_ptr stock_ctx(llama_init_from_model(model.get(), cparams));
                    compare(llama_get_memory_breakdown(stock_ctx.get()), stock.bytes);
                }
            }
        }
    }
}

static void test_a_probe_takes_neither_weights_nor_a_cache() {
    const auto params = small_params();
    for (const auto * morphkv : { (const morphkv_params *) nullptr, &params }) {
        devices    devs(1 << 30, 1 << 30);
        const auto fitted = devs.fit(0, morphkv);
        for (const fake_device * dev : { &devs.a, &devs.b }) {
            CHECK(dev->n_written.empty() && dev->n_read.empty() && dev->n_graphs == 0);
            // what evictions are to compute with
            CHECK(dev->n_most < (morphkv ? fitted.devices[0].n_used / 4 : 1));
        }
    }
}

static size_t used(const morphkv_fitted & fitted) {
    size_t res = 0;
    for (const auto & use : fitted.devices) {
        res += use.n_used;
    }
    return res;
}

static void test_where_all_fits_the_model_is_opened_once() {
    devices    devs(1 << 30, 1 << 30);
    const auto fitted = devs.fit(1 << 20);
    CHECK(fitted.n_gpu_layers == N_LAYER + 1 && fitted.n_layers == N_LAYER + 1 && fitted.n_probes == 1);
    CHECK(fitted.devices.size() == 2 && fitted.devices[0].dev == &devs.a.dev);
    CHECK(fitted.devices[0].n_used > 0 && fitted.devices[1].n_used > 0);
}

// With one layer more some device would have too little.
static void test_as_many_fit_as_leave_the_margin() {
    const auto params = small_params();
    for (const auto * morphkv : { (const morphkv_params *) nullptr, &params }) {
        const size_t n_all = used(devices(1 << 30, 1 << 30).fit(0, morphkv));
        for (size_t n_free = n_all / 16; n_free < n_all; n_free += n_all / 16) {
            constexpr size_t N_MARGIN = 10000;
            devices          devs(n_free / 2 + N_MARGIN, n_free / 2 + N_MARGIN);
            const auto       fitted = devs.fit(N_MARGIN, morphkv);

            auto fits = [&](int32_t n) {
                const auto probe =
                    morphkv_probe_memory(devs.file.path.c_str(), devs.file.mparams, context_params(), morphkv, n);
                for (const auto & use : morphkv_device_uses(probe)) {
                    if (use.n_used + N_MARGIN > use.n_free) {
                        return false;
                    }
                }
                return true;
            };
            CHECK(fitted.n_gpu_layers <= N_LAYER);
            CHECK(fitted.n_gpu_layers == 0 || fits(fitted.n_gpu_layers));
            CHECK(!fits(fitted.n_gpu_layers + 1));
            CHECK(fitted.n_probes <= 6);
        }
    }
}

static void test_the_constant_cache_is_counted() {
    auto large        = small_params();
    large.capacity    = 3000;
    large.prompt_room = 3000;
    const auto params = small_params();
    devices    devs(1 << 30, 1 << 30);
    devs.list[1]   = nullptr;  // or layers would go elsewhere with what is free
    const auto few = devs.fit(0, &params), stock = devs.fit(0);
    auto       cparams = context_params();
    cparams.n_ctx      = 8192;
    const auto many    = morphkv_fit_layers(devs.file.path.c_str(), devs.file.mparams, cparams, &large, 0);
    CHECK(used(few) < used(stock));
    CHECK(used(few) < used(many));

    // what fits with the small cache alone
    devs.a.n_free = few.devices[0].n_used;
    CHECK(devs.fit(0, &params).n_gpu_layers == N_LAYER + 1);
    CHECK(devs.fit(0).n_gpu_layers < N_LAYER + 1);
}

static void test_a_device_that_does_not_tell_its_memory_gets_no_layers() {
    devices    devs(1 << 30, 0);
    const auto fitted = devs.fit(0);
    for (const auto & use : fitted.devices) {
        CHECK(use.dev == &devs.a.dev || use.n_used == 0);
    }
}

static morphkv_fit sized() {
    morphkv_fit res{};
    res.size = sizeof(res);
    return res;
}

static void test_c_tells_each_device_and_leaves_what_is_pending() {
    devices    devs(1 << 30, 1 << 30);
    const auto cparams = context_params();
    const auto params  = small_params();
    auto       fit     = sized();
    auto       other   = params;
    other.capacity     = 77;
    CHECK(morphkv_params_set_next(&other) == MORPHKV_STATUS_OK);
    CHECK(morphkv_fit_gpu_layers(devs.file.path.c_str(), &devs.file.mparams, &cparams, &params, 0, &fit) ==
          MORPHKV_STATUS_OK);
    CHECK(morphkv_pending_take()->capacity == 77);
    CHECK(fit.n_gpu_layers == N_LAYER + 1 && fit.n_layers == N_LAYER + 1 && fit.n_devices == 2 && fit.n_probes == 1);

    morphkv_fit_device dev{};
    dev.size = sizeof(dev);
    CHECK(morphkv_fit_device_get(1, &dev) == MORPHKV_STATUS_OK);
    CHECK(std::string(dev.name) == "FakeB" && dev.used_bytes > 0 && dev.free_bytes == 1 << 30);
    CHECK(morphkv_fit_device_get(2, &dev) == MORPHKV_STATUS_INVALID);
    CHECK(std::string(morphkv_last_error()) == "device must be in 0..1, got 2");
}

static void test_c_says_what_is_wrong() {
    const model_file file;
    auto             cparams = context_params();
    auto             params  = small_params();
    auto             fit     = sized();
    CHECK(morphkv_fit_gpu_layers("missing.gguf", &file.mparams, &cparams, nullptr, 0, &fit) == MORPHKV_STATUS_FAILED);
    CHECK(strstr(morphkv_last_error(), "cannot load the model, see llama.cpp's log: missing.gguf"));
    fit.size = 1;
    CHECK(morphkv_fit_gpu_layers(file.path.c_str(), &file.mparams, &cparams, nullptr, 0, &fit) ==
          MORPHKV_STATUS_INVALID);
    fit             = sized();
    params.capacity = 2;
    CHECK(morphkv_fit_gpu_layers(file.path.c_str(), &file.mparams, &cparams, &params, 0, &fit) ==
          MORPHKV_STATUS_INVALID);
    params                  = small_params();
    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    CHECK(morphkv_fit_gpu_layers(file.path.c_str(), &file.mparams, &cparams, &params, 0, &fit) ==
          MORPHKV_STATUS_UNSUPPORTED);
    CHECK(strstr(morphkv_last_error(), "needs flash attention"));
    auto mparams       = file.mparams;
    mparams.split_mode = LLAMA_SPLIT_MODE_TENSOR;
    CHECK(morphkv_fit_gpu_layers(file.path.c_str(), &mparams, &cparams, nullptr, 0, &fit) ==
          MORPHKV_STATUS_UNSUPPORTED);
    CHECK(strstr(morphkv_last_error(), "split mode tensor"));
}

int main() {
    test_what_is_foreseen_is_what_is_taken();
    test_a_probe_takes_neither_weights_nor_a_cache();
    test_where_all_fits_the_model_is_opened_once();
    test_as_many_fit_as_leave_the_margin();
    test_the_constant_cache_is_counted();
    test_a_device_that_does_not_tell_its_memory_gets_no_layers();
    test_c_tells_each_device_and_leaves_what_is_pending();
    test_c_says_what_is_wrong();
}
