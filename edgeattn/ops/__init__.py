"""The attention ops, in the order in which a graph is searched for them: what is made of others comes after them."""

from edgeattn.ops.base import AttentionOp

ALL_OPS: tuple[AttentionOp, ...] = ()
