"""A profile as a backend might give it, of any size."""

from __future__ import annotations

from dataclasses import replace

from edgeattn.profile.report import Block, Ceiling, Energy, Layer, Memory, ProfileReport, Reconciliation
from edgeattn.reports.latency import latency_report

KINDS = ("Convolution", "MatMul", "Eltwise", "Reorder", "Pooling", "SoftMax", "Reduce", "Subgraph", "Input")


def sample_report(layers: int = 12, blocks: int = 2, name: str = "") -> ProfileReport:
    """Every fourth layer belongs to an attention block, in turn; `name` is a part of every name in it."""
    times = [1 / (1 + 7 * index % 23) for index in range(layers)]
    made = tuple(
        Layer(
            name=f"/layer{index // 40}/layer{index // 40}.{index}/{name}op{index}",
            kind=KINDS[index % len(KINDS)] + name,
            precision="bfloat16" if index % 3 else "float32",
            median_ms=time,
            p90_ms=1.2 * time,
            interval_ms=(0.95 * time, 1.05 * time),
            share=time / sum(times),
            input_shapes=((1, 256, 14, 14),),
            output_shapes=((1, 256, 14, 14),),
            nodes=tuple(f"/layer{index // 40}/node{index}{name}.{part}" for part in range(index % 5)),
            attention=f"/blocks/{index // 4 % blocks}/attn{name}" if blocks and index % 4 == 0 else "",
            module=f"layer{index // 40}.{index}{name}",
            stage=f"layer{index // 40}{name}",
            kernel=f"jit_avx512_amx_{index}{name}",
            flops=3_000_000 * (index + 1),
            bytes=40_000 * (index % 7 + 1),
        )
        for index, time in enumerate(times)
    )
    whole = 1.05 * sum(times)
    return ProfileReport(
        engine=f"build/{name.replace('/', '')}model.engine",
        plan_sha256="5f2a" * 16,
        backend="openvino",
        device=f"Some CPU{name}",
        precision="bf16",
        shapes={f"image{name}": (1, 3, 224, 224)},
        batch=1,
        data="random values",
        latency=latency_report([int(1e6 * whole * (1 + run % 10 / 30)) for run in range(300)]),
        interval_ms=(0.99 * whole, 1.01 * whole),
        load_ms=210.0,
        first_run_ms=3 * whole,
        warmup_ms=12 * whole,
        warmup_runs=9,
        memory=Memory(90_000_000, 30_000_000, 120_000_000),
        layers=made,
        layer_runs=200,
        blocks=tuple(_block(f"/blocks/{index}/attn{name}", name, index, made) for index in range(blocks)),
        ceilings=(Ceiling("float32", 220.0, 19.0), Ceiling("bfloat16", 700.0, 19.0)),
        energy=Energy(31.0, 12.5, f"a meter{name}"),
        reconciliation=Reconciliation(whole, 1.1 * whole, sum(times), sum(times), (f"5 % are in no layer{name}",)),
        environment={f"cpu{name}": f"some{name}"},
        conditions={"before": {f"clock{name}": "3.7 GHz"}, "after": {f"clock{name}": f"3.6{name} GHz"}},
        notes=(f"a note{name}",),
    )


def _block(block: str, name: str, index: int, layers: tuple[Layer, ...]) -> Block:
    own = [layer for layer in layers if layer.attention == block]
    return Block(
        name=block,
        op=("softmax_attention", "cbam")[index % 2],
        plan=f"OpenVINO's own attention{name}" if index % 2 == 0 else f"plain operators{name}",
        fused=index % 2 == 0,
        why="" if index % 2 == 0 else f"the head size is above 256{name}",
        layers=tuple(layer.name for layer in own),
        median_ms=sum(layer.median_ms for layer in own),
        share=sum(layer.share for layer in own),
        flops=6_000_000,
        bytes=1_500_000,
        intensity=4.0,
        ablation_ms=0.2,
        ablation_interval_ms=(0.15, 0.25),
    )


def without_layers() -> ProfileReport:
    """What is left where a backend tells nothing of its layers."""
    report = sample_report(blocks=1)
    hidden = tuple(
        replace(block, layers=(), median_ms=None, share=None, ablation_ms=None, ablation_interval_ms=None)
        for block in report.blocks
    )
    return replace(report, layers=(), layer_runs=0, blocks=hidden, ceilings=(), energy=None, reconciliation=None)
