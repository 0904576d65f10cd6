// The library's face: one creator for each operator that has kernels, and the functions by which TensorRT finds them.

#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>

#include "errors.h"
#include "plugin.h"

using namespace nvinfer1;

namespace edgeattn
{

namespace
{

double numberIn(PluginField const& field)
{
    auto const read = [&](auto example) {
        std::memcpy(&example, field.data, sizeof(example));
        return static_cast<double>(example);
    };
    switch (field.type)
    {
    case PluginFieldType::kFLOAT32: return read(float{});
    case PluginFieldType::kFLOAT64: return read(double{});
    case PluginFieldType::kINT32: return read(std::int32_t{});
    case PluginFieldType::kINT64: return read(std::int64_t{});
    default: throw std::invalid_argument(std::string("the attribute ") + field.name + " is no number");
    }
}

// A list of integers as the table has it: 3,3,3,3.
std::string textOf(PluginField const& field)
{
    std::string text;
    for (std::int32_t index = 0; index < field.length; ++index)
    {
        text += (index ? "," : "") + std::to_string(static_cast<std::int32_t const*>(field.data)[index]);
    }
    return text;
}

// A field's value, as the table has it: text or a number.
Value valueOf(PluginField const& field, Attribute const& known)
{
    if (known.text && field.type == PluginFieldType::kINT32 && field.data)
    {
        return {true, textOf(field), 0};
    }
    if (known.text)
    {
        auto const* const text = static_cast<char const*>(field.data);
        if (field.type != PluginFieldType::kCHAR || field.length < 0 || (!text && field.length))
        {
            throw std::invalid_argument(std::string("the attribute ") + field.name + " is no text");
        }
        std::size_t const size = field.length ? strnlen(text, field.length) : 0;  // with or without its zero
        return {true, std::string(text ? text : "", size), 0};
    }
    if (!field.data || field.length != 1)
    {
        throw std::invalid_argument(std::string("the attribute ") + field.name + " is no number");
    }
    return {false, {}, numberIn(field)};
}

class Creator final : public IPluginCreatorV3One
{
public:
    explicit Creator(char const* op) : mOp(op), mAttributes(attributesOf(op))
    {
        for (auto const& [name, attribute] : mAttributes)
        {
            auto const type = attribute->text ? PluginFieldType::kCHAR : PluginFieldType::kFLOAT32;
            mFields.emplace_back(name.c_str(), nullptr, type, attribute->text ? 0 : 1);
        }
        mCollection = {static_cast<std::int32_t>(mFields.size()), mFields.data()};
    }

    IPluginV3* createPlugin(
        AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept override
    {
        return guarded<IPluginV3*>(nullptr, nullptr, [&]() -> IPluginV3* {
            Node node{mOp, {}};
            for (std::int32_t index = 0; fields && index < fields->nbFields; ++index)
            {
                PluginField const& field = fields->fields[index];
                auto const known = field.name ? mAttributes.find(field.name) : mAttributes.end();
                if (known != mAttributes.end())
                {
                    node.attributes[field.name] = valueOf(field, *known->second);
                }
            }
            if (candidates(node).empty())
            {
                throw std::invalid_argument(
                    "no kernel of " + describe(node) + " is in this library; see edgeattn plugins list");
            }
            return new AttentionPlugin(std::move(node));
        });
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &mCollection; }
    AsciiChar const* getPluginName() const noexcept override { return mOp; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVERSION; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNAMESPACE; }

private:
    char const* mOp;
    std::map<std::string, Attribute const*> mAttributes;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection{};
};

struct Creators
{
    std::vector<std::unique_ptr<Creator>> owned;
    std::vector<IPluginCreatorInterface*> all;
};

Creators makeCreators()
{
    Creators creators;
    std::set<std::string> seen;
    for (Kernel const& kernel : kernels)
    {
        if (seen.insert(kernel.op).second)
        {
            creators.owned.push_back(std::make_unique<Creator>(kernel.op));
            creators.all.push_back(creators.owned.back().get());
        }
    }
    return creators;
}

}  // namespace

}  // namespace edgeattn

extern "C" __attribute__((visibility("default")))
void setLoggerFinder(ILoggerFinder* finder)
{
    edgeattn::setLoggerFinder(finder);
}

extern "C" __attribute__((visibility("default")))
IPluginCreatorInterface* const* getCreators(std::int32_t& count)
{
    count = 0;
    return edgeattn::guarded<IPluginCreatorInterface* const*>(nullptr, nullptr, [&] {
        static edgeattn::Creators const creators = edgeattn::makeCreators();
        count = static_cast<std::int32_t>(creators.all.size());
        return creators.all.data();
    });
}
