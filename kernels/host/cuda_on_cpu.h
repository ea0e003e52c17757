// CUDA kernels on the host: every thread of a block runs until it ends or waits, on one host thread, and the blocks run one
// after another, both in an order that the caller chooses. A missing barrier, or a block that relies on another, gives other
// results in other orders; a divergent barrier is an error. The blocks of a cooperative launch may wait for each other: then
// the next one goes on. Where all wait it is an error, and so is a block that waits in any other launch.
//
// A thread that never waits costs a function call: it runs on the fibre of the one before it. Only threads that wait
// at a barrier or for their warp hold a fibre of their own.
//
// What this does not show: blocks that only go wrong at the same time (each runs until it waits), memory fences, fast-math.
#pragma once
#define CUDA_ON_CPU

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>
#if !defined(__x86_64__) || defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

struct Dim { unsigned x, y, z; };

inline Dim thread_index, block_index, block_dim, grid_dim;

typedef void (*Thunk)(void** args);

inline std::map<std::string, Thunk>& kernels() {
    static std::map<std::string, Thunk> all;
    return all;
}

struct Registration {
    Registration(const char* name, Thunk thunk) { kernels()[name] = thunk; }
};

template <class... A, size_t... I>
inline void unpack(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*(A*)args[I]...);
}

template <class... A>
inline void unpack(void (*kernel)(A...), void** args) {
    unpack(kernel, args, std::index_sequence_for<A...>());
}

// Calls a kernel with arguments as cuLaunchKernel takes them: pointers to their values.
template <class Pointer, Pointer kernel>
void thunk(void** args) {
    unpack(kernel, args);
}

// ---- fibres -----------------------------------------------------------------------------------------------------

const size_t STACK = 128 << 10;

