"""What is known of a tensor before it exists: its name, dtype and shape; and the one dtype table."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeattn.errors import InputError, UsageError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Feeds = Mapping[str, Array]

Dim = int | str
Shape = tuple[int, ...]
DEFAULT_MAX_BATCH = 8
MAX_ELEMENTS = 2**31 - 1  # of one tensor in TensorRT


@dataclass(frozen=True)
class DType:
    """One row of the dtype table: `name` is numpy's (or ml_dtypes') name, `onnx` the TensorProto code."""

    name: str
    short: str
    onnx: int
    bits: int


DTYPES = (
    DType("float32", "fp32", 1, 32),
    DType("uint8", "uint8", 2, 8),
    DType("int8", "int8", 3, 8),
    DType("uint16", "uint16", 4, 16),
    DType("int16", "int16", 5, 16),
    DType("int32", "int32", 6, 32),
    DType("int64", "int64", 7, 64),
    DType("bool", "bool", 9, 8),
    DType("float16", "fp16", 10, 16),
    DType("float64", "fp64", 11, 64),
    DType("uint32", "uint32", 12, 32),
    DType("uint64", "uint64", 13, 64),
    DType("bfloat16", "bf16", 16, 16),
    DType("float8_e4m3fn", "fp8", 17, 8),
)


def dtype_named(name: str) -> DType:
    """Find a dtype by its numpy name (`float16`) or its short one (`fp16`).

    Raises:
        UsageError: no dtype has that name.
    """
    for row in DTYPES:
        if name in (row.name, row.short):
            return row
    raise UsageError(f"unknown dtype {name!r}; known: {', '.join(row.name for row in DTYPES)}")


@functools.cache  # asked for every input of every run
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name in the table; bfloat16 and float8 come from ml_dtypes."""
    import numpy as np

    name = dtype_named(name).name
    if name in ("bfloat16", "float8_e4m3fn"):
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return extended
    return np.dtype(name)


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output.

    A dimension is an int, or the name of a dynamic one; `shape` is None where not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def is_static(self) -> bool:
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {format_shape(self.shape)}"


def format_shape(shape: Sequence[Dim] | None) -> str:
    """`(1, 3, 'h')` as `1x3xh`, a scalar as `scalar`, an unknown rank as `unknown rank`."""
    if shape is None:
        return "unknown rank"
    return "x".join(str(dim) for dim in shape) or "scalar"


