// The decoded program: what the front end (minigrad/ptx) hands over, and the names of everything in
// it. The numbers of an enumeration are the order of its names; the module exports them.
#pragma once

#include <cstdint>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

constexpr u32 kNone = 0xFFFFFFFFu;  // an operand that is not there
constexpr u32 kNegated = 1u << 31;  // a predicate operand that is negated
constexpr int kLanes = 32;
constexpr u32 kFull = 0xFFFFFFFFu;

// Where generic addresses find the spaces that have no address of their own.
constexpr u64 kSharedWindow = 0x0001'0000'0000'0000;
constexpr u64 kLocalWindow = 0x0002'0000'0000'0000;
constexpr u64 kParamWindow = 0x0003'0000'0000'0000;

// clang-format off
#define PTX_OPS(X)                                                                                 \
    X(ADD) X(SUB) X(MUL) X(MAD) X(FMA) X(DIV) X(REM) X(ABS) X(NEG) X(MIN) X(MAX) X(SAD) X(MUL24)   \
    X(MAD24) X(RCP) X(SQRT) X(RSQRT) X(SIN) X(COS) X(LG2) X(EX2) X(TANH) X(COPYSIGN) X(TESTP)      \
    X(AND) X(OR) X(XOR) X(NOT) X(CNOT) X(SHL) X(SHR) X(LOP3) X(PRMT) X(SHF) X(BFE) X(BFI)          \
    X(BFIND) X(FNS) X(POPC) X(CLZ) X(BREV) X(SZEXT) X(BMSK) X(DP4A) X(DP2A) X(SETP) X(SET)         \
    X(SELP) X(SLCT) X(MOV) X(PACK) X(UNPACK) X(CLOCK) X(CVT) X(CVTPACK) X(CVTA) X(ISSPACEP)        \
    X(MAPA) X(GETCTARANK) X(LD) X(ST) X(ATOM) X(RED) X(CPASYNC) X(CPASYNC_COMMIT)                  \
    X(CPASYNC_WAIT) X(CPASYNC_MBAR) X(LDMATRIX) X(STMATRIX) X(MOVMATRIX) X(MEMBAR) X(FENCE)        \
    X(SHFL) X(VOTE) X(MATCH) X(REDUX) X(ELECT) X(ACTIVEMASK) X(BARWARP) X(BAR) X(BARCLUSTER)       \
    X(LABEL) X(BRA) X(BRX) X(CALL) X(RET) X(EXIT) X(TRAP) X(BRKPT) X(NOP) X(NANOSLEEP)             \
    X(SETMAXNREG) X(GRIDDEP) X(VPRINTF) X(ASSERTFAIL) X(MMA) X(WGMMA) X(WGMMA_FENCE)               \
    X(WGMMA_COMMIT) X(WGMMA_WAIT) X(MBAR) X(CPBULK) X(CPTENSOR) X(CPBULK_COMMIT) X(CPBULK_WAIT)    \
    X(TENSORMAP_REPLACE) X(TENSORMAP_CPFENCE)
#define PTX_TYPES(X)                                                                               \
    X(NO) X(B8) X(B16) X(B32) X(B64) X(B128) X(U8) X(U16) X(U32) X(U64) X(S8) X(S16) X(S32) X(S64) \
    X(F16) X(F16X2) X(BF16) X(BF16X2) X(F32) X(F64) X(TF32) X(E4M3) X(E5M2) X(E4M3X2) X(E5M2X2)    \
    X(PRED) X(U16X2) X(S16X2) X(S4) X(U4) X(B1) X(F32X2)
#define PTX_ROUNDS(X) X(NONE) X(RN) X(RZ) X(RM) X(RP) X(RNI) X(RZI) X(RMI) X(RPI) X(RNA)
#define PTX_CMPS(X)                                                                                \
    X(EQ) X(NE) X(LT) X(LE) X(GT) X(GE) X(LO) X(LS) X(HI) X(HS) X(EQU) X(NEU) X(LTU) X(LEU)        \
    X(GTU) X(GEU) X(NUM) X(NAN_)
#define PTX_SPACES(X) X(GENERIC) X(GLOBAL) X(SHARED) X(LOCAL) X(PARAM) X(CONST)
#define PTX_SEMS(X) X(WEAK) X(RELAXED) X(ACQUIRE) X(RELEASE) X(ACQ_REL) X(VOLATILE) X(MMIO)
#define PTX_ATOMS(X) X(ADD) X(MIN) X(MAX) X(AND) X(OR) X(XOR) X(EXCH) X(CAS) X(INC) X(DEC)
#define PTX_SPECIALS(X)                                                                            \
    X(TID_X) X(TID_Y) X(TID_Z) X(NTID_X) X(NTID_Y) X(NTID_Z) X(CTAID_X) X(CTAID_Y) X(CTAID_Z)      \
    X(NCTAID_X) X(NCTAID_Y) X(NCTAID_Z) X(LANEID) X(WARPID) X(NWARPID) X(LANEMASK_EQ)              \
    X(LANEMASK_LT) X(LANEMASK_LE) X(LANEMASK_GT) X(LANEMASK_GE) X(SMID) X(NSMID) X(GRIDID_LO)      \
    X(DYNAMIC_SMEM_SIZE) X(TOTAL_SMEM_SIZE) X(CLUSTERID_X) X(CLUSTERID_Y) X(CLUSTERID_Z)           \
    X(NCLUSTERID_X) X(NCLUSTERID_Y) X(NCLUSTERID_Z) X(CLUSTER_CTAID_X) X(CLUSTER_CTAID_Y)          \
    X(CLUSTER_CTAID_Z) X(CLUSTER_NCTAID_X) X(CLUSTER_NCTAID_Y) X(CLUSTER_NCTAID_Z)                 \
    X(CLUSTER_CTARANK) X(CLUSTER_NCTARANK)
