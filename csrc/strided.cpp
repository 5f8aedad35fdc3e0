// Tiles in and out of any dtype and stride, and the kernels that are nothing else: copy (with
// cast), fill.
#include "strided.h"

#include "matmul_pack.h"

namespace mg {

template <class C>
void load_strided(DType dtype, const char* p, int64_t step, int64_t n, C* tile) {
    for_dtype(dtype, [&](auto type) {
        using T = decltype(type);
        if (step == 0) {
            C value = to_tile<C>(*reinterpret_cast<const T*>(p));
            for (int64_t i = 0; i < n; i++) tile[i] = value;
            return;
        }
        int64_t i = 0;
        if constexpr (std::is_same_v<C, float> &&
                      (std::is_same_v<T, bf16> || std::is_same_v<T, f16>)) {
            if (step == sizeof(T))
                for (; i + VL <= n; i += VL)
                    store(tile + i, load(reinterpret_cast<const T*>(p) + i));
        }
        for (; i < n; i++) tile[i] = to_tile<C>(*reinterpret_cast<const T*>(p + i * step));
    });
}

template <class C>
void store_strided(DType dtype, char* p, int64_t step, int64_t n, const C* tile) {
    for_dtype(dtype, [&](auto type) {
        using T = decltype(type);
        int64_t i = 0;
        if constexpr (std::is_same_v<C, float> &&
                      (std::is_same_v<T, bf16> || std::is_same_v<T, f16>)) {
            if (step == sizeof(T))
                for (; i + VL <= n; i += VL)
                    store_given(reinterpret_cast<T*>(p) + i, load(tile + i));
        }
        for (; i < n; i++) *reinterpret_cast<T*>(p + i * step) = from_tile<T>(tile[i]);
    });
}

template void load_strided(DType, const char*, int64_t, int64_t, float*);
template void load_strided(DType, const char*, int64_t, int64_t, double*);
template void load_strided(DType, const char*, int64_t, int64_t, int64_t*);
template void load_strided(DType, const char*, int64_t, int64_t, bf16*);
template void store_strided(DType, char*, int64_t, int64_t, const bf16*);
template void store_strided(DType, char*, int64_t, int64_t, const float*);
template void store_strided(DType, char*, int64_t, int64_t, const double*);
template void store_strided(DType, char*, int64_t, int64_t, const int64_t*);

// ---- copy: out = x, cast to out's dtype ----

// A transpose read along its rows misses a cache line per element; in blocks of this edge the lines
// of both sides stay in L1 (2 * 32 * 32 * 4 bytes = 8 KB).
constexpr int64_t kTransposeBlock = 32;

#if defined(MG_AVX512) || defined(MG_AVX2)
MG_INLINE void transpose_8x8(const uint16_t* x, int64_t x_row, uint16_t* out, int64_t out_row) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i * x_row));
    for (int i = 0; i < 4; i++) {  // pairs of rows, pairs of those, and halves
        b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            a[i + 2 * k] = _mm_unpacklo_epi32(b[i + k], b[i + k + 2]);
            a[i + 2 * k + 1] = _mm_unpackhi_epi32(b[i + k], b[i + k + 2]);
        }
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm_unpacklo_epi64(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi64(a[i], a[i + 4]);
    }
    for (int i = 0; i < 8; i++)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * out_row), b[i]);
}
#endif

// out[r * out_row + c] = x[c * x_row + r]
template <class T>
static void transpose_block(const T* x, int64_t x_row, T* out, int64_t out_row, int64_t rows,
                            int64_t cols) {
    int64_t r = 0;
#if defined(MG_AVX512) || defined(MG_AVX2)
    using Moved = std::conditional_t<sizeof(T) == sizeof(float), float, T>;
    if constexpr (sizeof(T) == 4 || sizeof(T) == 2)
        for (; r + 8 <= rows; r += 8) {
            int64_t c = 0;
            for (; c + 8 <= cols; c += 8)
                transpose_8x8(reinterpret_cast<const Moved*>(x + c * x_row + r), x_row,
                              reinterpret_cast<Moved*>(out + r * out_row + c), out_row);
            for (; c < cols; c++)
                for (int64_t i = r; i < r + 8; i++) out[i * out_row + c] = x[c * x_row + i];
        }
#endif
    for (; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) out[r * out_row + c] = x[c * x_row + r];
}

