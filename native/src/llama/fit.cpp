#include "llama/fit.h"

#include "core/fit.h"
#include "core/params.h"

#include "ggml-cpp.h"
#include "llama-cpp.h"
#include "llama-model.h"

#include <algorithm>
#include <map>

namespace {

// What the thread has pending is for another context.
class pending_guard {
public:
    pending_guard() : before(morphkv_pending_get()) { morphkv_pending_set(std::nullopt); }
    ~pending_guard() { morphkv_pending_set(before); }

private:
    const std::optional<morphkv_params> before;
};

llama_context_ptr create_context(llama_model * model, const llama_context_params & cparams,
                                 const morphkv_params * params) {
    llama_context * ctx = nullptr;
    if (!params) {
        ctx = llama_init_from_model(model, cparams);
    } else if (morphkv_context_create(model, &cparams, params, &ctx) != MORPHKV_STATUS_OK) {
        throw morphkv_error(morphkv_last_status(), morphkv_last_error());
    }
    if (!ctx) {
        throw morphkv_error(MORPHKV_STATUS_FAILED, "llama_init_from_model failed, see llama.cpp's log");
    }
    return llama_context_ptr(ctx);
}

}  // namespace

morphkv_memory_probe morphkv_probe_memory(const char * path, llama_model_params mparams, llama_context_params cparams,
                                          const morphkv_params * params, int32_t n_gpu_layers) {
    mparams.n_gpu_layers      = n_gpu_layers;
    mparams.no_alloc          = true;
    mparams.load_mode         = LLAMA_LOAD_MODE_NONE;
    mparams.progress_callback = [](float, void *) {
        return true;
    };
    mparams.progress_callback_user_data = nullptr;

    const pending_guard   guard;
    const llama_model_ptr model(llama_model_load_from_file(path, mparams));
    if (!model) {
        throw morphkv_error(MORPHKV_STATUS_FAILED, std::string("cannot load the model, see llama.cpp's log: ") + path);
    }
    const auto           ctx = create_context(model.get(), cparams, params);
    morphkv_memory_probe res{ (int32_t) model->hparams.n_layer_all + 1, {}, llama_get_memory_breakdown(ctx.get()) };
    for (int i = 0; i < llama_model_n_devices(model.get()); ++i) {
        res.devices.push_back(llama_model_get_device(model.get(), i));
    }
    return res;
}

std::vector<morphkv_device_use> morphkv_device_uses(const morphkv_memory_probe & probe) {
    std::vector<morphkv_device_use> res;
    for (ggml_backend_dev_t dev : probe.devices) {
        morphkv_device_use use{ dev, 0, 0, 0 };
        ggml_backend_dev_memory(dev, &use.n_free, &use.n_total);
        for (const auto & [buft, bytes] : probe.bytes) {
            if (!ggml_backend_buft_is_host(buft) && ggml_backend_buft_get_device(buft) == dev) {
                use.n_used += bytes.total();
            }
        }
        res.push_back(use);
    }
    return res;
}

morphkv_fitted morphkv_fit_layers(const char * path, const llama_model_params & mparams,
                                  const llama_context_params & cparams, const morphkv_params * params,
                                  size_t n_margin) {
    if (!params && mparams.split_mode == LLAMA_SPLIT_MODE_TENSOR) {
        throw morphkv_error(
            MORPHKV_STATUS_UNSUPPORTED,
            "how many layers fit cannot be told where each is split (split mode tensor): give n_gpu_layers");
    }
    morphkv_fitted                                     res{};
    std::map<int32_t, std::vector<morphkv_device_use>> uses;  // by n_gpu_layers

    auto probe = [&](int32_t n) {
        const auto memory = morphkv_probe_memory(path, mparams, cparams, params, n);
        res.n_probes++;
        res.n_layers                       = memory.n_layers;
        uses[std::min(n, memory.n_layers)] = morphkv_device_uses(memory);
    };
    auto fits = [&](int32_t n) {
        if (uses.count(n) == 0) {
            probe(n);
        }
        return std::all_of(uses[n].begin(), uses[n].end(), [&](const auto & use) {
            // one that does not tell its memory has 0: nothing can be left there
            return use.n_used == 0 || use.n_used + n_margin <= use.n_free;
        });
    };

    probe(INT32_MAX);  // all of them, whose number the model tells
    if (!uses[res.n_layers].empty()) {
        res.n_gpu_layers = morphkv_most_that_fit(res.n_layers, fits);
        if (uses.count(res.n_gpu_layers) == 0) {
            probe(res.n_gpu_layers);
        }
        res.devices = uses[res.n_gpu_layers];
    }
    return res;
}
