// NumPy arrays to mg::Array for pybind11. None becomes an empty Array; a list of arrays becomes a
// vector. Anything else, and dtypes or strides a kernel cannot address, is refused by name.
#pragma once

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "array.h"
#include "core_api.h"

namespace mg {

extern const CoreApi* core;

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
    PyObject* text = PyObject_Str(reinterpret_cast<PyObject*>(PyArray_DESCR(a)));
    std::string name = text ? PyUnicode_AsUTF8(text) : "?";
    Py_XDECREF(text);
    throw pybind11::type_error("dtype " + name + " is not one of minigrad's");
}

inline Array as_array(PyObject* object) {
    Array out;
    if (object == Py_None) return out;
    if (!PyArray_Check(object))
        throw pybind11::type_error(std::string("a kernel takes NumPy arrays, not ") +
                                   Py_TYPE(object)->tp_name);
    auto* a = reinterpret_cast<PyArrayObject*>(object);
    out.dtype = dtype_of(a);
    out.data = static_cast<char*>(PyArray_DATA(a));
    out.ndim = PyArray_NDIM(a);
    if (out.ndim > kMaxDims)
        throw pybind11::value_error("arrays of more than 16 dimensions are not supported");
    if (!PyArray_ISBEHAVED_RO(a))
        throw pybind11::value_error("a kernel takes aligned arrays in native byte order");
    int64_t bytes = itemsize(out.dtype);
    for (int i = 0; i < out.ndim; i++) {
        out.shape[i] = PyArray_DIM(a, i);
        int64_t stride = PyArray_STRIDE(a, i);
        if (stride % bytes != 0 && out.shape[i] > 1)
            throw pybind11::value_error("strides must be whole elements; copy the array first");
        out.strides[i] = stride / bytes;
    }
    return out;
}

}  // namespace mg

namespace pybind11::detail {

template <>
struct type_caster<mg::Array> {
    PYBIND11_TYPE_CASTER(mg::Array, const_name("numpy.ndarray"));
    bool load(handle source, bool) {
        value = mg::as_array(source.ptr());
        return true;
    }
};

template <>
struct type_caster<std::vector<mg::Array>> {
    PYBIND11_TYPE_CASTER(std::vector<mg::Array>, const_name("list[numpy.ndarray]"));
    bool load(handle source, bool) {
        if (!PyList_Check(source.ptr())) return false;
        value.reserve(static_cast<size_t>(PyList_GET_SIZE(source.ptr())));
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(source.ptr()); i++)
            value.push_back(mg::as_array(PyList_GET_ITEM(source.ptr(), i)));
        return true;
    }
};

}  // namespace pybind11::detail
