// The maps of grouped.cu and quant.cu in f32 without tensor cores, and the gradient of biases: to check against, and to train what is small.
//
// An output is summed by one thread in the order of k: the same bits whatever runs beside it.
#include "blocks.cuh"
#include "tile.cuh"

#define SIDE 64
#define STEP 16

// A tile of 64 x 64 by 256 threads of 4 x 4. `a(row, k)` and `b(column, k)` give values, 0 outside.
struct Sums {
    float sum[4][4];

    template <typename A, typename B> __device__ __forceinline__ void run(A a, B b, u32 depth, bool a_across, bool b_across) {
        __shared__ float of_a[STEP][SIDE + 1], of_b[STEP][SIDE + 1];
        u32 x = threadIdx.x % 16, y = threadIdx.x / 16;
        for (u32 i = 0; i < 4; i++) {
            for (u32 j = 0; j < 4; j++) {
                sum[i][j] = 0;
            }
        }
        for (u32 base = 0; base < depth; base += STEP) {
            for (u32 i = threadIdx.x; i < SIDE * STEP; i += THREADS) {
                // Neighbours read neighbours.
                u32 row = a_across ? i % SIDE : i / STEP, k = a_across ? i / SIDE : i % STEP;
                of_a[k][row] = a(row, base + k);
                row = b_across ? i % SIDE : i / STEP, k = b_across ? i / SIDE : i % STEP;
                of_b[k][row] = b(row, base + k);
            }
            __syncthreads();
            for (u32 k = 0; k < STEP; k++) {
                for (u32 i = 0; i < 4; i++) {
                    for (u32 j = 0; j < 4; j++) {
                        sum[i][j] = fmaf(of_a[k][y + 16 * i], of_b[k][x + 16 * j], sum[i][j]);
                    }
                }
            }
            __syncthreads();
        }
    }

    // Calls f(row, column, value).
    template <typename F> __device__ __forceinline__ void each(F f) const {
        for (u32 i = 0; i < 4; i++) {
            for (u32 j = 0; j < 4; j++) {
                f(threadIdx.x / 16 + 16 * i, threadIdx.x % 16 + 16 * j, sum[i][j]);
            }
        }
    }
};

// Weights as they are, and in blocks.
struct Floats {
    typedef float Item;
    static __device__ __forceinline__ float value(const float *w, size_t row, u32 k, u32 depth) { return w[row * depth + k]; }
};
template <typename B> struct FloatsOf {
    typedef u8 Item;
    static __device__ __forceinline__ float value(const u8 *w, size_t row, u32 k, u32 depth) { return value_of<B>(w, row, k, depth); }
};

template <typename W>
__device__ __forceinline__ void linear(const float *x, const u32 *token, const typename W::Item *w, const float *bias, const u32 *offsets,
                                              float *y, u32 experts, u32 width, u32 depth, u32 activation) {
    Place at = place_of(blockIdx.x, offsets, experts, SIDE);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * SIDE, first = at.expert * width;
    auto a = [&](u32 r, u32 k) {
        r += at.first;
        return r < at.end && k < depth ? x[(size_t)(token ? token[r] : r) * depth + k] : 0.0f;
    };
    auto b = [&](u32 c, u32 k) { return column + c < width && k < depth ? W::value(w, first + column + c, k, depth) : 0.0f; };
    Sums sums;
    sums.run(a, b, depth, false, false);
    sums.each([&](u32 r, u32 c, float value) {
        if (at.first + r < at.end && column + c < width) {
            value += bias ? bias[first + column + c] : 0.0f;
            y[(size_t)(at.first + r) * width + column + c] = activate(activation, value);
        }
    });
}

// grid: (.., inner / 32): the left half of a tile is of the gate, the right of up.
template <typename W>
__device__ __forceinline__ void gated(const float *x, const u32 *token, const typename W::Item *w, const float *bias, const u32 *offsets,
                                             float *h, u32 experts, u32 inner, u32 depth, u32 activation) {
    Place at = place_of(blockIdx.x, offsets, experts, SIDE);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * SIDE / 2, base = at.expert * 2 * inner;
    auto a = [&](u32 r, u32 k) {
        r += at.first;
        return r < at.end && k < depth ? x[(size_t)(token ? token[r] : r) * depth + k] : 0.0f;
    };
    auto b = [&](u32 c, u32 k) {
        u32 of = column + c % (SIDE / 2);
        return of < inner && k < depth ? W::value(w, base + (c < SIDE / 2 ? 0 : inner) + of, k, depth) : 0.0f;
    };
    Sums sums;
    sums.run(a, b, depth, false, false);
    for (u32 i = 0; i < 4; i++) {
        for (u32 j = 0; j < 2; j++) {
            u32 r = at.first + threadIdx.x / 16 + 16 * i, c = column + threadIdx.x % 16 + 16 * j;
            if (r < at.end && c < inner) {
                float gate = sums.sum[i][j] + (bias ? bias[base + c] : 0.0f), up = sums.sum[i][j + 2] + (bias ? bias[base + inner + c] : 0.0f);
                h[(size_t)r * inner + c] = activate(activation, gate) * up;
            }
        }
    }
}

