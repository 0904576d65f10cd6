// The objects that TensorRT hands to plugins, as far as plugins use them; they keep what they are told.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

using namespace nvinfer1;

inline std::vector<std::string> logged;
inline std::vector<std::string> recorded;

class Logger final : public ILogger
{
public:
    void log(Severity, AsciiChar const* text) noexcept override { logged.push_back(text); }
};

inline Logger logger;

class LoggerFinder final : public ILoggerFinder
{
public:
#if NV_TENSORRT_MAJOR >= 11
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
#endif
    ILogger* findLogger() override { return &logger; }
};

inline LoggerFinder loggerFinder;

class Recorder final : public IErrorRecorder
{
public:
    std::int32_t getNbErrors() const noexcept override { return static_cast<std::int32_t>(recorded.size()); }
    ErrorCode getErrorCode(std::int32_t) const noexcept override { return ErrorCode::kFAILED_EXECUTION; }
    ErrorDesc getErrorDesc(std::int32_t index) const noexcept override { return recorded[index].c_str(); }
    bool hasOverflowed() const noexcept override { return false; }
    void clear() noexcept override { recorded.clear(); }
    bool reportError(ErrorCode, ErrorDesc text) noexcept override
    {
        recorded.push_back(text);
        return true;
    }
    RefCount incRefCount() noexcept override { return 1; }
    RefCount decRefCount() noexcept override { return 1; }
};

inline Recorder recorder;

class Context final : public IPluginResourceContext
{
public:
    ~Context() noexcept override = default;
    IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    IErrorRecorder* getErrorRecorder() const noexcept override { return &recorder; }
};

inline Context context;

// A dimension with a name: what the plugin makes of it must be the same object, or one that the builder made.
class Symbol final : public IDimensionExpr, public apiv::VDimensionExpr
{
public:
    explicit Symbol(std::string text) : text(std::move(text)) { mImpl = this; }
    bool isConstant() const override { return text.find_first_not_of("0123456789") == std::string::npos; }
    std::int64_t getConstantValue() const override { return isConstant() ? std::stoll(text) : -1; }
    bool isSizeTensor() const override { return false; }
    std::string text;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder
{
public:
    Builder() { mImpl = this; }
    IDimensionExpr const* constant(std::int64_t value) override { return symbol(std::to_string(value)); }
    IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) override
    {
        return symbol("computed");
    }
    IDimensionExpr const* declareSizeTensor(std::int32_t, IDimensionExpr const&, IDimensionExpr const&) override
    {
        return nullptr;
    }
    IDimensionExpr const* symbol(std::string const& text) { return &symbols.emplace_back(text); }
    std::deque<Symbol> symbols;
};
