"""The numbers of the decoded program, as `csrc/ptx/program.h` defines them; a test compares."""

from __future__ import annotations

import numpy as np

from .syntax import TYPE_BYTES

NONE = 0xFFFFFFFF  # an operand that is absent
NOT = 0x80000000  # set in a predicate operand that is negated
TRUE, FALSE = 0, NOT  # predicate 0 is always true

SHARED_WINDOW = 0x0001_0000_0000_0000  # generic addresses of shared memory
LOCAL_WINDOW = 0x0002_0000_0000_0000
PARAM_WINDOW = 0x0003_0000_0000_0000


def _numbered(names: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(names.split())}


TYPES = _numbered(
    "NO B8 B16 B32 B64 B128 U8 U16 U32 U64 S8 S16 S32 S64 F16 F16X2 BF16 BF16X2 F32 F64 TF32 "
    "E4M3 E5M2 E4M3X2 E5M2X2 PRED U16X2 S16X2 S4 U4 B1 F32X2"
)
ROUNDS = _numbered("NONE RN RZ RM RP RNI RZI RMI RPI RNA")
CMPS = _numbered("EQ NE LT LE GT GE LO LS HI HS EQU NEU LTU LEU GTU GEU NUM NAN")
SPACES = _numbered("GENERIC GLOBAL SHARED LOCAL PARAM CONST")
SEMS = _numbered("WEAK RELAXED ACQUIRE RELEASE ACQ_REL VOLATILE MMIO")
SCOPES = _numbered("CTA CLUSTER GPU SYS")
ATOMS = _numbered("ADD MIN MAX AND OR XOR EXCH CAS INC DEC")
BOOLS = {"and": 1, "or": 2, "xor": 3}
FLAGS = {
    "FTZ": 1, "SAT": 2, "APPROX": 4, "FULL": 8, "WIDE": 16, "HI": 32, "RELU": 64, "D64": 128,
    "S64": 256, "A64": 512, "CC_OUT": 1024, "CC_IN": 2048, "NANP": 4096, "TRANS": 8192,
    "UNI": 16384, "ALIGNED": 32768,
}  # fmt: skip
SPECIALS = _numbered(
    "TID_X TID_Y TID_Z NTID_X NTID_Y NTID_Z CTAID_X CTAID_Y CTAID_Z NCTAID_X NCTAID_Y NCTAID_Z "
    "LANEID WARPID NWARPID LANEMASK_EQ LANEMASK_LT LANEMASK_LE LANEMASK_GT LANEMASK_GE SMID NSMID "
    "GRIDID_LO DYNAMIC_SMEM_SIZE TOTAL_SMEM_SIZE CLUSTERID_X CLUSTERID_Y CLUSTERID_Z "
    "NCLUSTERID_X NCLUSTERID_Y NCLUSTERID_Z CLUSTER_CTAID_X CLUSTER_CTAID_Y CLUSTER_CTAID_Z "
    "CLUSTER_NCTAID_X CLUSTER_NCTAID_Y CLUSTER_NCTAID_Z CLUSTER_CTARANK CLUSTER_NCTARANK"
)
CHECKS = {"BOUNDS": 1, "UNINIT": 2, "PENDING": 4, "RACE": 8, "BARRIER": 16}
COUNTS = {"EXEC": 1, "MEMORY": 2}
OPS = _numbered(
    "ADD SUB MUL MAD FMA DIV REM ABS NEG MIN MAX SAD MUL24 MAD24 RCP SQRT RSQRT SIN COS LG2 EX2 "
    "TANH COPYSIGN TESTP AND OR XOR NOT CNOT SHL SHR LOP3 PRMT SHF BFE BFI BFIND FNS POPC CLZ "
    "BREV SZEXT BMSK DP4A DP2A SETP SET SELP SLCT MOV PACK UNPACK CLOCK CVT CVTPACK CVTA ISSPACEP "
    "MAPA GETCTARANK LD ST ATOM RED CPASYNC CPASYNC_COMMIT CPASYNC_WAIT CPASYNC_MBAR LDMATRIX "
    "STMATRIX MOVMATRIX MEMBAR FENCE SHFL VOTE MATCH REDUX ELECT ACTIVEMASK BARWARP BAR "
    "BARCLUSTER LABEL BRA BRX CALL RET EXIT TRAP BRKPT NOP NANOSLEEP SETMAXNREG GRIDDEP VPRINTF "
    "ASSERTFAIL MMA WGMMA WGMMA_FENCE WGMMA_COMMIT WGMMA_WAIT MBAR CPBULK CPTENSOR CPBULK_COMMIT "
    "CPBULK_WAIT TENSORMAP_REPLACE TENSORMAP_CPFENCE"
)

# What PTX calls a type → its number, and how many bits a register of it has.
PTX_TYPES = {name: TYPES[name.upper()] for name in TYPE_BYTES} | {
    name: TYPES[name.upper()]
    for name in ("pred", "e4m3", "e5m2", "e4m3x2", "e5m2x2", "u16x2", "s16x2", "s4", "u4", "b1",
                 "f32x2")
}  # fmt: skip
BITS = {name: 8 * size for name, size in TYPE_BYTES.items()} | {
    "pred": 1, "e4m3": 8, "e5m2": 8, "e4m3x2": 16, "e5m2x2": 16, "u16x2": 32, "s16x2": 32,
    "s4": 4, "u4": 4, "b1": 1, "f32x2": 64,
}  # fmt: skip

INSTRUCTION = np.dtype(
    [
        ("op", "<u2"), ("guard", "<u2"), ("type", "u1"), ("type2", "u1"), ("sub", "u1"),
        ("round", "u1"), ("space", "u1"), ("n", "u1"), ("flags", "<u2"), ("target", "<i4"),
        ("d", "<u4", 2), ("s", "<u4", 4), ("list", "<u4"), ("n_list", "<u4"), ("imm", "<i8"),
        ("aux", "<u4"), ("order", "<u4"),
    ]
)  # fmt: skip
CONSTANT = np.dtype([("row", "<u4"), ("kind", "<u4"), ("value", "<u8")])
RANGE = np.dtype(
    [("base", "<u8"), ("bytes", "<u8"), ("host", "<u8"), ("flags", "<u4"), ("id", "<u4")]
)
SPLAT32, SPLAT64, SPECIAL32, SPECIAL64 = range(4)  # kinds of CONSTANT
READ_ONLY = 1  # a flag of RANGE
