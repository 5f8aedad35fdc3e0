// The kernels of one instruction-set level as a Python module: a list of names. Each kernel is a
// plain function of its own file; its arguments are NumPy arrays (None where optional), lists of
// arrays, and numbers, in the order of the declaration here.
#include "caster.h"
#include "denormals.h"
#include "elementwise.h"

namespace py = pybind11;

namespace mg {

const CoreApi* core = nullptr;

using A = const Array&;
using List = const std::vector<Array>&;
using Guard = py::call_guard<py::gil_scoped_release, FlushDenormals>;

// Declares the kernel and lists it under its own name.
#define KERNEL(name, signature) \
    void name signature;        \
    m.def(#name, &name, Guard())

#define UNARY_KERNEL(name, ...) KERNEL(name, (A x, A out, double p));
#define UNARY_BWD_KERNEL(name, ...) KERNEL(name##_bwd, (A g, A x, A y, A out, double p));
#define BINARY_KERNEL(name, ...) KERNEL(name, (A a, A b, A out));

static void list_kernels(py::module_& m) {
    MG_UNARY(UNARY_KERNEL)
    MG_UNARY(UNARY_BWD_KERNEL)
    MG_BINARY(BINARY_KERNEL)
    MG_COMPARISON(BINARY_KERNEL)
    KERNEL(where, (A condition, A a, A b, A out));
    KERNEL(clip, (A x, A out, double low, double high));
    KERNEL(copy, (A x, A out));
    KERNEL(fill, (A out, double value));

    KERNEL(sum, (A x, A out));
    KERNEL(prod, (A x, A out));
    KERNEL(max, (A x, A out));
    KERNEL(min, (A x, A out));
    KERNEL(argmax, (A x, A out, int64_t axis));
    KERNEL(argmin, (A x, A out, int64_t axis));
    KERNEL(cumsum, (A x, A out, int64_t axis));
    KERNEL(scatter_add, (A positions, A values, A out));

    KERNEL(matmul, (A a, A b, A bias, A out, bool accumulate));

    KERNEL(softmax_fwd, (A x, A out));
    KERNEL(softmax_bwd, (A g, A y, A dx));
    KERNEL(log_softmax_fwd, (A x, A out));
    KERNEL(log_softmax_bwd, (A g, A y, A dx));
    KERNEL(logsumexp_fwd, (A x, A out));
    KERNEL(layer_norm_fwd,
           (A x, A residual, A weight, A bias, A out, A summed, A mean, A rstd, double eps));
    KERNEL(layer_norm_bwd,
           (A g, A g_summed, A x, A weight, A mean, A rstd, A dx, A dweight, A dbias));
    KERNEL(rms_norm_fwd, (A x, A residual, A weight, A out, A summed, A rstd, double eps));
    KERNEL(rms_norm_bwd, (A g, A g_summed, A x, A weight, A rstd, A dx, A dweight));
    KERNEL(bias_gelu_fwd, (A x, A bias, A out, bool tanh_form));
    KERNEL(bias_gelu_bwd, (A g, A x, A bias, A dx, A dbias, bool tanh_form));
    KERNEL(attention_fwd, (A q, A k, A v, A mask, A bias, A out, A lse, double scale, bool causal,
                           int64_t window, double dropout_p, A rng));
    KERNEL(attention_bwd, (A g, A q, A k, A v, A mask, A bias, A out, A lse, A dq, A dk, A dv,
                           double scale, bool causal, int64_t window, double dropout_p, A rng));
    KERNEL(cross_entropy_fwd,
           (A logits, A targets, A loss, A lse, int64_t ignore_index, double label_smoothing));
    KERNEL(cross_entropy_bwd, (A g, A logits, A targets, A lse, A dlogits, int64_t ignore_index,
                               double label_smoothing));
    KERNEL(embedding_fwd, (A weight, A indices, A out));
    KERNEL(embedding_bwd, (A g, A indices, A dweight));

    KERNEL(dropout, (A x, A out, double p, A rng));
    KERNEL(random_bits, (A out, A rng));
    KERNEL(random_uniform, (A out, A rng));
    KERNEL(random_normal, (A out, A rng));

    KERNEL(peak_fma, (A counted));
    KERNEL(sum_squares, (List arrays, A out));
    KERNEL(sgd, (List params, List grads, List momenta, A hyper));
    KERNEL(adam, (List params, List grads, List means, List squares, A hyper));
    KERNEL(rmsprop, (List params, List grads, List squares, List momenta, A hyper));
    KERNEL(adagrad, (List params, List grads, List sums, A hyper));
}

static void* import_numpy() {
    import_array();
    return nullptr;
}

}  // namespace mg

PYBIND11_MODULE(MG_MODULE_NAME, m) {
    mg::import_numpy();
    if (PyErr_Occurred()) throw py::error_already_set();
    mg::core = static_cast<const mg::CoreApi*>(PyCapsule_Import(mg::kCoreApiName, 0));
    if (mg::core == nullptr) throw py::error_already_set();
    mg::list_kernels(m);
}
