// The bfloat16 product by vdpbf16ps, which adds the odd product of a pair of k to an element, then
// the even one: blocks of kMR × 32 in registers, as the float32 product has them, with a pair in
// every lane.
//
// A is read in place where its rows are contiguous bfloat16. Results are rounded and written from
// registers; sums wait in a float32 buffer only where K takes several blocks.
#pragma once

#include "bf16_dot.h"
#include "matmul_bf16_pairs.h"

#if defined(MG_AVX512) && !defined(MG_AMX)

namespace mg {

static_assert(kNR == kPanelColumns);

// Where the sums of a block, kMR × 32 or what is left of it, go.
struct DotStore {
    float* sums;  // of the K blocks so far, whole blocks of them
    int64_t sums_row;
    bool first, last;
    const Bf16Product& p;
    int64_t i, j, rows, cols;

    template <class T>
    T* out(int64_t r) const {
        return reinterpret_cast<T*>(p.out) + (i + r) * p.out_row + j;
    }
    void prefetch() const {
        int64_t row = p.out_row * itemsize(p.out_dtype);
        const char* at = p.out + (i * p.out_row + j) * itemsize(p.out_dtype);
        for (int64_t r = 0; r < rows; r++) __builtin_prefetch(at + r * row, 1);
    }
};

MG_TARGET("avx512bf16")
inline void store_row(float* out, vf first, vf second) {
    store(out, first);
    store(out + VL, second);
}
MG_TARGET("avx512bf16")
inline void store_row(bf16* out, vf first, vf second) {
    vf both = rounded(first, second);
    std::memcpy(out, &both, sizeof(both));
}

// Out = [out +] sums [+ bias], for a whole block. As in matmul_kernel.h, no loop over the sums has
// an index that is not known.
template <int kRows, class T>
MG_TARGET("avx512bf16")
MG_INLINE void finish_whole(vf (&sum)[kRows][2], const DotStore& s) {
    vf bias[2] = {};
    if (s.p.bias)
        for (int v = 0; v < 2; v++) bias[v] = load(s.p.bias + s.j + v * VL);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
        T* out = s.out<T>(r);
        for (int v = 0; v < 2; v++) {
            if (s.p.add) sum[r][v] = load(out + v * VL) + sum[r][v];
            if (s.p.bias) sum[r][v] = sum[r][v] + bias[v];
        }
        store_row(out, sum[r][0], sum[r][1]);
    }
}

// The same for the rows and columns that are there, from sums in memory.
template <class T>
MG_TARGET("avx512bf16")
inline void finish_part(const float* sums, const DotStore& s) {
    int64_t n[2] = {std::min<int64_t>(s.cols, VL), std::max<int64_t>(s.cols - VL, 0)};
    for (int64_t r = 0; r < s.rows; r++)
        for (int v = 0; v < 2; v++) {
            if (n[v] == 0) continue;
            T* out = s.out<T>(r) + v * VL;
            vf sum = load(sums + (2 * r + v) * VL);
            if (s.p.add) sum = load(out, n[v]) + sum;
            if (s.p.bias) sum = sum + load(s.p.bias + s.j + v * VL, n[v]);
            store(out, sum, n[v]);
        }
}

template <int kRows, class T, int kVectors>
MG_TARGET("avx512bf16")
MG_INLINE void finish_block(vf (&sum)[kRows][kVectors], const DotStore& s) {
    if constexpr (kVectors == 2)
        if (s.rows == kRows && s.cols == kPanelColumns) return finish_whole<kRows, T>(sum, s);
    alignas(64) float sums[kRows * 2 * VL];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) store(sums + (2 * r + v) * VL, sum[r][v]);
    finish_part<T>(sums, s);
}

