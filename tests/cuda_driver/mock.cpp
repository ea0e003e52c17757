// A driver, cuDNN, cuBLAS, cuBLASLt and NCCL that hold the caller to the rules of NVIDIA's manuals and compute nothing. One file under
// the names of all five libraries; the tests put it before the loader. A broken rule ends the process with a sentence.
//
// What it enforces: sizes and types of every kernel's arguments by its PTX; every pointer inside live memory; no work in
// our streams while the legacy stream still has a copy or fill; nothing read before its streams were waited for; captures
// that fork and join, without calls that are illegal in them; graphs whose memory and communicators are alive when they run; shapes, types and
// workspaces of products and convolutions; nothing destroyed before what uses it, twice, or left behind.
//
// Time is made up: each kind of work has a price, and events tell it. MOCK_CAPABILITY, MOCK_MEMORY (bytes), MOCK_HIDDEN
// (bytes that are said to be free and are not) and MOCK_CUDNN change the machine; MOCK_FREE lets a run use algorithms that are not deterministic;
// MOCK_NO_COOPERATION and MOCK_REFUSES are a card and a driver without launches whose blocks all run at once.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>
#include <algorithm>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t u64;
typedef int Status;

[[noreturn]] static void broken(const char* format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "mock driver: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    _exit(99);
}

static u64 number(const char* name, u64 fallback) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : fallback;
}

// ---- what there is --------------------------------------------------------------------------------------------------

struct Capture;
typedef std::map<struct Stream*, long> Clock;  // how much of each stream is known to have been recorded before
struct Stream { long issued = 0, ended = 0; double time = 0; Capture* capture = nullptr; Clock clock; };
struct Event { bool timed; Stream* stream = nullptr; long issued = 0; double time = 0; int asked = 0; Capture* capture = nullptr; Clock clock; };
struct Range { u64 at, bytes; std::string what; };
struct Work { double cost; std::vector<Range> ranges; const void* plan = nullptr; };  // plan: of cuDNN's graph API
struct Graph { std::vector<Work> work; };
struct Capture { Stream* origin; std::set<Stream*> streams; Graph* graph; Stream* cooperates = nullptr; };
struct Function { std::string name; std::vector<int> sizes; unsigned threads = 1024, shared = 48 << 10; };
struct Module { std::map<std::string, Function> functions; };

// One block of 256 threads with as many registers as there are fills a multiprocessor.
static const int MULTIPROCESSORS = 108, SHARED = 163 << 10;

static bool current = false, legacy_busy = false;
static std::map<u64, u64> memory;                 // address -> bytes
static std::set<u64> untouched;                   // large pieces that nobody has written: the system's zero pages
static std::map<void*, size_t> pinned;
static std::set<void*> streams, events, graphs, execs, modules, cublas_handles, cudnn_handles, descriptors, lt_handles, lt_operations, lt_layouts, lt_preferences, communicators;
static u64 taken = 0;
static size_t node_count();

static void need_context(const char* call) { if (!current) broken("%s without a current context", call); }

static bool capturing() {
    for (void* stream : streams) if (((Stream*)stream)->capture) return true;
    return false;
}

static void not_in_capture(const char* call) {
    need_context(call);
    if (capturing()) broken("%s while a stream is captured", call);
}

static bool busy() {
    for (void* stream : streams) if (((Stream*)stream)->ended < ((Stream*)stream)->issued) return true;
    return false;
}

static void idle(const char* call) { not_in_capture(call); if (busy()) broken("%s while work is under way", call); }

static void inside(const Range& range) {
    auto found = memory.upper_bound(range.at);
    if (found != memory.begin()) {
        --found;
        if (range.at + range.bytes <= found->first + found->second) return;
    }
    broken("%s: %llu bytes at %llx are not inside one allocation", range.what.c_str(), (unsigned long long)range.bytes, (unsigned long long)range.at);
}

static Stream* stream_of(void* stream, const char* call) {
    need_context(call);
    if (!streams.count(stream)) broken("%s on no stream of ours", call);
    return (Stream*)stream;
}

static void enqueue(Stream* stream, Work work, const char* call) {
    for (const Range& range : work.ranges) inside(range);
    if (stream->capture) {
        stream->capture->graph->work.push_back(work);
        stream->clock[stream] = ++stream->issued;
        stream->ended = stream->issued;
        return;
    }
    if (legacy_busy) broken("%s may run before a copy or fill in the legacy stream has ended", call);
    stream->issued++;
    stream->time += work.cost;
}

template <class T> static T* known(std::set<void*>& all, void* one, const char* what) {
    if (!all.count(one)) broken("%s: not alive", what);
    return (T*)one;
}

