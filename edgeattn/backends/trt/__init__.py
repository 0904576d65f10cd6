"""What TensorRT and TensorRT-RTX share: one code path, bound to one of the two by the modules beside this package."""
