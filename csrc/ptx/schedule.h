// A block from its start to its end, as a launch sees it.
#pragma once

#include "machine.h"

namespace ptx {

// The first error of a block, thrown out of `run_block`.
struct Stopped {
    Report report;
};
[[noreturn]] void stop(const Block& b, const Warp& w, i64 instruction, Fault f);

// Memory for a block of this launch, to be used by one after the other (block.cpp).
void allocate(Block& b, const Launch& launch, Worker& worker);
// Makes it the block of this rank, about to begin.
void start(Block& b, u64 rank);
// Until the block is done (true) or wants other blocks to run (schedule.cpp).
bool run_block(Block& b);

}  // namespace ptx
