// One linear map per expert on the rows routed to it, and its gradients, in bf16 and f16 on tensor cores.
//
// Rows of expert e are offsets[e]..offsets[e + 1], in memory of the device: no launch waits for the host to know them. Where `token` is given, row r
// of the input is that of token[r]. grid: (at least all runs of rows, columns / 128): blocks past the last run end at once.
#include "tile.cuh"

// y[r] = act(W[e] x[r] + bias[e]). x [.., depth], w [experts, width, depth], bias [experts, width] or none, y [R, width].
template <typename T, u32 ROWS, u32 WARPS_M, u32 STAGES, bool FAST>
static __device__ __forceinline__ void linear(const T *x, const u32 *token, const T *w, const T *bias, const u32 *offsets, T *y, u32 experts,
                                              u32 width, u32 depth, u32 activation) {
    SHARED;
    Place at = place_of(blockIdx.x, offsets, experts, ROWS);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * COLUMNS, row = at.expert * width + column;
    Tile<T, ROWS, WARPS_M, STAGES, false, false> tile;
    Matrix<T, FAST, Run> b = {w, depth, {row, (at.expert + 1) * width}};
    Matrix<T, FAST, Tokens> a = {x, depth, {token, at.first, at.end}};
    tile.run((T *)shared_memory, a, 0, b, 0, depth);
    tile.template each<1>((T *)shared_memory, [&](u32 r, u32 c, const float *value) {
        if (at.first + r < at.end && column + c < width) {
            float sum = *value + (bias ? wide(bias[row + c]) : 0.0f);
            y[(size_t)(at.first + r) * width + column + c] = rounded<T>(activate(activation, sum));
        }
    });
}

// h[r] = act(gate[e] x[r]) * (up[e] x[r]), biases before the rest. w [experts, 2 inner, depth], gate first; h [R, inner]. grid: (.., inner / 64).
template <typename T, u32 ROWS, u32 WARPS_M, u32 STAGES, bool FAST>
static __device__ __forceinline__ void gated(const T *x, const u32 *token, const T *w, const T *bias, const u32 *offsets, T *h, u32 experts,
                                             u32 inner, u32 depth, u32 activation) {
    SHARED;
    Place at = place_of(blockIdx.x, offsets, experts, ROWS);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * COLUMNS / 2, base = at.expert * 2 * inner;
    Tile<T, ROWS, WARPS_M, STAGES, false, false> tile;
    Matrix<T, FAST, Pairs> b = {w, depth, {base, column, inner}};
    Matrix<T, FAST, Tokens> a = {x, depth, {token, at.first, at.end}};
    tile.run((T *)shared_memory, a, 0, b, 0, depth);
    tile.template each<2>((T *)shared_memory, [&](u32 r, u32 c, const float *value) {
        if (at.first + r < at.end && column + c < inner) {
            float gate = value[0] + (bias ? wide(bias[base + column + c]) : 0.0f);
            float up = value[8] + (bias ? wide(bias[base + inner + column + c]) : 0.0f);
            h[(size_t)(at.first + r) * inner + column + c] = rounded<T>(activate(activation, gate) * up);
        }
    });
}

// dx[r] = W[e]^T dy[r]. dy [R, width], w [experts, width, depth], dx [R, depth]. grid: (.., depth / 128).
template <typename T, u32 ROWS, u32 WARPS_M, u32 STAGES, bool FAST>
static __device__ __forceinline__ void linear_back(const T *dy, const T *w, const u32 *offsets, T *dx, u32 experts, u32 width, u32 depth) {
    SHARED;
    Place at = place_of(blockIdx.x, offsets, experts, ROWS);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * COLUMNS;
    Tile<T, ROWS, WARPS_M, STAGES, false, true> tile;
    Matrix<T, FAST, Run> a = {dy, width, {at.first, at.end}};
    Matrix<T, FAST, Run> b = {w, depth, {at.expert * width, (at.expert + 1) * width}};
    tile.run((T *)shared_memory, a, 0, b, column, width);
    tile.template each<1>((T *)shared_memory, [&](u32 r, u32 c, const float *value) {
        if (at.first + r < at.end && column + c < depth) {
            dx[(size_t)(at.first + r) * depth + column + c] = rounded<T>(*value);
        }
    });
}

