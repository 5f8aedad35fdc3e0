// The rates of multiply-adds on registers alone, on every thread: the ceilings that shares refer
// to. Each task writes the operations it did into its element of counted (float64).
#include "matmul_bf16_kernel.h"
#include "parallel.h"
#include "simd.h"

namespace mg {

constexpr int kChains = 12;  // enough to hide a latency of 4 cycles at 2 a cycle, and some
constexpr int64_t kRounds = 100000;

// Different ones: the compiler makes one chain of equal ones.
static void begin(vf (&sums)[kChains]) {
    for (int i = 0; i < kChains; i++) sums[i] = broadcast(static_cast<float>(i));
}

// `operations`, with a use of the chains' results that changes nothing.
static double done(vf (&sums)[kChains], double operations) {
    for (int i = 1; i < kChains; i++) sums[0] += sums[i];
    return sums[0][0] > 1e30f ? 0.0 : operations;
}

// Of float32.
void peak_fma(const Array& counted) {
    parallel_for(counted.size(), [&](int64_t task) {
        vf sums[kChains];
        begin(sums);
        vf a = broadcast(0.999f), b = broadcast(0.001f);
        for (int64_t round = 0; round < kRounds; round++) {
            for (int i = 0; i < kChains; i++) sums[i] = fma(sums[i], a, b);
        }
        counted.ptr<double>()[task] = done(sums, 2.0 * kRounds * kChains * VL);
    });
}

#if defined(MG_AMX)

static double multiply_bf16() {
    constexpr int64_t rounds = kRounds / 10;  // of four products that take 16 cycles each
    Tiles configured;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t round = 0; round < rounds; round++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    return 2.0 * rounds * 4 * 16 * 16 * kTileK;
}

#elif defined(MG_AVX512)

MG_TARGET("avx512bf16")
static double multiply_bf16() {
    vf sums[kChains];
    begin(sums);
    auto a = (__m512bh)broadcast(0.001f), b = (__m512bh)broadcast(0.002f);
    for (int64_t round = 0; round < kRounds; round++) {
        for (int i = 0; i < kChains; i++) sums[i] = (vf)_mm512_dpbf16_ps((__m512)sums[i], a, b);
    }
    return done(sums, 2.0 * kRounds * kChains * 2 * VL);
}

#endif

// Of bfloat16, by what the processor has for it; by conversion they are those of float32.
void peak_bf16(const Array& counted) {
#if defined(MG_AVX512)
#if !defined(MG_AMX)
    if (!has_dot()) return peak_fma(counted);
#endif
    parallel_for(counted.size(),
                 [&](int64_t task) { counted.ptr<double>()[task] = multiply_bf16(); });
#else
    peak_fma(counted);
#endif
}

}  // namespace mg
