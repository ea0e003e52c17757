// The C interface of a library of kernels; included after them.
#pragma once
#include <mutex>

// Everything else is hidden: two libraries in one process must not share the state of their blocks, which the linker
// would otherwise make unique.
#define VISIBLE extern "C" __attribute__((visibility("default")))

// Runs a kernel on the caller's thread; other callers wait. `order`, of threads and
// of blocks: 0 ascending, 1 descending, 2 shuffled by `seed`. `memory`: bytes that each block has beside its own statics.
// Returns 0, or 1 with a message.
VISIBLE int engine_launch(const char* name, const unsigned* grid, const unsigned* block, void** args, unsigned order,
                             unsigned seed, size_t memory, int cooperative, char* message, size_t size) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> guard(one_at_a_time);
    const auto found = cuda_on_cpu::kernels().find(name);
    const char* problem = "no such kernel";
    if (found != cuda_on_cpu::kernels().end()) {
        problem = cuda_on_cpu::launch(found->second, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, args, order, seed, memory, cooperative);
    }
    if (problem) snprintf(message, size, "%s: %s", name, problem);
    return problem != nullptr;
}

// Calls `visit` with the name of every kernel, in alphabetical order.
VISIBLE void engine_kernel_names(void (*visit)(const char* name, void* context), void* context) {
    for (const auto& kernel : cuda_on_cpu::kernels()) visit(kernel.first.c_str(), context);
}
