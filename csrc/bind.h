// From Python to a kernel: an entry point made from the kernel's signature. NumPy arrays become
// mg::Array (None an empty one), a list of arrays a vector, numbers what they are; anything else,
// and dtypes or strides a kernel cannot address, is refused by name. The interpreter's lock is
// released, and denormals are flushed, while the kernel runs.
//
// Not pybind11, which the core module uses: its unit took 14 of the 77 seconds that a level took to
// compile, and a call twice as long.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "array.h"
#include "core_api.h"
#include "denormals.h"

namespace mg {

extern const CoreApi* core;

struct PythonError {};  // thrown where Python's own error is set

template <class... Args>
[[noreturn]] void raise(PyObject* kind, const char* format, Args... args) {
    PyErr_Format(kind, format, args...);
    throw PythonError{};
}

inline DType dtype_of(PyArrayObject* a) {
    int number = PyArray_TYPE(a);
    switch (number) {
        case NPY_FLOAT32:
            return DType::f32;
        case NPY_FLOAT64:
            return DType::f64;
        case NPY_FLOAT16:
            return DType::f16;
        case NPY_INT32:
            return DType::i32;
        case NPY_INT64:
            return DType::i64;
        case NPY_UINT8:
            return DType::u8;
        case NPY_BOOL:
            return DType::b8;
        default:
            break;
    }
    if (number == core->bf16_typenum) return DType::bf16;
    if (number == NPY_UINT64 || number == NPY_LONGLONG) return DType::i64;  // same 64 bits
    raise(PyExc_TypeError, "dtype %S is not one of minigrad's", PyArray_DESCR(a));
}

inline Array as_array(PyObject* object) {
    Array out;
    if (object == Py_None) return out;
    if (!PyArray_Check(object))
        raise(PyExc_TypeError, "a kernel takes NumPy arrays, not %s", Py_TYPE(object)->tp_name);
    auto* a = reinterpret_cast<PyArrayObject*>(object);
    out.dtype = dtype_of(a);
    out.data = static_cast<char*>(PyArray_DATA(a));
    out.ndim = PyArray_NDIM(a);
    if (out.ndim > kMaxDims)
        raise(PyExc_ValueError, "arrays of more than 16 dimensions are not supported");
    if (!PyArray_ISBEHAVED_RO(a))
        raise(PyExc_ValueError, "a kernel takes aligned arrays in native byte order");
    int64_t bytes = itemsize(out.dtype);
    for (int i = 0; i < out.ndim; i++) {
        out.shape[i] = PyArray_DIM(a, i);
        int64_t stride = PyArray_STRIDE(a, i);
        if (stride % bytes != 0 && out.shape[i] > 1)
            raise(PyExc_ValueError, "strides must be whole elements; copy the array first");
        out.strides[i] = stride / bytes;
    }
    return out;
}

// ---- arguments ----

template <class T>
struct FromPython;

template <>
struct FromPython<const Array&> {
    Array value;
    explicit FromPython(PyObject* object) : value(as_array(object)) {}
};

template <>
struct FromPython<const std::vector<Array>&> {
    std::vector<Array> value;
    explicit FromPython(PyObject* object) {
        if (!PyList_Check(object))
            raise(PyExc_TypeError, "a kernel takes a list of arrays, not %s",
                  Py_TYPE(object)->tp_name);
        value.reserve(static_cast<size_t>(PyList_GET_SIZE(object)));
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); i++)
            value.push_back(as_array(PyList_GET_ITEM(object, i)));
    }
};

template <>
struct FromPython<double> {
    double value;
    explicit FromPython(PyObject* object) : value(PyFloat_AsDouble(object)) {
        if (value == -1.0 && PyErr_Occurred()) throw PythonError{};
    }
};

template <>
struct FromPython<int64_t> {
    int64_t value;
    explicit FromPython(PyObject* object) : value(PyLong_AsLongLong(object)) {
        if (value == -1 && PyErr_Occurred()) throw PythonError{};
    }
};

template <>
struct FromPython<bool> {
    bool value;
    explicit FromPython(PyObject* object) : value(PyObject_IsTrue(object) == 1) {
        if (PyErr_Occurred()) throw PythonError{};
    }
};

// ---- the call ----

class ReleaseInterpreter {
  public:
    ReleaseInterpreter() : state_(PyEval_SaveThread()) {}
    ~ReleaseInterpreter() { PyEval_RestoreThread(state_); }

  private:
    PyThreadState* state_;
};

