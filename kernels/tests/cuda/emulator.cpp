// All kernels, and what runs them: `emulator_launch` is called as cuLaunchKernel would be.
// Each is a unit of its own for nvcc: what they call alike must not meet here.
#include "../../src/cuda/blocks.cuh"
#include "../../src/cuda/experts.cuh"
namespace of_grouped {
#include "../../src/cuda/grouped.cu"
}
#undef ALL
namespace of_quant {
#include "../../src/cuda/quant.cu"
}
#undef ALL
#undef LINEAR
namespace of_float {
#include "../../src/cuda/float.cu"
}
#include "../../src/cuda/plan.cu"
#include "../../src/cuda/rows.cu"

namespace emulator {
std::vector<Lane> lanes;
Lane *now;
std::vector<Slot> slots;
Triple block, block_size, grid_size;
u8 *shared;

static ucontext_t home;
static std::vector<char> stacks;
static const size_t STACK = 1 << 16, MOST = 12;
static u64 arguments[MOST];
static void *kernel;
static const char *name;

void fail(const char *what) {
    fprintf(stderr, "%s, block (%u, %u, %u): %s\n", name, block.x, block.y, block.z, what);
    abort();
}

void pause(State state) {
    now->state = state;
    swapcontext(&now->context, &home);
}

static void body() {
    // Kernels take addresses and 32-bit numbers, each in a place of 64 bits.
    u64 *a = arguments;
    auto f = (void (*)(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64))kernel;
    f(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
    pause(DONE);
}

static void run_block(u32 threads, u32 &seed) {
    for (u32 i = 0; i < threads; i++) {
        Lane &lane = lanes[i];
        lane.thread = {i, 0, 0}, lane.index = i, lane.state = READY;
        lane.copies.clear(), lane.groups.clear();
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = &stacks[i * STACK];
        lane.context.uc_stack.ss_size = STACK;
        makecontext(&lane.context, body, 0);
    }
    auto shuffle = [&](std::vector<u32> &order) {
        for (u32 i = order.size(); i > 1; i--) {
            seed = seed * 1664525 + 1013904223;
            std::swap(order[i - 1], order[(u64)seed * i >> 32]);
        }
    };
    std::vector<u32> warps(threads / 32), order(32);
    for (u32 i = 0; i < warps.size(); i++) {
        warps[i] = i;
    }
    for (u32 i = 0; i < 32; i++) {
        order[i] = i;
    }
    for (;;) {
        u32 done = 0;
        // As far apart as barriers let them be: what one warp needs of another must be behind one.
        shuffle(warps);
        for (u32 warp : warps) {
            Lane *own = &lanes[warp * 32];
            for (;;) {
                shuffle(order);
                for (u32 i : order) {
                    if (own[i].state == READY) {
                        now = &own[i];
                        swapcontext(&home, &now->context);
                    }
                }
                u32 count[4] = {0, 0, 0, 0};
                for (u32 i = 0; i < 32; i++) {
                    count[own[i].state]++;
                }
                if (count[AT_WARP] == 0) {
                    done += count[DONE];
                    break;
                }
                if (count[AT_WARP] < 32) {
                    fail("some lanes wait for others of their warp that have gone on");
                }
                for (u32 i = 0; i < 32; i++) {
                    own[i].state = READY;
                }
            }
        }
        if (done == threads) {
            return;
        }
        for (u32 i = 0; i < threads; i++) {
            lanes[i].state = lanes[i].state == DONE ? DONE : READY;
        }
    }
}
} // namespace emulator

// Memory that ends where a page begins that cannot be touched, filled with NaN.
extern "C" void *emulator_alloc(size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *at = (char *)mmap(0, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at + whole, page, PROT_NONE)) {
        abort();
    }
    memset(at, 0xff, whole);
    return at + whole - (bytes + 15) / 16 * 16;
}

// Runs a kernel, all of it on the calling thread. False where it asks for more than there is.
extern "C" bool emulator_launch(void *kernel, const char *name, const u32 *grid, u32 threads, u32 shared, const u64 *arguments, u32 count, u32 seed) {
    using namespace emulator;
    if (count > MOST || threads % 32 || threads > 1024) {
        return false;
    }
    emulator::kernel = kernel, emulator::name = name;
    memcpy(emulator::arguments, arguments, count * sizeof(u64));
    lanes.resize(threads), slots.resize(threads), stacks.resize(threads * STACK);
    block_size = {threads, 1, 1}, grid_size = {grid[0], grid[1], grid[2]};
    // A multiple of 128, where it begins as well as where it ends.
    static const size_t most = 256 << 10;
    static u8 *memory = (u8 *)emulator_alloc(most);
    size_t size = (shared + 127) / 128 * 128;
    if (size > most) {
        return false;
    }
    emulator::shared = memory + most - size;
    for (u32 z = 0; z < grid[2]; z++) {
        for (u32 y = 0; y < grid[1]; y++) {
            for (u32 x = 0; x < grid[0]; x++) {
                block = {x, y, z};
                memset(emulator::shared, 0xff, size);
                run_block(threads, seed);
            }
        }
    }
    return true;
}
