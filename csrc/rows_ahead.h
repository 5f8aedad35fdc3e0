// Rows that are needed next, to be read or written, asked for a few lines with every block of a
// product, so that they come from an outer cache meanwhile. All at once would keep the product
// waiting as long as not asking.
#pragma once

#include "attention.h"

namespace mg {

class RowsAhead {
  public:
    // n rows; what is added last is asked for first.
    template <class T>
    void add(const T* x, int64_t row, int64_t n, int64_t dim) {
        constexpr auto kSize = static_cast<int64_t>(sizeof(T));
        if (n > 0 && dim > 0 && n_parts_ < kMostParts)
            parts_[n_parts_++] = {reinterpret_cast<const char*>(x), row * kSize, n, dim * kSize};
    }
    // n rows of T with every so many products of tiles (of up to `dim` columns).
    template <class T>
    void set_pace(int64_t n, int64_t products, int64_t dim) {
        int64_t lines = n * ((dim * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine);
        int64_t blocks = (kKeys + kMR - 1) / kMR * ((std::min(dim, kQueries) + kNR - 1) / kNR);
        pace_ = lines / std::max<int64_t>(1, products * blocks) + 1;
    }
    MG_INLINE void some() {
        if (n_parts_ > 0) lines();
    }

  private:
    static constexpr int64_t kLine = 64, kMostParts = 16;
    struct Part {
        const char* p;
        int64_t row, n, bytes;
    };
    __attribute__((noinline)) void lines() {
        Part& x = parts_[n_parts_ - 1];
        for (int64_t asked = 0; asked < pace_ && x.n > 0; x.n--, x.p += x.row)
            for (int64_t i = 0; i < x.bytes; i += kLine, asked++) __builtin_prefetch(x.p + i, 0, 2);
        if (x.n == 0) n_parts_--;
    }
    Part parts_[kMostParts];
    int64_t n_parts_ = 0, pace_ = 1;
};

}  // namespace mg
