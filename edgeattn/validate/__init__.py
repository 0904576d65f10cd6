"""What an ONNX file must satisfy before any runtime sees it."""

from edgeattn.validate.reading import PROTOBUF_LIMIT_BYTES, read_model

__all__ = ["PROTOBUF_LIMIT_BYTES", "read_model"]
