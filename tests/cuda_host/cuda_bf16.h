// Stands in for CUDA's header: storage and conversion only, which is all that the kernels use.
#pragma once
#include <cstring>

struct __nv_bfloat16 {
    unsigned short bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    unsigned wide = static_cast<unsigned>(x.bits) << 16;
    float y;
    std::memcpy(&y, &wide, 4);
    return y;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return {static_cast<unsigned short>((bits >> 16) | 0x40)};
    return {static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
