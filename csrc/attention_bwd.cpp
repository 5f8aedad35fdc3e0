// Fused multi-head attention, backward (Dao 2023): the weights are made again from the saved lse,
// tile by tile. One task does all query heads of one key head, query tile after query tile, so that
// dk and dv are sums in one order. Five tile products:
//   Sᵀ = K Qᵀ    dPᵀ = V dOᵀ    dV += Pᵀ dO    dK += dSᵀ Q    dQ += dS K
#include "attention_tiles.h"

namespace mg {
namespace {

struct BackwardScratch {
    alignas(64) float weights[kKeys * kQueries];   // Sᵀ, then Pᵀ
    alignas(64) float gradient[kKeys * kQueries];  // dPᵀ, then dSᵀ
    alignas(64) float extra[kKeys * kQueries];     // addend
    alignas(64) float factor[kKeys * kQueries];    // dropout
    alignas(64) float lse[kQueries], delta[kQueries];
};

// Pᵀ and dSᵀ in place of Sᵀ and dPᵀ. With dropout, weights become the dropped ones that dV needs.
void gradient_tile(const Stairs& stairs, int64_t lanes, float scale, const float* addend,
                   const float* factor, BackwardScratch& t) {
    vf k = broadcast(scale), lowest = broadcast(-kInfinity);
    for (int64_t i = 0; i < lanes; i += VL) {
        vf lse = load(t.lse + i), delta = load(t.delta + i);
        for_keys_seen(stairs, i, [&](int64_t j, auto hide) {
            int64_t at = j * kQueries + i;
            vf x = hide(load(t.weights + at) * k);
            if (addend) {
                vf a = load(addend + at);
                x = select(a == lowest, lowest, x + a);
            }
            vf p = exp_nonpositive(x - lse), dp = load(t.gradient + at);
            if (factor) {
                vf f = load(factor + at);
                dp = select(f == vf{}, vf{}, dp * f);
                store(t.weights + at, p * f);
            } else {
                store(t.weights + at, p);
            }
            // A weight of 0 stops a NaN of its value.
            store(t.gradient + at, select(p == vf{}, vf{}, p * (dp - delta) * k));
        });
        clear_behind(stairs, i, t.weights);
        clear_behind(stairs, i, t.gradient);
    }
}

// Rows of the forward pass that are NaN have NaN gradients; exp_nonpositive does not keep them.
void keep_nan(int64_t ni, int64_t nj, BackwardScratch& t) {
    for (int64_t i = 0; i < ni; i++)
        if (t.lse[i] != t.lse[i])
            for (int64_t j = 0; j < nj; j++)
                t.weights[j * kQueries + i] = t.gradient[j * kQueries + i] = t.lse[i];
}

// delta[i] = Σ_d dO O, and the lse with rows that see nothing made harmless.
template <class T>
void query_statistics(const Rows& g, const T* out, int64_t out_row, const float* lse,
                      int64_t lse_step, int64_t ni, int64_t dim, BackwardScratch& t) {
    for (int64_t i = 0; i < kQueries; i++) {
        float total = i < ni ? lse[i * lse_step] : 0.0f;
        t.lse[i] = total == -kInfinity ? 0.0f : total;
        vf sum{};
        if (i < ni)
            for (int64_t d = 0; d < dim; d += VL)
                sum = fma(load_up_to(g.p + i * g.row + d, dim - d),
                          load_up_to(out + i * out_row + d, dim - d), sum);
        t.delta[i] = sum_lanes(sum);
    }
}

// Rows whose query sees no key (lse = -inf) as zeros, in `copy`: their weights are 0, and 0 times a
// NaN of theirs would reach the sums over queries.
inline Rows without_unseeing(const Rows& x, const float* lse, int64_t lse_step, int64_t ni,
                             int64_t dim, float* copy) {
    bool any = false;
    for (int64_t i = 0; i < ni; i++) any |= lse[i * lse_step] == -kInfinity;
    if (!any) return x;
    int64_t wide = padded(dim);
    for (int64_t i = 0; i < ni; i++) {
        if (lse[i * lse_step] == -kInfinity) {
            std::fill_n(copy + i * wide, wide, 0.0f);
        } else if (x.p != copy) {
            std::copy_n(x.p + i * x.row, dim, copy + i * wide);
        }
    }
    return {copy, wide};
}

// A batch of sequences of one length.
struct Part {
    AttentionShape s;
    Array g, q, k, v, out, lse, dq, dk, dv;
};

template <class T>
void key_head(const Part& x, const AttentionOptions& o, const AttentionMask& m, int64_t b,
              int64_t kv) {
    const AttentionShape& s = x.s;
    int64_t dim = s.dim, wide = padded(dim);
    Scratch<float> sums(2 * s.n_keys * wide + 1);
    float *dk = sums.get(), *dv = dk + s.n_keys * wide;
    std::fill_n(dk, 2 * s.n_keys * wide, 0.0f);
    // All keys and values of the head as float32 rows, converted once where they are not that
    // already.
    Scratch<float> copies(2 * s.n_keys * wide + 1);
    Rows keys = float_rows(head_of<T>(x.k, b, kv, 0), x.k.strides[2], s.n_keys, dim, copies.get());
    Rows values = float_rows(head_of<T>(x.v, b, kv, 0), x.v.strides[2], s.n_keys, dim,
                             copies.get() + s.n_keys * wide);
    Scratch<float> buffer(2 * kQueries * dim + 3 * kQueries * wide);
    float *q_packed = buffer.get(), *g_packed = q_packed + kQueries * dim;
    float *q_copy = g_packed + kQueries * dim, *g_copy = q_copy + kQueries * wide;
    float* dq = g_copy + kQueries * wide;
    BackwardScratch t;
    for (int64_t h = kv * s.group(); h < (kv + 1) * s.group(); h++) {
        for (int64_t i0 = 0; i0 < s.n_queries; i0 += kQueries) {
            int64_t ni = std::min(kQueries, s.n_queries - i0), lanes = (ni + VL - 1) / VL * VL;
            const float* lse = head_of<float>(x.lse, b, h, i0);
            int64_t lse_step = x.lse.strides[2];
            Rows q = float_rows(head_of<T>(x.q, b, h, i0), x.q.strides[2], ni, dim, q_copy);
            Rows g = float_rows(head_of<T>(x.g, b, h, i0), x.g.strides[2], ni, dim, g_copy);
            q = without_unseeing(q, lse, lse_step, ni, dim, q_copy);
            g = without_unseeing(g, lse, lse_step, ni, dim, g_copy);
            transpose_rows(q, ni, dim, q_packed);
            transpose_rows(g, ni, dim, g_packed);
            query_statistics(g, head_of<T>(x.out, b, h, i0), x.out.strides[2], lse, lse_step, ni,
                             dim, t);
            std::fill_n(dq, kQueries * wide, 0.0f);
            KeyRange range = keys_seen(s, o, i0, i0 + ni);
            for (int64_t j0 = range.first / kKeys * kKeys; j0 < range.last; j0 += kKeys) {
                int64_t nj = std::min(kKeys, s.n_keys - j0);
                Rows kt{keys.p + j0 * keys.row, keys.row},
                    vt{values.p + j0 * values.row, values.row};
                Stairs stairs = stairs_of(s, o, i0, ni, j0, nj);
                tile_product<false>(StairsOfScores{stairs, dim}, lanes, kt.p, kt.row, 1, q_packed,
                                    kNR, kNR * dim, t.weights, kQueries, false);
                tile_product<false>(StairsOfScores{stairs, dim}, lanes, vt.p, vt.row, 1, g_packed,
                                    kNR, kNR * dim, t.gradient, kQueries, false);
                bool whole = all_seen(s, o, i0, i0 + ni, j0, j0 + nj);
                bool added = needs_addend(o, m, whole);
                if (added) fill_addend(s, o, m, b, h, i0, ni, j0, nj, t.extra);
                if (o.dropout > 0) fill_dropout(s, o, b, h, i0, ni, j0, nj, t.factor);
                gradient_tile(stairs, lanes, static_cast<float>(o.scale), added ? t.extra : nullptr,
                              o.dropout > 0 ? t.factor : nullptr, t);
                keep_nan(ni, nj, t);
                tile_product<false>(StairsOfKeys{stairs}, wide, t.weights, kQueries, 1, g.p, g.row,
                                    kNR, dv + j0 * wide, wide, true);
                tile_product<false>(StairsOfKeys{stairs}, wide, t.gradient, kQueries, 1, q.p, q.row,
                                    kNR, dk + j0 * wide, wide, true);
                if ((added || !whole) && any_not_finite(kt, nj, dim)) {
                    weighted_rows_skipping(stairs, dim, t.gradient, kt, dq, wide);
                } else {
                    tile_product<true>(StairsOfQueries{stairs}, wide, t.gradient, 1, kQueries, kt.p,
                                       kt.row, kNR, dq, wide, true);
                }
            }
            store_rows(dq, wide, ni, dim, head_of<T>(x.dq, b, h, i0), x.dq.strides[2]);
        }
    }
    store_rows(dk, wide, s.n_keys, dim, head_of<T>(x.dk, b, kv, 0), x.dk.strides[2]);
    store_rows(dv, wide, s.n_keys, dim, head_of<T>(x.dv, b, kv, 0), x.dv.strides[2]);
}

void backward(const std::vector<Part>& parts, const AttentionOptions& o, const AttentionMask& m,
              DType dtype) {
    if (dtype == DType::f64) {
        for (const Part& p : parts)
            attention_bwd_f64(p.s, p.g, p.q, p.k, p.v, m, p.lse, p.dq, p.dk, p.dv, o);
        return;
    }
    struct Task {
        const Part* part;
        int64_t head;
    };
    std::vector<Task> tasks;
    for (const Part& p : parts)
        for (int64_t head = 0; head < p.s.batch * p.s.kv_heads; head++) tasks.push_back({&p, head});
    for_float_dtype("attention_bwd", dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (!std::is_same_v<T, double>)
            parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t task) {
                const Task& t = tasks[static_cast<size_t>(task)];
                int64_t kv_heads = t.part->s.kv_heads;
                key_head<T>(*t.part, o, m, t.head / kv_heads, t.head % kv_heads);
            });
    });
}

}  // namespace

