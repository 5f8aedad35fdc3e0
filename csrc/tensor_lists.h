// Lists of contiguous arrays walked over in one launch: how they are cut into tasks, and the packed
// copies of parameters (matmul_bf16.h) that are written with them.
#pragma once

#include <vector>

#include "matmul_bf16.h"
#include "rows.h"

namespace mg {

constexpr int64_t kChunk = 16384;  // elements a task updates

using List = const std::vector<Array>&;

// What a task does of a tensor: `rows` runs of n elements, `step` apart.
struct Chunk {
    size_t tensor;
    int64_t begin, n;
    int64_t rows = 1, step = 0;
};

inline void add_chunks(size_t t, int64_t n, std::vector<Chunk>& out) {
    for (int64_t i = 0; i < n; i += kChunk) out.push_back({t, i, std::min(n - i, kChunk)});
}

inline std::vector<Chunk> chunks_of(const char* kernel, List arrays) {
    std::vector<Chunk> out;
    for (size_t t = 0; t < arrays.size(); t++) {
        if (!arrays[t].contiguous())
            throw std::invalid_argument(std::string(kernel) + ": expected contiguous arrays");
        add_chunks(t, arrays[t].size(), out);
    }
    return out;
}

// The same for parameters, where those with packed copies come in blocks that panels are made of:
// 32 rows (a panel's width, and whole pairs of k), whole where they are short enough to be in cache
// when they are packed, as memory gives what lies behind one another fastest.
constexpr int64_t kLongestRun = 2048;
inline std::vector<Chunk> chunks_of(const char* kernel, List params, List packed) {
    if (packed.empty()) return chunks_of(kernel, params);
    std::vector<Chunk> out;
    for (size_t t = 0; t < params.size(); t++) {
        if (!packed[2 * t] && !packed[2 * t + 1]) {
            add_chunks(t, params[t].size(), out);
            continue;
        }
        int64_t rows = params[t].shape[0], columns = params[t].shape[1];
        for (int64_t i = 0; i < rows; i += kPanelColumns)
            for (int64_t j = 0; j < columns; j += kLongestRun)
                out.push_back({t, i * columns + j, std::min(kLongestRun, columns - j),
                               std::min(kPanelColumns, rows - i), columns});
    }
    return out;
}

// The panels that a block of a parameter makes in its packed copies.
inline void repack(const Chunk& c, const Array& param, const Array& transposed,
                   const Array& plain) {
    int64_t rows = param.shape[0], columns = param.shape[1];
    int64_t i = c.begin / columns, j = c.begin % columns;
    if (transposed)
        for (int64_t k0 = j; k0 < j + c.n; k0 += kKC)
            pack_block_bf16({param.data, param.dtype, 1, columns}, columns, rows, k0,
                            std::min(kKC, j + c.n - k0), i, transposed.ptr<bf16>());
    if (plain)
        for (int64_t panel = j; panel < j + c.n; panel += kPanelColumns)
            pack_block_bf16({param.data, param.dtype, columns, 1}, rows, columns, i, c.rows, panel,
                            plain.ptr<bf16>());
}

inline void check_packed(const char* kernel, List params, List packed) {
    auto fits = [](const Array& x, const Array& copy, int64_t k, int64_t n) {
        return !copy || (copy.dtype == DType::bf16 && copy.contiguous() &&
                         copy.size() == whole_panels(n) * kPanelColumns * whole_k(k) &&
                         x.dtype == DType::f32 && x.ndim == 2);
    };
    bool good = packed.empty() || packed.size() == 2 * params.size();
    for (size_t t = 0; good && !packed.empty() && t < params.size(); t++) {
        const Array &p = params[t], &transposed = packed[2 * t], &plain = packed[2 * t + 1];
        if (!transposed && !plain) continue;
        good = p.contiguous() && fits(p, transposed, p.shape[1], p.shape[0]) &&
               fits(p, plain, p.shape[0], p.shape[1]);
    }
    if (!good)
        throw std::invalid_argument(std::string(kernel) +
                                    ": packed copies do not match their parameters");
}

// Where each task begins in the list of chunks, and its end: small tensors share one.
inline std::vector<size_t> tasks_of(const std::vector<Chunk>& chunks) {
    std::vector<size_t> starts{0};
    int64_t elements = 0;
    for (size_t i = 0; i < chunks.size(); i++) {
        elements += chunks[i].rows * chunks[i].n;
        if (elements >= kChunk || i + 1 == chunks.size()) {
            starts.push_back(i + 1);
            elements = 0;
        }
    }
    return starts;
}

// make(zero) gives, for a lane type V, update(i, tail, pointers...), which is called for every lane
// of every tensor; then come its packed copies. It is made once a chunk and holds what it needs by
// value: the compiler would read anything else again after every store.
template <class Make, class... Lists>
void for_tensors(const char* kernel, const Make& make, List packed, List params,
                 const Lists&... lists) {
    check_packed(kernel, params, packed);
    std::vector<Chunk> chunks = chunks_of(kernel, params, packed);
    std::vector<size_t> starts = tasks_of(chunks);
    auto run = [&](const Chunk& c, auto type) {
        using T = decltype(type);
        const auto update = make(typename Lanes<T>::V{});
        auto walk = [&](auto*... at) {
            for_lanes<T>(c.n, [&](int64_t i, auto tail) { update(i, tail, at...); });
        };
        for (int64_t r = 0; r < c.rows; r++) {
            int64_t from = c.begin + r * c.step;
            walk(params[c.tensor].ptr<T>() + from, lists[c.tensor].template ptr<T>() + from...);
        }
    };
    parallel_for(static_cast<int64_t>(starts.size()) - 1, [&](int64_t task) {
        auto t = static_cast<size_t>(task);
        for (size_t i = starts[t]; i < starts[t + 1]; i++) {
            const Chunk& c = chunks[i];
            if (params[c.tensor].dtype == DType::f32)
                run(c, float{});
            else  // others were refused by check_float
                run(c, double{});
            if (!packed.empty())
                repack(c, params[c.tensor], packed[2 * c.tensor], packed[2 * c.tensor + 1]);
        }
    });
}

}  // namespace mg
