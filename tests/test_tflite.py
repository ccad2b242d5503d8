"""A .tflite file holds the plan: every operator in its precision, read back from the file, computing what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import int8_plan
from numpy.typing import NDArray
from tflite_graphs import Made, packed, unpacked, write_tflite
from torch import Tensor, fx, nn
from torch.nn import functional

from mcompress.compress.quantize.fake_quant import fake_quantize_weight, sqnr_db, weight_scales
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.export import backend_named, tflite
from mcompress.export.backend import Written, captured
from mcompress.targets.exports import TFLiteConfig

pytestmark = pytest.mark.export
SHAPE = (1, 3, 16, 20)
FLOAT_OPERATORS = {"mean", "sigmoid"}
NOTE = b"reduced_precision_support"


class Gated(nn.Module):
    """A gate in float between INT8 operators, equal clamps, a clamp of what others read unclipped, a factor, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.body, self.up = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.tail = nn.Conv2d(6, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.head(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        z = functional.leaky_relu(self.body(y) * 8.0, 0.1)
        z = functional.hardtanh(z) + z * 0.5
        return functional.pixel_shuffle(functional.relu(self.tail(functional.relu(self.up(z)))) - 0.25, 2)


@dataclass(frozen=True)
class Case:
    model: nn.Module
    plans: dict[str, PrecisionPlan]
    files: dict[str, Written]


def images(count: int) -> list[Tensor]:
    return list(torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5)))


def with_precisions(plan: PrecisionPlan, precision: Callable[[str], Precision | None]) -> PrecisionPlan:
    return replace(plan, operators=tuple(replace(one, precision=precision(one.name) or one.precision) for one in plan.operators))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(3)
    model, folder = Gated().eval(), tmp_path_factory.mktemp("tflite")
    int8 = int8_plan(model, images(3))
    plans = {
        "int8": int8,
        "half": replace(with_precisions(int8, lambda _name: "fp16"), ranges={}),
        "mixed": with_precisions(int8, lambda name: {"conv2d_1": "fp32", "conv2d_2": "fp16", "mul_1": "fp16"}.get(name)),  # type: ignore[arg-type, return-value]
    }
    with captured(folder / "log.txt"):
        files = {name: tflite.write(TFLiteConfig(), model, {"input": images(1)[0]}, plan, folder / name) for name, plan in plans.items()}
        files["float"] = tflite.write(TFLiteConfig(), model, {"input": images(1)[0]}, None, folder / "float")
    return Case(model, plans, files)


def run(written: Written, value: Tensor, folder: Path) -> Tensor:
    with captured(folder / "log.txt"):
        return torch.from_numpy(tflite.load(written.path, 1).run(value.numpy()))


