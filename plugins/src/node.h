// A node as the table is asked about it: operator and attributes, then dtypes and shapes. No TensorRT object, no GPU.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "table.h"

namespace edgeattn
{

// An attribute's value: text, or a number.
struct Value
{
    bool isText;
    std::string text;
    double number;
};

struct Node
{
    std::string op;
    std::map<std::string, Value> attributes;
};

// The smallest and the largest shape of a tensor, equal where it is known.
struct Bounds
{
    nvinfer1::Dims min;
    nvinfer1::Dims max;
};

// The table's kernels with this operator and exactly these attributes, the most special first.
std::vector<Kernel const*> candidates(Node const& node);

// The values of a kernel's open dimensions, or nothing where the shapes do not fit it.
std::optional<std::vector<std::int64_t>> openDims(Kernel const& kernel, std::vector<nvinfer1::Dims> const& shapes);

// The same at the largest shapes, where some shape within the bounds fits.
std::optional<std::vector<std::int64_t>> largestOpenDims(Kernel const& kernel, std::vector<Bounds> const& bounds);

// Bytes of workspace for a build's scratch tensors, each aligned; `offsets` gets where they begin.
std::size_t workspace(Build const& build, std::int64_t const* dims, std::vector<std::size_t>* offsets = nullptr);

// The attributes of all kernels of an operator, by name.
std::map<std::string, Attribute const*> attributesOf(std::string const& op);

// The node in words, for messages.
std::string describe(Node const& node);

std::string describe(nvinfer1::Dims const& shape);

}  // namespace edgeattn
