"""Gates that write INT8 codes, where a QuantizeLinear is all that reads them.

TensorRT fuses a QuantizeLinear into its own layers, and cannot into a plugin, whose inside it does not see: behind one,
it reads the whole map again. So the plugin has to do it, and give the codes to the DequantizeLinear nodes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeattn.backends.trt.layouts import only_user
from edgeattn.ops.walk import scalar


def quantiser(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads a node's result, in its dtype, if it makes signed codes by one scale."""
    y = node.outputs[0]
    user = only_user(y)
    if user is None or user.op_type != "QuantizeLinear" or user.domain or user.inputs[0] is not y:
        return None
    scale, *zeros = user.inputs[1:]
    signed = user.outputs[0].dtype == ir.DataType.INT8 and all(zero is None or scalar(zero) == 0 for zero in zeros)
    return user if signed and scale is not None and scale.dtype == y.dtype and scalar(scale) else None


def absorb(graph: ir.Graph, node: ir.Node, last: ir.Node) -> None:
    """Let a node give the codes that its `quantiser` makes of its result; its last input is then their scale, (1).

    The node then computes something else than its function's body: that it gives codes is for the caller to note.
    """
    y, codes = node.outputs[0], last.outputs[0]
    assert y.dtype is not None
    tensor = ir.tensor(np.array([scalar(last.inputs[1])], y.dtype.numpy()), name=f"{y.name}/y_scale")
    scale = ir.Value(name=tensor.name, const_value=tensor, shape=ir.Shape([1]), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(scale)
    node.resize_inputs(len(node.inputs) + 1)
    node.replace_input_with(len(node.inputs) - 1, scale)
    ir.convenience.replace_all_uses_with(codes, y, replace_graph_outputs=True)
    graph.remove(last, safe=True)
    y.type, y.name, codes.name = ir.TensorType(ir.DataType.INT8), codes.name, y.name
