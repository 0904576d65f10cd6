"""edgeattn: from a PyTorch vision model with attention to a verified engine, and kept verified."""

__version__ = "0.1.0"