#define LINEAR(kind, name, W)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) moesaic_##kind##_##name(                                                     \
        const float *x, const u32 *token, const W::Item *w, const float *bias, const u32 *offsets, float *y, u32 experts, u32 width,      \
        u32 depth, u32 activation) {                                                                                                      \
        kind<W>(x, token, w, bias, offsets, y, experts, width, depth, activation);                                                        \
    }

LINEAR(linear, f32, Floats)
LINEAR(linear, q8_0_f32, FloatsOf<Q8_0>)
LINEAR(linear, q4_k_f32, FloatsOf<Q4_K>)
LINEAR(linear, e4m3_f32, FloatsOf<E4M3>)
LINEAR(gated, f32, Floats)
LINEAR(gated, q8_0_f32, FloatsOf<Q8_0>)
LINEAR(gated, q4_k_f32, FloatsOf<Q4_K>)
LINEAR(gated, e4m3_f32, FloatsOf<E4M3>)

extern "C" __global__ void __launch_bounds__(THREADS)
    moesaic_linear_back_f32(const float *dy, const float *w, const u32 *offsets, float *dx, u32 experts, u32 width, u32 depth) {
    Place at = place_of(blockIdx.x, offsets, experts, SIDE);
    if (at.first == at.end) {
        return;
    }
    u32 column = blockIdx.y * SIDE;
    const float *own = w + (size_t)at.expert * width * depth;
    auto a = [&](u32 r, u32 k) { return at.first + r < at.end && k < width ? dy[(size_t)(at.first + r) * width + k] : 0.0f; };
    auto b = [&](u32 c, u32 k) { return column + c < depth && k < width ? own[(size_t)k * depth + column + c] : 0.0f; };
    Sums sums;
    sums.run(a, b, width, false, true);
    sums.each([&](u32 r, u32 c, float value) {
        if (at.first + r < at.end && column + c < depth) {
            dx[(size_t)(at.first + r) * depth + column + c] = value;
        }
    });
}

// grid: (depth / 64, width / 64, experts).
extern "C" __global__ void __launch_bounds__(THREADS)
    moesaic_weight_back_f32(const float *dy, const float *x, const u32 *offsets, float *dw, u32 width, u32 depth) {
    u32 first = offsets[blockIdx.z], end = offsets[blockIdx.z + 1], row = blockIdx.y * SIDE, column = blockIdx.x * SIDE;
    auto a = [&](u32 n, u32 r) { return first + r < end && row + n < width ? dy[(size_t)(first + r) * width + row + n] : 0.0f; };
    auto b = [&](u32 c, u32 r) { return first + r < end && column + c < depth ? x[(size_t)(first + r) * depth + column + c] : 0.0f; };
    Sums sums;
    sums.run(a, b, end - first, true, true);
    float *to = dw + (size_t)blockIdx.z * width * depth;
    sums.each([&](u32 r, u32 c, float value) {
        if (row + r < width && column + c < depth) {
            to[(size_t)(row + r) * depth + column + c] = value;
        }
    });
}

// dbias[e] = sum of dy over the rows of e, in their order. grid: (parts of the width, experts).
template <typename T> __device__ __forceinline__ void bias_back(const T *dy, const u32 *offsets, T *dbias, u32 width) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    float sum = 0;
    for (u32 r = offsets[blockIdx.y]; r < offsets[blockIdx.y + 1]; r++) {
        sum += wide(dy[(size_t)r * width + column]);
    }
    dbias[(size_t)blockIdx.y * width + column] = rounded<T>(sum);
}
extern "C" __global__ void moesaic_bias_back_f32(const float *dy, const u32 *offsets, float *dbias, u32 width) {
    bias_back(dy, offsets, dbias, width);
}
extern "C" __global__ void moesaic_bias_back_bf16(const bf16 *dy, const u32 *offsets, bf16 *dbias, u32 width) {
    bias_back(dy, offsets, dbias, width);
}
extern "C" __global__ void moesaic_bias_back_f16(const f16 *dy, const u32 *offsets, f16 *dbias, u32 width) {
    bias_back(dy, offsets, dbias, width);
}
