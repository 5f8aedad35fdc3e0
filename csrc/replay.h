// Launches of one module recorded once and run as a flat list: `record([(name, args), …])` reads
// the arguments and gives a capsule, `replay(capsule)` runs every launch of it in order, with the
// interpreter's lock released and denormals flushed once for all.
#pragma once

#include "bind.h"

namespace mg {

// A kernel as Python calls it, and as a recording reads its arguments.
struct Kernel {
    PyMethodDef method;
    std::unique_ptr<Launch> (*read)(PyObject* const*, Py_ssize_t);
};

class Recorded {
  public:
    Recorded(PyObject* list, const std::vector<Kernel>& kernels) : kept_(list) {
        if (!PyList_Check(list)) raise(PyExc_TypeError, "record: expected a list of launches");
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
            const char* name;
            PyObject* args;
            if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "sO!", &name, &PyTuple_Type, &args))
                throw PythonError{};
            launches_.push_back(
                find(kernels, name).read(&PyTuple_GET_ITEM(args, 0), PyTuple_GET_SIZE(args)));
        }
        Py_INCREF(kept_);
    }
    ~Recorded() { Py_DECREF(kept_); }
    Recorded(const Recorded&) = delete;
    Recorded& operator=(const Recorded&) = delete;

    void run() const {
        ReleaseInterpreter released;
        FlushDenormals flush;
        for (const auto& launch : launches_) launch->run();
    }

  private:
    static const Kernel& find(const std::vector<Kernel>& kernels, const std::string& name) {
        for (const Kernel& kernel : kernels)
            if (name == kernel.method.ml_name) return kernel;
        raise(PyExc_KeyError, "record: no kernel %s", name.c_str());
    }

    PyObject* kept_;  // the arrays behind the arguments
    std::vector<std::unique_ptr<Launch>> launches_;
};

constexpr const char* kRecordedName = "minigrad.recorded";

inline PyObject* record(PyObject* list, const std::vector<Kernel>& kernels) {
    try {
        return PyCapsule_New(new Recorded(list, kernels), kRecordedName, [](PyObject* capsule) {
            delete static_cast<Recorded*>(PyCapsule_GetPointer(capsule, kRecordedName));
        });
    } catch (...) {
        return raise_current();
    }
}

inline PyObject* replay(PyObject*, PyObject* capsule) {
    auto* recorded = static_cast<const Recorded*>(PyCapsule_GetPointer(capsule, kRecordedName));
    if (recorded == nullptr) return nullptr;
    try {
        recorded->run();
    } catch (...) {
        return raise_current();
    }
    Py_RETURN_NONE;
}

}  // namespace mg
