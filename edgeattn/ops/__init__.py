"""The attention ops, in the order in which a graph is searched for them: what is made of others comes after them."""

from edgeattn.ops import (
    attention_gate,
    attention_pool,
    cbam,
    channel_gate,
    hard_attention,
    selective_kernel,
    soft_mask,
    softmax_attention,
    spatial_gate,
    spatial_transformer,
)
from edgeattn.ops.base import AttentionOp

ALL_OPS: tuple[AttentionOp, ...] = (
    softmax_attention.OP,
    selective_kernel.OP,
    attention_pool.OP,
    channel_gate.OP,
    spatial_gate.OP,
    attention_gate.OP,
    soft_mask.OP,
    cbam.OP,
    hard_attention.OP,
    spatial_transformer.OP,
)
