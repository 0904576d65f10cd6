#include "plugin.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "errors.h"

using namespace nvinfer1;

namespace edgeattn
{

namespace
{

// Triton's kernels load vectors of this many bytes, and index in 32 bits.
constexpr std::uintptr_t kALIGNED = 16;
constexpr std::int64_t kLARGEST = std::numeric_limits<std::int32_t>::max();

[[noreturn]] void fail(std::string const& message)
{
    throw std::runtime_error(message);
}

std::int32_t narrow(std::int64_t value, char const* what)
{
    if (value < 0 || value > kLARGEST)
    {
        fail(std::string(what) + " of " + std::to_string(value) + " does not fit in 31 bits: use smaller shapes");
    }
    return static_cast<std::int32_t>(value);
}

// The build for a GPU: its own, or the PTX of the latest one before it that needs no more shared memory than it has.
Build const* buildFor(Kernel const& kernel, Gpu const& gpu)
{
    Build const* best = nullptr;
    for (Build const& build : kernel.builds)
    {
        bool const small = std::all_of(build.launches.begin(), build.launches.end(),
            [&](Launch const& launch) { return launch.shared <= gpu.shared; });
        bool const runs = build.arch == gpu.arch || (build.forward && build.arch < gpu.arch);
        if (small && runs && (!best || build.arch > best->arch))
        {
            best = &build;
        }
    }
    return best;
}

std::vector<Bounds> boundsOf(DynamicPluginTensorDesc const* inputs, std::int32_t count)
{
    std::vector<Bounds> bounds;
    for (std::int32_t index = 0; index < count; ++index)
    {
        bounds.push_back({inputs[index].min, inputs[index].max});
    }
    return bounds;
}

std::vector<DataType> dtypesOf(DynamicPluginTensorDesc const* inputs, std::int32_t count)
{
    std::vector<DataType> dtypes;
    for (std::int32_t index = 0; index < count; ++index)
    {
        dtypes.push_back(inputs[index].desc.type);
    }
    return dtypes;
}

}  // namespace

AttentionPlugin::AttentionPlugin(Node node) : mNode(std::move(node)), mKernels(candidates(mNode)) {}

AttentionPlugin::AttentionPlugin(AttentionPlugin const& other)
    : IPluginV3(other), IPluginV3OneCore(other), IPluginV3OneBuild(other), IPluginV3OneRuntime(other),
      mNode(other.mNode), mKernels(other.mKernels), mRecorder(other.mRecorder)
{
}

IPluginCapability* AttentionPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* AttentionPlugin::clone() noexcept
{
    return guarded<IPluginV3*>(nullptr, mRecorder, [&] { return new AttentionPlugin(*this); });
}

AsciiChar const* AttentionPlugin::getPluginName() const noexcept
{
    return mNode.op.c_str();
}

AsciiChar const* AttentionPlugin::getPluginVersion() const noexcept
{
    return kVERSION;
}

AsciiChar const* AttentionPlugin::getPluginNamespace() const noexcept
{
    return kNAMESPACE;
}

std::int32_t AttentionPlugin::getNbOutputs() const noexcept
{
    return 1;
}

std::vector<Kernel const*> AttentionPlugin::taking(std::vector<DataType> const& dtypes) const
{
    std::vector<Kernel const*> found;
    std::copy_if(mKernels.begin(), mKernels.end(), std::back_inserter(found), [&](Kernel const* kernel) {
        return std::equal(dtypes.begin(), dtypes.end(), kernel->inputs.begin(), kernel->inputs.end(),
            [](DataType found, Input const& input) { return found == input.dtype; });
    });
    return found;
}

std::int32_t AttentionPlugin::getOutputDataTypes(
    DataType* outputs, std::int32_t nbOutputs, DataType const* inputs, std::int32_t nbInputs) const noexcept
{
    return guarded<std::int32_t>(1, mRecorder, [&] {
        auto const known = taking({inputs, inputs + nbInputs});
        if (known.empty() || nbOutputs != 1)
        {
            fail("no kernel of " + describe(mNode) + " takes inputs of these dtypes");
        }
        outputs[0] = known.front()->dtype;
        return 0;
    });
}

std::int32_t AttentionPlugin::getOutputShapes(DimsExprs const* inputs, std::int32_t nbInputs, DimsExprs const*,
    std::int32_t, DimsExprs* outputs, std::int32_t nbOutputs, IExprBuilder&) noexcept
{
    return guarded<std::int32_t>(1, mRecorder, [&] {
        for (Kernel const* const kernel : mKernels)
        {
            bool const ranks = nbOutputs == 1
                && std::equal(inputs, inputs + nbInputs, kernel->inputs.begin(), kernel->inputs.end(),
                    [](DimsExprs const& found, Input const& input) {
                        return found.nbDims == static_cast<std::int32_t>(input.shape.size);
                    });
            if (ranks)
            {
                outputs[0].nbDims = static_cast<std::int32_t>(kernel->shape.size);
                std::transform(kernel->shape.begin(), kernel->shape.end(), outputs[0].d,
                    [&](Axis const& axis) { return inputs[axis.input].d[axis.axis]; });
                return 0;
            }
        }
        fail("no kernel of " + describe(mNode) + " takes " + std::to_string(nbInputs) + " inputs of these ranks");
    });
}

bool AttentionPlugin::supportsFormatCombination(std::int32_t position, DynamicPluginTensorDesc const* tensors,
    std::int32_t nbInputs, std::int32_t nbOutputs) noexcept
{
    return guarded(false, mRecorder, [&] {
        return tensors[position].desc.format == TensorFormat::kLINEAR && nbOutputs == 1
            && std::any_of(mKernels.begin(), mKernels.end(), [&](Kernel const* kernel) {
                   bool fits = static_cast<std::int32_t>(kernel->inputs.size) == nbInputs;
                   for (std::int32_t index = 0; fits && index <= position; ++index)
                   {
                       DataType const expected = index < nbInputs ? kernel->inputs[index].dtype : kernel->dtype;
                       fits = tensors[index].desc.type == expected;
                   }
                   return fits;
               });
    });
}

std::int32_t AttentionPlugin::configurePlugin(
    DynamicPluginTensorDesc const* inputs, std::int32_t nbInputs, DynamicPluginTensorDesc const*, std::int32_t) noexcept
{
    return guarded<std::int32_t>(1, mRecorder, [&] {
        auto const known = taking(dtypesOf(inputs, nbInputs));
        // Every shape of the profile has to have a kernel; its corners stand for them.
        for (auto const corner : {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::opt,
                 &DynamicPluginTensorDesc::max})
        {
            std::vector<Dims> shapes;
            std::string words;
            for (std::int32_t index = 0; index < nbInputs; ++index)
            {
                shapes.push_back(inputs[index].*corner);
                words += (index ? ", " : "") + describe(shapes.back());
            }
            if (std::none_of(known.begin(), known.end(),
                    [&](Kernel const* kernel) { return openDims(*kernel, shapes).has_value(); }))
            {
                fail("no kernel of " + describe(mNode) + " takes inputs of " + words
                    + "; the library is built for other shapes");
            }
        }
        return 0;
    });
}

std::size_t AttentionPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, std::int32_t nbInputs,
    DynamicPluginTensorDesc const*, std::int32_t) const noexcept
{
    return guarded<std::size_t>(0, mRecorder, [&] {
        std::size_t most = 0;
        for (Kernel const* const kernel : taking(dtypesOf(inputs, nbInputs)))
        {
            auto const dims = largestOpenDims(*kernel, boundsOf(inputs, nbInputs));
            for (std::size_t index = 0; dims && index < kernel->builds.size; ++index)
            {
                most = std::max(most, workspace(kernel->builds[index], dims->data()));
            }
        }
        return most;
    });
}

