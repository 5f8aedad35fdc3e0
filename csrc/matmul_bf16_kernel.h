// The innermost loops of the bfloat16 product, and how A's rows are laid out for them.
//
// AMX: 32 × 32 of C in four tiles, A's rows as bfloat16. A step of 32 k adds to an element the sum
// of its even products plus the sum of its odd ones.
//
// Elsewhere, but where the processor has vdpbf16ps (matmul_bf16_dot.h): by conversion. A block of A
// and a panel of B become float32 (a product of two bfloat16 is exact there) and go through the
// float32 micro kernel, the odd k of a pair before the even one, as vdpbf16ps has it. So AVX2 and
// AVX-512 give the same bits, with the instruction or without; the generic level's K blocks are
// half as deep.
#pragma once

#include <atomic>

#include "matmul_bf16.h"

namespace mg {

#if defined(MG_AMX)

using RowElement = bf16;
constexpr int64_t kRowStep = 32;
constexpr int64_t kBlockRows = 4 * kRowStep;

// The unit is configured while a task uses it, and given back idle.
class Tiles {
  public:
    Tiles() { _tile_loadconfig(&kWhole); }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

  private:
    struct alignas(64) Config {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    static_assert(sizeof(Config) == 64);
    // In static memory: GCC's intrinsic tells the compiler of its first bytes only.
    static constexpr Config kWhole = {
        1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
};

// 32 rows (or, of a block's last, the first 16) × 32 columns of C.
template <bool kBothHalves>
void tile_block(int64_t kc, const bf16* a, const bf16* panel, float* c, int64_t c_row, bool add) {
    constexpr int64_t a_step = kKC * 2, b_step = kPanelColumns * 4;
    int64_t c_step = c_row * 4;
    if (add) {
        _tile_loadd(0, c, c_step);
        _tile_loadd(1, c + 16, c_step);
        if (kBothHalves) _tile_loadd(2, c + 16 * c_row, c_step);
        if (kBothHalves) _tile_loadd(3, c + 16 * c_row + 16, c_step);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < kc; k += kTileK) {
        const bf16* b = panel + k * kPanelColumns;
        _tile_loadd(6, b, b_step);
        _tile_loadd(7, b + 2 * 16, b_step);
        _tile_loadd(4, a + k, a_step);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (kBothHalves) {
            _tile_loadd(5, a + 16 * kKC + k, a_step);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, c_step);
    _tile_stored(1, c + 16, c_step);
    if (kBothHalves) _tile_stored(2, c + 16 * c_row, c_step);
    if (kBothHalves) _tile_stored(3, c + 16 * c_row + 16, c_step);
}

// One panel of columns by a block of rows: c (rows rounded up to 32, 32 columns).
inline void panel_block(int64_t rows, int64_t kc, const bf16* a, const bf16* panel, float* c,
                        int64_t c_row, bool add) {
    // GCC's intrinsics do not say that tiles are loaded from memory.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    for (int64_t i = 0; i < rows; i += 32) {
        if (rows - i > 16) {
            tile_block<true>(whole_k(kc), a + i * kKC, panel, c + i * c_row, c_row, add);
        } else {
            tile_block<false>(whole_k(kc), a + i * kKC, panel, c + i * c_row, c_row, add);
        }
    }
}

// A row of A as the kernel reads it; n is a multiple of kTileK.
inline void lay_row(const bf16* row, int64_t n, bf16* out) { std::copy_n(row, n, out); }

#else

using RowElement = float;
constexpr int64_t kRowStep = kMR;
constexpr int64_t kBlockRows = (kMR > 6 ? 8 : 16) * kMR;  // with float32, 96 KB of A on AVX2

struct Tiles {
    Tiles() {}  // nothing to configure
};

inline void panel_block(int64_t rows, int64_t kc, const float* a, const bf16* panel, float* c,
                        int64_t c_row, bool add) {
    alignas(64) float wide[kKC * kNR];
    int64_t pairs = (kc + 1) / 2;
    for (int64_t j = 0; j < kPanelColumns; j += kNR) {
        for (int64_t p = 0; p < pairs; p++)
            for (int64_t v = 0; v < kNR; v += VL) {
                vu pair;
                std::memcpy(&pair, panel + 2 * (p * kPanelColumns + j + v), sizeof(pair));
                store(wide + 2 * p * kNR + v, (vf)(pair & 0xffff0000u));
                store(wide + (2 * p + 1) * kNR + v, (vf)(pair << 16));
            }
        for (int64_t i = 0; i < rows; i += kMR)
            micro_rows<2, false>(2 * pairs, a + i * kKC, kKC, wide,
                                 {c + i * c_row + j, c_row, add, nullptr},
                                 std::min<int64_t>(kMR, rows - i), kNR);
    }
}

inline void lay_row(const bf16* row, int64_t n, float* out) {
    for (int64_t k = 0; k < n; k += 2) {
        out[k] = to_float(row[k + 1]);
        out[k + 1] = to_float(row[k]);
    }
}

#endif

}  // namespace mg
