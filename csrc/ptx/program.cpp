// Loading a program: every index is checked, every instruction gets its handler.
#include "registers.h"
#include "resolve.h"

namespace ptx {
namespace {

constexpr const char* kOpNames[] = {
#define PTX_NAME(name) #name,
    PTX_OPS(PTX_NAME)
#undef PTX_NAME
};

Form resolve(const Code& c) {
    switch (c.op) {
        case Op::ADD:
        case Op::SUB:
        case Op::MUL:
        case Op::MAD:
        case Op::DIV:
        case Op::MIN:
        case Op::MAX:
        case Op::NEG:
        case Op::ABS:
            return is_float(c.type) ? resolve_float(c) : resolve_integer(c);
        case Op::FMA:
        case Op::RCP:
        case Op::SQRT:
        case Op::COPYSIGN:
        case Op::TESTP:
            return resolve_float(c);
        case Op::RSQRT:
        case Op::SIN:
        case Op::COS:
        case Op::LG2:
        case Op::EX2:
        case Op::TANH:
            return resolve_special(c);
        case Op::REM:
        case Op::SAD:
        case Op::MUL24:
        case Op::MAD24:
        case Op::AND:
        case Op::OR:
        case Op::XOR:
        case Op::NOT:
        case Op::CNOT:
        case Op::DP4A:
        case Op::DP2A:
            return resolve_integer(c);
        case Op::SHL:
        case Op::SHR:
        case Op::LOP3:
        case Op::PRMT:
        case Op::SHF:
        case Op::BFE:
        case Op::BFI:
        case Op::BFIND:
        case Op::FNS:
        case Op::POPC:
        case Op::CLZ:
        case Op::BREV:
        case Op::SZEXT:
        case Op::BMSK:
            return resolve_bits(c);
        case Op::SETP:
        case Op::SET:
        case Op::SELP:
        case Op::SLCT:
            return resolve_compare(c);
        case Op::MOV:
        case Op::PACK:
        case Op::UNPACK:
        case Op::CLOCK:
        case Op::CVTA:
        case Op::ISSPACEP:
        case Op::MAPA:
        case Op::GETCTARANK:
            return resolve_move(c);
        case Op::CVT:
        case Op::CVTPACK:
            return resolve_convert(c);
        case Op::LD:
        case Op::ST:
            return resolve_memory(c);
        case Op::ATOM:
        case Op::RED:
            return resolve_atomic(c);
        case Op::CPASYNC:
        case Op::CPASYNC_COMMIT:
        case Op::CPASYNC_WAIT:
        case Op::CPASYNC_MBAR:
        case Op::MBAR:
            return resolve_async(c);
        case Op::MMA:
        case Op::LDMATRIX:
        case Op::STMATRIX:
        case Op::MOVMATRIX:
            return resolve_matrix(c);
        case Op::SHFL:
        case Op::VOTE:
        case Op::MATCH:
        case Op::REDUX:
        case Op::ELECT:
        case Op::ACTIVEMASK:
        case Op::VPRINTF:
        case Op::ASSERTFAIL:
            return resolve_warp(c);
        case Op::BAR:
        case Op::BARWARP:
            return resolve_barrier(c);
        case Op::WGMMA:
        case Op::WGMMA_FENCE:
        case Op::WGMMA_COMMIT:
        case Op::WGMMA_WAIT:
            return resolve_wgmma(c);
        case Op::CPBULK:
        case Op::CPBULK_COMMIT:
        case Op::CPBULK_WAIT:
            return resolve_bulk(c);
        case Op::CPTENSOR:
        case Op::TENSORMAP_REPLACE:
        case Op::TENSORMAP_CPFENCE:
            return resolve_tensor(c);
        default:
            return resolve_control(c);
    }
}

bool ends_block(Op op) {
    return op == Op::BRA || op == Op::BRX || op == Op::EXIT || op == Op::RET || op == Op::CALL ||
           op == Op::TRAP;
}

struct Loader {
    Program& p;
    const Instruction* source;
    std::size_t n;
    std::vector<bool> constant;  // rows that instructions must not write; then the scratch rows
    std::vector<RowUse> uses = {};
    u32 at = 0;

    [[noreturn]] void refuse(std::string why) const {
        std::string name =
            at < n && source[at].op < static_cast<u16>(Op::COUNT) ? kOpNames[source[at].op] : "?";
        throw LoadError{at, name + ": " + std::move(why)};
    }

    u32 rows_of(char kind) const { return kind == '1' || kind == 'A' ? 1 : kind == '4' ? 4 : 2; }

