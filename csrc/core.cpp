// The module minigrad._core: the buffer pool, the threads, and what this processor can execute.
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "array.h"
#include "core_api.h"
#include "pool.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace py = pybind11;

namespace mg {

namespace {

constexpr const char* kBlockName = "minigrad.block";  // of the capsules that own an array's memory
// Where this thread's new arrays live; owned, since the recording may be dropped before its end.
thread_local std::shared_ptr<Arena> recording;

// A new uninitialised array over a block of the pool, which gets the block back with the array.
// Takes the reference to `descr`; null with Python's error set.
PyObject* new_array(int ndim, const npy_intp* dims, PyArray_Descr* descr) {
    auto bytes = static_cast<size_t>(PyDataType_ELSIZE(descr));
    bool fits = true;
    for (int i = 0; i < ndim; i++)
        fits = !__builtin_mul_overflow(bytes, static_cast<size_t>(dims[i]), &bytes) && fits;
    void* block = nullptr;
    try {
        if (fits) block = pool_allocate(std::max<size_t>(bytes, 1), recording.get());
    } catch (const std::bad_alloc&) {
    }
    if (block == nullptr) {
        PyObject* shape = PyArray_IntTupleFromIntp(ndim, dims);
        PyErr_Format(PyExc_MemoryError,
                     "no memory for an array of shape %S and dtype %S: minigrad holds %lld bytes; "
                     "use smaller batches, or mg.empty_cache() for what other libraries need",
                     shape, descr, static_cast<long long>(pool_statistics().live_bytes));
        Py_XDECREF(shape);
        Py_DECREF(descr);
        return nullptr;
    }
    PyObject* owner = PyCapsule_New(block, kBlockName, [](PyObject* capsule) {
        pool_release(PyCapsule_GetPointer(capsule, kBlockName));
    });
    if (owner == nullptr) {
        pool_release(block);
        Py_DECREF(descr);
        return nullptr;
    }
    PyObject* array = PyArray_NewFromDescr(&PyArray_Type, descr, ndim, dims, nullptr, block,
                                           NPY_ARRAY_CARRAY, nullptr);
    if (array == nullptr) {
        Py_DECREF(owner);
        return nullptr;
    }
    if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), owner) < 0) {
        Py_DECREF(array);
        return nullptr;
    }
    return array;
}

// empty(shape, dtype) as Python calls it. Not by pybind11: every op calls it, in half the time so.
PyObject* empty(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
    if (n_args != 2 || !PyTuple_Check(args[0]) || !PyArray_DescrCheck(args[1])) {
        PyErr_SetString(PyExc_TypeError, "empty: expected a shape (a tuple) and a numpy.dtype");
        return nullptr;
    }
    npy_intp dims[kMaxDims];
    Py_ssize_t ndim = PyTuple_GET_SIZE(args[0]);
    if (ndim > kMaxDims) {
        PyErr_SetString(PyExc_ValueError, "arrays of more than 16 dimensions are not supported");
        return nullptr;
    }
    for (Py_ssize_t i = 0; i < ndim; i++) {
        dims[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(args[0], i));
        if (dims[i] == -1 && PyErr_Occurred()) return nullptr;
        if (dims[i] < 0) {
            PyErr_SetString(PyExc_ValueError, "empty: negative dimension in the shape");
            return nullptr;
        }
    }
    Py_INCREF(args[1]);
    return new_array(static_cast<int>(ndim), dims, reinterpret_cast<PyArray_Descr*>(args[1]));
}

PyMethodDef empty_method = {
    "empty", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&empty)), METH_FASTCALL,
    "A new uninitialised array of a shape (a tuple) and a dtype."};

// The block of the pool that an array is of, or null.
void* block_of(PyObject* array) {
    while (array != nullptr && PyArray_Check(array))
        array = PyArray_BASE(reinterpret_cast<PyArrayObject*>(array));
    return array != nullptr && PyCapsule_IsValid(array, kBlockName)
               ? PyCapsule_GetPointer(array, kBlockName)
               : nullptr;
}

// The memory of one recorded step (pool.h) as Python sees it.
class PyArena {
  public:
    PyArena() : arena_(arena_create(), arena_destroy) {}

    // From here on this thread's new arrays live in the arena; until end().
    void begin() { recording = arena_; }
    static void end() { recording.reset(); }

    // Whether the array's memory is the arena's.
    bool owns(const py::handle& array) const {
        void* block = block_of(array.ptr());
        return block != nullptr && arena_owns(arena_.get(), block);
    }

