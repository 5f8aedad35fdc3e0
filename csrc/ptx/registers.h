// Registers to rows: those that no lane needs at the same time share.
#pragma once

#include "machine.h"

namespace ptx {

// An operand of an instruction that is `n` rows, from `row` on.
struct RowUse {
    u32 instruction;
    u32 operand;  // d[0], d[1], s[0] … s[3], then its list
    u32 row;
    u8 n;
    bool replaced;  // written without being read, and by every lane that runs the instruction
};

// A new place for each row, and how many there are. `uses` are in order of their instructions; rows
// of `pinned` keep what they hold throughout the program.
struct Places {
    std::vector<u32> of;
    u32 n_rows;
};
Places share_rows(const std::vector<Code>& code, const std::vector<RowUse>& uses,
                  const std::vector<bool>& pinned);

}  // namespace ptx
