"""The contenders of `scripts/bench_precision`: how each is made from a model, and how it runs.

    python _contenders.py prepare CONTENDER FOLDER    # under any Python that has what the contender needs
    python _contenders.py serve CONTENDER FOLDER
    python _contenders.py beside CONTENDER FOLDER OTHER    # prints its time over the other's, in turns in one process

FOLDER holds `model.onnx`, `module.pt` (the module itself), `calibration.npz` and `held_out.npz` (one array an input,
in their order, with the samples on the first axis), `options.json`, and then what `prepare` writes: an engine or a
quantised model, and what `serve` writes before its first turn: `CONTENDER.answers.npz`, an answer a held-out sample.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Feed = Sequence[np.ndarray]
    Call = Callable[[Feed], Any]

OWN = {"edgeattn fp16": "--fp16", "edgeattn int8": "--int8", "edgeattn best": "--best"}
PRODUCTS = ("Conv", "MatMul", "Gemm")


def samples(folder: Path, kind: str) -> list[Feed]:
    """The inputs of each sample, in their order."""
    import numpy as np

    with np.load(folder / f"{kind}.npz") as arrays:
        stacked = [arrays[name] for name in arrays.files]
    return [[array[index : index + 1] for array in stacked] for index in range(len(stacked[0]))]


def quantise_onnxruntime(folder: Path, activations: str) -> None:
    """ONNX Runtime's static quantisation of what has weights, one scale a channel; minimum and maximum."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / f"prepared-{activations}.onnx"
    quant_pre_process(folder / "model.onnx", prepared, skip_symbolic_shape=True)
    names = [item.name for item in onnxruntime.InferenceSession(prepared).get_inputs()]

    class Reader(CalibrationDataReader):
        left = iter(samples(folder, "calibration"))

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.left, None)
            return None if sample is None else dict(zip(names, sample, strict=True))

    quantize_static(
        prepared,
        folder / f"{activations}.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        activation_type=QuantType.QInt8 if activations == "s8" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": activations == "s8", "MatMulConstBOnly": True},
    )


def quantise_nncf(folder: Path) -> None:
    """NNCF's post-training quantisation for OpenVINO, told where the model is a transformer."""
    import nncf
    import openvino

    feeds = [tuple(sample) for sample in samples(folder, "calibration")]
    transformer = json.loads((folder / "options.json").read_text())["transformer"]
    model = nncf.quantize(
        openvino.convert_model(folder / "model.onnx"),
        nncf.Dataset(feeds, lambda feed: feed),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    openvino.save_model(model, folder / "nncf.xml", compress_to_fp16=False)


def build(folder: Path, contender: str) -> None:
    """An engine, by the command line."""
    from edgeattn.cli import main

    options = json.loads((folder / "options.json").read_text())
    words = ["build", str(folder / "model.onnx"), "-o", str(engine(folder, contender)), OWN[contender]]
    if contender != "edgeattn fp16":
        words += options["data"]
    if contender == "edgeattn best":
        words += options["budget"]
    if code := main(words):
        raise SystemExit(code)


def engine(folder: Path, contender: str) -> Path:
    """Where the engine of one of edgeattn's is."""
    return folder / f"{contender.replace(' ', '-')}.engine"


def run_torch(folder: Path, compiled: bool) -> Call:
    """PyTorch, as it is or compiled."""
    import torch

    torch.set_grad_enabled(False)
    module = torch.load(folder / "module.pt", weights_only=False)
    called = torch.compile(module) if compiled else module

    def call(feed: Feed) -> Any:
        return called(*map(torch.from_numpy, feed)).numpy()

    return call


def run_onnxruntime(folder: Path, name: str) -> Call:
    """ONNX Runtime, on a file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return lambda feed: session.run(None, dict(zip(names, feed, strict=True)))[0]


def run_openvino(folder: Path, name: str, precision: str) -> Call:
    """OpenVINO, on a file, where `precision` is that of what is not quantised."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(folder / name, "CPU", hints).create_infer_request()
    return lambda feed: request.infer(list(feed), share_inputs=True)[0]


def run_edgeattn(folder: Path, contender: str) -> Call:
    """An engine of edgeattn's."""
    from edgeattn.backends import open_session

    session = open_session(engine(folder, contender))
    names = [spec.name for spec in session.inputs]
    return lambda feed: next(iter(session.run(dict(zip(names, feed, strict=True))).values()))


RUN: dict[str, Callable[[Path], Call]] = {
    "eager": partial(run_torch, compiled=False),
    "compile": partial(run_torch, compiled=True),
    "ort f32": partial(run_onnxruntime, name="model"),
    "ort s8s8": partial(run_onnxruntime, name="s8"),
    "ort u8s8": partial(run_onnxruntime, name="u8"),
    "openvino f32": partial(run_openvino, name="model.onnx", precision="f32"),
    "openvino bf16": partial(run_openvino, name="model.onnx", precision="bf16"),
    "nncf": partial(run_openvino, name="nncf.xml", precision="f32"),
    "nncf bf16": partial(run_openvino, name="nncf.xml", precision="bf16"),
    **{contender: partial(run_edgeattn, contender=contender) for contender in OWN},
}
PREPARE: dict[str, Callable[[Path], None]] = {
    "ort s8s8": partial(quantise_onnxruntime, activations="s8"),
    "ort u8s8": partial(quantise_onnxruntime, activations="u8"),
    "nncf": quantise_nncf,
    **{contender: partial(build, contender=contender) for contender in OWN},
}


def serve(contender: str, folder: Path) -> None:
    """Answer every held-out sample once, then take turns on the first."""
    import numpy as np
    from _turns import serve as serve_turns

    feeds, answers = samples(folder, "held_out"), folder / f"{contender}.answers.npz"

    def make() -> Callable[[], object]:
        call = RUN[contender](folder)
        if not answers.is_file():
            np.savez(answers, *[np.array(call(feed)) for feed in feeds])
        return partial(call, feeds[0])

    serve_turns(make)


def compare(contender: str, folder: Path, other: str) -> None:
    """Let two take turns in this process."""
    from _turns import beside

    feed = samples(folder, "held_out")[0]
    print(beside(*(partial(RUN[name](folder), feed) for name in (contender, other))))


if __name__ == "__main__":
    role, asked, place, *others = sys.argv[1:]
    if role == "prepare":
        PREPARE[asked](Path(place))
    elif role == "beside":
        compare(asked, Path(place), *others)
    else:
        serve(asked, Path(place))
