// What is asked of integer indices and targets before and beside the kernels that use them.
#include "indices.h"

#include <limits>

namespace mg {

// Throws std::out_of_range for the first index outside of [0, n) (which is not the ignored one).
void check_range(const Array& indices, int64_t n, bool has_ignored, int64_t ignored) {
    int64_t count = indices.size();
    for_indices("check_range", indices, [&](auto* index) {
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
    for_indices("row_share", targets, [&](auto* target) {
        int64_t used = 0, count = targets.size();
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
