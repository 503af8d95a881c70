// The C API of devices: which there are, what fits there, and whether they compute what is right.

#include "device/devices.h"
#include "device/selftest.h"
#include "llama/capi.h"
#include "llama/fit.h"

#include "ggml-cpp.h"

#include <algorithm>

int32_t morphkv_device_count(void) {
    return guarded(morphkv_load_backends) == MORPHKV_STATUS_OK ? ggml_backend_dev_count() : 0;
}

morphkv_status morphkv_device_get(int32_t i, morphkv_device * out) {
    return guarded([&] {
        require(i >= 0 && i < morphkv_device_count(),
                "device must be in 0.." + std::to_string(morphkv_device_count() - 1) + ", got " + std::to_string(i));
        require_size(out, "out");

        ggml_backend_dev_t dev     = ggml_backend_dev_get(i);
        size_t             n_free  = 0;
        size_t             n_total = 0;
        ggml_backend_dev_memory(dev, &n_free, &n_total);

        const auto type  = ggml_backend_dev_type(dev);
        out->name        = ggml_backend_dev_name(dev);
        out->description = ggml_backend_dev_description(dev);
        out->backend     = ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev));
        out->is_gpu      = type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
        out->free_bytes  = n_free;
        out->total_bytes = n_total;
    });
}

morphkv_status morphkv_rpc_devices(const char * servers, void ** devices) {
    return guarded([&] {
        require(servers && devices, "servers and devices must not be NULL");
        morphkv_load_backends();
        std::vector<ggml_backend_dev_t> all = morphkv_devices_of_servers(servers);
        for (ggml_backend_dev_t dev : morphkv_local_gpus()) {
            all.push_back(dev);
        }
        require(all.size() <= llama_max_devices(), "there must be at most " + std::to_string(llama_max_devices()) +
                                                       " devices, got " + std::to_string(all.size()));
        *std::copy(all.begin(), all.end(), devices) = nullptr;
    });
}

static thread_local morphkv_fitted last_fit;

morphkv_status morphkv_fit_gpu_layers(const char * path, const struct llama_model_params * mparams,
                                      const struct llama_context_params * cparams, const morphkv_params * params,
                                      uint64_t margin_bytes, morphkv_fit * out) {
    return guarded([&] {
        require(path && mparams && cparams, "path, mparams and cparams must not be NULL");
        require_size(out, "out");
        std::optional<morphkv_params> checked;
        if (params) {
            checked = morphkv_params_checked(params);
        }
        morphkv_load_backends();
        last_fit          = {};
        last_fit          = morphkv_fit_layers(path, *mparams, *cparams, checked ? &*checked : nullptr, margin_bytes);
        out->n_gpu_layers = last_fit.n_gpu_layers;
        out->n_layers     = last_fit.n_layers;
        out->n_devices    = last_fit.devices.size();
        out->n_probes     = last_fit.n_probes;
    });
}

morphkv_status morphkv_fit_device_get(int32_t i, morphkv_fit_device * out) {
    return guarded([&] {
        const int32_t n = last_fit.devices.size();
        require(i >= 0 && i < n, "device must be in 0.." + std::to_string(n - 1) + ", got " + std::to_string(i));
        require_size(out, "out");
        const auto & use = last_fit.devices[i];
        out->name        = ggml_backend_dev_name(use.dev);
        out->description = ggml_backend_dev_description(use.dev);
        out->used_bytes  = use.n_used;
        out->free_bytes  = use.n_free;
    });
}

morphkv_status morphkv_selftest_count(const char * servers, int32_t * n) {
    return guarded([&] {
        require(n, "n must not be NULL");
        morphkv_load_backends();
        *n = morphkv_selftest_items(servers ? servers : "").size();
    });
}

morphkv_status morphkv_selftest_run(const char * servers, int32_t i, morphkv_selftest * out) {
    return guarded([&] {
        morphkv_load_backends();
        const auto    items = morphkv_selftest_items(servers ? servers : "");
        const int32_t n     = items.size();
        require(i >= 0 && i < n, "case must be in 0.." + std::to_string(n - 1) + ", got " + std::to_string(i));
        require_size(out, "out");
        require(out->n_threads >= 0, "n_threads must not be negative, got " + std::to_string(out->n_threads));

        const auto & [dev, c, kernels] = items[i];
        ggml_backend_ptr cpu(morphkv_selftest_start(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)));
        ggml_backend_ptr device(morphkv_selftest_start(dev, std::max(1, out->n_threads)));
        const auto       expected = morphkv_selftest_compute(c, cpu.get());
        const auto       got      = morphkv_selftest_compute(c, device.get(), kernels);
        const auto       verdict  = morphkv_selftest_compare(c, expected, got);

        static thread_local std::string shape, reason;
        shape            = c.describe();
        reason           = verdict.reason;
        out->device      = ggml_backend_dev_name(dev);
        out->description = ggml_backend_dev_description(dev);
        out->graph       = c.n_rows > 0 ? "rebase" : kernels ? "kernels" : "evict";
        out->type        = ggml_type_name(c.type);
        out->shape       = shape.c_str();
        out->result      = verdict.result;
        out->n_near_ties = verdict.n_near_ties;
        out->reason      = reason.c_str();
        out->took_ms     = got.took_ms;
    });
}
