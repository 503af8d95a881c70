#include "device/devices.h"

#include "core/params.h"

#include "ggml-rpc.h"

#include <algorithm>
#include <cstring>
#include <sstream>

namespace {

// ggml says of each module that it was loaded. Who asks for devices wants their list alone, and what went wrong.
struct quiet_log {
    quiet_log() {
        ggml_log_get(&before, &before_data);
        ggml_log_set(hear, this);
    }
    ~quiet_log() { ggml_log_set(before, before_data); }

    static void hear(ggml_log_level level, const char * text, void * data) {
        const auto & log = *(const quiet_log *) data;
        if (log.before && (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR)) {
            log.before(level, text, log.before_data);
        }
    }

    ggml_log_callback before      = nullptr;
    void *            before_data = nullptr;
};

}  // namespace

void morphkv_load_backends() {
    if (ggml_backend_reg_count() == 0) {
        const quiet_log quiet;
        ggml_backend_load_all();
    }
}

std::vector<ggml_backend_dev_t> morphkv_devices_of_servers(const std::string & servers) {
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    if (!rpc) {
        throw morphkv_error(MORPHKV_STATUS_UNSUPPORTED, "RPC servers need a build with GGML_RPC=ON");
    }
    const auto add_server =
        (decltype(&ggml_backend_rpc_add_server)) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server");

    std::vector<ggml_backend_dev_t> res;
    std::stringstream               list(servers);
    for (std::string server; std::getline(list, server, ',');) {
        ggml_backend_reg_t reg   = add_server(server.c_str());
        const size_t       n_dev = reg ? ggml_backend_reg_dev_count(reg) : 0;
        if (n_dev == 0) {
            throw morphkv_error(MORPHKV_STATUS_FAILED, "the RPC server at " + server + " has no device");
        }
        for (size_t i = 0; i < n_dev; ++i) {
            res.push_back(ggml_backend_reg_dev_get(reg, i));
        }
    }
    return res;
}

static bool is_rpc(ggml_backend_dev_t dev) {
    return strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "RPC") == 0;
}

// One card that two backends see.
static bool is_same_card(ggml_backend_dev_t a, ggml_backend_dev_t b) {
    ggml_backend_dev_props a_props, b_props;
    ggml_backend_dev_get_props(a, &a_props);
    ggml_backend_dev_get_props(b, &b_props);
    return a_props.device_id && b_props.device_id && strcmp(a_props.device_id, b_props.device_id) == 0;
}

std::vector<ggml_backend_dev_t> morphkv_local_gpus() {
    std::vector<ggml_backend_dev_t> gpus, integrated;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev  = ggml_backend_dev_get(i);
        const auto         type = ggml_backend_dev_type(dev);
        if (is_rpc(dev)) {
            continue;
        }
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU &&
            std::none_of(gpus.begin(), gpus.end(), [&](ggml_backend_dev_t gpu) { return is_same_card(gpu, dev); })) {
            gpus.push_back(dev);
        }
        if (type == GGML_BACKEND_DEVICE_TYPE_IGPU &&
            (integrated.empty() || ggml_backend_dev_backend_reg(dev) == ggml_backend_dev_backend_reg(integrated[0]))) {
            integrated.push_back(dev);
        }
    }
    return gpus.empty() ? integrated : gpus;
}
