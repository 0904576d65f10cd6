"""The search for spatial transformers: whether the grid that a GridSample reads is an affine map of fixed positions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.base import Tape
from edgeattn.ops.layers import Unlike, parameter
from edgeattn.ops.layout import Dim, same
from edgeattn.ops.roles import Roles, back, extents

if TYPE_CHECKING:
    from edgeattn.tensors import Array

Make = Callable[[Tape], ir.Value]
Operand = tuple[ir.Value, Roles]

MOVES = ("Expand", "Tile", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Cast")
KEPT = ("", "h", "w", "hw", "j")  # the axes that positions have


@dataclass(frozen=True)
class Affine:
    """A grid (B, H', W', 2) taken apart: `theta` (B, 2, 3), the positions `xs` (W') and `ys` (H')."""

    source: ir.Value
    theta: Make
    xs: Make
    ys: Make


def affine(grid: ir.Value, batch: Dim) -> Affine:
    """Take apart the grid that samples a batch of this size.

    Raises:
        Unlike: it does not come from an affine matrix, or that is not certain.
    """
    shape = walk.dims(grid)
    if shape is None or len(shape) != 4:
        raise Unlike(f"the grid is of shape {shape}, expected (B, H, W, 2): a map is sampled")
    sizes: dict[str, Dim] = dict(zip("bhwkj", (batch, *shape[1:3], 2, 3), strict=True))
    node, roles = _product(grid, ("b", "h", "w", "k"), sizes)
    if node.op_type == "AffineGrid":
        if roles != ("b", "h", "w", "k"):
            raise Unlike(f"the grid of {node.name} is laid out anew before it is sampled")
        return _operator(node, shape)
    matrix, base = _operands(node, roles)
    source, theta, count = _matrix(*matrix, sizes)
    return Affine(source, theta, *_positions(*base, sizes, count))


def _product(value: ir.Value, roles: Roles, sizes: dict[str, Dim]) -> tuple[ir.Node, Roles]:
    """The node that makes the grid, behind what only lays it out, and the roles of its result."""
    while True:
        node = walk.made_by(value)
        if node is None or not node.inputs or node.inputs[0] is None:
            kind = "a constant" if walk.constant(value) is not None else "no product"
            raise Unlike(f"the grid {value.name!r} is {kind}, expected an affine matrix times fixed positions")
        if node.op_type in ("AffineGrid", "MatMul", "Einsum") or _summed(node) is not None:
            return node, roles
        found = back(node, roles, sizes)
        if found is None:
            raise Unlike(
                f"the grid comes from {node.op_type} {node.name}, expected an affine matrix times fixed positions"
            )
        value, roles = node.inputs[0], found


def _summed(node: ir.Node) -> ir.Node | None:
    """The product whose sum over one axis a node is."""
    product = walk.made_by(node.inputs[0], "Mul") if node.op_type == "ReduceSum" else None
    rank = len(walk.dims(node.inputs[0]) or ())
    axes = walk.axes_of(node, rank) if product is not None and rank else None
    return product if axes is not None and len(axes) == 1 and not walk.integer(node, "keepdims", 1) else None


def _operands(node: ir.Node, roles: Roles) -> tuple[Operand, Operand]:
    """The matrix and the positions, each with the roles of its axes; "j" is the axis that is summed over."""
    product, inputs = _summed(node), [item for item in node.inputs if item is not None]
    if product is not None:
        (axis,) = walk.axes_of(node, len(roles) + 1) or (0,)
        inputs = [item for item in product.inputs if item is not None]
        parts = [(*roles[:axis], "j", *roles[axis:])] * 2
    elif node.op_type == "MatMul":
        parts = [(*roles[:-1], "j"), (*roles[:-2], "j", roles[-1])]
    else:
        parts = _lettered(node, roles)
    operands: list[Operand] = []
    for value, part in zip(inputs, parts, strict=False):
        shape = walk.dims(value)
        if shape is None or len(shape) > len(part):
            break
        operands.append((value, part[len(part) - len(shape) :]))
    matrices = [place for place, (value, part) in enumerate(operands) if _size(value, part, "k") == 2]
    if len(operands) != 2 or len(matrices) != 1:
        raise Unlike(f"{node.op_type} {node.name} does not multiply a matrix with positions")
    return operands[matrices[0]], operands[1 - matrices[0]]


def _lettered(node: ir.Node, roles: Roles) -> list[Roles]:
    """The roles of an Einsum's operands."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    summed = set(terms) - set(result) - {","}
    plain = all(len(set(term)) == len(term) for term in terms.split(","))
    if not arrow or "." in equation or len(result) != len(roles) or len(summed) != 1 or not plain:
        raise Unlike(f"Einsum {node.name} is {equation}, expected a matrix times positions")
    names = {**dict(zip(result, roles, strict=True)), summed.pop(): "j"}
    return [tuple(names[letter] for letter in term) for term in terms.split(",")]


