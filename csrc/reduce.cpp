// Reductions over any set of axes. The output has the input's rank, with 1 on the reduced axes.
// Long sums are split at boundaries taken from the shape alone and partial results added in order,
// in double for the floating types, so they are accurate and the same bits at any thread count.
#include <limits>

#include "strided.h"

namespace mg {
namespace {

struct Sum {
    static constexpr double identity = 0;
    template <class V>
    static MG_INLINE V combine(V a, V b) {
        return a + b;
    }
};
struct Prod {
    static constexpr double identity = 1;
    template <class V>
    static MG_INLINE V combine(V a, V b) {
        return a * b;
    }
};
struct Max {
    static constexpr double identity = -std::numeric_limits<double>::infinity();
    template <class V>
    static MG_INLINE V combine(V a, V b) {
        return maximum(a, b);
    }
};
struct Min {
    static constexpr double identity = std::numeric_limits<double>::infinity();
    template <class V>
    static MG_INLINE V combine(V a, V b) {
        return minimum(a, b);
    }
};

template <class Op, class C>
C identity() {
    if constexpr (std::is_same_v<C, int64_t>) {
        if (Op::identity > 2) return INT64_MAX;
        if (Op::identity < -2) return INT64_MIN;
    }
    return static_cast<C>(Op::identity);
}

// The axes of x, kept and reduced apart, in memory order within each (steps in bytes).
struct Axes {
    int kept_ndim = 0, reduced_ndim = 0;
    int64_t kept_shape[kMaxDims], kept_step[kMaxDims], out_step[kMaxDims];
    int64_t reduced_shape[kMaxDims], reduced_step[kMaxDims];
    int64_t n_kept = 1, n_reduced = 1;

    Axes(const char* kernel, const Array& x, const Array& out) {
        if (x.ndim != out.ndim)
            throw std::invalid_argument(std::string(kernel) +
                                        ": output rank must equal the input's");
        int64_t size = itemsize(x.dtype);
        for (int d = 0; d < x.ndim; d++) {
            if (x.shape[d] == 1) continue;
            if (out.shape[d] == 1) {
                append(reduced_ndim, reduced_shape, reduced_step, nullptr, x.shape[d],
                       x.strides[d] * size, 0);
                n_reduced *= x.shape[d];
            } else {
                append(kept_ndim, kept_shape, kept_step, out_step, x.shape[d], x.strides[d] * size,
                       out.strides[d] * itemsize(out.dtype));
                n_kept *= x.shape[d];
            }
        }
    }

    static int64_t offset(int64_t index, int ndim, const int64_t* shape, const int64_t* step) {
        int64_t bytes = 0;
        for (int d = ndim - 1; d >= 0; d--) {
            bytes += index % shape[d] * step[d];
            index /= shape[d];
        }
        return bytes;
    }
    int64_t kept_offset(int64_t i) const { return offset(i, kept_ndim, kept_shape, kept_step); }
    int64_t out_offset(int64_t i) const { return offset(i, kept_ndim, kept_shape, out_step); }
    int64_t reduced_offset(int64_t i) const {
        return offset(i, reduced_ndim, reduced_shape, reduced_step);
    }
    int64_t inner_kept_step() const { return kept_ndim ? kept_step[kept_ndim - 1] : 0; }
    int64_t inner_reduced_step() const { return reduced_ndim ? reduced_step[reduced_ndim - 1] : 0; }

