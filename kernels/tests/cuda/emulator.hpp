// Stands in for a GPU: runs a grid block by block, the threads of a block as fibers on one thread of the processor. Whoever includes it has named
// u8, u16, u32, u64, and the halves bf16 and f16.
//
// It is there for what goes wrong in kernels. Warps run one after the other as far as the block's next barrier, in an order that is drawn anew at each; asynchronous copies arrive at the last moment
// that the wait allows; dynamic shared memory begins as NaN (static one as the block before left it) and ends at a page that cannot be touched, as memory of `emulator_alloc` does; a barrier that some
// threads never reach ends the program. Speed, and what the hardware's sums round, it cannot tell.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define SHARED u8 *shared_memory = emulator::shared

struct Triple {
    u32 x, y, z;
};

namespace emulator {
enum State { NEW, READY, AT_BLOCK, AT_WARP, DONE };
struct Fiber {
    ucontext_t context; // to begin
    jmp_buf where;      // to go on, without the system call that another context takes
    bool begun;
};
struct Copy {
    void *to;
    const void *from;
    bool real;
};
struct Lane {
    Fiber *fiber;
    Triple thread;
    u32 index;
    State state;
    std::vector<Copy> copies;
    std::deque<std::vector<Copy>> groups;
};
struct Slot {
    u32 word[6];
    const void *row;
};

extern std::vector<Lane> lanes;
extern Lane *now;
extern std::vector<Slot> slots; // of each thread: what it shows its warp
extern Triple block, block_size, grid_size;
extern u8 *shared;
void pause(State state);
void fail(const char *what);

inline Slot *of_warp() { return &slots[now->index / 32 * 32]; }
inline Slot &own() { return slots[now->index]; }
inline u32 lane() { return now->index % 32; }

// All lanes show `value` and call `f` with those of the warp.
template <typename T, typename F> inline auto exchange(u32 mask, T value, F f) {
    if (mask != 0xffffffffu) {
        fail("part of a warp");
    }
    memset(own().word, 0xff, sizeof(Slot::word)); // what stood there before means nothing
    memcpy(own().word, &value, sizeof(T));
    pause(AT_WARP);
    auto result = f(of_warp());
    pause(AT_WARP);
    return result;
}

template <typename T, typename F> inline T shuffle(u32 mask, T value, u32 width, F from) {
    static_assert(sizeof(T) <= sizeof(Slot::word), "a word of a slot");
    return exchange(mask, value, [=](Slot *all) {
        u32 lane = from(now->index % 32);
        if (width == 0 || width > 32 || width & (width - 1) || lane >= 32 || now->index / 32 * 32 + lane >= lanes.size()) {
            fail("a value of a lane that is not there");
        }
        T v;
        memcpy((void *)&v, all[lane].word, sizeof(T));
        return v;
    });
}
} // namespace emulator

#define threadIdx (emulator::now->thread)
#define blockIdx (emulator::block)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