def _require_computed(matrix: ir.Value) -> None:
    """Raise Unlike for a matrix that does not depend on the input: that resamples, and attends to nothing."""
    value: ir.Value | None = matrix
    while (node := walk.made_by(value, *MOVES)) is not None:
        value = node.inputs[0]
    if walk.constant(value) is not None:
        raise Unlike(f"the matrix {matrix.name!r} is a constant, expected one that is computed")


def _size(value: ir.Value, roles: Roles, role: str) -> Dim:
    shape = walk.dims(value) or ()
    return shape[roles.index(role)] if role in roles else None


def _without(value: ir.Value, roles: Roles, kept: Collection[str]) -> Roles:
    """The roles of an operand whose other axes only broadcast.

    Raises:
        Unlike: one of those is not of size one.
    """
    for role, size in zip(roles, walk.dims(value) or (), strict=True):
        if role not in kept and size != 1:
            raise Unlike(f"{value.name!r} of shape {walk.dims(value)} is not the same over the whole map")
    return tuple(role if role in kept else "" for role in roles)


def _matrix(value: ir.Value, roles: Roles, sizes: dict[str, Dim]) -> tuple[ir.Value, Make, Dim]:
    """(tensor, what makes it (B, 2, 3), B) of the matrix in a product."""
    roles = _without(value, roles, ("", "b", "k", "j"))
    if sorted("".join(roles)) != ["b", "j", "k"] or _size(value, roles, "j") != 3:
        raise Unlike(f"the matrix is {value.name!r} of shape {walk.dims(value)}, expected (B, 2, 3)")
    _require_computed(value)
    while roles != ("b", "k", "j") and (node := walk.made_by(value)) is not None and node.inputs[0] is not None:
        found = back(node, roles, sizes) if node.op_type not in ("Expand", "Tile") else None
        if found is None or sorted("".join(found)) != ["b", "j", "k"]:
            break
        value, roles = node.inputs[0], found
    if any(len(role) > 1 for role in roles):
        raise Unlike(f"the matrix is {value.name!r} of shape {walk.dims(value)}, expected (B, 2, 3)")

    def make(tape: Tape) -> ir.Value:
        ones, three = [axis for axis, role in enumerate(roles) if not role], [role for role in roles if role]
        made = tape.op("Squeeze", [value, tape.constant(np.array(ones))]) if ones else value
        order = [three.index(role) for role in "bkj"]
        return tape.op("Transpose", [made], perm=order) if order != [0, 1, 2] else made

    return value, make, _size(value, roles, "b")


# Positions


def _positions(value: ir.Value, roles: Roles, sizes: dict[str, Dim], matrices: Dim) -> tuple[Make, Make]:
    """(xs, ys) if a tensor holds (xs[w], ys[h], 1) for every place.

    Raises:
        Unlike: it does not, or not certainly.
    """
    while True:
        array, node = parameter(value), walk.made_by(value)
        whole = same(matrices, sizes["b"])
        roles = _without(value, roles, KEPT if array is not None and not whole else ("b", *KEPT))
        if _size(value, roles, "b") == 1:
            roles = tuple("" if role == "b" else role for role in roles)
        if array is not None:
            return _of_constant(value, array, roles, sizes)
        if node is not None and node.op_type == "Concat" and roles[walk.integer(node, "axis", 0)] == "j":
            return _of_parts(node, _without(value, roles, KEPT), sizes)
        found = back(node, roles, sizes) if node is not None else None
        if found is None or node is None or node.inputs[0] is None:
            raise Unlike(f"the positions come from {value.name!r}, expected (x, y, 1) of a regular grid")
        if _size(value, roles, "b") not in (None, 1) and "b" not in found and not whole:
            raise Unlike(f"there are {matrices} matrices, expected one for each of {sizes['b']} samples")
        value, roles = node.inputs[0], found


def _of_constant(value: ir.Value, array: Array, roles: Roles, sizes: dict[str, Dim]) -> tuple[Make, Make]:
    H, W = sizes["h"], sizes["w"]
    area = H * W if isinstance(H, int) and isinstance(W, int) else None
    shape = {role: size for role, size in zip(roles, array.shape, strict=True) if role}
    whole = {"h": H, "w": W, "j": 3} if "hw" not in shape else {"hw": area, "j": 3}
    if not isinstance(H, int) or not isinstance(W, int) or {**shape, "b": 1} != {**whole, "b": 1}:
        raise Unlike(f"the positions {value.name!r} are of shape {array.shape}, expected ({H}, {W}, 3)")
    order = [list(shape).index(role) for role in ("b", "hw", "h", "w", "j") if role in shape]
    places = array.reshape(list(shape.values())).transpose(order).reshape(-1, H, W, 3)
    xs, ys = places[0, 0, :, 0].copy(), places[0, :, 0, 1].copy()
    x, y, one = np.moveaxis(places, -1, 0)
    if not ((x == xs).all() and (y == ys[:, None]).all() and (one == 1).all()):
        raise Unlike(f"the positions {value.name!r} are not (x, y, 1) of a regular grid")
    return lambda tape: tape.constant(xs), lambda tape: tape.constant(ys)


