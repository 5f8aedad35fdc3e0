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

void cross_entropy_bwd(const Array& g, const Array& logits, const Array& targets, const Array& lse,
                       const Array& dlogits, int64_t ignore_index, double label_smoothing) {
    check("cross_entropy_bwd", logits, targets);
    check_rows("cross_entropy_bwd", dlogits, logits);
    int64_t n = logits.shape[1];
    for_float_dtype("cross_entropy_bwd", logits.dtype, [&](auto type) {
        using T = decltype(type);
        using V = typename Lanes<T>::V;
        using S = typename Lanes<T>::S;
        if (g.ndim != 1 || g.dtype != Lanes<T>::statistics)
            unsupported("cross_entropy_bwd", g.dtype, "a gradient a row, in the loss's dtype");
        parallel_chunks(logits.shape[0], rows_per_task(n), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r++) {
                const T* x = row<T>(logits, r);
                T* dx = row<T>(dlogits, r);
                int64_t target = target_of(targets, r);
                S weight = target == ignore_index ? S(0) : g.ptr<S>()[r * g.strides[0]];
                S even = static_cast<S>(label_smoothing) / static_cast<S>(n);
                V shift = splat<V>(lse.ptr<S>()[r]), w = splat<V>(weight), share = splat<V>(even);
                if (weight == S(0)) {
                    for_lanes<T>(n, [&](int64_t i, auto tail) { store(dx + i, V{}, tail); });
                    continue;
                }
                S p = std::exp(value_at(x + target) - lse.ptr<S>()[r]);  // dx may be x
                for_lanes<T>(n, [&](int64_t i, auto tail) {
                    store(dx + i, (exp(V(load(x + i, tail)) - shift) - share) * w, tail);
                });
                S own = (p - even - (S(1) - static_cast<S>(label_smoothing))) * weight;
                if constexpr (std::is_same_v<T, bf16>) {
                    dx[target] = to_bf16(own);
                } else if constexpr (std::is_same_v<T, f16>) {
                    dx[target] = to_f16(own);
                } else {
                    dx[target] = own;
                }
            }
        });
    });
}

}  // namespace mg
