// What attention's operands have to be.
#include "attention_shape.h"

#include <stdexcept>
#include <string>

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

std::vector<Sequence> packed_sequences(const char* kernel, const Array& q, const Array& k,
                                       const Array& v, const Array& cu_seqlens_q,
                                       const Array& cu_seqlens_k) {
    auto fail = [&](const char* what) {
        throw std::invalid_argument(std::string(kernel) + ": " + what);
    };
    for (const Array* x : {&q, &k, &v})
        if (x->ndim != 3) fail("expected q, k, v of three dimensions (total, H, D)");
    for (const Array* x : {&cu_seqlens_q, &cu_seqlens_k})
        if (x->ndim != 1 || x->dtype != DType::i64 || !x->contiguous() || x->shape[0] < 1)
            fail("expected contiguous cu_seqlens of int64");
    if (cu_seqlens_q.shape[0] != cu_seqlens_k.shape[0])
        fail("expected cu_seqlens_q and cu_seqlens_k of one length");
    AttentionShape whole =
        attention_shape(kernel, sequence_of(q, 0, q.shape[0]), sequence_of(k, 0, k.shape[0]),
                        sequence_of(v, 0, v.shape[0]));
    const int64_t *at_q = cu_seqlens_q.ptr<int64_t>(), *at_k = cu_seqlens_k.ptr<int64_t>();
    std::vector<Sequence> out;
    int64_t weights = 0;
    for (int64_t b = 0; b + 1 < cu_seqlens_q.shape[0]; b++) {
        AttentionShape s = whole;
        s.n_queries = at_q[b + 1] - at_q[b];
        s.n_keys = at_k[b + 1] - at_k[b];
        s.first_weight = weights;
        bool inside = at_q[b] >= 0 && at_k[b] >= 0 && s.n_queries >= 0 && s.n_keys >= 0 &&
                      at_q[b + 1] <= q.shape[0] && at_k[b + 1] <= k.shape[0];
        if (!inside) fail("cu_seqlens run backwards, or beyond the tokens");
        weights += s.heads * s.n_queries * s.n_keys;
        out.push_back({s, at_q[b], at_k[b]});
    }
    return out;
}

}  // namespace mg