@dataclass(frozen=True)
class ShapeRange:
    """The shapes an engine accepts for one input: an optimisation profile in TensorRT's words.

    Raises:
        UsageError: ranks differ, a dimension is below 1, not min <= opt <= max, or max holds over 2^31 - 1 elements.
    """

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        ordered = all(1 <= low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=False))
        if not (len(self.min) == len(self.opt) == len(self.max)) or not ordered:
            raise UsageError(f"not a range of shapes: {self}; expected 1 <= min <= opt <= max in every dimension")
        if math.prod(self.max) > MAX_ELEMENTS:
            raise UsageError(f"not a range of shapes: {self}; at most {MAX_ELEMENTS} elements, which TensorRT takes")

    @property
    def is_static(self) -> bool:
        return self.min == self.max

    def contains(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.min) and all(
            low <= dim <= high for low, dim, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        if self.is_static:
            return format_shape(self.opt)
        return f"{format_shape(self.min)} .. {format_shape(self.opt)} .. {format_shape(self.max)}"


Profile = Mapping[str, ShapeRange]


def parse_shape(text: str) -> Shape:
    """Read `1x3x224x224`, `[1,3,224,224]` or `(1, 3, 224, 224)`.

    Raises:
        UsageError: anything else, or a dimension below 1.
    """
    dims = re.split(r"\s*,\s*" if "," in text else r"\s*x\s*", text.strip().strip("[]()"))
    if not all(re.fullmatch(r"[1-9][0-9]{0,17}", dim) for dim in dims):
        raise UsageError(f"not a shape: {text!r}; expected for example 1x3x224x224")
    return tuple(int(dim) for dim in dims)


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read `x:1x3x224x224,y:1x10`, `x:[1,3,224,224]`, or a bare shape under the name `""` for the only input.

    Raises:
        UsageError: not of that form, or one name twice.
    """
    shapes: dict[str, Shape] = {}
    for part in re.split(r",(?![^\[(]*[\])])(?=[^,]*:)", text):
        name, colon, shape = part.rpartition(":")
        name = name.strip()
        if name in shapes or (colon and not name):
            raise UsageError(f"not a list of shapes: {text!r}; expected for example x:1x3x224x224,y:1x10")
        shapes[name] = parse_shape(shape)
    return shapes


def parse_size(text: str) -> int:
    """Read `2GiB`, `512MiB` or `1.5GB` as bytes. A bare number is refused: tools disagree on its unit.

    Raises:
        UsageError: not a size with a unit.
    """
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]+)", text.strip())
    unit = {name.lower(): value for name, value in units.items()}.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"not a size: {text!r}; expected a number with a unit, for example 2GiB or 512MiB")
    return int(float(match[1]) * unit)


def format_size(size_bytes: float) -> str:
    """1536 as `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.2f} GiB"


def resolve_profile(
    inputs: Sequence[TensorSpec],
    min_shapes: Mapping[str, Shape] | None = None,
    opt_shapes: Mapping[str, Shape] | None = None,
    max_shapes: Mapping[str, Shape] | None = None,
) -> dict[str, ShapeRange]:
    """The range of every input, from what was asked and what the graph fixes.

    As with trtexec, a missing min or max equals opt. Where nothing was asked, a dynamic first axis is a batch
    of 1 .. 1 .. 8; any other dynamic axis has to be asked for.

    Raises:
        UsageError: an unknown input, a shape that the graph does not admit, or a dynamic axis without a range.
    """
    asked = [_named(inputs, shapes or {}) for shapes in (min_shapes, opt_shapes, max_shapes)]
    profile = {}
    for spec in inputs:
        low, mid, high = (shapes.get(spec.name) for shapes in asked)
        given = mid or high or low
        if given is None:
            profile[spec.name] = _default_range(spec)
            continue
        mid = mid or given
        profile[spec.name] = ShapeRange(low or mid, mid, high or mid)
        for shape in (low, mid, high):
            if shape is not None and not _admits(spec, shape):
                raise UsageError(f"input {spec}: the graph does not admit {format_shape(shape)}")
    return profile


def _named(inputs: Sequence[TensorSpec], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    names = [spec.name for spec in inputs]
    if "" in shapes and len(names) != 1:
        raise UsageError(f"the model has {len(names)} inputs ({', '.join(names)}): write NAME:SHAPE for each")
    named = {name or names[0]: shape for name, shape in shapes.items()}
    for name in named:
        if name not in names:
            raise UsageError(f"the model has no input {name!r}; its inputs: {', '.join(names)}")
    return named


def _default_range(spec: TensorSpec) -> ShapeRange:
    fixed = [dim for dim in (spec.shape or ())[1:] if isinstance(dim, int)]
    if spec.shape is None or len(fixed) < len(spec.shape) - 1:
        raise UsageError(f"input {spec} has dynamic dimensions: give --opt-shapes (and --min-shapes, --max-shapes)")
    if spec.is_static:
        static = tuple(int(dim) for dim in spec.shape)
        return ShapeRange(static, static, static)
    return ShapeRange((1, *fixed), (1, *fixed), (DEFAULT_MAX_BATCH, *fixed))


def _admits(spec: TensorSpec, shape: Shape) -> bool:
    return spec.shape is None or (
        len(shape) == len(spec.shape)
        and all(not isinstance(have, int) or have == want for have, want in zip(spec.shape, shape, strict=True))
    )


def corners(profile: Profile) -> Iterator[dict[str, Shape]]:
    """The shapes at which an engine is checked: min, opt, max, and opt at batch 1, 2 and max where the range allows.

    Batch is the first axis of every input whose first axis is dynamic; equal combinations come once.
    """

    def at_batch(size: int) -> dict[str, Shape]:
        return {name: (size, *spread.opt[1:]) if _ranges(spread) else spread.opt for name, spread in profile.items()}

    seen = []
    for shapes in (
        {name: spread.min for name, spread in profile.items()},
        {name: spread.opt for name, spread in profile.items()},
        {name: spread.max for name, spread in profile.items()},
        at_batch(1),
        at_batch(2),
        at_batch(min((spread.max[0] for spread in profile.values() if _ranges(spread)), default=1)),
    ):
        allowed = all(profile[name].contains(shape) for name, shape in shapes.items())
        if allowed and shapes not in seen:
            seen.append(shapes)
            yield shapes


def _ranges(spread: ShapeRange) -> bool:
    """Whether the batch does."""
    return bool(spread.opt) and spread.min[0] != spread.max[0]


def check_feeds(inputs: Sequence[TensorSpec], profile: Profile, feeds: Feeds) -> dict[str, Array]:
    """Check that feeds fit an engine's inputs, and return them contiguous: the one place where feeds are checked.

    Raises:
        InputError: a missing or unknown name, another dtype, or a shape outside the engine's range.
    """
    import numpy as np

    names = [spec.name for spec in inputs]
    if feeds.keys() != set(names):
        for name in feeds:
            if name not in names:
                raise InputError(f"unknown input {name!r}; expected {', '.join(names)}")
        lacking = next(name for name in names if name not in feeds)
        raise InputError(f"missing input {lacking!r}; got {', '.join(feeds) or 'none'}")
    checked = {}
    for name, spec in zip(names, inputs, strict=True):
        try:
            array = np.asarray(feeds[name])
        except (ValueError, TypeError, RuntimeError) as err:  # ragged lists, tensors that cannot be numpy's
            raise InputError(f"input {name!r} is no array: {one_line(err)}") from err
        spread = profile.get(name)
        if array.dtype != numpy_dtype(spec.dtype):
            raise InputError(f"input {name!r}: expected {spec.dtype}, got {array.dtype}; convert it with astype")
        if not (spread.contains(array.shape) if spread else _admits(spec, array.shape)):
            expected = str(spread) if spread else format_shape(spec.shape)
            raise InputError(f"input {name!r}: expected shape {expected}, got {format_shape(array.shape)}")
        array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        checked[name] = array.view(numpy_dtype(spec.dtype))  # C's long long equals int64, but OpenVINO knows one only
    return checked


Usual = tuple[tuple[str, Shape, "np.dtype[Any]"], ...]


def usual_feeds(inputs: Sequence[TensorSpec], profile: Profile) -> Usual:
    """What most feeds of an engine are: arrays at the optimal shapes, by name, shape and dtype."""
    shapes = (profile[spec.name].opt if spec.name in profile else (-1,) for spec in inputs)  # as no array is
    return tuple((spec.name, shape, numpy_dtype(spec.dtype)) for spec, shape in zip(inputs, shapes, strict=True))


def are_usual(feeds: Feeds, usual: Usual) -> bool:
    """Whether feeds need no other check: seen in a microsecond or two, which engines of 0.3 ms notice."""
    for name, shape, dtype in usual:
        array: Any = feeds.get(name)
        if type(array) is not _array_type() or array.shape != shape or array.dtype is not dtype:
            return False
        if not array.flags.c_contiguous:
            return False
    return len(feeds) == len(usual)


@functools.cache
def _array_type() -> Any:
    """NumPy's arrays alone: no subclass, and none of another library that looks alike but lies on a GPU."""
    import numpy as np

    return np.ndarray


def random_feeds(inputs: Sequence[TensorSpec], shapes: Mapping[str, Shape], seed: int) -> dict[str, Array]:
    """Seeded feeds of the given shapes: whole numbers 0 or 1, booleans, and floats from N(mean, 1).

    The mean is 0, 1 or -1 by the seed, so that a branch on the sign of the data goes both ways.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    mean = (0, 1, -1)[seed % 3]
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape, floating = shapes[spec.name], "float" in spec.dtype
        values = generator.normal(mean, 1, shape) if floating else generator.integers(0, 2, shape)
        feeds[spec.name] = np.asarray(values).astype(numpy_dtype(spec.dtype))
    return feeds
