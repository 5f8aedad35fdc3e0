// The bfloat16 matrix product: operands of bfloat16 (or of float32, rounded to it), sums in
// float32.
//
// B is packed in panels of 32 columns, pairs of k side by side, which is what the tile unit reads:
// (n_panels, K / 2, 32, 2), K rounded up to 32, zeros beyond the edges. The layout is the same at
// every instruction-set level, so a packed weight serves all of them.
#pragma once

#include "matmul_kernel.h"

namespace mg {

constexpr int64_t kPanelColumns = 32;
constexpr int64_t kTileK = 32;  // values of k that one tile of A or B holds

inline int64_t whole_panels(int64_t n) { return (n + kPanelColumns - 1) / kPanelColumns; }
inline int64_t whole_k(int64_t k) { return (k + kTileK - 1) / kTileK * kTileK; }

struct Bf16Product {
    int64_t m, n, k;
    Matrix a;       // (m, k), float32 or bfloat16
    const bf16* b;  // packed
    char* out;      // (m, n), float32 or bfloat16
    DType out_dtype;
    int64_t out_row;
    const float* bias;  // (n,) or null
    bool add;           // to what out holds
};

// b (k, n), float32 or bfloat16, into `packed`, of whole_panels(n) * whole_k(k) * 32.
void pack_panels_bf16(const Matrix& b, int64_t k, int64_t n, bf16* packed);
// The part of it that rows [k0, k0 + kc) and the panel of columns from j0 on make; kc is at most
// kKC, and a multiple of kTileK but at b's end.
void pack_block_bf16(const Matrix& b, int64_t k, int64_t n, int64_t k0, int64_t kc, int64_t j0,
                     bf16* packed);
void product_bf16(const Bf16Product& p);

}  // namespace mg
