"""A bundle of one tiny ONNX network, and what it takes to make others like it: what the tests of bundles read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from onnx_graphs import node, write_graph
from torch import nn

from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, PrecisionPlan
from mcompress.export import backend_of, replay
from mcompress.export.backend import Port, captured
from mcompress.export.bundle import ExportedFile, TestVector, write_bundle
from mcompress.export.fidelity import fidelity_of, quality_worst
from mcompress.export.interface import TensorFacts, facts_of
from mcompress.export.profile import Rules
from mcompress.record import (
    CoverageRecord,
    EnvironmentRecord,
    ExportRecord,
    Likeness,
    ModelRecord,
    ParityRecord,
    PictureRecord,
    Run,
    StageRecord,
    TargetRecord,
)
from mcompress.targets.exports import ExportConfig, OnnxConfig
from mcompress.targets.schema import Fallback, Measurement, Target
from mcompress.targets.stages import DistillConfig

SIDE = 12
SCALE = 4
FAST = Rules(20, 0.1, 5.0, 0.01, 0.0)
"""For measurements that are there to be made, not to be believed."""


def kernel() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.1, (3 * SCALE * SCALE, 3, 3, 3)).astype(np.float32)


def write_onnx(path: Path) -> None:
    """A convolution and a pixel shuffle, x4."""
    nodes = [
        node("Conv", "input weight", "features", pads=[1, 1, 1, 1]),
        node("DepthToSpace", "features", "output", blocksize=SCALE, mode="CRD"),
    ]
    write_graph(path, nodes, {"input": [1, 3, SIDE, SIDE]}, {"output": [1, 3, SIDE * SCALE, SIDE * SCALE]}, {"weight": kernel()})


def enlarge(picture: np.ndarray) -> np.ndarray:
    """The same network in numpy."""
    padded = np.pad(picture[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    features = np.einsum("chwij,ocij->ohw", windows, kernel())
    shuffled = features.reshape(3, SCALE, SCALE, SIDE, SIDE).transpose(0, 3, 1, 4, 2)
    return shuffled.reshape(1, 3, SIDE * SCALE, SIDE * SCALE).astype(np.float32)


def facts(name: str, side: int, **more: object) -> TensorFacts:
    return TensorFacts.model_validate({"name": name, "shape": (1, 3, side, side), "dtype": "float32", **more})


def quantized(name: str, side: int, scale: float) -> TensorFacts:
    return facts_of(Port(name, (1, side, side, 3), "int8", "NHWC", scale, -128))


def a_likeness(psnr_db: float = 50.0, ssim: float | None = 0.99, shift: tuple[float, ...] = (0.1, -0.2, 0.0)) -> Likeness:
    return Likeness(psnr_db=psnr_db, ssim=ssim, colour_shift=shift, largest_shift=max(map(abs, shift)), delta_e=0.4)


PICTURES = {
    name: PictureRecord(quality={"psnr_db": quality}, against={"teacher": a_likeness(38.0, 0.97), "float_student": a_likeness()})
    for name, quality in (("flower", 27.5), ("chelsea", 30.0), ("coffee|dark", 32.5))
}


def about_pictures(pictures: Mapping[str, PictureRecord]) -> dict[str, object]:
    """What an export's record says of its held-out pictures."""
    return {"pictures": dict(pictures), "fidelity": fidelity_of(pictures), "quality_worst": quality_worst(pictures)}


def model_record(quality: float) -> ModelRecord:
    return ModelRecord(
        spec=None,
        params=1296,
        macs=186624,
        macs_output_convention=186624,
        weight_bytes=5184,
        peak_activation_bytes=29376,
        activation_traffic_bytes=57024,
        quality={"psnr_db": quality},
    )


