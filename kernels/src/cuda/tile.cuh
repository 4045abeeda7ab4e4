// A tile of a matrix product on tensor cores: operands by asynchronous copies through shared memory, sums in f32.
//
// An output is summed along k in steps of 16 in their order, whatever the size of the tile: how many rows an expert has does not change a bit.
#pragma once
#include "common.cuh"

// Values of k that a stage holds.
#define DEPTH 32
// Columns of a tile.
#define COLUMNS 128
#define THREADS 256

// Which row of a matrix is a tile's line.
struct Run { // rows first..end
    u32 first, end;
    __device__ __forceinline__ u32 operator()(u32 line) const { return line < end - first ? first + line : NONE; }
};
struct Tokens { // token[first..end], or rows first..end where there is no list
    const u32 *token;
    u32 first, end;
    __device__ __forceinline__ u32 operator()(u32 line) const {
        return line >= end - first ? NONE : token ? token[first + line] : first + line;
    }
};
struct Pairs { // eight rows of the gate, the eight of up for the same columns, and so on
    u32 base, first, inner;
    __device__ __forceinline__ u32 operator()(u32 line) const {
        u32 column = first + line / 16 * 8 + line % 8;
        return column < inner ? base + (line & 8 ? inner : 0) + column : NONE;
    }
};

// A matrix [rows, length] whose lines are its rows in another order. FAST: rows begin at multiples of 16 bytes.
template <typename T, bool FAST, typename Map> struct Matrix {
    const T *data;
    u32 length;
    Map row;
    // Eight values of a line from `at` on, zeros where there are none.
    __device__ __forceinline__ void put(T *to, u32 line, u32 at) const {
        u32 r = row(line);
        if (FAST) {
            bool real = r != NONE && at < length;
            copy_async(to, real ? data + (size_t)r * length + at : data, real);
        } else {
            for (u32 i = 0; i < 8; i++) {
                T zero;
                zero.bits = 0;
                to[i] = r != NONE && at + i < length ? data[(size_t)r * length + at + i] : zero;
            }
        }
    }
};

// An operand [rows of the tile, DEPTH] in shared memory. ACROSS: the matrix has k as its rows, else as its columns. Units of 8 values are
// stored where eight lanes that read one column of them meet no bank twice.
template <typename T, u32 ROWS, bool ACROSS> struct Operand {
    static const u32 LINES = ACROSS ? DEPTH : ROWS, UNITS = ACROSS ? ROWS / 8 : DEPTH / 8, SIZE = ROWS * DEPTH;
    static __device__ __forceinline__ T *unit(T *tile, u32 line, u32 unit) {
        return tile + (line * UNITS + (unit ^ (ACROSS ? line & 7 : line >> 1 & 3))) * 8;
    }
    // `first` is the tile's first row, `k` the stage's first depth.
    template <typename M> static __device__ __forceinline__ void load(T *tile, const M &matrix, u32 first, u32 k) {
        for (u32 i = threadIdx.x; i < LINES * UNITS; i += THREADS) {
            u32 line = i / UNITS, u = i % UNITS;
            if (ACROSS) {
                matrix.put(unit(tile, line, u), k + line, first + u * 8);
            } else {
                matrix.put(unit(tile, line, u), first + line, k + u * 8);
            }
        }
    }
    // Of 16 rows and 16 depths: matrices (rows 0, depths 0), (8, 0), (0, 8), (8, 8), or the two in the middle in the other order.
    static __device__ __forceinline__ void fragment(u32 (&r)[4], T *tile, u32 row, u32 k, bool rows_first) {
        u32 lane = threadIdx.x % 32, one = lane >> 3 & 1, two = lane >> 4;
        u32 down = rows_first ? one : two, along = rows_first ? two : one;
        if (ACROSS) {
            load_transposed(r, unit(tile, k + along * 8 + lane % 8, row / 8 + down));
        } else {
            load_matrices(r, unit(tile, row + down * 8 + lane % 8, k / 8 + along));
        }
    }
};

