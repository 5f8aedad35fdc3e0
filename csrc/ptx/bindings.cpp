// The Python module of one instruction-set level: loading programs and launching them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "machine.h"

namespace py = pybind11;
using namespace ptx;

namespace {

template <std::size_t N>
py::dict numbered(const char* const (&names)[N]) {
    py::dict out;
    for (std::size_t i = 0; i < N; ++i) {
        std::string name = names[i];
        if (name.back() == '_') name.pop_back();  // NAN_, because NAN is a macro of <cmath>
        out[name.c_str()] = i;
    }
    return out;
}

#define PTX_NAME(name) #name,
constexpr const char* kOps[] = {PTX_OPS(PTX_NAME)};
constexpr const char* kTypes[] = {PTX_TYPES(PTX_NAME)};
constexpr const char* kRounds[] = {PTX_ROUNDS(PTX_NAME)};
constexpr const char* kCmps[] = {PTX_CMPS(PTX_NAME)};
constexpr const char* kSpaces[] = {PTX_SPACES(PTX_NAME)};
constexpr const char* kSems[] = {PTX_SEMS(PTX_NAME)};
constexpr const char* kAtoms[] = {PTX_ATOMS(PTX_NAME)};
constexpr const char* kSpecials[] = {PTX_SPECIALS(PTX_NAME)};
constexpr const char* kKinds[] = {PTX_KINDS(PTX_NAME)};
#undef PTX_NAME

std::string lower(std::string s) {
    for (char& c : s) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return s;
}

// A contiguous array of records of a known size; the front end's dtype decides what is in them.
template <class T>
std::vector<T> records(const py::array& a, const char* what) {
    if (a.ndim() != 1 || a.itemsize() != static_cast<py::ssize_t>(sizeof(T)) ||
        !(a.flags() & py::array::c_style)) {
        throw py::value_error(std::string(what) + ": expected a contiguous array of " +
                              std::to_string(sizeof(T)) + "-byte records");
    }
    std::vector<T> out(static_cast<std::size_t>(a.size()));
    if (!out.empty()) std::memcpy(out.data(), a.data(), out.size() * sizeof(T));
    return out;
}

std::unique_ptr<Program> load(const py::array& instructions, const py::array& operands,
                              const py::array& consts, u32 n_rows, u32 n_preds, u32 entry,
                              u32 static_shared, u32 local_bytes, u32 param_bytes) {
    auto code = records<Instruction>(instructions, "instructions");
    auto pool = records<u32>(operands, "operands");
    auto constants = records<Constant>(consts, "consts");
    return load_program(code.data(), code.size(), pool.data(), pool.size(), constants.data(),
                        constants.size(), n_rows, n_preds, entry, static_shared, local_bytes,
                        param_bytes);
}

py::dict launch(const Program& program, std::array<u32, 3> grid, std::array<u32, 3> block,
                const py::bytes& params, u32 dynamic_shared, const py::array& ranges, u64 seed,
                u32 checks, u32 counts, const py::dict& limits, u32 threads) {
    Launch l;
    l.program = &program;
    u64 block_threads = 1, blocks = 1;
    for (int i = 0; i < 3; ++i) {
        l.grid[i] = grid[i];
        l.block[i] = block[i];
        if (grid[i] == 0 || grid[i] > 0x7FFFFFFFu || block[i] == 0 || block[i] > 1024) {
            throw py::value_error(
                "launch: a grid has 1 to 2^31 - 1 blocks and a block 1 to 1024 threads along each "
                "axis");
        }
        block_threads *= block[i];
        if (blocks > (u64{1} << 40) / grid[i])
            throw py::value_error("launch: more than 2^40 blocks");
        blocks *= grid[i];
    }
    if (block_threads > 1024)
        throw py::value_error("launch: " + std::to_string(block_threads) +
                              " threads in a block; at most 1024");
    std::string bytes = params;
    if (bytes.size() < program.param_bytes) {
        throw py::value_error("launch: " + std::to_string(bytes.size()) +
                              " bytes of parameters, expected " +
                              std::to_string(program.param_bytes));
    }
    l.params.assign(bytes.begin(), bytes.end());
    if (dynamic_shared > (1u << 24))
        throw py::value_error("launch: more than 16 MiB of shared memory");
    l.dynamic_shared = dynamic_shared;
    l.ranges = records<Range>(ranges, "ranges");
    for (std::size_t i = 0; i < l.ranges.size(); ++i) {
        const Range& r = l.ranges[i];
        bool over = r.base + r.bytes < r.base || (r.bytes && !r.host);
        if (over || (i && r.base < l.ranges[i - 1].base + l.ranges[i - 1].bytes)) {
            throw py::value_error(
                "launch: ranges must be sorted by base, disjoint, and have memory behind them "
                "(range " +
                std::to_string(i) + ")");
        }
    }
    l.seed = seed;
    l.checks = checks;
    l.counts = counts;
    l.threads = threads;
    for (auto [key, value] : limits) {
        std::string name = py::cast<std::string>(key);
        u64 x = py::cast<u64>(value);
        if (name == "steps") {
            l.limits.steps = x;
        } else if (name == "nesting") {
            l.limits.nesting = static_cast<u32>(x);
        } else if (name == "resident") {
            l.limits.resident = static_cast<u32>(std::max<u64>(1, x));
        } else if (name == "print_bytes") {
            l.limits.print_bytes = x;
        } else {
            throw py::value_error("launch: unknown limit " + name);
        }
    }
    u64 memory =
        (block_threads + 31) / 32 * (program.register_bytes() + u64{32} * program.local_bytes) +
        l.shared_bytes() * u64{6};
    if (memory > (u64{4} << 30)) {
        throw py::value_error("launch: a block needs " + std::to_string(memory >> 20) +
                              " MiB for registers, local and shared memory; the limit is 4096");
    }

    Result r;
    {
        py::gil_scoped_release unlocked;
        r = run_launch(l);
    }
    py::dict out;
    py::list reports;
    for (const Report& x : r.reports) {
        py::dict d;
        d["kind"] = lower(kKinds[static_cast<int>(x.kind)]);
        d["instruction"] = x.instruction;
        d["block"] = py::make_tuple(x.block[0], x.block[1], x.block[2]);
        d["warp"] = x.warp;
        d["lane"] = x.lane;
        d["address"] = x.address;
        d["other"] = x.other;
        d["message"] = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
            x.message.data(), static_cast<py::ssize_t>(x.message.size()), "replace"));
        reports.append(d);
    }
    out["reports"] = reports;
    std::size_t n = program.code.size() - 1;
    py::array_t<u64> exec(n), lanes(n), memory_counts({n, std::size_t{6}});
    i64 block_exec = 0, block_lanes = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const Code& c = program.code[i];
        const Count& k = r.counts[i];
        if (c.op == Op::LABEL) {
            block_exec = k.exec;
            block_lanes = k.lanes;
        }
        block_exec += k.delta;
        exec.mutable_at(i) = static_cast<u64>(c.guard ? k.exec : block_exec);
        lanes.mutable_at(i) = static_cast<u64>(c.guard ? k.lanes : block_lanes);
        const u64* m = &r.memory[i].requests;
        for (int j = 0; j < 6; ++j) memory_counts.mutable_at(i, j) = m[j];
    }
    out["exec"] = exec;
    out["lanes"] = lanes;
    out["memory"] = memory_counts;
    out["barriers"] = r.barriers;
    out["in_flight_max_bytes"] = r.in_flight_max;
    out["printed"] = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
        r.printed.data(), static_cast<py::ssize_t>(r.printed.size()), "replace"));
    out["steps"] = r.steps;
    out["threads"] = r.threads;
    return out;
}

}  // namespace

