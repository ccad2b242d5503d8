"""Generators of image translation as .tflite and .pte files: every operator found again, in XNNPACK, as precise as planned, no image transposed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import fx, nn
from translation_networks import images, resnet_generator, unet_generator
from translation_plans import decibels, planned

from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.export import executorch, tflite
from mcompress.export.backend import Written, captured
from mcompress.export.divergence import Examined, examine
from mcompress.export.executorch_file import read
from mcompress.export.executorch_match import LAYOUTS
from mcompress.export.tflite_edit import opened
from mcompress.targets.exports import ExecuTorchConfig, ExportConfig, TFLiteConfig

pytestmark = pytest.mark.export


@dataclass(frozen=True)
class Format:
    """A backend whose files run in XNNPACK."""

    backend: ModuleType
    config: ExportConfig
    rest: Precision
    """What no INT8 kernel computes."""
    added: frozenset[str]
    """What stands for no operator of the network: conversions, and what comes before a convolution with stride or at the ends of a file."""


FORMATS = {
    "tflite": Format(tflite, TFLiteConfig(), "fp32", frozenset(("PAD", "QUANTIZE", "DEQUANTIZE"))),
    "executorch": Format(executorch, ExecuTorchConfig(), "fp16", frozenset(("XNNStaticTranspose",))),
}
NETWORKS = {"resnet": resnet_generator, "unet": unet_generator}


@dataclass(frozen=True)
class Case:
    name: str
    model: nn.Module
    program: fx.GraphModule
    plan: PrecisionPlan
    floats: Written
    mixed: Written

    @property
    def format(self) -> Format:
        return FORMATS[self.name]

    def run(self, written: Written) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        result: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = self.format.backend.load(written.path, 1).run(images(2)[1].numpy())
        return result


@pytest.fixture(scope="module", params=[(name, network) for name in FORMATS for network in NETWORKS], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, network = request.param
    made, model = FORMATS[name], NETWORKS[network]()
    program = graph_of(export_program(model, images(1)[0]))
    plan = planned(program, images(3), made.rest)
    folder = tmp_path_factory.mktemp(name)
    with captured(folder / "log.txt"):
        floats = made.backend.write(made.config, model, {"input": images(1)[0]}, None, folder / "float")
        mixed = made.backend.write(made.config, model, {"input": images(1)[0]}, plan, folder / "mixed")
    return Case(name, model, program, plan, floats, mixed)


def test_every_operator_is_found_again_and_in_xnnpack(case: Case) -> None:
    names = {operator.name for operator in case.plan.operators}
    for written in (case.floats, case.mixed):
        assert {name for operator in written.operators for name in operator.stands_for} == names
        assert {operator.unit for operator in written.operators} == {"xnnpack"}
        assert {operator.kind for operator in written.operators if not operator.stands_for} <= case.format.added
        assert written.fallbacks == ()


def test_operators_have_their_planned_precision(case: Case) -> None:
    held = {(name, operator.precision) for operator in case.mixed.operators for name in operator.stands_for}
    assert held == {(operator.name, operator.precision) for operator in case.plan.operators}
    assert {"conv2d", "conv_transpose2d"} <= {operator.kind for operator in case.plan.operators if operator.precision == "int8"}


def test_the_float_file_computes_the_network(case: Case) -> None:
    with torch.no_grad():
        assert np.abs(case.run(case.floats) - case.model(images(2)[1]).numpy()).max() < 1e-5


def test_the_mixed_file_computes_the_simulated_plan(case: Case) -> None:
    to_plan, of_plan = decibels(case.program, case.plan, images(2)[1], case.run(case.mixed))
    assert to_plan > min(of_plan, 35.0)  # an INT8 result that is rounded the other way changes the statistics of every norm behind it


def test_each_operator_of_the_mixed_file_is_right_by_itself(case: Case) -> None:
    """What a limit below the usual one rests on (`mcompress.export.proof`): nothing is left that was not recomputed."""
    found = examine(case.name, case.mixed.path, case.model, case.plan, case.mixed.operators, images(2)[1].numpy())
    assert found == Examined(None, ())


def test_no_image_is_transposed_but_at_the_ends_of_a_pte_file(case: Case) -> None:
    moved = _transposed_in_tflite if case.name == "tflite" else _transposed_in_executorch
    assert {moved(written.path) for written in (case.floats, case.mixed)} == {0 if case.name == "tflite" else 2}


def _transposed_in_tflite(path: Path) -> int:
    sheet = opened(path)
    return sum(sheet.kind(operator) == "TRANSPOSE" for operator in sheet.operators)


def _transposed_in_executorch(path: Path) -> int:
    """What moves no value (one side is longer than 1) does not count."""
    file = read(path)
    moves = (node for node in file.nodes if node.kind == "XNNStaticTranspose" and node.attributes["perm"] in LAYOUTS)
    return sum(sum(size > 1 for size in file.tensors[node.output].shape) > 1 for node in moves)
