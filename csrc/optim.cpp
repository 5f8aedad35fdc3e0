// Optimizer steps over many tensors in one launch, the sum of squares that gradient clipping needs,
// and scaling. Parameters, gradients and moments are contiguous float32 (or float64) arrays of
// equal sizes, list by list.
//
// `packed` is empty, or has two entries a parameter: the bfloat16 panels (matmul_bf16.h) of its
// transpose and of itself, None where there is no copy. They are rewritten from the new values
// while those are in cache.
//
// hyper is a float64 array read when the kernel runs, so that a recorded step can be replayed with
// new values:
//   [0] learning rate   [1] weight decay   [2] 1: decay apart from the gradient (AdamW); 0: added
//   to it [3] gradient scale (clipping)   [4] eps   [5] momentum, or β1   [6] β2, or the decay of
//   squares (RMSprop) [7] bias correction of the first moment   [8] of the second   [9] 1: Nesterov
//   [10] dampening [11] Nadam: what the gradient itself contributes to the step (0 elsewhere)
#include "tensor_lists.h"

namespace mg {
namespace {

enum Hyper {
    kRate,
    kDecay,
    kApart,
    kScale,
    kEps,
    kBeta1,
    kBeta2,
    kCorrect1,
    kCorrect2,
    kNesterov,
    kDampening,
    kOwn,
    kHypers
};

void check_lists(const char* kernel, List params,
                 std::initializer_list<const std::vector<Array>*> lists, const Array& hyper) {
    if (hyper.dtype != DType::f64 || hyper.ndim != 1 || hyper.shape[0] != kHypers)
        throw std::invalid_argument(std::string(kernel) + ": expected 12 float64 hyperparameters");
    for (const auto* list : lists) {
        if (list->size() != params.size())
            throw std::invalid_argument(std::string(kernel) + ": lists of different lengths");
        for (size_t t = 0; t < params.size(); t++)
            if ((*list)[t].dtype != params[t].dtype || (*list)[t].size() != params[t].size() ||
                !(*list)[t].contiguous())
                throw std::invalid_argument(std::string(kernel) +
                                            ": a gradient or moment does not match its parameter");
    }
}

void check_float(const char* kernel, List params) {
    for (const Array& p : params)
        if (p.dtype != DType::f32 && p.dtype != DType::f64)
            unsupported(kernel, p.dtype, "float32 and float64");
}

// What every update starts from.
template <class V>
struct Common {
    explicit Common(const double* h)
        : scale(splat<V>(h[kScale])),
          decay(splat<V>(h[kDecay])),
          kept(splat<V>(1 - h[kRate] * h[kDecay])),
          eps(splat<V>(h[kEps])),
          minus_rate(splat<V>(-h[kRate])),
          apart(h[kApart] != 0) {}

    // The gradient, scaled, with the decay added where it belongs to it.
    template <class T, class Tail>
    MG_INLINE V gradient(const T* p, const T* g, Tail tail) const {
        V v = load(g, tail) * scale;
        return apart ? v : fma(decay, V(load(p, tail)), v);
    }
    // The parameter, shrunk where the decay stands apart.
    template <class T, class Tail>
    MG_INLINE V shrunk(const T* p, Tail tail) const {
        V v = load(p, tail);
        return apart ? v * kept : v;
    }

    V scale, decay, kept, eps, minus_rate;
    bool apart;
};

}  // namespace

// out[0] = Σ x², in double, added up in the order of the arrays.
void sum_squares(List arrays, const Array& out) {
    check_float("sum_squares", arrays);
    std::vector<Chunk> chunks = chunks_of("sum_squares", arrays);
    Scratch<double> partial(static_cast<int64_t>(chunks.size()) + 1);
    parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t task) {
        Chunk c = chunks[static_cast<size_t>(task)];
        auto run = [&](auto type) {
            using T = decltype(type);
            const T* x = arrays[c.tensor].ptr<T>() + c.begin;
            partial[task] = sum_row<T>(c.n, [&](int64_t i, auto tail) {
                auto v = load(x + i, tail);
                return v * v;
            });
        };
        arrays[c.tensor].dtype == DType::f32 ? run(float{}) : run(double{});
    });
    double total = 0;
    for (size_t i = 0; i < chunks.size(); i++) total += partial[static_cast<int64_t>(i)];
    out.ptr<double>()[0] = total;
}

