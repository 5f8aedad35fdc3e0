// Philox 4x32-10 (Salmon et al. 2011): key = seed, counter = (index >> 2, stream), word = index
// & 3. A word is a function of (seed, stream, index) alone, so masks need not be stored and any
// part can be made anywhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "array.h"

namespace mg {

struct PhiloxKey {
    uint64_t seed, stream;
};

inline PhiloxKey philox_key(const Array& rng) {
    if (rng.ndim != 1 || rng.shape[0] != 2 || rng.dtype != DType::i64)
        throw std::invalid_argument("rng: expected [seed, stream] as uint64");
    return {rng.ptr<uint64_t>()[0], rng.ptr<uint64_t>()[rng.strides[0]]};
}

// Blocks made side by side: plain loops over them that compilers turn into widening vector
// multiplies.
constexpr int kPhiloxLanes = 16;

// Words of the blocks first … first + kPhiloxLanes - 1, four a block.
inline void philox_blocks(PhiloxKey key, uint64_t first, uint32_t* words) {
    uint32_t c0[kPhiloxLanes], c1[kPhiloxLanes], c2[kPhiloxLanes], c3[kPhiloxLanes];
    for (int i = 0; i < kPhiloxLanes; i++) {
        uint64_t block = first + static_cast<uint64_t>(i);
        c0[i] = static_cast<uint32_t>(block);
        c1[i] = static_cast<uint32_t>(block >> 32);
        c2[i] = static_cast<uint32_t>(key.stream);
        c3[i] = static_cast<uint32_t>(key.stream >> 32);
    }
    auto k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < kPhiloxLanes; i++) {
            uint64_t a = static_cast<uint64_t>(c0[i]) * 0xD2511F53u;
            uint64_t b = static_cast<uint64_t>(c2[i]) * 0xCD9E8D57u;
            c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
            c1[i] = static_cast<uint32_t>(b);
            c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
            c3[i] = static_cast<uint32_t>(a);
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < kPhiloxLanes; i++) {
        words[4 * i] = c0[i];
        words[4 * i + 1] = c1[i];
        words[4 * i + 2] = c2[i];
        words[4 * i + 3] = c3[i];
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

// A word at or above this stays; p = 0.1 drops the words below floor(0.1 · 2^32).
inline uint32_t dropout_threshold(double p) {
    return static_cast<uint32_t>(std::floor(p * 4294967296.0));
}

}  // namespace mg
