"""Attention modules for people who build models: one mechanism a file, named as its paper names it."""

from edgeattn.nn.cbam import CBAM, ChannelAttention, SpatialAttention

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]
