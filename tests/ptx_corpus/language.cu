// What the compiler makes of C++: calls, local arrays, structures, constants, printf, assert, and
// the arithmetic of every type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Affine {
    float slope;
    int shift;
    double offset;
    short parts[3];
};

__device__ __noinline__ float apply(Affine by, float x) {
    return by.slope * x + static_cast<float>(by.offset) + by.parts[by.shift % 3];
}

__device__ __noinline__ Affine doubled(Affine a) {
    a.slope *= 2;
    a.offset *= 2;
    for (short& p : a.parts) p *= 2;
    return a;
}

__device__ __noinline__ int fibonacci(int n) {
    int a = 0, b = 1;
    for (; n > 0; n--) {
        int next = a + b;
        a = b;
        b = next;
    }
    return a;
}

__device__ __noinline__ void swap_through(int* a, int* b) {
    int old = *a;
    *a = *b;
    *b = old;
}

extern "C" __global__ void calls(const float* x, float* out, int* small, Affine by, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = i % 2 ? apply(by, x[i]) : apply(doubled(by), x[i]);
    int a = fibonacci(i % 9), b = i;
    swap_through(&a, &b);
    small[2 * i] = a;
    small[2 * i + 1] = b;
}

// An insertion sort in a local array, indexed by what is in it.
extern "C" __global__ void local_sort(const int* x, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int held[12];
    for (int k = 0; k < 12; k++) {
        int v = x[i * 12 + k], at = k;
        while (at > 0 && held[at - 1] > v) {
            held[at] = held[at - 1];
            at--;
        }
        held[at] = v;
    }
    unsigned char bytes[16] = {};
    for (int k = 0; k < 12; k++) bytes[held[k] & 15]++;
    for (int k = 0; k < 12; k++) out[i * 12 + k] = held[k] * 100 + bytes[held[k] & 15];
}

__constant__ float weights[8] = {0.5f, -1.0f, 2.0f, 0.25f, 3.0f, -0.125f, 1.5f, 4.0f};
__constant__ int picks[2][3] = {{1, 2, 3}, {4, 5, 6}};
__device__ int table[6] = {10, 20, 30, 40, 50, 60};
__device__ unsigned long long visits;
__device__ const char* const words[2] = {"ab", "cde"};

extern "C" __global__ void constants(const float* x, float* out, int* numbers, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i] = x[i] * weights[i % 8] + weights[3];
    numbers[i] = picks[i % 2][i % 3] + table[i % 6];
    if (i < 6) table[i] = numbers[i] - picks[i % 2][i % 3];
    atomicAdd(&visits, 1ull);
    const char* word = words[i % 2];
    numbers[n + i] = word[i % 3];
}

extern "C" __global__ void prints(const float* x, int n) {
    int i = threadIdx.x;
    if (i < n)
        printf("thread %d of %s: %.3f %5u|%-4d|%lld %c %x %%\n", i, "block", x[i], 7u + i, -i,
               1ll << (40 + i), 'a' + i, 255 - i);
}

extern "C" __global__ void asserts(const int* x, int n) {
    int i = threadIdx.x;
    if (i < n) assert(x[i] >= 0);
}

__device__ inline void put(__half2* out, int& at, __half2 v) { out[at++ * 32 + threadIdx.x] = v; }
__device__ inline void put(__nv_bfloat162* out, int& at, __nv_bfloat162 v) {
    out[at++ * 32 + threadIdx.x] = v;
}

// Pairs of halves: x, y, z (32,); out (kPairOps, 32)
template <class Pair>
__device__ void pair_ops(const Pair* x, const Pair* y, const Pair* z, Pair* out) {
    int at = 0;
    Pair a = x[threadIdx.x], b = y[threadIdx.x], c = z[threadIdx.x];
    put(out, at, __hadd2_rn(a, b));
    put(out, at, __hsub2_rn(a, b));
    put(out, at, __hmul2_rn(a, b));
    put(out, at, __hfma2(a, b, c));
    put(out, at, __hfma2_relu(a, b, c));
    put(out, at, __hmin2(a, b));
    put(out, at, __hmax2(a, b));
    put(out, at, __hneg2(a));
    put(out, at, __habs2(a));
    put(out, at, __hgt2(a, b));
    put(out, at, __hmax2_nan(a, c));
    put(out, at, __lowhigh2highlow(a));
}
extern "C" __global__ void half_pairs(const __half2* x, const __half2* y, const __half2* z,
                                      __half2* out) {
    pair_ops(x, y, z, out);
}
extern "C" __global__ void bfloat_pairs(const __nv_bfloat162* x, const __nv_bfloat162* y,
                                        const __nv_bfloat162* z, __nv_bfloat162* out) {
    pair_ops(x, y, z, out);
}

