// Compilers give every value a register of its own: a kernel has thousands, and a row of 128 bytes
// for each of them would leave the cache between two uses. Here they share rows as in a compiler's
// linear scan (Poletto, Sarkar 1999): liveness over the blocks, one interval of instructions for
// each register, and rows that go to the next interval once theirs is over.
//
// Lanes may be at different places of a program. That is innocent: a lane follows one path, on
// which a register that it still reads is live at every instruction, and writes touch only the
// lanes that run them. What one instruction reads and writes never shares, so handlers may write a
// result before they have read everything.
#include "registers.h"

#include <algorithm>

namespace ptx {
namespace {

// Bits of liveness, of every register in every block, beyond which nothing is shared: 32 MiB.
constexpr u64 kMostBits = u64{1} << 28;

// Rows that operands take together.
struct Register {
    u32 row = 0;
    u32 n = 0;
    bool pinned = false;
    u32 first = kNone, last = 0;  // the instructions from which and up to which it is live

    void live_at(u32 instruction) {
        first = std::min(first, instruction);
        last = std::max(last, instruction);
    }
};

struct Basic {
    u32 begin, end;  // instructions
    std::size_t use, use_end;
    std::vector<u32> next;
};

struct Sharing {
    const std::vector<Code>& code;
    const std::vector<RowUse>& uses;
    std::vector<Register> registers;
    std::vector<u32> register_of;  // a row's
    std::vector<Basic> blocks;
    std::vector<u32> block_of;  // an instruction's

    void find_registers(const std::vector<bool>& pinned) {
        std::size_t n = pinned.size();
        std::vector<bool> joined(n);  // to the row before
        for (const RowUse& use : uses)
            for (u32 i = 1; i < use.n; ++i) joined[use.row + i] = true;
        register_of.resize(n);
        for (u32 row = 0; row < n; ++row) {
            if (!joined[row]) registers.push_back({row});
            Register& r = registers.back();
            ++r.n;
            r.pinned = r.pinned || pinned[row];
            register_of[row] = u32(registers.size() - 1);
        }
    }

    void find_blocks() {
        u32 n = u32(code.size());
        block_of.resize(n);
        std::size_t use = 0;
        for (u32 i = 0; i < n; ++i) {
            // The last instruction, past the end of the text, is a block without a label.
            if (i == 0 || i + 1 == n || code[i].op == Op::LABEL) {
                if (!blocks.empty()) blocks.back().use_end = use;
                blocks.push_back({i, i, use, use, {}});
            }
            blocks.back().end = i + 1;
            block_of[i] = u32(blocks.size() - 1);
            while (use < uses.size() && uses[use].instruction == i) ++use;
        }
        blocks.back().use_end = use;
        std::vector<u32> returns;
        for (u32 i = 0; i + 1 < n; ++i)
            if (code[i].op == Op::CALL) returns.push_back(block_of[i + 1]);
        for (Basic& b : blocks) {
            const Code& c = code[b.end - 1];
            bool leaves = c.op == Op::BRA || c.op == Op::BRX || c.op == Op::CALL ||
                          c.op == Op::RET || c.op == Op::EXIT;
            if (c.op == Op::BRA || c.op == Op::CALL) b.next.push_back(block_of[c.target]);
            if (c.op == Op::BRX)
                for (u32 k = 0; k < c.n_list; ++k) b.next.push_back(block_of[c.list[k]]);
            if (c.op == Op::RET) b.next = returns;
            if ((!leaves || c.guard) && b.end < n) b.next.push_back(block_of[b.end]);
        }
    }

    // Calls `f` with the register of each operand of a block, the last one first: what replaces a
    // value before what reads it.
    template <class F>
    void backwards(const Basic& b, F f) const {
        for (std::size_t end = b.use_end; end > b.use;) {
            std::size_t begin = end;
            while (begin > b.use && uses[begin - 1].instruction == uses[end - 1].instruction)
                --begin;
            for (bool replaced : {true, false}) {
                for (std::size_t k = begin; k < end; ++k) {
                    u32 r = register_of[uses[k].row];
                    // A part of a register does not replace it.
                    bool whole = uses[k].replaced && uses[k].n == registers[r].n;
                    if (whole == replaced) f(r, uses[k].instruction, whole);
                }
            }
            end = begin;
        }
    }