extern "C" {
// ---- driver ---------------------------------------------------------------------------------------------------------

Status cuInit(unsigned) { return 0; }
Status cuDriverGetVersion(int* version) { *version = 12040; return 0; }
Status cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
Status cuDeviceGetCount(int* count) { *count = 1; return 0; }
Status cuDeviceGetName(char* name, int bytes, int) { snprintf(name, bytes, "Mock GPU"); return 0; }
Status cuDeviceGetAttribute(int* value, int attribute, int) {
    const int capability = (int)number("MOCK_CAPABILITY", 80);
    switch (attribute) {
        case 75: *value = capability / 10; return 0;
        case 76: *value = capability % 10; return 0;
        case 38: *value = 40 << 20; return 0;
        case 16: *value = MULTIPROCESSORS; return 0;
        case 36: *value = 1593000; return 0;  // kHz of the memory's clock
        case 37: *value = 5120; return 0;     // bits of its width
        case 95: *value = !getenv("MOCK_NO_COOPERATION"); return 0;
        case 97: *value = SHARED; return 0;
    }
    broken("attribute %d", attribute);
}
Status cuDevicePrimaryCtxRetain(void** context, int) { *context = &current; return 0; }
Status cuDevicePrimaryCtxRelease_v2(int) {
    if (memory.size() + pinned.size() + streams.size() + events.size() + execs.size() + graphs.size() + modules.size() + cublas_handles.size() + cudnn_handles.size() + descriptors.size() + lt_handles.size() + lt_operations.size() + lt_layouts.size() + lt_preferences.size() + communicators.size() + node_count())
        broken("left behind: %zu pieces of memory, %zu pinned, %zu streams, %zu events, %zu graphs, %zu modules, %zu handles, %zu descriptors", memory.size(),
               pinned.size(), streams.size(), events.size(), execs.size() + graphs.size(), modules.size(), cublas_handles.size() + cudnn_handles.size() + lt_handles.size() + communicators.size(),
               descriptors.size() + lt_operations.size() + lt_layouts.size() + lt_preferences.size() + node_count());
    return 0;
}
Status cuCtxSetCurrent(void*) { current = true; return 0; }
Status cuCtxSynchronize() {
    not_in_capture("cuCtxSynchronize");
    for (void* stream : streams) ((Stream*)stream)->ended = ((Stream*)stream)->issued;
    legacy_busy = false;
    return 0;
}
Status cuMemGetInfo_v2(size_t* free, size_t* total) { *total = number("MOCK_MEMORY", 16ull << 30); *free = *total - taken; return 0; }
Status cuMemAlloc_v2(u64* address, size_t bytes) {
    not_in_capture("cuMemAlloc");
    if (taken + bytes > number("MOCK_MEMORY", 16ull << 30) - number("MOCK_HIDDEN", 0)) return 2;
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) broken("this machine has no %zu bytes of address space", bytes);
    memset(at, 0xa5, bytes < 4096 ? bytes : 4096);  // not what it will be cleared to
    memory[*address = (u64)at] = bytes;
    untouched.insert(*address);
    taken += bytes;
    return 0;
}
Status cuMemFree_v2(u64 address) {
    not_in_capture("cuMemFree");
    if (!memory.count(address)) broken("cuMemFree of what is not allocated");
    if (busy()) broken("cuMemFree while work is under way");
    taken -= memory[address];
    munmap((void*)address, memory[address]);
    memory.erase(address);
    untouched.erase(address);
    return 0;
}
Status cuMemHostAlloc(void** at, size_t bytes, unsigned) { need_context("cuMemHostAlloc"); *at = malloc(bytes); pinned[*at] = bytes; return 0; }
Status cuMemFreeHost(void* at) { idle("cuMemFreeHost"); if (!pinned.erase(at)) broken("cuMemFreeHost twice"); free(at); return 0; }
Status cuMemsetD8_v2(u64 at, unsigned char value, size_t bytes) {
    not_in_capture("cuMemsetD8");
    if (bytes) inside({at, bytes, "cuMemsetD8"});
    memset((void*)at, value, untouched.erase(at) && !value && bytes > 4096 ? 4096 : bytes);
    legacy_busy = true;
    return 0;
}
Status cuMemcpyHtoD_v2(u64 to, const void* from, size_t bytes) {
    idle("cuMemcpyHtoD");
    inside({to, bytes, "cuMemcpyHtoD"});
    memcpy((void*)to, from, bytes);
    legacy_busy = true;
    return 0;
}
Status cuMemcpyDtoH_v2(void* to, u64 from, size_t bytes) { idle("cuMemcpyDtoH"); inside({from, bytes, "cuMemcpyDtoH"}); memcpy(to, (void*)from, bytes); return 0; }

static void host_range(const void* at, size_t bytes) {
    for (auto& piece : pinned) if ((char*)at >= (char*)piece.first && (char*)at + bytes <= (char*)piece.first + piece.second) return;
    broken("an asynchronous copy from or to memory that is not pinned");
}
Status cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, void* stream) {
    host_range(from, bytes);
    enqueue(stream_of(stream, "cuMemcpyHtoDAsync"), {1e-4, {{to, bytes, "cuMemcpyHtoDAsync"}}}, "cuMemcpyHtoDAsync");
    memcpy((void*)to, from, bytes);
    return 0;
}
Status cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, void* stream) {
    host_range(to, bytes);
    enqueue(stream_of(stream, "cuMemcpyDtoHAsync"), {1e-4, {{from, bytes, "cuMemcpyDtoHAsync"}}}, "cuMemcpyDtoHAsync");
    memcpy(to, (void*)from, bytes);
    return 0;
}
Status cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t bytes, void* stream) {
    enqueue(stream_of(stream, "cuMemcpyDtoDAsync"), {2.0 * bytes / 1e12, {{to, bytes, "copy"}, {from, bytes, "copy"}}}, "cuMemcpyDtoDAsync");
    return 0;
}

