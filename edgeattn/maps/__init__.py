"""Attention maps: where each attention of a model looks, in PyTorch and in an engine, side by side."""

from edgeattn.maps.compare import AttentionMap, MapsReport, look
from edgeattn.maps.parity import map_parity
from edgeattn.maps.watch import Watch, expose, watched

__all__ = ["AttentionMap", "MapsReport", "Watch", "expose", "look", "map_parity", "watched"]