// kPacked: pair q of row r is a[2 * (q * kMR + r)]; else it starts at a[r * a_row + 2 * q].
// kVectors: of the panel's two, those with columns that are there.
template <int kRows, int kVectors, bool kPacked>
MG_TARGET("avx512bf16")
__attribute__((noinline)) void dot_block(int64_t pairs, const bf16* a, int64_t a_row,
                                         const bf16* panel, const DotStore& s) {
    vf sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sum[r][v] = vf{};
    if (s.last) s.prefetch();  // what comes from an outer cache is there when k has run through
    const bf16* at[kRows];
    // Rows beyond the last read it again; their sums are not stored.
    if (!kPacked)
        for (int r = 0; r < kRows; r++) at[r] = a + std::min<int64_t>(r, s.rows - 1) * a_row;
#pragma GCC unroll 2
    for (int64_t q = 0; q < pairs; q++) {
        const auto* b = reinterpret_cast<const float*>(panel + 2 * q * kPanelColumns);
        vf columns[kVectors];
        for (int v = 0; v < kVectors; v++) columns[v] = load(b + v * VL);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
            float pair;
            std::memcpy(&pair, kPacked ? a + 2 * (q * kMR + r) : at[r] + 2 * q, sizeof(pair));
            vf x = broadcast(pair);
            for (int v = 0; v < kVectors; v++) sum[r][v] = dot(x, columns[v], sum[r][v]);
        }
    }
    auto before = [&](int r, int v) { return s.sums + r * s.sums_row + v * VL; };
    if (!s.first) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++)
            for (int v = 0; v < kVectors; v++) sum[r][v] = load(before(r, v)) + sum[r][v];
    }
    if (!s.last) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++)
            for (int v = 0; v < kVectors; v++) store(before(r, v), sum[r][v]);
    } else if (s.p.out_dtype == DType::f32) {
        finish_block<kRows, float>(sum, s);
    } else {
        finish_block<kRows, bf16>(sum, s);
    }
}

template <int kVectors, bool kPacked>
inline void dot_columns(int64_t pairs, const bf16* a, int64_t a_row, const bf16* panel,
                        const DotStore& s) {
    if (s.rows == 1) return dot_block<1, kVectors, kPacked>(pairs, a, a_row, panel, s);
    if (s.rows == 2) return dot_block<2, kVectors, kPacked>(pairs, a, a_row, panel, s);
    if (s.rows <= 4) return dot_block<4, kVectors, kPacked>(pairs, a, a_row, panel, s);
    if (s.rows <= 8) return dot_block<8, kVectors, kPacked>(pairs, a, a_row, panel, s);
    dot_block<kMR, kVectors, kPacked>(pairs, a, a_row, panel, s);
}

template <bool kPacked>
inline void dot_rows(int64_t pairs, const bf16* a, int64_t a_row, const bf16* panel,
                     const DotStore& s) {
    s.cols > VL ? dot_columns<2, kPacked>(pairs, a, a_row, panel, s)
                : dot_columns<1, kPacked>(pairs, a, a_row, panel, s);
}

// The rows of a block of A for one K block, as the kernel reads them.
struct DotRows {
    static constexpr int64_t kPanelSize = kKC * kMR + 2 * VL;  // with room for whole vectors
    static constexpr int64_t kCopiedRow = kKC + 32;            // so that rows lie in many sets

    const bf16* p;
    int64_t row;
    bool packed;

    static int64_t scratch_size(int64_t rows) {
        return std::max((rows + kMR - 1) / kMR * kPanelSize, rows * kCopiedRow);
    }
    const bf16* at(int64_t i) const { return p + (packed ? i / kMR * kPanelSize : i * row); }
};

// Whether the kernel can read A where it lies: kMR rows a multiple of 4 KB apart would evict one
// another from the first cache.
inline bool dots_in_place(const Bf16Product& p) {
    return p.a.dtype == DType::bf16 && p.a.col == 1 && p.k % 2 == 0 && p.a.row % 2048 != 0;
}

// Columns of A are contiguous: pairs of two of them, kMR rows to a panel. Whole vectors are moved;
// what that writes too much, the next pair overwrites, or lies between panels.
template <class T>
void pack_dot_panels(const T* a, int64_t col, int64_t rows, int64_t kc, bf16* out) {
    constexpr int64_t kAhead = 8;
    for (int64_t k = 0; k < kc; k += 2) {
        const T *even = a + k * col, *odd = k + 1 < kc ? even + col : nullptr;
        for (int64_t i = 0; i < rows; i += 64 / static_cast<int64_t>(sizeof(T))) {
            __builtin_prefetch(even + kAhead * col + i);
            __builtin_prefetch(even + (kAhead + 1) * col + i);
        }
        bf16* to = out + k * kMR;
        int64_t i = 0;
        for (; i + VL <= rows; i += kMR, to += DotRows::kPanelSize) {
            interleave(even + i, odd ? odd + i : nullptr, VL, to);
        }
        for (; i < rows; i += kMR, to += DotRows::kPanelSize) {
            int64_t n = std::min<int64_t>(kMR, rows - i);
            std::memset(to, 0, kMR * 4);
            interleave(even + i, odd ? odd + i : nullptr, n, to);
        }
    }
}

