// Fused multi-head attention, forward: a running softmax over key tiles (Milakov and Gimelshein
// 2018; Dao et al. 2022). q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D), out (B, Hq, Tq, D), all with
// unit stride in D; lse (B, Hq, Tq).
#include "attention_pairs.h"

namespace mg {

namespace {

// A running maximum stands until a score is larger by so much: weights are then at most e^8, and
// the output is hardly ever scaled again.
constexpr float kSlack = 8;

// Scores to weights, lane by lane: the running maximum and sum of each query, and what the earlier
// output must be scaled by (alpha). A score that is NaN or +infinity makes the sum NaN, whatever
// the maximum becomes.
void softmax_tile(const Stairs& stairs, int64_t lanes, float scale, const float* addend,
                  float* scores, float* top, float* sum, float* alpha) {
    vf k = broadcast(scale);
    if (addend) {
        add_to_scores(lanes, stairs.m, k, addend, scores);
        k = broadcast(1);
    }
    vi turned = as_int(k) & INT32_MIN;  // where the scale is negative, the least is the largest
    for (int64_t i = 0; i < lanes; i += VL) {
        vf lowest = broadcast(-kInfinity), largest[4] = {lowest, lowest, lowest, lowest};
        for_keys_seen(stairs, i, [&](int64_t j, int slot, auto hide) {
            vf x = as_float(as_int(load(scores + j * kQueries + i)) ^ turned);
            largest[slot] = larger(largest[slot], hide(x));
        });
        vf tile = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
        vf before = load(top + i), now = tile * abs(k);
        now = select(now > before + kSlack, now, before);
        vf safe = select(now == lowest, vf{}, now), total[4] = {};
        for_keys_seen(stairs, i, [&](int64_t j, int slot, auto hide) {
            float* at = scores + j * kQueries + i;
            vf weight = weight_of(hide(load(at) * k - safe));
            total[slot] += weight;
            store(at, weight);
        });
        clear_behind(stairs, i, scores);
        vf factor = weight_of(before - safe);
        store(top + i, now);
        store(alpha + i, factor);
        store(sum + i, fma(load(sum + i), factor, (total[0] + total[1]) + (total[2] + total[3])));
    }
}

// A batch of sequences of one length.
struct Part {
    AttentionShape s;
    Array q, k, v, out, lse;
};

// The queries [i0, i1) of one head.
struct Task {
    const Part* part;
    int64_t b, h, i0, i1;
};

// Queries [i0, i0 + n) of one head, and what is known of their output so far.
struct QueryTile {
    int64_t i0, n, lanes;
    KeyRange range;
    float *buffer, *acc;  // for Qᵀ in panels; Σ exp(score - top) v
    float *top, *sum;     // of the scores seen so far: the maximum, and Σ exp(score - top)
    Panels packed = {};   // Qᵀ
    bool begun = false;   // whether acc holds anything
};

// Query tiles that meet each key tile together, so that it comes from an outer cache once for all
// of them: as many as stay in L2 beside it.
constexpr int64_t kGroupFloats = 1 << 16, kLargestGroup = 4;
constexpr int64_t kTasks = 16;  // tasks to leave for the threads where tiles are few

struct ForwardScratch {
    alignas(64) float scores[kKeys * kQueries];
    alignas(64) float extra[kKeys * kQueries];  // addend, then dropout factors
    alignas(64) float pairs[kKeys * kQueries / 2];
    alignas(64) float top[kLargestGroup * kQueries], sum[kLargestGroup * kQueries];
    alignas(64) float alpha[kQueries];
};

// A group of query tiles of one head.
template <class T, class Kind>
struct QueryGroup {
    const Task& task;
    const AttentionOptions& o;
    const AttentionMask& m;
    const Part& p = *task.part;
    const AttentionShape& s = p.s;
    int64_t b = task.b, h = task.h, kv = h / s.group();
    int64_t wide = padded(s.dim), words = Kind::words(s.dim);

    void begin(QueryTile& x) const {
        Rows rows = Kind::rows(head_of<T>(p.q, b, h, x.i0), p.q.strides[2], x.n, s.dim, x.acc);
        x.packed = transpose_rows(rows, x.n, words, x.buffer);
        std::fill_n(x.top, kQueries, -kInfinity);
        std::fill_n(x.sum, kQueries, 0.0f);
    }

