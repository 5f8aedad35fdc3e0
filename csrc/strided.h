// Loops over strided operands of any rank: shapes are broadcast to the output's, neighbouring
// dimensions that are contiguous for every operand are merged, and the innermost one is handed out
// in tiles. A tile of any dtype and stride becomes an array of the type the operation computes in.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace mg {

constexpr int64_t kTile = 512;  // elements: three float tiles stay well inside a 32 KB L1

// The dtype that needs no conversion to a tile of C.
template <class C>
constexpr DType kNative = DType::f32;
template <>
inline constexpr DType kNative<double> = DType::f64;
template <>
inline constexpr DType kNative<int64_t> = DType::i64;
template <>
inline constexpr DType kNative<bf16> = DType::bf16;

// N operands over one shape; the last is the output, whose shape rules.
template <int N>
struct Strided {
    int ndim = 0;
    int64_t shape[kMaxDims];
    int64_t strides[N][kMaxDims];  // bytes
    char* data[N];
    DType dtypes[N];

    Strided(const char* kernel, const Array* const (&operands)[N]) {
        const Array& out = *operands[N - 1];
        for (int k = 0; k < N; k++) {
            data[k] = operands[k]->data;
            dtypes[k] = operands[k]->dtype;
        }
        for (int d = 0; d < out.ndim; d++) {
            if (out.shape[d] == 1) continue;
            for (int k = 0; k < N; k++)
                strides[k][ndim] = byte_stride(kernel, *operands[k], out, d);
            shape[ndim++] = out.shape[d];
        }
        merge();
        if (ndim == 0) {
            shape[0] = 1;
            for (int k = 0; k < N; k++) strides[k][0] = 0;
            ndim = 1;
        }
    }

    // body(pointers, inner strides in bytes, count), count <= kTile; or without end where all
    // operands are contiguous arrays of C, which body then reads and writes where they lie.
    template <class C = void, class Body>
    void run(Body&& body) const {
        int64_t tile = kTile;
        if constexpr (!std::is_void_v<C>) {
            bool in_place = true;
            for (int k = 0; k < N; k++)
                in_place &= dtypes[k] == kNative<C> && strides[k][ndim - 1] == sizeof(C);
            if (in_place) tile = kTaskElements;
        }
        int64_t inner = shape[ndim - 1], rows = 1;
        for (int d = 0; d < ndim - 1; d++) rows *= shape[d];
        if (inner == 0 || rows == 0) return;
        int64_t piece = std::min(inner, kTaskElements);
        int64_t pieces = (inner + piece - 1) / piece;
        parallel_chunks(rows * pieces, rows_per_task(piece), [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; item++) {
                int64_t first = item % pieces * piece;
                run_row(item / pieces, first, std::min(piece, inner - first), tile, body);
            }
        });
    }

  private:
    static int64_t byte_stride(const char* kernel, const Array& a, const Array& out, int d) {
        int own = d - (out.ndim - a.ndim);
        if (own < 0 || a.shape[own] == 1) return 0;
        if (a.shape[own] != out.shape[d])
            throw std::invalid_argument(std::string(kernel) + ": operand shapes do not broadcast");
        return a.strides[own] * itemsize(a.dtype);
    }

    void merge() {
        int last = 0;
        for (int d = 1; d < ndim; d++) {
            bool joins = true;
            for (int k = 0; k < N; k++) joins &= strides[k][last] == strides[k][d] * shape[d];
            if (joins) {
                shape[last] *= shape[d];
            } else {
                shape[++last] = shape[d];
            }
            for (int k = 0; k < N; k++) strides[k][last] = strides[k][d];
        }
        if (ndim > 0) ndim = last + 1;
    }

    template <class Body>
    void run_row(int64_t row, int64_t first, int64_t count, int64_t tile, Body& body) const {
        char* p[N];
        int64_t step[N];
        for (int k = 0; k < N; k++) {
            step[k] = strides[k][ndim - 1];
            p[k] = data[k] + first * step[k];
        }
        for (int d = ndim - 2; d >= 0; d--) {
            int64_t index = row % shape[d];
            row /= shape[d];
            for (int k = 0; k < N; k++) p[k] += index * strides[k][d];
        }
        for (int64_t i = 0; i < count; i += tile) {
            body(p, step, std::min(tile, count - i));
            for (int k = 0; k < N; k++) p[k] += tile * step[k];
        }
    }
};

