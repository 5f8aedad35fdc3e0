// Bulk copies under way: what cp.async.bulk (bulk.cpp) and tensor copies (tensor.cpp) share.
#pragma once

#include "async.h"

namespace ptx {

// An operand of a lane, of 64 bits or of 32.
inline u64 operand(const Warp& w, u32 offset, int lane, bool wide) {
    return wide ? row<u64>(w, offset)[lane] : row<u32>(w, offset)[lane];
}

// Whether `aux` names an operation that reductions have.
inline bool reduces(const Code& c) {
    return c.aux < static_cast<u32>(Atom::CAS) && c.aux != static_cast<u32>(Atom::EXCH);
}

void check_shared_range(Warp& w, int lane, u32 at, u64 bytes, u32 align);
// `copy` has its pieces (and, a store, its reduction); the rest is filled in.
void issue_load(Warp& w, const Code* c, int lane, u32 at, u32 bytes, u32 mbarrier, BulkCopy copy);
void issue_store(Warp& w, const Code* c, int lane, u32 at, u32 bytes, BulkCopy copy);

}  // namespace ptx
