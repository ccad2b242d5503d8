"""All backends compute what a symmetric plan says, at its scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from symmetric_networks import Branches, images, symmetric_plan
from torch import nn

from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import simulate
from mcompress.export import backend_named
from mcompress.export.backend import captured
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig(), "executorch": ExecuTorchConfig()}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return Branches().eval()


@pytest.mark.export
@pytest.mark.parametrize("backend", CONFIGS)
def test_all_backends_compute_the_symmetric_plan(backend: str, network: nn.Module, tmp_path: Path) -> None:
    plan, value = symmetric_plan(network), images(4)[3]
    expected = simulate(graph_of(export_program(network, value)), plan, value)
    with captured(tmp_path / "log.txt"):
        written = backend_named(backend).write(CONFIGS[backend], network, {"input": value}, plan, tmp_path / "made")
        runner = backend_named(backend).load(written.path, 1)
        found = runner.run(value.numpy())
    assert sqnr_db(expected, torch.from_numpy(found)) > 40
    assert written.precision_counts["int8"] >= 6
    if backend == "tflite":
        ports = [*written.inputs, *written.outputs]
        assert [(port.dtype, port.zero_point, port.scale) for port in ports] == [
            ("int8", 0, pytest.approx(plan.ranges[name].scale)) for name in ("x", "conv2d_2")
        ]
