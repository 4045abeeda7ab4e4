// Weights as whole numbers in blocks that share a scale, as src/blocks.rs has them.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float half_at(const u8 *bytes) {
    f16 v;
    v.bits = (u16)(bytes[0] | bytes[1] << 8);
    return wide(v);
}

struct Q8_0 {
    static const u32 VALUES = 32, BYTES = 34;
    // Value `at` of a block.
    static __device__ __forceinline__ float value(const u8 *block, u32 at) {
        return half_at(block) * (float)(signed char)block[2 + at];
    }
};

struct Q4_K {
    static const u32 VALUES = 256, BYTES = 144;
    static __device__ __forceinline__ float value(const u8 *block, u32 at) {
        // Scale and minimum of 32 values, 6 bits each in 12 bytes.
        const u8 *packed = block + 4;
        u32 j = at / 32, scale, least;
        if (j < 4) {
            scale = packed[j] & 63, least = packed[j + 4] & 63;
        } else {
            scale = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
            least = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
        }
        // 64 values at a time: the low nibbles of 32 bytes, then their high ones.
        u32 q = block[16 + j / 2 * 32 + at % 32] >> (j % 2 * 4) & 15;
        return half_at(block) * (float)scale * (float)q - half_at(block + 2) * (float)least;
    }
};

// Value `k` of row `row` of a matrix with rows of `length` values.
template <typename B> __device__ __forceinline__ float value_of(const u8 *data, size_t row, u32 k, u32 length) {
    return B::value(data + (row * (length / B::VALUES) + k / B::VALUES) * B::BYTES, k % B::VALUES);
}
