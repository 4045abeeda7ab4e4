// What all kernels use: half-precision numbers, asynchronous copies, tensor-core products, the place of a block among experts.
//
// Instructions are wrapped here alone, so that tests/cuda/emulator.hpp can stand in for them where there is no GPU: kernels include nothing
// of the toolkit. No function is static or in a namespace without a name: the compiler calls such ones by the folder of their source, and its output
// would differ from one checkout to another.
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

// A route that is not there, and no rank.
#define NONE 0xffffffffu

struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

#ifdef MOESAIC_EMULATE
#include "emulator.hpp"
#else

#define SHARED extern __shared__ __align__(128) u8 shared_memory[]

__device__ __forceinline__ float as_float(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 as_bits(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float wide(f16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
    return out;
}
__device__ __forceinline__ void narrow(float v, f16 &out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }

// Copies 16 bytes to shared memory behind the thread's back, or zeros where not `real`.
__device__ __forceinline__ void copy_async(void *to, const void *from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}
// What was copied since the last call is one group.
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `LEFT` groups are under way.
template <int LEFT> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Four matrices of 8 x 8 halves; lanes 8i..8i+8 name the rows of matrix i.
__device__ __forceinline__ void load_matrices(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
__device__ __forceinline__ void load_transposed(u32 (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// c += a b: 16 x 16 by 16 x 8, sums in f32.
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

__device__ __forceinline__ float wide(float v) { return v; }
__device__ __forceinline__ float wide(bf16 v) { return as_float((u32)v.bits << 16); }
__device__ __forceinline__ void narrow(float v, float &out) { out = v; }
// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ void narrow(float v, bf16 &out) {
    u32 bits = as_bits(v);
    out.bits = v != v ? 0x7fc0 : (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T> __device__ __forceinline__ T rounded(float v) {
    T out;
    narrow(v, out);
    return out;
}

__host__ __device__ constexpr u32 parts(u32 count, u32 of) { return (count + of - 1) / of; }

// Rows of one expert that a block works on.
struct Place {
    u32 expert, first, end;
};

// The `index`th run of up to `rows` rows of one expert, experts one after the other: those of expert e are offsets[e]..offsets[e + 1]. Nobody
// is left out, and no run holds rows of two; an expert without rows has none. All threads of the block call it. Past the last run `first`
// is `end`.
__device__ __forceinline__ Place place_of(u32 index, const u32 *offsets, u32 experts, u32 rows) {
    __shared__ Place place;
    u32 lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        u32 before = 0;
        bool found = false;
        for (u32 base = 0; base < experts && !found; base += 32) {
            u32 e = base + lane;
            u32 start = e < experts ? offsets[e] : 0, end = e < experts ? offsets[e + 1] : 0;
            u32 runs = parts(end - start, rows), sum = runs;
            for (u32 step = 1; step < 32; step *= 2) {
                u32 other = __shfl_up_sync(0xffffffffu, sum, step);
                sum += lane >= step ? other : 0;
            }
            u32 own = before + sum - runs; // runs of the experts before
            bool mine = index >= own && index < own + runs;
            if (mine) {
                u32 first = start + (index - own) * rows;
                place.expert = e;
                place.first = first;
                place.end = first + rows < end ? first + rows : end;
            }
            found = __ballot_sync(0xffffffffu, mine) != 0;
            before += __shfl_sync(0xffffffffu, sum, 31);
        }
        if (!found && lane == 0) {
            place.expert = place.first = place.end = 0;
        }
    }
    __syncthreads();
    return place;
}
