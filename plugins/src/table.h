// What the library knows of its kernels: a table of constants that is generated when the library is built.
//
// A kernel serves every node whose operator, attributes, dtypes and shapes fit its pattern. Dimensions that a pattern
// leaves open have numbers; grids, integers and scratch sizes are functions of their values.
#pragma once

#include <cstddef>
#include <cstdint>

#include <NvInferRuntime.h>

namespace edgeattn
{

// A constant array.
template <typename T>
struct Span
{
    T const* data;
    std::size_t size;

    T const* begin() const { return data; }
    T const* end() const { return data + size; }
    T const& operator[](std::size_t index) const { return data[index]; }
};

// A size, given the values of the open dimensions.
using Expression = std::int64_t (*)(std::int64_t const* dims);

// What the node must carry: text, or a number where text is null.
struct Attribute
{
    char const* name;
    char const* text;
    double number;
};

// One input. A size of -1 - i is the open dimension number i, the same wherever it stands.
struct Input
{
    char const* name;
    nvinfer1::DataType dtype;
    Span<std::int64_t> shape;
};

// Where an axis of the output gets its size: the axis of an input.
struct Axis
{
    std::int32_t input;
    std::int32_t axis;
};

// One argument of a launch: the address of a tensor, or where that is negative an int32. Tensors are numbered inputs
// first, then the output, then scratch.
struct Argument
{
    std::int32_t tensor;
    Expression value;
};

// Machine code and PTX, by place in the blob; the PTX is null-terminated.
struct Launch
{
    char const* entry;
    std::uint32_t threads;
    std::uint32_t shared;
    Expression grid;
    Span<Argument> arguments;
    std::size_t cubin;
    std::size_t ptx;
};

// A kernel's launches as compiled for one compute capability. Scratch counts float32 elements.
struct Build
{
    std::int32_t arch;
    bool forward;  // its PTX also runs on later GPUs
    Span<Expression> scratch;
    Span<Launch> launches;
};

struct Kernel
{
    char const* op;
    Span<Attribute> attributes;
    Span<Input> inputs;
    nvinfer1::DataType dtype;  // of the output
    Span<Axis> shape;
    std::int32_t open;  // how many open dimensions there are
    Span<Build> builds;
};

extern Span<Kernel> const kernels;
extern "C" unsigned char const edgeattn_blob[];

inline std::int64_t cdiv(std::int64_t size, std::int64_t by)
{
    return (size + by - 1) / by;
}

}  // namespace edgeattn
