"""Tiny bundles that the gate can compare, each a little different: what its tests read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from operator_rows import pixel_shuffle, row
from pydantic import JsonValue
from tiny_bundle import PLAN, SCALE, SIDE, a_run, a_target, an_export, enlarge, export_record, facts, kernel

from mcompress.export.bundle import ExportedFile, TestVector, write_bundle
from mcompress.export.comparison import Comparison, NetworkCost, constants_of, plain_operators, stored_estimate
from mcompress.targets.device_files import load_device
from mcompress.targets.gate import Gate
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.speeds import PrecisionName

PACKAGES = {"mcompress": "0.1.0", "onnxruntime": "1.31.1", "onnx": "1.23.2", "ai-edge-litert": "2.3.0"}
PIXELS = 192
"""Side of what the table describes: a network that is worth estimating, whatever tiny one lies in the file."""
MODEL: JsonValue = {"network": "rrdb", "args": {"features": 8, "blocks": 1}}


def convolution(name: str, inputs: int, outputs: int, side: int = PIXELS) -> Operator:
    return row("convolution", inputs, outputs, side, name=name)


def shuffle(name: str = "shuffle", side: int = PIXELS) -> Operator:
    return pixel_shuffle(3, SCALE, side, name)


def table(middle: int = 64) -> OperatorTable:
    """Three convolutions, the one in the middle with so many channels inside, and a shuffle."""
    rows = (convolution("head", 3, 64), convolution("middle", 64, middle), convolution("tail", middle, 3 * SCALE * SCALE), shuffle())
    return OperatorTable(rows, sum(row.weight_elements for row in rows))


def a_comparison(
    operators: OperatorTable | None = None,
    precisions: PrecisionName | Mapping[str, PrecisionName] = "fp16",
    files: tuple[str, ...] = ("tiny-float.onnx",),
    **more: object,
) -> Comparison:
    operators, device = operators or table(), load_device("snapdragon865")
    values: dict[str, object] = {
        "model": MODEL,
        "held_out": "ab" * 32,
        "gate": Gate(),
        "constants": constants_of(device),
        "packages": PACKAGES,
        "cpu": "a processor",
        "network": NetworkCost(params=operators.params, macs=operators.macs, peak_memory_bytes=operators.peak_activation_elements * 4),
        "table": plain_operators(operators),
        "files": {name: stored_estimate(operators, device, "gpu", precisions) for name in files},
    }
    return Comparison.model_validate({**values, **more})


def gate_bundle(
    folder: Path,
    comparison: Comparison | None = None,
    *,
    export: Callable[[ExportedFile], ExportedFile] = lambda export: export,
    target: Mapping[str, object] | None = None,
    weights: np.ndarray | None = None,
) -> Path:
    """A bundle at `folder/bundle`; `export` changes its file's facts, `weights` its kernel."""
    made = an_export(folder / "made")
    if weights is not None:
        made = with_weights(made, weights)
    made = export(made)
    compared = with_pictures(comparison or a_comparison(), made)
    return write_bundle(folder / "bundle", run=a_run(made.record), target=a_target(**(target or {})), files=(made,), plan=PLAN, comparison=compared)


def with_pictures(comparison: Comparison, *files: ExportedFile) -> Comparison:
    """What a run puts in of each file's pictures."""
    return comparison.model_copy(update={"pictures": {file.path.name: file.record.pictures for file in files if file.record.pictures}})


def with_weights(made: ExportedFile, weights: np.ndarray) -> ExportedFile:
    """The same network with another kernel."""
    model = onnx.load(str(made.path))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weight"))
    onnx.save(model, str(made.path))
    return replace(made, record=export_record(made.path))


def recorded(made: ExportedFile, **more: object) -> ExportedFile:
    """The same file with other findings."""
    return replace(made, record=made.record.model_copy(update=more))


def second_file(folder: Path) -> ExportedFile:
    """A mixed file beside the float one; the same network."""
    made = an_export(folder / "made")
    path = made.path.with_name("tiny-mixed.onnx")
    path.write_bytes(made.path.read_bytes())
    picture = np.random.default_rng(5).random((1, 3, SIDE, SIDE), dtype=np.float32)
    vector = TestVector("coffee / left", (picture,), reference=enlarge(picture), expected=enlarge(picture))
    record = export_record(path, variant="mixed", precision_counts={"int8": 2, "fp16": 0, "fp32": 0}, recommended=False)
    return ExportedFile(record, path, (facts("input", SIDE),), (facts("output", SIDE * SCALE),), (vector,))


OTHER_WEIGHTS = kernel() * np.float32(0.5)
