#include "node.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace edgeattn
{

namespace
{

// What the allocator of the CUDA runtime guarantees, and TensorRT of its own tensors.
constexpr std::size_t kALIGNMENT = 256;

// What exporters make of one scale differs in its last digits.
constexpr double kCLOSE = 1e-6;

bool equal(Attribute const& expected, Value const& found)
{
    return found.isText ? expected.text && found.text == expected.text
                        : !expected.text && std::abs(found.number - expected.number) <= kCLOSE * std::abs(found.number);
}

bool fits(Kernel const& kernel, Node const& node)
{
    return node.op == kernel.op && node.attributes.size() == kernel.attributes.size
        && std::all_of(kernel.attributes.begin(), kernel.attributes.end(), [&](Attribute const& expected) {
               auto const found = node.attributes.find(expected.name);
               return found != node.attributes.end() && equal(expected, found->second);
           });
}

}  // namespace

std::vector<Kernel const*> candidates(Node const& node)
{
    std::vector<Kernel const*> found;
    for (Kernel const& kernel : kernels)
    {
        if (fits(kernel, node))
        {
            found.push_back(&kernel);
        }
    }
    std::stable_sort(
        found.begin(), found.end(), [](Kernel const* left, Kernel const* right) { return left->open < right->open; });
    return found;
}

std::optional<std::vector<std::int64_t>> openDims(Kernel const& kernel, std::vector<nvinfer1::Dims> const& shapes)
{
    std::vector<Bounds> bounds;
    for (nvinfer1::Dims const& shape : shapes)
    {
        bounds.push_back({shape, shape});
    }
    return largestOpenDims(kernel, bounds);
}

std::optional<std::vector<std::int64_t>> largestOpenDims(Kernel const& kernel, std::vector<Bounds> const& bounds)
{
    if (bounds.size() != kernel.inputs.size)
    {
        return std::nullopt;
    }
    // Of each open dimension, the sizes that all its places allow.
    std::vector<std::int64_t> low(kernel.open, 0), high(kernel.open, INT64_MAX);
    for (std::size_t input = 0; input < bounds.size(); ++input)
    {
        Span<std::int64_t> const pattern = kernel.inputs[input].shape;
        auto const& [min, max] = bounds[input];
        if (min.nbDims != static_cast<std::int32_t>(pattern.size) || max.nbDims != min.nbDims)
        {
            return std::nullopt;
        }
        for (std::size_t axis = 0; axis < pattern.size; ++axis)
        {
            std::int64_t const size = pattern[axis];
            std::int64_t const least = size < 0 ? std::max<std::int64_t>(low[-1 - size], min.d[axis]) : size;
            std::int64_t const most = size < 0 ? std::min<std::int64_t>(high[-1 - size], max.d[axis]) : size;
            if (least > most || least < min.d[axis] || most > max.d[axis])
            {
                return std::nullopt;
            }
            if (size < 0)
            {
                low[-1 - size] = least;
                high[-1 - size] = most;
            }
        }
    }
    return high;
}

std::size_t workspace(Build const& build, std::int64_t const* dims, std::vector<std::size_t>* offsets)
{
    std::size_t total = 0;
    for (Expression const count : build.scratch)
    {
        if (offsets)
        {
            offsets->push_back(total);
        }
        std::size_t const bytes = sizeof(float) * static_cast<std::size_t>(count(dims));
        total += (bytes + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT;
    }
    return total;
}

std::map<std::string, Attribute const*> attributesOf(std::string const& op)
{
    std::map<std::string, Attribute const*> found;
    for (Kernel const& kernel : kernels)
    {
        for (Attribute const& attribute : kernel.attributes)
        {
            if (op == kernel.op)
            {
                found.emplace(attribute.name, &attribute);
            }
        }
    }
    return found;
}

std::string describe(Node const& node)
{
    std::ostringstream text;
    text << node.op << '(';
    char const* comma = "";
    for (auto const& [name, value] : node.attributes)
    {
        text << comma << name << '=';
        value.isText ? text << '"' << value.text << '"' : text << value.number;
        comma = ", ";
    }
    text << ')';
    return text.str();
}

std::string describe(nvinfer1::Dims const& shape)
{
    std::string text;
    for (std::int32_t axis = 0; axis < shape.nbDims; ++axis)
    {
        text += (axis ? "x" : "") + std::to_string(shape.d[axis]);
    }
    return text;
}

}  // namespace edgeattn
