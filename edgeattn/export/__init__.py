"""Model -> Graph: export a PyTorch module to ONNX, and check that the file computes what the module computes."""

from edgeattn.export.exporter import ExportReport, export_model

__all__ = ["ExportReport", "export_model"]
