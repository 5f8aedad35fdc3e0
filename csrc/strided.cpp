// Tiles in and out of any dtype and stride, and the kernels that are nothing else: copy (with
// cast), fill.
#include "strided.h"

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

// A 2-D transpose read along its rows misses a cache line per element; in blocks of this edge the
// lines of both sides stay in L1 (2 * 32 * 32 * 4 bytes = 8 KB).
constexpr int64_t kTransposeBlock = 32;

template <class T>
static void transpose(const T* x, int64_t x_row, int64_t x_col, T* out, int64_t out_row,
                      int64_t rows, int64_t cols) {
    parallel_chunks(rows, kTransposeBlock, [&](int64_t r0, int64_t r1) {
        for (int64_t c0 = 0; c0 < cols; c0 += kTransposeBlock) {
            int64_t c1 = std::min(cols, c0 + kTransposeBlock);
            for (int64_t r = r0; r < r1; r++)
                for (int64_t c = c0; c < c1; c++) out[r * out_row + c] = x[r * x_row + c * x_col];
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
    if (s.ndim == 2 && s.strides[1][1] == size && s.strides[0][0] == size &&
        s.strides[0][1] != size) {
        return transpose(reinterpret_cast<const T*>(s.data[0]), s.strides[0][0] / size,
                         s.strides[0][1] / size, reinterpret_cast<T*>(s.data[1]),
                         s.strides[1][0] / size, s.shape[0], s.shape[1]);
    }
    s.run([](char* const* p, const int64_t* step, int64_t n) {
        if (step[0] == size && step[1] == size) {
            return copy_bytes(p[0], p[1], n * size);
        }
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
