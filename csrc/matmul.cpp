// The matrix product out (…, M, N) = a (…, M, K) @ b (…, K, N) [+ bias (N,)] [+ out], float32
// accumulation.
//
// Blocking after Goto and van de Geijn (2008): B is packed in panels of kNR columns, cooperatively,
// in chunks that stay in the outer caches; blocks of kMC rows of A are tasks (A is packed too
// unless its rows are contiguous); K runs in blocks of kKC, and matmul_kernel.h does a kMR × kNR
// block of C for one of them.
//
// One order of accumulation: an element of C is a chain of multiply-adds over k inside a K block,
// and K blocks are added in order, bias last. Nothing of that depends on M, N, strides, batch or
// threads, so a row has the same bits in a batch of 1 and of 64.
#include "matmul_bf16.h"
#include "matmul_few_rows.h"

namespace mg {
namespace {

constexpr int64_t kChunkElements = 1 << 20;  // packed B at a time: 4 MB, an outer cache's share
constexpr int64_t kSuperK = 8 * kKC;         // so that a chunk of B is at least 256 columns wide
constexpr int64_t kSuperKPacked = 2 * kKC;   // where A is packed again for each chunk: 1024 columns
constexpr int64_t kTogether = 6 * kMR;       // rows of a packed A that are not shared out
constexpr int64_t kSmallWork = 1 << 18;      // multiply-adds not worth a second thread (some 5 us)

// A packed panel of A, with room between it and the next: for what packing writes too much, and so
// that panels do not all fall into the same lines of the first cache.
constexpr int64_t row_panel_size(int64_t kc) { return kc * kMR + 16; }

// Rows [i0, i1) by one packed panel of columns, for one K block; a_packed is null when A is read in
// place.
void panel_rows(const Product& p, const float* a_packed, const float* panel, int64_t i0, int64_t i1,
                int64_t j, int64_t k0, int64_t kc) {
    int64_t cols = std::min<int64_t>(kNR, p.n - j);
    for (int64_t i = i0; i < i1; i += kMR) {
        int64_t rows = std::min<int64_t>(kMR, i1 - i);
        Store s = p.store_at(i, j, k0);
        if (a_packed) {
            const float* a = a_packed + (i - i0) / kMR * row_panel_size(kc);
            if (cols > VL) {
                micro_rows<2, true>(kc, a, 0, panel, s, rows, cols);
            } else {
                micro_rows<1, true>(kc, a, 0, panel, s, rows, cols);
            }
        } else {
            const float* a = p.a.at(i, k0).floats();
            if (cols > VL) {
                micro_rows<2, false>(kc, a, p.a.row, panel, s, rows, cols);
            } else {
                micro_rows<1, false>(kc, a, p.a.row, panel, s, rows, cols);
            }
        }
    }
}

// All rows by the columns [j0, j0 + n) and the inner range [k_begin, k_end).
void chunk(const Product& p, int64_t j0, int64_t n, int64_t k_begin, int64_t k_end, float* packed) {
    int64_t panels = (n + kNR - 1) / kNR, k_blocks = (k_end - k_begin + kKC - 1) / kKC;
    int64_t depth = k_end - k_begin;
    auto panel_at = [&](int64_t kb, int64_t j) {
        int64_t kc = std::min(kKC, depth - kb * kKC);
        return packed + kb * kKC * panels * kNR + j * kc * kNR;
    };
    // A task packs some panels of a K block: side by side in B, they are so in memory too.
    int64_t per_task = std::max<int64_t>(1, kTaskElements / (kKC * kNR));
    int64_t groups = (panels + per_task - 1) / per_task;
    parallel_for(groups * k_blocks, [&](int64_t task) {
        int64_t kb = task % k_blocks, k0 = k_begin + kb * kKC, kc = std::min(kKC, k_end - k0);
        int64_t j = task / k_blocks * per_task, end = std::min(panels, j + per_task);
        pack_panels<kNR>(p.b_panel(k0, j0 + j * kNR), std::min(end * kNR, n) - j * kNR, kc,
                         panel_at(kb, j), kc * kNR);
    });
    // Few rows stay together: a thread then reads the panels that it packed itself.
    bool by_columns = panels >= kTasks && p.m <= kTogether && !p.direct_a();
    BlockTasks tasks(p.m, panels, p.m * n * depth < kSmallWork, panels, by_columns);
    // A block of A, packed: of one K block for the task that uses it, of all where several tasks
    // do.
    bool shared = !p.direct_a() && tasks.column_blocks > 1;
    int64_t a_size = (tasks.most_rows() / kMR + 1) * row_panel_size(kKC);
    Scratch<float> a_shared(shared ? tasks.row_blocks * k_blocks * a_size : 1);
    OnceEach packing(shared ? tasks.row_blocks : 0);
    tasks.run([&](int64_t block, int64_t i0, int64_t i1, int64_t first, int64_t last) {
        auto pack = [&](int64_t kb, float* to) {
            int64_t k0 = k_begin + kb * kKC, kc = std::min(kKC, k_end - k0);
            pack_panels<kMR>(p.a.at(i0, k0), i1 - i0, kc, to, row_panel_size(kc));
        };
        float* a_block = a_shared.get() + block * k_blocks * a_size;
        if (shared)
            packing.run(block, [&] {
                for (int64_t kb = 0; kb < k_blocks; kb++) pack(kb, a_block + kb * a_size);
            });
        Scratch<float> a_own(shared || p.direct_a() ? 1 : a_size);
        for (int64_t kb = 0; kb < k_blocks; kb++) {
            int64_t k0 = k_begin + kb * kKC, kc = std::min(kKC, k_end - k0);
            float* a_packed = shared ? a_block + kb * a_size : a_own.get();
            if (!shared && !p.direct_a()) pack(kb, a_packed);
            for (int64_t j = first; j < last; j++)
                panel_rows(p, p.direct_a() ? nullptr : a_packed, panel_at(kb, j), i0, i1,
                           j0 + j * kNR, k0, kc);
        }
    });
}

// A product with a column, as the row that it is turned: A is then read in place, once.
Product one_row(const Product& p) {
    return {1, p.m, p.k, p.b.turned(), p.a.turned(), p.c, p.m, nullptr, p.add};
}

void product(const Product& p) {
    if (p.m == 0 || p.n == 0) return;
    if (p.k == 0) {
        for (int64_t i = 0; i < p.m; i++)
            for (int64_t j = 0; j < p.n; j++) {
                float before = p.add ? p.c[i * p.c_row + j] : 0.0f;
                p.c[i * p.c_row + j] = before + (p.bias ? p.bias[j] : 0.0f);
            }
        return;
    }
    if (p.n == 1 && p.m > 1 && p.c_row == 1 && !p.bias) return few_rows(one_row(p));
    if (p.m <= kFewRows) return few_rows(p);
    int64_t super = std::min(p.k, p.direct_a() ? kSuperK : kSuperKPacked);
    int64_t columns = std::max<int64_t>(kNR, kChunkElements / super / kNR * kNR);
    columns = std::min(columns, (p.n + kNR - 1) / kNR * kNR);
    Scratch<float> packed((super + kKC) * columns);
    for (int64_t k = 0; k < p.k; k += super)
        for (int64_t j = 0; j < p.n; j += columns)
            chunk(p, j, std::min(columns, p.n - j), k, std::min(p.k, k + super), packed.get());
}

Matrix matrix_of(const Array& x, int64_t offset) {
    return {x.data + offset * itemsize(x.dtype), x.dtype, x.strides[x.ndim - 2],
            x.strides[x.ndim - 1]};
}

// Element offset of batch entry `index` (over the batch dimensions of out) in x, whose missing
// leading dimensions are broadcast.
int64_t batch_offset(const Array& x, const Array& out, int64_t index) {
    int64_t offset = 0;
    for (int d = out.ndim - 3; d >= 0; d--) {
        int own = d - (out.ndim - x.ndim);
        if (own >= 0 && x.shape[own] > 1) offset += index % out.shape[d] * x.strides[own];
        index /= out.shape[d];
    }
    return offset;
}

void check(const Array& a, const Array& b, const Array& bias, const Array& out) {
    auto half_or_float = [](const Array& x) {
        return x.dtype == DType::f32 || x.dtype == DType::bf16 || x.dtype == DType::f16;
    };
    for (const Array* x : {&a, &b, &out})
        if (!half_or_float(*x)) unsupported("matmul", x->dtype, "float32, bfloat16, float16");
    int64_t n = out.shape[out.ndim - 1];
    bool fits = a.ndim >= 2 && b.ndim >= 2 && out.ndim >= 2 &&
                a.shape[a.ndim - 1] == b.shape[b.ndim - 2] &&
                a.shape[a.ndim - 2] == out.shape[out.ndim - 2] && b.shape[b.ndim - 1] == n &&
                (n <= 1 || out.strides[out.ndim - 1] == 1);
    if (!fits) throw std::invalid_argument("matmul: shapes do not fit, or rows of out have gaps");
    if (bias && (bias.ndim != 1 || bias.shape[0] != n || !half_or_float(bias)))
        throw std::invalid_argument("matmul: expected a bias of one value a column");
}

// A vector as contiguous float32: in place if it is that, else converted.
const float* float_vector(const Array& x, float* converted) {
    if (x.dtype == DType::f32 && x.strides[0] == 1) return x.ptr<float>();
    for_float_dtype("matmul", x.dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (!std::is_same_v<T, double>)
            for (int64_t j = 0; j < x.shape[0]; j++)
                converted[j] = element(x.ptr<T>() + j * x.strides[0]);
    });
    return converted;
}

}  // namespace