    // The keys [j0, j0 + nj), and their values, as they are and in panels.
    void meet(QueryTile& x, int64_t j0, int64_t nj, const Rows& keys, const T* values,
              int64_t values_row, const Panels& panels, ForwardScratch& t, RowsAhead& ahead) const {
        Stairs stairs = stairs_of(s, o, x.i0, x.n, j0, nj);
        tile_product<Kind, false>(StairsOfScores{stairs, s.dim}, x.lanes, {keys.p, keys.row},
                                  x.packed, t.scores, kQueries, false, ahead);
        bool whole = all_seen(s, o, x.i0, x.i0 + x.n, j0, j0 + nj),
             added = needs_addend(o, m, whole);
        if (added) fill_addend(s, o, m, b, h, x.i0, x.n, j0, nj, t.extra);
        softmax_tile(stairs, x.lanes, static_cast<float>(o.scale), added ? t.extra : nullptr,
                     t.scores, x.top, x.sum, t.alpha);
        if (o.dropout > 0) {
            fill_dropout(s, o, stairs, b, h, x.i0, j0, t.extra);
            drop_weights(stairs, x.lanes, t.extra, t.scores);
        }
        bool skips =
            (added || !whole || o.dropout > 0) && any_not_finite(values, values_row, nj, s.dim);
        if (!x.begun && skips) clear(x);
        for (int64_t i = 0; x.begun && i < x.n; i++) {
            if (t.alpha[i] == 1) continue;
            vf factor = broadcast(t.alpha[i]);
            for (int64_t d = 0; d < wide; d += VL)
                store(x.acc + i * wide + d, load(x.acc + i * wide + d) * factor);
        }
        if (skips) {
            weighted_rows_skipping(stairs, s.dim, t.scores, values, values_row, x.acc, wide);
        } else {
            tile_product<Kind, true>(StairsOfQueries{stairs}, wide,
                                     Kind::over_keys(stairs, x.lanes, t.scores, t.pairs), panels,
                                     x.acc, wide, x.begun, ahead);
        }
        x.begun = true;
    }

    void clear(QueryTile& x) const { std::fill_n(x.acc, kQueries * wide, 0.0f); }

    void finish(QueryTile& x, ForwardScratch& t) const {
        if (!x.begun) clear(x);
        for (int64_t i = 0; i < x.n; i += VL) {
            vf sum = load(x.sum + i);
            vi unseen = sum == vf{};
            store(t.alpha + i, select(unseen, vf{}, broadcast(1) / sum));
            store(x.top + i, select(unseen, broadcast(-kInfinity), load(x.top + i) + log(sum)));
        }
        for (int64_t i = 0; i < x.n; i++) {
            store_rows(x.acc + i * wide, wide, t.alpha[i], 1, s.dim,
                       head_of<T>(p.out, b, h, x.i0 + i), 0);
            *head_of<float>(p.lse, b, h, x.i0 + i) = x.top[i];
        }
    }

    // The keys and values of the tile at j0.
    void ask_for_keys(int64_t j0, RowsAhead& ahead) const {
        int64_t n = std::min(kKeys, s.n_keys - j0);
        ahead.add(head_of<T>(p.v, b, kv, j0), p.v.strides[2], n, s.dim);
        ahead.add(head_of<T>(p.k, b, kv, j0), p.k.strides[2], n, s.dim);
    }

    KeyRange all_keys() const { return keys_seen(s, o, task.i0, task.i1); }
    // What begins the work, of another group.
    void ask_for_first(RowsAhead& ahead) const {
        ask_for_keys(all_keys().first / kKeys * kKeys, ahead);
        ahead.add(head_of<T>(p.q, b, h, task.i0), p.q.strides[2], task.i1 - task.i0, s.dim);
    }

