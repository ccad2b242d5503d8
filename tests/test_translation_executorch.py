"""Generators of image translation as .pte files: every operator found again, in one XNNPACK delegate, as precise as planned."""

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
from mcompress.export import executorch
from mcompress.export.backend import Written, captured
from mcompress.export.executorch_file import read
from mcompress.export.executorch_match import LAYOUTS
from mcompress.targets.exports import ExecuTorchConfig


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
    plan = planned(program, images(3), "fp16")
    folder = tmp_path_factory.mktemp("executorch")
    with captured(folder / "log.txt"):
        floats = executorch.write(ExecuTorchConfig(), model, images(1)[0], None, folder / "float")
        mixed = executorch.write(ExecuTorchConfig(), model, images(1)[0], plan, folder / "mixed")
    return Case(model, program, plan, floats, mixed)


@pytest.mark.export
def test_every_operator_is_found_again_and_in_xnnpack(case: Case) -> None:
    names = {operator.name for operator in case.plan.operators}
    for written in (case.floats, case.mixed):
        assert {name for operator in written.operators for name in operator.stands_for} == names
        assert {operator.unit for operator in written.operators} == {"xnnpack"}
        assert {operator.kind for operator in written.operators if not operator.stands_for} <= {"XNNStaticTranspose"}
        assert written.fallbacks == ()


@pytest.mark.export
def test_operators_have_their_planned_precision(case: Case) -> None:
    held = {(name, operator.precision) for operator in case.mixed.operators for name in operator.stands_for}
    assert held == {(operator.name, operator.precision) for operator in case.plan.operators}
    assert {"conv2d", "conv_transpose2d"} <= {operator.kind for operator in case.plan.operators if operator.precision == "int8"}


@pytest.mark.export
def test_the_float_file_computes_the_network(case: Case) -> None:
    value = images(2)[1]
    result = executorch.load(case.floats.path, 1).run(value.numpy())
    with torch.no_grad():
        assert np.abs(result - case.model(value).numpy()).max() < 1e-5


@pytest.mark.export
def test_the_mixed_file_computes_the_simulated_plan(case: Case) -> None:
    value = images(2)[1]
    to_plan, of_plan = decibels(case.program, case.plan, value, executorch.load(case.mixed.path, 1).run(value.numpy()))
    assert to_plan > min(of_plan, 35.0)  # an INT8 result that is rounded the other way changes the statistics of every norm behind it


@pytest.mark.export
def test_images_are_transposed_at_the_ends_only(case: Case) -> None:
    for written in (case.floats, case.mixed):
        file = read(written.path)
        images_moved = [
            node
            for node in file.nodes
            if node.kind == "XNNStaticTranspose"
            and sum(size > 1 for size in file.tensors[node.output].shape) > 1
            and node.attributes["perm"] in LAYOUTS
        ]
        assert len(images_moved) == 2
