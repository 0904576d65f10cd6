"""What an engine's time goes to: whole and per layer, with the machine beside the numbers."""

from __future__ import annotations

from edgeattn.profile.engine import profile_engine
from edgeattn.profile.machine import environment
from edgeattn.profile.report import (
    Block,
    Ceiling,
    Energy,
    Group,
    Layer,
    Memory,
    ProfileReport,
    Reconciliation,
    Run,
    Stages,
    grouped,
)
from edgeattn.profile.timing import Turns, measure, measure_turns, median_interval
from edgeattn.reports.latency import LatencyReport

__all__ = [
    "Block",
    "Ceiling",
    "Energy",
    "Group",
    "LatencyReport",
    "Layer",
    "Memory",
    "ProfileReport",
    "Reconciliation",
    "Run",
    "Stages",
    "Turns",
    "environment",
    "grouped",
    "measure",
    "measure_turns",
    "median_interval",
    "profile_engine",
]
