// Integer indices and targets as kernels take them.
#pragma once

#include "array.h"

namespace mg {

// Calls body(pointer) for contiguous int64 and int32 indices.
template <class Body>
void for_indices(const char* kernel, const Array& indices, Body&& body) {
    if (!indices.contiguous())
        throw std::invalid_argument(std::string(kernel) + ": expected contiguous indices");
    if (indices.dtype == DType::i64) return body(indices.ptr<int64_t>());
    if (indices.dtype == DType::i32) return body(indices.ptr<int32_t>());
    unsupported(kernel, indices.dtype, "indices of int64 and int32");
}

}  // namespace mg
