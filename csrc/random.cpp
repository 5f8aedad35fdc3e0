// Random numbers and dropout, both functions of (seed, stream, flat index): rng is [seed, stream],
// read when the kernel runs. Arrays are contiguous.
#include "philox.h"
#include "rows.h"

namespace mg {
namespace {

constexpr int64_t kRandomTile = 1024;

void check_flat(const char* kernel, const Array& x) {
    if (!x.contiguous())
        throw std::invalid_argument(std::string(kernel) + ": expected a contiguous array");
}

// body(first index, count, words) over tiles of n elements that take `per` words each.
template <class Body>
void for_words(const Array& rng, int64_t n, int per, Body&& body) {
    PhiloxKey key = philox_key(rng);
    parallel_chunks(n, kTaskElements / 4, [&](int64_t begin, int64_t end) {
        uint32_t words[4 * kRandomTile];
        for (int64_t i = begin; i < end; i += kRandomTile) {
            int64_t count = std::min(kRandomTile, end - i);
            philox_words(key, static_cast<uint64_t>(per) * static_cast<uint64_t>(i), per * count,
                         words);
            body(i, count, words);
        }
    });
}

// 24 and 53 random bits in [0, 1).
MG_INLINE float unit(uint32_t word) {
    return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}
MG_INLINE double unit(uint32_t high, uint32_t low) {
    uint64_t bits = (static_cast<uint64_t>(high) << 21) ^ (low >> 11);
    return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace

// out = x / (1 - p) where the word is at or above floor(p · 2^32), else 0.
void dropout(const Array& x, const Array& out, double p, const Array& rng) {
    for (const Array* a : {&x, &out}) check_flat("dropout", *a);
    uint32_t threshold = dropout_threshold(p);
    for_float_dtype("dropout", x.dtype, [&](auto type) {
        using T = decltype(type);
        using V = typename Lanes<T>::V;
        V scale = splat<V>(1.0 / (1.0 - p));
        for_words(rng, x.size(), 1, [&](int64_t first, int64_t n, const uint32_t* words) {
            const T* from = x.ptr<T>() + first;
            T* to = out.ptr<T>() + first;
            typename Lanes<T>::S keep[kRandomTile];
            for (int64_t i = 0; i < n; i++) keep[i] = words[i] >= threshold ? 1 : 0;
            for_lanes<T>(n, [&](int64_t i, auto tail) {
                V v = load(from + i, tail), k = load(keep + i, tail);
                store(to + i, select(k > V{}, v * scale, V{}), tail);
            });
        });
    });
}

// The 32-bit words, in int64.
void random_bits(const Array& out, const Array& rng) {
    check_flat("random_bits", out);
    if (out.dtype != DType::i64) unsupported("random_bits", out.dtype, "int64");
    for_words(rng, out.size(), 1, [&](int64_t first, int64_t n, const uint32_t* words) {
        for (int64_t i = 0; i < n; i++) out.ptr<int64_t>()[first + i] = words[i];
    });
}

void random_uniform(const Array& out, const Array& rng) {
    check_flat("random_uniform", out);
    if (out.dtype == DType::f32) {
        for_words(rng, out.size(), 1, [&](int64_t first, int64_t n, const uint32_t* words) {
            for (int64_t i = 0; i < n; i++) out.ptr<float>()[first + i] = unit(words[i]);
        });
    } else if (out.dtype == DType::f64) {
        for_words(rng, out.size(), 2, [&](int64_t first, int64_t n, const uint32_t* words) {
            for (int64_t i = 0; i < n; i++)
                out.ptr<double>()[first + i] = unit(words[2 * i], words[2 * i + 1]);
        });
    } else {
        unsupported("random_uniform", out.dtype, "float32 and float64");
    }
}

// Box and Muller (1958), the cosine branch: two words an element (four for float64, of which the
// radius and the angle take two each).
void random_normal(const Array& out, const Array& rng) {
    check_flat("random_normal", out);
    constexpr double kTurn = 6.283185307179586;
    if (out.dtype == DType::f32) {
        for_words(rng, out.size(), 2, [&](int64_t first, int64_t n, const uint32_t* words) {
            float radius[kRandomTile], angle[kRandomTile];
            for (int64_t i = 0; i < n; i++) {
                radius[i] = 1.0f - unit(words[2 * i]);  // in (0, 1]
                angle[i] = (unit(words[2 * i + 1]) - 0.5f) * static_cast<float>(kTurn);
            }
            float* to = out.ptr<float>() + first;
            for_lanes<float>(n, [&](int64_t i, auto tail) {
                vf r = sqrt(broadcast(-2.0f) * log(keep_first(load(radius + i, tail), tail, 1.0f)));
                store(to + i, r * sine_or_cosine(load(angle + i, tail), 1), tail);
            });
        });
    } else if (out.dtype == DType::f64) {
        for_words(rng, out.size(), 4, [&](int64_t first, int64_t n, const uint32_t* words) {
            for (int64_t i = 0; i < n; i++, words += 4) {
                double r = std::sqrt(-2.0 * std::log(1.0 - unit(words[0], words[1])));
                out.ptr<double>()[first + i] =
                    r * std::cos((unit(words[2], words[3]) - 0.5) * kTurn);
            }
        });
    } else {
        unsupported("random_normal", out.dtype, "float32 and float64");
    }
}

}  // namespace mg
