// The cases, and the devices that they are run on.

#include "device/selftest.h"

#include "core/params.h"
#include "core/types.h"
#include "device/devices.h"
#include "device/kernels-library.h"

static const char * rope_name(int32_t mode) {
    switch (mode) {
        case GGML_ROPE_TYPE_NEOX:
            return "neox";
        case GGML_ROPE_TYPE_MROPE:
            return "mrope";
        case GGML_ROPE_TYPE_IMROPE:
            return "imrope";
        default:
            return "norm";
    }
}

std::string morphkv_selftest_case::describe() const {
    std::string res = std::to_string(n_head_kv) + "x" + std::to_string(n_embd_head);
    if (n_rows > 0) {
        res += ", " + std::to_string(n_rows) + " rows, " + std::to_string(n_rot_dims) + " dims " + rope_name(rope_mode);
        res += n_rot_offs > 0 ? ", offset " + std::to_string(n_rot_offs) : "";
        for (size_t i = 0; sections[0] > 0 && i < sections.size(); ++i) {
            res += (i == 0 ? ", sections " : "/") + std::to_string(sections[i]);
        }
        return res + (is_normed ? ", norm" : "");
    }
    res += ", group " + std::to_string(n_group) + ", " + std::to_string(shape.n_distant) + "+" +
           std::to_string(shape.n_grad) + " cells, " + std::to_string(shape.n_votes) + " votes";
    res += policy.fusion == MORPHKV_FUSION_MAX ? ", max" : "";
    res += policy.policy == MORPHKV_POLICY_COMMITTEES ? ", committees" : "";
    res += policy.carried > 0.0f && policy.carried < 1.0f ? ", decay" : "";
    res += softcap > 0.0f ? ", softcap" : "";
    res += n_readers > 1 ? ", " + std::to_string(n_readers) + " layers" : "";
    return res;
}

std::vector<morphkv_selftest_case> morphkv_selftest_cases() {
    const morphkv_evict_policy paper = { MORPHKV_POLICY_MORPHKV, MORPHKV_FUSION_SUM, 0.0f };
    const morphkv_evict_policy other = { MORPHKV_POLICY_MORPHKV, MORPHKV_FUSION_MAX, 0.5f };

    const morphkv_evict_policy both = { MORPHKV_POLICY_COMMITTEES, MORPHKV_FUSION_SUM, 1.0f };

    std::vector<morphkv_selftest_case> res;
    for (const ggml_type type : MORPHKV_ROW_TYPES) {
        // keep, distant, graduates, window, votes: the defaults at an interval and at the end of a prompt; odd ones
        res.push_back({ type, 64, 3, 3, { 4, 992, 128, 32, 32 }, paper, 0.0f, 0, 0, 0 });
        res.push_back({ type, 128, 1, 4, { 4, 992, 1024, 32, 32 }, paper, 0.0f, 0, 0, 0 });
        res.push_back({ type, 64, 2, 1, { 0, 33, 61, 9, 3 }, other, 0.0f, 0, 0, 0 });
        // rows of a head that are no whole number of words for q8_0, q5_0 and q4_0
        res.push_back({ type, 96, 3, 2, { 2, 40, 7, 5, 5 }, paper, 20.0f, 0, 0, 0 });
        res.push_back({ type, 64, 1, 7, { 4, 5, 1, 1, 1 }, paper, 0.0f, 0, 0, 0 });
        res.push_back({ type, 64, 3, 1, {}, paper, 0.0f, 401, 64, GGML_ROPE_TYPE_NORMAL });
        res.push_back({ type, 128, 2, 1, {}, paper, 0.0f, 77, 64, GGML_ROPE_TYPE_NEOX });
        // as in Qwen 2.5 VL, Qwen 3 VL and Qwen 3.5; DeepSeek 2; Hunyuan; and Gemma 4's layers that share K
        res.push_back({ type, 128, 2, 1, {}, paper, 0.0f, 77, 128, GGML_ROPE_TYPE_MROPE, 0, { 16, 24, 24, 0 } });
        res.push_back({ type, 128, 2, 1, {}, paper, 0.0f, 77, 128, GGML_ROPE_TYPE_IMROPE, 0, { 24, 20, 20, 0 } });
        res.push_back({ type, 256, 1, 1, {}, paper, 0.0f, 33, 64, GGML_ROPE_TYPE_IMROPE, 0, { 11, 11, 10, 0 } });
        res.push_back({ type, 576, 1, 1, {}, paper, 0.0f, 33, 64, GGML_ROPE_TYPE_NORMAL, 512 });
        res.push_back({ type, 128, 2, 1, {}, paper, 0.0f, 77, 128, GGML_ROPE_TYPE_NEOX, 0, {}, true });
        res.push_back(
            { type, 64, 2, 6, { 4, 120, 32, 16, 16 }, paper, 0.0f, 0, 0, 0, 0, {}, false, /*.n_readers =*/3 });
        res.push_back({ type, 64, 3, 3, { 4, 252, 128, 256, 32 }, both, 0.0f, 0, 0, 0 });
    }
    return res;
}

ggml_backend_t morphkv_selftest_start(ggml_backend_dev_t dev, int n_threads) {
    ggml_backend_t res = ggml_backend_dev_init(dev, nullptr);
    if (!res) {
        throw morphkv_error(MORPHKV_STATUS_FAILED, std::string(ggml_backend_dev_name(dev)) + " cannot be started");
    }
    const auto set_n_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
    if (set_n_threads) {
        set_n_threads(res, n_threads);
    }
    return res;
}

std::vector<ggml_backend_dev_t> morphkv_selftest_devices(const std::string & servers) {
    std::vector<ggml_backend_dev_t> res;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev  = ggml_backend_dev_get(i);
        const auto         type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_CPU || type == GGML_BACKEND_DEVICE_TYPE_GPU ||
            type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            res.push_back(dev);
        }
    }
    if (!servers.empty()) {
        const auto remote = morphkv_devices_of_servers(servers);
        res.insert(res.end(), remote.begin(), remote.end());
    }
    return res;
}

std::vector<morphkv_selftest_item> morphkv_selftest_items(const std::string & servers) {
    std::vector<morphkv_selftest_item> res;
    for (ggml_backend_dev_t dev : morphkv_selftest_devices(servers)) {
        const auto * kernels = morphkv_kernels_library_for(dev);
        for (const auto & c : morphkv_selftest_cases()) {
            res.push_back({ dev, c, nullptr });
        }
        for (const auto & c : morphkv_selftest_cases()) {
            if (kernels && c.n_rows == 0) {
                res.push_back({ dev, c, kernels });
            }
        }
    }
    return res;
}
