"""Is an engine still the model it came from? Numbers, task metric and time, at every shape it accepts."""

from edgeattn.parity.check import check_parity
from edgeattn.parity.files import compare_files
from edgeattn.parity.reference import Reference, load_reference, reference_from_graph, reference_from_model
from edgeattn.parity.report import ParityReport

__all__ = [
    "ParityReport",
    "Reference",
    "check_parity",
    "compare_files",
    "load_reference",
    "reference_from_graph",
    "reference_from_model",
]