extern "C" __global__ void integers(const int* x, const int* y, int* out, long long* longs, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int a = x[i], b = y[i];
    unsigned u = a, v = b;
    int* at = out + i;
    int k = 0;
    auto put = [&](int value) { at[k++ * n] = value; };
    put(__mulhi(a, b));
    put(__umulhi(u, v));
    put(__clz(a));
    put(__popc(a));
    put(__brev(a));
    put(__ffs(a));
    put(__byte_perm(u, v, 0x6420 + (u & 7)));
    put(__funnelshift_l(u, v, 13));
    put(__funnelshift_r(u, v, 45));
    put(__sad(a, b, 5u));
    put(b == 0 ? 0 : static_cast<int>(u / (v | 1)));
    put(b == 0 || b == -1 ? 0 : a % (b | 1));
    put(__dp4a(a, b, 100));
    put(__dp4a(u, v, 100u));
    put(__vadd4(u, v));
    put(__vmaxs2(u, v));
    put(min(a, b) ^ max(u, v));
    put(abs(a) + (a < b));
    put(__hadd(a, b));
    put((a & b) | (~a ^ (b << 3)));
    long long l = static_cast<long long>(a) << 20 | v, m = static_cast<long long>(b) * 77 + 3;
    long long* lat = longs + i;
    lat[0 * n] = l * m;
    lat[1 * n] = l / (m | 1);
    lat[2 * n] = static_cast<long long>(static_cast<unsigned long long>(l) % (m | 1));
    lat[3 * n] = __mul64hi(l, m);
    lat[4 * n] = __popcll(l) * 100 + __clzll(l);
    lat[5 * n] = static_cast<long long>(__brevll(l));
    lat[6 * n] = l >> (v & 63);
    lat[7 * n] = static_cast<long long>(static_cast<unsigned long long>(l) << (u & 63));
}

// Conversions at the edges: saturation, NaN, rounding modes.
extern "C" __global__ void conversions(const float* x, const double* y, int* out, long long* longs,
                                       float* floats, double* doubles, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = x[i];
    double b = y[i];
    int k = 0;
    auto put = [&](int v) { out[k++ * n + i] = v; };
    put(__float2int_rn(a));
    put(__float2int_rz(a));
    put(__float2int_ru(a));
    put(__float2int_rd(a));
    put(__float2uint_rz(a));
    put(__double2int_rz(b));
    put(__double2uint_rn(b));
    put(__half_as_ushort(__float2half_rn(a)));
    put(__half_as_ushort(__float2half_rz(a)));
    put(__bfloat16_as_ushort(__float2bfloat16_rn(a)));
    put(__bfloat16_as_ushort(__float2bfloat16_rz(a)));
    put(__half_as_short(__double2half(b)));
    longs[0 * n + i] = __float2ll_rz(a);
    longs[1 * n + i] = static_cast<long long>(__float2ull_rn(a));
    longs[2 * n + i] = __double2ll_rn(b);
    floats[0 * n + i] = __double2float_rn(b);
    floats[1 * n + i] = __double2float_rz(b);
    floats[2 * n + i] = __saturatef(a);
    floats[3 * n + i] = floorf(a);
    floats[4 * n + i] = rintf(a);
    floats[5 * n + i] = truncf(a);
    floats[6 * n + i] = ceilf(a);
    floats[7 * n + i] = __ll2float_rn(__double2ll_rz(b));
    floats[8 * n + i] = __uint2float_rz(__float_as_uint(a));
    floats[9 * n + i] = fminf(a, static_cast<float>(b));
    floats[10 * n + i] = fmaxf(a, static_cast<float>(b));
    doubles[0 * n + i] = a;
    doubles[1 * n + i] = rint(b);
    doubles[2 * n + i] = fmin(b, 1.5);
    doubles[3 * n + i] = static_cast<double>(__double_as_longlong(b) >> 3);
}

// Functions whose result is rounded right, in float and double.
extern "C" __global__ void exact_floats(const float* x, const float* y, const float* z, float* out,
                                        double* doubles, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = x[i], b = y[i], c = z[i];
    int k = 0;
    auto put = [&](float v) { out[k++ * n + i] = v; };
    put(__fadd_rn(a, b));
    put(__fsub_rn(a, b));
    put(__fmul_rn(a, b));
    put(__fmaf_rn(a, b, c));
    put(__fdiv_rn(a, b));
    put(__fsqrt_rn(fabsf(a)));
    put(__frcp_rn(b));
    put(__fadd_rz(a, b));
    put(__fmul_ru(a, b));
    put(__fmaf_rd(a, b, c));
    put(__fadd_rd(a, b));
    put(copysignf(a, b));
    double e = a, f = b, g = c;
    int m = 0;
    auto putd = [&](double v) { doubles[m++ * n + i] = v; };
    putd(__dadd_rn(e, f * 1e-9));
    putd(__dmul_rn(e, f + 1e-9));
    putd(__fma_rn(e, f, g * 1e-10));
    putd(__ddiv_rn(e, f));
    putd(__dsqrt_rn(fabs(e)));
    putd(__dadd_rz(e, f * 1e-9));
}

// Functions with an error bound.
extern "C" __global__ void functions(const float* x, float* out, double* doubles, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = x[i];  // 0.01 … 4
    int k = 0;
    auto put = [&](float v) { out[k++ * n + i] = v; };
    put(expf(a));
    put(logf(a));
    put(sinf(a));
    put(cosf(100 * a));
    put(tanhf(a));
    put(powf(a, 1.7f));
    put(sqrtf(a));
    put(rsqrtf(a));
    put(erff(a));
    put(__expf(a));
    put(__logf(a + 1));
    put(__sinf(a));
    put(__cosf(a));
    put(__fdividef(1.0f, a));
    put(exp2f(a));
    put(log2f(a));
    put(atan2f(a, 2.0f));
    put(cbrtf(a));
    doubles[0 * n + i] = exp(static_cast<double>(a));
    doubles[1 * n + i] = log(static_cast<double>(a));
    doubles[2 * n + i] = sin(static_cast<double>(a));
    doubles[3 * n + i] = rsqrt(static_cast<double>(a));
}
