// The innermost loop of the matrix product, and how blocks of it are shared out.
//
// A block of C, kMR rows by kNR columns, lives in registers while k runs over one K block:
//   AVX2 6 × 16 (12 of 16 registers), AVX-512 14 × 32 (28 of 32), otherwise 4 × 8 (8 of 16).
// Every element of C is one chain of fused multiply-adds over k, whatever the block it falls into.
#pragma once

#include "matmul_pack.h"

namespace mg {

// kKC is the depth of a K block. A B panel of that depth, 32 or 64 KB, streams from L2: deeper
// blocks add to C less often, which measures 3 to 8% faster than half of it that would stay in L1.
#if defined(MG_AVX512)
constexpr int kMR = 14;
constexpr int64_t kKC = 512;
#elif defined(MG_AVX2)
constexpr int kMR = 6;
constexpr int64_t kKC = 512;
#else
constexpr int kMR = 4;
constexpr int64_t kKC = 256;
#endif
constexpr int kNR = 2 * VL;

// What happens to a finished block: C = [C +] block [+ bias].
struct Store {
    float* c;           // top left of the block
    int64_t row;        // row stride of C
    bool add;           // C already holds earlier K blocks (or is accumulated into)
    const float* bias;  // of the block's first column, or null
};

MG_INLINE void store_block(const Store& s, int64_t r, int64_t first, vf value, int64_t cols) {
    float* at = s.c + r * s.row + first;
    if (cols >= VL) {
        if (s.add) value = load(at) + value;
        if (s.bias) value = value + load(s.bias + first);
        store(at, value);
    } else if (cols > 0) {
        if (s.add) value = load(at, cols) + value;
        if (s.bias) value = value + load(s.bias + first, cols);
        store(at, value, cols);
    }
}

// kRows × (kVectors * VL) of C from a, read at a[r * a_row + k * a_col], and a packed B panel.
// kPacked: a is packed (a_row 1, a_col kMR); else its columns are next to each other (a_col 1).
// A function of its own wherever it is called from: inlined into a larger one its sums may be kept
// in memory, at half the speed.
template <int kRows, int kVectors, bool kPacked>
__attribute__((noinline)) void micro_kernel(int64_t kc, const float* a, int64_t a_row,
                                            const float* b, const Store& s, int64_t rows,
                                            int64_t cols) {
    // Loops over the sums are unrolled, every one: an index that is not known puts all of them on
    // the stack, from the start.
    vf sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sum[r][v] = vf{};
    const float* at[kRows];
    if (!kPacked)
        // Rows beyond the last read it again; their sums are not stored.
        for (int r = 0; r < kRows; r++) at[r] = a + std::min<int64_t>(r, rows - 1) * a_row;
    // C comes from an outer cache: asked for now, it is there when k has run through.
    for (int64_t r = 0; r < rows; r++) {
        __builtin_prefetch(s.c + r * s.row, 1);
        __builtin_prefetch(s.c + r * s.row + std::min<int64_t>(cols, kVectors * VL) - 1, 1);
    }
#pragma GCC unroll 2
    for (int64_t k = 0; k < kc; k++) {
        vf column[kVectors];
        for (int v = 0; v < kVectors; v++) column[v] = load(b + k * kNR + v * VL);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
            vf x = broadcast(kPacked ? a[k * kMR + r] : at[r][k]);
            for (int v = 0; v < kVectors; v++) sum[r][v] = fma(x, column[v], sum[r][v]);
        }
    }
    if (rows == kRows && cols >= kVectors * VL) {
        float* c = s.c;
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++, c += s.row)
            for (int v = 0; v < kVectors; v++) {
                if (s.add) sum[r][v] = load(c + v * VL) + sum[r][v];
                if (s.bias) sum[r][v] = sum[r][v] + load(s.bias + v * VL);
                store(c + v * VL, sum[r][v]);
            }
        return;
    }
    alignas(64) float block[kRows * kVectors * VL];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) store(block + (r * kVectors + v) * VL, sum[r][v]);
    for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < kVectors; v++)
            store_block(s, r, v * VL, load(block + (r * kVectors + v) * VL), cols - v * VL);
}

template <int kVectors, bool kPacked>
MG_INLINE void micro_rows(int64_t kc, const float* a, int64_t a_row, const float* b, const Store& s,
                          int64_t rows, int64_t cols) {
    if (rows == 1) return micro_kernel<1, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if (rows == 2) return micro_kernel<2, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if (rows <= 4) return micro_kernel<4, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if constexpr (kMR > 8)
        if (rows <= 8) return micro_kernel<8, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
    if constexpr (kMR > 4) micro_kernel<kMR, kVectors, kPacked>(kc, a, a_row, b, s, rows, cols);
}

