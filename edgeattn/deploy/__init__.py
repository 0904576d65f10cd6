"""Engines in other people's servers: what DeepStream and Triton need beside the plan."""

from edgeattn.deploy.deepstream import deploy_deepstream
from edgeattn.deploy.target import Deployed
from edgeattn.deploy.triton import deploy_triton

__all__ = ["Deployed", "deploy_deepstream", "deploy_triton"]
