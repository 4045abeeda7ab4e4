// Rows of tokens into the order of routes and back: dispatch, combine, and their gradients.
//
// Sums over a token's routes are in the order of their slots, by one thread a column: the same bits whatever runs beside it.
#include "common.cuh"

// y[r] = x[token[r]]: one block a row, `units` times as many 16-byte (or single) units as the row has.
template <typename U> __device__ __forceinline__ void gather(const U *x, const u32 *token, U *y, u32 width) {
    size_t from = (size_t)token[blockIdx.x] * width, to = (size_t)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        y[to + i] = x[from + i];
    }
}

struct __align__(16) Unit {
    u32 part[4];
};

// Rows of `width` units of 16 bytes, 4 or 2.
extern "C" __global__ void moesaic_gather_16(const Unit *x, const u32 *token, Unit *y, u32 width) { gather(x, token, y, width); }
extern "C" __global__ void moesaic_gather_4(const u32 *x, const u32 *token, u32 *y, u32 width) { gather(x, token, y, width); }
extern "C" __global__ void moesaic_gather_2(const u16 *x, const u32 *token, u16 *y, u32 width) { gather(x, token, y, width); }

// out[t] = sum over the token's routes r, in the order of slots, of weight[r] y[r]; weight 1 where there is none.
// by_token[start[t]..start[t + 1]] are those routes. A token without any gets zeros. grid: (tokens, parts of the width).
template <typename T>
__device__ __forceinline__ void combine(const T *y, const float *weight, const u32 *by_token, const u32 *start, T *out, u32 width) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    float sum = 0;
    for (u32 i = start[blockIdx.x]; i < start[blockIdx.x + 1]; i++) {
        u32 r = by_token[i];
        sum = fmaf(weight ? weight[r] : 1.0f, wide(y[(size_t)r * width + column]), sum);
    }
    out[(size_t)blockIdx.x * width + column] = rounded<T>(sum);
}

// dy[r] = weight[r] dout[token[r]]. grid: (routes, parts of the width).
template <typename T>
__device__ __forceinline__ void spread(const T *dout, const float *weight, const u32 *token, T *dy, u32 width) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x, r = blockIdx.x;
    if (column < width) {
        dy[(size_t)r * width + column] = rounded<T>(weight[r] * wide(dout[(size_t)token[r] * width + column]));
    }
}

// dweight[r] = y[r] . dout[token[r]]. One warp a route; blocks of 256 threads.
template <typename T>
__device__ __forceinline__ void dots(const T *y, const T *dout, const u32 *token, float *dweight, u32 routes, u32 width) {
    u32 r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (r >= routes) {
        return;
    }
    float sum = 0;
    const T *of = dout + (size_t)token[r] * width, *own = y + (size_t)r * width;
    for (u32 i = threadIdx.x % 32; i < width; i += 32) {
        sum = fmaf(wide(own[i]), wide(of[i]), sum);
    }
    for (u32 step = 16; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (threadIdx.x % 32 == 0) {
        dweight[r] = sum;
    }
}

#define ROWS(T, name)                                                                                                                     \
    extern "C" __global__ void moesaic_combine_##name(const T *y, const float *weight, const u32 *by_token, const u32 *start, T *out,     \
                                                      u32 width) {                                                                        \
        combine(y, weight, by_token, start, out, width);                                                                                  \
    }                                                                                                                                     \
    extern "C" __global__ void moesaic_spread_##name(const T *dout, const float *weight, const u32 *token, T *dy, u32 width) {            \
        spread(dout, weight, token, dy, width);                                                                                           \
    }                                                                                                                                     \
    extern "C" __global__ void moesaic_dots_##name(const T *y, const T *dout, const u32 *token, float *dweight, u32 routes, u32 width) {  \
        dots(y, dout, token, dweight, routes, width);                                                                                     \
    }

ROWS(float, f32)
ROWS(bf16, bf16)
ROWS(f16, f16)
