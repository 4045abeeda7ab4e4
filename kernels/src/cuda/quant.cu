// The maps of experts.cuh on weights in blocks: they are widened on their way into shared memory, so a weight is read from memory as it is stored.
//
// On tensor cores its value is rounded to the type of the tokens first, in f32 it is exact.
#include "blocks.cuh"
#include "experts.cuh"

// A matrix of blocks whose lines are its rows by a map; `length` is a multiple of a block's values.
template <typename T, typename B, typename Map> struct BlockMatrix {
    const u8 *data;
    u32 length;
    Map row;
    __device__ __forceinline__ void put(T *to, u32 line, u32 at) const {
        u32 r = row(line);
        for (u32 i = 0; i < 8; i++) {
            to[i] = rounded<T>(r != NONE && at < length ? value_of<B>(data, r, at + i, length) : 0.0f);
        }
    }
};
template <typename T, typename B> struct InBlocks {
    typedef u8 Item;
    template <typename Map> using Of = BlockMatrix<T, B, Map>;
};

// Macros take no commas.
typedef InBlocks<bf16, Q8_0> Q8_0bf16;
typedef InBlocks<f16, Q8_0> Q8_0f16;
typedef InBlocks<bf16, Q4_K> Q4_Kbf16;
typedef InBlocks<f16, Q4_K> Q4_Kf16;
typedef InBlocks<bf16, E4M3> E4M3bf16;
typedef InBlocks<f16, E4M3> E4M3f16;

#define ALL(T, name, W)                                                                                                                   \
    LINEAR(linear, T, name##_16, 16, 1, 4, true, W)                                                                                       \
    LINEAR(linear, T, name##_64, 64, 2, 4, true, W)                                                                                       \
    LINEAR(linear, T, name##_128, 128, 2, 3, true, W)                                                                                     \
    LINEAR(gated, T, name##_16, 16, 1, 4, true, W)                                                                                        \
    LINEAR(gated, T, name##_64, 64, 2, 4, true, W)                                                                                        \
    LINEAR(gated, T, name##_128, 128, 2, 3, true, W)

ALL(bf16, q8_0_bf16, Q8_0bf16)
ALL(f16, q8_0_f16, Q8_0f16)
ALL(bf16, q4_k_bf16, Q4_Kbf16)
ALL(f16, q4_k_f16, Q4_Kf16)
ALL(bf16, e4m3_bf16, E4M3bf16)
ALL(f16, e4m3_f16, E4M3f16)