    // The operand as handlers want it: a predicate, or a row that is given its place later. `which`
    // counts d, s and the list.
    u32 operand(const Code& c, u32 which, u32 x, char kind, bool written) {
        switch (kind) {
            case '-':
                return 0;
            case 'P':
            case 'p': {
                if (x == kNone && kind == 'P') return written ? p.n_preds : 0;
                u32 index = x & ~kNegated;
                if (index >= p.n_preds)
                    refuse("predicate " + std::to_string(index) + " of " +
                           std::to_string(p.n_preds));
                if (written && (x & kNegated || index == 0))
                    refuse("writes a predicate that is constant or negated");
                return x;
            }
            default:
                break;
        }
        if (x == kNone) {
            if (kind != 'A' && kind != 'B') refuse("an operand is missing");
            if (!written) return kNone;
            x = p.n_rows;
        } else if (x >= p.n_rows || p.n_rows - x < rows_of(kind)) {
            refuse("row " + std::to_string(x) + " of " + std::to_string(p.n_rows));
        }
        u32 rows = rows_of(kind);
        for (u32 i = 0; written && i < rows && x < p.n_rows; ++i) {
            if (constant[x + i])
                refuse("writes row " + std::to_string(x) + ", which holds a constant");
        }
        // The accumulators of wgmma are read, too.
        bool replaced = written && !c.guard && c.op != Op::WGMMA;
        uses.push_back({at, which, x, u8(rows), replaced});
        return x;
    }

    void one(Code& c, const Instruction& i, std::vector<u32>& lists) {
        if (i.op >= static_cast<u16>(Op::COUNT))
            refuse("operation " + std::to_string(i.op) + " is not known");
        if (i.type >= static_cast<u8>(Type::COUNT) || i.type2 >= static_cast<u8>(Type::COUNT) ||
            i.round >= static_cast<u8>(Round::COUNT) || i.space >= static_cast<u8>(Space::COUNT)) {
            refuse("a type, rounding or space is not known");
        }
        c = Code{};
        c.index = at;
        c.op = static_cast<Op>(i.op);
        c.type = static_cast<Type>(i.type);
        c.type2 = static_cast<Type>(i.type2);
        c.sub = i.sub;
        c.round = static_cast<Round>(i.round);
        c.space = static_cast<Space>(i.space);
        c.n = i.n;
        c.flags = i.flags;
        c.imm = i.imm;
        c.aux = i.aux;
        c.order = i.order;
        for (int k = 0; k < 2; ++k) c.d[k] = i.d[k];
        for (int k = 0; k < 4; ++k) c.s[k] = i.s[k];
        c.n_list = i.n_list;
        u32 guard = i.guard & 0x7FFF;
        if (guard >= p.n_preds)
            refuse("guard " + std::to_string(guard) + " of " + std::to_string(p.n_preds));
        c.guard = guard | (i.guard & 0x8000 ? kNegated : 0);
        if (u64(i.list) + i.n_list > p.pool.size()) refuse("its operand list lies beyond the pool");

        Form f = resolve(c);
        if (!f.run) refuse("this combination of types and modifiers is not supported");
        c.run = f.run;
        c.compare = f.compare;
        if (!f.list.empty() && f.list.size() != c.n_list) {
            refuse("takes " + std::to_string(f.list.size()) + " listed operands, got " +
                   std::to_string(c.n_list));
        }
        for (u32 k = 0; k < c.n_list; ++k) {
            u32 x = p.pool[i.list + k];
            if (c.op == Op::BRX) {
                if (x >= n || source[x].op != static_cast<u16>(Op::LABEL))
                    refuse("a target is no label");
                lists.push_back(x);
            } else if (f.list.empty()) {
                lists.push_back(0);
            } else {
                bool written = f.list[k] >= 'A' && f.list[k] <= 'Z';
                lists.push_back(operand(c, 6 + k, x, f.list[k], written));
            }
        }
        for (u32 k = 0; k < 2; ++k) c.d[k] = operand(c, k, i.d[k], f.d[k], true);
        for (u32 k = 0; k < 4; ++k) c.s[k] = operand(c, 2 + k, i.s[k], f.s[k], false);
        if (c.op == Op::BRA || c.op == Op::CALL) {
            if (i.target < 0 || u64(i.target) >= n ||
                source[i.target].op != static_cast<u16>(Op::LABEL)) {
                refuse("its target is no label");
            }
            c.target = static_cast<u32>(i.target);
        }
    }

    // Registers become the offsets of the rows that they share.
    void place_rows() {
        Places places = share_rows(p.code, uses, constant);
        for (const RowUse& use : uses) {
            Code& c = p.code[use.instruction];
            u32& x = use.operand < 2 ? c.d[use.operand]
                     : use.operand < 6
                         ? c.s[use.operand - 2]
                         : p.pool[std::size_t(c.list - p.pool.data()) + use.operand - 6];
            x = places.of[use.row] * 128;
        }
        for (Constant& c : p.constants) c.row = places.of[c.row];
        p.n_rows = places.n_rows;
    }