// Reads the declarations of kernels: parameters in their order, the most threads of a block.
Status cuModuleLoadData(void** module, const void* image) {
    not_in_capture("cuModuleLoadData");
    Module* made = new Module;
    Function* function = nullptr;
    std::string text((const char*)image);
    for (size_t at = 0; at < text.size();) {
        size_t end = text.find('\n', at);
        std::string line = text.substr(at, end - at);
        at = end == std::string::npos ? text.size() : end + 1;
        if (line.rfind(".visible .entry ", 0) == 0) {
            std::string name = line.substr(16, line.find('(') - 16);
            function = &made->functions[name];
            function->name = name;
        } else if (function && line.find(".param .") != std::string::npos && line[0] == '\t' && line[1] == '.') {
            size_t type = line.find(".param .") + 8;
            function->sizes.push_back(atoi(line.c_str() + type + 1) / 8);
        } else if (function && line.rfind(".maxntid ", 0) == 0) {
            unsigned x = 1, y = 1, z = 1;
            sscanf(line.c_str(), ".maxntid %u, %u, %u", &x, &y, &z);
            function->threads = x * y * z;
        } else if (line.rfind("{", 0) == 0) {
            function = nullptr;
        }
    }
    modules.insert(*module = made);
    return 0;
}
Status cuModuleUnload(void* module) { idle("cuModuleUnload"); delete known<Module>(modules, module, "module"); modules.erase(module); if (execs.size()) broken("a module is unloaded before the graphs that use it"); return 0; }
Status cuModuleGetFunction(void** function, void* module, const char* name) {
    auto& all = known<Module>(modules, module, "module")->functions;
    if (!all.count(name)) return 500;
    *function = &all[name];
    return 0;
}
Status cuFuncSetAttribute(void* function, int attribute, int value) {
    not_in_capture("cuFuncSetAttribute");
    if (attribute != 8 || value < 0) broken("cuFuncSetAttribute %d", attribute);
    if (value > SHARED) return 1;
    ((Function*)function)->shared = value;
    return 0;
}
Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
    if (threads != 256 || shared > ((Function*)function)->shared) broken("cuOccupancyMaxActiveBlocksPerMultiprocessor: %d threads, %zu bytes", threads, shared);
    *blocks = 1;
    return 0;
}
static Status launch(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** args) {
    if (shared > f->shared) broken("%s: %u bytes of shared memory, %u were asked for", f->name.c_str(), shared, f->shared);
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > f->threads) broken("%s: grid %u %u %u, block %u", f->name.c_str(), gx, gy, gz, bx * by * bz);
    Work work{2e-5, {}};
    for (size_t i = 0; i < f->sizes.size(); i++) {
        if (!args[i]) broken("%s: argument %zu is missing", f->name.c_str(), i);
        u64 value = 0;
        memcpy(&value, args[i], f->sizes[i]);
        // Sizes are smaller than any address.
        if (f->sizes[i] == 8 && value >> 32) work.ranges.push_back({value, 1, f->name});
    }
    enqueue(stream_of(stream, "cuLaunchKernel"), work, "cuLaunchKernel");
    return 0;
}
// Its blocks wait for each other.
static bool waits(Function* f) { return f->name.find("one_pass") != std::string::npos; }
Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** args, void**) {
    Function* f = (Function*)function;
    if (waits(f)) broken("%s: its blocks wait for each other, and the launch does not promise that all run at once", f->name.c_str());
    return launch(f, gx, gy, gz, bx, by, bz, shared, stream, args);
}
Status cuLaunchCooperativeKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** args) {
    Function* f = (Function*)function;
    Stream* s = stream_of(stream, "cuLaunchCooperativeKernel");
    if (!waits(f)) broken("%s: a cooperative launch of blocks that do not wait", f->name.c_str());
    if (getenv("MOCK_REFUSES")) return 801;
    if (gx * gy * gz > MULTIPROCESSORS) return 720;
    if (s->capture && s->capture->cooperates && s->capture->cooperates != s) broken("two streams with launches whose blocks wait for each other");
    if (s->capture) s->capture->cooperates = s;
    return launch(f, gx, gy, gz, bx, by, bz, shared, stream, args);
}

