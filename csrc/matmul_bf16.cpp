// The bfloat16 product: packing of B, and blocks of C as tasks.
//
// Where the processor has vdpbf16ps, the product itself is that of matmul_bf16_dot.h. Elsewhere a
// task makes kBlockRows rows by kTaskColumns columns of C in a float32 buffer of its own, K block
// by K block, and writes them once: with bias, rounded to out's dtype. An element's sum runs over k
// in an order fixed by K alone, so a row has the same bits in any batch.
#include "matmul_bf16_dot.h"
#include "matmul_bf16_kernel.h"

namespace mg {
namespace {

// AVX2: 96 × 512 float32 of C and 96 KB of A lie in 512 KB of L2.
constexpr int64_t kTaskColumns = 512;
constexpr int64_t kFewTasks = 8;      // below that, tasks get fewer columns
constexpr int64_t kPackedLines = 32;  // lines that are transposed together

// Pair (j, i) of out = pair (i, j) of x, for i < rows, j < columns, both multiples of 8. Distances
// between rows count pairs.
void transpose_pairs(const bf16* x, int64_t x_row, int64_t rows, int64_t columns, bf16* out,
                     int64_t out_row) {
    for (int64_t i = 0; i < rows; i += 8)
        for (int64_t j = 0; j < columns; j += 8) {
            const bf16* from = x + 2 * (i * x_row + j);
            bf16* to = out + 2 * (j * out_row + i);
#if defined(MG_AVX512) || defined(MG_AVX2)
            transpose_8x8(reinterpret_cast<const float*>(from), x_row, reinterpret_cast<float*>(to),
                          out_row);
#else
            for (int64_t r = 0; r < 8; r++)
                for (int64_t c = 0; c < 8; c++)
                    std::memcpy(to + 2 * (c * out_row + r), from + 2 * (r * x_row + c), 4);
#endif
        }
}

using Lines = bf16[kPackedLines * kKC];

// Line i of kKC holds x(i, 0 .. kc), for n lines; the rest is zeros.
template <class T>
void gather_lines(const T* x, int64_t row, int64_t col, int64_t n, int64_t kc, Lines& lines) {
    std::memset(lines, 0, sizeof(lines));
    if (row == 1 && col != 1) {
        Lines across = {};
        for (int64_t k = 0; k < kc; k += 2)
            interleave(x + k * col, k + 1 < kc ? x + (k + 1) * col : nullptr, n,
                       across + k * kPackedLines);
        transpose_pairs(across, kPackedLines, whole_k(kc) / 2, kPackedLines, lines, kKC / 2);
        return;
    }
    for (int64_t i = 0; i < n; i++) line(x + i * row, col, kc, lines + i * kKC);
}

// Columns [j, j + n) of B for one K block, at `out`.
template <class T>
void pack_block(const T* b, int64_t row, int64_t col, int64_t n, int64_t kc, bf16* out) {
    int64_t depth = whole_k(kc);
    if (col == 1 && n == kPanelColumns) {
        for (int64_t k = 0; k < kc; k += 2)
            interleave(b + k * row, k + 1 < kc ? b + (k + 1) * row : nullptr, n,
                       out + k * kPanelColumns);
        int64_t filled = (kc + 1) / 2 * 2;
        std::fill_n(out + filled * kPanelColumns, (depth - filled) * kPanelColumns, bf16{0});
        return;
    }
    Lines lines;
    gather_lines(b, col, row, n, kc, lines);
    transpose_pairs(lines, kKC / 2, kPanelColumns, depth / 2, out, kPanelColumns);
}

// Rows [i0, i0 + n) of A for the K block at k0, kKC elements apart, and zeros up to 32 rows.
void pack_rows(const Matrix& a, int64_t i0, int64_t n, int64_t k0, int64_t kc, RowElement* out) {
    Lines lines;
    for (int64_t i = 0; i < n; i += kPackedLines) {
        Matrix from = a.at(i0 + i, k0);
        for_operand(a.dtype, [&](auto type) {
            using T = decltype(type);
            gather_lines(reinterpret_cast<const T*>(from.p), from.row, from.col,
                         std::min(kPackedLines, n - i), kc, lines);
        });
        for (int64_t r = 0; r < kPackedLines; r++)
            lay_row(lines + r * kKC, whole_k(kc), out + (i + r) * kKC);
    }
}

template <class T>
void write_row(const float* c, const float* bias, bool add, int64_t n, T* out) {
    auto finished = [&](int64_t j, auto... tail) {
        vf v = load(c + j, tail...);
        if (add) v = load(out + j, tail...) + v;
        return bias ? v + load(bias + j, tail...) : v;
    };
    int64_t j = 0;
    for (; j + VL <= n; j += VL) store(out + j, finished(j));
    if (j < n) store(out + j, finished(j, n - j), n - j);
}

void write_rows(const Bf16Product& p, const float* c, int64_t c_row, int64_t i0, int64_t i1,
                int64_t j0, int64_t n) {
    const float* bias = p.bias ? p.bias + j0 : nullptr;
    for (int64_t i = i0; i < i1; i++) {
        char* to = p.out + (i * p.out_row + j0) * itemsize(p.out_dtype);
        const float* from = c + (i - i0) * c_row;
        if (p.out_dtype == DType::f32) {
            write_row(from, bias, p.add, n, reinterpret_cast<float*>(to));
        } else {
            write_row(from, bias, p.add, n, reinterpret_cast<bf16*>(to));
        }
    }
}

}  // namespace

void pack_block_bf16(const Matrix& b, int64_t k, int64_t n, int64_t k0, int64_t kc, int64_t j0,
                     bf16* packed) {
    Matrix from = b.at(k0, j0);
    for_operand(b.dtype, [&](auto type) {
        using T = decltype(type);
        pack_block(reinterpret_cast<const T*>(from.p), b.row, b.col,
                   std::min(kPanelColumns, n - j0), kc,
                   packed + j0 * whole_k(k) + k0 * kPanelColumns);
    });
}

void pack_panels_bf16(const Matrix& b, int64_t k, int64_t n, bf16* packed) {
    int64_t panels = whole_panels(n), blocks = (k + kKC - 1) / kKC;
    parallel_chunks(panels * blocks, kTaskElements / (kKC * kPanelColumns),
                    [&](int64_t t0, int64_t t1) {
                        for (int64_t t = t0; t < t1; t++) {
                            int64_t j = t / blocks * kPanelColumns, k0 = t % blocks * kKC;
                            pack_block_bf16(b, k, n, k0, std::min(kKC, k - k0), j, packed);
                        }
                    });
}

void product_bf16(const Bf16Product& p) {
    if (p.m == 0 || p.n == 0) return;
#if defined(MG_AVX512) && !defined(MG_AMX)
    if (has_dot() && p.k > 0) return product_by_dots(p);
#endif
    int64_t panels = whole_panels(p.n), depth = whole_k(p.k);
    // Rows in an even number of blocks of about the same height, so that two threads end together.
    int64_t wanted = p.m <= kBlockRows ? 1 : (p.m + 2 * kBlockRows - 1) / (2 * kBlockRows) * 2;
    int64_t row_step = ((p.m + wanted - 1) / wanted + kRowStep - 1) / kRowStep * kRowStep;
    int64_t row_blocks = (p.m + row_step - 1) / row_step;
    wanted = std::max((panels * kPanelColumns + kTaskColumns - 1) / kTaskColumns,
                      std::min(panels, kFewTasks / row_blocks));
    int64_t panel_step = (panels + wanted - 1) / wanted;
    int64_t column_blocks = (panels + panel_step - 1) / panel_step;
    parallel_for(row_blocks * column_blocks, [&](int64_t task) {
        int64_t i0 = task / column_blocks * row_step, i1 = std::min(p.m, i0 + row_step);
        int64_t first = task % column_blocks * panel_step;
        int64_t last = std::min(panels, first + panel_step), c_row = (last - first) * kPanelColumns;
        int64_t rows = (i1 - i0 + kPackedLines - 1) / kPackedLines * kPackedLines;
        Scratch<RowElement> a(rows * kKC);
        Scratch<float> c(rows * c_row);
        Tiles tiles;  // configured from here to the end of the task
        if (p.k == 0) std::fill_n(c.get(), rows * c_row, 0.0f);
        for (int64_t k0 = 0; k0 < p.k; k0 += kKC) {
            int64_t kc = std::min(kKC, p.k - k0);
            pack_rows(p.a, i0, i1 - i0, k0, kc, a.get());
            for (int64_t j = first; j < last; j++)
                panel_block(i1 - i0, kc, a.get(), p.b + (j * depth + k0) * kPanelColumns,
                            c.get() + (j - first) * kPanelColumns, c_row, k0 > 0);
        }
        int64_t j0 = first * kPanelColumns;
        write_rows(p, c.get(), c_row, i0, i1, j0, std::min(p.n, last * kPanelColumns) - j0);
    });
}

// b (K, N), float32 or bfloat16, as bfloat16 panels: packed (n_panels, K / 2, 32, 2), K rounded up
// to 32.
void pack_bf16(const Array& b, const Array& packed) {
    bool fits = b.ndim == 2 && packed.dtype == DType::bf16 && packed.contiguous() &&
                packed.size() == whole_panels(b.shape[1]) * kPanelColumns * whole_k(b.shape[0]);
    if (!fits) throw std::invalid_argument("pack_bf16: expected b (K, N) and its panels");
    pack_panels_bf16({b.data, b.dtype, b.strides[0], b.strides[1]}, b.shape[0], b.shape[1],
                     packed.ptr<bf16>());
}

// out (M, N) = a (M, K) @ the b that `packed` was made from [+ bias (N,)] [+ out]; a and out are
// float32 or bfloat16, bias is float32.
void matmul_packed(const Array& a, const Array& packed, const Array& bias, const Array& out,
                   bool accumulate) {
    for (const Array* x : {&a, &out})
        if (x->dtype != DType::f32 && x->dtype != DType::bf16)
            unsupported("matmul_packed", x->dtype, "float32 and bfloat16");
    int64_t n = out.shape[1], k = a.shape[1];
    bool fits = a.ndim == 2 && out.ndim == 2 && a.shape[0] == out.shape[0] &&
                (n <= 1 || out.strides[1] == 1) && packed.dtype == DType::bf16 &&
                packed.size() == whole_panels(n) * kPanelColumns * whole_k(k);
    if (!fits) throw std::invalid_argument("matmul_packed: shapes do not fit");
    if (bias && (bias.dtype != DType::f32 || bias.size() != n || !bias.contiguous()))
        throw std::invalid_argument("matmul_packed: expected a float32 bias of one value a column");
    product_bf16({out.shape[0],
                  n,
                  k,
                  {a.data, a.dtype, a.strides[0], a.strides[1]},
                  packed.ptr<bf16>(),
                  out.data,
                  out.dtype,
                  out.strides[0],
                  bias ? bias.ptr<float>() : nullptr,
                  accumulate});
}

}  // namespace mg