IPluginV3* AttentionPlugin::attachToContext(IPluginResourceContext* context) noexcept
{
    return guarded<IPluginV3*>(nullptr, mRecorder, [&] {
        auto attached = std::make_unique<AttentionPlugin>(*this);
        attached->mRecorder = context ? context->getErrorRecorder() : nullptr;
        return attached.release();
    });
}

std::int32_t AttentionPlugin::onShapeChange(
    PluginTensorDesc const* inputs, std::int32_t nbInputs, PluginTensorDesc const*, std::int32_t) noexcept
{
    return guarded<std::int32_t>(1, mRecorder, [&] {
        prepare(inputs, nbInputs);
        return 0;
    });
}

void AttentionPlugin::prepare(PluginTensorDesc const* inputs, std::int32_t nbInputs)
{
    std::vector<Dims> shapes;
    std::vector<DataType> dtypes;
    std::string words;
    for (std::int32_t index = 0; index < nbInputs; ++index)
    {
        std::int64_t volume = 1;
        Dims const& shape = inputs[index].dims;
        std::for_each(shape.d, shape.d + shape.nbDims, [&](std::int64_t size) { volume *= size; });
        narrow(volume, "a tensor");
        shapes.push_back(shape);
        dtypes.push_back(inputs[index].type);
        words += (index ? ", " : "") + describe(shape);
    }
    Gpu gpu{};
    Failure const failure = currentGpu(gpu);
    if (!failure.empty())
    {
        fail(failure);
    }
    for (Kernel const* const kernel : taking(dtypes))
    {
        auto const dims = openDims(*kernel, shapes);
        Build const* const build = dims ? buildFor(*kernel, gpu) : nullptr;
        if (build)
        {
            mInputs = kernel->inputs.size;
            return prepareLaunches(gpu, *build, *dims);
        }
    }
    fail("no kernel of " + describe(mNode) + " takes inputs of " + words + " on sm_" + std::to_string(gpu.arch)
        + "; build the library for them, see edgeattn plugins list");
}

