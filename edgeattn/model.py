"""A PyTorch model with its input specs: what every export and every parity check is measured against."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgeattn.errors import (
    EdgeAttnError,
    ExportError,
    InputError,
    MissingDependencyError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from edgeattn.tensors import TensorSpec, dtype_named, format_shape, numpy_dtype, parse_shape
from edgeattn.weights import load_weights, reason

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from edgeattn.tensors import Array, Feeds

    Dynamic = Mapping[str, Mapping[int, str]]

AXIS_WORDS = {"batch": 0, "height": 2, "width": 3}
Factory = TypeVar("Factory", bound=Callable[..., Any])


def example_inputs(*texts: str) -> Callable[[Factory], Factory]:
    """Decorate a factory with the inputs it is exported with where `--input` is not given: "1x3x224x224"."""

    def mark(factory: Factory) -> Factory:
        factory.example_inputs = texts  # type: ignore[attr-defined]
        return factory

    return mark


@dataclass(frozen=True)
class Model:
    """A module in eval mode; `inputs` are the shapes it is exported at, `source` says where it came from."""

    module: nn.Module
    inputs: tuple[TensorSpec, ...] = ()
    source: str = "model"
    _lowered: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.module.eval()

    def run(self, feeds: Feeds, dtype: str = "float32") -> list[Array]:
        """Run once and flatten tensors, tuples, lists and dicts to a list of arrays, in order.

        `dtype` "float32" runs the module as it is; "float64" is the oracle; "float16" and "bfloat16" are PyTorch's
        own low-precision run. Integer and boolean inputs stay what they are.

        Raises:
            InputError: the module refuses the feeds.
            UnsupportedError: the module cannot run in that dtype.
            ExportError: an output is no tensor.
        """
        return list(self.run_named(feeds, dtype).values())

    def run_named(self, feeds: Feeds, dtype: str = "float32") -> dict[str, Array]:
        """`run`, by output name: the keys of a dict, `output` for a single tensor, else `output_0`, `output_1`."""
        import torch

        dtype = dtype_named(dtype).name
        default = torch.get_default_dtype() if dtype == "float32" else getattr(torch, dtype)
        cast = None if dtype == "float32" else default
        try:
            tensors = {name: tensor_from(array, cast) for name, array in feeds.items()}
            module = self._in(dtype)
            # no_grad, not inference_mode: a module may cache what it makes here and use it again in the exporter.
            with torch.no_grad(), _computing_in(default), contextlib.redirect_stdout(sys.stderr):
                outputs = call_named(module, parameters(module), tensors)
        except EdgeAttnError:
            raise
        except Exception as err:
            shapes = ", ".join(f"{name} {format_shape(array.shape)} {array.dtype}" for name, array in feeds.items())
            if dtype == "float32":
                raise InputError(f"{self.source} refuses {shapes}: {reason(err)}; check --input") from err
            raise UnsupportedError(f"{self.source} cannot run in {dtype}: {reason(err)}") from err
        return {name: _array(tensor) for name, tensor in outputs.items()}

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """The names that `run_named` gives, from one run on zeros."""
        if not self.inputs:
            raise UsageError(f"{self.source} has no input shapes: give them with --input")
        return tuple(self.run_named({spec.name: _zeros(spec) for spec in self.inputs}))

    def _in(self, dtype: str) -> nn.Module:
        if dtype == "float32":
            return self.module
        if dtype not in self._lowered:
            import torch

            self._lowered[dtype] = copy.deepcopy(self.module).to(getattr(torch, dtype))
        return self._lowered[dtype]


def load_model(target: str, weights: Path | None = None, inputs: Sequence[TensorSpec] = ()) -> Model:
    """Load `FILE.py:FACTORY` or `pkg.mod:FACTORY`: a callable that returns an `nn.Module`, its class, or a module.

    `zoo:NAME` is `edgeattn.zoo:NAME`. This runs the file, as `python FILE.py` would: load only what you would run.
    Weights are data: safetensors, or a checkpoint that is read with `weights_only=True`.

    Raises:
        UsageError: the target names nothing that makes a module.
        InputError: there is no such file, or the weights are refused or do not fit.
        ExportError: the code of the target raises.
        UnsupportedError: torch is missing or too old to read a checkpoint safely.
    """
    module = _make_module(target)
    if weights is not None:
        load_weights(module, Path(weights))
    return Model(module.cpu(), tuple(inputs), target)


def parse_inputs(texts: Sequence[str], module: nn.Module) -> tuple[TensorSpec, ...]:
    """Read `--input`: `1x3x224x224`, `x:1x3x224x224`, `ids:1x16@int64`; several, repeated or comma separated.

    A name that is not given is the next parameter of the module's `forward`; no texts are its `example_inputs`.

    Raises:
        UsageError: not of that form, a name twice, or not what `forward` takes.
    """
    texts = texts or getattr(module, "example_inputs", ())
    taken = parameters(module)
    free = [name for name, item in taken.items() if item.kind is not item.VAR_POSITIONAL]
    specs: dict[str, TensorSpec] = {}
    for part in (part for text in texts for part in _split(text)):
        name, _, rest = part.rpartition(":")
        shape, _, dtype = rest.partition("@")
        name = name.strip() or next((name for name in free if name not in specs), f"input_{len(specs)}")
        if name in specs:
            raise UsageError(f"--input names {name!r} twice")
        specs[name] = TensorSpec(name, dtype_named(dtype.strip() or "float32").name, parse_shape(shape))
    _check_arguments(taken, list(specs), type(module).__name__)
    return tuple(specs.values())


def parse_dynamic(texts: Sequence[str], inputs: Sequence[TensorSpec]) -> dict[str, dict[int, str]]:
    """Read `--dynamic`: `batch` (axis 0 of every input), `height` and `width` (axes 2 and 3 of images), `x:2=rows`.

    Returns the dynamic axes of each input, by name: `{"x": {0: "batch"}}`.

    Raises:
        UsageError: not of that form, no such input or axis, or one name for axes of different sizes.
    """
    dynamic: dict[str, dict[int, str]] = {}
    for item in (part.strip() for text in texts for part in text.split(",")):
        match = re.fullmatch(r"(.+):(\d+)=([A-Za-z_]\w*)", item)
        if item in AXIS_WORDS:
            axes = [(spec, AXIS_WORDS[item]) for spec in inputs if item == "batch" or len(spec.shape or ()) == 4]
            name = item
        elif match:
            axes = [(spec, int(match[2])) for spec in inputs if spec.name == match[1]]
            name = match[3]
        else:
            raise UsageError(f"not a dynamic axis: {item!r}; expected batch, height, width or INPUT:AXIS=NAME")
        axes = [(spec, axis) for spec, axis in axes if axis < len(spec.shape or ())]
        if not axes:
            raise UsageError(f"--dynamic {item}: no such axis; the inputs are {', '.join(map(str, inputs))}")
        for spec, axis in axes:
            dynamic.setdefault(spec.name, {})[axis] = name
    _check_sizes(dynamic, inputs)
    return dynamic


def call_named(
    call: Callable[..., Any], taken: Mapping[str, inspect.Parameter], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Call with tensors by name (by position where `taken` has other names) and name what comes out."""
    by_name = _takes(taken, list(tensors))
    result = call(**tensors) if by_name else call(*tensors.values())
    outputs: dict[str, Tensor] = {}
    for name, tensor in _leaves(result, ""):
        unique = name
        while unique in outputs or unique in tensors:
            unique += "_out"
        outputs[unique] = tensor
    if not outputs:
        raise ExportError("the module returns no tensor; return a tensor, tuple, list or dict")
    return outputs


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        fields = getattr(value, "_fields", None)
        if fields:
            yield from _leaves(dict(zip(fields, value, strict=True)), name)
        elif len(value) == 1:
            yield from _leaves(value[0], name)
        else:
            for index, item in enumerate(value):
                yield from _leaves(item, f"{name or 'output'}_{index}")
    elif value is not None:
        what = f"output {name!r}" if name else "the output"
        raise ExportError(f"{what} is a Python {type(value).__name__}; return tensors in a tuple, list or dict")


def parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """What the module's `forward` takes, `self` aside."""
    return dict(inspect.signature(module.forward).parameters)


def _keywords(taken: Mapping[str, inspect.Parameter]) -> list[str]:
    return [name for name, item in taken.items() if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]


def _takes(taken: Mapping[str, inspect.Parameter], names: Sequence[str]) -> bool:
    anything = any(item.kind is item.VAR_KEYWORD for item in taken.values())
    return anything or set(names) <= set(_keywords(taken))


def _check_arguments(taken: Mapping[str, inspect.Parameter], names: Sequence[str], owner: str) -> None:
    known = _keywords(taken)
    required = [name for name in known if taken[name].default is inspect.Parameter.empty]
    strangers = [name for name in names if name not in known]
    open_ended = any(item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD) for item in taken.values())
    if strangers and len(strangers) < len(names) and not open_ended:
        raise UsageError(f"{owner}.forward takes no {strangers[0]!r}; {did_you_mean(strangers[0], known)}")
    if len(names) > len(taken) and not open_ended:
        raise UsageError(f"{owner}.forward takes {len(taken)} inputs ({', '.join(taken)}), --input gives {len(names)}")
    absent = [name for name in required if name not in names] if not strangers else required[len(names) :]
    if absent:
        raise UsageError(f"{owner}.forward also needs {', '.join(absent)}: add --input {absent[0]}:SHAPE")


