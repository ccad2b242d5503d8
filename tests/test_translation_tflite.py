"""Generators of image translation as .tflite files: every operator found again, in XNNPACK, as precise as planned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import fx, nn
from translation_networks import images, resnet_generator, unet_generator
from translation_plans import decibels, planned

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.export import tflite
from mcompress.export.backend import Written, captured
from mcompress.export.tflite_edit import opened, shape_of
from mcompress.targets.exports import TFLiteConfig

ADDED = {"PAD", "QUANTIZE", "DEQUANTIZE"}
"""What stands for no operator of the network: the zeros around a convolution with stride, and conversions."""


@dataclass(frozen=True)
class Case:
    model: nn.Module
    program: fx.GraphModule
    plan: PrecisionPlan
    floats: Written
    mixed: Written


@pytest.fixture(scope="module", params=["resnet", "unet"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = resnet_generator() if request.param == "resnet" else unet_generator()
    program = graph_of(export_program(model, images(1)[0]))
    plan = planned(program, images(3), "fp32")
    folder = tmp_path_factory.mktemp("tflite")
    with captured(folder / "log.txt"):
        floats = tflite.write(TFLiteConfig(), model, images(1)[0], None, folder / "float")
        mixed = tflite.write(TFLiteConfig(), model, images(1)[0], plan, folder / "mixed")
    return Case(model, program, plan, floats, mixed)


@pytest.mark.export
def test_every_operator_is_found_again_and_in_xnnpack(case: Case) -> None:
    names = {operator.name for operator in case.plan.operators}
    for written in (case.floats, case.mixed):
        assert {name for operator in written.operators for name in operator.stands_for} == names
        assert {operator.unit for operator in written.operators} == {"xnnpack"}
        assert {operator.kind for operator in written.operators if not operator.stands_for} <= ADDED
        assert written.fallbacks == ()


@pytest.mark.export
def test_operators_have_their_planned_precision(case: Case) -> None:
    planned_as = {operator.name: operator.precision for operator in case.plan.operators}
    held = {(name, operator.precision) for operator in case.mixed.operators for name in operator.stands_for}
    assert held == set(planned_as.items())
    assert {"conv2d", "conv_transpose2d"} <= {operator.kind for operator in case.plan.operators if operator.precision == "int8"}


@pytest.mark.export
def test_the_float_file_computes_the_network(case: Case) -> None:
    value = images(2)[1]
    result = tflite.load(case.floats.path, 1).run(value.numpy())
    with torch.no_grad():
        assert np.abs(result - case.model(value).numpy()).max() < 1e-5


@pytest.mark.export
def test_the_mixed_file_computes_the_simulated_plan(case: Case) -> None:
    value = images(2)[1]
    to_plan, of_plan = decibels(case.program, case.plan, value, tflite.load(case.mixed.path, 1).run(value.numpy()))
    assert to_plan > min(of_plan, 35.0)  # an INT8 result that is rounded the other way changes the statistics of every norm behind it


@pytest.mark.export
def test_no_image_is_transposed(case: Case) -> None:
    for written in (case.floats, case.mixed):
        sheet = opened(written.path)
        moved = [operator for operator in sheet.operators if sheet.kind(operator) == "TRANSPOSE"]
        assert [shape_of(sheet.tensors[int(operator.outputs[0])]) for operator in moved] == []