  private:
    static void append(int& ndim, int64_t* shape, int64_t* step, int64_t* other, int64_t length,
                       int64_t new_step, int64_t new_other) {
        bool joins = ndim > 0 && step[ndim - 1] == new_step * length &&
                     (other == nullptr || other[ndim - 1] == new_other * length);
        if (joins) {
            shape[ndim - 1] *= length;
        } else {
            shape[ndim++] = length;
        }
        step[ndim - 1] = new_step;
        if (other) other[ndim - 1] = new_other;
    }
};

// What partial results are kept in.
template <class C>
using Wide = std::conditional_t<std::is_same_v<C, float>, double, C>;

template <class Op>
float reduce_tile(const float* x, int64_t n) {
    vf lanes[4];
    for (auto& lane : lanes) lane = broadcast(identity<Op, float>());
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
        for (int j = 0; j < 4; j++) lanes[j] = Op::combine(lanes[j], load(x + i + j * VL));
    float rest = identity<Op, float>();
    for (; i < n; i++) rest = Op::combine(rest, x[i]);
    vf v = Op::combine(Op::combine(lanes[0], lanes[1]), Op::combine(lanes[2], lanes[3]));
    for (int j = 0; j < VL; j++) rest = Op::combine(rest, static_cast<float>(v[j]));
    return rest;
}
template <class Op, class C>
C reduce_tile(const C* x, int64_t n) {
    C result = identity<Op, C>();
    for (int64_t i = 0; i < n; i++) result = Op::combine(result, x[i]);
    return result;
}

// The reduced elements [begin, end) of one kept element, in runs along the innermost reduced axis.
template <class Op, class C>
Wide<C> reduce_run(const Array& x, const Axes& axes, const char* base, int64_t begin, int64_t end) {
    alignas(64) C tile[kTile];
    auto result = identity<Op, Wide<C>>();
    int64_t inner = axes.reduced_ndim ? axes.reduced_shape[axes.reduced_ndim - 1] : 1;
    int64_t step = axes.inner_reduced_step();
    while (begin < end) {
        int64_t n = std::min({kTile, end - begin, inner - begin % inner});
        const C* values = load_tile(x.dtype, base + axes.reduced_offset(begin), step, n, tile);
        result = Op::combine(result, static_cast<Wide<C>>(reduce_tile<Op>(values, n)));
        begin += n;
    }
    return result;
}

MG_INLINE void store_one(const Array& out, int64_t byte_offset, double value) {
    store_strided(out.dtype, out.data + byte_offset, 0, 1, &value);
}
MG_INLINE void store_one(const Array& out, int64_t byte_offset, int64_t value) {
    store_strided(out.dtype, out.data + byte_offset, 0, 1, &value);
}

// The innermost axis is reduced: each kept element is a run (or several, when runs are long).
template <class Op, class C>
void reduce_rows(const Array& x, const Array& out, const Axes& axes) {
    constexpr int64_t kRun = 2 * kTaskElements;
    int64_t runs = std::max<int64_t>(1, (axes.n_reduced + kRun - 1) / kRun);
    Scratch<Wide<C>> partial(runs > 1 ? axes.n_kept * runs : 1);
    parallel_chunks(axes.n_kept * runs, rows_per_task(std::min(axes.n_reduced, kRun)),
                    [&](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; i++) {
                            int64_t kept = i / runs, first = i % runs * kRun;
                            Wide<C> r =
                                reduce_run<Op, C>(x, axes, x.data + axes.kept_offset(kept), first,
                                                  std::min(axes.n_reduced, first + kRun));
                            if (runs > 1) {
                                partial[i] = r;
                            } else {
                                store_one(out, axes.out_offset(kept), r);
                            }
                        }
                    });
    if (runs == 1) return;
    for (int64_t kept = 0; kept < axes.n_kept; kept++) {
        Wide<C> r = partial[kept * runs];
        for (int64_t i = 1; i < runs; i++) r = Op::combine(r, partial[kept * runs + i]);
        store_one(out, axes.out_offset(kept), r);
    }
}

// The innermost axis is kept: rows of kept elements are combined with each other. A block of kRows
// rows is summed in C, blocks are added in order in Wide<C>.
template <class Op, class C>
void reduce_columns(const Array& x, const Array& out, const Axes& axes) {
    constexpr int64_t kRows = 64;
    int64_t inner = axes.kept_shape[axes.kept_ndim - 1], step = axes.inner_kept_step();
    int64_t tiles = (inner + kTile - 1) / kTile, outer = axes.n_kept / inner;
    int64_t blocks = (axes.n_reduced + kRows - 1) / kRows;
    int64_t group =
        std::max<int64_t>(1, (blocks + 31) / 32);  // blocks a task sums: at most 32 groups
    int64_t groups = (blocks + group - 1) / group;
    Scratch<Wide<C>> partial(groups * axes.n_kept + 1);
    parallel_for(outer * tiles * groups, [&](int64_t task) {
        int64_t g = task % groups, tile_index = task / groups % tiles, row = task / groups / tiles;
        int64_t first = tile_index * kTile, n = std::min(kTile, inner - first);
        const char* base = x.data + axes.kept_offset(row * inner) + first * step;
        Wide<C>* total = partial.get() + g * axes.n_kept + row * inner + first;
        for (int64_t i = 0; i < n; i++) total[i] = identity<Op, Wide<C>>();
        alignas(64) C tile[kTile], sum[kTile];
        for (int64_t b = g * group; b < std::min(blocks, (g + 1) * group); b++) {
            for (int64_t i = 0; i < n; i++) sum[i] = identity<Op, C>();
            for (int64_t r = b * kRows; r < std::min(axes.n_reduced, (b + 1) * kRows); r++) {
                const C* values = load_tile(x.dtype, base + axes.reduced_offset(r), step, n, tile);
                for (int64_t i = 0; i < n; i++) sum[i] = Op::combine(sum[i], values[i]);
            }
            for (int64_t i = 0; i < n; i++)
                total[i] = Op::combine(total[i], static_cast<Wide<C>>(sum[i]));
        }
    });
    parallel_chunks(axes.n_kept, rows_per_task(groups), [&](int64_t begin, int64_t end) {
        Wide<C> result[kTile];
        for (int64_t i = begin, n; i < end; i += n) {
            n = std::min({kTile, end - i, inner - i % inner});
            std::copy_n(partial.get() + i, n, result);
            for (int64_t g = 1; g < groups; g++) {
                const Wide<C>* more = partial.get() + g * axes.n_kept + i;
                for (int64_t j = 0; j < n; j++) result[j] = Op::combine(result[j], more[j]);
            }
            store_strided(out.dtype, out.data + axes.out_offset(i),
                          axes.out_step[axes.kept_ndim - 1], n, result);
        }
    });
}

template <class Op>
void reduce(const char* kernel, const Array& x, const Array& out) {
    Axes axes(kernel, x, out);
    if (axes.n_kept == 0) return;
    for_compute_type(x.dtype, [&](auto type) {
        using C = decltype(type);
        bool columns = axes.kept_ndim > 0 && axes.reduced_ndim > 0 && axes.n_reduced > 0 &&
                       std::abs(axes.inner_kept_step()) < std::abs(axes.inner_reduced_step());
        if (columns) {
            reduce_columns<Op, C>(x, out, axes);
        } else {
            reduce_rows<Op, C>(x, out, axes);
        }
    });
}

// The other axes of x as kept ones, by giving `axis` a length of 1 in the shape of the output.
Axes lines_along(const char* kernel, const Array& x, const Array& out, int64_t axis) {
    Array kept = out;
    kept.ndim = x.ndim;
    for (int d = 0, from = 0; d < x.ndim; d++) {
        bool along = d == axis;
        bool has = out.ndim == x.ndim || !along;
        kept.shape[d] = along ? 1 : out.shape[from];
        kept.strides[d] = along ? 0 : out.strides[from];
        from += has;
    }
    return Axes(kernel, x, kept);
}

// The first extreme along an axis; a NaN counts as the extreme, as in NumPy.
template <class Better>
void arg_extreme(const char* kernel, const Array& x, const Array& out, int64_t axis,
                 Better better) {
    Axes axes = lines_along(kernel, x, out, axis);
    int64_t n = x.shape[axis], step = x.strides[axis] * itemsize(x.dtype);
    for_compute_type(x.dtype, [&](auto type) {
        using C = decltype(type);
        parallel_chunks(axes.n_kept, rows_per_task(n), [&](int64_t begin, int64_t end) {
            alignas(64) C tile[kTile];
            for (int64_t i = begin; i < end; i++) {
                const char* base = x.data + axes.kept_offset(i);
                int64_t best = 0;
                C extreme{};
                for (int64_t first = 0; first < n; first += kTile) {
                    int64_t count = std::min(kTile, n - first);
                    const C* values = load_tile(x.dtype, base + first * step, step, count, tile);
                    for (int64_t j = 0; j < count; j++) {
                        bool wins = first + j == 0 || better(values[j], extreme) ||
                                    (values[j] != values[j] && extreme == extreme);
                        if (wins && !(first + j > 0 && extreme != extreme)) {
                            extreme = values[j];
                            best = first + j;
                        }
                    }
                }
                store_one(out, axes.out_offset(i), best);
            }
        });
    });
}

}  // namespace