void matmul(const Array& a, const Array& b, const Array& bias, const Array& out, bool accumulate) {
    check(a, b, bias, out);
    int64_t m = out.shape[out.ndim - 2], n = out.shape[out.ndim - 1], k = a.shape[a.ndim - 1];
    int64_t batch = 1;
    for (int d = 0; d < out.ndim - 2; d++) batch *= out.shape[d];

    Scratch<float> converted(bias ? n : 1);
    const float* wide_bias = bias ? float_vector(bias, converted.get()) : nullptr;

    // Whole bfloat16 products have kernels of their own; mixed ones convert to float32 here.
    bool in_bf16 = a.dtype == DType::bf16 && b.dtype == DType::bf16 && out.dtype != DType::f16;
    auto one_bf16 = [&](int64_t index) {
        Scratch<bf16> packed(whole_panels(n) * kPanelColumns * whole_k(k) + 1);
        pack_panels_bf16(matrix_of(b, batch_offset(b, out, index)), k, n, packed.get());
        int64_t offset = batch_offset(out, out, index) * itemsize(out.dtype);
        product_bf16({m, n, k, matrix_of(a, batch_offset(a, out, index)), packed.get(),
                      out.data + offset, out.dtype, out.strides[out.ndim - 2], wide_bias,
                      accumulate});
    };
    auto one = [&](int64_t index) {
        if (in_bf16) return one_bf16(index);
        Product p{m,
                  n,
                  k,
                  matrix_of(a, batch_offset(a, out, index)),
                  matrix_of(b, batch_offset(b, out, index)),
                  nullptr,
                  out.strides[out.ndim - 2],
                  wide_bias,
                  accumulate};
        int64_t offset = batch_offset(out, out, index);
        if (out.dtype == DType::f32) {
            p.c = out.ptr<float>() + offset;
            return product(p);
        }
        // A half-typed result is rounded once, from float32.
        Scratch<float> wide(m * n + 1);
        p.c = wide.get();
        p.c_row = n;
        for_float_dtype("matmul", out.dtype, [&](auto type) {
            using T = decltype(type);
            if constexpr (std::is_same_v<T, bf16> || std::is_same_v<T, f16>) {
                T* to = out.ptr<T>() + offset;
                int64_t row = out.strides[out.ndim - 2];
                if (accumulate)
                    for (int64_t i = 0; i < m; i++)
                        for (int64_t j = 0; j < n; j++) wide[i * n + j] = element(to + i * row + j);
                product(p);
                for (int64_t i = 0; i < m; i++) {
                    int64_t j = 0;
                    for (; j + VL <= n; j += VL)
                        store(to + i * row + j, load(wide.get() + i * n + j));
                    if (j < n) store(to + i * row + j, load(wide.get() + i * n + j, n - j), n - j);
                }
            }
        });
    };
    // Many products: one a task, each on its thread. Few: one after the other, each on all threads.
    constexpr int64_t kManyProducts = 4;
    if (batch >= kManyProducts) {
        parallel_chunks(batch, std::max<int64_t>(1, kSmallWork / std::max<int64_t>(m * n * k, 1)),
                        [&](int64_t begin, int64_t end) {
                            for (int64_t i = begin; i < end; i++) one(i);
                        });
    } else {
        for (int64_t i = 0; i < batch; i++) one(i);
    }
}

}  // namespace mg