void AttentionPlugin::prepareLaunches(Gpu const& gpu, Build const& build, std::vector<std::int64_t> const& dims)
{
    std::vector<Ready> ready;
    for (Launch const& launch : build.launches)
    {
        Ready next{nullptr, &launch, static_cast<std::uint32_t>(narrow(launch.grid(dims.data()), "a grid")), {}};
        for (Argument const& argument : launch.arguments)
        {
            next.integers.push_back(argument.tensor < 0 ? narrow(argument.value(dims.data()), "an argument") : 0);
        }
        Failure const failure = loadModule(gpu, build, launch, next.module);
        if (!failure.empty())
        {
            fail(failure);
        }
        ready.push_back(std::move(next));
    }
    mScratch.clear();
    workspace(build, dims.data(), &mScratch);
    mReady = std::move(ready);
}

std::int32_t AttentionPlugin::enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded<std::int32_t>(1, mRecorder, [&] {
        if (mReady.empty())
        {
            fail(describe(mNode) + " is run before its shapes are known");
        }
        std::vector<void*> tensors;
        for (std::size_t index = 0; index < mInputs; ++index)
        {
            tensors.push_back(const_cast<void*>(inputs[index]));
        }
        tensors.push_back(outputs[0]);
        for (std::size_t const offset : mScratch)
        {
            tensors.push_back(static_cast<char*>(workspace) + offset);
        }
        for (void const* const address : tensors)
        {
            if (reinterpret_cast<std::uintptr_t>(address) % kALIGNED)
            {
                fail("a tensor of " + describe(mNode) + " is not aligned to 16 bytes");
            }
        }
        for (Ready const& ready : mReady)
        {
            Failure const failure = ready.grid ? launch(ready, tensors, stream) : Failure{};
            if (!failure.empty())
            {
                fail(failure);
            }
        }
        return 0;
    });
}

PluginFieldCollection const* AttentionPlugin::getFieldsToSerialize() noexcept
{
    return guarded<PluginFieldCollection const*>(nullptr, mRecorder, [&] {
        mFields.clear();
        for (auto const& [name, value] : mNode.attributes)
        {
            mFields.push_back(value.isText
                    ? PluginField(name.c_str(), value.text.data(), PluginFieldType::kCHAR,
                        static_cast<std::int32_t>(value.text.size()))
                    : PluginField(name.c_str(), &value.number, PluginFieldType::kFLOAT64, 1));
        }
        mCollection = {static_cast<std::int32_t>(mFields.size()), mFields.data()};
        return &mCollection;
    });
}

}  // namespace edgeattn
