// Every operation that evictions and rebases are made of, with its types, sizes and strides, against what the Metal,
// Vulkan, SYCL and CUDA backends say that they support: their own functions, copied from their sources when this test is
// built, with stand-ins for what describes a device. None of these backends need be there.

#include "device/selftest.h"
#include "ggml-impl.h"
#include "support/fake_device.h"
#include "support/tiny_context.h"

#include <cstring>

namespace metal {
#define OP_LIGHTNING_INDEXER_DK 128
#define OP_LIGHTNING_INDEXER_NH 64
struct device {
    struct {
        bool   has_simdgroup_mm           = true;
        bool   has_simdgroup_reduction    = true;
        bool   has_bfloat                 = true;
        size_t max_theadgroup_memory_size = 32768;
    } props;
};
using ggml_metal_device_t = const device *;
#include "supports_op_metal.inc"
}  // namespace metal

namespace vulkan {
#define UNUSED GGML_UNUSED
constexpr uint32_t num_argsort_pipelines = 11;
constexpr uint32_t num_topk_pipelines    = 11;
struct device_struct {
    size_t max_buffer_size       = 1 << 30;
    bool   shader_int64          = true;
    bool   buffer_device_address = true;
    bool   shader_64b_indexing   = false;
    struct {
        struct {
            size_t   maxStorageBufferRange           = 1 << 27;
            uint32_t maxComputeSharedMemorySize      = 32768;
            size_t   minStorageBufferOffsetAlignment = 64;
        } limits;
    } properties;
    bool     mul_mat_id_s[GGML_TYPE_COUNT]         = {};
    bool     mul_mat_id_m[GGML_TYPE_COUNT]         = {};
    bool     mul_mat_id_l[GGML_TYPE_COUNT]         = {};
    bool     coopmat2                              = false;
    bool     subgroup_shuffle                      = true;
    bool     subgroup_vote                         = true;
    bool     vulkan_memory_model                   = true;
    uint32_t max_workgroup_size_log2               = 10;
    uint32_t subgroup_size_log2                    = 5;
    bool     pipeline_topk_f32[num_topk_pipelines] = {};
    void *   pipeline_topk_radix_f32               = nullptr;
    void *   pipeline_dsv4_hc_comb_f32             = nullptr;
    bool     subgroup_arithmetic                   = true;
    bool     subgroup_require_full_support         = true;
    bool     subgroup_basic                        = true;
    bool     fp16                                  = true;
};
using vk_device = device_struct *;
struct ggml_backend_vk_device_context {
    vk_device device;
};
static vk_device ggml_vk_get_device(vk_device device) {
    return device;
}
static bool ggml_vk_lightning_indexer_k_type_supported(ggml_type) {
    return false;
}
static uint64_t vk_tensor_offset(const ggml_tensor *) {
    return 0;
}
#include "supports_op_vulkan.inc"
}  // namespace vulkan

namespace sycl {
#define WARP_SIZE            32
#define SYCL_SOLVE_TRI_MAX_N 64
#define SYCL_SOLVE_TRI_MAX_K 64
struct ggml_backend_sycl_device_context {
    int device;
};
// of the model's graph, not of ours
static bool ggml_sycl_flash_attn_ext_supported(int, const ggml_tensor *) {
    return true;
}
#include "supports_op_sycl.inc"
}  // namespace sycl

namespace cuda {
#ifndef QK_K
#define QK_K 256
#endif
struct ggml_backend_cuda_device_context {
    int device;
};
struct ggml_backend_cuda_buffer_type_context {
    int device;
};
struct info {
    struct {
        size_t smpb = 49152;
    } devices[1];
};
static bool ggml_backend_buft_is_cuda(ggml_backend_buffer_type_t) {
    return false;
}
static info ggml_cuda_info() {
    return {};
}
static bool ggml_cuda_op_mul_mat_use_fwht(const ggml_tensor *) {
    return false;
}
static bool ggml_cuda_flash_attn_ext_supported(int, const ggml_tensor *) {
    return true;
}
static bool ggml_cuda_lightning_indexer_supported(int, const ggml_tensor *) {
    return false;
}
#include "supports_op_cuda.inc"
}  // namespace cuda

using supports_fn = std::function<bool(const ggml_tensor *)>;

// A device's context in the place where the backend looks for it.
template <typename C> static ggml_backend_device device_with(C & context) {
    ggml_backend_device res{};
    res.context = &context;
    return res;
}

static supports_fn metal_with(metal::device device) {
    return [device](const ggml_tensor * t) {
        return metal::ggml_metal_device_supports_op(&device, t);
    };
}

static supports_fn vulkan_with(vulkan::device_struct device) {
    return [device](const ggml_tensor * t) {
        auto                                   copy = device;
        vulkan::ggml_backend_vk_device_context context{ &copy };
        ggml_backend_device                    dev = device_with(context);
        return vulkan::ggml_backend_vk_device_supports_op(&dev, t);
    };
}

static bool sycl_supports(const ggml_tensor * t) {
    sycl::ggml_backend_sycl_device_context context{ 0 };
    ggml_backend_device                    dev = device_with(context);
    return sycl::do_ggml_backend_sycl_device_supports_op(&dev, t);
}