def values_of(graph: fx.GraphModule, value: Tensor) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}

    class Kept(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                found[n.name] = result.detach().numpy()
            return result

    with torch.no_grad():
        Kept(graph).run(value)
    return found


@pytest.mark.parametrize("name", ["int8", "mixed", "half"])
def test_every_operator_of_the_plan_is_in_the_file_as_planned(name: str, case: Case) -> None:
    plan, written = case.plans[name], case.files[name]
    standing = {planned: one for one in written.operators for planned in one.stands_for}
    assert set(standing) == {one.name for one in plan.operators}
    # fp16 is a matter of weights, and of a note for the whole file that a plan with fp32 cannot have.
    allowed = FLOAT_OPERATORS if name == "mixed" else set()
    wrong = {one.name for one in plan.operators if standing[one.name].precision != one.precision}
    assert wrong == allowed
    assert {item.what for item in written.fallbacks if item.reason.startswith("planned fp16, the file holds fp32")} == allowed
    assert written.precision_counts == {p: sum(one.precision == p for one in written.operators) for p in ("int8", "fp16", "fp32")}
    assert len({one.name for one in written.operators}) == len(written.operators) == written.coverage.total


def test_what_the_plan_keeps_in_float_does_not_become_int8(case: Case) -> None:
    # litert-torch's own INT8 mode makes INT8 of whatever stands between two conversions.
    kept = {planned for one in case.files["int8"].operators if one.precision != "int8" for planned in one.stands_for}
    assert kept == FLOAT_OPERATORS == {one.name for one in case.plans["int8"].operators if one.precision != "int8"}
    (gate,) = [one for one in case.files["int8"].operators if one.kind == "LOGISTIC"]
    assert (gate.precision, gate.computed, gate.unit) == ("fp16", "fp32", "xnnpack")
    assert any(item.what == "sigmoid" and "computed in fp32 here" in item.reason for item in case.files["int8"].fallbacks)


@pytest.mark.parametrize(("name", "least"), [("int8", 45.0), ("mixed", 45.0), ("half", 60.0)])
def test_files_compute_what_the_plan_says(name: str, least: float, case: Case, tmp_path: Path) -> None:
    value = images(4)[3]
    with torch.no_grad():
        expected = reference_program(case.model, value, case.plans[name])(value)
    assert sqnr_db(expected, run(case.files[name], value, tmp_path)) > least


def test_the_float_file_is_the_network(case: Case, tmp_path: Path) -> None:
    value = images(4)[3]
    with torch.no_grad():
        torch.testing.assert_close(run(case.files["float"], value, tmp_path), case.model(value), rtol=1e-5, atol=1e-5)
    assert set(case.files["float"].precision_counts.items()) == {("int8", 0), ("fp16", 0), ("fp32", case.files["float"].coverage.total)}
    assert {name for one in case.files["float"].operators for name in one.stands_for} == {one.name for one in case.plans["int8"].operators}
    assert not [item for item in case.files["float"].fallbacks if "planned" in item.reason]


def test_half_weights_are_the_only_rounding_of_an_fp16_file(case: Case, tmp_path: Path) -> None:
    rounded = Gated().eval()
    rounded.load_state_dict({key: value.half().float() if key.endswith("weight") else value for key, value in case.model.state_dict().items()})
    value = images(4)[3]
    with torch.no_grad():
        torch.testing.assert_close(run(case.files["half"], value, tmp_path), rounded(value), rtol=1e-5, atol=1e-5)


def test_int8_weights_are_those_of_the_plan(case: Case) -> None:
    from mcompress.export.tflite_edit import opened
    from mcompress.export.tflite_match import scales_of, stored

    sheet, state = opened(case.files["int8"].path), case.model.state_dict()
    places = {"conv2d": ("head", 0, (0, 2, 3, 1), 0), "conv2d_2": ("body", 0, (1, 2, 3, 0), 3), "conv_transpose2d": ("up", 1, (1, 2, 3, 0), 0)}
    for one in case.files["int8"].operators:
        for name in set(one.stands_for) & set(places):
            module, axis, order, _ = places[name]
            weight = state[f"{module}.weight"]
            tensor = int(sheet.operators[int(one.name.split("#")[1])].inputs[1])
            held, scales = stored(sheet, tensor), scales_of(sheet, tensor)
            assert held is not None
            assert held.dtype == np.int8
            assert scales.tolist() == weight_scales(weight, axis).tolist()
            spread = np.moveaxis(held.astype(np.float32), places[name][3], -1) * scales
            expected = fake_quantize_weight(weight, axis).permute(order).numpy()
            np.testing.assert_allclose(spread, np.moveaxis(expected, places[name][3], -1), rtol=1e-6)
            places.pop(name)
    assert not places


def test_size_and_note_follow_from_the_plan(case: Case) -> None:
    sizes = {name: written.path.stat().st_size for name, written in case.files.items()}
    assert sizes["half"] < sizes["float"]
    assert sizes["int8"] < sizes["float"]
    noted = {name: NOTE in written.path.read_bytes() for name, written in case.files.items()}
    assert noted == {"half": True, "int8": True, "mixed": False, "float": False}


def test_ports_follow_from_the_first_and_last_operators(case: Case) -> None:
    found = {name: (written.inputs[0].dtype, written.outputs[0].dtype) for name, written in case.files.items()}
    assert found == {"int8": ("int8", "int8"), "mixed": ("int8", "int8"), "half": ("float32", "float32"), "float": ("float32", "float32")}
    ranges = case.plans["int8"].ranges
    assert case.files["int8"].outputs[0].scale == pytest.approx(ranges["pixel_shuffle"].scale)


def test_int8_kernels_ask_for_the_runtime_that_has_them(case: Case) -> None:
    for name in ("int8", "mixed"):
        assert case.files[name].least_runtime is not None
        assert [int(part) for part in str(case.files[name].least_runtime).split()[-1].split(".")] >= [2, 3, 0]  # an INT8 transposed convolution


def test_float_results_inside_the_file_are_those_of_the_operators(case: Case, tmp_path: Path) -> None:
    from mcompress.export.tflite_tensors import in_layout_of, intermediates

    value, written = images(4)[3], case.files["float"]
    expected = values_of(graph_of(export_program(case.model, value)), value)
    with captured(tmp_path / "log.txt"):
        found = intermediates(written.path, [written.inputs[0].encode(value.numpy())])
    compared = set()
    for one in written.operators:
        assert one.output in found
        if one.stands_for and one.kind not in ("RESHAPE", "TRANSPOSE", "PAD"):
            form = in_layout_of(found[one.output], expected[one.stands_for[-1]])
            assert form is not None
            np.testing.assert_allclose(form, expected[one.stands_for[-1]], rtol=1e-4, atol=1e-5)
            compared.update(one.stands_for)
    assert compared | {"pixel_shuffle"} == {one.name for one in case.plans["int8"].operators}


def test_int8_results_inside_the_file_are_on_the_grid_of_the_plan(case: Case, tmp_path: Path) -> None:
    from mcompress.export.tflite_tensors import in_layout_of, intermediates

    value, written, plan = images(4)[3], case.files["int8"], case.plans["int8"]
    expected = values_of(reference_program(case.model, value, plan), value)
    with captured(tmp_path / "log.txt"):
        found = intermediates(written.path, [written.inputs[0].encode(value.numpy())])
    for one in written.operators:
        if one.precision == "int8" and one.stands_for and one.kind not in ("RESHAPE", "TRANSPOSE"):
            name = one.stands_for[-1]
            form = in_layout_of(found[one.output or ""], expected[name])
            assert form is not None
            low, high = plan.ranges[name].bounds
            # Two steps: an integer kernel may round a sum to the other side, and the operators in front of it too.
            assert float(np.abs(form - expected[name].clip(low, high)).max()) <= 2.5 * plan.ranges[name].scale, one


def test_weights_of_another_network_are_not_taken_for_the_plans(case: Case) -> None:
    from mcompress.export.tflite_planned import planned_program

    torch.manual_seed(4)
    other = planned_program(graph_of(export_program(Gated().eval(), images(1)[0])))
    found = tflite._read_back(case.files["int8"].path, other, case.plans["int8"])
    lost = {item.what for item in found.fallbacks if "not in the file" in item.reason}
    assert {"conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "conv_transpose2d"} <= lost
    assert all(one.reason and not one.stands_for for one in found.operators if one.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"))


def test_the_runtime_has_every_definition_that_is_written(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    from mcompress.export.tflite_kinds import ARITHMETIC, BOUNDS, LIMITS, MOVING, WEIGHTED, version_of

    kinds = sorted({*ARITHMETIC, *BOUNDS, *LIMITS, *MOVING, *WEIGHTED})
    path = write_tflite(tmp_path / "m.tflite", [Made(kind, "x", "y") for kind in kinds], {"x": SHAPE, "y": SHAPE}, "x", "y")
    model = unpacked(path)
    for kind, code in zip(kinds, model.operatorCodes, strict=True):
        code.version = version_of(kind)
    path.write_bytes(packed(model))
    with captured(tmp_path / "log.txt"):
        Interpreter(model_path=str(path))  # looks up every operator; one that it has not is a ValueError
    model.operatorCodes[kinds.index("RELU_0_TO_1")].version = 2
    path.write_bytes(packed(model))
    with captured(tmp_path / "log.txt"), pytest.raises(ValueError, match="'RELU_0_TO_1' version '2'"):
        Interpreter(model_path=str(path))


class Clamped(nn.Module):
    """A clamp of a value that is read unclipped too, so that it cannot be left to the range of the tensor."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 4.0
        clipped: Tensor = self.last(y.clamp(self.low, self.high)) + self.last(y)
        return clipped


@pytest.mark.parametrize(("low", "high", "kind"), [(0.0, 1.0, "RELU_0_TO_1"), (0.0, 6.0, "RELU6")])
def test_a_clamp_is_an_int8_kernel_that_runtimes_have(low: float, high: float, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Clamped(low, high).eval()
    plan = int8_plan(model, images(3))
    with captured(tmp_path / "log.txt"):
        written = tflite.write(TFLiteConfig(), model, {"input": images(1)[0]}, plan, tmp_path / "clamped")
    assert {one.kind: one.precision for one in written.operators if "clamp" in one.stands_for} == {kind: "int8"}
    value = images(4)[3]
    with torch.no_grad():
        expected = reference_program(model, value, plan)(value)
    assert sqnr_db(expected, run(written, value, tmp_path)) > 40.0


def test_weights_that_do_not_fit_into_float16_stay_and_are_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    with torch.no_grad():
        next(model[0].parameters())[0, 0] = 1e5
    plan = replace(with_precisions(int8_plan(model, images(1)), lambda _name: "fp16"), ranges={})
    with captured(tmp_path / "log.txt"):
        written = backend_named("tflite").write(TFLiteConfig(), model, {"input": images(1)[0]}, plan, tmp_path / "large")
    said = {item.what: item.reason for item in written.fallbacks}
    assert "do not fit into float16" in said["conv2d"]
    assert [one.precision for one in written.operators if one.kind == "CONV_2D"] == ["fp32", "fp16"]
    assert NOTE not in written.path.read_bytes()
