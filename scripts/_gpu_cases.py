"""What `gpu_check` runs: attentions as people write them in PyTorch, their sizes, and the kernels that compute them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Form = Callable[..., Tensor]
STEP = 2**-6  # of INT8 codes: the largest values of a map saturate


@dataclass(frozen=True)
class Case:
    """One op at one size.

    `form` is the op in PyTorch, in any float type; `inputs` holds the shapes of what it takes, by the names that the
    kernels give them. `shapes` are those in the canonical layout, `attributes` the rest of what `launches` wants.
    """

    name: str
    op: str
    variant: str
    dtype: str
    form: Form
    inputs: Mapping[str, tuple[int, ...]]
    shapes: Sequence[tuple[int, ...]]
    output: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    rivals: Mapping[str, Form] = field(default_factory=dict)  # other ways to compute it in PyTorch

    @property
    def codes(self) -> bool:
        """Whether y holds INT8 codes; the form then gives them before they are rounded."""
        return bool(self.attributes.get("codes"))

    @property
    def result(self) -> torch.dtype:
        """What y holds."""
        return torch.int8 if self.codes else getattr(torch, self.dtype)

    def tensors(self, device: str) -> dict[str, Tensor]:
        """Fresh random inputs; weights such that what they make of a map is about as large as it."""
        made = {}
        for name, shape in self.inputs.items():
            value = torch.randn(shape, device=device)
            weight = name[0] in "wbs" and self.op != "SoftmaxAttention"
            if name == "y_scale":
                value = torch.full(shape, STEP, device=device)
            made[name] = (value / max(1, value[0].numel()) ** 0.5 if weight else value).to(getattr(torch, self.dtype))
        return made


# PyTorch's forms


def map_attention(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """SAGAN's: q, k (B, d, N), v and x (B, e, N)."""
    weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
    return gamma * (v @ weights.transpose(1, 2)) + x


def map_attention_sdpa(q: Tensor, k: Tensor, v: Tensor, x: Tensor, gamma: Tensor) -> Tensor:
    """The same by scaled_dot_product_attention, whose fused kernels want equal head sizes and tokens in rows."""
    q, k = (F.pad(part.transpose(1, 2)[:, None], (0, v.shape[1] - part.shape[1])) for part in (q, k))
    y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2)[:, None].contiguous(), scale=1.0)
    return gamma * y[:, 0].transpose(1, 2) + x


def token_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A transformer's: q, k, v (B, H, N, d)."""
    return torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1) @ v


def token_attention_sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same in one call."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _layers(pools: Sequence[Tensor], w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    outs = [F.linear(F.relu(F.linear(pool, w1, b1)), w2, b2) for pool in pools]
    return torch.sigmoid(sum(outs[1:], outs[0]))[:, :, None, None]


def squeeze_excite(x: Tensor, *weights: Tensor) -> Tensor:
    """SE's channel gate."""
    return x * _layers([x.mean((2, 3))], *weights)


