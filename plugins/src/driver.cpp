#include "driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

namespace edgeattn
{

namespace
{

// Those functions of the driver that are used here.
struct Driver
{
    decltype(&cuCtxGetCurrent) ctxGetCurrent;
    decltype(&cuCtxGetDevice) ctxGetDevice;
    decltype(&cuDeviceGetAttribute) deviceGetAttribute;
    decltype(&cuFuncSetAttribute) funcSetAttribute;
    decltype(&cuGetErrorName) getErrorName;
    decltype(&cuLaunchKernel) launchKernel;
    decltype(&cuModuleGetFunction) moduleGetFunction;
    decltype(&cuModuleLoadData) moduleLoadData;
    decltype(&cuModuleUnload) moduleUnload;
    Failure failure;
};

Driver openDriver()
{
    Driver driver{};
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
    {
        driver.failure = std::string("no CUDA driver: ") + dlerror();
        return driver;
    }
    auto const find = [&](char const* name, auto& function) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
        if (!function)
        {
            driver.failure = std::string("the CUDA driver has no ") + name;
        }
    };
    find("cuCtxGetCurrent", driver.ctxGetCurrent);
    find("cuCtxGetDevice", driver.ctxGetDevice);
    find("cuDeviceGetAttribute", driver.deviceGetAttribute);
    find("cuFuncSetAttribute", driver.funcSetAttribute);
    find("cuGetErrorName", driver.getErrorName);
    find("cuLaunchKernel", driver.launchKernel);
    find("cuModuleGetFunction", driver.moduleGetFunction);
    find("cuModuleLoadData", driver.moduleLoadData);
    find("cuModuleUnload", driver.moduleUnload);
    return driver;
}

Driver const& driver()
{
    static Driver const opened = openDriver();
    return opened;
}

Failure check(CUresult result, std::string const& what)
{
    if (result == CUDA_SUCCESS)
    {
        return {};
    }
    char const* name = nullptr;
    driver().getErrorName(result, &name);
    return what + ": " + (name ? name : "CUDA error " + std::to_string(result));
}

}  // namespace

class Module
{
public:
    Module(CUmodule module, CUfunction function) : mModule(module), mFunction(function) {}
    Module(Module const&) = delete;
    Module& operator=(Module const&) = delete;

    ~Module()
    {
        // Fails where the process ends and the driver has gone first; then there is nothing left to free.
        driver().moduleUnload(mModule);
    }

    CUfunction function() const { return mFunction; }

private:
    CUmodule mModule;
    CUfunction mFunction;
};

namespace
{

Failure loadAnew(Gpu const& gpu, Build const& build, Launch const& launch, std::shared_ptr<Module>& module)
{
    std::string const name = std::string(launch.entry) + " for sm_" + std::to_string(build.arch);
    CUmodule loaded = nullptr;
    CUresult result = CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (build.arch == gpu.arch)
    {
        result = driver().moduleLoadData(&loaded, edgeattn_blob + launch.cubin);
    }
    if (result != CUDA_SUCCESS)  // another GPU, or a driver that is older than the machine code
    {
        result = driver().moduleLoadData(&loaded, edgeattn_blob + launch.ptx);
    }
    if (result != CUDA_SUCCESS)
    {
        return check(result, "the CUDA driver refuses " + name);
    }
    CUfunction function = nullptr;
    Failure failure = check(driver().moduleGetFunction(&function, loaded, launch.entry), "no " + name);
    if (failure.empty())
    {
        auto const bytes = static_cast<int>(launch.shared);
        failure = check(driver().funcSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes),
            "no shared memory for " + name);
    }
    if (!failure.empty())
    {
        driver().moduleUnload(loaded);
        return failure;
    }
    module = std::make_shared<Module>(loaded, function);
    return {};
}

}  // namespace

Failure currentGpu(Gpu& gpu)
{
    if (!driver().failure.empty())
    {
        return driver().failure;
    }
    CUdevice device = 0;
    int major = 0, minor = 0, shared = 0;
    auto const attribute = [&](int& value, CUdevice_attribute what) {
        return check(driver().deviceGetAttribute(&value, what, device), "no attribute of the GPU");
    };
    Failure failure = check(driver().ctxGetCurrent(&gpu.context), "no CUDA context");
    failure = failure.empty() ? check(driver().ctxGetDevice(&device), "no current GPU") : failure;
    failure = failure.empty() ? attribute(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) : failure;
    failure = failure.empty() ? attribute(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) : failure;
    failure = failure.empty() ? attribute(shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) : failure;
    gpu.arch = 10 * major + minor;
    gpu.shared = static_cast<std::uint32_t>(shared);
    return failure;
}

Failure loadModule(Gpu const& gpu, Build const& build, Launch const& launch, std::shared_ptr<Module>& module)
{
    // Shared by every node and every execution context that runs the same kernel.
    static std::mutex mutex;
    static std::map<std::pair<CUcontext, Launch const*>, std::weak_ptr<Module>> modules;
    std::lock_guard<std::mutex> const lock(mutex);
    std::weak_ptr<Module>& known = modules[{gpu.context, &launch}];
    module = known.lock();
    if (module)
    {
        return {};
    }
    Failure const failure = loadAnew(gpu, build, launch, module);
    known = module;
    return failure;
}

Failure launch(Ready const& ready, std::vector<void*> const& tensors, CUstream stream)
{
    Launch const& launch = *ready.launch;
    std::vector<void*> addresses(tensors);
    std::vector<std::int32_t> integers(ready.integers);
    std::vector<void*> arguments;
    for (std::size_t place = 0; place < launch.arguments.size; ++place)
    {
        std::int32_t const tensor = launch.arguments[place].tensor;
        arguments.push_back(tensor < 0 ? static_cast<void*>(&integers[place]) : &addresses[tensor]);
    }
    return check(driver().launchKernel(ready.module->function(), ready.grid, 1, 1, launch.threads, 1, 1, launch.shared,
                     stream, arguments.data(), nullptr),
        std::string("cannot launch ") + launch.entry);
}

}  // namespace edgeattn
