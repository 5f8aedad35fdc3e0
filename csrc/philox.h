// Philox 4x32-10 (Salmon et al. 2011): key = seed, counter = (index >> 2, stream), word = index
// & 3. A word is a function of (seed, stream, index) alone, so masks need not be stored and any
// part can be made anywhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "array.h"
#include "simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace mg {

struct PhiloxKey {
    uint64_t seed, stream;
};

inline PhiloxKey philox_key(const Array& rng) {
    if (rng.ndim != 1 || rng.shape[0] != 2 || rng.dtype != DType::i64)
        throw std::invalid_argument("rng: expected [seed, stream] as uint64");
    return {rng.ptr<uint64_t>()[0], rng.ptr<uint64_t>()[rng.strides[0]]};
}

// Blocks made side by side, so that one's products hide the latency of another's: as many as
// registers hold.
#if defined(MG_AVX512)
constexpr int kPhiloxLanes = 16;
#else
constexpr int kPhiloxLanes = 8;
#endif

// One of the four words of state of several blocks, each the low half of 64 bits; what is in the
// high half does not matter.
#if defined(MG_AVX2) || defined(MG_AVX512)
typedef uint64_t PhiloxWord __attribute__((vector_size(32)));
constexpr PhiloxWord kPhiloxOrder = {0, 1, 2, 3};
#else
typedef uint64_t PhiloxWord __attribute__((vector_size(16)));
constexpr PhiloxWord kPhiloxOrder = {0, 1};
#endif
constexpr int kPhiloxWidth = sizeof(PhiloxWord) / 8;
constexpr int kPhiloxVectors = kPhiloxLanes / kPhiloxWidth;

MG_INLINE PhiloxWord low_half(PhiloxWord a) { return a & 0xffffffffu; }

// The products of the low halves, in 64 bits.
MG_INLINE PhiloxWord widening_product(PhiloxWord a, uint32_t b) {
#if defined(MG_AVX2) || defined(MG_AVX512)
    return (PhiloxWord)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (PhiloxWord)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return low_half(a) * b;
#endif
}

// Several blocks: word w of block v * kPhiloxWidth + lane in word[w][v][lane].
struct PhiloxBlocks {
    PhiloxWord word[4][kPhiloxVectors];

    // Block number first + step * i, for every i.
    PhiloxBlocks(PhiloxKey key, uint64_t first, uint64_t step) {
        auto& [c0, c1, c2, c3] = word;
        for (int v = 0; v < kPhiloxVectors; v++) {
            c0[v] = first + step * (static_cast<uint64_t>(v * kPhiloxWidth) + kPhiloxOrder);
            c1[v] = c0[v] >> 32;
            c2[v] = PhiloxWord{} + key.stream;
            c3[v] = c2[v] >> 32;
        }
        auto k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
        for (int round = 0; round < 10; round++) {
            for (int v = 0; v < kPhiloxVectors; v++) {
                PhiloxWord a = widening_product(c0[v], 0xD2511F53u);
                PhiloxWord b = widening_product(c2[v], 0xCD9E8D57u);
                c0[v] = (b >> 32) ^ c1[v] ^ k0;
                c1[v] = b;
                c2[v] = (a >> 32) ^ c3[v] ^ k1;
                c3[v] = a;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
    }
};

// Words of the blocks first … first + kPhiloxLanes - 1, four a block.
inline void philox_blocks(PhiloxKey key, uint64_t first, uint32_t* words) {
    auto [c0, c1, c2, c3] = PhiloxBlocks(key, first, 1).word;
    for (int v = 0; v < kPhiloxVectors; v++) {
        PhiloxWord low = low_half(c0[v]) | c1[v] << 32, high = low_half(c2[v]) | c3[v] << 32;
        for (int i = 0; i < kPhiloxWidth; i++) {  // all machines of interest are little-endian
            uint64_t block[2] = {low[i], high[i]};
            std::memcpy(words + 4 * (v * kPhiloxWidth + i), block, sizeof(block));
        }
    }
}

// The n words from index `start` on.
inline void philox_words(PhiloxKey key, uint64_t start, int64_t n, uint32_t* words) {
    uint32_t made[4 * kPhiloxLanes];
    while (n > 0) {
        philox_blocks(key, start >> 2, made);
        int64_t skip = static_cast<int64_t>(start & 3);
        int64_t count = std::min<int64_t>(n, 4 * kPhiloxLanes - skip);
        std::copy_n(made + skip, count, words);
        words += count;
        start += static_cast<uint64_t>(count);
        n -= count;
    }
}

typedef int32_t PhiloxHalves __attribute__((vector_size(sizeof(PhiloxWord) / 2)));

// out[w * out_row + i] = `kept` where word w of block first + step * i is at least `threshold`,
// else 0.
MG_INLINE void keep_words(PhiloxKey key, uint64_t first, uint64_t step, uint32_t threshold,
                          float kept, float* out, int64_t out_row) {
    PhiloxBlocks blocks(key, first, step);
    int32_t bits;
    std::memcpy(&bits, &kept, sizeof(bits));
    for (int w = 0; w < 4; w++)
        for (int v = 0; v < kPhiloxVectors; v++) {
            auto stays = low_half(blocks.word[w][v]) >= threshold;
            PhiloxHalves factor = __builtin_convertvector(stays, PhiloxHalves) & bits;
            std::memcpy(out + w * out_row + v * kPhiloxWidth, &factor, sizeof(factor));
        }
}

// A word at or above this stays; p = 0.1 drops the words below floor(0.1 · 2^32).
inline uint32_t dropout_threshold(double p) {
    return static_cast<uint32_t>(std::floor(p * 4294967296.0));
}

}  // namespace mg
