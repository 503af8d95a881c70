// In place of libcudart and libcublas: memory is the host's, copies are made, and of kernels it is counted that they were started.
// What ggml-cuda starts depends on shapes alone, so no GPU is needed to count it; no result is right.

#include "fake_cuda.h"

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

std::map<const void *, std::string> & names() {
    static std::map<const void *, std::string> res;
    return res;
}

long n_launches = 0;  // kernels, and calls of cuBLAS as one each
long n_copies   = 0;
bool is_listed  = false;

std::map<std::string, long> & by_name() {
    static std::map<std::string, long> res;
    return res;
}

void count(const std::string & name) {
    n_launches++;
    if (is_listed) {
        by_name()[name]++;
    }
}

struct configuration {
    dim3   grid, block;
    size_t shared;
} pushed;

fake_cuda_run run = nullptr;

cudaError_t started(const void * kernel, dim3 grid = {}, void ** args = nullptr) {
    count(names()[kernel]);
    if (run && args) {
        run(names()[kernel].c_str(), grid.x, grid.y, args);
    }
    return cudaSuccess;
}

void * allocate(size_t size) {
    size        = (size + 511) / 256 * 256;
    void * data = aligned_alloc(256, size);
    return data ? memset(data, 0, size) : nullptr;
}

template <typename T> cudaError_t make(T * out) {
    *out = (T) malloc(1);
    return cudaSuccess;
}