Status cuStreamCreate(void** stream, unsigned flags) { need_context("cuStreamCreate"); if (flags != 1) broken("a stream that waits for the legacy one"); streams.insert(*stream = new Stream); return 0; }
Status cuStreamDestroy_v2(void* stream) {
    stream_of(stream, "cuStreamDestroy");
    if (cublas_handles.size() > streams.size() - 1) broken("a stream goes before the handle on it");
    streams.erase(stream);
    delete (Stream*)stream;
    return 0;
}
Status cuStreamSynchronize(void* stream) {
    not_in_capture("cuStreamSynchronize");
    Stream* s = stream_of(stream, "cuStreamSynchronize");
    s->ended = s->issued;
    return 0;
}
Status cuStreamWaitEvent(void* stream, void* event, unsigned) {
    Stream* s = stream_of(stream, "cuStreamWaitEvent");
    Event* e = known<Event>(events, event, "event");
    if (!e->stream) broken("a stream waits for an event that was never recorded");
    if (e->capture) {
        if (s->capture && s->capture != e->capture) broken("a wait across two captures");
        if (!e->capture->streams.count(e->stream)) broken("a wait for an event of a capture that has ended");
        if (!s->capture) { if (s->ended < s->issued) broken("a stream with work under way is drawn into a capture"); s->capture = e->capture; s->clock.clear(); e->capture->streams.insert(s); }
        for (auto& known : e->clock) s->clock[known.first] = std::max(s->clock[known.first], known.second);
    } else {
        if (s->capture) broken("a captured stream waits for an event from outside");
        s->time = std::max(s->time, e->time);
        // What the event waits for has to end before this stream's later work has.
        e->stream->ended = std::max(e->stream->ended, std::min(e->issued, e->stream->issued));
    }
    return 0;
}
Status cuStreamBeginCapture_v2(void* stream, int) {
    not_in_capture("cuStreamBeginCapture");
    Stream* s = stream_of(stream, "cuStreamBeginCapture");
    s->capture = new Capture{s, {s}, new Graph};
    s->clock.clear();
    return 0;
}
Status cuStreamEndCapture(void* stream, void** graph) {
    Stream* s = stream_of(stream, "cuStreamEndCapture");
    Capture* capture = s->capture;
    if (!capture || capture->origin != s) broken("cuStreamEndCapture of a stream that did not begin it");
    for (Stream* other : capture->streams)
        if (other != s && s->clock[other] < other->clock[other]) broken("a capture ends before a stream that it forked has joined");
    for (Stream* other : capture->streams) other->capture = nullptr;
    capture->streams.clear();
    graphs.insert(*graph = capture->graph);
    return 0;
}
Status cuEventCreate(void** event, unsigned flags) { need_context("cuEventCreate"); events.insert(*event = new Event{!(flags & 2)}); return 0; }
Status cuEventDestroy_v2(void* event) { known<Event>(events, event, "event"); events.erase(event); return 0; }
Status cuEventRecord(void* event, void* stream) {
    Event* e = known<Event>(events, event, "event");
    Stream* s = stream_of(stream, "cuEventRecord");
    e->stream = s; e->issued = s->issued; e->time = s->time; e->asked = 0; e->capture = s->capture; e->clock = s->clock;
    return 0;
}
Status cuEventQuery(void* event) {
    not_in_capture("cuEventQuery");
    Event* e = known<Event>(events, event, "event");
    if (e->capture) broken("cuEventQuery of an event of a capture");
    if (e->asked++ < 3) return 600;
    e->stream->ended = std::max(e->stream->ended, e->issued);
    return 0;
}
Status cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    Event *a = known<Event>(events, from, "event"), *b = known<Event>(events, to, "event");
    if (!a->timed || !b->timed) broken("times of events that keep none");
    if (a->stream->ended < a->issued || b->stream->ended < b->issued) return 600;
    *milliseconds = (float)(1e3 * (b->time - a->time));
    return 0;
}
Status cuGraphInstantiateWithFlags(void** exec, void* graph, u64 flags) {
    need_context("cuGraphInstantiate");
    if (flags) broken("flags of cuGraphInstantiate");
    execs.insert(*exec = new Graph(*known<Graph>(graphs, graph, "graph")));
    return 0;
}
Status cuGraphLaunch(void* exec, void* stream) {
    Work all{0, {}};
    for (auto& work : known<Graph>(execs, exec, "graph")->work) {
        all.cost += work.cost;
        all.ranges.insert(all.ranges.end(), work.ranges.begin(), work.ranges.end());
    }
    Stream* s = stream_of(stream, "cuGraphLaunch");
    if (s->capture) broken("a graph is launched inside a capture");
    enqueue(s, all, "cuGraphLaunch");
    return 0;
}
Status cuGraphExecDestroy(void* exec) { idle("cuGraphExecDestroy"); delete known<Graph>(execs, exec, "graph"); execs.erase(exec); return 0; }
Status cuGraphDestroy(void* graph) { delete known<Graph>(graphs, graph, "graph"); graphs.erase(graph); return 0; }
Status cuGetErrorName(int, const char** text) { *text = "MOCK"; return 0; }
Status cuGetErrorString(int, const char** text) { *text = "an error of the mock"; return 0; }

// ---- cuBLAS ---------------------------------------------------------------------------------------------------------

struct Blas { Stream* stream = nullptr; u64 workspace = 0; size_t bytes = 0; int mode = 0; };