// A copy of which dimension d is the contiguous one of x, the last that of out.
template <class T>
static void transpose(const Strided<2>& s, int d) {
    constexpr int64_t size = sizeof(T);
    int last = s.ndim - 1;
    int64_t rows = s.shape[d], cols = s.shape[last];
    int64_t blocks = (rows + kTransposeBlock - 1) / kTransposeBlock, items = blocks;
    for (int i = 0; i < last; i++)
        if (i != d) items *= s.shape[i];
    int64_t per_task = std::max<int64_t>(1, kTaskElements / (kTransposeBlock * cols + 1));
    parallel_chunks(items, per_task, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; item++) {
            int64_t r = item % blocks * kTransposeBlock, index = item / blocks;
            const char* from = s.data[0] + r * size;
            char* to = s.data[1] + r * s.strides[1][d];
            for (int i = last - 1; i >= 0; i--) {
                if (i == d) continue;
                from += index % s.shape[i] * s.strides[0][i];
                to += index % s.shape[i] * s.strides[1][i];
                index /= s.shape[i];
            }
            for (int64_t c = 0; c < cols; c += kTransposeBlock)
                transpose_block(reinterpret_cast<const T*>(from + c * s.strides[0][last]),
                                s.strides[0][last] / size, reinterpret_cast<T*>(to) + c,
                                s.strides[1][d] / size, std::min(kTransposeBlock, rows - r),
                                std::min(kTransposeBlock, cols - c));
        }
    });
}

// By vectors of its own: what memcpy does with pieces of some kilobytes (`rep movsb`) may take
// three times as long as memory.
static void copy_bytes(const char* from, char* to, int64_t n) {
    int64_t i = 0;
    for (; i + kVectorBytes <= n; i += kVectorBytes)
        store(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
    std::memcpy(to + i, from + i, static_cast<size_t>(n - i));
}

template <class T>
static void copy_same(const Strided<2>& s) {
    constexpr int64_t size = sizeof(T);
    int last = s.ndim - 1;
    bool turned = last >= 0 && s.strides[1][last] == size && s.strides[0][last] != size &&
                  s.strides[0][last] != 0;
    for (int d = last - 1; turned && d >= 0; d--)
        if (s.strides[0][d] == size && s.shape[d] >= 8) return transpose<T>(s, d);
    s.run([](char* const* p, const int64_t* step, int64_t n) {
        if (step[0] == size && step[1] == size) {
            return copy_bytes(p[0], p[1], n * size);
        }
        if (step[0] == 0 && step[1] == size)
            return (void)std::fill_n(reinterpret_cast<T*>(p[1]), n,
                                     *reinterpret_cast<const T*>(p[0]));
        for (int64_t i = 0; i < n; i++)
            *reinterpret_cast<T*>(p[1] + i * step[1]) =
                *reinterpret_cast<const T*>(p[0] + i * step[0]);
    });
}

void copy(const Array& x, const Array& out) {
    Strided<2> s("copy", {&x, &out});
    if (x.dtype == out.dtype) {
        switch (itemsize(x.dtype)) {
            case 8:
                return copy_same<uint64_t>(s);
            case 4:
                return copy_same<uint32_t>(s);
            case 2:
                return copy_same<uint16_t>(s);
            default:
                return copy_same<uint8_t>(s);
        }
    }
    for_compute_type(x.dtype, [&](auto type) {
        using C = decltype(type);
        s.run([&](char* const* p, const int64_t* step, int64_t n) {
            alignas(64) C tile[kTile];
            store_tile(out.dtype, p[1], step[1], n, load_tile(x.dtype, p[0], step[0], n, tile));
        });
    });
}

void fill(const Array& out, double value) {
    Strided<1> s("fill", {&out});
    for_compute_type(out.dtype, [&](auto type) {
        using C = decltype(type);
        alignas(64) C tile[kTile];
        for (auto& v : tile) v = static_cast<C>(value);
        s.template run<C>([&](char* const* p, const int64_t* step, int64_t n) {
            C* to = output_tile<C>(out.dtype, p[0], step[0], tile);
            if (to != tile) return (void)std::fill_n(to, n, tile[0]);
            store_strided(out.dtype, p[0], step[0], n, tile);
        });
    });
}

}  // namespace mg