// Turns the exception being handled into Python's.
inline PyObject* raise_current() {
    try {
        throw;
    } catch (const PythonError&) {
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::out_of_range& error) {
        PyErr_SetString(PyExc_IndexError, error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// A launch whose arguments were read once, to be run again and again (replay.h).
struct Launch {
    virtual ~Launch() = default;
    virtual void run() const = 0;
};

// The calls of all kernels with these arguments: code for each signature, not for each kernel.
template <class... Args>
struct Signature {
    using Kernel = void (*)(Args...);
    static constexpr auto kIndices = std::index_sequence_for<Args...>{};

    static PyObject* call(Kernel kernel, PyObject* const* given, Py_ssize_t n) {
        try {
            check_count(n);
            return run(kernel, given, kIndices);
        } catch (...) {
            return raise_current();
        }
    }

    static std::unique_ptr<Launch> read(Kernel kernel, PyObject* const* given, Py_ssize_t n) {
        check_count(n);
        return std::make_unique<Read>(kernel, given, kIndices);
    }

  private:
    class Read : public Launch {
      public:
        template <size_t... I>
        Read(Kernel kernel, PyObject* const* given, std::index_sequence<I...>)
            : kernel_(kernel), args_(given[I]...) {}
        void run() const override {
            std::apply([this](const auto&... arg) { kernel_(arg.value...); }, args_);
        }

      private:
        Kernel kernel_;
        std::tuple<FromPython<Args>...> args_;
    };

    static void check_count(Py_ssize_t n) {
        if (n != sizeof...(Args))
            raise(PyExc_TypeError, "this kernel takes %zd arguments, got %zd",
                  static_cast<Py_ssize_t>(sizeof...(Args)), n);
    }

    template <size_t... I>
    static PyObject* run(Kernel kernel, PyObject* const* given, std::index_sequence<I...>) {
        std::tuple<FromPython<Args>...> args(given[I]...);
        {
            ReleaseInterpreter released;
            FlushDenormals flush;
            kernel(std::get<I>(args).value...);
        }
        Py_RETURN_NONE;
    }
};

// A kernel as Python and a recording call it.
template <auto kKernel>
struct Entry;

template <class... Args, void (*kKernel)(Args...)>
struct Entry<kKernel> {
    static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t n) {
        return Signature<Args...>::call(kKernel, given, n);
    }
    static std::unique_ptr<Launch> read(PyObject* const* given, Py_ssize_t n) {
        return Signature<Args...>::read(kKernel, given, n);
    }
};

// ---- elementwise kernels make their output where it is None ----

// "(2, 3)", as Python writes it.
inline std::string shape_text(PyArrayObject* a) {
    std::string text = "(";
    for (int i = 0; i < PyArray_NDIM(a); i++)
        text += (i > 0 ? ", " : "") + std::to_string(PyArray_DIM(a, i));
    return text + (PyArray_NDIM(a) == 1 ? ",)" : ")");
}

// A new array of the inputs' broadcast shape, in the dtype of the last of them.
inline PyObject* make_output(const char* kernel, PyObject* const* inputs, size_t n) {
    int ndim = 0;
    int64_t shape[kMaxDims];
    for (size_t i = 0; i < n; i++) {
        if (!PyArray_Check(inputs[i]))
            raise(PyExc_TypeError, "a kernel takes NumPy arrays, not %s",
                  Py_TYPE(inputs[i])->tp_name);
        auto* a = reinterpret_cast<PyArrayObject*>(inputs[i]);
        int own = PyArray_NDIM(a);
        if (own > kMaxDims)
            raise(PyExc_ValueError, "arrays of more than 16 dimensions are not supported");
        for (; ndim < own; ndim++) {  // axes in front
            for (int d = ndim; d > 0; d--) shape[d] = shape[d - 1];
            shape[0] = 1;
        }
        for (int d = 0; d < own; d++) {
            int64_t length = PyArray_DIM(a, d), &whole = shape[ndim - own + d];
            if (whole == 1) whole = length;
            if (length == 1 || length == whole) continue;
            std::string text;
            for (size_t k = 0; k < n; k++)
                text += (k > 0 ? " and " : "") +
                        shape_text(reinterpret_cast<PyArrayObject*>(inputs[k]));
            raise(PyExc_ValueError, "%s: shapes %s do not broadcast", kernel, text.c_str());
        }
    }
    PyArray_Descr* dtype = PyArray_DESCR(reinterpret_cast<PyArrayObject*>(inputs[n - 1]));
    Py_INCREF(dtype);
    auto* made = static_cast<PyObject*>(core->new_array(ndim, shape, dtype));
    if (made == nullptr) throw PythonError{};
    return made;
}

// The calls of kernels whose arguments are inputs, an output and numbers.
template <class... Args>
struct ElementwiseSignature {
    static PyObject* call(void (*kernel)(Args...), const char* name, PyObject* const* given,
                          Py_ssize_t n) {
        if (n != sizeof...(Args) || given[kInputs] != Py_None)
            return Signature<Args...>::call(kernel, given, n);
        PyObject* args[sizeof...(Args)];
        std::copy_n(given, sizeof...(Args), args);
        try {
            args[kInputs] = make_output(name, given, kInputs);
        } catch (...) {
            return raise_current();
        }
        PyObject* done = Signature<Args...>::call(kernel, args, n);
        if (done == nullptr) {
            Py_DECREF(args[kInputs]);
            return nullptr;
        }
        Py_DECREF(done);
        return args[kInputs];
    }

  private:
    static constexpr size_t kInputs = (size_t{std::is_same_v<Args, const Array&>} + ...) - 1;
};

// Such a kernel as Python calls it; `Name::text()` is its name.
template <auto kKernel, class Name>
struct ElementwiseEntry;

template <class... Args, void (*kKernel)(Args...), class Name>
struct ElementwiseEntry<kKernel, Name> {
    static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t n) {
        return ElementwiseSignature<Args...>::call(kKernel, Name::text(), given, n);
    }
};

}  // namespace mg
