"""onnx's checker and shape inference, in a child process: what they read, nobody vouches for.

Both are C++ that recurses and allocates as the file tells it to; some kilobytes of ONNX can ask for terabytes. Here
that ends in a message, since the child has a limit of memory and of time. It runs this file as a script and imports
onnx's extension module alone, which takes a fifth of the time of importing onnx: so nothing else is imported above.
"""

from __future__ import annotations

import contextlib
import importlib.util
import resource
import subprocess
import sys
from typing import Any

MEMORY_BYTES = 2**30
TIMEOUT_S = 60.0


def check_and_infer(checked: bytes, inferred: bytes) -> bytes:
    """Check one serialised model, and infer the shapes of another.

    Returns:
        The second model, serialised, functions inlined, with the types of all its tensors.

    Raises:
        InputError: onnx refuses the models, or they exhaust or crash it.
    """
    import onnx.onnx_cpp2py_export

    from edgeattn.errors import InputError, one_line

    memory_bytes = MEMORY_BYTES + 16 * len(inferred)
    command = [sys.executable, "-I", "-S", __file__, onnx.onnx_cpp2py_export.__file__, str(memory_bytes)]
    fed = len(checked).to_bytes(8, "little") + checked + inferred
    try:
        child = subprocess.run(command, input=fed, capture_output=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"checking it takes more than {TIMEOUT_S:.0f} s; simplify the model") from None
    if child.returncode == 1:
        reason = one_line(child.stdout.decode(errors="replace"))
        raise InputError(f"onnx refuses it: {reason}; export it again")
    if child.returncode:
        raise InputError(f"checking it crashes onnx (exit code {child.returncode}); export it again")
    return child.stdout


def _main() -> int:
    extension, memory_bytes = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    allowed = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    try:
        sys.stdout.buffer.write(_run(_load(extension), sys.stdin.buffer.read()))
    except MemoryError:
        print(f"checking it takes more than {allowed >> 20} MiB of memory")
        return 1
    except Exception as err:
        print(err or type(err).__name__)
        return 1
    return 0


def _load(extension: str) -> Any:
    spec = importlib.util.spec_from_file_location("onnx_cpp2py_export", extension)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(onnx: Any, fed: bytes) -> bytes:
    end = 8 + int.from_bytes(fed[:8], "little")
    # A function may import another opset than the model: whoever expands it converts it.
    onnx.checker.check_model(fed[8:end], full_check=False, skip_opset_compatibility_check=True)
    model = fed[end:]
    # Inference reports a function's outputs only; with its nodes in place, its inner tensors too.
    with contextlib.suppress(Exception):
        model = onnx.inliner.inline_local_functions(model, True)
    inferred: bytes = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
    return inferred


if __name__ == "__main__":
    sys.exit(_main())
