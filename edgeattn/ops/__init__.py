"""The attention ops, in the order in which a graph is searched for them: what is made of others comes after them."""

from edgeattn.ops import attention_gate, cbam, channel_gate, selective_kernel, softmax_attention, spatial_gate
from edgeattn.ops.base import AttentionOp

ALL_OPS: tuple[AttentionOp, ...] = (
    softmax_attention.OP,
    channel_gate.OP,
    spatial_gate.OP,
    attention_gate.OP,
    selective_kernel.OP,
    cbam.OP,
)
