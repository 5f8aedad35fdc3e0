// What a kernel sees of an array: a pointer, a dtype, a shape and strides (in elements, 64-bit).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mg {

enum class DType : int32_t { f32, f64, f16, bf16, i32, i64, u8, b8 };

// Storage-only half types; kernels convert to float on load and back on store (simd.h).
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

constexpr int kMaxDims = 16;

struct Array {
    char* data = nullptr;
    DType dtype = DType::f32;
    int ndim = 0;
    int64_t shape[kMaxDims];
    int64_t strides[kMaxDims];  // in elements

    // False for an optional argument that was None.
    explicit operator bool() const { return data != nullptr; }

    template <class T>
    T* ptr() const {
        return reinterpret_cast<T*>(data);
    }

    int64_t size() const {
        int64_t n = 1;
        for (int i = 0; i < ndim; i++) n *= shape[i];
        return n;
    }

    bool contiguous() const {
        if (size() == 0) return true;
        int64_t expected = 1;
        for (int i = ndim - 1; i >= 0; i--) {
            if (shape[i] != 1 && strides[i] != expected) return false;
            expected *= shape[i];
        }
        return true;
    }
};

inline int64_t itemsize(DType t) {
    switch (t) {
        case DType::f64:
        case DType::i64:
            return 8;
        case DType::f32:
        case DType::i32:
            return 4;
        case DType::f16:
        case DType::bf16:
            return 2;
        default:
            return 1;
    }
}

inline const char* dtype_name(DType t) {
    constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16",
                                     "int32",   "int64",   "uint8",   "bool"};
    return names[static_cast<int>(t)];
}

[[noreturn]] inline void unsupported(const char* kernel, DType t, const char* supported) {
    throw std::invalid_argument(std::string(kernel) + ": no kernel for dtype " + dtype_name(t) +
                                "; it exists for " + supported);
}

// Calls body(T{}) with the storage type of a floating dtype.
template <class Body>
inline void for_float_dtype(const char* kernel, DType t, Body&& body) {
    switch (t) {
        case DType::f32:
            return body(float{});
        case DType::f64:
            return body(double{});
        case DType::f16:
            return body(f16{});
        case DType::bf16:
            return body(bf16{});
        default:
            unsupported(kernel, t, "float32, float64, float16, bfloat16");
    }
}

}  // namespace mg
