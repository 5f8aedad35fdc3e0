// Stands in for CUDA's header: storage and conversion only, which is all that the kernels use.
#pragma once
#include <immintrin.h>

struct __half {
    unsigned short bits;
};
inline float __half2float(__half x) { return _cvtsh_ss(x.bits); }
inline __half __float2half_rn(float x) { return {_cvtss_sh(x, 0)}; }