// ---- one value between storage and the computing type C (float, double or int64) ----

template <class C, class T>
MG_INLINE C from_storage(T value) {
    return static_cast<C>(value);
}
template <class C>
MG_INLINE C from_storage(bf16 value) {
    return static_cast<C>(to_float(value));
}
template <class C>
MG_INLINE C from_storage(f16 value) {
    return static_cast<C>(to_float(value));
}

// bool is stored as b8: anything but zero is true.
struct b8 {
    uint8_t value;
};
template <class C>
MG_INLINE C from_storage(b8 x) {
    return static_cast<C>(x.value != 0);
}

template <class T>
struct ToStorage {
    template <class C>
    static MG_INLINE T of(C value) {
        return static_cast<T>(value);
    }
};
template <>
struct ToStorage<bf16> {
    template <class C>
    static MG_INLINE bf16 of(C value) {
        return to_bf16(static_cast<float>(value));
    }
};
template <>
struct ToStorage<f16> {
    template <class C>
    static MG_INLINE f16 of(C value) {
        return to_f16(static_cast<float>(value));
    }
};
template <>
struct ToStorage<b8> {
    template <class C>
    static MG_INLINE b8 of(C value) {
        return {static_cast<uint8_t>(value != C(0))};
    }
};

// From storage to an element of a tile, and back: which may be bfloat16 itself.
template <class C, class T>
MG_INLINE C to_tile(T value) {
    if constexpr (std::is_same_v<C, bf16>) {
        return ToStorage<bf16>::of(from_storage<float>(value));
    } else {
        return from_storage<C>(value);
    }
}
template <class T, class C>
MG_INLINE T from_tile(C value) {
    if constexpr (std::is_same_v<C, bf16>) {
        return ToStorage<T>::of(to_float(value));
    } else {
        return ToStorage<T>::of(value);
    }
}

template <class Body>
inline void for_dtype(DType t, Body&& body) {
    switch (t) {
        case DType::f32:
            return body(float{});
        case DType::f64:
            return body(double{});
        case DType::f16:
            return body(f16{});
        case DType::bf16:
            return body(bf16{});
        case DType::i32:
            return body(int32_t{});
        case DType::i64:
            return body(int64_t{});
        case DType::u8:
            return body(uint8_t{});
        case DType::b8:
            return body(b8{});
    }
}

// ---- tiles ----

template <class C>
void load_strided(DType dtype, const char* p, int64_t step, int64_t n, C* tile);
template <class C>
void store_strided(DType dtype, char* p, int64_t step, int64_t n, const C* tile);

// The n values at p as an array of C: in place where they already are one, else converted to
// `tile`.
template <class C>
inline const C* load_tile(DType dtype, const char* p, int64_t step, int64_t n, C* tile) {
    if (dtype == kNative<C> && step == sizeof(C)) return reinterpret_cast<const C*>(p);
    load_strided(dtype, p, step, n, tile);
    return tile;
}

template <class C>
inline C* output_tile(DType dtype, char* p, int64_t step, C* tile) {
    return dtype == kNative<C> && step == sizeof(C) ? reinterpret_cast<C*>(p) : tile;
}

template <class C>
inline void store_tile(DType dtype, char* p, int64_t step, int64_t n, const C* tile) {
    if (reinterpret_cast<const char*>(tile) != p) store_strided(dtype, p, step, n, tile);
}

// Calls body(C{}) with the type that operations on this dtype compute in.
template <class Body>
inline void for_compute_type(DType t, Body&& body) {
    switch (t) {
        case DType::f64:
            return body(double{});
        case DType::f32:
        case DType::f16:
        case DType::bf16:
            return body(float{});
        default:
            return body(int64_t{});
    }
}

}  // namespace mg
