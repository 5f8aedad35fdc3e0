// Layer norm (Ba et al. 2016) and RMS norm (Zhang and Sennrich 2019) of rows (n_rows, n_cols),
// optionally of x + residual, which is then written, too.
//
// In mixed precision an update x and the result are bfloat16 beside float32 rows: converted as they
// are read and written, and so are their gradients.
//
// Variance in two passes with the mean corrected by the mean of what is left: E[x²] - E[x]² would
// lose everything when the mean is large. The saved mean is rounded, so backward corrects it the
// same way.
#include "rows.h"

namespace mg {
namespace {

// The row that is normalised: x, or x + residual rounded to T and kept in summed.
template <class T>
const T* summed_row(const Array& x, const Array& residual, const Array& summed, int64_t r) {
    if (!residual) return row<T>(x, r);
    const T* rr = row<T>(residual, r);
    T* out = row<T>(summed, r);
    for_row_type<T>(x, [&](auto type) {
        const auto* xr = row<decltype(type)>(x, r);
        for_lanes<T>(x.shape[1], [&](int64_t i, auto tail) {
            store(out + i, load(xr + i, tail) + load(rr + i, tail), tail);
        });
    });
    return out;
}

// normed * weight + bias, each optional
template <class T, class V, class Tail>
MG_INLINE V affine(V normed, const T* weight, const T* bias, int64_t i, Tail tail) {
    if (weight) normed = normed * load(weight + i, tail);
    return bias ? normed + load(bias + i, tail) : normed;
}

template <class T, class Out>
void layer_norm_row(const T* x, const T* weight, const T* bias, Out* out, int64_t n, double eps,
                    typename Lanes<T>::S& mean, typename Lanes<T>::S& rstd, bool past,
                    const std::array<NextRow, 2>& ahead) {
    using V = typename Lanes<T>::V;
    using S = typename Lanes<T>::S;
    S count = static_cast<S>(n);
    S centre = sum_row<T>(n, [&](int64_t i, auto tail) { return load(x + i, tail); }) / count;
    V c = splat<V>(centre);
    // left: Σ (x - centre), what rounding the mean left over
    auto [left, squares] = sum_rows<T, 2>(n, [&](int64_t i, auto tail) {
        V d = keep_first(load(x + i, tail) - c, tail, 0.0);
        return std::array<V, 2>{d, d * d};
    });
    S shift = left / count;
    S variance = std::max(squares / count - shift * shift, S(0));
    S scale = S(1) / std::sqrt(variance + static_cast<S>(eps));
    V s = splat<V>(shift), k = splat<V>(scale);
    for_lanes<T>(n, past, [&](int64_t i, auto tail) {
        for (const NextRow& next : ahead) ask(next, i);
        V normed = ((load(x + i, tail) - c) - s) * k;
        store(out + i, affine(normed, weight, bias, i, tail), tail);
    });
    mean = centre + shift;
    rstd = scale;
}

template <class T, class Out>
void rms_norm_row(const T* x, const T* weight, Out* out, int64_t n, double eps,
                  typename Lanes<T>::S& rstd, bool past, const std::array<NextRow, 2>& ahead) {
    using V = typename Lanes<T>::V;
    using S = typename Lanes<T>::S;
    S squares = sum_row<T>(n, [&](int64_t i, auto tail) {
        V v = load(x + i, tail);
        return v * v;
    });
    rstd = S(1) / std::sqrt(squares / static_cast<S>(n) + static_cast<S>(eps));
    V k = splat<V>(rstd);
    for_lanes<T>(n, past, [&](int64_t i, auto tail) {
        for (const NextRow& next : ahead) ask(next, i);
        store(out + i,
              affine(V(load(x + i, tail)) * k, weight, static_cast<const T*>(nullptr), i, tail),
              tail);
    });
}

// One row of the gradient: dx (if wanted, also as bfloat16), and g·normed and g added to the column
// sums (if wanted).
template <bool kCentred, class T, class G>
void norm_bwd_row(const G* g, const T* g_summed, const T* x, const T* weight,
                  typename Lanes<T>::S mean, typename Lanes<T>::S rstd, T* dx, bf16* dx_update,
                  typename Lanes<T>::S* dweight, typename Lanes<T>::S* dbias, int64_t n, bool past,
                  const std::array<NextRow, 3>& ahead) {
    using V = typename Lanes<T>::V;
    using S = typename Lanes<T>::S;
    const T* none = nullptr;
    V c = splat<V>(kCentred ? mean : S(0)), k = splat<V>(rstd);
    S count = static_cast<S>(n);
    V shift{}, mean_g{}, mean_gx{};
    if constexpr (kCentred) {
        shift = splat<V>(
            sum_row<T>(n, [&](int64_t i,
                              auto tail) { return keep_first(load(x + i, tail) - c, tail, 0.0); }) /
            count);
    }
    auto normed = [&](int64_t i, auto tail) { return ((load(x + i, tail) - c) - shift) * k; };
    if (dx || dx_update) {
        auto [sum_g, sum_gx] = sum_rows<T, 2>(n, [&](int64_t i, auto tail) {
            V scaled = affine(V(load(g + i, tail)), weight, none, i, tail);
            return std::array<V, 2>{scaled, scaled * normed(i, tail)};
        });
        mean_g = splat<V>(kCentred ? sum_g / count : S(0)), mean_gx = splat<V>(sum_gx / count);
    }
    for_lanes<T>(n, past, [&](int64_t i, auto tail) {
        for (const NextRow& next : ahead) ask(next, i);
        V grad = load(g + i, tail), hat = normed(i, tail);
        if (dx || dx_update) {
            V d = (affine(grad, weight, none, i, tail) - mean_g - hat * mean_gx) * k;
            if (g_summed) d = d + load(g_summed + i, tail);
            if (dx) store(dx + i, d, tail);
            if constexpr (std::is_same_v<V, vf>)
                if (dx_update) store(dx_update + i, d, kept(tail));
        }
        V weight_sum{}, bias_sum{};  // read before either is written, which may be 4 KB behind
        if (dweight) weight_sum = load(dweight + i, tail);
        if (dbias) bias_sum = load(dbias + i, tail);
        if (dweight) store(dweight + i, weight_sum + grad * hat, kept(tail));
        if (dbias) store(dbias + i, bias_sum + grad, kept(tail));
    });
}

// Elements between rows of sums: where rows are a multiple of 4 KB long, as widths that are powers
// of two make them, they would share sets of the first cache.
constexpr int64_t kApart = 272;

template <bool kCentred>
void norm_bwd(const char* kernel, const Array& g, const Array& g_summed, const Array& x,
              const Array& weight, const Array& mean, const Array& rstd, const Array& dx,
              const Array& dx_update, const Array& dweight, const Array& dbias) {
    for (const Array* a : {&g_summed, &x, &dx}) check_rows(kernel, *a, x);
    for (const Array* a : {&g, &dx_update}) check_rows(kernel, *a, x, true);
    if (dx_update && dx_update.dtype != DType::bf16)
        unsupported(kernel, dx_update.dtype, "bfloat16 as the gradient of an update");
    int64_t n_rows = x.shape[0], n_cols = x.shape[1];
    for (const Array* v : {&weight, &dweight, &dbias}) check_vector(kernel, *v, n_cols, x.dtype);
    int64_t rows = block_rows(n_rows, n_cols), blocks = n_rows ? (n_rows + rows - 1) / rows : 0;
    for_float_dtype(kernel, x.dtype, [&](auto type) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        check_vector(kernel, mean, n_rows, Lanes<T>::statistics);
        check_vector(kernel, rstd, n_rows, Lanes<T>::statistics);
        bool sums = dweight || dbias, past = streamed_rows(g, dx);
        int64_t step = n_cols + kApart;
        Scratch<S> partial(sums ? 2 * blocks * step + 1 : 1);
        parallel_for(blocks, [&](int64_t block) {
            S* weight_sums = dweight ? partial.get() + 2 * block * step : nullptr;
            S* bias_sums = dbias ? partial.get() + (2 * block + 1) * step : nullptr;
            if (weight_sums) std::fill_n(weight_sums, n_cols, S(0));
            if (bias_sums) std::fill_n(bias_sums, n_cols, S(0));
            for (int64_t r = block * rows; r < std::min(n_rows, (block + 1) * rows); r++)
                for_row_type<T>(g, [&](auto g_type) {
                    norm_bwd_row<kCentred>(
                        row<decltype(g_type)>(g, r), row<T>(g_summed, r), row<T>(x, r),
                        weight.ptr<T>(), kCentred ? mean.ptr<S>()[r] : S(0), rstd.ptr<S>()[r],
                        row<T>(dx, r), row<bf16>(dx_update, r), weight_sums, bias_sums, n_cols,
                        past,
                        {next_row(g, r, past), next_row(g_summed, r, past), next_row(x, r, past)});
                });
            if (past) streams_done();
        });
        if (dweight) add_blocks(partial.get(), blocks, 2 * step, n_cols, dweight.ptr<T>());
        if (dbias) add_blocks(partial.get() + step, blocks, 2 * step, n_cols, dbias.ptr<T>());
    });
}

// Checks rows of a forward pass; those that are normalised, whose dtype it computes in.
const Array& checked_rows(const char* kernel, const Array& x, const Array& residual,
                          const Array& out, const Array& summed) {
    const Array& whole = summed ? summed : x;
    for (const Array* a : {&x, &out}) check_rows(kernel, *a, whole, true);
    check_rows(kernel, residual, whole);
    return whole;
}

}  // namespace

