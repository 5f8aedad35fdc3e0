// The rate of float32 multiply-adds on registers alone, on every thread: the ceiling that shares
// refer to.
#include "parallel.h"
#include "simd.h"

namespace mg {

// Each task writes the operations it did into its element of counted (float64).
void peak_fma(const Array& counted) {
    constexpr int kChains = 12;  // enough to hide a latency of 4 cycles at 2 a cycle, and some
    constexpr int64_t kRounds = 100000;
    parallel_for(counted.size(), [&](int64_t task) {
        vf sums[kChains];
        for (int i = 0; i < kChains; i++) sums[i] = broadcast(static_cast<float>(i));
        vf a = broadcast(0.999f), b = broadcast(0.001f);
        for (int64_t round = 0; round < kRounds; round++) {
            for (int i = 0; i < kChains; i++) sums[i] = fma(sums[i], a, b);
        }
        for (int i = 1; i < kChains; i++) sums[0] += sums[i];
        double operations = 2.0 * kRounds * kChains * VL;
        // A use of the result that changes nothing.
        counted.ptr<double>()[task] = sums[0][0] > 1e30f ? 0.0 : operations;
    });
}

}  // namespace mg
