// Fused multi-head attention, forward: a running softmax over key tiles (Milakov and Gimelshein
// 2018; Dao et al. 2022). q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D), out (B, Hq, Tq, D), all with
// unit stride in D; lse (B, Hq, Tq).
#include "attention.h"

namespace mg {

AttentionShape attention_shape(const char* kernel, const Array& q, const Array& k, const Array& v) {
    auto fail = [&](const char* what) {
        throw std::invalid_argument(std::string(kernel) + ": " + what);
    };
    for (const Array* x : {&q, &k, &v}) {
        if (x->ndim != 4) fail("expected q, k, v of four dimensions (B, H, T, D)");
        if (x->dtype != q.dtype) fail("expected q, k, v of one dtype");
        if (x->shape[3] > 1 && x->strides[3] != 1) fail("expected unit stride in D");
    }
    AttentionShape s{q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]};
    for (int d = 0; d < 4; d++)
        if (k.shape[d] != v.shape[d]) fail("k and v differ in shape");
    if (k.shape[0] != s.batch || k.shape[3] != s.dim) fail("q and k differ in batch or head_dim");
    if (s.kv_heads == 0 || s.heads % s.kv_heads) fail("Hq is not a multiple of Hkv");
    return s;
}

namespace {

// Scores to weights, lane by lane: the running maximum and sum of each query, and what the earlier
// output must be scaled by (alpha).
void softmax_tile(int64_t lanes, int64_t nj, float scale, const float* addend, float* scores,
                  float* top, float* sum, float* alpha) {
    vf k = broadcast(scale), lowest = broadcast(-kInfinity);
    for (int64_t i = 0; i < lanes; i += VL) {
        vf before = load(top + i), now = before;
        for (int64_t j = 0; j < nj; j++) {
            float* at = scores + j * kQueries + i;
            vf x = load(at) * k;
            if (addend) {
                vf a = load(addend + j * kQueries + i);
                x = select(a == lowest, lowest, x + a);  // a masked score may be NaN
            }
            store(at, x);
            now = select((x > now) | (x != x), x, now);
        }
        vf safe = select(now == lowest, vf{}, now), total{};
        for (int64_t j = 0; j < nj; j++) {
            float* at = scores + j * kQueries + i;
            vf e = exp_nonpositive(load(at) - safe);
            total += e;
            store(at, e);
        }
        vf factor = exp_nonpositive(before - safe);
        store(top + i, now);
        store(alpha + i, factor);
        store(sum + i, fma(load(sum + i), factor, total));
    }
}

struct ForwardScratch {
    alignas(64) float scores[kKeys * kQueries];
    alignas(64) float extra[kKeys * kQueries];  // addend, then dropout factors
    alignas(64) float top[kQueries], sum[kQueries], alpha[kQueries];
};

template <class T>
void query_tile(const AttentionShape& s, const AttentionOptions& o, const AttentionMask& m,
                const Array& q, const Array& k, const Array& v, const Array& out, const Array& lse,
                int64_t b, int64_t h, int64_t i0) {
    int64_t ni = std::min(kQueries, s.n_queries - i0), dim = s.dim, wide = padded(dim);
    int64_t lanes = (ni + VL - 1) / VL * VL, kv = h / s.group();
    Scratch<float> buffer(kQueries * dim + kQueries * wide + 2 * kKeys * wide);
    float *q_packed = buffer.get(), *acc = q_packed + kQueries * dim;
    float *k_copy = acc + kQueries * wide, *v_copy = k_copy + kKeys * wide;
    ForwardScratch t;
    transpose_rows(float_rows(head_of<T>(q, b, h, i0), q.strides[2], ni, dim, acc), ni, dim,
                   q_packed);
    std::fill_n(acc, kQueries * wide, 0.0f);
    std::fill_n(t.top, kQueries, -kInfinity);
    std::fill_n(t.sum, kQueries, 0.0f);

    KeyRange range = keys_seen(s, o, i0, i0 + ni);
    for (int64_t j0 = range.first / kKeys * kKeys; j0 < range.last; j0 += kKeys) {
        int64_t nj = std::min(kKeys, s.n_keys - j0);
        Rows keys = float_rows(head_of<T>(k, b, kv, j0), k.strides[2], nj, dim, k_copy);
        Rows values = float_rows(head_of<T>(v, b, kv, j0), v.strides[2], nj, dim, v_copy);
        tile_product<false>(nj, lanes, dim, keys.p, keys.row, 1, q_packed, kNR, kNR * dim, t.scores,
                            kQueries, false);
        bool masked = m.mask || m.bias || !all_seen(s, o, i0, i0 + ni, j0, j0 + nj);
        if (masked) fill_addend(s, o, m, b, h, i0, ni, j0, nj, t.extra);
        softmax_tile(lanes, nj, static_cast<float>(o.scale), masked ? t.extra : nullptr, t.scores,
                     t.top, t.sum, t.alpha);
        if (o.dropout > 0) {
            fill_dropout(s, o, b, h, i0, ni, j0, nj, t.extra);
            for (int64_t j = 0; j < nj; j++)
                for (int64_t i = 0; i < ni; i++)
                    t.scores[j * kQueries + i] *= t.extra[j * kQueries + i];
        }
        for (int64_t i = 0; i < ni; i++) {
            vf factor = broadcast(t.alpha[i]);
            for (int64_t d = 0; d < wide; d += VL)
                store(acc + i * wide + d, load(acc + i * wide + d) * factor);
        }
        if ((masked || o.dropout > 0) && any_not_finite(values, nj, dim)) {
            weighted_rows_skipping(ni, nj, dim, t.scores, values, acc, wide);
        } else {
            tile_product<true>(ni, wide, nj, t.scores, 1, kQueries, values.p, values.row, kNR, acc,
                               wide, true);
        }
    }
    for (int64_t i = 0; i < ni; i++) {
        bool unseen = t.top[i] == -kInfinity;
        float inverse = unseen ? 0.0f : 1.0f / t.sum[i], total = t.top[i] + std::log(t.sum[i]);
        if (unseen) total = -kInfinity;
        // A score that is infinite or NaN: the weights have no meaning.
        if (!(t.top[i] < kInfinity)) inverse = total = std::numeric_limits<float>::quiet_NaN();
        for (int64_t d = 0; d < wide; d += VL)
            store(acc + i * wide + d, load(acc + i * wide + d) * broadcast(inverse));
        lse.ptr<float>()[b * lse.strides[0] + h * lse.strides[1] + (i0 + i) * lse.strides[2]] =
            total;
    }
    store_rows(acc, wide, ni, dim, head_of<T>(out, b, h, i0), out.strides[2]);
}

}  // namespace

void attention_fwd(const Array& q, const Array& k, const Array& v, const Array& mask,
                   const Array& bias, const Array& out, const Array& lse, double scale, bool causal,
                   int64_t window, double dropout_p, const Array& rng) {
    AttentionShape s = attention_shape("attention_fwd", q, k, v);
    AttentionOptions o{scale, causal, window, dropout_p, rng ? philox_key(rng) : PhiloxKey{}};
    AttentionMask m{mask, bias};
    if (q.dtype == DType::f64) return attention_fwd_f64(s, q, k, v, m, out, lse, o);
    int64_t tiles = (s.n_queries + kQueries - 1) / kQueries, heads = s.batch * s.heads;
    for_float_dtype("attention_fwd", q.dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (!std::is_same_v<T, double>)
            parallel_for(heads * tiles, [&](int64_t task) {
                // The last query tiles see the most keys: they go first.
                int64_t tile = tiles - 1 - task / heads, head = task % heads;
                query_tile<T>(s, o, m, q, k, v, out, lse, head / s.heads, head % s.heads,
                              tile * kQueries);
            });
    });
}

}  // namespace mg