static bool cuda_supports(const ggml_tensor * t) {
    cuda::ggml_backend_cuda_device_context context{ 0 };
    ggml_backend_device                    dev = device_with(context);
    return cuda::ggml_backend_cuda_device_supports_op(&dev, t);
}

static int n_failed = 0;

static const std::vector<morphkv_selftest_state> & states_on_the_cpu() {
    static const std::vector<morphkv_selftest_state> states = [] {
        const ggml_backend_ptr cpu(ggml_backend_cpu_init());
        ggml_backend_cpu_set_n_threads(cpu.get(), 1);
        std::vector<morphkv_selftest_state> res;
        for (const auto & c : morphkv_selftest_cases()) {
            res.push_back(morphkv_selftest_compute(c, cpu.get()));
        }
        return res;
    }();
    return states;
}

// Contexts of a model, for each K and V type and each way to score, and the self-test's sizes.
static void check(const char * name, const supports_fn & supports, const char * lacking = nullptr,
                  ggml_type lacking_type = GGML_TYPE_COUNT) {
    fake_device dev(name);
    dev.supports = supports;

    const ggml_backend_ptr device(ggml_backend_dev_init(&dev.dev, nullptr));
    auto expect = [&](const std::string & what, bool is_supported, const std::string & why, bool is_expected) {
        if (is_supported != is_expected || (!is_supported && why.find(lacking) == std::string::npos)) {
            fprintf(stderr, "%s: %s: %s\n", name, what.c_str(), why.empty() ? "supported" : why.c_str());
            n_failed++;
        }
    };
    const auto cases = morphkv_selftest_cases();
    for (size_t i = 0; i < cases.size(); ++i) {
        const auto &  c       = cases[i];
        const bool    is_both = c.policy.policy == MORPHKV_POLICY_COMMITTEES;
        const int32_t n_sorted =
            is_both ? c.shape.n_old() - c.shape.n_keep : std::max(c.shape.n_distant - c.shape.n_keep, c.shape.n_grad);
        const bool is_lacking =
            lacking && (lacking_type == c.type || (lacking_type == GGML_TYPE_COUNT && n_sorted > 512));
        const auto there   = morphkv_selftest_compute(c, device.get());
        const auto verdict = morphkv_selftest_compare(c, states_on_the_cpu()[i], there);
        CHECK(verdict.result != MORPHKV_SELFTEST_RESULT_DIFFERENT);
        expect(std::string(ggml_type_name(c.type)) + " " + c.describe(), verdict.result == MORPHKV_SELFTEST_RESULT_SAME,
               verdict.reason, !is_lacking);
    }

    ggml_backend_dev_t list[]  = { &dev.dev, nullptr };
    auto               mparams = llama_model_default_params();
    mparams.devices            = list;
    mparams.n_gpu_layers       = 99;
    // 96: rows of a head that are no whole number of words for q8_0, q5_0 and q4_0; 64: rotated by llama.cpp
    for (const int32_t n_embd_head : { 64, 96 }) {
        const auto model = tiny_model_load({ 6, 2, n_embd_head }, mparams);
        for (const ggml_type type :
             { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0 }) {
            if (type == lacking_type) {
                continue;  // llama.cpp itself ends the process: such a cache cannot be on such a device
            }
            for (const auto policy :
                 { MORPHKV_POLICY_MORPHKV, MORPHKV_POLICY_RECENCY, MORPHKV_POLICY_RANDOM, MORPHKV_POLICY_COMMITTEES }) {
                auto params         = small_params();
                params.policy       = policy;
                params.decay        = policy == MORPHKV_POLICY_MORPHKV ? 0.5f : 0.0f;
                params.fusion       = MORPHKV_FUSION_MAX;
                auto cparams        = context_params();
                cparams.type_k      = type;
                cparams.type_v      = type;
                llama_context * ctx = nullptr;
                const bool      ok  = morphkv_context_create(model.get(), &cparams, &params, &ctx) == MORPHKV_STATUS_OK;
                expect(std::string("context, ") + ggml_type_name(type), ok, morphkv_last_error(), true);
                const auto archive = morphkv_archive_params_default();
                const bool starts  = ok && morphkv_archive_start(ctx, &archive) == MORPHKV_STATUS_OK;
                expect(std::string("archive, ") + ggml_type_name(type), starts, morphkv_last_error(), true);
                llama_free(ctx);
            }
        }
    }
}

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    check("Metal", metal_with({}));
    metal::device old{};
    old.props.has_bfloat = false;
    check("Metal without bfloat", metal_with(old), "bf16", GGML_TYPE_BF16);

    check("Vulkan", vulkan_with({}));
    vulkan::device_struct no_model{};
    no_model.vulkan_memory_model     = false;
    no_model.max_workgroup_size_log2 = 9;
    check("Vulkan without its memory model", vulkan_with(no_model), "ARGSORT");

    check("SYCL", sycl_supports);
    check("CUDA", cuda_supports);
    return n_failed ? 1 : 0;
}
