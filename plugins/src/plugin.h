// An attention as TensorRT sees it: shapes, formats and workspace from the table, launches through the driver.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "driver.h"
#include "node.h"

namespace edgeattn
{

constexpr char const* kNAMESPACE = "edgeattn";
constexpr char const* kVERSION = "1";

class AttentionPlugin final : public nvinfer1::IPluginV3,
                              public nvinfer1::IPluginV3OneCore,
                              public nvinfer1::IPluginV3OneBuild,
                              public nvinfer1::IPluginV3OneRuntime
{
public:
    explicit AttentionPlugin(Node node);
    AttentionPlugin(AttentionPlugin const& other);
    AttentionPlugin& operator=(AttentionPlugin const&) = delete;
    ~AttentionPlugin() override = default;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    std::int32_t getNbOutputs() const noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t nbOutputs,
        nvinfer1::DataType const* inputs, std::int32_t nbInputs) const noexcept override;
    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t nbInputs,
        nvinfer1::DimsExprs const* shapeInputs, std::int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs,
        std::int32_t nbOutputs, nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
        std::int32_t nbInputs, std::int32_t nbOutputs) noexcept override;
    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, std::int32_t nbOutputs) noexcept override;
    std::size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, std::int32_t nbOutputs) const noexcept override;

    // IPluginV3OneRuntime
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, std::int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* outputs, std::int32_t nbOutputs) noexcept override;
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    // The kernels of this node that take inputs of these dtypes.
    std::vector<Kernel const*> taking(std::vector<nvinfer1::DataType> const& dtypes) const;

    // Choose a kernel for shapes and the current GPU, and make its launches ready.
    void prepare(nvinfer1::PluginTensorDesc const* inputs, std::int32_t nbInputs);
    void prepareLaunches(Gpu const& gpu, Build const& build, std::vector<std::int64_t> const& dims);

    Node mNode;
    std::vector<Kernel const*> mKernels;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
    nvinfer1::IErrorRecorder* mRecorder{nullptr};

    // Of the current shapes.
    std::vector<Ready> mReady;
    std::vector<std::size_t> mScratch;  // where each begins in the workspace
    std::size_t mInputs{0};
};

}  // namespace edgeattn
