// Attention of new tokens over a cache of keys and values, which they are appended to. q (B, Hq, T,
// D) and the new k and v (B, Hkv, T, D) with unit stride in D; keys and values (B, Hkv, capacity,
// D), of which the first start[0] tokens are there; out as q.
//
// Several new tokens go through the tiles of attention_fwd.cpp. For a single one, as in decoding,
// those would use one lane of a vector, so here lanes are features and the cache is read once, in
// order: the scores of all keys, their softmax, the weighted sum of the values.
#include "attention_tiles.h"

namespace mg {

void attention_fwd(const Array& q, const Array& k, const Array& v, const Array& mask,
                   const Array& bias, const Array& out, const Array& lse, double scale, bool causal,
                   int64_t window, double dropout_p, const Array& rng);

namespace {

void check(const AttentionShape& s, const Array& keys, const Array& values, const Array& start) {
    auto fail = [](const char* what) {
        throw std::invalid_argument(std::string("attention_cached_fwd: ") + what);
    };
    if (start.dtype != DType::i64 || start.size() != 1) fail("expected start as one int64");
    int64_t first = start.ptr<int64_t>()[0];
    for (const Array* x : {&keys, &values}) {
        bool fits = x->ndim == 4 && x->shape[0] == s.batch && x->shape[1] == s.kv_heads &&
                    x->shape[3] == s.dim && (s.dim <= 1 || x->strides[3] == 1);
        if (!fits) fail("expected keys and values (B, Hkv, capacity, D), unit stride in D");
        if (first < 0 || first + s.n_keys > x->shape[2]) fail("the new tokens do not fit");
    }
}

constexpr int64_t kFewestTasks = 8;  // to aim for where heads are few
constexpr int64_t kHeads = 8;        // at most, of one task

template <class T>
void append(const Array& x, int64_t b, int64_t h, int64_t start, const Array& cache) {
    for (int64_t t = 0; t < x.shape[2]; t++)
        std::copy_n(head_of<T>(x, b, h, t), x.shape[3], head_of<T>(cache, b, h, start + t));
}

// The first n tokens of a cache.
Array seen(const Array& cache, int64_t n) {
    Array x = cache;
    x.shape[2] = n;
    return x;
}

// Asks for a row of another array than the one that is being read, which the processor foresees.
template <class T>
MG_INLINE void ask(const T* row, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(row + d, 0, 2);
}

// scores[j] = q · key j, q in whole vectors, zeros behind. Meanwhile the values are asked for.
template <class T>
void dot_keys(const float* q, const T* keys, int64_t row, int64_t n, int64_t dim, const T* values,
              int64_t values_row, float* scores) {
    for (int64_t j = 0; j < n; j++, keys += row, values += values_row) {
        ask(values, dim);
        vf sum{}, other{};
        int64_t d = 0;
        for (; d + 2 * VL <= dim; d += 2 * VL) {
            sum = fma(load(q + d), load(keys + d), sum);
            other = fma(load(q + d + VL), load(keys + d + VL), other);
        }
        for (; d < dim; d += VL) sum = fma(load(q + d), load_up_to(keys + d, dim - d), sum);
        scores[j] = sum_lanes(sum + other);
    }
}

// kVectors vectors of features of the weighted sum of the values, times `factor`.
template <int kVectors, class T>
void weigh_values(const float* weights, const T* values, int64_t row, int64_t n, int64_t left,
                  float factor, T* out) {
    vf sum[kVectors] = {};
    for (int64_t j = 0; j < n; j++, values += row) {
        vf w = broadcast(weights[j]);
        for (int v = 0; v < kVectors; v++)
            sum[v] = fma(w, load_up_to(values + v * VL, left - v * VL), sum[v]);
    }
    for (int v = 0; v < kVectors; v++)
        store_up_to(out + v * VL, sum[v] * broadcast(factor), left - v * VL);
}

// Scores to weights e^(score - top), not yet divided by their sum, whose inverse is returned.
float softmax_scores(float* scores, int64_t n, float scale) {
    vf top = broadcast(-kInfinity), total{};
    auto scaled = [&](int64_t j) {
        vf x = load(scores + j) * broadcast(scale);
        return n - j >= VL ? x : keep_first(x, n - j, -kInfinity);
    };
    for (int64_t j = 0; j < n; j += VL) {
        vf x = scaled(j);
        top = select((x > top) | (x != x), x, top);
    }
    float highest = max_lanes(top);
    // As in attention_fwd: nothing to see gives zeros, an infinite or NaN score no meaning.
    if (highest == -kInfinity) {
        std::fill_n(scores, n, 0.0f);
        return 0.0f;
    }
    for (int64_t j = 0; j < n; j += VL) {
        vf e = exp_nonpositive(scaled(j) - broadcast(highest));
        total += e;
        store(scores + j, e);
    }
    if (!(highest < kInfinity)) return std::numeric_limits<float>::quiet_NaN();
    return 1.0f / sum_lanes(total);
}

// buffer: a query in whole vectors, and the scores of all keys.
template <class T>
void one_query(const T* q, const Array& keys, const Array& values, int64_t b, int64_t kv,
               float scale, T* out, float* buffer) {
    int64_t n = keys.shape[2], dim = keys.shape[3];
    float *query = buffer, *scores = query + padded(dim);
    for (int64_t d = 0; d < dim; d += VL) store(query + d, load_up_to(q + d, dim - d));
    const T* first = head_of<T>(values, b, kv, 0);
    int64_t row = values.strides[2], d = 0;
    dot_keys(query, head_of<T>(keys, b, kv, 0), keys.strides[2], n, dim, first, row, scores);
    float inverse = softmax_scores(scores, n, scale);
    constexpr int kBlock = 4;  // vectors: 32 features on AVX2, two whole lines
    for (; d + kBlock * VL <= dim; d += kBlock * VL)
        weigh_values<kBlock>(scores, first + d, row, n, dim - d, inverse, out + d);
    for (; d < dim; d += VL) weigh_values<1>(scores, first + d, row, n, dim - d, inverse, out + d);
}

}  // namespace

void attention_cached_fwd(const Array& q, const Array& k, const Array& v, const Array& keys,
                          const Array& values, const Array& start, const Array& mask,
                          const Array& out, double scale, bool causal) {
    AttentionShape s = attention_shape("attention_cached_fwd", q, k, v);
    if (s.n_queries != s.n_keys)
        throw std::invalid_argument("attention_cached_fwd: expected as many new queries as keys");
    check(s, keys, values, start);
    int64_t first = start.ptr<int64_t>()[0];
    Array all_keys = seen(keys, first + s.n_keys), all_values = seen(values, first + s.n_keys);
    bool single = s.n_queries == 1 && !mask && q.dtype != DType::f64;
    for_float_dtype("attention_cached_fwd", q.dtype, [&](auto type) {
        using T = decltype(type);
        int64_t heads = s.batch * s.kv_heads;
        parallel_chunks(
            heads, std::min(heads / kFewestTasks, kHeads), [&](int64_t begin, int64_t end) {
                Scratch<float> buffer(single ? padded(s.dim) + all_keys.shape[2] + VL : 1);
                for (int64_t i = begin; i < end; i++) {
                    int64_t b = i / s.kv_heads, kv = i % s.kv_heads;
                    append<T>(k, b, kv, first, keys);
                    append<T>(v, b, kv, first, values);
                    if constexpr (!std::is_same_v<T, double>)
                        for (int64_t h = kv * s.group(); single && h < (kv + 1) * s.group(); h++)
                            one_query(head_of<T>(q, b, h, 0), all_keys, all_values, b, kv,
                                      static_cast<float>(scale), head_of<T>(out, b, h, 0),
                                      buffer.get());
                }
            });
    });
    if (single) return;
    Scratch<double> sums(s.batch * s.heads * s.n_queries + 1);  // room for either type of lse
    Array lse = q;
    lse.data = reinterpret_cast<char*>(sums.get());
    lse.dtype = q.dtype == DType::f64 ? DType::f64 : DType::f32;
    lse.ndim = 3;
    lse.strides[2] = 1;
    lse.strides[1] = s.n_queries;
    lse.strides[0] = s.heads * s.n_queries;
    attention_fwd(q, all_keys, all_values, mask, {}, out, lse, scale, causal, -1, 0.0, {});
}

}  // namespace mg