// Warps stand in WARPS_M rows; each has MI x NI fragments of 16 x 8.
template <typename T, u32 ROWS, u32 WARPS_M, u32 STAGES, bool A_ACROSS, bool B_ACROSS> struct Tile {
    static const u32 WARPS_N = THREADS / 32 / WARPS_M, MI = ROWS / WARPS_M / 16, NI = COLUMNS / WARPS_N / 8;
    static const u32 STAGE = (ROWS + COLUMNS) * DEPTH;
    typedef Operand<T, ROWS, A_ACROSS> A;
    typedef Operand<T, COLUMNS, B_ACROSS> B;
    float sum[MI][NI][4];

    // Rows `m` on of a by rows `n` on of b, over `depth`.
    template <typename MA, typename MB>
    __device__ __forceinline__ void run(T *shared, const MA &a, u32 m, const MB &b, u32 n, u32 depth) {
        u32 warp = threadIdx.x / 32, row = warp / WARPS_N * MI * 16, column = warp % WARPS_N * NI * 8;
        for (u32 i = 0; i < MI; i++) {
            for (u32 j = 0; j < NI; j++) {
                for (u32 v = 0; v < 4; v++) {
                    sum[i][j][v] = 0;
                }
            }
        }
        u32 steps = parts(depth, DEPTH);
        for (u32 s = 0; s < STAGES - 1; s++) {
            if (s < steps) {
                T *stage = shared + s * STAGE;
                A::load(stage, a, m, s * DEPTH);
                B::load(stage + A::SIZE, b, n, s * DEPTH);
            }
            copies_end();
        }
        for (u32 s = 0; s < steps; s++) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            u32 next = s + STAGES - 1;
            if (next < steps) { // into the stage that all have left
                T *stage = shared + next % STAGES * STAGE;
                A::load(stage, a, m, next * DEPTH);
                B::load(stage + A::SIZE, b, n, next * DEPTH);
            }
            copies_end();
            T *stage = shared + s % STAGES * STAGE;
#pragma unroll
            for (u32 k = 0; k < DEPTH; k += 16) {
                u32 of_a[MI][4], of_b[NI / 2][4];
#pragma unroll
                for (u32 i = 0; i < MI; i++) {
                    A::fragment(of_a[i], stage, row + i * 16, k, true);
                }
#pragma unroll
                for (u32 j = 0; j < NI / 2; j++) {
                    B::fragment(of_b[j], stage + A::SIZE, column + j * 16, k, false);
                }
#pragma unroll
                for (u32 i = 0; i < MI; i++) {
#pragma unroll
                    for (u32 j = 0; j < NI; j++) {
                        multiply_add(sum[i][j], of_a[i], of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1], T());
                    }
                }
            }
        }
        copies_wait<0>();
    }

    // Calls f(row, column, value) for the places of the tile, through shared memory so that neighbouring lanes have neighbouring columns. With OF = 2
    // columns are counted in pairs, and value[8] is the pair's second.
    template <u32 OF, typename F> __device__ __forceinline__ void each(T *shared, F f) const {
        const u32 WIDTH = NI * 8, LINE = WIDTH + 4;
        u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp / WARPS_N * MI * 16, column = warp % WARPS_N * (WIDTH / OF);
        float *own = (float *)shared + warp * 16 * LINE;
        __syncthreads(); // all have read the last stage
#pragma unroll
        for (u32 i = 0; i < MI; i++) {
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
                for (u32 v = 0; v < 4; v++) {
                    own[(lane / 4 + v / 2 * 8) * LINE + j * 8 + lane % 4 * 2 + v % 2] = sum[i][j][v];
                }
            }
            __syncwarp();
#pragma unroll 1
            for (u32 at = lane; at < 16 * WIDTH / OF; at += 32) {
                u32 r = at / (WIDTH / OF), c = at % (WIDTH / OF);
                f(row + i * 16 + r, column + c, own + r * LINE + (OF == 1 ? c : c / 8 * 16 + c % 8));
            }
            __syncwarp();
        }
    }
};

// The non-linearities, numbered as Activation is in the host's code; 0 is none.
inline __device__ __noinline__ float activate(u32 which, float x) {
    switch (which) {
    case 1: // silu
        return x / (1.0f + expf(-x));
    case 2: // gelu, tanh
        return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case 3: // gelu, erf
        return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case 4: // relu
        return x > 0.0f || x != x ? x : 0.0f;
    case 5: // quick gelu
        return x / (1.0f + expf(-1.702f * x));
    default:
        return x;
    }
}