static inline void __syncthreads() { emulator::pause(emulator::AT_BLOCK); }
static inline void __syncwarp() { emulator::pause(emulator::AT_WARP); }
static inline u32 __popc(u32 v) { return __builtin_popcount(v); }
static inline u32 atomicAdd(u32 *at, u32 v) {
    u32 old = *at;
    *at += v;
    return old;
}
static inline float as_float(u32 bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
static inline u32 as_bits(float v) {
    u32 bits;
    memcpy(&bits, &v, 4);
    return bits;
}
template <typename T> static inline T __shfl_sync(u32 mask, T v, u32 from, u32 width = 32) {
    return emulator::shuffle(mask, v, width, [=](u32 lane) { return lane / width * width + from % width; });
}
template <typename T> static inline T __shfl_xor_sync(u32 mask, T v, u32 step, u32 width = 32) {
    return emulator::shuffle(mask, v, width, [=](u32 lane) { return lane ^ step; });
}
template <typename T> static inline T __shfl_up_sync(u32 mask, T v, u32 step, u32 width = 32) {
    return emulator::shuffle(mask, v, width, [=](u32 lane) { return lane % width >= step ? lane - step : lane; });
}
static inline u32 __ballot_sync(u32 mask, bool v) {
    return emulator::exchange(mask, (u32)v, [](emulator::Slot *all) {
        u32 bits = 0;
        for (u32 i = 0; i < 32; i++) {
            bits |= all[i].word[0] << i;
        }
        return bits;
    });
}
static inline u32 __match_any_sync(u32 mask, u32 v) {
    return emulator::exchange(mask, v, [=](emulator::Slot *all) {
        u32 bits = 0;
        for (u32 i = 0; i < 32; i++) {
            bits |= (u32)(all[i].word[0] == v) << i;
        }
        return bits;
    });
}

static inline float wide(f16 v) {
    int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
    return v.bits >> 15 ? -size : size;
}
static inline void narrow(float v, f16 &out) {
    float size = fabsf(v);
    u32 sign = as_bits(v) >> 31 << 15;
    if (v != v) {
        out.bits = 0x7fff;
    } else if (size >= 65520.0f) {
        out.bits = sign | 0x7c00;
    } else {
        int exponent;
        frexpf(size, &exponent);
        exponent = size == 0 || exponent - 1 < -14 ? -14 : exponent - 1;
        out.bits = sign | (((u32)(exponent + 14) << 10) + (u32)nearbyintf(ldexpf(size, 10 - exponent)));
    }
}

static inline void copy_async(void *to, const void *from, bool real) {
    if ((size_t)to % 16 || (size_t)from % 16) {
        emulator::fail("an asynchronous copy of 16 bytes from or to an odd address");
    }
    emulator::now->copies.push_back({to, from, real});
}
static inline void copies_end() {
    emulator::now->groups.push_back(std::move(emulator::now->copies));
    emulator::now->copies.clear();
}
template <int LEFT> static inline void copies_wait() {
    auto &groups = emulator::now->groups;
    while (groups.size() > LEFT) {
        for (auto &copy : groups.front()) {
            copy.real ? memcpy(copy.to, copy.from, 16) : memset(copy.to, 0, 16);
        }
        groups.pop_front();
    }
}

// Lane l gets, of matrix i, the halves 2 (l % 4) and the next of row l / 4; transposed, of column l / 4.
static inline void load_matrices(u32 (&r)[4], const void *row) {
    if ((size_t)row % 16) {
        emulator::fail("a matrix at an odd address");
    }
    emulator::own().row = row;
    emulator::pause(emulator::AT_WARP);
    u32 lane = emulator::lane();
    for (u32 i = 0; i < 4; i++) {
        r[i] = ((const u32 *)emulator::of_warp()[8 * i + lane / 4].row)[lane % 4];
    }
    emulator::pause(emulator::AT_WARP);
}
static inline void load_transposed(u32 (&r)[4], const void *row) {
    emulator::own().row = row;
    emulator::pause(emulator::AT_WARP);
    u32 lane = emulator::lane();
    for (u32 i = 0; i < 4; i++) {
        auto value = [&](u32 of) { return (u32)((const u16 *)emulator::of_warp()[8 * i + of].row)[lane / 4]; };
        r[i] = value(lane % 4 * 2) | value(lane % 4 * 2 + 1) << 16;
    }
    emulator::pause(emulator::AT_WARP);
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
template <typename T> static inline void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, T) {
    emulator::Slot &own = emulator::own();
    memcpy(own.word, a, 16);
    own.word[4] = b0, own.word[5] = b1;
    emulator::pause(emulator::AT_WARP);
    emulator::Slot *all = emulator::of_warp();
    u32 lane = emulator::lane();
    auto half = [](u32 word, u32 which) {
        T v;
        v.bits = word >> 16 * which;
        return wide(v);
    };
    for (u32 v = 0; v < 4; v++) {
        u32 row = lane / 4 + v / 2 * 8, column = lane % 4 * 2 + v % 2;
        for (u32 k = 0; k < 16; k++) {
            float of_a = half(all[row % 8 * 4 + k % 8 / 2].word[k / 8 * 2 + row / 8], k % 2);
            float of_b = half(all[column * 4 + k % 8 / 2].word[4 + k / 8], k % 2);
            c[v] = fmaf(of_a, of_b, c[v]);
        }
    }
    emulator::pause(emulator::AT_WARP);
}