Status cublasCreate_v2(void** handle) { not_in_capture("cublasCreate"); cublas_handles.insert(*handle = new Blas); return 0; }
Status cublasDestroy_v2(void* handle) { idle("cublasDestroy"); inside({known<Blas>(cublas_handles, handle, "cuBLAS")->workspace, 1, "cublasDestroy: the workspace"}); cublas_handles.erase(handle); return 0; }
Status cublasSetStream_v2(void* handle, void* stream) { Blas* b = known<Blas>(cublas_handles, handle, "cuBLAS"); b->stream = stream_of(stream, "cublasSetStream"); b->workspace = 0; return 0; }
Status cublasSetWorkspace_v2(void* handle, void* at, size_t bytes) {
    Blas* b = known<Blas>(cublas_handles, handle, "cuBLAS");
    if ((u64)at % 256) broken("cublasSetWorkspace: not aligned to 256 bytes");
    inside({(u64)at, bytes, "cublasSetWorkspace"});
    b->workspace = (u64)at;
    b->bytes = bytes;
    return 0;
}
Status cublasSetMathMode(void* handle, int mode) { known<Blas>(cublas_handles, handle, "cuBLAS")->mode = mode; return 0; }
Status cublasGetProperty(int property, int* value) { const int version[3] = {12, 4, 5}; *value = version[property]; return 0; }
static u64 type_bytes(int type) { if (type == 0) return 4; if (type == 2 || type == 14) return 2; broken("cuBLAS type %d", type); }
Status cublasGemmEx(void* handle, int ta, int tb, int m, int n, int k, const float* alpha, const void* a, int atype, int lda, const void* b, int btype, int ldb, const float* beta,
                    void* c, int ctype, int ldc, int compute, int algorithm) {
    Blas* blas = known<Blas>(cublas_handles, handle, "cuBLAS");
    if (!blas->workspace) broken("cublasGemmEx with a workspace of cuBLAS's own: not reproducible");
    if (*alpha != 1.0f || (*beta != 0.0f && *beta != 1.0f) || algorithm != -1 || atype != btype) broken("cublasGemmEx: arguments");
    if (atype == 0 ? compute != 69 && compute != 77 : compute != 68 || blas->mode != 16) broken("cublasGemmEx: type %d computes as %d, mode %d", atype, compute, blas->mode);
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) broken("cublasGemmEx: leading dimensions");
    const u64 abytes = type_bytes(atype) * lda * (u64)(ta ? m : k), bbytes = type_bytes(btype) * ldb * (u64)(tb ? k : n), cbytes = type_bytes(ctype) * ldc * (u64)n;
    // Of the three products of a layer the weights' gradient is made dear.
    const double cost = !ta && tb ? 3e-3 : 4e-4;
    enqueue(blas->stream, {cost, {{(u64)a, abytes, "cublasGemmEx a"}, {(u64)b, bbytes, "cublasGemmEx b"}, {(u64)c, cbytes, "cublasGemmEx c"}}}, "cublasGemmEx");
    return 0;
}

// ---- cuBLASLt -------------------------------------------------------------------------------------------------------

struct Layout { int type; u64 rows, columns; long long leading; };
struct Operation { int compute, ta = 0, tb = 0; };
struct Preference { u64 workspace = 0; unsigned mask = ~0u; };
struct LtOffer { u64 data[8]; size_t workspace; int state; float waves; int reserved[4]; };

