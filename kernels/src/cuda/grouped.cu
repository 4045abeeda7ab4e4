// The maps of experts.cuh on weights in bf16 and f16, and their gradients, on tensor cores.
#include "experts.cuh"

// Weights as they are; FAST where rows begin at multiples of 16 bytes.
template <typename T, bool FAST> struct Dense {
    typedef T Item;
    template <typename Map> using Of = Matrix<T, FAST, Map>;
};

// dx[r] = W[e]^T dy[r]. dy [R, width], w [experts, width, depth], dx [R, depth]. grid: (.., depth / 128).
template <typename T, u32 ROWS, u32 WARPS_M, u32 STAGES, bool FAST>
__device__ __forceinline__ void linear_back(const T *dy, const T *w, const u32 *offsets, T *dx, u32 experts, u32 width, u32 depth) {
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
__device__ __forceinline__ void weight_back(const T *dy, const T *x, const u32 *offsets, T *dw, u32 width, u32 depth) {
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

// Macros take no commas.
typedef Dense<bf16, true> FastOfbf16;
typedef Dense<bf16, false> AnyOfbf16;
typedef Dense<f16, true> FastOff16;
typedef Dense<f16, false> AnyOff16;

// Tiles of 16, 64 and 128 rows for as many rows of an expert; `any` takes widths that are no multiples of eight, and any address.
#define ALL(T, name)                                                                                                                      \
    LINEAR(linear, T, name##_16, 16, 1, 4, true, FastOf##T)                                                                        \
    LINEAR(linear, T, name##_64, 64, 2, 4, true, FastOf##T)                                                                        \
    LINEAR(linear, T, name##_128, 128, 2, 3, true, FastOf##T)                                                                      \
    LINEAR(linear, T, name##_any, 64, 2, 4, false, AnyOf##T)                                                                      \
    LINEAR(gated, T, name##_16, 16, 1, 4, true, FastOf##T)                                                                         \
    LINEAR(gated, T, name##_64, 64, 2, 4, true, FastOf##T)                                                                         \
    LINEAR(gated, T, name##_128, 128, 2, 3, true, FastOf##T)                                                                       \
    LINEAR(gated, T, name##_any, 64, 2, 4, false, AnyOf##T)                                                                       \
    BACK(T, name##_64, 64, 2, 4, true)                                                                                                    \
    BACK(T, name##_128, 128, 2, 3, true)                                                                                                  \
    BACK(T, name##_any, 64, 2, 4, false)                                                                                                  \
    WEIGHT(T, name##_128, true)                                                                                                           \
    WEIGHT(T, name##_any, false)

ALL(bf16, bf16)
ALL(f16, f16)