def efficient_channel(x: Tensor, w: Tensor) -> Tensor:
    """ECA's channel gate."""
    z = F.conv1d(x.mean((2, 3))[:, None], w, padding=w.shape[-1] // 2)[:, 0]
    return x * torch.sigmoid(z)[:, :, None, None]


def global_context(x: Tensor, s: Tensor, *weights: Tensor) -> Tensor:
    """GCNet's block: a mean weighed by attention, two layers with a normalisation between them, added to the map."""
    w1, b1, g, h, w2, b2 = weights
    shares = (s @ x.flatten(2)).softmax(-1)
    mean = (x.flatten(2) @ shares.transpose(1, 2))[..., 0]
    hidden = F.relu(F.layer_norm(F.linear(mean, w1, b1), g.shape, g, h, 1e-5))
    return x + F.linear(hidden, w2, b2)[:, :, None, None]


def spatial(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """CBAM's spatial gate."""
    planes = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
    return x * torch.sigmoid(F.conv2d(planes, w, b, padding=w.shape[-1] // 2))


def cbam(x: Tensor, *weights: Tensor) -> Tensor:
    """CBAM."""
    return spatial(x * _layers([x.mean((2, 3)), x.amax((2, 3))], *weights[:4]), *weights[4:])


def selective(x: Tensor, u1: Tensor, *weights: Tensor) -> Tensor:
    """SK's mixture of two branches."""
    w1, b1, w2, b2 = weights
    hidden = F.relu(F.linear((x + u1).mean((2, 3)), w1, b1))
    a = F.linear(hidden, w2, b2).view(len(x), 2, x.shape[1], 1, 1).softmax(1)
    return x * a[:, 0] + u1 * a[:, 1]


def gated_skip(x: Tensor, g: Tensor, *weights: Tensor) -> Tensor:
    """Attention U-Net's gate."""
    wx, wg, b, wp, bp = weights
    return x * torch.sigmoid(F.conv2d(F.relu(F.conv2d(x, wx, b) + F.conv2d(g, wg)), wp, bp))


# Cases


def _map_case(dtype: str, samples: int, tokens: int, d_qk: int, d_v: int) -> Case:
    shapes = [(samples, 1, tokens, size) for size in (d_qk, d_qk, d_v)]
    flat = {"q": d_qk, "k": d_qk, "v": d_v, "x": d_v}
    return Case(
        f"map attention B{samples} N{tokens} d{d_qk}/{d_v}",
        "SoftmaxAttention",
        "",
        dtype,
        map_attention,
        {**{name: (samples, size, tokens) for name, size in flat.items()}, "gamma": (1,)},
        shapes,
        (samples, d_v, tokens),
        {"scale": 1.0, "layout": ("bhdn",) * 4, "residual": True},
        {"sdpa": map_attention_sdpa},
    )


def _token_case(dtype: str, samples: int, heads: int, tokens: int, size: int) -> Case:
    shape, scale = (samples, heads, tokens, size), size**-0.5
    return Case(
        f"token attention B{samples} H{heads} N{tokens} d{size}",
        "SoftmaxAttention",
        "",
        dtype,
        functools.partial(token_attention, scale=scale),
        dict.fromkeys("qkv", shape),
        [shape] * 3,
        shape,
        {"scale": scale},
        {"sdpa": functools.partial(token_attention_sdpa, scale=scale)},
    )


def _gate_case(kind: str, dtype: str, *shape: int) -> Case:
    channels = shape[1]
    hidden = max(channels // 16, 4)
    layers = {"w1": (hidden, channels), "b1": (hidden,), "w2": (channels, hidden), "b2": (channels,)}
    plane = {"w": (1, 2, 7, 7), "b": (1,)}
    window = {"pads": (3,) * 4, "kernel_shape": (7, 7)}
    norm = {"s": (1, channels), **{name: layers[name] for name in ("w1", "b1")}, "g": (hidden,), "h": (hidden,)}
    half = channels // 2
    convolutions = {"wx": (half, channels, 1, 1), "wg": (half, channels, 1, 1), "b": (half,)}
    convolutions |= {"wp": (1, half, 1, 1), "bp": (1,)}
    wide = {"w2": (2 * channels, hidden), "b2": (2 * channels,)}
    op, variant, form, weights, attributes = {
        "SE": ("ChannelGate", "avg-relu-sigmoid", squeeze_excite, layers, {}),
        "ECA": ("ChannelGate", "eca-sigmoid", efficient_channel, {"w": (1, 1, 5)}, {"pads": (2, 2)}),
        "GC": (
            "ChannelGate",
            "attn-ln-relu-add",
            global_context,
            {**norm, **{name: layers[name] for name in ("w2", "b2")}},
            {"epsilon": 1e-5},
        ),
        "spatial gate": ("SpatialGate", "sigmoid", spatial, plane, window),
        "CBAM": ("CBAM", "relu", cbam, {**layers, **plane}, window),
        "gated skip": ("AttentionGate", "same", gated_skip, {"g": shape, **convolutions}, {}),
        "SK": ("SelectiveKernel", "2-relu", selective, {"u1": shape, **layers, **wide}, {}),
    }[kind]
    inputs = {"x": shape, **weights}
    name = f"{kind} {'x'.join(map(str, shape))}"
    return Case(name, op, variant, dtype, form, inputs, list(inputs.values()), shape, attributes)


def _in_codes(case: Case) -> Case:
    """A gate that writes INT8."""

    def form(*inputs: Tensor) -> Tensor:
        *given, step = inputs
        return (case.form(*given) / step).clamp(-128, 127)

    inputs, attributes = {**case.inputs, "y_scale": (1,)}, {**case.attributes, "codes": True}
    return replace(case, name=f"{case.name} to INT8", form=form, inputs=inputs, attributes=attributes)


GATES = ("SE", "ECA", "GC", "spatial gate", "CBAM", "SK", "gated skip")
DTYPES = ("float16", "bfloat16", "float32")


def small_cases() -> list[Case]:
    """Odd and small sizes of every op in every type, and gates that write INT8."""
    plain = [
        case
        for dtype in DTYPES
        for case in (
            _map_case(dtype, 2, 67, 5, 40),
            _token_case(dtype, 1, 3, 71, 17),
            *(_gate_case(kind, dtype, 2, 19, 7, 5) for kind in GATES),
        )
    ]
    return [*plain, *(_in_codes(_gate_case(kind, "float16", 2, 19, 7, 5)) for kind in GATES)]


def timed_cases() -> list[Case]:
    """The sizes that kernels are judged by."""
    maps = [
        (8, 1024, 8, 64),
        (4, 4096, 8, 64),
        (4, 4096, 16, 128),
        (4, 4096, 32, 256),
        (2, 4096, 64, 256),
        (1, 16384, 8, 64),
    ]
    tokens = [(8, 12, 196, 64), (8, 6, 1024, 64), (4, 16, 4096, 64), (8, 8, 1024, 32), (4, 8, 4096, 32)]
    planes = [(32, 256, 56, 56), (32, 512, 28, 28), (32, 2048, 7, 7), (1, 256, 56, 56)]
    return [
        *(_map_case("float16", *sizes) for sizes in maps),
        *(_token_case("float16", *sizes) for sizes in tokens),
        *(_gate_case(kind, "float16", *shape) for kind in GATES[:-1] for shape in planes),
        *(_gate_case(GATES[-1], "float16", *shape) for shape in [(8, 64, 256, 256), (8, 256, 64, 64)]),
    ]