#ifdef CUDA_ON_CPU_UCONTEXT
struct Context { ucontext_t context; };
inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
inline void make_context(Context& fibre, char* stack, void (*entry)()) {
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = stack;
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, entry, 0);
}
#else
// What the System V ABI lets a call keep: rbx, rbp, r12 to r15 and the stack.
struct Context { void* stack; };
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(
.text
.hidden cuda_on_cpu_switch
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
inline void switch_context(Context& from, Context& to) { cuda_on_cpu_switch(&from.stack, to.stack); }
inline void make_context(Context& fibre, char* stack, void (*entry)()) {
    // Six registers, the address to return to, and one word so that the entry finds its stack aligned as after a call.
    void** top = (void**)(((size_t)stack + STACK) & ~(size_t)15);
    top[-1] = nullptr;
    top[-2] = (void*)entry;
    for (int i = 3; i <= 8; i++) top[-i] = nullptr;
    fibre.stack = top - 8;
}
#endif

enum Status { NOT_BEGUN, RUNNING, AT_BARRIER, AT_WARP, AT_COUNTER, ENDED };

struct Fibre {
    Context context;
    // Not cleared: a launch of many blocks has a fibre for each of their threads, which touches little of it.
    std::unique_ptr<char[]> stack;
};

struct Thread {
    Status status;
    int line;      // of the barrier it waits at
    Fibre* fibre;  // what it waits on
    const unsigned* counter;  // that other blocks raise, and what it must have reached
    unsigned count;
};

struct alignas(16) Aligned { unsigned char bytes[16]; };

struct Block {
    std::vector<Thread> threads;
    std::vector<unsigned> order;  // in which threads run
    size_t begun;                 // of `order`
    unsigned current;
    Context scheduler;
    Fibre* fibre;                 // that runs
    Thunk kernel;
    void** args;
    unsigned id;
    bool ended;
    // As much as the launch gives, 16 bytes aligned, and NaN at first.
    std::vector<Aligned> memory;
};

// The one that runs.
inline Block block;
inline std::vector<Fibre*> idle;
inline unsigned exchange[32][32];  // a word for each lane of each warp

inline void enter(unsigned id) {
    block.current = id;
    const unsigned x = block_dim.x, y = block_dim.y;
    thread_index = {id % x, id / x % y, id / (x * y)};
}

// A fibre runs threads that have not begun, one after another, until there are none.
inline void fibre_main() {
    for (;;) {
        while (block.begun < block.order.size()) {
            const unsigned id = block.order[block.begun++];
            block.threads[id].status = RUNNING;
            enter(id);
            block.kernel(block.args);
            // Another fibre may have run in between; this one still has `id`.
            block.threads[id].status = ENDED;
        }
        idle.push_back(block.fibre);
        switch_context(block.fibre->context, block.scheduler);
    }
}

inline void wait(Status status, int line) {
    const unsigned id = block.current;
    Thread& thread = block.threads[id];
    thread.status = status;
    thread.line = line;
    thread.fibre = block.fibre;
    switch_context(block.fibre->context, block.scheduler);
    enter(id);
}

inline void resume(Fibre* fibre) {
    block.fibre = fibre;
    switch_context(block.scheduler, fibre->context);
}

inline Fibre* idle_fibre() {
    if (idle.empty()) {
        Fibre* fibre = new Fibre;
        fibre->stack.reset(new char[STACK]);
        make_context(fibre->context, fibre->stack.get(), fibre_main);
        return fibre;
    }
    Fibre* fibre = idle.back();
    idle.pop_back();
    return fibre;
}

inline void* block_memory() { return block.memory.data(); }

// Waits until other blocks have raised a counter.
inline void await(const unsigned* counter, unsigned count, int line) {
    if (*counter >= count) return;
    Thread& thread = block.threads[block.current];
    thread.counter = counter;
    thread.count = count;
    wait(AT_COUNTER, line);
}

enum Going { ON, ELSEWHERE, OVER };

// Lets go on who may: who waits for a counter that has been raised, warps whose lanes all wait, or the block if all wait at one
// barrier. Returns what is wrong, or null; `going` says whether the block goes on, waits for others, or is over.
inline const char* release(Going& going) {
    const size_t n = block.threads.size();
    bool progress = false, all_at_barrier = true, any_ended = false, any_at_counter = false, over = true;
    for (size_t warp = 0; warp < n; warp += 32) {
        const size_t end = warp + 32 < n ? warp + 32 : n;
        size_t waiting = 0;
        for (size_t i = warp; i < end; i++) {
            Thread& thread = block.threads[i];
            if (thread.status == AT_COUNTER && *thread.counter >= thread.count) {
                thread.status = RUNNING;
                progress = true;
            }
            any_at_counter |= thread.status == AT_COUNTER;
            waiting += thread.status == AT_WARP;
            all_at_barrier &= thread.status == AT_BARRIER && thread.line == block.threads[0].line;
            any_ended |= thread.status == ENDED;
            over &= thread.status == ENDED;
        }
        if (waiting != end - warp) continue;
        for (size_t i = warp; i < end; i++) {
            if (block.threads[i].line != block.threads[warp].line) return "lanes of a warp wait in different places";
            block.threads[i].status = RUNNING;
        }
        progress = true;
    }
    going = over ? OVER : any_at_counter && !progress ? ELSEWHERE : ON;
    if (all_at_barrier) {
        for (Thread& thread : block.threads) thread.status = RUNNING;
        return nullptr;
    }
    if (progress || over || any_at_counter) return nullptr;
    return any_ended ? "threads have ended while others wait at a barrier or for their warp"
                     : "threads wait at different barriers";
}

// Runs the block until it is over or waits for another.
inline const char* run_block(Going& going) {
    for (;;) {
        while (block.begun < block.order.size()) resume(idle_fibre());
        if (const char* problem = release(going)) return problem;
        if (going != ON) return nullptr;
        for (unsigned id : block.order) {
            if (block.threads[id].status == RUNNING) resume(block.threads[id].fibre);
        }
    }
}

inline void begin_block(unsigned id, size_t memory) {
    for (Thread& thread : block.threads) thread = {NOT_BEGUN, 0, nullptr, nullptr, 0};
    block.begun = 0;
    block.id = id;
    block.ended = false;
    block.memory.resize((memory + 15) / 16);
    if (memory) memset(block.memory.data(), 0xff, block.memory.size() * 16);
}

inline const char* go_on(Going& going) {
    const unsigned id = block.id;
    block_index = {id % grid_dim.x, id / grid_dim.x % grid_dim.y, id / (grid_dim.x * grid_dim.y)};
    return run_block(going);
}

// Whether a thread of the block waits for a counter that has been raised.
inline bool can_go_on() {
    for (const Thread& thread : block.threads) {
        if (thread.status == AT_COUNTER && *thread.counter >= thread.count) return true;
    }
    return false;
}

// All blocks beside each other: whoever cannot go on lets the next one.
inline const char* run_cooperative(const std::vector<unsigned>& blocks, size_t memory) {
    std::vector<Block> all(blocks.size(), block);
    size_t over = 0;
    for (bool first = true; over < all.size(); first = false) {
        bool progress = first;
        for (size_t i = 0; i < all.size(); i++) {
            if (!first && all[i].ended) continue;
            std::swap(block, all[i]);
            if (first) begin_block(blocks[i], memory);
            const bool could = first || can_go_on();
            Going going = ELSEWHERE;
            const char* problem = could ? go_on(going) : nullptr;
            block.ended = going == OVER;
            over += block.ended;
            progress |= could;
            std::swap(block, all[i]);
            if (problem) return problem;
        }
        if (!progress) return "all blocks wait for others";
    }
    return nullptr;
}

enum Order { ASCENDING, DESCENDING, SHUFFLED };

// In which order `count` threads, or blocks, run.
inline void set_order(std::vector<unsigned>& ids, unsigned count, unsigned order, unsigned seed) {
    ids.resize(count);
    for (unsigned i = 0; i < count; i++) ids[i] = order == DESCENDING ? count - 1 - i : i;
    if (order == SHUFFLED) {
        std::mt19937 random(seed);
        for (unsigned i = count; i > 1; i--) std::swap(ids[i - 1], ids[random() % i]);
    }
}

// Returns what is wrong, or null.
inline const char* launch(Thunk kernel, Dim grid, Dim dim, void** args, unsigned order, unsigned seed, size_t memory, bool cooperative) {
    grid_dim = grid;
    block_dim = dim;
    block.kernel = kernel;
    block.args = args;
    const unsigned threads = dim.x * dim.y * dim.z;
    if (threads == 0 || threads > 1024) return "a block has 1 to 1024 threads";
    block.threads.resize(threads);
    set_order(block.order, threads, order, seed);
    std::vector<unsigned> blocks;
    set_order(blocks, grid.x * grid.y * grid.z, order, seed + 1);
    if (cooperative) return run_cooperative(blocks, memory);
    for (unsigned id : blocks) {
        Going going = ON;
        begin_block(id, memory);
        if (const char* problem = go_on(going)) return problem;
        if (going == ELSEWHERE) return "a block waits for others in a launch that is not cooperative";
    }
    return nullptr;
}

template <class T>
inline T exchange_lane(T value, unsigned from, int line) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    const unsigned id = block.current;
    memcpy(&exchange[id / 32][id % 32], &value, 4);
    wait(AT_WARP, line);
    T result;
    memcpy(&result, &exchange[id / 32][from % 32], 4);
    wait(AT_WARP, -line);
    return result;
}