// Kinds of reports, in lower case outside.
#define PTX_KINDS(X)                                                                               \
    X(OUT_OF_BOUNDS) X(MISALIGNED) X(READ_ONLY) X(UNINITIALIZED) X(PENDING) X(RACE)                \
    X(DIVERGENT_BARRIER) X(BARRIER_MISMATCH) X(DEADLOCK) X(NOT_RESIDENT) X(STEP_LIMIT)             \
    X(NESTING_LIMIT) X(ILLEGAL) X(TRAP) X(ASSERT) X(MEMORY_LIMIT) X(SYNC_MASK) X(WGMMA) X(TMA)
// clang-format on

#define PTX_ENUMERATOR(name) name,
enum class Op : u16 { PTX_OPS(PTX_ENUMERATOR) COUNT };
enum class Type : u8 { PTX_TYPES(PTX_ENUMERATOR) COUNT };
enum class Round : u8 { PTX_ROUNDS(PTX_ENUMERATOR) COUNT };
enum class Cmp : u8 { PTX_CMPS(PTX_ENUMERATOR) COUNT };
enum class Space : u8 { PTX_SPACES(PTX_ENUMERATOR) COUNT };
enum class Sem : u8 { PTX_SEMS(PTX_ENUMERATOR) COUNT };
enum class Atom : u8 { PTX_ATOMS(PTX_ENUMERATOR) COUNT };
enum class Special : u32 { PTX_SPECIALS(PTX_ENUMERATOR) COUNT };
enum class Kind : u8 { PTX_KINDS(PTX_ENUMERATOR) COUNT };
#undef PTX_ENUMERATOR

// clang-format off
#define PTX_FLAGS(X)                                                                               \
    X(FTZ, 1) X(SAT, 2) X(APPROX, 4) X(FULL, 8) X(WIDE, 16) X(HI, 32) X(RELU, 64)                  \
    X(D64, 128) X(S64, 256) X(A64, 512) X(CC_OUT, 1024) X(CC_IN, 2048) X(NANP, 4096)               \
    X(TRANS, 8192) X(UNI, 16384) X(ALIGNED, 32768)
// clang-format on
namespace flag {
#define PTX_CONSTANT(name, bit) constexpr u16 name = bit;
PTX_FLAGS(PTX_CONSTANT)
#undef PTX_CONSTANT
}  // namespace flag

#define PTX_CHECKS(X) X(BOUNDS, 1) X(UNINIT, 2) X(PENDING, 4) X(RACE, 8) X(BARRIER, 16)
namespace check {
constexpr u32 UNINIT = 2, PENDING = 4, RACE = 8, BARRIER = 16;
}
namespace count {
constexpr u32 EXEC = 1, MEMORY = 2;
}

enum class BarOp : u8 { SYNC, ARRIVE, RED_POPC, RED_AND, RED_OR };
enum class MbarOp : u8 {
    INIT,
    INVAL,
    ARRIVE,
    ARRIVE_DROP,
    ARRIVE_EXPECT,
    EXPECT_TX,
    COMPLETE_TX,
    TEST_WAIT,
    TEST_WAIT_PARITY,
    TRY_WAIT,
    TRY_WAIT_PARITY,
    PENDING_COUNT
};

// One instruction as the front end writes it. `kNone` marks absent operands.
struct Instruction {
    u16 op;
    u16 guard;  // predicate; bit 15 negates
    u8 type;
    u8 type2;
    u8 sub;
    u8 round;
    u8 space;
    u8 n;
    u16 flags;
    i32 target;
    u32 d[2];
    u32 s[4];
    u32 list;
    u32 n_list;
    i64 imm;
    u32 aux;
    u32 order;
} __attribute__((packed));
static_assert(sizeof(Instruction) == 64, "mirrored by minigrad/ptx/isa.py");

// A row with a fixed value: 0 = 32 bits, 1 = 64 bits (two rows), 2 and 3 = a special register.
struct Constant {
    u32 row;
    u32 kind;
    u64 value;
};
static_assert(sizeof(Constant) == 16);

// A range of device addresses and the host memory behind it.
struct Range {
    u64 base;
    u64 bytes;
    u64 host;
    u32 flags;  // 1 = read-only
    u32 id;
};
static_assert(sizeof(Range) == 32);

}  // namespace ptx