// Arrays of any floating dtype multiplied by factor[0], in place; left alone where that is 1. The
// factor is read when the kernel runs, so that a recorded step can be replayed with a new one.
void scale(List arrays, const Array& factor) {
    if (factor.size() != 1) throw std::invalid_argument("scale: expected one factor");
    double by = 0;
    for_float_dtype("scale", factor.dtype,
                    [&](auto type) { by = value_at(factor.ptr<decltype(type)>()); });
    if (by == 1) return;
    std::vector<Chunk> chunks = chunks_of("scale", arrays);
    parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t task) {
        Chunk c = chunks[static_cast<size_t>(task)];
        for_float_dtype("scale", arrays[c.tensor].dtype, [&](auto type) {
            using T = decltype(type);
            auto k = splat<typename Lanes<T>::V>(by);
            T* x = arrays[c.tensor].ptr<T>() + c.begin;
            for_lanes<T>(c.n,
                         [&](int64_t i, auto tail) { store(x + i, load(x + i, tail) * k, tail); });
        });
    });
}

// out[0] = what to scale gradients by so that their norm, of which squares[0] is the square, is at
// most max_norm.
void clip_factor(const Array& squares, const Array& out, double max_norm) {
    if (squares.dtype != DType::f64 || out.dtype != DType::f64)
        throw std::invalid_argument("clip_factor: expected float64 arrays");
    double norm = std::sqrt(squares.ptr<double>()[0]);
    out.ptr<double>()[0] = std::min(1.0, max_norm / (norm + 1e-6));
}

// Stochastic gradient descent; momenta is empty without momentum.
void sgd(List params, List grads, List momenta, List packed, const Array& hyper) {
    check_float("sgd", params);
    const double* h = hyper.ptr<double>();
    check_lists("sgd", params, {&grads}, hyper);
    if (momenta.empty()) {
        auto make = [h](auto zero) {
            using V = decltype(zero);
            return [c = Common<V>(h)](int64_t i, auto tail, auto* p, auto* g) {
                V d = c.gradient(p + i, g + i, tail);
                store(p + i, fma(c.minus_rate, d, c.shrunk(p + i, tail)), tail);
            };
        };
        return for_tensors("sgd", make, packed, params, grads);
    }
    check_lists("sgd", params, {&momenta}, hyper);
    auto make = [h](auto zero) {
        using V = decltype(zero);
        V momentum = splat<V>(h[kBeta1]), undamped = splat<V>(1 - h[kDampening]);
        bool nesterov = h[kNesterov] != 0;
        return [=, c = Common<V>(h)](int64_t i, auto tail, auto* p, auto* g, auto* m) {
            V d = c.gradient(p + i, g + i, tail);
            V v = load(m + i, tail) * momentum + d * undamped;
            store(m + i, v, tail);
            V step = nesterov ? fma(momentum, v, d) : v;
            store(p + i, fma(c.minus_rate, step, c.shrunk(p + i, tail)), tail);
        };
    };
    for_tensors("sgd", make, packed, params, grads, momenta);
}

