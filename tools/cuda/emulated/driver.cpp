// The part of CUDA's driver that candle uses, on the emulator of kernels/tests/cuda: one device, whose memory is the host's and whose
// streams are done with each call when it returns.
//
// As a driver does, it refuses memory of no bytes, kernels and attributes that are not there, shared memory beyond 48 KB that was not asked for, and
// copies past the end of an allocation. MOESAIC_EMULATED has, separated by commas: `capability=N` (90), `memory=BYTES` (8 GiB).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

extern "C" {
void *emulator_alloc(size_t bytes);
void emulator_free(void *at, size_t bytes);
bool emulator_launch(void (*call)(void *), void *arguments, const char *name, const unsigned *grid, const unsigned *block, unsigned shared, unsigned seed);
}

namespace {
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
typedef void (*Call)(void *);
typedef uint64_t Address;

struct Function {
    std::string name;
    Call call;
    unsigned shared;
};
struct Module {
    std::string image;
    std::map<std::string, Function> functions;
};

std::recursive_mutex busy;
std::map<Address, size_t> memory; // by its first byte
size_t used;
int context;
thread_local void *current;

std::map<std::string, Call> &kernels() {
    static std::map<std::string, Call> kernels;
    return kernels;
}

size_t setting(const char *name, size_t otherwise) {
    const char *all = getenv("MOESAIC_EMULATED"), *at = all ? strstr(all, name) : 0;
    return at && at[strlen(name)] == '=' ? strtoull(at + strlen(name) + 1, 0, 10) : otherwise;
}

// The bytes from `at` to the end of its allocation.
bool holds(Address at, size_t bytes) {
    auto after = memory.upper_bound(at);
    if (after == memory.begin()) {
        return bytes == 0;
    }
    auto of = std::prev(after);
    return bytes == 0 || (at - of->first <= of->second && bytes <= of->second - (at - of->first));
}

int alloc(Address *to, size_t bytes) {
    std::lock_guard<std::recursive_mutex> one(busy);
    if (bytes == 0) {
        return INVALID_VALUE;
    }
    if (bytes > setting("memory", (size_t)8 << 30) - used) {
        return OUT_OF_MEMORY;
    }
    void *at = emulator_alloc(bytes);
    if (!at) {
        return OUT_OF_MEMORY;
    }
    memory[*to = (Address)at] = bytes;
    used += bytes;
    return SUCCESS;
}

int release(Address at) {
    std::lock_guard<std::recursive_mutex> one(busy);
    auto of = memory.find(at);
    if (of == memory.end()) {
        return INVALID_VALUE;
    }
    used -= of->second;
    emulator_free((void *)at, of->second);
    memory.erase(of);
    return SUCCESS;
}

int copy(Address to, Address from, size_t bytes, bool to_device, bool from_device) {
    std::lock_guard<std::recursive_mutex> one(busy);
    if ((to_device && !holds(to, bytes)) || (from_device && !holds(from, bytes))) {
        return INVALID_VALUE;
    }
    memmove((void *)to, (void *)from, bytes);
    return SUCCESS;
}
} // namespace

