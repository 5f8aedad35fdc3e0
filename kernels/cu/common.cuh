// What the CUDA kernels share. ELEMENT, the type of arrays' elements (float, __half or
// __nv_bfloat16), is defined when a file is compiled; arithmetic is float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using T = ELEMENT;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class U>
__device__ inline U from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

__device__ inline float infinity() { return __int_as_float(0x7f800000); }
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Sixteen bytes of a row: what one load instruction moves at most.
struct alignas(16) Pack {
    static constexpr int kSize = 16 / sizeof(T);
    T value[kSize];
};

// Calls f(index) for this thread's share of the columns 0 … n_cols - 1 …
template <class F>
__device__ inline void for_columns(long long n_cols, F f) {
    for (long long i = threadIdx.x; i < n_cols; i += blockDim.x) f(i);
}

// … or, where rows allow it, f(pack) for packs of columns.
template <class F>
__device__ inline void for_packs(long long n_cols, F f) {
    for (long long i = threadIdx.x; i < n_cols / Pack::kSize; i += blockDim.x) f(i);
}

struct Sum {
    __device__ static float join(float a, float b) { return a + b; }
    __device__ static float empty() { return 0.0f; }
};
struct Max {
    // NaN is left to the sum of exponentials, which it makes NaN.
    __device__ static float join(float a, float b) { return a > b ? a : b; }
    __device__ static float empty() { return -infinity(); }
};

template <class Op>
__device__ inline float warp_reduce(float x) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
        x = Op::join(x, __shfl_xor_sync(kAllLanes, x, offset));
    return x;
}

// The same on all threads of a block of whole warps; each gets the result.
template <class Op>
__device__ inline float block_reduce(float x) {
    __shared__ float partial[kWarp];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    x = warp_reduce<Op>(x);
    __syncthreads();  // partial may still be read by the reduction before
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    int n_warps = blockDim.x / kWarp;
    return warp_reduce<Op>(lane < n_warps ? partial[lane] : Op::empty());
}
