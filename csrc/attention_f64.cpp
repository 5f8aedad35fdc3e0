// Attention in float64, a row of weights at a time: for gradient checks, written for plainness.
#include <vector>

#include "attention.h"

namespace mg {
namespace {

// Weights of query i before dropout (into w) and its lse; keys not seen have weight 0.
double row_weights(const AttentionShape& s, const AttentionOptions& o, const AttentionMask& m,
                   const double* q, const Array& k, int64_t b, int64_t h, int64_t i,
                   std::vector<double>& w) {
    constexpr double kLowest = -std::numeric_limits<double>::infinity();
    double top = kLowest, sum = 0;
    for (int64_t j = 0; j < s.n_keys; j++) {
        auto at = [&](const Array& x) {
            return b * x.strides[0] + h * x.strides[1] + i * x.strides[2] + j * x.strides[3];
        };
        double x = kLowest;
        bool seen = is_seen(s, o, i, j) && (!m.mask || m.mask.ptr<uint8_t>()[at(m.mask)]);
        double added = m.bias ? number_at(m.bias, at(m.bias)) : 0.0;
        if (seen && added != kLowest) {
            const double* key = head_of<double>(k, b, h / s.group(), j);
            x = 0;
            for (int64_t d = 0; d < s.dim; d++) x += q[d] * key[d];
            x = x * o.scale + added;
        }
        w[static_cast<size_t>(j)] = x;
        top = std::fmax(top, x);
    }
    double safe = top == kLowest ? 0 : top;
    for (double& x : w) sum += x = std::exp(x - safe);
    for (double& x : w) x = sum == 0 ? 0 : x / sum;
    return sum == 0 ? kLowest : top + std::log(sum);
}

// Dropout's factors of the row, 0 or 1 / (1 - p).
void row_factors(const AttentionShape& s, const AttentionOptions& o, int64_t b, int64_t h,
                 int64_t i, std::vector<double>& f) {
    std::fill(f.begin(), f.end(), 1.0);
    if (o.dropout == 0) return;
    std::vector<uint32_t> words(f.size());
    auto row = static_cast<uint64_t>((b * s.heads + h) * s.n_queries + i);
    auto first = static_cast<uint64_t>(s.first_weight) + row * static_cast<uint64_t>(s.n_keys);
    philox_words(o.key, first, s.n_keys, words.data());
    for (size_t j = 0; j < f.size(); j++)
        f[j] = words[j] >= dropout_threshold(o.dropout) ? 1.0 / (1.0 - o.dropout) : 0.0;
}

}  // namespace

void attention_fwd_f64(const AttentionShape& s, const Array& q, const Array& k, const Array& v,
                       const AttentionMask& m, const Array& out, const Array& lse,
                       const AttentionOptions& o) {
    parallel_for(s.batch * s.heads, [&](int64_t task) {
        int64_t b = task / s.heads, h = task % s.heads;
        std::vector<double> w(static_cast<size_t>(s.n_keys)), f(w.size());
        for (int64_t i = 0; i < s.n_queries; i++) {
            head_of<double>(lse, b, h, i)[0] =
                row_weights(s, o, m, head_of<double>(q, b, h, i), k, b, h, i, w);
            row_factors(s, o, b, h, i, f);
            double* to = head_of<double>(out, b, h, i);
            std::fill_n(to, s.dim, 0.0);
            for (int64_t j = 0; j < s.n_keys; j++) {
                double x = w[static_cast<size_t>(j)] * f[static_cast<size_t>(j)];
                const double* value = head_of<double>(v, b, h / s.group(), j);
                if (x != 0)
                    for (int64_t d = 0; d < s.dim; d++) to[d] += x * value[d];
            }
        }
    });
}

void attention_bwd_f64(const AttentionShape& s, const Array& g, const Array& q, const Array& k,
                       const Array& v, const AttentionMask& m, const Array& lse, const Array& dq,
                       const Array& dk, const Array& dv, const AttentionOptions& o) {
    (void)lse;  // the weights are normalised again here
    parallel_for(s.batch * s.kv_heads, [&](int64_t task) {
        int64_t b = task / s.kv_heads, kv = task % s.kv_heads;
        for (int64_t j = 0; j < s.n_keys; j++) {
            std::fill_n(head_of<double>(dk, b, kv, j), s.dim, 0.0);
            std::fill_n(head_of<double>(dv, b, kv, j), s.dim, 0.0);
        }
        std::vector<double> w(static_cast<size_t>(s.n_keys)), f(w.size()), dw(w.size());
        for (int64_t h = kv * s.group(); h < (kv + 1) * s.group(); h++)
            for (int64_t i = 0; i < s.n_queries; i++) {
                const double *query = head_of<double>(q, b, h, i),
                             *grad = head_of<double>(g, b, h, i);
                double* to = head_of<double>(dq, b, h, i);
                row_weights(s, o, m, query, k, b, h, i, w);
                row_factors(s, o, b, h, i, f);
                std::fill_n(to, s.dim, 0.0);
                double delta = 0;
                for (int64_t j = 0; j < s.n_keys; j++) {
                    auto at = static_cast<size_t>(j);
                    dw[at] = 0;
                    if (w[at] * f[at] == 0) continue;
                    const double* value = head_of<double>(v, b, kv, j);
                    double* dvalue = head_of<double>(dv, b, kv, j);
                    for (int64_t d = 0; d < s.dim; d++) {
                        dw[at] += grad[d] * value[d] * f[at];
                        dvalue[d] += w[at] * f[at] * grad[d];
                    }
                    delta += dw[at] * w[at];
                }
                for (int64_t j = 0; j < s.n_keys; j++) {
                    auto at = static_cast<size_t>(j);
                    if (w[at] == 0) continue;
                    double ds = w[at] * (dw[at] - delta) * o.scale;
                    const double* key = head_of<double>(k, b, kv, j);
                    double* dkey = head_of<double>(dk, b, kv, j);
                    for (int64_t d = 0; d < s.dim; d++) {
                        to[d] += ds * key[d];
                        dkey[d] += ds * query[d];
                    }
                }
            }
    });
}

}  // namespace mg
