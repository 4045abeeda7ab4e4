// Routing on the device: the choice of experts, and routes sorted by expert.
//
// Nothing here depends on the order in which threads arrive: counts are sums of whole numbers, and the rank of a route among those of its expert
// is counted, not drawn from a counter. Choices are [tokens, k] in the order of slots; NONE is a slot without a route.
#include "common.cuh"

// A number whose order as a whole number is that of the value; NaN is below everything, and 0 below that.
__device__ __forceinline__ u32 ordered(float v) {
    u32 bits = as_bits(v);
    return v != v ? 1 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The larger key of the warp, and of equal ones the lower index.
__device__ __forceinline__ void best_of_warp(u32 &key, u32 &index) {
    for (u32 step = 16; step > 0; step /= 2) {
        u32 k = __shfl_xor_sync(0xffffffffu, key, step), i = __shfl_xor_sync(0xffffffffu, index, step);
        if (k > key || (k == key && i < index)) {
            key = k, index = i;
        }
    }
}

// The indexes of the k largest keys, largest first, NONE once those that are left are 0: by one warp. The keys that were taken become 0.
__device__ __forceinline__ void take_best(u32 *keys, u32 count, u32 *to, u32 k) {
    u32 lane = threadIdx.x % 32;
    for (u32 s = 0; s < k; s++) {
        u32 key = 0, index = NONE;
        for (u32 i = lane; i < count; i += 32) {
            if (keys[i] > key) {
                key = keys[i], index = i;
            }
        }
        best_of_warp(key, index);
        if (lane == 0) {
            to[s] = key > 0 ? index : NONE;
            if (key > 0) {
                keys[index] = 0;
            }
        }
        __syncwarp();
    }
}

// The k best experts of each token by `scores` [tokens, experts], best first; the lower index wins ties. Where groups > 0, only experts of the
// `keep` best of so many groups of neighbours take part: groups are rated by their best score, or by the sum of their two best if `two`.
// Tokens whose `mask` is 0 get none, all others k. `broken` becomes 1 where a real token's score is not finite. One warp a token, in blocks of 128;
// shared memory: 4 * (experts + groups) * 4 bytes.
extern "C" __global__ void moesaic_top_k(const float *scores, const float *mask, u32 *choices, u32 *broken, u32 tokens, u32 experts, u32 k,
                                         u32 groups, u32 keep, u32 two) {
    SHARED;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = blockIdx.x * (blockDim.x / 32) + warp;
    if (t >= tokens) {
        return;
    }
    u32 *keys = (u32 *)shared_memory + warp * (experts + groups), *rated = keys + experts;
    const float *row = scores + (size_t)t * experts;
    if (mask && mask[t] == 0) {
        for (u32 s = lane; s < k; s += 32) {
            choices[(size_t)t * k + s] = NONE;
        }
        return;
    }
    bool sound = true;
    for (u32 e = lane; e < experts; e += 32) {
        sound = sound && (as_bits(row[e]) & 0x7f800000u) != 0x7f800000u;
        // 0 is left for experts that take no part.
        keys[e] = ordered(row[e] + 0.0f); // one zero, as comparisons have it
    }
    if (!sound) {
        *broken = 1;
    }
    __syncwarp();
    if (groups > 0) {
        u32 size = experts / groups;
        for (u32 g = lane; g < groups; g += 32) {
            float first = as_float(0xff800000u), second = first;
            for (u32 e = g * size; e < (g + 1) * size; e++) {
                float v = row[e];
                if (v > first) {
                    second = first, first = v;
                } else if (v > second) {
                    second = v;
                }
            }
            rated[g] = ordered((two && size > 1 ? first + second : first) + 0.0f);
        }
        __syncwarp();
        for (u32 i = 0; i < keep; i++) {
            u32 key = 0, index = NONE;
            for (u32 g = lane; g < groups; g += 32) {
                if (rated[g] > key || (rated[g] == key && g < index && rated[g] > 0)) {
                    key = rated[g], index = g;
                }
            }
            best_of_warp(key, index);
            __syncwarp();
            if (lane == 0 && index != NONE) {
                rated[index] = 0; // taken
            }
            __syncwarp();
        }
        for (u32 e = lane; e < experts; e += 32) {
            keys[e] = rated[e / size] == 0 ? keys[e] : 0;
        }
        __syncwarp();
    }
    take_best(keys, experts, choices + (size_t)t * k, k);
}

// The tokens that each expert takes: of those with eligible[t, e] != 0 the capacity[e] with the largest scores; the lower index wins ties.
// taken [tokens, experts] becomes 1 or 0. One block an expert, 256 threads.
extern "C" __global__ void moesaic_expert_choice(const float *scores, const float *eligible, const u32 *capacity, u8 *taken, u32 tokens,
                                                 u32 experts) {
    __shared__ u32 count[256];
    __shared__ u32 bound, left;
    u32 e = blockIdx.x;
    // The key of the last that is taken, eight bits at a time from the top: `bound` holds those that are known.
    if (threadIdx.x == 0) {
        bound = 0, left = capacity[e];
    }
    __syncthreads();
    for (int shift = 24; shift >= 0; shift -= 8) {
        count[threadIdx.x] = 0;
        __syncthreads();
        u32 known = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
        for (u32 t = threadIdx.x; t < tokens; t += blockDim.x) {
            size_t at = (size_t)t * experts + e;
            u32 key = ordered(scores[at]);
            if (eligible[at] != 0 && ((key ^ bound) & known) == 0) {
                atomicAdd(&count[(key >> shift) & 255], 1);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 digit = 255;
            while (digit > 0 && count[digit] < left) {
                left -= count[digit];
                digit--;
            }
            bound |= digit << shift;
        }
        __syncthreads();
    }
    // Above the bound all, at the bound the first `left`: blocks of 256 tokens in order.
    __shared__ u32 warps[8];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, before = 0;
    for (u32 base = 0; base < tokens; base += blockDim.x) {
        u32 t = base + threadIdx.x;
        size_t at = (size_t)t * experts + e;
        bool may = t < tokens && eligible[at] != 0;
        u32 key = may ? ordered(scores[at]) : 0;
        bool equal = may && key == bound;
        u32 ballot = __ballot_sync(0xffffffffu, equal);
        if (lane == 0) {
            warps[warp] = __popc(ballot);
        }
        __syncthreads();
        u32 rank = before + __popc(ballot & ((1u << lane) - 1));
        for (u32 w = 0; w < 8; w++) {
            rank += w < warp ? warps[w] : 0;
            before += warps[w];
        }
        if (t < tokens) {
            taken[at] = may && (key > bound || (equal && rank < left));
        }
        __syncthreads();
    }
}

// The experts that took each token, by score, best first: choices [tokens, experts]. One warp a token, in blocks of 128; shared memory: 4 * experts
// * 4 bytes.
extern "C" __global__ void moesaic_taken_by(const float *scores, const u8 *taken, u32 *choices, u32 tokens, u32 experts) {
    SHARED;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = blockIdx.x * (blockDim.x / 32) + warp;
    if (t >= tokens) {
        return;
    }
    u32 *keys = (u32 *)shared_memory + warp * experts;
    for (u32 e = lane; e < experts; e += 32) {
        size_t at = (size_t)t * experts + e;
        u32 key = ordered(scores[at]);
        keys[e] = taken[at] ? (key > 0 ? key : 1) : 0;
    }
    __syncwarp();
    take_best(keys, experts, choices + (size_t)t * experts, experts);
}

// Choices are counted in tiles of 256. counts [experts, tiles]: the choices of each expert in each tile. Shared memory: experts * 4 bytes.
extern "C" __global__ void moesaic_count(const u32 *choices, u32 *counts, u32 total, u32 experts) {
    SHARED;
    u32 *own = (u32 *)shared_memory;
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        own[e] = 0;
    }
    __syncthreads();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < total && choices[i] != NONE) {
        atomicAdd(&own[choices[i]], 1);
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        counts[(size_t)e * gridDim.x + blockIdx.x] = own[e];
    }
}

