// One linear map per expert on the rows routed to it, and its first half of gated ones, for weights of any kind.
//
// Rows of expert e are offsets[e]..offsets[e + 1], in memory of the device: no launch waits for the host to know them. Where `token` is given, row r
// of the input is that of token[r]. grid: (at least all runs of rows, columns / 128): blocks past the last run end at once.
//
// W names the weights: W::Item what they are made of, W::Of<Map> a matrix of them whose lines are rows by a map (tile.cuh).
#pragma once
#include "tile.cuh"

// y[r] = act(W[e] x[r] + bias[e]). x [.., depth], w [experts, width, depth], bias [experts, width] or none, y [R, width].
template <typename T, u32 ROWS, u32 WARPS_M, u32 STAGES, bool FAST, typename W>
__device__ __forceinline__ void linear(const T *x, const u32 *token, const typename W::Item *w, const T *bias, const u32 *offsets, T *y,
                                              u32 experts, u32 width, u32 depth, u32 activation) {
    SHARED;
    Place at = place_of(blockIdx.x, offsets, experts, ROWS);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * COLUMNS, row = at.expert * width + column;
    Tile<T, ROWS, WARPS_M, STAGES, false, false> tile;
    typename W::template Of<Run> b = {w, depth, {row, (at.expert + 1) * width}};
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
template <typename T, u32 ROWS, u32 WARPS_M, u32 STAGES, bool FAST, typename W>
__device__ __forceinline__ void gated(const T *x, const u32 *token, const typename W::Item *w, const T *bias, const u32 *offsets, T *h,
                                             u32 experts, u32 inner, u32 depth, u32 activation) {
    SHARED;
    Place at = place_of(blockIdx.x, offsets, experts, ROWS);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * COLUMNS / 2, base = at.expert * 2 * inner;
    Tile<T, ROWS, WARPS_M, STAGES, false, false> tile;
    typename W::template Of<Pairs> b = {w, depth, {base, column, inner}};
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

#define LINEAR(kind, T, name, ROWS, WARPS_M, STAGES, FAST, W)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) moesaic_##kind##_##name(                                                        \
        const T *x, const u32 *token, const W::Item *w, const T *bias, const u32 *offsets, T *y, u32 experts, u32 width, u32 depth,       \
        u32 activation) {                                                                                                                 \
        kind<T, ROWS, WARPS_M, STAGES, FAST, W>(x, token, w, bias, offsets, y, experts, width, depth, activation);                        \
    }
