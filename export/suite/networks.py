"""Whole networks for validation: published architectures and our own, exported for real, none of which the suite contains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from mcompress.errors import ExportError
from mcompress.export.backend import BackendCall
from mcompress.export.suite.writer import Number

if TYPE_CHECKING:
    from torch import nn

PUBLISHED = (
    "resnet18",
    "resnet50",
    "regnet",
    "resnext50",
    "squeezenet1_1",
    "densenet121",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2",
    "facemap_3dmm",
    "quicksrnetmedium",
    "xlsr",
    "vit",
)
"""Of `mcompress.compress.networks`."""
OWN: dict[str, tuple[str, dict[str, JsonValue], tuple[int, ...]]] = {
    "mfagan": ("mfagan", {}, (1, 3, 64, 64)),
    "imdn": ("imdn", {}, (1, 3, 64, 64)),
    "rrdb_4": ("rrdb", {"blocks": 4}, (1, 3, 32, 32)),
    "patchgan": ("patchgan", {}, (1, 3, 128, 128)),
}
"""Name -> model of the zoo, its arguments, its input."""
NETWORKS = (*PUBLISHED, *OWN)
CALIBRATION_SAMPLES = 2
"""Random inputs; speed does not depend on scales."""


def export_network(name: str, number: Number, folder: Path) -> Path:
    """The network `name` of `NETWORKS` with random weights, as .tflite in fp32 or in INT8; made once. Raises `ExportError`."""
    path = folder / f"{name.replace('/', '_')}_{number}.tflite"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if number == "int8":
        return _quantized(export_network(name, "fp32", folder), path)
    import torch

    from mcompress.export.tflite import write
    from mcompress.targets.exports import TFLiteConfig

    build, shape = _builder(name)
    torch.manual_seed(0)
    unfinished = path.with_name(f"unfinished_{path.name}")
    write(TFLiteConfig(), build().eval(), {"input": torch.rand(shape)}, None, unfinished.with_suffix(""))
    unfinished.rename(path)
    return path


def _builder(name: str) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    from mcompress.compress.models.build import build
    from mcompress.compress.models.spec import ModelSpec
    from mcompress.compress.networks import NETWORKS as REFERENCES

    if name in OWN:
        network, args, shape = OWN[name]
        return lambda: build(ModelSpec(network, args, (), shape)), shape
    if name not in REFERENCES:
        raise ExportError(f"network '{name}' is not known; known are {', '.join(NETWORKS)}")
    return REFERENCES[name].build, REFERENCES[name].input_shape


def _quantized(source: Path, path: Path) -> Path:
    with BackendCall("tflite", f"quantize {source.name}", "Leave this network out of the validation."):
        from ai_edge_quantizer import quantizer, recipe

        worker = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        data = {"serving_default": list(_random_inputs(source))}
        worker.quantize(worker.calibrate(data)).export_model(str(path), overwrite=True)
        return path


def _random_inputs(path: Path) -> Iterator[dict[str, np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter

    random = np.random.default_rng(0)
    inputs = Interpreter(model_path=str(path)).get_signature_runner().get_input_details()
    for _ in range(CALIBRATION_SAMPLES):
        yield {name: random.random(tuple(details["shape"]), dtype=np.float32) for name, details in inputs.items()}