// counts becomes what stands before each entry, and offsets [experts + 1] the bounds of the experts. One block of 1024 threads.
extern "C" __global__ void moesaic_scan(u32 *counts, u32 *offsets, u32 experts, u32 tiles) {
    __shared__ u32 warps[32];
    __shared__ u32 carry;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, total = experts * tiles;
    if (threadIdx.x == 0) {
        carry = 0;
    }
    __syncthreads();
    for (u32 base = 0; base < total; base += blockDim.x) {
        u32 i = base + threadIdx.x, own = i < total ? counts[i] : 0, sum = own;
        for (u32 step = 1; step < 32; step *= 2) {
            u32 other = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? other : 0;
        }
        if (lane == 31) {
            warps[warp] = sum;
        }
        __syncthreads();
        if (warp == 0) {
            u32 of = warps[lane];
            for (u32 step = 1; step < 32; step *= 2) {
                u32 other = __shfl_up_sync(0xffffffffu, of, step);
                of += lane >= step ? other : 0;
            }
            warps[lane] = of;
        }
        __syncthreads();
        u32 before = carry + (warp > 0 ? warps[warp - 1] : 0) + sum - own;
        if (i < total) {
            counts[i] = before;
            if (i % tiles == 0) {
                offsets[i / tiles] = before;
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            carry += warps[31];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        offsets[experts] = carry;
    }
}

// Gives each choice its route: behind those of its expert in earlier tiles, then by place. token and choice (the place among choices) [R] of each
// route, and route [tokens, k] of each choice, NONE where there is none. Blocks of 256; shared memory: 8 * experts * 4 bytes.
extern "C" __global__ void moesaic_place(const u32 *choices, const u32 *before, u32 *token, u32 *choice, u32 *route, u32 total, u32 experts,
                                         u32 k) {
    SHARED;
    u32 *of_warp = (u32 *)shared_memory; // [8, experts]
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 i = threadIdx.x; i < 8 * experts; i += blockDim.x) {
        of_warp[i] = 0;
    }
    __syncthreads();
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    u32 expert = i < total ? choices[i] : NONE;
    u32 same = __match_any_sync(0xffffffffu, expert), rank = __popc(same & ((1u << lane) - 1));
    if (expert != NONE && rank == 0) {
        of_warp[warp * experts + expert] = __popc(same);
    }
    __syncthreads();
    if (expert != NONE) {
        u32 r = before[(size_t)expert * gridDim.x + blockIdx.x] + rank;
        for (u32 w = 0; w < warp; w++) {
            r += of_warp[w * experts + expert];
        }
        token[r] = i / k, choice[r] = i, route[i] = r;
    } else if (i < total) {
        route[i] = NONE;
    }
}

// Before `top_k`, where every token has k routes: those of token t are start[t] <= .. < start[t + 1] of those in the order of tokens, and no score is
// known to be broken.
extern "C" __global__ void moesaic_begin(u32 *start, u32 *broken, u32 tokens, u32 k) {
    u32 t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t <= tokens) {
        start[t] = t * k;
    }
    if (t == 0) {
        *broken = 0;
    }
}

// across [k, tokens] of choices [tokens, k]: first choices of all tokens before second ones.
extern "C" __global__ void moesaic_by_slot(const u32 *choices, u32 *across, u32 tokens, u32 k) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < tokens * k) {
        across[i % k * tokens + i / k] = choices[i];
    }
}

// Leaves those of choices [tokens, k] for which their expert has room: `route` [k, tokens] and `offsets` [experts + 1] are of the same choices by
// slot, so that a route's distance from its expert's first is how many came before it.
extern "C" __global__ void moesaic_limit(u32 *choices, const u32 *route, const u32 *offsets, u32 tokens, u32 k, u32 capacity) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < tokens * k && choices[i] != NONE && route[i % k * tokens + i / k] - offsets[choices[i]] >= capacity) {
        choices[i] = NONE;
    }
}