// ---- the product ----

// Whether kMR rows of float32, this far apart, evict one another from the first cache: a multiple
// of 4 KB apart they share one set, which has 8 ways or more.
constexpr bool rows_collide(int64_t row) { return kMR > 8 && row % 1024 == 0; }

// A product of matrices, C = [C +] A B [+ bias].
struct Product {
    int64_t m, n, k;
    Matrix a, b;  // b(k, j)
    float* c;
    int64_t c_row;
    const float* bias;  // (n,), float32
    bool add;

    // The block of C at (i, j), for the K block that starts at k0.
    Store store_at(int64_t i, int64_t j, int64_t k0) const {
        bool last = k0 + kKC >= k;
        return {c + i * c_row + j, c_row, add || k0 > 0, last && bias ? bias + j : nullptr};
    }
    bool has_float_rows() const { return a.dtype == DType::f32 && a.col == 1; }
    // Whether blocks of kMR rows are read where they lie.
    bool direct_a() const { return has_float_rows() && !rows_collide(a.row); }
    // Column j of B as a row, for packing.
    Matrix b_panel(int64_t k0, int64_t j) const {
        Matrix x = b.at(k0, j);
        return {x.p, x.dtype, b.col, b.row};
    }
};

constexpr int64_t kMC = 4096 / kKC * kMR;  // rows of a task: 96 KB of A on AVX2, in L2
constexpr int64_t kTasks = 8;              // tasks to aim for when blocks of rows are few

// Rows that computing `rows` of them costs: those left after whole blocks count as the next larger
// kernel's.
constexpr int64_t rows_computed(int64_t rows) {
    int64_t left = rows % kMR;
    return rows - left + (left <= 2 ? left : left <= 4 ? 4 : left <= 8 && kMR > 8 ? 8 : kMR);
}

// C in blocks of rows by panels of kNR columns, of which each task does some, or one task all that
// is small work.
struct BlockTasks {
    int64_t m, panels, row_blocks, column_blocks, panel_step;

    // Where the second half of the rows begins: after whole kMR, or in the middle if that is
    // better.
    int64_t half() const {
        int64_t whole = (m + kMR - 1) / kMR / 2 * kMR;
        auto longer = [&](int64_t at) {
            return std::max(rows_computed(at), rows_computed(m - at));
        };
        return longer(m / 2) < longer(whole) ? m / 2 : whole;
    }

    // The first row of a block of rows. Both halves of the blocks take equally long, and in a half
    // each is of whole kMR but the last.
    int64_t row_at(int64_t block) const {
        if (row_blocks == 1) return block * m;
        int64_t blocks = row_blocks / 2, middle = half();
        int64_t from = block < blocks ? 0 : middle, rows = block < blocks ? middle : m - middle;
        return from + std::min(rows, block % blocks * ((rows + kMR - 1) / kMR) / blocks * kMR);
    }

    // Rows of the largest block.
    int64_t most_rows() const { return std::min(m, (m / row_blocks / kMR + 2) * kMR); }

    // At most `most` panels to a task. `by_columns` leaves the rows together.
    BlockTasks(int64_t m, int64_t panels, bool small, int64_t most, bool by_columns = false)
        : m(m), panels(panels) {
        // An even number of blocks, so that two threads end together.
        bool together = small || by_columns || m <= kMR;
        row_blocks = together ? 1 : (m + 2 * kMC - 1) / (2 * kMC) * 2;
        column_blocks = small ? 1 : std::min(panels, std::max<int64_t>(1, kTasks / row_blocks));
        column_blocks = std::max(column_blocks, (panels + most - 1) / most);
        panel_step = (panels + column_blocks - 1) / column_blocks;
        column_blocks = (panels + panel_step - 1) / panel_step;
    }

    // body(block of rows, first row, end, first panel, end) for every task.
    template <class Body>
    void run(Body&& body) const {
        parallel_for(row_blocks * column_blocks, [&](int64_t task) {
            int64_t block = task / column_blocks, first = task % column_blocks * panel_step;
            int64_t end = block + 1 < row_blocks ? row_at(block + 1) : m;
            body(block, row_at(block), end, first, std::min(panels, first + panel_step));
        });
    }
};

}  // namespace mg
