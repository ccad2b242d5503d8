"""INT8 activations with zero points of 0: calibrated, planned, learned, and asked for by the device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from int8_plans import quiet
from pydantic import ValidationError
from symmetric_networks import Branches, images, symmetric_plan
from torch import Tensor, nn

from mcompress.calibration.device_file import device_text
from mcompress.calibration.observers import Observer
from mcompress.compress.checkpoints import NoCheckpoints
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.fake_quant import fake_quantize
from mcompress.compress.quantize.plan import ActivationRange, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.quantize.recovery.distilled import Student
from mcompress.compress.quantize.recovery.recover import RecoveryOptions, recover
from mcompress.compress.quantize.simulate import simulate
from mcompress.compress.stage import StageContext
from mcompress.errors import UsageError
from mcompress.planning import plan as plan_target
from mcompress.targets.device import Device, Int8Activations
from mcompress.targets.device_files import load_device, parse_device
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.load import load_target
from mcompress.targets.stages import QuantizeConfig

CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig(), "executorch": ExecuTorchConfig()}
SPEC = ModelSpec("imdn", {"features": 16, "blocks": 1}, (), (1, 3, 24, 24))
QUICK = QuantizeConfig(samples=5, sensitivity_samples=1, verify_samples=2, sensitivity_size=16, within=50.0, recover=("equalize",))
MakeContext = Callable[..., StageContext]
floats = st.floats(-1e3, 1e3, width=32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return Branches().eval()


def zero_points(plan: PrecisionPlan) -> set[int]:
    return {found.zero_point for found in plan.ranges.values()}


def observed(*values: Tensor) -> Observer:
    observer = Observer()
    for value in values:
        observer.observe(value)
    return observer


@given(st.lists(floats, min_size=1, max_size=20))
def test_the_scale_is_the_largest_magnitude_over_127(values: list[float]) -> None:
    largest = float(np.abs(np.float32(values)).max())
    found = ActivationRange.from_magnitude(observed(torch.tensor(values)).magnitude("minmax"))
    assert found == ActivationRange(float(np.float32(max(largest / 127, 1e-9))), 0)
    rounded = fake_quantize(torch.tensor(values), found)
    expected = np.clip(np.round(np.float32(values) / np.float32(found.scale)), -128, 127) * np.float32(found.scale)
    np.testing.assert_allclose(rounded.numpy(), expected, atol=found.scale / 1000)
    assert float((rounded - torch.tensor(values)).abs().max()) <= found.scale * 0.5001


def test_outliers_on_either_side_are_clipped_where_that_costs_less() -> None:
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    for outlier in (-40.0, 40.0):
        seen = observed(normal, torch.tensor([outlier]))
        assert seen.magnitude("minmax") == 40.0
        assert seen.magnitude("percentile") < 5.0
        values = torch.cat((normal, torch.tensor([outlier])))
        error = {at: float((fake_quantize(values, ActivationRange.from_magnitude(at)) - values).square().sum()) for at in (40.0, *range(9, 40))}
        chosen = seen.magnitude("mse")
        assert chosen == pytest.approx(min(error, key=lambda at: error[at]), abs=1.5)
        assert chosen < 30
    half = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    assert observed(half).magnitude("mse") == pytest.approx(observed(-half).magnitude("mse"), rel=1e-3)
    assert observed(torch.zeros(3)).magnitude("mse") == 0.0
    with pytest.raises(ValueError, match="no activation was observed"):
        Observer().magnitude("mse")


def test_no_value_of_a_picture_lies_between_two_steps() -> None:
    levels = np.arange(256)
    for values in (levels / 255, levels / 127.5 - 1):
        steps = values / ActivationRange.from_magnitude(1.0).scale
        assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-3


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_every_tensor_has_the_zero_point_0(method: str, network: nn.Module) -> None:
    program = graph_of(export_program(network, images(1)[0]))
    ranges, seen = calibrate(program, ((one,) for one in images(3)), method, [(0.0, 1.0)], 3, quiet, "symmetric")  # type: ignore[arg-type]
    assert seen == 3
    assert {found.zero_point for found in ranges.values()} == {0}
    assert ranges["x"].scale == np.float32(1 / 127)
    assert ranges["cat"] == ranges["relu"] == ranges["leaky_relu"], "what is concatenated has one scale"
    largest: dict[str, float] = {}
    for value in images(3):
        made = torch.relu(network.get_submodule("first")(value))
        largest["relu"] = max(largest.get("relu", 0.0), float(made.detach().abs().max()))
    if method == "minmax":
        assert ranges["relu"].scale * 127 >= largest["relu"] * (1 - 1e-6)


def test_a_range_around_zero_is_held_whole() -> None:
    program = graph_of(export_program(nn.Sequential(nn.Conv2d(1, 1, 1)).eval(), torch.zeros(1, 1, 4, 4)))
    ranges, _ = calibrate(program, iter([(torch.zeros(1, 1, 4, 4),)]), "mse", [(-4.0, 3.0)], 1, quiet, "symmetric")
    assert ranges["input_1"] == ActivationRange(float(np.float32(4 / 127)), 0)


def test_plans_say_it_and_older_ones_are_asymmetric(network: nn.Module) -> None:
    for plan in (symmetric_plan(network), symmetric_plan(network, "asymmetric")):
        assert PrecisionPlan.from_json(plan.to_json()) == plan
    asymmetric = json.loads(plan.to_json())
    del asymmetric["activations"]
    assert PrecisionPlan.from_json(json.dumps(asymmetric)) == plan
    with pytest.raises(UsageError, match=r"its activations are symmetric, and the zero point of 'conv2d_1' is -?\d+; symmetric ones are 0"):
        PrecisionPlan.from_json(replace(plan, activations="symmetric", ranges={"conv2d_1": ActivationRange(0.5, 3)}).to_json())
    with pytest.raises(UsageError, match="activations is 'even': input should be 'asymmetric' or 'symmetric'"):
        PrecisionPlan.from_json(json.dumps(asymmetric | {"activations": "even"}))


def test_the_simulation_is_the_reference_program(network: nn.Module) -> None:
    plan, value = symmetric_plan(network), images(4)[3]
    assert plan.counts()["int8"] == len(plan.operators)
    simulated = simulate(graph_of(export_program(network, value)), plan, value)
    assert torch.equal(simulated, reference_program(network, value, plan)(value))
    (scale,) = {found.scale for name, found in plan.ranges.items() if name == "conv2d_2"}
    steps = simulated / scale
    assert torch.allclose(steps, steps.round(), atol=1e-3), "the output is on its grid, around 0"


def test_recovery_and_learned_ranges_keep_it(network: nn.Module) -> None:
    plan, program = symmetric_plan(network), graph_of(export_program(network, images(1)[0]))
    recovered = recover(RecoveryOptions(((0.0, 1.0),)), program, plan, lambda: ((one,) for one in images(6)), 0, NoCheckpoints(), quiet)
    assert recovered.steps
    assert {found.zero_point for found in recovered.ranges.values()} == {0}
    student = Student(program, plan)
    with torch.no_grad():
        for bound in student.bounds.values():
            bound.add_(0.5)
    _, learned = student.result()
    assert (zero_points(learned), learned.activations) == ({0}, "symmetric")
    changed = {name: found.scale / plan.ranges[name].scale for name, found in learned.ranges.items() if name in student.group_of}
    assert changed == pytest.approx(dict.fromkeys(changed, np.exp(0.25)), rel=1e-5)
    value = images(1)[0]
    output = student(value)
    output.square().sum().backward()
    assert all(bound.grad is not None and bound.grad.shape == (1,) for bound in student.bounds.values())


@pytest.mark.parametrize("name", ["jetson-xavier-nx", "jetson-agx-xavier"])
def test_the_boards_of_tensor_rt_declare_it(name: str) -> None:
    device = load_device(name)
    gpu = device.unit()
    assert (gpu.name, gpu.activations) == ("gpu", "symmetric")
    assert device.units["cpu"].activations == "asymmetric"
    assert gpu.int8_activations is not None
    assert "zero points other than 0" in device.sources[gpu.int8_activations.source].text
    assert parse_device(device_text(device, "again"), "again.yaml") == device


def test_other_devices_take_any_zero_points() -> None:
    device = load_device("snapdragon865")
    assert {unit.activations for unit in device.units.values()} == {"asymmetric"}
    assert "int8_activations" not in device_text(device, "as it is")
    data = device.model_dump()
    data["units"]["cpu"]["int8_activations"] = {"scheme": "symmetric", "source": "nowhere"}
    with pytest.raises(ValidationError, match=r"units\.cpu\.int8_activations\.source is 'nowhere', which is not in sources"):
        Device.model_validate(data)
    data["units"]["cpu"]["int8_activations"] = {"scheme": "even", "source": "memory"}
    with pytest.raises(ValidationError, match="Input should be 'asymmetric' or 'symmetric'"):
        Device.model_validate(data)


def test_the_devices_unit_decides_unless_the_stage_is_told(make_context: MakeContext) -> None:
    context = make_context(SPEC)
    declared = context.unit.model_copy(update={"title": "Such a unit", "int8_activations": Int8Activations(scheme="symmetric", source="memory")})
    context = replace(context, unit=declared)
    output = quantize(QUICK, context)
    assert output.plan is not None
    assert output.plan.counts()["int8"]
    assert (zero_points(output.plan), output.plan.activations, output.details["activations"]) == ({0}, "symmetric", "symmetric")
    assert not [fallback for fallback in output.fallbacks if fallback.what == "zero points"]
    told = quantize(QUICK.model_copy(update={"activations": "asymmetric"}), context)
    assert told.plan is not None
    assert told.plan.activations == "asymmetric"
    assert len(zero_points(told.plan)) > 1
    (doubt,) = (fallback.reason for fallback in told.fallbacks if fallback.what == "zero points")
    assert doubt.startswith("Such a unit takes INT8 with zero points of 0 only")


def test_configuration_is_checked() -> None:
    assert QuantizeConfig().activations is None
    with pytest.raises(ValidationError, match="Input should be 'asymmetric' or 'symmetric'"):
        QuantizeConfig.model_validate({"activations": "even"})
    with pytest.raises(ValidationError, match="plan is applied as it is, so activations would change nothing; remove activations, or plan"):
        QuantizeConfig.model_validate({"plan": "mine.json", "activations": "symmetric"})


def test_the_stages_key_depends_on_it(tmp_path: Path) -> None:
    def key(device: str, unit: str, more: str = "") -> dict[str, object]:
        path = tmp_path / "target.yaml"
        path.write_text(
            f"name: two\ndevice: {device}\nunit: {unit}\nmodel: {{task: super_resolution, input_shape: [1, 3, 32, 32]}}\n"
            f"stages:\n  - {{stage: quantize{more}}}\nexports:\n  - {{backend: onnx}}\n"
        )
        made = plan_target(load_target(path))
        return dict(made.key_parts("quantize", made.target.stages[0], "parent"))

    gpu = key("jetson-xavier-nx", "gpu")
    assert gpu["activations"] == "symmetric"
    assert key("jetson-xavier-nx", "cpu")["activations"] == "asymmetric"
    told = key("jetson-xavier-nx", "gpu", ", activations: asymmetric")
    assert told["activations"] == "asymmetric"
    assert told != gpu