void layer_norm_fwd(const Array& x, const Array& residual, const Array& weight, const Array& bias,
                    const Array& out, const Array& summed, const Array& mean, const Array& rstd,
                    double eps) {
    const char* kernel = "layer_norm_fwd";
    const Array& whole = checked_rows(kernel, x, residual, out, summed);
    int64_t n_cols = x.shape[1];
    for (const Array* v : {&weight, &bias}) check_vector(kernel, *v, n_cols, whole.dtype);
    if (n_cols == 0) return;
    for_float_dtype(kernel, whole.dtype, [&](auto type) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        check_vector(kernel, mean, x.shape[0], Lanes<T>::statistics);
        check_vector(kernel, rstd, x.shape[0], Lanes<T>::statistics);
        for_row_chunks(x, out, [&](int64_t begin, int64_t end, bool past) {
            for (int64_t r = begin; r < end; r++)
                for_row_type<T>(out, [&](auto out_type) {
                    layer_norm_row(summed_row<T>(x, residual, summed, r), weight.ptr<T>(),
                                   bias.ptr<T>(), row<decltype(out_type)>(out, r), n_cols, eps,
                                   mean.ptr<S>()[r], rstd.ptr<S>()[r], past,
                                   {next_row(x, r, past), next_row(residual, r, past)});
                });
        });
    });
}

