// The phases on a device: five launches of (n_blocks, n_layers) blocks of 256 threads, on a stream of our own. One copy before
// them, of the table; none after. The host waits once, at the end.
//
// ggml's stream is not public. Whoever calls has waited for it, and goes on when these launches are done.

#include "phases.h"
#include "runtime.h"

#include <map>
#include <mutex>
#include <string>

namespace {

struct device_threads {
    template <typename T> struct own {
        T value;

        __device__ __forceinline__ T & operator[](int) { return value; }
    };

    template <typename F> __device__ __forceinline__ void each(F && f) const {
        f((int) threadIdx.x);
        __syncthreads();
    }
};

template <int Launch>
__global__ void __launch_bounds__(MORPHKV_N_THREADS) morphkv_kernel(const morphkv_kernels_args * args) {
    extern __shared__ float4   shared[];
    // the block's own copy: registers and shared memory, not the table
    const morphkv_kernels_args a = args[blockIdx.y];
    morphkv_block<Launch>(device_threads(), a, (int) blockIdx.x, shared);
}

// Of a device; grows and stays.
struct memory {
    cudaStream_t stream        = nullptr;
    char *       host          = nullptr;  // pinned
    char *       table         = nullptr;
    char *       scratch       = nullptr;
    size_t       table_bytes   = 0;
    size_t       scratch_bytes = 0;
};

std::mutex            mutex;
std::map<int, memory> memories;

struct failure {
    std::string what;
};

void check(cudaError_t error, const char * what) {
    if (error != cudaSuccess) {
        // it would be told again by the next call of anyone
        (void) cudaGetLastError();
        throw failure{ std::string(what) + ": " + cudaGetErrorString(error) };
    }
}

struct device_guard {
    explicit device_guard(int device) {
        check(cudaGetDevice(&before), "cudaGetDevice");
        check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~device_guard() { (void) cudaSetDevice(before); }

    int before = 0;
};

size_t grown(size_t n_bytes) {
    return n_bytes + n_bytes / 4;
}

memory & memory_for(int device, const morphkv_kernels_plan & plan) {
    memory & res = memories[device];
    if (!res.stream) {
        check(cudaStreamCreateWithFlags(&res.stream, cudaStreamNonBlocking), "cudaStreamCreate");
    }
    if (res.table_bytes < plan.table.size()) {
        (void) cudaFree(res.table);
        (void) cudaFreeHost(res.host);
        res.table       = nullptr;
        res.host        = nullptr;
        res.table_bytes = 0;
        check(cudaMalloc((void **) &res.table, grown(plan.table.size())), "cudaMalloc of the table");
        check(cudaMallocHost((void **) &res.host, grown(plan.table.size())), "cudaMallocHost of the table");
        res.table_bytes = grown(plan.table.size());
    }
    if (res.scratch_bytes < plan.scratch_bytes) {
        (void) cudaFree(res.scratch);
        res.scratch       = nullptr;
        res.scratch_bytes = 0;
        check(cudaMalloc((void **) &res.scratch, grown(plan.scratch_bytes)), "cudaMalloc of scratch memory");
        res.scratch_bytes = grown(plan.scratch_bytes);
    }
    return res;
}

template <int Launch> void launch(const morphkv_kernels_plan & plan, const memory & m, size_t n_shared) {
    const dim3 blocks(plan.n_blocks[Launch - 1], plan.n_layers);
    morphkv_kernel<Launch><<<blocks, MORPHKV_N_THREADS, n_shared, m.stream>>>((const morphkv_kernels_args *) m.table);
    check(cudaGetLastError(), "a launch");
}

int device_of(const void * pointer) {
    cudaPointerAttributes where{};
    check(cudaPointerGetAttributes(&where, pointer), "cudaPointerGetAttributes");
    return where.device;
}

void run(const morphkv_kernels_cut * cuts, const morphkv_kernels_layer * layers, int32_t n_layers,
         int32_t * has_changed) {
    const int          device = device_of(layers[0].k);
    const device_guard guard(device);

    morphkv_kernels_plan plan = morphkv_plan_kernels(cuts, layers, n_layers);
    memory &             m    = memory_for(device, plan);
    morphkv_place_kernels(plan, m.table, m.scratch);
    memcpy(m.host, plan.table.data(), plan.table.size());
    check(cudaMemcpyAsync(m.table, m.host, plan.table.size(), cudaMemcpyHostToDevice, m.stream), "copying the table");

    launch<1>(plan, m, sizeof(morphkv_shared_tiles));
    launch<2>(plan, m, sizeof(morphkv_shared_tiles));
    *has_changed = true;
    launch<3>(plan, m, plan.n_keys * sizeof(uint64_t));
    launch<4>(plan, m, 0);
    launch<5>(plan, m, 0);
    check(cudaStreamSynchronize(m.stream), "waiting for the launches");
}

}  // namespace

int32_t morphkv_kernels_version() {
    return MORPHKV_KERNELS_VERSION;
}

const char * morphkv_kernels_registry() {
    return MORPHKV_REGISTRY;
}

const char * morphkv_kernels_run(const morphkv_kernels_cut * cuts, const morphkv_kernels_layer * layers,
                                 int32_t n_layers, int32_t * has_changed) {
    static thread_local std::string why;

    const std::lock_guard<std::mutex> lock(mutex);
    *has_changed = false;
    try {
        run(cuts, layers, n_layers, has_changed);
        return nullptr;
    } catch (const failure & f) {
        why = f.what;
    } catch (const std::exception & err) {
        why = err.what();
    }
    return why.c_str();
}

size_t morphkv_kernels_n_bytes(const void * on_device) {
    const std::lock_guard<std::mutex> lock(mutex);
    try {
        const auto it = memories.find(device_of(on_device));
        return it == memories.end() ? 0 : it->second.table_bytes + it->second.scratch_bytes;
    } catch (const failure &) {
        return 0;
    }
}
