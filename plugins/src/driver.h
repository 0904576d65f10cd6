// The CUDA driver, opened when a kernel is first launched, so that the library loads where there is none.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <cuda.h>

#include "table.h"

namespace edgeattn
{

// What went wrong, in words; empty where nothing did.
using Failure = std::string;

// The GPU that is current for this thread.
struct Gpu
{
    CUcontext context;
    std::int32_t arch;    // compute capability: 87 for 8.7
    std::uint32_t shared;  // bytes that one block may have
};

Failure currentGpu(Gpu& gpu);

// A launch's code in one context. Freed with its last user.
class Module;

Failure loadModule(Gpu const& gpu, Build const& build, Launch const& launch, std::shared_ptr<Module>& module);

// One launch at known shapes: `arguments` holds addresses where `pointers` is true, and int32 values elsewhere.
struct Ready
{
    std::shared_ptr<Module> module;
    Launch const* launch;
    std::uint32_t grid;
    std::vector<std::int32_t> integers;  // one for each argument; 0 for tensors
};

// Queue a launch; `tensors` are all tensors' addresses, numbered as in the table.
Failure launch(Ready const& ready, std::vector<void*> const& tensors, CUstream stream);

}  // namespace edgeattn