#ifndef PTX_MODULE_NAME
#define PTX_MODULE_NAME _ptx_generic
#endif

PYBIND11_MODULE(PTX_MODULE_NAME, m) {
    m.doc() =
        "Executes decoded PTX (csrc/ptx/program.h says in which form) and checks and counts what "
        "it does.";
    m.attr("OPS") = numbered(kOps);
    m.attr("TYPES") = numbered(kTypes);
    m.attr("ROUNDS") = numbered(kRounds);
    m.attr("CMPS") = numbered(kCmps);
    m.attr("SPACES") = numbered(kSpaces);
    m.attr("SEMS") = numbered(kSems);
    m.attr("ATOMS") = numbered(kAtoms);
    m.attr("SPECIALS") = numbered(kSpecials);
    py::list kinds;
    for (const char* k : kKinds) kinds.append(lower(k));
    m.attr("KINDS") = kinds;
    py::dict flags, checks, counts;
#define PTX_ENTRY(name, bit) flags[#name] = bit;
    PTX_FLAGS(PTX_ENTRY)
#undef PTX_ENTRY
#define PTX_ENTRY(name, bit) checks[#name] = bit;
    PTX_CHECKS(PTX_ENTRY)
#undef PTX_ENTRY
    counts["EXEC"] = count::EXEC;
    counts["MEMORY"] = count::MEMORY;
    m.attr("FLAGS") = flags;
    m.attr("CHECKS") = checks;
    m.attr("COUNTS") = counts;
    m.attr("NONE") = kNone;
    m.attr("SHARED_WINDOW") = kSharedWindow;
    m.attr("LOCAL_WINDOW") = kLocalWindow;
    m.attr("PARAM_WINDOW") = kParamWindow;

    static py::object error;
    error = py::reinterpret_steal<py::object>(PyErr_NewExceptionWithDoc(
        "minigrad.ptx_error",
        "A program that the executor refuses; `.instruction` is its index or -1.", PyExc_ValueError,
        nullptr));
    m.attr("ptx_error") = error;
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const LoadError& e) {
            py::object value =
                error("instruction " + std::to_string(e.instruction) + ": " + e.message);
            value.attr("instruction") = e.instruction;
            value.attr("message") = e.message;
            PyErr_SetObject(error.ptr(), value.ptr());
        }
    });

    // Several levels may be loaded side by side, each with a class of its own.
    py::class_<Program>(m, "Program", py::module_local())
        .def(py::init(&load), py::arg("instructions"), py::arg("operands"), py::arg("consts"),
             py::arg("n_rows"), py::arg("n_preds"), py::arg("entry"), py::arg("static_shared"),
             py::arg("local_bytes"), py::arg("param_bytes"))
        .def("launch", &launch, py::arg("grid"), py::arg("block"), py::arg("params"),
             py::arg("dynamic_shared") = 0, py::arg("ranges"), py::arg("seed") = 0,
             py::arg("checks") = 31, py::arg("counts") = 3, py::arg("limits") = py::dict(),
             py::arg("threads") = 0)
        .def_readonly("n_rows", &Program::n_rows)
        .def_readonly("ordered", &Program::ordered);
}
