// Cross-entropy of logits (n_rows, n_classes) and targets (n_rows,) int64 or int32:
//   loss = (1 - s) (lse - x[t]) + s (lse - mean x),   s the label smoothing; 0 for ignored targets
//   dx = g (softmax(x) - (1 - s) [t] - s / n_classes)
// The caller has checked that targets are in range.
#include "rows.h"

namespace mg {
namespace {

MG_INLINE int64_t target_of(const Array& targets, int64_t r) {
    int64_t at = r * targets.strides[0];
    return targets.dtype == DType::i64 ? targets.ptr<int64_t>()[at] : targets.ptr<int32_t>()[at];
}

void check(const char* kernel, const Array& logits, const Array& targets) {
    check_rows(kernel, logits, logits);
    if (targets.dtype != DType::i64 && targets.dtype != DType::i32)
        unsupported(kernel, targets.dtype, "targets of int64 and int32");
    if (targets.ndim != 1 || targets.shape[0] != logits.shape[0])
        throw std::invalid_argument(std::string(kernel) + ": expected one target a row");
}

// The gradient of a row whose loss counts g.
template <class T, class S>
void bwd_row(const T* x, int64_t n, int64_t target, S g, S lse, S label_smoothing, T* dx) {
    using V = typename Lanes<T>::V;
    if (g == S(0)) {
        for_lanes<T>(n, [&](int64_t i, auto tail) { store(dx + i, V{}, tail); });
        return;
    }
    S even = label_smoothing / static_cast<S>(n);
    S p = std::exp(value_at(x + target) - lse);  // dx may be x
    V shift = splat<V>(lse), w = splat<V>(g), share = splat<V>(even);
    for_lanes<T>(n, [&](int64_t i, auto tail) {
        store(dx + i, (exp(V(load(x + i, tail)) - shift) - share) * w, tail);
    });
    set_value(dx + target, (p - even - (S(1) - label_smoothing)) * g);
}

}  // namespace

void cross_entropy_fwd(const Array& logits, const Array& targets, const Array& loss,
                       const Array& lse, int64_t ignore_index, double label_smoothing) {
    check("cross_entropy_fwd", logits, targets);
    int64_t n = logits.shape[1];
    for_float_dtype("cross_entropy_fwd", logits.dtype, [&](auto type) {
        using T = decltype(type);
        using V = typename Lanes<T>::V;
        using S = typename Lanes<T>::S;
        for (const Array* v : {&loss, &lse})
            check_vector("cross_entropy_fwd", *v, logits.shape[0], Lanes<T>::statistics);
        parallel_chunks(logits.shape[0], rows_per_task(n), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r++) {
                const T* x = row<T>(logits, r);
                S top = max_row(x, n);
                V shift = splat<V>(top);
                S sum = sum_row<T>(n, [&](int64_t i, auto tail) {
                    return keep_first(exp_nonpositive(load(x + i, tail) - shift), tail, 0.0);
                });
                S total = top + std::log(sum);
                lse.ptr<S>()[r] = total;
                int64_t target = target_of(targets, r);
                S value = 0;
                if (target != ignore_index) {
                    // Through the maximum, which cancels: total may be large where the loss is not.
                    value = (top - value_at(x + target)) + std::log(sum);
                    if (label_smoothing > 0) {
                        S spread =
                            sum_row<T>(n,
                                       [&](int64_t i, auto tail) {
                                           return keep_first(shift - load(x + i, tail), tail, 0.0);
                                       }) /
                                static_cast<S>(n) +
                            std::log(sum);
                        S s = static_cast<S>(label_smoothing);
                        value = (S(1) - s) * value + s * spread;
                    }
                }
                loss.ptr<S>()[r] = value;
            }
        });
    });
}

// dlogits may be logits itself.
void cross_entropy_bwd(const Array& g, const Array& logits, const Array& targets, const Array& lse,
                       const Array& dlogits, int64_t ignore_index, double label_smoothing) {
    check("cross_entropy_bwd", logits, targets);
    check_rows("cross_entropy_bwd", dlogits, logits);
    int64_t n = logits.shape[1];
    for_float_dtype("cross_entropy_bwd", logits.dtype, [&](auto type) {
        using T = decltype(type);
        using S = typename Lanes<T>::S;
        if (g.ndim != 1 || g.dtype != Lanes<T>::statistics)
            unsupported("cross_entropy_bwd", g.dtype, "a gradient a row, in the loss's dtype");
        S smoothing = static_cast<S>(label_smoothing);
        parallel_chunks(logits.shape[0], rows_per_task(n), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r++) {
                int64_t target = target_of(targets, r);
                S counts = target == ignore_index ? S(0) : g.ptr<S>()[r * g.strides[0]];
                bwd_row(row<T>(logits, r), n, target, counts, lse.ptr<S>()[r], smoothing,
                        row<T>(dlogits, r));
            }
        });
    });
}

}  // namespace mg