    // next is the group that is likely to follow, or null.
    void run(const Task* next) const {
        int64_t i0 = task.i0, i1 = task.i1, n_tiles = (i1 - i0 + kQueries - 1) / kQueries;
        int64_t tile_floats = kQueries * (words + wide), keys_floats = kKeys * padded(words);
        Scratch<float> buffer(n_tiles * tile_floats + keys_floats + kKeys * (wide + VL));
        float *k_copy = buffer.get() + n_tiles * tile_floats, *v_packed = k_copy + keys_floats;
        ForwardScratch t;
        QueryTile tiles[kLargestGroup];
        KeyRange all = all_keys();
        int64_t seen = 0;  // keys, of all tiles
        for (int64_t at = 0; at < n_tiles; at++) {
            int64_t first = i0 + at * kQueries, n = std::min(kQueries, i1 - first);
            float* packed = buffer.get() + at * tile_floats;
            tiles[at] = {first,
                         n,
                         (n + VL - 1) / VL * VL,
                         keys_seen(s, o, first, first + n),
                         packed,
                         packed + kQueries * words,
                         t.top + at * kQueries,
                         t.sum + at * kQueries};
            begin(tiles[at]);
            seen += tiles[at].range.last - tiles[at].range.first;
        }
        RowsAhead ahead;
        if (next) QueryGroup{*next, o, m}.ask_for_first(ahead);
        ahead.add(head_of<T>(p.out, b, h, i0), p.out.strides[2], i1 - i0, s.dim);
        ahead.set_pace<T>(2 * (i1 - i0 + all.last - all.first), 2 * seen / kKeys, s.dim);
        for (int64_t j0 = all.first / kKeys * kKeys; j0 < all.last; j0 += kKeys) {
            if (j0 + kKeys < all.last) ask_for_keys(j0 + kKeys, ahead);
            int64_t nj = std::min(kKeys, s.n_keys - j0);
            Rows keys = Kind::rows(head_of<T>(p.k, b, kv, j0), p.k.strides[2], nj, s.dim, k_copy);
            const T* values = head_of<T>(p.v, b, kv, j0);
            Panels panels = Kind::pack(values, p.v.strides[2], nj, s.dim, v_packed);
            for (int64_t at = 0; at < n_tiles; at++)
                if (tiles[at].range.first < j0 + nj && j0 < tiles[at].range.last)
                    meet(tiles[at], j0, nj, keys, values, p.v.strides[2], panels, t, ahead);
        }
        for (int64_t at = 0; at < n_tiles; at++) finish(tiles[at], t);
    }
};

void forward(const std::vector<Part>& parts, const AttentionOptions& o, const AttentionMask& m,
             DType dtype) {
    if (parts.empty()) return;
    if (dtype == DType::f64) {
        for (const Part& p : parts) attention_fwd_f64(p.s, p.q, p.k, p.v, m, p.out, p.lse, o);
        return;
    }
    int64_t longest = 0, tiles = 0;
    for (const Part& p : parts) {
        longest = std::max(longest, p.s.n_queries);
        tiles += (p.s.n_queries + kQueries - 1) / kQueries * p.s.batch * p.s.heads;
    }
    int64_t group = std::clamp<int64_t>(
        kGroupFloats / (2 * kQueries * padded(std::max<int64_t>(parts[0].s.dim, 1))), 1,
        std::clamp<int64_t>(tiles / kTasks, 1, kLargestGroup));
    int64_t step = group * kQueries;
    std::vector<Task> tasks;
    // The last queries see the most keys: they go first.
    for (int64_t i0 = (longest + step - 1) / step * step; (i0 -= step) >= 0;)
        for (const Part& p : parts)
            for (int64_t head = 0; i0 < p.s.n_queries && head < p.s.batch * p.s.heads; head++)
                tasks.push_back({&p, head / p.s.heads, head % p.s.heads, i0,
                                 std::min(i0 + step, p.s.n_queries)});
    for_operands("attention_fwd", dtype, [&](auto type, auto kind) {
        parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t index) {
            const Task* task = &tasks[static_cast<size_t>(index)];
            const Task* next = task + 1 < tasks.data() + tasks.size() ? task + 1 : nullptr;
            QueryGroup<decltype(type), decltype(kind)>{*task, o, m}.run(next);
        });
    });
}

}  // namespace

void attention_fwd(const Array& q, const Array& k, const Array& v, const Array& mask,
                   const Array& bias, const Array& out, const Array& lse, double scale, bool causal,
                   int64_t window, double dropout_p, const Array& rng) {
    AttentionShape s = attention_shape("attention_fwd", q, k, v);
    AttentionOptions o{scale, causal, window, dropout_p, rng ? philox_key(rng) : PhiloxKey{}};
    forward({{s, q, k, v, out, lse}}, o, {mask, bias}, q.dtype);
}

// q (total_q, Hq, D), k and v (total_k, Hkv, D), out as q, lse (total_q, Hq, 1); sequence b is the
// queries [cu_seqlens_q[b], cu_seqlens_q[b + 1]) and the keys likewise.
void attention_varlen_fwd(const Array& q, const Array& k, const Array& v, const Array& cu_seqlens_q,
                          const Array& cu_seqlens_k, const Array& out, const Array& lse,
                          double scale, bool causal, int64_t window, double dropout_p,
                          const Array& rng) {
    AttentionOptions o{scale, causal, window, dropout_p, rng ? philox_key(rng) : PhiloxKey{}};
    std::vector<Part> parts;
    for (const Sequence& x :
         packed_sequences("attention_varlen_fwd", q, k, v, cu_seqlens_q, cu_seqlens_k)) {
        int64_t nq = x.shape.n_queries, nk = x.shape.n_keys;
        parts.push_back({x.shape, sequence_of(q, x.q_start, nq), sequence_of(k, x.k_start, nk),
                         sequence_of(v, x.k_start, nk), sequence_of(out, x.q_start, nq),
                         sequence_of(lse, x.q_start, nq)});
    }
    forward(parts, o, {Array{}, Array{}}, q.dtype);
}

}  // namespace mg