inline unsigned ballot(bool predicate, int line) {
    const unsigned id = block.current;
    exchange[id / 32][id % 32] = predicate;
    wait(AT_WARP, line);
    unsigned bits = 0;
    const size_t lanes = block.threads.size() - id / 32 * 32;
    for (unsigned lane = 0; lane < 32 && lane < lanes; lane++) bits |= exchange[id / 32][lane] << lane;
    wait(AT_WARP, -line);
    return bits;
}

// ---- 16x16 matrices of a warp (wmma.m16n16k16): a lane has half a row -----------------------------------------------

struct MatrixHalf { unsigned short r[8]; };
struct MatrixFloat { float r[8]; };

inline unsigned lane() { return block.current % 32; }

// From row `lane / 2`, eight elements; a matrix that is kept by columns is loaded as its transpose.
inline void load_matrix(MatrixHalf& to, const unsigned short* from, unsigned stride, int line) {
    memcpy(to.r, from + lane() / 2 * stride + lane() % 2 * 8, sizeof to.r);
    wait(AT_WARP, line);
}

inline void store_matrix(float* to, const MatrixFloat& from, unsigned stride, int line) {
    memcpy(to + lane() / 2 * stride + lane() % 2 * 8, from.r, sizeof from.r);
    wait(AT_WARP, line);
}

inline float rows_of_warp[32][2][16][16];

// sum[i][j] += a[i][.] b[j][.], products exact and f32 sums one after another: a card adds in an order of its own.
template <class ToFloat>
inline void multiply_add(MatrixFloat& sum, const MatrixHalf& a, const MatrixHalf& b, ToFloat to_float, int line) {
    auto& rows = rows_of_warp[block.current / 32];
    const unsigned row = lane() / 2, first = lane() % 2 * 8;
    for (unsigned i = 0; i < 8; i++) {
        rows[0][row][first + i] = to_float(a.r[i]);
        rows[1][row][first + i] = to_float(b.r[i]);
    }
    wait(AT_WARP, line);
    for (unsigned j = 0; j < 8; j++) {
        for (unsigned k = 0; k < 16; k++) sum.r[j] = fmaf(rows[0][row][k], rows[1][first + j][k], sum.r[j]);
    }
    wait(AT_WARP, -line);
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::thread_index)
#define blockIdx (cuda_on_cpu::block_index)
#define blockDim (cuda_on_cpu::block_dim)
#define gridDim (cuda_on_cpu::grid_dim)
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time, so that a static is a block's own: not in kernels whose blocks wait for others.
#define __shared__ static
#define __syncthreads() cuda_on_cpu::wait(cuda_on_cpu::AT_BARRIER, __LINE__)
#define __syncwarp() cuda_on_cpu::wait(cuda_on_cpu::AT_WARP, __LINE__)
#define __shfl_down_sync(mask, value, delta) \
    cuda_on_cpu::exchange_lane(value, threadIdx.x % 32 + (delta) < 32 ? threadIdx.x % 32 + (delta) : threadIdx.x % 32, __LINE__)
#define __shfl_xor_sync(mask, value, bits) cuda_on_cpu::exchange_lane(value, threadIdx.x % 32 ^ (bits), __LINE__)
#define __shfl_sync(mask, value, lane) cuda_on_cpu::exchange_lane(value, lane, __LINE__)
#define __ballot_sync(mask, predicate) cuda_on_cpu::ballot(predicate, __LINE__)

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float cospif(float a) { return (float)cos(3.14159265358979323846 * a); }

// A block runs until it ends or waits before the next goes on: what it has written is there.
inline void __threadfence() {}

inline unsigned atomicAdd(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at = before + value;
    return before;
}

inline unsigned atomicMax(unsigned* at, unsigned value) {
    const unsigned before = *at;
    if (value > before) *at = value;
    return before;
}