    void find_intervals() {
        std::size_t words = (registers.size() + 63) / 64;
        auto bit = [](u32 r) { return u64{1} << (r & 63); };
        std::vector<u64> in(words * blocks.size()), replaced(in), out(words);
        for (std::size_t b = 0; b < blocks.size(); ++b) {
            backwards(blocks[b], [&](u32 r, u32, bool whole) {
                u64 &live = in[b * words + (r >> 6)], &gone = replaced[b * words + (r >> 6)];
                live = whole ? live & ~bit(r) : live | bit(r);
                gone |= whole ? bit(r) : 0;
            });
        }
        auto leaving = [&](const Basic& b) {
            std::fill(out.begin(), out.end(), 0);
            for (u32 next : b.next)
                for (std::size_t i = 0; i < words; ++i) out[i] |= in[next * words + i];
        };
        for (bool changed = true; changed;) {
            changed = false;
            for (std::size_t b = blocks.size(); b-- > 0;) {
                leaving(blocks[b]);
                for (std::size_t i = 0; i < words; ++i) {
                    u64& x = in[b * words + i];
                    u64 more = out[i] & ~replaced[b * words + i] & ~x;
                    x |= more;
                    changed = changed || more;
                }
            }
        }
        for (const RowUse& use : uses) registers[register_of[use.row]].live_at(use.instruction);
        for (std::size_t b = 0; b < blocks.size(); ++b) {
            leaving(blocks[b]);
            for (std::size_t i = 0; i < words; ++i) {
                for (u64 x = in [b * words + i]; x; x &= x - 1)
                    registers[i * 64 + std::size_t(__builtin_ctzll(x))].live_at(blocks[b].begin);
                for (u64 x = out[i]; x; x &= x - 1)
                    registers[i * 64 + std::size_t(__builtin_ctzll(x))].live_at(blocks[b].end - 1);
            }
        }
    }

    Places place(bool share) {
        Places out{std::vector<u32>(register_of.size()), 0};
        auto put = [&](const Register& r, u32 row) {
            for (u32 i = 0; i < r.n; ++i) out.of[r.row + i] = row + i;
        };
        auto fresh = [&](const Register& r) {
            u32 row = out.n_rows;
            out.n_rows += r.n;
            return row;
        };
        std::vector<u32> order;
        for (u32 r = 0; r < registers.size(); ++r) {
            if (registers[r].pinned || !share) {
                put(registers[r], fresh(registers[r]));
            } else if (registers[r].first != kNone) {
                order.push_back(r);
            }
        }
        std::stable_sort(order.begin(), order.end(),
                         [&](u32 a, u32 b) { return registers[a].first < registers[b].first; });
        auto later = [&](u32 a, u32 b) { return registers[a].last > registers[b].last; };
        std::vector<u32> live;                             // a heap: the one that ends first on top
        std::unordered_map<u32, std::vector<u32>> unused;  // by size; the latest is still in cache
        for (u32 r : order) {
            while (!live.empty() && registers[live.front()].last < registers[r].first) {
                const Register& over = registers[live.front()];
                unused[over.n].push_back(out.of[over.row]);
                std::pop_heap(live.begin(), live.end(), later);
                live.pop_back();
            }
            std::vector<u32>& rows = unused[registers[r].n];
            u32 row = rows.empty() ? fresh(registers[r]) : rows.back();
            if (!rows.empty()) rows.pop_back();
            put(registers[r], row);
            live.push_back(r);
            std::push_heap(live.begin(), live.end(), later);
        }
        return out;
    }
};

}  // namespace

Places share_rows(const std::vector<Code>& code, const std::vector<RowUse>& uses,
                  const std::vector<bool>& pinned) {
    Sharing s{code, uses, {}, {}, {}, {}};
    s.find_registers(pinned);
    s.find_blocks();
    bool share = u64(s.registers.size()) * s.blocks.size() <= kMostBits;
    if (share) s.find_intervals();
    return s.place(share);
}

}  // namespace ptx