cublasStatus_t multiplied() {
    count("cublas");
    return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

//
// for the script that counts
//

long fake_cuda_launches() {
    return n_launches;
}
long fake_cuda_copies() {
    return n_copies;
}

// From now on by name.
void fake_cuda_list() {
    by_name().clear();
    is_listed = true;
}

// Mangled names and counts, a line each. Valid until the next call.
const char * fake_cuda_listed() {
    static std::string res;
    res.clear();
    for (const auto & [name, n] : by_name()) {
        res += name + " " + std::to_string(n) + "\n";
    }
    is_listed = false;
    return res.c_str();
}

// Kernels are given to it once they are counted, but for those that start in other ways than by <<<>>>.
void fake_cuda_set_run(fake_cuda_run f) {
    run = f;
}

// Of a function of ggml-cuda's that compile_few.py leaves out.
void fake_cuda_left_out(const char * name) {
    fprintf(stderr, "%s is called and was not compiled: its file belongs into compile_few.py\n", name);
    abort();
}

//
// kernels, as nvcc registers and starts them
//

void ** __cudaRegisterFatBinary(void *) {
    static void * handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
char __cudaInitModule(void **) {
    return 0;
}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
void __cudaRegisterFunction(void **, const char * host, char *, const char * name, int, uint3 *, uint3 *, dim3 *,
                            dim3 *, int *) {
    names()[host] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t) {
    pushed = { grid, block, shared };
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 * grid, dim3 * block, size_t * shared, void * stream) {
    *grid             = pushed.grid;
    *block            = pushed.block;
    *shared           = pushed.shared;
    *(void **) stream = nullptr;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t * out, const void * host) {
    *out = (cudaKernel_t) host;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3, void ** args, size_t, cudaStream_t) {
    return started(kernel, grid, args);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *, const void * kernel, void **) {
    return started(kernel);
}
cudaError_t cudaLaunchCooperativeKernel(const void * kernel, dim3, dim3, void **, size_t, cudaStream_t) {
    return started(kernel);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes * out, const void *) {
    *out                    = {};
    out->maxThreadsPerBlock = 1024;
    out->numRegs            = 32;
    out->binaryVersion = out->ptxVersion = 90;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) {
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int * out, const void *, int, size_t, unsigned) {
    *out = 2;
    return cudaSuccess;
}

//
// memory
//

cudaError_t cudaMalloc(void ** out, size_t size) {
    *out = allocate(size);
    return *out ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMallocManaged(void ** out, size_t size, unsigned) {
    return cudaMalloc(out, size);
}
cudaError_t cudaMallocHost(void ** out, size_t size) {
    return cudaMalloc(out, size);
}
cudaError_t cudaHostAlloc(void ** out, size_t size, unsigned) {
    return cudaMalloc(out, size);
}
cudaError_t cudaFree(void * data) {
    free(data);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void * data) {
    return cudaFree(data);
}
cudaError_t cudaHostRegister(void *, size_t, unsigned) {
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *) {
    return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void ** out, void * data, unsigned) {
    *out = data;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes * out, const void * data) {
    *out               = {};
    out->type          = cudaMemoryTypeDevice;
    out->devicePointer = (void *) data;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t * free, size_t * total) {
    *free = *total = (size_t) 80 << 30;
    return cudaSuccess;
}
cudaError_t cudaMemset(void * data, int value, size_t size) {
    memset(data, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void * data, int value, size_t size, cudaStream_t) {
    return cudaMemset(data, value, size);
}
cudaError_t cudaMemcpyAsync(void * dst, const void * src, size_t size, cudaMemcpyKind, cudaStream_t) {
    n_copies++;
    memmove(dst, src, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void * dst, int, const void * src, int, size_t size, cudaStream_t stream) {
    return cudaMemcpyAsync(dst, src, size, cudaMemcpyDefault, stream);
}
cudaError_t cudaMemcpy2DAsync(void * dst, size_t dst_pitch, const void * src, size_t src_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
    n_copies++;
    for (size_t i = 0; i < height; ++i) {
        memmove((char *) dst + i * dst_pitch, (const char *) src + i * src_pitch, width);
    }
    return cudaSuccess;
}

//
// one device like an H200
//

cudaError_t cudaGetDeviceCount(int * out) {
    *out = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int * out) {
    *out = 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp * out, int) {
    *out = {};
    strcpy(out->name, "fake");
    out->major                       = 9;
    out->multiProcessorCount         = 132;
    out->warpSize                    = 32;
    out->totalGlobalMem              = (size_t) 80 << 30;
    out->sharedMemPerBlock           = 48 << 10;
    out->sharedMemPerBlockOptin      = 227 << 10;
    out->sharedMemPerMultiprocessor  = 228 << 10;
    out->maxThreadsPerBlock          = 1024;
    out->maxThreadsPerMultiProcessor = 2048;
    out->regsPerBlock                = 65536;
    out->cooperativeLaunch           = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int * out, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMaxGridDimX:
            *out = INT32_MAX;
            break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ:
            *out = 65535;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *out = 9;
            break;
        case cudaDevAttrMultiProcessorCount:
            *out = 132;
            break;
        case cudaDevAttrWarpSize:
            *out = 32;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *out = 48 << 10;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *out = 227 << 10;
            break;
        case cudaDevAttrMaxThreadsPerBlock:
            *out = 1024;
            break;
        default:
            *out = 0;
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char * out, int, int) {
    strcpy(out, "0000:00:00.0");
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) {
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int * out, int, int) {
    *out = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
    return cudaSuccess;
}
cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
cudaError_t cudaPeekAtLastError() {
    return cudaSuccess;
}
const char * cudaGetErrorString(cudaError_t) {
    return "an error that cannot be";
}

//
// streams and events: all is done at once
//

cudaError_t cudaStreamCreateWithFlags(cudaStream_t * out, unsigned) {
    return make(out);
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus * out) {
    *out = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t * out, unsigned) {
    return make(out);
}
cudaError_t cudaEventDestroy(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}

// Graphs would start many kernels as one: GGML_CUDA_DISABLE_GRAPHS=1.
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    abort();
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *) {
    abort();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long) {
    abort();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
    abort();
}
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t, cudaGraph_t, cudaGraphExecUpdateResultInfo *) {
    abort();
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) {
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) {
    return cudaSuccess;
}

//
// cuBLAS
//

cublasStatus_t cublasCreate_v2(cublasHandle_t * out) {
    make(out);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t) {
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t) {
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
const char * cublasGetStatusString(cublasStatus_t) {
    return "an error that cannot be";
}
cublasStatus_t cublasSgemm_v2(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const float *,
                              const float *, int, const float *, int, const float *, float *, int) {
    return multiplied();
}
cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                            const void *, cudaDataType, int, const void *, cudaDataType, int, const void *, void *,
                            cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t) {
    return multiplied();
}
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                          const void *, const void *, cudaDataType, int, long long, const void *,
                                          cudaDataType, int, long long, const void *, void *, cudaDataType, int,
                                          long long, int, cublasComputeType_t, cublasGemmAlgo_t) {
    return multiplied();
}
cublasStatus_t cublasGemmBatchedEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *,
                                   const void * const *, cudaDataType, int, const void * const *, cudaDataType, int,
                                   const void *, void * const *, cudaDataType, int, int, cublasComputeType_t,
                                   cublasGemmAlgo_t) {
    return multiplied();
}
cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                         const float *, const float *, int, long long, const float *, int, long long,
                                         const float *, float *, int, long long, int) {
    return multiplied();
}
cublasStatus_t cublasSgemmBatched(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const float *,
                                  const float * const *, int, const float * const *, int, const float *,
                                  float * const *, int, int) {
    return multiplied();
}
cublasStatus_t cublasStrsmBatched(cublasHandle_t, cublasSideMode_t, cublasFillMode_t, cublasOperation_t,
                                  cublasDiagType_t, int, int, const float *, const float * const *, int,
                                  float * const *, int, int) {
    return multiplied();
}

}  // extern "C"