Status cublasLtGetProperty(int property, int* value) { return cublasGetProperty(property, value); }
Status cublasLtCreate(void** handle) { not_in_capture("cublasLtCreate"); lt_handles.insert(*handle = new int); return 0; }
Status cublasLtDestroy(void* handle) { idle("cublasLtDestroy"); delete known<int>(lt_handles, handle, "cuBLASLt"); lt_handles.erase(handle); return 0; }
Status cublasLtMatmulDescCreate(void** to, int compute, int scale) { if (scale != 0) broken("cuBLASLt: factors that are not f32"); lt_operations.insert(*to = new Operation{compute}); return 0; }
Status cublasLtMatmulDescDestroy(void* one) { delete known<Operation>(lt_operations, one, "operation"); lt_operations.erase(one); return 0; }
Status cublasLtMatmulDescSetAttribute(void* one, int attribute, const void* value, size_t bytes) {
    Operation* o = known<Operation>(lt_operations, one, "operation");
    if (bytes != 4 || (attribute != 3 && attribute != 4)) broken("cublasLtMatmulDescSetAttribute: attribute %d of %zu bytes", attribute, bytes);
    (attribute == 3 ? o->ta : o->tb) = *(const int*)value;
    return 0;
}
Status cublasLtMatrixLayoutCreate(void** to, int type, u64 rows, u64 columns, long long leading) {
    if (leading < (long long)rows) broken("cublasLtMatrixLayoutCreate: leading dimension");
    lt_layouts.insert(*to = new Layout{type, rows, columns, leading});
    return 0;
}
Status cublasLtMatrixLayoutDestroy(void* one) { delete known<Layout>(lt_layouts, one, "layout"); lt_layouts.erase(one); return 0; }
Status cublasLtMatmulPreferenceCreate(void** to) { lt_preferences.insert(*to = new Preference); return 0; }
Status cublasLtMatmulPreferenceDestroy(void* one) { delete known<Preference>(lt_preferences, one, "preference"); lt_preferences.erase(one); return 0; }
Status cublasLtMatmulPreferenceSetAttribute(void* one, int attribute, const void* value, size_t bytes) {
    Preference* p = known<Preference>(lt_preferences, one, "preference");
    if (attribute == 1 && bytes == 8) p->workspace = *(const u64*)value;
    else if (attribute == 3 && bytes == 4) p->mask = *(const unsigned*)value;
    else broken("cublasLtMatmulPreferenceSetAttribute: attribute %d of %zu bytes", attribute, bytes);
    return 0;
}
// Sides, types and arithmetic that fit each other; the product's work, whose parts are its three operands.
static Work lt_product(void* operation, void* ad, const void* a, void* bd, const void* b, void* cd, const void* c) {
    Operation& o = *known<Operation>(lt_operations, operation, "operation");
    Layout &A = *known<Layout>(lt_layouts, ad, "layout"), &B = *known<Layout>(lt_layouts, bd, "layout"), &C = *known<Layout>(lt_layouts, cd, "layout");
    const u64 m = o.ta ? A.columns : A.rows, k = o.ta ? A.rows : A.columns, n = o.tb ? B.rows : B.columns;
    if (m != C.rows || n != C.columns || k != (o.tb ? B.columns : B.rows)) broken("cuBLASLt: sides that do not fit each other");
    if (A.type != B.type || (A.type == 0 ? o.compute != 69 && o.compute != 77 : o.compute != 68)) broken("cuBLASLt: type %d computes as %d", A.type, o.compute);
    auto range = [](Layout& l, const void* at, const char* what) { return Range{(u64)at, type_bytes(l.type) * (u64)l.leading * l.columns, what}; };
    return {0, {range(A, a, "cublasLtMatmul a"), range(B, b, "cublasLtMatmul b"), range(C, c, "cublasLtMatmul c")}};
}
// Three algorithms: the first too large for any workspace, and yet offered; the second dear, the third cheaper than anything.
Status cublasLtMatmulAlgoGetHeuristic(void* handle, void* operation, void* ad, void* bd, void* cd, void* dd, void* preference, int most, LtOffer* to, int* count) {
    known<int>(lt_handles, handle, "cuBLASLt");
    known<Operation>(lt_operations, operation, "operation");
    for (void* layout : {ad, bd, cd, dd}) known<Layout>(lt_layouts, layout, "layout");
    Preference& p = *known<Preference>(lt_preferences, preference, "preference");
    if (p.mask != 2) broken("cuBLASLt may split a sum by scheme %u: not the same bits, or rounded to half on the way", p.mask);
    *count = 0;
    for (u64 number : {1, 2, 3})
        if (*count < most) to[(*count)++] = LtOffer{{number}, number == 1 ? (size_t)p.workspace + 1 : 4096, 0, 1.0f, {}};
    return 0;
}
Status cublasLtMatmul(void* handle, void* operation, const float* alpha, const void* a, void* ad, const void* b, void* bd, const float* beta, const void* c, void* cd, void* d,
                      void* dd, const u64* algorithm, void* workspace, size_t bytes, void* stream) {
    known<int>(lt_handles, handle, "cuBLASLt");
    if (*alpha != 1.0f || (*beta != 0.0f && *beta != 1.0f) || c != d || cd != dd) broken("cublasLtMatmul: factors, or a result elsewhere");
    if (algorithm[0] != 2 && algorithm[0] != 3) broken("cublasLtMatmul: an algorithm that was not offered, or is too large");
    Work work = lt_product(operation, ad, a, bd, b, cd, c);
    work.ranges.push_back({(u64)workspace, bytes, "cublasLtMatmul workspace"});
    work.cost = algorithm[0] == 2 ? 5e-3 : 3e-4;
    enqueue(stream_of(stream, "cublasLtMatmul"), work, "cublasLtMatmul");
    return 0;
}

// ---- NCCL -----------------------------------------------------------------------------------------------------------

struct Id { char bytes[128]; };
struct Communicator { int ranks, rank; };

