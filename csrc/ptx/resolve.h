// From an instruction to its handler and the kinds of its operands.
#pragma once

#include "machine.h"

namespace ptx {

// What an instruction needs: its handler and the kinds of its operands, a letter each: '1', '2',
// '4' rows, 'p' predicate, '-' not used; in capitals 'A' = one row or none, 'B' = two rows or none,
// 'P' = predicate or none. `list` has a letter for every element; those in capitals are written.
struct Form {
    Form() = default;
    Form(Handler run, std::string d, std::string s, std::string list = "")
        : run(run), d(std::move(d)), s(std::move(s)), list(std::move(list)) {}
    Handler run = nullptr;
    u32 (*compare)(const Warp&, const Code*) = nullptr;
    std::string d = "--";
    std::string s = "----";
    std::string list;
};

Form resolve_integer(const Code& c);
Form resolve_bits(const Code& c);
Form resolve_float(const Code& c);
Form resolve_special(const Code& c);
Form resolve_compare(const Code& c);
Form resolve_move(const Code& c);
Form resolve_convert(const Code& c);
Form resolve_memory(const Code& c);
Form resolve_atomic(const Code& c);
Form resolve_async(const Code& c);
Form resolve_warp(const Code& c);
Form resolve_control(const Code& c);
Form resolve_barrier(const Code& c);
Form resolve_matrix(const Code& c);
Form resolve_wgmma(const Code& c);
Form resolve_bulk(const Code& c);
Form resolve_tensor(const Code& c);

// Whether an mma has the A of the one before it, which that one has not changed (matrix.cpp).
bool takes_same_left(const Code& c, const Code& before);

inline bool is_float(Type t) {
    return t == Type::F16 || t == Type::F16X2 || t == Type::BF16 || t == Type::BF16X2 ||
           t == Type::F32 || t == Type::F64;
}
inline bool is_signed(Type t) {
    return t == Type::S8 || t == Type::S16 || t == Type::S32 || t == Type::S64;
}

// Bytes of a value; packed pairs count whole.
inline int bytes_of(Type t) {
    switch (t) {
        case Type::B8:
        case Type::U8:
        case Type::S8:
        case Type::E4M3:
        case Type::E5M2:
            return 1;
        case Type::B16:
        case Type::U16:
        case Type::S16:
        case Type::F16:
        case Type::BF16:
        case Type::E4M3X2:
        case Type::E5M2X2:
            return 2;
        case Type::B64:
        case Type::U64:
        case Type::S64:
        case Type::F64:
        case Type::F32X2:
            return 8;
        case Type::B128:
            return 16;
        default:
            return 4;
    }
}
inline char letter(Type t) { return bytes_of(t) == 8 ? '2' : bytes_of(t) == 16 ? '4' : '1'; }

}  // namespace ptx
