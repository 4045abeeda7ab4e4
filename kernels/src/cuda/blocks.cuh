// Weights in blocks that share a scale: whole numbers, as src/blocks.rs has them, and FP8.
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

// 128 values in FP8 (E4M3) behind their scale in f32, as src/checkpoint/fp8.rs puts them.
struct E4M3 {
    static const u32 VALUES = 128, BYTES = 132;
    static __device__ __forceinline__ float value(const u8 *block, u32 at) {
        u32 byte = block[4 + at];
        // Exponent and fraction stand in f16 as they are, for a value that is 2^8 times smaller; all seven bits set are NaN.
        f16 v;
        v.bits = (u16)((byte & 127) == 127 ? 0x7e00 : (byte & 128) << 8 | (byte & 127) << 7);
        return wide(v) * 256.0f * *(const float *)block;
    }
};

// Value `k` of row `row` of a matrix with rows of `length` values.
template <typename B> __device__ __forceinline__ float value_of(const u8 *data, size_t row, u32 k, u32 length) {
    return B::value(data + (row * (length / B::VALUES) + k / B::VALUES) * B::BYTES, k % B::VALUES);
}
