// CUDA's names, for HIP too.
#pragma once

#if defined(__HIPCC__)
#include <hip/hip_runtime.h>
#define MORPHKV_REGISTRY          "ROCm"
#define cudaError_t               hipError_t
#define cudaFree                  hipFree
#define cudaFreeHost              hipHostFree
#define cudaGetDevice             hipGetDevice
#define cudaGetErrorString        hipGetErrorString
#define cudaGetLastError          hipGetLastError
#define cudaMalloc                hipMalloc
#define cudaMallocHost            hipHostMalloc
#define cudaMemcpyAsync           hipMemcpyAsync
#define cudaMemcpyHostToDevice    hipMemcpyHostToDevice
#define cudaPointerAttributes     hipPointerAttribute_t
#define cudaPointerGetAttributes  hipPointerGetAttributes
#define cudaSetDevice             hipSetDevice
#define cudaStreamCreateWithFlags hipStreamCreateWithFlags
#define cudaStreamNonBlocking     hipStreamNonBlocking
#define cudaStreamSynchronize     hipStreamSynchronize
#define cudaStream_t              hipStream_t
#define cudaSuccess               hipSuccess
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define MORPHKV_REGISTRY "CUDA"
#if defined(__CUDA_ARCH__)
#define MORPHKV_HALF_OF_BITS __ushort_as_half
#endif
#endif
