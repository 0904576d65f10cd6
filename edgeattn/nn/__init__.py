"""Attention modules for people who build models: one mechanism a file, named as its paper names it."""

from edgeattn.nn.attention_gate import AttentionGate
from edgeattn.nn.attention_pool import AttentionPool
from edgeattn.nn.cbam import CBAM, ChannelAttention, SpatialAttention
from edgeattn.nn.cross_attention import CrossAttention
from edgeattn.nn.eca import ECA
from edgeattn.nn.global_context import GlobalContext
from edgeattn.nn.hard_attention import HardAttention
from edgeattn.nn.non_local import NonLocal2d
from edgeattn.nn.selective_kernel import SelectiveKernel
from edgeattn.nn.self_attention import SelfAttention2d
from edgeattn.nn.spatial_transformer import SpatialTransformer
from edgeattn.nn.squeeze_excite import EffectiveSE, SqueezeExcite

__all__ = [
    "CBAM",
    "ECA",
    "AttentionGate",
    "AttentionPool",
    "ChannelAttention",
    "CrossAttention",
    "EffectiveSE",
    "GlobalContext",
    "HardAttention",
    "NonLocal2d",
    "SelectiveKernel",
    "SelfAttention2d",
    "SpatialAttention",
    "SpatialTransformer",
    "SqueezeExcite",
]