void sum(const Array& x, const Array& out) { reduce<Sum>("sum", x, out); }
void prod(const Array& x, const Array& out) { reduce<Prod>("prod", x, out); }
void max(const Array& x, const Array& out) { reduce<Max>("max", x, out); }
void min(const Array& x, const Array& out) { reduce<Min>("min", x, out); }

// x with `axis` taken away is the shape of out (int64).
void argmax(const Array& x, const Array& out, int64_t axis) {
    arg_extreme("argmax", x, out, axis, [](auto a, auto b) { return a > b; });
}
void argmin(const Array& x, const Array& out, int64_t axis) {
    arg_extreme("argmin", x, out, axis, [](auto a, auto b) { return a < b; });
}

void cumsum(const Array& x, const Array& out, int64_t axis) {
    Axes axes = lines_along("cumsum", x, out, axis);
    int64_t n = x.shape[axis], step = x.strides[axis] * itemsize(x.dtype);
    int64_t out_step = out.strides[axis] * itemsize(out.dtype);
    for_compute_type(x.dtype, [&](auto type) {
        using C = decltype(type);
        parallel_chunks(axes.n_kept, rows_per_task(n), [&](int64_t begin, int64_t end) {
            alignas(64) C tile[kTile];
            alignas(64) Wide<C> sums[kTile];
            for (int64_t i = begin; i < end; i++) {
                const char* from = x.data + axes.kept_offset(i);
                char* to = out.data + axes.out_offset(i);
                Wide<C> total = 0;
                for (int64_t first = 0; first < n; first += kTile) {
                    int64_t count = std::min(kTile, n - first);
                    const C* values = load_tile(x.dtype, from + first * step, step, count, tile);
                    for (int64_t j = 0; j < count; j++)
                        sums[j] = total += static_cast<Wide<C>>(values[j]);
                    store_strided(out.dtype, to + first * out_step, out_step, count, sums);
                }
            }
        });
    });
}

}  // namespace mg