def _of_parts(node: ir.Node, roles: Roles, sizes: dict[str, Dim]) -> tuple[Make, Make]:
    """From x, y and 1 that a Concat puts side by side."""
    parts = tuple("" if role == "j" else role for role in roles)
    planes = [item for item in node.inputs if item is not None]
    sides = [(walk.dims(item) or ())[roles.index("j")] for item in planes]
    if sides != [1, 1, 1] or not _is_one(planes[2]):
        raise Unlike(f"{node.op_type} {node.name} does not put x, y and 1 side by side")
    return _line(planes[0], parts, "w", sizes), _line(planes[1], parts, "h", sizes)


def _line(value: ir.Value, roles: Roles, letter: str, sizes: dict[str, Dim]) -> Make:
    """The vector along one axis that a plane repeats along the other."""
    while True:
        array, node = parameter(value), walk.made_by(value)
        if array is not None:
            return _line_of_constant(value, array, roles, letter, sizes)
        if "".join(roles) == letter and len(roles) == 1:
            if extents(value) != (sizes[letter],):
                raise Unlike(f"{value.name!r} holds {extents(value)} positions, expected {sizes[letter]}")
            return lambda tape: value
        found = back(node, roles, sizes) if node is not None else None
        if found is None or node is None or node.inputs[0] is None:
            raise Unlike(f"{value.name!r} is not known to change along one axis: not (x, y, 1) of a regular grid")
        value, roles = node.inputs[0], found


def _line_of_constant(value: ir.Value, array: Array, roles: Roles, letter: str, sizes: dict[str, Dim]) -> Make:
    shapes = {"h": (sizes["h"], 1), "w": (1, sizes["w"]), "hw": (sizes["h"], sizes["w"])}
    H, W = shapes.get("".join(roles), (None, None))
    whole = isinstance(H, int) and isinstance(W, int) and array.size == H * W
    plane = array.reshape(H, W) if whole else np.zeros((0, 0))  # type: ignore[arg-type]
    line = plane[:1] if letter == "w" else plane[:, :1]
    if not (plane == line).all() or line.size != sizes[letter]:
        raise Unlike(f"the positions {value.name!r} are not (x, y, 1) of a regular grid")
    flat = line.reshape(-1).copy()
    return lambda tape: tape.constant(flat)


def _is_one(value: ir.Value | None) -> bool:
    """Whether every element is 1."""
    array, node = walk.constant(value), walk.made_by(value)
    if array is not None or node is None:
        return array is not None and bool((array == 1).all())
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is not None and bool((fill.as_tensor().numpy() == 1).all())
    return node.op_type in MOVES and _is_one(node.inputs[0])


# AffineGrid


def _operator(node: ir.Node, shape: Sequence[Dim]) -> Affine:
    theta, target = node.inputs[0], node.inputs[1]
    if theta is None or target is None or (walk.dims(theta) or ())[1:] != (2, 3):
        raise Unlike(f"the matrix of {node.name} is of shape {walk.dims(theta)}, expected (B, 2, 3)")
    _require_computed(theta)
    dtype = theta.dtype.numpy() if theta.dtype is not None else np.dtype(np.float32)
    aligned = bool(walk.integer(node, "align_corners", 0))
    sizes = shape[1:3]
    if aligned and not all(isinstance(size, int) and size > 1 for size in sizes):
        raise Unlike(f"{node.name} aligns corners of a grid {tuple(sizes)}, expected fixed sizes above one")

    def axis(place: int) -> Make:
        size = sizes[place]
        if isinstance(size, int):
            steps = np.arange(size, dtype=np.float64)
            made = 2 * steps / (size - 1) - 1 if aligned else (2 * steps + 1) / size - 1
            return lambda tape: tape.constant(made.astype(dtype))
        return lambda tape: _centres(tape, target, place + 2, dtype)

    return Affine(theta, lambda tape: theta, axis(1), axis(0))


def _centres(tape: Tape, target: ir.Value, place: int, dtype: np.dtype[np.generic]) -> ir.Value:
    """(2 i + 1) / n - 1 for i below n, an element of a target size."""
    one, two, zero = (tape.constant(np.array(number, dtype)) for number in (1, 2, 0))
    size = tape.op("CastLike", [tape.op("Gather", [target, tape.constant(np.array(place))], axis=0), one])
    odd = tape.op("Add", [tape.op("Mul", [tape.op("Range", [zero, size, one]), two]), one])
    return tape.op("Sub", [tape.op("Div", [odd, size]), one])
