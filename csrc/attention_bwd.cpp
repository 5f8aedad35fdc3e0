// Fused multi-head attention, backward (Dao 2023): the weights are made again from the saved lse,
// tile by tile. One task does all query heads of one key head, query tile after query tile, so that
// dk and dv are sums in one order. Five tile products:
//   Sᵀ = K Qᵀ    dPᵀ = V dOᵀ    dV += Pᵀ dO    dK += dSᵀ Q    dQ += dS K
#include "attention_pairs.h"

namespace mg {
namespace {

struct BackwardScratch {
    alignas(64) float weights[kKeys * kQueries];   // Sᵀ, then Pᵀ
    alignas(64) float gradient[kKeys * kQueries];  // dPᵀ, then dSᵀ
    alignas(64) float extra[kKeys * kQueries];     // addend
    alignas(64) float factor[kKeys * kQueries];    // dropout
    alignas(64) float pairs[kKeys * kQueries / 2];
    alignas(64) float lse[kQueries], delta[kQueries];
};

// Pᵀ and dSᵀ, not yet scaled, in place of Sᵀ and dPᵀ. With dropout, weights become the dropped ones
// that dV needs.
void gradient_tile(const Stairs& stairs, int64_t lanes, float scale, const float* addend,
                   const float* factor, BackwardScratch& t) {
    vf k = broadcast(scale);
    if (addend) {
        add_to_scores(lanes, stairs.m, k, addend, t.weights);
        k = broadcast(1);
    }
    for (int64_t i = 0; i < lanes; i += VL) {
        vf lse = load(t.lse + i), delta = load(t.delta + i);
        for_keys_seen(stairs, i, [&](int64_t j, int, auto hide) {
            int64_t at = j * kQueries + i;
            vf p = weight_of(hide(load(t.weights + at) * k - lse));
            vf dp = load(t.gradient + at);
            if (factor) {
                vf f = load(factor + at);
                dp = select(f == vf{}, vf{}, dp * f);
                store(t.weights + at, p * f);
            } else {
                store(t.weights + at, p);
            }
            // A weight of 0 stops a NaN of its value.
            store(t.gradient + at, select(p == vf{}, vf{}, p * (dp - delta)));
        });
        clear_behind(stairs, i, t.weights);
        clear_behind(stairs, i, t.gradient);
    }
}

// Rows of the forward pass that are NaN have NaN gradients, of keys they do not see, too.
void keep_nan(int64_t ni, int64_t nj, BackwardScratch& t) {
    for (int64_t i = 0; i < ni; i++)
        if (t.lse[i] != t.lse[i])
            for (int64_t j = 0; j < nj; j++)
                t.weights[j * kQueries + i] = t.gradient[j * kQueries + i] = t.lse[i];
}

// delta[i] = Σ_d dO O, and the lse with rows that see nothing made harmless.
template <class T>
void query_statistics(const T* g, int64_t g_row, const T* out, int64_t out_row, const float* lse,
                      int64_t lse_step, int64_t ni, int64_t dim, BackwardScratch& t) {
    for (int64_t i = 0; i < kQueries; i++) {
        float total = i < ni ? lse[i * lse_step] : 0.0f;
        t.lse[i] = total == -kInfinity ? 0.0f : total;
        vf sum{};
        if (i < ni)
            for (int64_t d = 0; d < dim; d += VL)
                sum = fma(load_up_to(g + i * g_row + d, dim - d),
                          load_up_to(out + i * out_row + d, dim - d), sum);
        t.delta[i] = sum_lanes(sum);
    }
}

// Rows of words whose query sees no key (lse = -inf) as zeros, in `copy`: their weights are 0, and
// 0 times a NaN of theirs would reach the sums over queries.
inline Rows without_unseeing(const Rows& x, const float* lse, int64_t lse_step, int64_t ni,
                             int64_t words, float* copy) {
    bool any = false;
    for (int64_t i = 0; i < ni; i++) any |= lse[i * lse_step] == -kInfinity;
    if (!any) return x;
    int64_t wide = padded(words);
    for (int64_t i = 0; i < ni; i++) {
        if (lse[i * lse_step] == -kInfinity) {
            std::fill_n(copy + i * wide, wide, 0.0f);
        } else if (x.p != copy) {
            std::copy_n(x.p + i * x.row, words, copy + i * wide);
        }
    }
    return {copy, wide};
}

// A batch of sequences of one length.
struct Part {
    AttentionShape s;
    Array g, q, k, v, out, lse, dq, dk, dv;
};

// All queries that meet one key head.
struct Task {
    const Part* part;
    int64_t b, kv;
};

// The queries from i0 on, and where their gradients go.
template <class T>
void ask_for_queries(const Part& x, int64_t b, int64_t h, int64_t i0, RowsAhead& ahead) {
    for (const Array* a : {&x.dq, &x.out, &x.g, &x.q})
        ahead.add(head_of<T>(*a, b, h, i0), a->strides[2], std::min(kQueries, x.s.n_queries - i0),
                  x.s.dim);
}

// What a task asks for while it runs: where dk and dv go, and what the next one (or null) begins
// with.
template <class T>
RowsAhead asked_by(const Task& task, const Task* next, const AttentionOptions& o) {
    const Part& x = *task.part;
    const AttentionShape& s = x.s;
    RowsAhead ahead;
    for (const Array* a : {&x.dv, &x.dk})
        ahead.add(head_of<T>(*a, task.b, task.kv, 0), a->strides[2], s.n_keys, s.dim);
    if (next) {
        const Part& y = *next->part;
        for (const Array* a : {&y.v, &y.k})
            ahead.add(head_of<T>(*a, next->b, next->kv, 0), a->strides[2], y.s.n_keys, s.dim);
        ask_for_queries<T>(y, next->b, next->kv * y.s.group(), 0, ahead);
    }
    int64_t met = 0;  // tiles of keys
    for (int64_t i0 = 0; i0 < s.n_queries; i0 += kQueries) {
        KeyRange range = keys_seen(s, o, i0, std::min(i0 + kQueries, s.n_queries));
        met += (range.last - range.first + kKeys - 1) / kKeys;
    }
    ahead.set_pace<T>(4 * (s.n_keys + s.group() * s.n_queries), 5 * s.group() * met, s.dim);
    return ahead;
}

// next is the task that is likely to follow, or null.
template <class T, class Kind>
void key_head(const Task& task, const Task* next, const AttentionOptions& o,
              const AttentionMask& m) {
    const Part& x = *task.part;
    int64_t b = task.b, kv = task.kv;
    const AttentionShape& s = x.s;
    int64_t dim = s.dim, wide = padded(dim), words = Kind::words(dim), deep = padded(words);
    Scratch<float> sums(2 * s.n_keys * wide + 1);
    float *dk = sums.get(), *dv = dk + s.n_keys * wide;
    std::fill_n(dk, 2 * s.n_keys * wide, 0.0f);
    // All keys and values of the head as operands, made once.
    Scratch<float> copies(2 * s.n_keys * deep + Kind::panel_words(s.n_keys, dim) + 1);
    float *v_copy = copies.get() + s.n_keys * deep, *k_panels = v_copy + s.n_keys * deep;
    const T* k = head_of<T>(x.k, b, kv, 0);
    Rows keys = Kind::rows(k, x.k.strides[2], s.n_keys, dim, copies.get());
    Rows values = Kind::rows(head_of<T>(x.v, b, kv, 0), x.v.strides[2], s.n_keys, dim, v_copy);
    Panels key_panels = Kind::panels(keys, s.n_keys, dim, k_panels);
    int64_t panel_words = Kind::panel_words(kQueries, dim);
    Scratch<float> buffer(kQueries * (2 * words + 2 * deep + wide) + 2 * panel_words);
    float *q_packed = buffer.get(), *g_packed = q_packed + kQueries * words;
    float *q_copy = g_packed + kQueries * words, *g_copy = q_copy + kQueries * deep;
    float *dq = g_copy + kQueries * deep, *q_panels = dq + kQueries * wide;
    auto scale = static_cast<float>(o.scale);
    BackwardScratch t;
    RowsAhead ahead = asked_by<T>(task, next, o);
    for (int64_t h = kv * s.group(); h < (kv + 1) * s.group(); h++) {
        for (int64_t i0 = 0; i0 < s.n_queries; i0 += kQueries) {
            int64_t ni = std::min(kQueries, s.n_queries - i0), lanes = (ni + VL - 1) / VL * VL;
            const float* lse = head_of<float>(x.lse, b, h, i0);
            int64_t lse_step = x.lse.strides[2];
            const T* g_rows = head_of<T>(x.g, b, h, i0);
            int64_t q_row = x.q.strides[2], g_row = x.g.strides[2];
            Rows q = Kind::rows(head_of<T>(x.q, b, h, i0), q_row, ni, dim, q_copy);
            Rows g = Kind::rows(g_rows, g_row, ni, dim, g_copy);
            q = without_unseeing(q, lse, lse_step, ni, words, q_copy);
            g = without_unseeing(g, lse, lse_step, ni, words, g_copy);
            Panels q_turned = transpose_rows(q, ni, words, q_packed);
            Panels g_turned = transpose_rows(g, ni, words, g_packed);
            Panels q_over = Kind::panels(q, ni, dim, q_panels);
            Panels g_over = Kind::panels(g, ni, dim, q_panels + panel_words);
            query_statistics(g_rows, g_row, head_of<T>(x.out, b, h, i0), x.out.strides[2], lse,
                             lse_step, ni, dim, t);
            std::fill_n(dq, kQueries * wide, 0.0f);
            KeyRange range = keys_seen(s, o, i0, i0 + ni);
            if (i0 + kQueries < s.n_queries)
                ask_for_queries<T>(x, b, h, i0 + kQueries, ahead);
            else if (h + 1 < (kv + 1) * s.group())
                ask_for_queries<T>(x, b, h + 1, 0, ahead);
            for (int64_t j0 = range.first / kKeys * kKeys; j0 < range.last; j0 += kKeys) {
                int64_t nj = std::min(kKeys, s.n_keys - j0);
                Stairs stairs = stairs_of(s, o, i0, ni, j0, nj);
                tile_product<Kind, false>(StairsOfScores{stairs, dim}, lanes,
                                          {keys.p + j0 * keys.row, keys.row}, q_turned, t.weights,
                                          kQueries, false, ahead);
                tile_product<Kind, false>(StairsOfScores{stairs, dim}, lanes,
                                          {values.p + j0 * values.row, values.row}, g_turned,
                                          t.gradient, kQueries, false, ahead);
                bool whole = all_seen(s, o, i0, i0 + ni, j0, j0 + nj);
                bool added = needs_addend(o, m, whole);
                if (added) fill_addend(s, o, m, b, h, i0, ni, j0, nj, t.extra);
                if (o.dropout > 0) fill_dropout(s, o, stairs, b, h, i0, j0, t.factor);
                gradient_tile(stairs, lanes, scale, added ? t.extra : nullptr,
                              o.dropout > 0 ? t.factor : nullptr, t);
                keep_nan(ni, nj, t);
                tile_product<Kind, false>(StairsOfKeys{stairs}, wide,
                                          Kind::over_queries(stairs, lanes, t.weights, t.pairs),
                                          g_over, dv + j0 * wide, wide, true, ahead);
                tile_product<Kind, false>(StairsOfKeys{stairs}, wide,
                                          Kind::over_queries(stairs, lanes, t.gradient, t.pairs),
                                          q_over, dk + j0 * wide, wide, true, ahead);
                const T* kt = k + j0 * x.k.strides[2];
                if ((added || !whole) && any_not_finite(kt, x.k.strides[2], nj, dim)) {
                    weighted_rows_skipping(stairs, dim, t.gradient, kt, x.k.strides[2], dq, wide);
                } else {
                    tile_product<Kind, true>(StairsOfQueries{stairs}, wide,
                                             Kind::over_keys(stairs, lanes, t.gradient, t.pairs),
                                             key_panels.from(Kind::words(j0)), dq, wide, true,
                                             ahead);
                }
            }
            store_rows(dq, wide, scale, ni, dim, head_of<T>(x.dq, b, h, i0), x.dq.strides[2]);
        }
    }
    store_rows(dk, wide, scale, s.n_keys, dim, head_of<T>(x.dk, b, kv, 0), x.dk.strides[2]);
    store_rows(dv, wide, 1, s.n_keys, dim, head_of<T>(x.dv, b, kv, 0), x.dv.strides[2]);
}

void backward(const std::vector<Part>& parts, const AttentionOptions& o, const AttentionMask& m,
              DType dtype) {
    if (dtype == DType::f64) {
        for (const Part& p : parts)
            attention_bwd_f64(p.s, p.g, p.q, p.k, p.v, m, p.lse, p.dq, p.dk, p.dv, o);
        return;
    }
    std::vector<Task> tasks;
    for (const Part& p : parts)
        for (int64_t head = 0; head < p.s.batch * p.s.kv_heads; head++)
            tasks.push_back({&p, head / p.s.kv_heads, head % p.s.kv_heads});
    for_operands("attention_bwd", dtype, [&](auto type, auto kind) {
        parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t index) {
            const Task* task = &tasks[static_cast<size_t>(index)];
            const Task* next = task + 1 < tasks.data() + tasks.size() ? task + 1 : nullptr;
            key_head<decltype(type), decltype(kind)>(*task, next, o, m);
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