void attention_bwd(const Array& g, const Array& q, const Array& k, const Array& v,
                   const Array& mask, const Array& bias, const Array& out, const Array& lse,
                   const Array& dq, const Array& dk, const Array& dv, double scale, bool causal,
                   int64_t window, double dropout_p, const Array& rng) {
    AttentionShape s = attention_shape("attention_bwd", q, k, v);
    attention_shape("attention_bwd", g, dk, dv);
    attention_shape("attention_bwd", dq, k, v);
    AttentionOptions o{scale, causal, window, dropout_p, rng ? philox_key(rng) : PhiloxKey{}};
    backward({{s, g, q, k, v, out, lse, dq, dk, dv}}, o, {mask, bias}, q.dtype);
}

// Shapes as in attention_varlen_fwd; each gradient as what it is the gradient of.
void attention_varlen_bwd(const Array& g, const Array& q, const Array& k, const Array& v,
                          const Array& cu_seqlens_q, const Array& cu_seqlens_k, const Array& out,
                          const Array& lse, const Array& dq, const Array& dk, const Array& dv,
                          double scale, bool causal, int64_t window, double dropout_p,
                          const Array& rng) {
    AttentionOptions o{scale, causal, window, dropout_p, rng ? philox_key(rng) : PhiloxKey{}};
    packed_sequences("attention_varlen_bwd", g, dk, dv, cu_seqlens_q, cu_seqlens_k);
    packed_sequences("attention_varlen_bwd", dq, k, v, cu_seqlens_q, cu_seqlens_k);
    std::vector<Part> parts;
    for (const Sequence& x :
         packed_sequences("attention_varlen_bwd", q, k, v, cu_seqlens_q, cu_seqlens_k)) {
        auto queries = [&](const Array& a) { return sequence_of(a, x.q_start, x.shape.n_queries); };
        auto keys = [&](const Array& a) { return sequence_of(a, x.k_start, x.shape.n_keys); };
        parts.push_back({x.shape, queries(g), queries(q), keys(k), keys(v), queries(out),
                         queries(lse), queries(dq), keys(dk), keys(dv)});
    }
    backward(parts, o, {Array{}, Array{}}, q.dtype);
}

}  // namespace mg
