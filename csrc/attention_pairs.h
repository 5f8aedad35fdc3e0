// Operands of bfloat16 for the tile products of attention, two terms of the sum in a word, where
// the processor has vdpbf16ps. Scores, statistics and all sums stay float32; weights and their
// gradients are rounded to bfloat16 for the products, as in flash attention. That makes other bits
// than the conversion to float32 elsewhere: a relative error of the output of 1.25 times ideal
// rounding's instead of 1.00, of the gradients of 1.4 to 1.5 instead of 1.0 to 1.1 (causal, 512
// tokens, 64 features). PyTorch's are 1.26 and 1.5 to 2.7. The same by conversion would cost
// processors without the instruction accuracy and time for nothing.
#pragma once

#include "attention_tiles.h"
#include "bf16_dot.h"

#if defined(MG_AVX512)

namespace mg {

// As Floats, of bfloat16.
struct Pairs {
    static constexpr int64_t kTerms = 2;
    static int64_t words(int64_t n) { return (n + 1) / 2; }

    static Rows rows(const bf16* x, int64_t row, int64_t n, int64_t dim, float* copy) {
        int64_t wide = padded(words(dim)), end = dim / (2 * VL) * (2 * VL);
        for (int64_t i = 0; i < n; i++) {
            auto* to = reinterpret_cast<char*>(copy + i * wide);
            for (int64_t d = 0; d < end; d += 2 * VL)
                std::memcpy(to + 2 * d, x + i * row + d, sizeof(vf));
            if (end == dim) continue;
            std::memset(to + 2 * end, 0, sizeof(vf));
            std::memcpy(to + 2 * end, x + i * row + end, static_cast<size_t>(2 * (dim - end)));
        }
        return {copy, wide};
    }

    // Rows 2 l and 2 l + 1 side by side, element by element.
    static Panels pack(const bf16* x, int64_t row, int64_t n, int64_t dim, float* packed) {
        for (int64_t d = 0; d < dim; d += kNR)
            for (int64_t l = 0; l < words(n); l++)
                for (int64_t v = d; v < d + kNR; v += VL) {
                    const bf16* at = x + 2 * l * row + v;
                    vu even{}, odd{};
                    if (v < dim) even = (vu)load_up_to(at, dim - v);
                    if (v < dim && 2 * l + 1 < n) odd = (vu)load_up_to(at + row, dim - v);
                    store(packed + d * words(n) + l * kNR + v - d, (vf)(odd | even >> 16));
                }
        return {packed, kNR, kNR * words(n)};
    }
    static Panels panels(const Rows& x, int64_t n, int64_t dim, float* buffer) {
        return pack(reinterpret_cast<const bf16*>(x.p), 2 * x.row, n, dim, buffer);
    }
    static int64_t panel_words(int64_t n, int64_t dim) {
        return (dim + kNR - 1) / kNR * kNR * words(n);
    }

    MG_TARGET("avx512bf16")
    static TileOperand over_keys(const Stairs& s, int64_t lanes, const float* tile, float* pairs) {
        for (int64_t i = 0; i < lanes; i += VL)
            for (int64_t j = 0, end = written(s, i); j < end; j += 2) {
                const float* at = tile + j * kQueries + i;
                store(pairs + j / 2 * kQueries + i,
                      rounded_pairs(load(at), j + 1 < end ? load(at + kQueries) : vf{}));
            }
        return {pairs, kQueries};
    }

    // Lanes behind the last query become zeros.
    MG_TARGET("avx512bf16")
    static TileOperand over_queries(const Stairs& s, int64_t lanes, const float* tile,
                                    float* pairs) {
        constexpr int64_t kRow = kQueries / 2;
        for (int64_t i = 0; i < lanes; i += 2 * VL)
            for (int64_t j = 0, end = written(s, i + VL), left = s.n - i; j < end; j++) {
                vf x = load(tile + j * kQueries + i), y = load(tile + j * kQueries + i + VL);
                if (left < 2 * VL) x = keep_first(x, left, 0), y = keep_first(y, left - VL, 0);
                store(pairs + j * kRow + i / 2, rounded(x, y));
            }
        return {pairs, kRow};
    }

    template <int kRows, int kVectors, bool kTurned>
    MG_TARGET("avx512bf16")
    __attribute__((noinline)) static void block(int64_t k, const TileOperand& a, const float* b,
                                                int64_t b_row, float* c, int64_t c_row, bool add) {
        vf sum[kRows][kVectors];
        clear(sum);
        for (int64_t l = 0; l < k; l++) {
            vf column[kVectors];
            for (int v = 0; v < kVectors; v++) column[v] = load(b + l * b_row + v * VL);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; r++) {
                vf x = broadcast(kTurned ? a.p[l * a.step + r] : a.p[r * a.step + l]);
                for (int v = 0; v < kVectors; v++) sum[r][v] = dot(x, column[v], sum[r][v]);
            }
        }
        put(sum, c, c_row, add);
    }

  private:
    // Keys of a tile that weights of [i, i + VL) are there for, zeros among them, at least as many
    // as the blocks of products read.
    static int64_t written(const Stairs& s, int64_t i) {
        return std::min(s.m, s.seen(i + VL - 1) + kMR);
    }
};

}  // namespace mg

#endif

namespace mg {

// body(element type, kind of operands) for float32 and the half types.
template <class Body>
void for_operands(const char* kernel, DType dtype, Body&& body) {
    for_float_dtype(kernel, dtype, [&](auto type) {
        using T = decltype(type);
#if defined(MG_AVX512)
        if constexpr (std::is_same_v<T, bf16>)
            if (has_dot()) return body(type, Pairs{});
#endif
        if constexpr (!std::is_same_v<T, double>) body(type, Floats{});
    });
}

}  // namespace mg
