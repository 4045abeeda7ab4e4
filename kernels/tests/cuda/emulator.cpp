// Runs the kernels that it is handed: `emulator_launch` is called as cuLaunchKernel would be.
#include "../../src/cuda/common.cuh"

#include <memory>

namespace emulator {
std::vector<Lane> lanes;
Lane *now;
std::vector<Slot> slots;
Triple block, block_size, grid_size;
u8 *shared;

static jmp_buf home;
static std::vector<std::unique_ptr<Fiber>> fibers;
static std::vector<Fiber *> idle;
static void (*call)(void *);
static void *arguments;
static const char *name;
// The warp whose turn it is: its lanes in the order of this turn, and the next of them.
static Lane *warp;
static u32 order[32], in_warp, next;

void fail(const char *what) {
    fprintf(stderr, "%s, block (%u, %u, %u): %s\n", name, block.x, block.y, block.z, what);
    abort();
}

// Goes back to where the fiber was resumed from.
static void leave(Fiber *self) {
    if (!_setjmp(self->where)) {
        _longjmp(home, 1);
    }
}

static void resume(Fiber *fiber) {
    if (!_setjmp(home)) {
        if (fiber->begun) {
            _longjmp(fiber->where, 1);
        }
        fiber->begun = true;
        setcontext(&fiber->context);
    }
}

void pause(State state) {
    now->state = state;
    leave(now->fiber);
}

// What a fiber does: threads from their beginning, one after the other, until one has to wait. That one keeps the fiber till it ends.
static void body() {
    for (;;) {
        Fiber *self = now->fiber;
        call(arguments);
        now->state = DONE;
        if (next < in_warp && warp[order[next]].state == NEW) {
            now = &warp[order[next++]];
            now->fiber = self;
        } else {
            idle.push_back(self);
            leave(self);
        }
    }
}

static Fiber *fiber() {
    if (idle.empty()) {
        static const size_t STACK = 1 << 16;
        fibers.push_back(std::make_unique<Fiber>());
        Fiber *made = fibers.back().get();
        // Lowest is a page that cannot be touched: a stack that is too small shows itself.
        size_t page = sysconf(_SC_PAGESIZE);
        char *stack = (char *)mmap(0, STACK + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED || mprotect(stack, page, PROT_NONE)) {
            abort();
        }
        getcontext(&made->context);
        made->context.uc_stack.ss_sp = stack + page;
        made->context.uc_stack.ss_size = STACK;
        makecontext(&made->context, body, 0);
        idle.push_back(made);
    }
    Fiber *free = idle.back();
    idle.pop_back();
    return free;
}

static void shuffle(u32 *order, u32 count, u32 &seed) {
    for (u32 i = count; i > 1; i--) {
        seed = seed * 1664525 + 1013904223;
        std::swap(order[i - 1], order[(u64)seed * i >> 32]);
    }
}

static void run_block(u32 threads, u32 &seed) {
    for (u32 i = 0; i < threads; i++) {
        Lane &lane = lanes[i];
        u32 x = block_size.x, y = block_size.y;
        lane.thread = {i % x, i / x % y, i / x / y}, lane.index = i, lane.state = NEW;
        lane.copies.clear(), lane.groups.clear();
    }
    std::vector<u32> warps((threads + 31) / 32);
    for (u32 i = 0; i < warps.size(); i++) {
        warps[i] = i;
    }
    for (;;) {
        u32 done = 0;
        // As far apart as barriers let them be: what one warp needs of another must be behind one.
        shuffle(warps.data(), warps.size(), seed);
        for (u32 of : warps) {
            warp = &lanes[of * 32];
            in_warp = std::min(32u, threads - of * 32);
            for (;;) {
                for (u32 i = 0; i < in_warp; i++) {
                    order[i] = i;
                }
                shuffle(order, in_warp, seed);
                for (next = 0; next < in_warp;) {
                    now = &warp[order[next++]];
                    if (now->state == NEW) {
                        now->fiber = fiber();
                    } else if (now->state != READY) {
                        continue;
                    }
                    resume(now->fiber);
                }
                u32 count[5] = {0, 0, 0, 0, 0};
                for (u32 i = 0; i < in_warp; i++) {
                    count[warp[i].state]++;
                }
                if (count[AT_WARP] == 0) {
                    done += count[DONE];
                    break;
                }
                if (count[AT_WARP] < in_warp) {
                    fail("some lanes wait for others of their warp that have gone on");
                }
                for (u32 i = 0; i < in_warp; i++) {
                    warp[i].state = READY;
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
        return 0;
    }
    memset(at, 0xff, whole);
    return at + whole - (bytes + 15) / 16 * 16;
}

// Gives back what `emulator_alloc` gave: whoever touches it afterwards is stopped.
extern "C" void emulator_free(void *at, size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    munmap((char *)at + (bytes + 15) / 16 * 16 - whole, whole + page);
}

// Runs a kernel, all of it on the calling thread: `call` calls it with `arguments`. False where it asks for more than there is.
extern "C" bool emulator_launch(void (*call)(void *), void *arguments, const char *name, const u32 *grid, const u32 *block, u32 shared, u32 seed) {
    using namespace emulator;
    u64 threads = (u64)block[0] * block[1] * block[2];
    static const size_t most = 256 << 10;
    // A multiple of 128, where it begins as well as where it ends.
    size_t size = ((size_t)shared + 127) / 128 * 128;
    if (threads == 0 || threads > 1024 || block[2] > 64 || size > most) {
        return false;
    }
    emulator::call = call, emulator::arguments = arguments, emulator::name = name;
    lanes.resize(threads), slots.resize((threads + 31) / 32 * 32);
    block_size = {block[0], block[1], block[2]}, grid_size = {grid[0], grid[1], grid[2]};
    static u8 *memory = (u8 *)emulator_alloc(most);
    emulator::shared = memory + most - size;
    for (u32 z = 0; z < grid[2]; z++) {
        for (u32 y = 0; y < grid[1]; y++) {
            for (u32 x = 0; x < grid[0]; x++) {
                emulator::block = {x, y, z};
                memset(emulator::shared, 0xff, size);
                run_block(threads, seed);
            }
        }
    }
    return true;
}

namespace {
struct Symbol {
    void *kernel;
    const u64 *a;
};
} // namespace

// Calls a kernel of this crate by its symbol: they take addresses and 32-bit numbers, at most 12, each in a place of 64 bits.
extern "C" void emulator_symbol(void *of) {
    Symbol *symbol = (Symbol *)of;
    const u64 *a = symbol->a;
    auto f = (void (*)(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64))symbol->kernel;
    f(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
}
