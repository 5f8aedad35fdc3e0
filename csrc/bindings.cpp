// The kernels of one instruction-set level as a Python module: a list of names. Each kernel is a
// plain function of its own file; its arguments are NumPy arrays (None where optional), lists of
// arrays, and numbers, in the order of the declaration here.
#include "bind.h"
#include "elementwise.h"
#include "replay.h"

namespace mg {

const CoreApi* core = nullptr;

using A = const Array&;
using List = const std::vector<Array>&;

using Call = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

static Kernel listed(const char* name, Call call, decltype(Kernel::read) read) {
    auto* function = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call));
    return {{name, function, METH_FASTCALL, nullptr}, read};
}

// Declares the kernel and lists it under its own name.
#define KERNEL(name, signature) \
    void name signature;        \
    kernels.push_back(listed(#name, &Entry<&name>::call, &Entry<&name>::read))

// One that makes its output where that is None: inputs, the output, numbers.
#define ELEMENTWISE(name, signature)                \
    void name signature;                            \
    struct name##_name {                            \
        static const char* text() { return #name; } \
    };                                              \
    kernels.push_back(                              \
        listed(#name, &ElementwiseEntry<&name, name##_name>::call, &Entry<&name>::read))

#define UNARY_KERNEL(name, ...) ELEMENTWISE(name, (A x, A out, double p));
#define UNARY_BWD_KERNEL(name, ...) ELEMENTWISE(name##_bwd, (A g, A x, A y, A out, double p));
#define BINARY_KERNEL(name, ...) ELEMENTWISE(name, (A a, A b, A out));
#define COMPARISON_KERNEL(name, ...) KERNEL(name, (A a, A b, A out));

static std::vector<Kernel> list_kernels() {
    std::vector<Kernel> kernels;
    MG_UNARY(UNARY_KERNEL)
    MG_UNARY(UNARY_BWD_KERNEL)
    MG_BINARY(BINARY_KERNEL)
    MG_COMPARISON(COMPARISON_KERNEL)
    ELEMENTWISE(where, (A condition, A a, A b, A out));
    ELEMENTWISE(clip, (A x, A out, double low, double high));
    KERNEL(copy, (A x, A out));
    KERNEL(fill, (A out, double value));

    KERNEL(sum, (A x, A out));
    KERNEL(prod, (A x, A out));
    KERNEL(max, (A x, A out));
    KERNEL(min, (A x, A out));
    KERNEL(argmax, (A x, A out, int64_t axis));
    KERNEL(argmin, (A x, A out, int64_t axis));
    KERNEL(cumsum, (A x, A out, int64_t axis));
    KERNEL(positions_along, (A indices, A out, int64_t n));
    KERNEL(gather, (A x, A positions, A out));
    KERNEL(scatter_add, (A positions, A values, A out));

    KERNEL(matmul, (A a, A b, A bias, A out, bool accumulate));
    KERNEL(pack_bf16, (A b, A packed));
    KERNEL(matmul_packed, (A a, A packed, A bias, A out, bool accumulate));

    KERNEL(softmax_fwd, (A x, A out));
    KERNEL(softmax_bwd, (A g, A y, A dx));
    KERNEL(log_softmax_fwd, (A x, A out));
    KERNEL(log_softmax_bwd, (A g, A y, A dx));
    KERNEL(logsumexp_fwd, (A x, A out));
    KERNEL(layer_norm_fwd,
           (A x, A residual, A weight, A bias, A out, A summed, A mean, A rstd, double eps));
    KERNEL(layer_norm_bwd,
           (A g, A g_summed, A x, A weight, A mean, A rstd, A dx, A dx_update, A dweight, A dbias));
    KERNEL(rms_norm_fwd, (A x, A residual, A weight, A out, A summed, A rstd, double eps));
    KERNEL(rms_norm_bwd, (A g, A g_summed, A x, A weight, A rstd, A dx, A dx_update, A dweight));
    KERNEL(bias_gelu_fwd, (A x, A bias, A out, A slope, bool tanh_form));
    KERNEL(bias_gelu_bwd, (A g, A slope, A dx, A dbias));
    KERNEL(attention_fwd, (A q, A k, A v, A mask, A bias, A out, A lse, double scale, bool causal,
                           int64_t window, double dropout_p, A rng));
    KERNEL(attention_bwd, (A g, A q, A k, A v, A mask, A bias, A out, A lse, A dq, A dk, A dv,
                           double scale, bool causal, int64_t window, double dropout_p, A rng));
    KERNEL(attention_varlen_fwd,
           (A q, A k, A v, A cu_seqlens_q, A cu_seqlens_k, A out, A lse, double scale, bool causal,
            int64_t window, double dropout_p, A rng));
    KERNEL(attention_varlen_bwd,
           (A g, A q, A k, A v, A cu_seqlens_q, A cu_seqlens_k, A out, A lse, A dq, A dk, A dv,
            double scale, bool causal, int64_t window, double dropout_p, A rng));
    KERNEL(attention_cached_fwd,
           (A q, A k, A v, A keys, A values, A start, A mask, A out, double scale, bool causal));
    KERNEL(check_range, (A indices, int64_t n, bool has_ignored, int64_t ignored));
    KERNEL(row_share, (A targets, A out, int64_t ignored));
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
    KERNEL(peak_bf16, (A counted));
    KERNEL(sum_squares, (List arrays, A out));
    KERNEL(clip_factor, (A squares, A out, double max_norm));
    KERNEL(scale, (List arrays, A factor));
    KERNEL(sgd, (List params, List grads, List momenta, List packed, A hyper));
    KERNEL(adam, (List params, List grads, List means, List squares, List packed, A hyper));
    KERNEL(rmsprop, (List params, List grads, List squares, List momenta, List packed, A hyper));
    KERNEL(adagrad, (List params, List grads, List sums, List packed, A hyper));
    return kernels;
}

static const std::vector<Kernel>& kernels() {
    static const std::vector<Kernel> listed = list_kernels();
    return listed;
}

static std::vector<PyMethodDef> list_methods() {
    std::vector<PyMethodDef> methods;
    for (const Kernel& kernel : kernels()) methods.push_back(kernel.method);
    PyCFunction recorder = [](PyObject*, PyObject* list) { return record(list, kernels()); };
    methods.push_back({"record", recorder, METH_O, nullptr});
    methods.push_back({"replay", &replay, METH_O, nullptr});
    methods.push_back({nullptr, nullptr, 0, nullptr});
    return methods;
}

}  // namespace mg

#define MG_JOIN(a, b) a##b
#define MG_INIT(name) MG_JOIN(PyInit_, name)

PyMODINIT_FUNC MG_INIT(MG_MODULE_NAME)() {
    import_array();
    mg::core = static_cast<const mg::CoreApi*>(PyCapsule_Import(mg::kCoreApiName, 0));
    if (mg::core == nullptr) return nullptr;
    static std::vector<PyMethodDef> methods = mg::list_methods();
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                     "kernels",
                                     nullptr,
                                     -1,
                                     methods.data(),
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr};
    return PyModule_Create(&definition);
}
