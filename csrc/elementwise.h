// The table of elementwise operations. A line here is the kernel: its name, the types it exists for
// ("any" includes integers, "real" is floating point only) and its expression; elementwise.cpp
// makes the loops, bindings.cpp the names. Expressions are written once for vectors of float32 and
// for double (and int64) scalars: x, a, b are inputs, y the forward result, g the incoming
// gradient, p a parameter, c(…) a constant, and T the type whose precision the result needs.
#pragma once

// clang-format off
// name, types, value, gradient
#define MG_UNARY(X)                                                                              \
    X(neg, any, -x, -g)                                                                          \
    X(abs, any, abs(x), select(x > c(0), g, select(x < c(0), -g, c(0))))                         \
    X(sign, any, select(x > c(0), c(1), select(x < c(0), c(-1), x)), c(0))                       \
    X(exp, real, exp(x), g * y)                                                                  \
    X(expm1, real, expm1(x), g * (y + c(1)))                                                     \
    X(log, real, log(x), g / x)                                                                  \
    X(log1p, real, log1p(x), g / (c(1) + x))                                                     \
    X(sqrt, real, sqrt(x), g * c(0.5) / y)                                                       \
    X(rsqrt, real, rsqrt(x), g * c(-0.5) * y * y * y)                                            \
    X(sin, real, sin(x), g * cos(x))                                                             \
    X(cos, real, cos(x), -g * sin(x))                                                            \
    X(erf, real, erf(x), g * c(1.1283791670955126) * exp(-x * x))                                \
    X(floor, real, floor(x), c(0))                                                               \
    X(ceil, real, ceil(x), c(0))                                                                 \
    X(round, real, round(x), c(0))                                                               \
    X(tanh, real, tanh(x), g * (c(1) - y * y))                                                   \
    X(sigmoid, real, sigmoid(x), g * y * (c(1) - y))                                             \
    X(softplus, real, softplus(x), g * sigmoid(x))                                               \
    X(silu, real, silu(x), g * (sigmoid(x) * (c(1) + x * (c(1) - sigmoid(x)))))           \
    X(relu, real, maximum(x, c(0)), select(x > c(0), g, c(0)))                                   \
    X(leaky_relu, real, select(x > c(0), x, p * x), select(x > c(0), g, p * g))                  \
    X(elu, real, select(x > c(0), x, p * expm1(x)), select(x > c(0), g, g * p * exp(x)))         \
    X(selu, real, c(kSeluScale) * select(x > c(0), x, c(kSeluAlpha) * expm1(x)),                 \
      g * c(kSeluScale) * select(x > c(0), c(1), c(kSeluAlpha) * exp(x)))                        \
    X(gelu, real, gelu_for<T>(x).value, g * gelu_for<T>(x).slope)                                \
    X(gelu_tanh, real, gelu_tanh_for<T>(x).value, g * gelu_tanh_for<T>(x).slope)

// name, types, value
#define MG_BINARY(X)                                                                             \
    X(add, any, a + b)                                                                           \
    X(sub, any, a - b)                                                                           \
    X(mul, any, a * b)                                                                           \
    X(div, real, a / b)                                                                          \
    X(pow, any, pow(a, b))                                                                       \
    X(floor_divide, any, floor_divide(a, b))                                                     \
    X(remainder, any, remainder(a, b))                                                           \
    X(maximum, any, maximum(a, b))                                                               \
    X(minimum, any, minimum(a, b))

// name, types, truth
#define MG_COMPARISON(X)                                                                         \
    X(eq, any, a == b)                                                                           \
    X(ne, any, a != b)                                                                           \
    X(lt, any, a < b)                                                                            \
    X(le, any, a <= b)                                                                           \
    X(gt, any, a > b)                                                                            \
    X(ge, any, a >= b)                                                                           \
    X(logical_and, any, (a != c(0)) & (b != c(0)))                                               \
    X(logical_or, any, (a != c(0)) | (b != c(0)))
// clang-format on

namespace mg {

constexpr double kSeluScale = 1.0507009873554805, kSeluAlpha = 1.6732632423543772;

}  // namespace mg
