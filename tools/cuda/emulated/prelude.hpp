// What candle's kernels use of CUDA's headers, on the emulator of kernels/tests/cuda. Every operation on halves rounds, as on a GPU.
#pragma once
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};
#include "emulator.hpp"

#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

static inline float wide(bf16 v) { return as_float((u32)v.bits << 16); }
static inline void narrow(float v, bf16 &out) {
    u32 bits = as_bits(v);
    out.bits = v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <typename B> struct Half : B {
    Half() = default;
    Half(B v) : B(v) {}
    template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value>> Half(T v) { narrow((float)v, *this); }
    operator float() const { return wide(*this); }
    Half &operator+=(Half o) { return *this = *this + o; }
    Half &operator-=(Half o) { return *this = *this - o; }
    Half &operator*=(Half o) { return *this = *this * o; }
    Half &operator/=(Half o) { return *this = *this / o; }
    friend Half operator+(Half a, Half b) { return wide(a) + wide(b); }
    friend Half operator-(Half a, Half b) { return wide(a) - wide(b); }
    friend Half operator*(Half a, Half b) { return wide(a) * wide(b); }
    friend Half operator/(Half a, Half b) { return wide(a) / wide(b); }
    friend Half operator-(Half a) { return -wide(a); }
    friend bool operator==(Half a, Half b) { return wide(a) == wide(b); }
    friend bool operator!=(Half a, Half b) { return wide(a) != wide(b); }
    friend bool operator<(Half a, Half b) { return wide(a) < wide(b); }
    friend bool operator<=(Half a, Half b) { return wide(a) <= wide(b); }
    friend bool operator>(Half a, Half b) { return wide(a) > wide(b); }
    friend bool operator>=(Half a, Half b) { return wide(a) >= wide(b); }
};
typedef Half<f16> __half;
typedef Half<bf16> __nv_bfloat16;
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

template <typename B> static inline Half<B> half_max(Half<B> a, Half<B> b) { return __builtin_isnan((float)a) ? a : __builtin_isnan((float)b) ? b : a > b ? a : b; }
template <typename B> static inline Half<B> half_min(Half<B> a, Half<B> b) { return __builtin_isnan((float)a) ? a : __builtin_isnan((float)b) ? b : a < b ? a : b; }
template <typename B> static inline Half<B> __hmax_nan(Half<B> a, Half<B> b) { return half_max(a, b); }
template <typename B> static inline Half<B> __hmin_nan(Half<B> a, Half<B> b) { return half_min(a, b); }
template <typename B> static inline bool __hisnan(Half<B> a) { return __builtin_isnan((float)a); }
template <typename B> static inline Half<B> __habs(Half<B> a) { return fabsf(a); }
template <typename B> static inline Half<B> hsqrt(Half<B> a) { return sqrtf(a); }
template <typename B> static inline Half<B> hcos(Half<B> a) { return cosf(a); }
template <typename B> static inline Half<B> hsin(Half<B> a) { return sinf(a); }
template <typename B> static inline Half<B> hlog(Half<B> a) { return logf(a); }
template <typename B> static inline Half<B> hexp(Half<B> a) { return expf(a); }
static inline float __half2float(__half a) { return a; }
static inline __half __float2half(float a) { return a; }
static inline float __bfloat162float(__nv_bfloat16 a) { return a; }
static inline __nv_bfloat16 __float2bfloat16(float a) { return a; }
static inline __nv_bfloat16 __float2bfloat16_rn(float a) { return a; }
static inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
static inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }
static inline u16 __half_as_ushort(__half a) { return a.bits; }
static inline __half __ushort_as_half(u16 a) { return f16{a}; }

// FP8: a sign, 4 bits of exponent, 3 of fraction; 0x7f is NaN, no infinities.
struct __nv_fp8_e4m3 {
    u8 __x;
    __nv_fp8_e4m3() = default;
    template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value>> __nv_fp8_e4m3(T from) {
        float v = from, size = fabsf(v);
        u8 sign = std::signbit(v) ? 0x80 : 0;
        if (v != v) {
            __x = sign | 0x7f;
        } else if (size > 448) {
            __x = sign | 0x7e;
        } else {
            int exponent = size == 0 ? -6 : std::max(std::ilogb(size), -6);
            __x = sign | (((exponent + 6) << 3) + (int)nearbyintf(ldexpf(size, 3 - exponent)));
        }
    }
    operator float() const {
        int exponent = __x >> 3 & 15, fraction = __x & 7;
        float size = (__x & 0x7f) == 0x7f ? NAN : exponent ? ldexpf(8 + fraction, exponent - 10) : ldexpf(fraction, -9);
        return __x & 0x80 ? -size : size;
    }
};
enum Interpretation { __NV_E4M3 };
static inline __half __nv_cvt_fp8_to_halfraw(u8 bits, Interpretation) {
    __nv_fp8_e4m3 v;
    v.__x = bits;
    return (float)v;
}

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }

using std::isnan;
using std::signbit;
template <typename A, typename B> static inline std::common_type_t<A, B> min(A a, B b) { return (std::common_type_t<A, B>)a < (std::common_type_t<A, B>)b ? a : b; }
template <typename A, typename B> static inline std::common_type_t<A, B> max(A a, B b) { return (std::common_type_t<A, B>)a > (std::common_type_t<A, B>)b ? a : b; }
static inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
static inline float normcdff(float v) { return 0.5f * erfcf(v * -0.70710678f); }
static inline double normcdf(double v) { return 0.5 * erfc(v * -0.7071067811865476); }

static inline float __uint_as_float(u32 v) { return as_float(v); }
static inline float __int_as_float(int v) { return as_float(v); }
static inline u32 __float_as_uint(float v) { return as_bits(v); }
static inline int __float_as_int(float v) { return as_bits(v); }
static inline double __longlong_as_double(long long v) {
    double d;
    memcpy(&d, &v, 8);
    return d;
}
static inline long long __double_as_longlong(double d) {
    long long v;
    memcpy(&v, &d, 8);
    return v;
}
// The first argument alone says which type it is.
template <typename T> using Same = std::common_type_t<T>;
template <typename T> static inline T atomicCAS(T *at, Same<T> expected, Same<T> v) {
    T old = *at;
    *at = old == expected ? v : old;
    return old;
}
template <typename T> static inline T atomicMin(T *at, Same<T> v) {
    T old = *at;
    *at = std::min(old, v);
    return old;
}
template <typename T> static inline T atomicMax(T *at, Same<T> v) {
    T old = *at;
    *at = std::max(old, v);
    return old;
}
template <typename T> static inline T atomicAdd(T *at, Same<T> v) {
    T old = *at;
    *at = old + v;
    return old;
}

namespace cuda {
namespace std {
using ::std::numeric_limits;
}
} // namespace cuda