// g_summed: the gradient that reached x + residual by other ways, added to dx. x: the row that was
// normalised. dx_update: dx once more in bfloat16, for an update of that.
void layer_norm_bwd(const Array& g, const Array& g_summed, const Array& x, const Array& weight,
                    const Array& mean, const Array& rstd, const Array& dx, const Array& dx_update,
                    const Array& dweight, const Array& dbias) {
    norm_bwd<true>("layer_norm_bwd", g, g_summed, x, weight, mean, rstd, dx, dx_update, dweight,
                   dbias);
}

void rms_norm_fwd(const Array& x, const Array& residual, const Array& weight, const Array& out,
                  const Array& summed, const Array& rstd, double eps) {
    const char* kernel = "rms_norm_fwd";
    const Array& whole = checked_rows(kernel, x, residual, out, summed);
    int64_t n_cols = x.shape[1];
    check_vector(kernel, weight, n_cols, whole.dtype);
    if (n_cols == 0) return;
    for_float_dtype(kernel, whole.dtype, [&](auto type) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        check_vector(kernel, rstd, x.shape[0], Lanes<T>::statistics);
        for_row_chunks(x, out, [&](int64_t begin, int64_t end, bool past) {
            for (int64_t r = begin; r < end; r++)
                for_row_type<T>(out, [&](auto out_type) {
                    rms_norm_row(summed_row<T>(x, residual, summed, r), weight.ptr<T>(),
                                 row<decltype(out_type)>(out, r), n_cols, eps, rstd.ptr<S>()[r],
                                 past, {next_row(x, r, past), next_row(residual, r, past)});
                });
        });
    });
}

void rms_norm_bwd(const Array& g, const Array& g_summed, const Array& x, const Array& weight,
                  const Array& rstd, const Array& dx, const Array& dx_update,
                  const Array& dweight) {
    norm_bwd<false>("rms_norm_bwd", g, g_summed, x, weight, Array(), rstd, dx, dx_update, dweight,
                    Array());
}

}  // namespace mg