Status ncclGetVersion(int* version) { *version = 22203; return 0; }
Status ncclGetUniqueId(Id* id) { memset(id->bytes, 7, sizeof id->bytes); return 0; }
Status ncclCommInitRank(void** communicator, int ranks, Id id, int rank) {
    not_in_capture("ncclCommInitRank");
    for (char byte : id.bytes) if (byte != 7) broken("ncclCommInitRank with an id that is nobody's");
    if (rank < 0 || rank >= ranks) broken("ncclCommInitRank: rank %d of %d", rank, ranks);
    communicators.insert(*communicator = new Communicator{ranks, rank});
    return 0;
}
Status ncclCommDestroy(void* communicator) {
    idle("ncclCommDestroy");
    if (execs.size()) broken("ncclCommDestroy while %zu graphs may name it", execs.size());
    known<Communicator>(communicators, communicator, "communicator");
    communicators.erase(communicator);
    return 0;
}
Status ncclCommGetAsyncError(void* communicator, int* state) { known<Communicator>(communicators, communicator, "communicator"); *state = 0; return 0; }
const char* ncclGetErrorString(int) { return "an error of the mock"; }
static u64 nccl_bytes(int type) {
    if (type == 3 || type == 7) return 4;
    if (type == 6 || type == 9) return 2;
    broken("NCCL type %d", type);
}
Status ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, void* communicator, void* stream) {
    known<Communicator>(communicators, communicator, "communicator");
    if (from != to) broken("ncclAllReduce out of place");
    if (type == 3 ? operation != 2 : operation != 0) broken("ncclAllReduce: type %d, operation %d", type, operation);
    if ((u64)to % nccl_bytes(type)) broken("ncclAllReduce: not aligned");
    enqueue(stream_of(stream, "ncclAllReduce"), {5e-5, {{(u64)to, nccl_bytes(type) * count, "ncclAllReduce"}}}, "ncclAllReduce");
    return 0;
}
Status ncclAllGather(const void* from, void* to, size_t count, int type, void* communicator, void* stream) {
    const u64 bytes = nccl_bytes(type) * count, ranks = known<Communicator>(communicators, communicator, "communicator")->ranks;
    enqueue(stream_of(stream, "ncclAllGather"), {5e-5, {{(u64)from, bytes, "ncclAllGather from"}, {(u64)to, bytes * ranks, "ncclAllGather to"}}}, "ncclAllGather");
    return 0;
}

// ---- cuDNN ----------------------------------------------------------------------------------------------------------

struct Dnn { Stream* stream = nullptr; };
struct Descriptor { int kind, v[8]; };  // 't': type n c h w; 'f': type k c r s; 'c': pad stride math
struct Performance { int algorithm, status; float time; size_t memory; int determinism, math, reserved[3]; };

static Status make(void** to, int kind) { descriptors.insert(*to = new Descriptor{kind, {-1}}); return 0; }
static Status unmake(void* one, int kind) { if (known<Descriptor>(descriptors, one, "descriptor")->kind != kind) broken("a descriptor of another kind"); descriptors.erase(one); return 0; }
size_t cudnnGetVersion() { return number("MOCK_CUDNN", 91002); }
Status cudnnCreate(void** handle) { not_in_capture("cudnnCreate"); cudnn_handles.insert(*handle = new Dnn); return 0; }
Status cudnnDestroy(void* handle) { idle("cudnnDestroy"); known<Dnn>(cudnn_handles, handle, "cuDNN"); cudnn_handles.erase(handle); return 0; }
Status cudnnSetStream(void* handle, void* stream) { known<Dnn>(cudnn_handles, handle, "cuDNN")->stream = stream_of(stream, "cudnnSetStream"); return 0; }
Status cudnnCreateTensorDescriptor(void** to) { return make(to, 't'); }
Status cudnnDestroyTensorDescriptor(void* one) { return unmake(one, 't'); }
Status cudnnCreateFilterDescriptor(void** to) { return make(to, 'f'); }
Status cudnnDestroyFilterDescriptor(void* one) { return unmake(one, 'f'); }
Status cudnnCreateConvolutionDescriptor(void** to) { return make(to, 'c'); }
Status cudnnDestroyConvolutionDescriptor(void* one) { return unmake(one, 'c'); }
Status cudnnSetTensor4dDescriptor(void* d, int format, int type, int n, int c, int h, int w) {
    if (format != 1) broken("a tensor that is not NHWC");
    *known<Descriptor>(descriptors, d, "tensor") = {'t', {type, n, c, h, w}};
    return 0;
}
Status cudnnSetFilter4dDescriptor(void* d, int type, int format, int k, int c, int r, int s) {
    if (format != 1) broken("a filter that is not KRSC");
    *known<Descriptor>(descriptors, d, "filter") = {'f', {type, k, c, r, s}};
    return 0;
}
Status cudnnSetConvolution2dDescriptor(void* d, int ph, int pw, int u, int v, int dh, int dw, int mode, int compute) {
    if (ph != pw || u != v || dh != 1 || dw != 1 || mode != 1 || compute != 0) broken("cudnnSetConvolution2dDescriptor: arguments");
    *known<Descriptor>(descriptors, d, "convolution") = {'c', {ph, u, 0}};
    return 0;
}
Status cudnnSetConvolutionMathType(void* d, int math) { known<Descriptor>(descriptors, d, "convolution")->v[2] = math; return 0; }

