// What is asked of integer indices and targets before and beside the kernels that use them.
#include <limits>

#include "array.h"

namespace mg {
namespace {

// Calls body(pointer, count) for contiguous int64 and int32 indices.
template <class Body>
void for_indices(const char* kernel, const Array& indices, Body&& body) {
    if (!indices.contiguous())
        throw std::invalid_argument(std::string(kernel) + ": expected contiguous indices");
    if (indices.dtype == DType::i64) return body(indices.ptr<int64_t>(), indices.size());
    if (indices.dtype == DType::i32) return body(indices.ptr<int32_t>(), indices.size());
    unsupported(kernel, indices.dtype, "indices of int64 and int32");
}

}  // namespace

// Throws std::out_of_range for the first index outside of [0, n) (which is not the ignored one).
void check_range(const Array& indices, int64_t n, bool has_ignored, int64_t ignored) {
    for_indices("check_range", indices, [&](auto* index, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            auto value = static_cast<int64_t>(index[i]);
            if (value >= 0 && value < n) continue;
            if (has_ignored && value == ignored) continue;
            throw std::out_of_range("check_range: the index " + std::to_string(value) +
                                    " at position " + std::to_string(i) + " is outside [0, " +
                                    std::to_string(n) + ")");
        }
    });
}

// out[0] = 1 / the number of targets that are not the ignored one; NaN where there is none.
void row_share(const Array& targets, const Array& out, int64_t ignored) {
    for_indices("row_share", targets, [&](auto* target, int64_t count) {
        int64_t used = 0;
        for (int64_t i = 0; i < count; i++) used += target[i] != ignored;
        double share =
            used > 0 ? 1.0 / static_cast<double>(used) : std::numeric_limits<double>::quiet_NaN();
        if (out.dtype == DType::f64)
            out.ptr<double>()[0] = share;
        else if (out.dtype == DType::f32)
            out.ptr<float>()[0] = static_cast<float>(share);
        else
            unsupported("row_share", out.dtype, "float32 and float64");
    });
}

}  // namespace mg