// Adam (Kingma and Ba 2014), AdamW (Loshchilov and Hutter 2017) and Nadam (Dozat 2016).
void adam(List params, List grads, List means, List squares, List packed, const Array& hyper) {
    check_float("adam", params);
    check_lists("adam", params, {&grads, &means, &squares}, hyper);
    const double* h = hyper.ptr<double>();
    auto make = [h](auto zero) {
        using V = decltype(zero);
        V beta1 = splat<V>(h[kBeta1]), rest1 = splat<V>(1 - h[kBeta1]);
        V beta2 = splat<V>(h[kBeta2]), rest2 = splat<V>(1 - h[kBeta2]);
        V rate = splat<V>(h[kRate] / h[kCorrect1]), own = splat<V>(h[kOwn]);
        V root = splat<V>(1 / std::sqrt(h[kCorrect2]));
        return [=, c = Common<V>(h)](int64_t i, auto tail, auto* p, auto* g, auto* m, auto* s) {
            V d = c.gradient(p + i, g + i, tail);
            V mean = fma(beta1, V(load(m + i, tail)), d * rest1);
            V square = fma(beta2, V(load(s + i, tail)), d * d * rest2);
            store(m + i, mean, tail);
            store(s + i, square, tail);
            V step = fma(own, d, mean * rate), size = fma(sqrt(square), root, c.eps);
            store(p + i, c.shrunk(p + i, tail) - step / size, tail);
        };
    };
    for_tensors("adam", make, packed, params, grads, means, squares);
}

// RMSprop (Tieleman and Hinton 2012); momenta is empty without momentum.
void rmsprop(List params, List grads, List squares, List momenta, List packed, const Array& hyper) {
    check_float("rmsprop", params);
    check_lists("rmsprop", params, {&grads, &squares}, hyper);
    const double* h = hyper.ptr<double>();
    auto make_scaled = [h](auto zero) {
        using V = decltype(zero);
        V beta2 = splat<V>(h[kBeta2]), rest2 = splat<V>(1 - h[kBeta2]);
        return [=, c = Common<V>(h)](int64_t i, auto tail, auto* p, auto* g, auto* s) {
            V d = c.gradient(p + i, g + i, tail);
            V square = fma(beta2, V(load(s + i, tail)), d * d * rest2);
            store(s + i, square, tail);
            return d / (sqrt(square) + c.eps);
        };
    };
    if (momenta.empty()) {
        auto make = [h, make_scaled](auto zero) {
            using V = decltype(zero);
            return [c = Common<V>(h), scaled = make_scaled(zero)](int64_t i, auto tail, auto* p,
                                                                  auto* g, auto* s) {
                V step = scaled(i, tail, p, g, s);
                store(p + i, fma(c.minus_rate, step, c.shrunk(p + i, tail)), tail);
            };
        };
        return for_tensors("rmsprop", make, packed, params, grads, squares);
    }
    check_lists("rmsprop", params, {&momenta}, hyper);
    auto make = [h, make_scaled](auto zero) {
        using V = decltype(zero);
        return [c = Common<V>(h), momentum = splat<V>(h[kBeta1]), scaled = make_scaled(zero)](
                   int64_t i, auto tail, auto* p, auto* g, auto* s, auto* m) {
            V v = fma(momentum, V(load(m + i, tail)), scaled(i, tail, p, g, s));
            store(m + i, v, tail);
            store(p + i, fma(c.minus_rate, v, c.shrunk(p + i, tail)), tail);
        };
    };
    for_tensors("rmsprop", make, packed, params, grads, squares, momenta);
}

// Adagrad (Duchi et al. 2011).
void adagrad(List params, List grads, List sums, List packed, const Array& hyper) {
    check_float("adagrad", params);
    check_lists("adagrad", params, {&grads, &sums}, hyper);
    const double* h = hyper.ptr<double>();
    auto make = [h](auto zero) {
        using V = decltype(zero);
        return [c = Common<V>(h)](int64_t i, auto tail, auto* p, auto* g, auto* s) {
            V d = c.gradient(p + i, g + i, tail);
            V sum = fma(d, d, V(load(s + i, tail)));
            store(s + i, sum, tail);
            V step = d / (sqrt(sum) + c.eps);
            store(p + i, fma(c.minus_rate, step, c.shrunk(p + i, tail)), tail);
        };
    };
    for_tensors("adagrad", make, packed, params, grads, sums);
}

}  // namespace mg