static Work convolution(void* xd, const void* x, void* wd, const void* w, void* cd, void* yd, const void* y, const void* workspace, size_t bytes) {
    Descriptor &X = *known<Descriptor>(descriptors, xd, "x"), &W = *known<Descriptor>(descriptors, wd, "w"), &Y = *known<Descriptor>(descriptors, yd, "y"), &C = *known<Descriptor>(descriptors, cd, "convolution");
    if (X.kind != 't' || W.kind != 'f' || Y.kind != 't' || C.kind != 'c') broken("descriptors in another order");
    for (int i : {3, 4})
        if (Y.v[i] != (X.v[i] + 2 * C.v[0] - W.v[i]) / C.v[1] + 1) broken("a convolution's output side is %d", Y.v[i]);
    if (X.v[1] != Y.v[1] || X.v[2] != W.v[2] || Y.v[2] != W.v[1] || X.v[0] != W.v[0] || X.v[0] != Y.v[0]) broken("a convolution's descriptors do not fit each other");
    if (W.v[0] == 0 && C.v[2] != 3 && getenv("MOCK_NO_TF32")) broken("an fp32 convolution with arithmetic %d", C.v[2]);
    auto range = [](Descriptor& d, const void* at, const char* what) { return Range{(u64)at, (u64)(d.v[0] == 0 ? 4 : 2) * d.v[1] * d.v[2] * d.v[3] * d.v[4], what}; };
    return {0, {range(X, x, "convolution x"), range(W, w, "convolution w"), range(Y, y, "convolution y"), {(u64)workspace, bytes, "convolution workspace"}}};
}

// The fastest may not be used by a deterministic run, the next is too large for any workspace.
static const Performance OFFERS[] = {{0, 0, 0.1f, 0, 0, 1, {}}, {6, 0, 0.2f, 8ull << 30, 1, 1, {}}, {4, 0, 0.3f, 1 << 20, 1, 0, {}}, {1, 0, 0.4f, 1 << 20, 1, 1, {}}, {5, 0, 0.5f, 0, 1, 3, {}}, {2, 3000, -1, 0, 1, 1, {}}};

static Status find(void* handle, Work work, void* cd, int most, int* count, Performance* to) {
    not_in_capture("cudnnFind");
    enqueue(known<Dnn>(cudnn_handles, handle, "cuDNN")->stream, work, "cudnnFind");
    Stream* stream = ((Dnn*)handle)->stream;
    stream->ended = stream->issued;
    // The descriptor's own arithmetic and the default one are tried.
    const int own = ((Descriptor*)cd)->v[2];
    *count = 0;
    for (const Performance& offer : OFFERS)
        if (*count < most && (offer.math == own || offer.math == 0)) to[(*count)++] = offer;
    return 0;
}
static Status run(void* handle, Work work, void* cd, int algorithm, size_t bytes, const float* alpha, const float* beta) {
    if (*alpha != 1.0f || (*beta != 0.0f && *beta != 1.0f)) broken("cudnnConvolution: factors");
    if (algorithm == 0 && !getenv("MOCK_FREE")) broken("a deterministic run uses an algorithm that is not");
    for (const Performance& offer : OFFERS)
        if (offer.algorithm == algorithm && offer.math == ((Descriptor*)cd)->v[2] && offer.memory <= bytes && !offer.status) {
            // Timed again, the fourth is faster than the third.
            work.cost = algorithm == 1 ? 1e-3 : 2e-3;
            enqueue(known<Dnn>(cudnn_handles, handle, "cuDNN")->stream, work, "cudnnConvolution");
            return 0;
        }
    return 3000;
}
Status cudnnConvolutionForward(void* h, const float* alpha, void* xd, const void* x, void* wd, const void* w, void* cd, int algorithm, void* space, size_t bytes, const float* beta, void* yd, void* y) {
    return run(h, convolution(xd, x, wd, w, cd, yd, y, space, bytes), cd, algorithm, bytes, alpha, beta);
}
Status cudnnConvolutionBackwardData(void* h, const float* alpha, void* wd, const void* w, void* yd, const void* y, void* cd, int algorithm, void* space, size_t bytes, const float* beta, void* xd, void* x) {
    return run(h, convolution(xd, x, wd, w, cd, yd, y, space, bytes), cd, algorithm, bytes, alpha, beta);
}
Status cudnnConvolutionBackwardFilter(void* h, const float* alpha, void* xd, const void* x, void* yd, const void* y, void* cd, int algorithm, void* space, size_t bytes, const float* beta, void* wd, void* w) {
    return run(h, convolution(xd, x, wd, w, cd, yd, y, space, bytes), cd, algorithm, bytes, alpha, beta);
}
Status cudnnFindConvolutionForwardAlgorithmEx(void* h, void* xd, const void* x, void* wd, const void* w, void* cd, void* yd, void* y, int most, int* count, Performance* to, void* space, size_t bytes) {
    return find(h, convolution(xd, x, wd, w, cd, yd, y, space, bytes), cd, most, count, to);
}
Status cudnnFindConvolutionBackwardDataAlgorithmEx(void* h, void* wd, const void* w, void* yd, const void* y, void* cd, void* xd, void* x, int most, int* count, Performance* to, void* space, size_t bytes) {
    return find(h, convolution(xd, x, wd, w, cd, yd, y, space, bytes), cd, most, count, to);
}
Status cudnnFindConvolutionBackwardFilterAlgorithmEx(void* h, void* xd, const void* x, void* yd, const void* y, void* cd, void* wd, void* w, int most, int* count, Performance* to, void* space, size_t bytes) {
    return find(h, convolution(xd, x, wd, w, cd, yd, y, space, bytes), cd, most, count, to);
}
}

// ---- cuDNN's graph API ----------------------------------------------------------------------------------------------

#include "mock_graph.h"
