// Stand-ins for NVIDIA's libraries, for what engine says and does before and after a card works. They compute nothing: a
// step "succeeds" with every result zero. The environment chooses what is wrong:
//
// STUB_DRIVER, STUB_CUDNN   versions, as the libraries number them
// STUB_CARDS, STUB_CAPABILITY   how many, and 10 major + minor
// STUB_FAILS=N      from the N-th pass on every call answers CUDA_ERROR_LAUNCH_FAILED, and whatever frees or destroys hangs
// STUB_BLOCKS=N     from the N-th pass on whatever copies or synchronises hangs, and passes still end
// STUB_SILENT=N     from the N-th pass on nothing ends any more, and whatever waits, copies, frees or destroys hangs
//
// The test puts GENERIC(name) for every other function that engine looks up behind this text.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>

#define STUB extern "C" __attribute__((visibility("default")))
#define GENERIC(name) STUB int name() { return broken(); }

static int number(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int passes = 0;
static bool is_lost(const char* how) {
    const int at = number(how, 0);
    return at && passes >= at;
}
static int broken() { return is_lost("STUB_FAILS") ? 719 : 0; }
static int hangs() {
    while (is_lost("STUB_FAILS") || is_lost("STUB_SILENT")) pause();
    return 0;
}
static int waits() {
    while (is_lost("STUB_SILENT") || is_lost("STUB_BLOCKS")) pause();
    return broken();
}

#ifdef DRIVER
STUB int cuInit(unsigned) { return number("STUB_CARDS", 1) ? 0 : 100; }
STUB int cuDriverGetVersion(int* version) { *version = number("STUB_DRIVER", 12080); return 0; }
STUB int cuDeviceGetCount(int* count) { *count = number("STUB_CARDS", 1); return 0; }
STUB int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
STUB int cuDeviceGetName(char* name, int size, int) { snprintf(name, size, "Stub card"); return 0; }
STUB int cuDeviceGetAttribute(int* value, int attribute, int) {
    const int capability = number("STUB_CAPABILITY", 75);
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 1;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
    return 0;
}
STUB int cuMemGetInfo_v2(size_t* free, size_t* total) { *free = *total = (size_t)16 << 30; return broken(); }
STUB int cuMemAlloc_v2(unsigned long long* at, size_t bytes) {
    static unsigned long long next = 1 << 20;
    *at = next;
    next += (bytes + 255) / 256 * 256;
    return broken();
}
STUB int cuMemHostAlloc(void** at, size_t bytes, unsigned) { *at = malloc(bytes); return broken(); }
STUB int cuMemcpyDtoH_v2(void* to, unsigned long long, size_t bytes) { memset(to, 0, bytes); return waits(); }
STUB int cuMemcpyHtoD_v2(unsigned long long, const void*, size_t) { return waits(); }
STUB int cuCtxSynchronize() { return waits(); }
STUB int cuStreamSynchronize(void*) { return waits(); }
STUB int cuEventSynchronize(void*) { return waits(); }
STUB int cuEventQuery(void*) { return is_lost("STUB_SILENT") ? 600 : broken(); }
STUB int cuGraphLaunch(void*, void*) { passes++; return broken(); }
STUB int cuMemFree_v2(unsigned long long) { return hangs(); }
STUB int cuMemFreeHost(void*) { return hangs(); }
STUB int cuStreamDestroy_v2(void*) { return hangs(); }
STUB int cuEventDestroy_v2(void*) { return passes ? hangs() : 0; }
STUB int cuGraphExecDestroy(void*) { return hangs(); }
STUB int cuModuleUnload(void*) { return hangs(); }
STUB int cuDevicePrimaryCtxRelease_v2(int) { return hangs(); }
STUB int cuGetErrorName(int, const char** text) { *text = "CUDA_ERROR_LAUNCH_FAILED"; return 0; }
STUB int cuGetErrorString(int, const char** text) { *text = "unspecified launch failure"; return 0; }
// The libraries' exit handlers, which may wait for a card that is gone.
__attribute__((destructor)) static void exit_handler() { hangs(); }
#endif

#ifdef CUDNN
STUB size_t cudnnGetVersion() { return number("STUB_CUDNN", 91002); }
struct Performance { int algorithm, status; float milliseconds; size_t memory; int determinism, math, reserved[3]; };
#define FIND(name)                                                                                                        \
    STUB int name(void*, void*, void*, void*, void*, void*, void*, void*, int, int* found, Performance* results, void*, size_t) { \
        *found = 1;                                                                                                       \
        results[0] = {1, 0, 1.0f, 0, 1, 0, {0, 0, 0}};                                                                    \
        return 0;                                                                                                         \
    }
FIND(cudnnFindConvolutionForwardAlgorithmEx)
FIND(cudnnFindConvolutionBackwardDataAlgorithmEx)
FIND(cudnnFindConvolutionBackwardFilterAlgorithmEx)
#endif