  private:
    std::shared_ptr<Arena> arena_;
};

// A recording keeps arrays of its arena without keeping their blocks from being used again: the
// same elements, owned by `arena` as a whole.
py::object borrowed(const py::handle& array, const py::object& arena) {
    auto* a = reinterpret_cast<PyArrayObject*>(array.ptr());
    PyArray_Descr* descr = PyArray_DESCR(a);
    Py_INCREF(descr);
    PyObject* view =
        PyArray_NewFromDescr(&PyArray_Type, descr, PyArray_NDIM(a), PyArray_DIMS(a),
                             PyArray_STRIDES(a), PyArray_DATA(a), PyArray_FLAGS(a), nullptr);
    if (view == nullptr) throw py::error_already_set();
    if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(view), arena.inc_ref().ptr()) < 0) {
        Py_DECREF(view);
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::object>(view);
}

// Asks Linux for the tile registers, which a process has only by permission.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

// The instruction-set levels this machine can run, best last: CPUID feature bits, and XCR0 for what
// the operating system saves. Never by the processor's name, which virtual machines hide.
py::list supported_levels() {
    py::list levels;
    levels.append("generic");
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return levels;
    bool fma = c & bit_FMA, f16c = c & bit_F16C, osxsave = c & bit_OSXSAVE;
    if (!osxsave || !fma || !f16c) return levels;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return levels;
    if ((low & 0x06) != 0x06 || !(b & bit_AVX2)) return levels;
    levels.append("avx2");
    unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    if ((low & 0xe6) != 0xe6 || (b & needed) != needed) return levels;
    levels.append("avx512");
    constexpr unsigned kTile = 1u << 24, kTileBf16 = 1u << 22, kTileState = 3u << 17;
    bool tiles = (d & kTile) && (d & kTileBf16) && (low & kTileState) == kTileState;
    if (tiles && may_use_tiles()) levels.append("amx");
#endif
    return levels;
}

// Whether the level avx512 multiplies bfloat16 pairs in one instruction here.
bool has_bf16_dot() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return false;
#endif
}

py::dict pool_dictionary() {
    PoolStatistics s = pool_statistics();
    py::dict out;
    out["live_bytes"] = s.live_bytes;
    out["cached_bytes"] = s.cached_bytes;
    out["peak_bytes"] = s.peak_bytes;
    out["system_allocations"] = s.system_allocations;
    return out;
}

void* import_numpy() {
    import_array();
    return nullptr;
}

static_assert(sizeof(npy_intp) == sizeof(int64_t));

CoreApi api{parallel_run,
            num_threads,
            [](size_t bytes) { return pool_allocate(bytes); },
            pool_release,
            -1,
            [](int ndim, const int64_t* shape, void* dtype) -> void* {
                return new_array(ndim, reinterpret_cast<const npy_intp*>(shape),
                                 static_cast<PyArray_Descr*>(dtype));
            }};

}  // namespace

const CoreApi* core = &api;

}  // namespace mg

PYBIND11_MODULE(_core, m) {
    using namespace mg;
    import_numpy();
    if (PyErr_Occurred()) throw py::error_already_set();
    install_fork_handler();
    m.add_object("api",
                 py::reinterpret_steal<py::object>(PyCapsule_New(&api, kCoreApiName, nullptr)));
    m.def("register_bfloat16", [](const py::handle& dtype) {
        if (!PyArray_DescrCheck(dtype.ptr())) throw py::type_error("expected a numpy.dtype");
        api.bf16_typenum = reinterpret_cast<PyArray_Descr*>(dtype.ptr())->type_num;
    });
    m.add_object("empty", py::reinterpret_steal<py::object>(
                              PyCFunction_NewEx(&empty_method, nullptr, nullptr)));
    m.def("is_pooled", [](const py::handle& array) { return block_of(array.ptr()) != nullptr; });
    py::class_<PyArena>(m, "Arena")
        .def(py::init<>())
        .def("begin", &PyArena::begin)
        .def_static("end", &PyArena::end)
        .def("owns", &PyArena::owns);
    m.def("borrowed", &borrowed);
    m.def("supported_levels", &supported_levels);
    m.def("has_bf16_dot", &has_bf16_dot);
    m.def("num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads);
    m.def("cgroup_limit", &cgroup_limit);
    m.def("pool_statistics", &pool_dictionary);
    m.def("pool_reset_peak", &pool_reset_peak);
    m.def("pool_trim", &pool_trim);
}