inline bool dots_from_panels(const Bf16Product& p) { return p.a.row == 1 && p.a.col != 1; }

// A block of A that the kernel cannot read where it lies: as panels, or row by row.
inline void copy_dot_rows(const Bf16Product& p, int64_t i0, int64_t rows, int64_t k0, int64_t kc,
                          bf16* out) {
    Matrix a = p.a.at(i0, k0);
    for_operand(a.dtype, [&](auto type) {
        using T = decltype(type);
        const T* from = reinterpret_cast<const T*>(a.p);
        if (dots_from_panels(p)) return pack_dot_panels(from, a.col, rows, kc, out);
        for (int64_t i = 0; i < rows; i++) {
            bf16* to = out + i * DotRows::kCopiedRow;
            line(from + i * a.row, a.col, kc, to);
            if (kc % 2) to[kc] = bf16{0};
        }
    });
}

constexpr int64_t kDotColumns = 512;        // of sums that wait: 224 KB
constexpr int64_t kMostShared = 1 << 22;    // elements of A, packed for all tasks: 8 MB
constexpr int64_t kSmallDotWork = 1 << 19;  // multiply-adds not worth a second thread

// k > 0.
inline void product_by_dots(const Bf16Product& p) {
    int64_t panels = whole_panels(p.n), depth = whole_k(p.k), k_blocks = (p.k + kKC - 1) / kKC;
    int64_t most = k_blocks > 1 ? kDotColumns / kPanelColumns : panels;
    BlockTasks tasks(p.m, panels, p.m * p.n * p.k < kSmallDotWork, most);
    // As in chunk() of matmul.cpp, unless A is large.
    bool in_place = dots_in_place(p);
    int64_t a_size = DotRows::scratch_size(tasks.most_rows());
    int64_t all = tasks.row_blocks * k_blocks * a_size;
    bool shared = !in_place && tasks.column_blocks > 1 && all <= kMostShared;
    Scratch<bf16> a_shared(shared ? all : 1);
    OnceEach packing(shared ? tasks.row_blocks * k_blocks : 0);
    tasks.run([&](int64_t block, int64_t i0, int64_t i1, int64_t first, int64_t last) {
        int64_t rows = i1 - i0;
        int64_t sums_row = (last - first) * kPanelColumns;
        Scratch<bf16> a_own(shared || in_place ? 1 : a_size);
        Scratch<float> sums(k_blocks > 1 ? (rows + kMR - 1) / kMR * kMR * sums_row : 1);
        for (int64_t k0 = 0; k0 < p.k; k0 += kKC) {
            int64_t kc = std::min(kKC, p.k - k0), pairs = (kc + 1) / 2;
            int64_t nth = block * k_blocks + k0 / kKC;
            bf16* copy = shared ? a_shared.get() + nth * a_size : a_own.get();
            auto make = [&] { copy_dot_rows(p, i0, rows, k0, kc, copy); };
            if (shared) {
                packing.run(nth, make);
            } else if (!in_place) {
                make();
            }
            Matrix given = p.a.at(i0, k0);
            DotRows a{copy, DotRows::kCopiedRow, dots_from_panels(p)};
            if (in_place) a = {reinterpret_cast<const bf16*>(given.p), given.row, false};
            for (int64_t j = first; j < last; j++) {
                const bf16* panel = p.b + (j * depth + k0) * kPanelColumns;
                for (int64_t i = 0; i < rows; i += kMR) {
                    DotStore to{sums.get() + i * sums_row + (j - first) * kPanelColumns,
                                sums_row,
                                k0 == 0,
                                k0 + kKC >= p.k,
                                p,
                                i0 + i,
                                j * kPanelColumns,
                                std::min<int64_t>(kMR, rows - i),
                                std::min(kPanelColumns, p.n - j * kPanelColumns)};
                    a.packed ? dot_rows<true>(pairs, a.at(i), 0, panel, to)
                             : dot_rows<false>(pairs, a.at(i), a.row, panel, to);
                }
            }
        }
    });
}

}  // namespace mg

#endif