def _check_sizes(dynamic: Dynamic, inputs: Sequence[TensorSpec]) -> None:
    sizes: dict[str, tuple[str, Any]] = {}
    for spec in inputs:
        for axis, name in dynamic.get(spec.name, {}).items():
            size = (spec.shape or ())[axis]
            first, other = sizes.setdefault(name, (spec.name, size))
            if other != size:
                raise UsageError(
                    f"--dynamic {name} is {other} in {first!r} but {size} in {spec.name!r}; "
                    f"name the axes one by one, for example {first}:{axis}={name}"
                )


def _split(text: str) -> list[str]:
    """At commas between inputs, not those inside a shape: `x:[1,3,8,8],y:1x4`, but `1,3,8,8` is one shape."""
    parts = re.split(r",(?![^\[(]*[\])])", text)
    return [text] if all(part.strip().isdecimal() for part in parts) else parts


def _make_module(target: str) -> nn.Module:
    try:
        from torch import jit, nn
    except ImportError as err:
        raise MissingDependencyError("PyTorch is not installed; pip install 'edgeattn[torch]'") from err

    place, _, attribute = target.rpartition(":")
    if not place or not attribute:
        raise UsageError(f"not a model: {target!r}; expected FILE.py:FACTORY, pkg.mod:FACTORY or zoo:NAME")
    place = "edgeattn.zoo" if place == "zoo" else place
    # What the user's code prints is not the result of a command.
    with contextlib.redirect_stdout(sys.stderr), _importing_from(place):
        namespace = _run_code(target, lambda: _import(place))
        made = _run_code(target, lambda: getattr(namespace, attribute, None))
        if inspect.ismodule(made):  # pkg/mod.py, once imported, hides a function `mod` of its package
            made = getattr(made, attribute, made)
        if made is None:
            names = [name for name in dir(namespace) if not name.startswith("_")]
            raise UsageError(f"{place} has no {attribute!r}; {did_you_mean(attribute, names)}")
        if callable(made) and not isinstance(made, nn.Module):
            _check_factory(made, target)
            factory, made = made, _run_code(target, made)
            if isinstance(made, nn.Module) and hasattr(factory, "example_inputs"):
                made.example_inputs = factory.example_inputs
    if isinstance(made, jit.ScriptModule):
        raise UsageError(f"{target} is TorchScript, whose modules cannot be followed; give the Python module")
    if not isinstance(made, nn.Module):
        raise UsageError(f"{target} is a {type(made).__name__}, no nn.Module; name a class or a function returning one")
    return made


def _run_code(target: str, code: Callable[[], Any]) -> Any:
    try:
        return code()
    except EdgeAttnError:
        raise
    except (Exception, SystemExit) as err:
        raise ExportError(f"the code of {target} raised {reason(err)}") from err


def _check_factory(factory: Callable[..., Any], target: str) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError as err:
        raise UsageError(f"{target} cannot be called without arguments ({err}); wrap it in a function") from err
    except ValueError:  # a builtin without a signature: the call itself will tell
        pass


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as err:
            if err.name and (place == err.name or place.startswith(err.name + ".")):
                raise UsageError(f"no module {err.name!r} (from {place}:...); give a FILE.py or install it") from err
            raise
    path = Path(place)
    if not path.is_file():
        raise InputError(f"no such file: {place}")
    name = f"edgeattn_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"cannot load {place} as Python")
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[name] = namespace  # dataclasses look their module up
    spec.loader.exec_module(namespace)
    return namespace


@contextlib.contextmanager
def _importing_from(place: str) -> Iterator[None]:
    """Let the code import its neighbours, as `python FILE.py` and `python -m` would."""
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _zeros(spec: TensorSpec) -> Array:
    import numpy as np

    return np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape or ()], numpy_dtype(spec.dtype))


def tensor_from(array: Array, cast: torch.dtype | None = None) -> Tensor:
    """A tensor of its own from an array; `cast` is for floating-point ones."""
    import numpy as np
    import torch

    array = np.array(array)  # a copy: a module may write into its input
    if array.dtype == numpy_dtype("bfloat16"):
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(cast) if cast is not None and tensor.is_floating_point() else tensor


def _array(tensor: Tensor) -> Array:
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    array: Array = tensor.numpy().copy()
    return array


@contextlib.contextmanager
def _computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors in `dtype` where the module names none; bfloat16 with PyTorch's own kernels.

    Those of oneDNN kill the process with an illegal instruction on virtual machines that show AMX and trap it.
    """
    import torch

    before, onednn = torch.get_default_dtype(), torch._C._get_mkldnn_enabled()
    torch.set_default_dtype(dtype)
    torch._C._set_mkldnn_enabled(onednn and dtype != torch.bfloat16)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(onednn)
        torch.set_default_dtype(before)