// dW[e] = dy[rows of e]^T x[rows of e], zeros where there are none. grid: (depth / 128, width / 128, experts).
template <typename T, bool FAST>
static __device__ __forceinline__ void weight_back(const T *dy, const T *x, const u32 *offsets, T *dw, u32 width, u32 depth) {
    SHARED;
    u32 first = offsets[blockIdx.z], end = offsets[blockIdx.z + 1], row = blockIdx.y * 128, column = blockIdx.x * COLUMNS;
    Tile<T, 128, 2, 3, true, true> tile;
    Matrix<T, FAST, Run> a = {dy, width, {first, end}}, b = {x, depth, {first, end}};
    tile.run((T *)shared_memory, a, row, b, column, end - first);
    T *to = dw + (size_t)blockIdx.z * width * depth;
    tile.template each<1>((T *)shared_memory, [&](u32 r, u32 c, const float *value) {
        if (row + r < width && column + c < depth) {
            to[(size_t)(row + r) * depth + column + c] = rounded<T>(*value);
        }
    });
}

#define LINEAR(kind, T, name, ROWS, WARPS_M, STAGES, FAST)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) moesaic_##kind##_##name(                                                        \
        const T *x, const u32 *token, const T *w, const T *bias, const u32 *offsets, T *y, u32 experts, u32 width, u32 depth,             \
        u32 activation) {                                                                                                                 \
        kind<T, ROWS, WARPS_M, STAGES, FAST>(x, token, w, bias, offsets, y, experts, width, depth, activation);                           \
    }
#define BACK(T, name, ROWS, WARPS_M, STAGES, FAST)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                 \
        moesaic_linear_back_##name(const T *dy, const T *w, const u32 *offsets, T *dx, u32 experts, u32 width, u32 depth) {               \
        linear_back<T, ROWS, WARPS_M, STAGES, FAST>(dy, w, offsets, dx, experts, width, depth);                                           \
    }
#define WEIGHT(T, name, FAST)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                                 \
        moesaic_weight_back_##name(const T *dy, const T *x, const u32 *offsets, T *dw, u32 width, u32 depth) {                            \
        weight_back<T, FAST>(dy, x, offsets, dw, width, depth);                                                                           \
    }

// Tiles of 16, 64 and 128 rows for as many rows of an expert; `any` takes widths that are no multiples of eight, and any address.
#define ALL(T, name)                                                                                                                      \
    LINEAR(linear, T, name##_16, 16, 1, 4, true)                                                                                          \
    LINEAR(linear, T, name##_64, 64, 2, 4, true)                                                                                          \
    LINEAR(linear, T, name##_128, 128, 2, 3, true)                                                                                        \
    LINEAR(linear, T, name##_any, 64, 2, 4, false)                                                                                        \
    LINEAR(gated, T, name##_16, 16, 1, 4, true)                                                                                           \
    LINEAR(gated, T, name##_64, 64, 2, 4, true)                                                                                           \
    LINEAR(gated, T, name##_128, 128, 2, 3, true)                                                                                         \
    LINEAR(gated, T, name##_any, 64, 2, 4, false)                                                                                         \
    BACK(T, name##_64, 64, 2, 4, true)                                                                                                    \
    BACK(T, name##_128, 128, 2, 3, true)                                                                                                  \
    BACK(T, name##_any, 64, 2, 4, false)                                                                                                  \
    WEIGHT(T, name##_128, true)                                                                                                           \
    WEIGHT(T, name##_any, false)

ALL(bf16, bf16)
ALL(f16, f16)