extern "C" {
void emulated_kernel(const char *name, Call call) {
    if (!kernels().emplace(name, call).second) {
        fprintf(stderr, "two kernels are called %s\n", name);
        abort();
    }
}

int cuGetErrorName(int error, const char **to) {
    *to = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR";
    return SUCCESS;
}
int cuGetErrorString(int error, const char **to) {
    *to = error == OUT_OF_MEMORY ? "out of memory" : error == NOT_FOUND ? "named symbol not found" : error == INVALID_VALUE ? "invalid argument" : "an error of the emulated device";
    return SUCCESS;
}

int cuInit(unsigned) { return SUCCESS; }
int cuDeviceGetCount(int *to) { return *to = 1, SUCCESS; }
int cuDeviceGet(int *to, int ordinal) { return *to = 0, ordinal ? INVALID_DEVICE : SUCCESS; }
int cuDeviceGetName(char *to, int length, int) { return snprintf(to, length, "emulated"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t *to, int) { return *to = setting("memory", (size_t)8 << 30), SUCCESS; }
int cuDeviceGetAttribute(int *to, int attribute, int) {
    int capability = setting("capability", 90);
    switch (attribute) {
    case 1: // threads of a block
        return *to = 1024, SUCCESS;
    case 10: // lanes of a warp
        return *to = 32, SUCCESS;
    case 16: // multiprocessors
        return *to = 2, SUCCESS;
    case 75:
        return *to = capability / 10, SUCCESS;
    case 76:
        return *to = capability % 10, SUCCESS;
    case 115: // pools of memory
        return *to = 1, SUCCESS;
    default:
        return INVALID_VALUE;
    }
}
int cuDevicePrimaryCtxRetain(void **to, int) { return *to = &context, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void **to) { return *to = current, SUCCESS; }
int cuCtxSetCurrent(void *to) { return current = to, SUCCESS; }
int cuCtxSynchronize() { return current ? SUCCESS : INVALID_CONTEXT; }
int cuMemGetInfo_v2(size_t *left, size_t *all) {
    *all = setting("memory", (size_t)8 << 30);
    return *left = *all - used, SUCCESS;
}

// Streams and events: all is done at once, so there is nothing to wait for.
int cuStreamCreate(void **to, unsigned) { return *to = malloc(1), SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return free(stream), SUCCESS; }
int cuStreamSynchronize(void *) { return SUCCESS; }
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
int cuStreamIsCapturing(void *, int *to) { return *to = 0, SUCCESS; }
int cuEventCreate(void **to, unsigned) { return *to = malloc(1), SUCCESS; }
int cuEventDestroy_v2(void *event) { return free(event), SUCCESS; }
int cuEventRecord(void *, void *) { return SUCCESS; }
int cuEventSynchronize(void *) { return SUCCESS; }
int cuEventQuery(void *) { return SUCCESS; }

int cuMemAlloc_v2(Address *to, size_t bytes) { return alloc(to, bytes); }
int cuMemAllocAsync(Address *to, size_t bytes, void *) { return alloc(to, bytes); }
int cuMemFree_v2(Address at) { return release(at); }
int cuMemFreeAsync(Address at, void *) { return release(at); }
int cuMemHostAlloc(void **to, size_t bytes, unsigned) { return *to = malloc(bytes), SUCCESS; }
int cuMemFreeHost(void *at) { return free(at), SUCCESS; }
int cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) { return copy(to, (Address)from, bytes, true, false); }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *) { return copy(to, (Address)from, bytes, true, false); }
int cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) { return copy((Address)to, from, bytes, false, true); }
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *) { return copy((Address)to, from, bytes, false, true); }
int cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) { return copy(to, from, bytes, true, true); }
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *) { return copy(to, from, bytes, true, true); }
int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *) {
    std::lock_guard<std::recursive_mutex> one(busy);
    return holds(to, bytes) ? memset((void *)to, value, bytes), SUCCESS : INVALID_VALUE;
}
int cuMemsetD8_v2(Address to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, 0); }

// An image is machine code, PTX, or nothing where it is one of candle's.
int cuModuleLoadData(void **to, const void *image) {
    const char *text = (const char *)image;
    size_t length = strlen(text);
    if (memcmp(text, "\177ELF", 4) == 0) {
        // The length is in the header: the table of sections is last, or that of segments.
        uint64_t sections, segments;
        uint16_t sizes[4];
        memcpy(&segments, text + 32, 8), memcpy(&sections, text + 40, 8), memcpy(sizes, text + 54, 8);
        length = std::max(segments + sizes[0] * sizes[1], sections + sizes[2] * sizes[3]);
        if (setting("capability", 90) != 90) {
            return 209; // no image for this device
        }
    }
    *to = new Module{std::string(text, length), {}};
    return SUCCESS;
}
int cuModuleUnload(void *module) { return delete (Module *)module, SUCCESS; }
int cuModuleGetFunction(void **to, void *of, const char *name) {
    std::lock_guard<std::recursive_mutex> one(busy);
    Module *module = (Module *)of;
    auto known = module->functions.find(name);
    if (known == module->functions.end()) {
        auto kernel = kernels().find(name);
        if (kernel == kernels().end() || (!module->image.empty() && module->image.find(name) == std::string::npos)) {
            return NOT_FOUND;
        }
        known = module->functions.emplace(name, Function{name, kernel->second, 48 << 10}).first;
    }
    return *to = &known->second, SUCCESS;
}
int cuFuncSetAttribute(void *of, int attribute, int value) {
    std::lock_guard<std::recursive_mutex> one(busy);
    if (attribute != 8 || value < 0 || value > 227 << 10) {
        return INVALID_VALUE;
    }
    return ((Function *)of)->shared = value, SUCCESS;
}
int cuFuncGetAttribute(int *, int, void *) { return INVALID_VALUE; }
int cuLaunchKernel(void *of, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *, void **arguments, void **) {
    std::lock_guard<std::recursive_mutex> one(busy);
    Function *function = (Function *)of;
    unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535 || shared > function->shared) {
        return INVALID_VALUE;
    }
    static unsigned seed = 17;
    return emulator_launch(function->call, arguments, function->name.c_str(), grid, block, shared, seed++) ? SUCCESS : INVALID_VALUE;
}
}