    void orders(const Code& c) {
        // What makes the order of blocks visible through global memory.
        bool global = c.space == Space::GLOBAL || c.space == Space::GENERIC;
        bool atomic = c.op == Op::ATOM || (c.op == Op::RED && is_float(c.type));
        bool polls = c.op == Op::LD && (c.aux & 15) != static_cast<u32>(Sem::WEAK);
        if (global && (atomic || polls)) p.ordered = true;
        if ((c.op == Op::CPBULK && c.sub == 3) || (c.op == Op::CPTENSOR && c.sub == 2))
            p.ordered = true;
        if (c.op == Op::CPBULK || c.op == Op::CPTENSOR) p.async_shared = true;
    }
};

}  // namespace

std::unique_ptr<Program> load_program(const Instruction* code, std::size_t n, const u32* pool,
                                      std::size_t n_pool, const Constant* constants,
                                      std::size_t n_constants, u32 n_rows, u32 n_preds, u32 entry,
                                      u32 static_shared, u32 local_bytes, u32 param_bytes) {
    constexpr u32 kScratchRows = 4;  // for results that nobody wants
    constexpr u32 kMostRows = 1u << 20, kMostPreds = 1u << 15, kMostBytes = 1u << 24;
    auto p = std::make_unique<Program>();
    Loader loader{*p, code, n, std::vector<bool>(n_rows <= kMostRows ? n_rows + kScratchRows : 0)};
    auto whole = [](std::string why) { throw LoadError{-1, std::move(why)}; };
    if (n == 0 || n > (1u << 24))
        whole("a program has 1 to 2^24 instructions, not " + std::to_string(n));
    if (n_rows == 0 || n_rows > kMostRows)
        whole("a program has 1 to 2^20 rows, not " + std::to_string(n_rows));
    if (n_preds == 0 || n_preds > kMostPreds)
        whole("a program has 1 to 2^15 predicates, not " + std::to_string(n_preds));
    if (static_shared > kMostBytes || local_bytes > kMostBytes || param_bytes > kMostBytes) {
        whole("shared memory, local memory and parameters have at most 2^24 bytes");
    }
    if (entry >= n || code[entry].op != static_cast<u16>(Op::LABEL)) whole("the entry is no label");
    p->n_rows = n_rows;
    p->n_preds = n_preds;
    p->entry = entry;
    p->static_shared = static_shared;
    p->local_bytes = local_bytes;
    p->param_bytes = param_bytes;
    p->pool.assign(pool, pool + n_pool);
    for (std::size_t k = 0; k < n_constants; ++k) {
        const Constant& c = constants[k];
        u32 rows = c.kind == 1 || c.kind == 3 ? 2 : 1;
        if (c.kind > 3 || c.row >= n_rows || n_rows - c.row < rows)
            whole("constant " + std::to_string(k) + " names no row");
        if (c.kind >= 2 && c.value >= static_cast<u64>(Special::COUNT))
            whole("constant " + std::to_string(k) + " names no special register");
        for (u32 r = 0; r < rows; ++r) loader.constant[c.row + r] = true;
        p->constants.push_back(c);
    }
    for (u32 r = 0; r < kScratchRows; ++r) loader.constant[n_rows + r] = true;
    p->code.resize(n + 1);
    std::vector<u32> lists;
    std::vector<std::size_t> starts(n);
    for (std::size_t k = 0; k < n; ++k) {
        loader.at = static_cast<u32>(k);
        starts[k] = lists.size();
        loader.one(p->code[k], code[k], lists);
        loader.orders(p->code[k]);
        if (k + 1 < n && ends_block(p->code[k].op) &&
            code[k + 1].op != static_cast<u16>(Op::LABEL)) {
            loader.refuse("ends a block, and no label follows");
        }
    }
    p->pool = std::move(lists);
    for (std::size_t k = 0; k < n; ++k) p->code[k].list = p->pool.data() + starts[k];
    // Past the end: a return.
    Code& end = p->code[n];
    end.index = static_cast<u32>(n);
    end.op = Op::RET;
    end.order = ~0u;
    end.run = resolve_control(end).run;
    loader.place_rows();
    for (std::size_t k = 1; k < n; ++k)
        p->code[k].same_left = takes_same_left(p->code[k], p->code[k - 1]);
    u32 block = 0;
    for (std::size_t k = 0; k < n; ++k) {
        if (p->code[k].op == Op::LABEL) block = static_cast<u32>(k);
        ++p->code[block].length;
    }
    return p;
}

}  // namespace ptx