def export_record(path: Path, **more: object) -> ExportRecord:
    values: dict[str, object] = {
        "backend": "onnx",
        "variant": "float",
        "file": f"bundle/{path.name}",
        "bytes": replay.size_of(path),
        "sha256": replay.digest_of(path),
        "precision_counts": {"int8": 0, "fp16": 0, "fp32": 2},
        "parity": ParityRecord(reference="PyTorch", metric="share of range", value=1e-7, limit=1e-3, passed=True, runtime="onnxruntime CPU"),
        "coverage": CoverageRecord(total=2, by_unit={"cpu": 2}),
        "latency": (Measurement(what="latency", value=1.5, unit="ms", how="host", on="onnxruntime, 1 thread", p50=1.5, p90=1.7, n=20),),
        "quality": {"psnr_db": 30.0},
        "recommended": True,
        **about_pictures(PICTURES),
    }
    return ExportRecord.model_validate({**values, **more})


def a_run(*exports: ExportRecord) -> Run:
    return Run(
        target=TargetRecord(name="tiny|phone", digest="ab" * 32),
        environment=EnvironmentRecord(python="3.11", platform="Linux", packages={}, commit=None, seed=0),
        stages=(StageRecord(name="distill", method="online", digest="cd" * 32, parent="", cached=False, seconds=1.0),),
        models={"teacher": model_record(31.0), "student": model_record(30.5), "compressed": model_record(30.0)},
        baseline={"mean": {"psnr_db": 28.0}},
        exports=exports,
        budget=(),
        fallbacks=(Fallback(where="export onnx", what="Resize", reason="a reason with | and\nlines"),),
        not_measured=("latency on the phone",),
    )


def a_target(**more: object) -> Target:
    return Target.model_validate({"name": "tiny", "device": "snapdragon865", "stages": [DistillConfig()], "exports": [OnnxConfig()], **more})


def an_export(folder: Path) -> ExportedFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny-float.onnx"
    write_onnx(path)
    picture = np.random.default_rng(5).random((1, 3, SIDE, SIDE), dtype=np.float32)
    vector = TestVector("coffee / left", (picture,), reference=enlarge(picture), expected=enlarge(picture))
    return ExportedFile(export_record(path), path, (facts("input", SIDE),), (facts("output", SIDE * SCALE),), (vector,))


class Enlarger(nn.Module):
    """The network of `enlarge` in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3 * SCALE * SCALE, 3, padding=1, bias=False)
        self.conv.weight.data.copy_(torch.from_numpy(kernel()))
        self.shuffle = nn.PixelShuffle(SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.shuffle(self.conv(x)))


def a_real_export(config: ExportConfig, folder: Path) -> ExportedFile:
    """The network as its exporter writes it, in `folder`, with one vector."""
    backend = backend_of(config)
    picture = np.random.default_rng(5).random((1, 3, SIDE, SIDE), dtype=np.float32)
    with captured(folder / "log.txt"):
        written = backend.write(config, Enlarger().eval(), {"input": torch.from_numpy(picture)}, None, folder / "made-float")
        got = backend.load(written.path, 1).run(picture)
    inputs, outputs = (tuple(facts_of(port) for port in ports) for ports in (written.inputs, written.outputs))
    record = export_record(written.path, backend=config.backend)
    return ExportedFile(record, written.path, inputs, outputs, (TestVector("noise", (picture,), enlarge(picture), got),))


PLAN = PrecisionPlan((PlannedOperator("conv2d", "head", "conv2d", "int8", "above the floor", 44.0),), {"conv2d": ActivationRange(0.01, 3)})


def make_bundle(folder: Path, *files: ExportedFile) -> Path:
    shipped = files or (an_export(folder / "made"),)
    return write_bundle(folder / "bundle", run=a_run(*(file.record for file in shipped)), target=a_target(), files=shipped, plan=PLAN)


def replay_in(bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run the bundle's verify.py in an interpreter that cannot import torch or mcompress."""
    blocked = "import sys; sys.modules['torch'] = sys.modules['mcompress'] = None; import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-B", "-c", blocked, str(bundle / "verify.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
