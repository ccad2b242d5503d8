"""Core ML packages honour the plan: written, read back from the saved files operator by operator, and computed off macOS."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import int8_plan
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, reference_program
from mcompress.errors import ExportError, MissingBackendError
from mcompress.export import coreml, parity
from mcompress.export.backend import Written, captured
from mcompress.export.coreml_names import source_of
from mcompress.export.honoured import FileOperator
from mcompress.export.mil.program import read_program
from mcompress.export.mil.proto import model_messages
from mcompress.targets.exports import CoreMLConfig

pytestmark = pytest.mark.export
CHANNELS = 16
PLANNED: dict[str, Precision] = {
    "conv2d": "int8",
    "relu": "int8",
    "conv2d_1": "fp32",
    "leaky_relu": "fp16",
    "slice_1": "fp16",
    "slice_2": "fp16",
    "group_norm": "fp32",
    "conv2d_2": "fp16",
    "mul": "fp32",
    "cat": "fp16",
    "conv2d_3": "int8",
    "add": "fp16",
    "sigmoid": "fp32",
}
WEIGHTS = {"conv2d": "int8", "conv2d_1": "fp32", "mul": "fp32", "conv2d_3": "int8"}
"""Operator of the file -> how its weights are stored. `mul` is multiplied into `conv2d_2`, and both become FP32."""


class Branches(nn.Module):
    """INT8 read by INT8 and by FP32, an activation in place, a split, a constant behind a convolution, an operator that Core ML writes as several."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.narrow = (nn.Conv2d(count, CHANNELS, 3, padding=1) for count in (3, CHANNELS, CHANNELS))
        self.light, self.norm = nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 1), nn.GroupNorm(2, CHANNELS // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first(x))
        kept, rest = functional.leaky_relu(self.wide(y), 0.1, inplace=True).split([CHANNELS // 2, CHANNELS // 2], 1)
        joined = torch.cat((self.light(self.norm(kept)) * 0.2, rest), 1)
        return torch.sigmoid(joined + self.narrow(y))


def inputs(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(5)
    return [torch.rand(1, 3, 12, 16, generator=source) for _ in range(count)]


def write(config: CoreMLConfig, model: nn.Module, plan: PrecisionPlan | None, stem: Path) -> Written:
    with captured(stem.parent / "log.txt"):
        return coreml.write(config, model, {"input": inputs(1)[0]}, plan, stem)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return Branches().eval()


@pytest.fixture(scope="module")
def plan(network: nn.Module) -> PrecisionPlan:
    everything = int8_plan(network, inputs(2))
    assert {operator.name for operator in everything.operators} == set(PLANNED)
    return PrecisionPlan(tuple(replace(operator, precision=PLANNED[operator.name]) for operator in everything.operators), everything.ranges)


@pytest.fixture(scope="module")
def written(network: nn.Module, plan: PrecisionPlan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """The float file, the mixed file, and the mixed file for iOS 18."""
    folder = tmp_path_factory.mktemp("coreml")
    later = CoreMLConfig(minimum_deployment_target="iOS18")
    return {
        "float": write(CoreMLConfig(), network, None, folder / "float"),
        "mixed": write(CoreMLConfig(), network, plan, folder / "mixed"),
        "iOS18": write(later, network, plan, folder / "later"),
    }


def standing(written: Written) -> dict[str, list[FileOperator]]:
    found: dict[str, list[FileOperator]] = {}
    for operator in written.operators:
        for name in operator.stands_for:
            found.setdefault(name, []).append(operator)
    return found


@pytest.mark.parametrize("which", ["mixed", "iOS18"])
def test_every_operator_is_written_as_planned(which: str, written: dict[str, Written]) -> None:
    found = standing(written[which])
    assert set(found) == set(PLANNED)
    precisions = {name: {operator.precision for operator in operators} for name, operators in found.items()}
    wanted = {name: {precision} for name, precision in PLANNED.items()} | {"conv2d_2": {"fp32"}}  # merged with an FP32 operator
    assert precisions == wanted
    assert found["conv2d_2"] == found["mul"]
    assert len(found["group_norm"]) > 3
    assert written[which].precision_counts == {p: sum(o.precision == p for o in written[which].operators) for p in ("int8", "fp16", "fp32")}


@pytest.mark.parametrize("which", ["mixed", "iOS18"])
def test_what_could_not_be_honoured_is_said_and_nothing_else(which: str, written: dict[str, Written]) -> None:
    said = {fallback.what: fallback.reason for fallback in written[which].fallbacks if fallback.what != "all"}
    assert said.pop("conv2d_2").startswith("planned fp16, the file holds fp32: coremltools merged conv2d_2 and mul into one operator")
    assert said == {"mul": "coremltools multiplied a constant into the weights of 'conv2d_2'; equal up to that factor"}


def test_the_float_file_is_fp16_throughout(written: dict[str, Written]) -> None:
    operators = written["float"].operators
    assert {operator.precision for operator in operators} == {"fp16"}
    assert set(standing(written["float"])) == set(PLANNED)
    assert written["float"].coverage.by_unit == {"decided on the device": len(operators)}


def test_every_output_is_a_value_of_the_file(written: dict[str, Written]) -> None:
    for one in written.values():
        values = set(read_program(one.path).main.producers())
        assert all(operator.output in values for operator in one.operators)
        assert len({operator.name for operator in one.operators}) == len(one.operators)


def test_weights_are_stored_as_planned_and_the_size_follows(network: nn.Module, written: dict[str, Written]) -> None:
    main = read_program(written["mixed"].path).main
    producers = main.producers()
    stored = {}
    for operation in main.operations:
        if operation.type == "conv":
            (weight,) = operation.inputs["weight"]
            assert isinstance(weight, str)
            maker = producers[weight]
            stored[operation.name] = maker.attributes["quantized_data" if maker.type.startswith("constexpr") else "val"].type.dtype
    assert stored == WEIGHTS
    for which, precision_of in (("float", dict.fromkeys(WEIGHTS, "fp16")), ("mixed", WEIGHTS)):
        weight_file = next(written[which].path.rglob("weight.bin"))
        found = weight_file.stat().st_size
        assert 64 * math.ceil(found / 64) == expected_bytes(network, precision_of), which  # what comes last is not filled up


def expected_bytes(network: nn.Module, precision_of: dict[str, str]) -> int:
    """A header of 64 bytes; per constant of 10 values and more 64 bytes that describe it, and its bytes filled up to 64."""
    modules = dict(zip(WEIGHTS, ("first", "wide", "light", "narrow"), strict=True))
    total = 64
    for operator, precision in precision_of.items():
        module = network.get_submodule(modules[operator])
        weight, bias = module.get_parameter("weight").numel(), module.get_parameter("bias").numel()
        width = {"int8": 1, "fp16": 2, "fp32": 4}[precision]
        constants = [weight * width] + ([bias * max(width, 2)] if bias >= 10 else [])
        if precision == "int8":
            constants += [2 * CHANNELS, CHANNELS]  # scales in fp16, zero points
        total += sum(64 + 64 * math.ceil(size / 64) for size in constants)
    return total


@pytest.mark.parametrize("which", ["float", "mixed", "iOS18"])
def test_files_compute_what_the_network_computes(which: str, network: nn.Module, plan: PrecisionPlan, written: dict[str, Written]) -> None:
    runner = coreml.load(written[which].path, 1)
    held_out = [value.numpy() for value in inputs(4)[2:]]
    if which == "float":
        with torch.no_grad():
            expected = network(torch.from_numpy(held_out[0])).numpy()
        assert float(np.abs(runner.run(held_out[0]) - expected).max()) < 2e-3  # outputs are below 1
        return
    record = parity.int8_parity(runner, reference_program(network, inputs(1)[0], plan), [(value,) for value in held_out], 40.0)
    assert record.passed, record
    if not coreml.executes_here():
        assert "evaluator" in record.runtime
    assert (runner.inputs, runner.outputs) == (written[which].inputs, written[which].outputs)


class Unbound(nn.Module):
    """Operators with several results, which are no splits: an unbind, and a maximum with its index."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 2 * CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x).unflatten(1, (2, CHANNELS)).unbind(1)
        joined: Tensor = self.last(one) + torch.max(other, 1, keepdim=True)[0]
        return joined


def test_parts_of_one_operator_share_the_widest_precision_planned_for_them(tmp_path: Path) -> None:
    model = Unbound().eval()
    everything = int8_plan(model, inputs(1))
    parts: dict[str, Precision] = {"getitem": "fp32", "getitem_1": "fp16", "getitem_2": "fp16"}
    assert set(parts) < {operator.name for operator in everything.operators}
    plan = replace(everything, operators=tuple(replace(one, precision=parts.get(one.name, "fp16")) for one in everything.operators), ranges={})
    made = write(CoreMLConfig(), model, plan, tmp_path / "unbound")
    precisions = {name: {operator.precision for operator in operators} for name, operators in standing(made).items()}
    assert precisions.items() >= {"getitem": {"fp32"}, "getitem_1": {"fp32"}, "getitem_2": {"fp16"}}.items()
    said = {fallback.what: fallback.reason for fallback in made.fallbacks if fallback.what != "all"}
    assert said == {
        "getitem_1": "planned fp16, the file holds fp32: one split of the file gives getitem and getitem_1; "
        "it has the widest precision that one of them was planned in"
    }


def test_scales_that_fp16_cannot_tell_apart_keep_fp32_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval()
    for parameter in model.parameters():
        parameter.data *= 1e-5
    model[0].bias.data[:] = -1.0  # the ReLU's output is always zero, its scale the smallest that there is
    plan = int8_plan(model, inputs(2))
    assert plan.counts()["int8"] == 3
    made = write(CoreMLConfig(), model, plan, tmp_path / "small")
    assert made.precision_counts == {"int8": 3, "fp16": 0, "fp32": 0}
    assert {fallback.what for fallback in made.fallbacks if "FP16 cannot tell" in fallback.reason} == {"conv2d", "relu", "conv2d_1"}
    found = coreml.load(made.path, 1).run(inputs(1)[0].numpy())
    with torch.no_grad():
        expected = reference_program(model, inputs(1)[0], plan)(inputs(1)[0]).numpy()
    assert np.isfinite(found).all()
    assert float(np.abs(found - expected).max()) <= 0.01 * float(np.abs(expected).max())


def edited(written: Written, to: Path, change: Callable[[object], None]) -> Path:
    """A copy of the package whose model was changed by hand."""
    shutil.copytree(written.path, to)
    (model_file,) = to.rglob("*.mlmodel")
    model = model_messages().Model()
    model.ParseFromString(model_file.read_bytes())
    (function,) = model.mlProgram.functions.values()
    change(function.block_specializations[function.opset].operations)
    model_file.write_bytes(model.SerializeToString())
    return to


def operation_named(operations: Sequence[object], name: str) -> object:
    return next(o for o in operations if o.attributes["name"].immediateValue.tensor.strings.values[0] == name)  # type: ignore[attr-defined]


def test_a_file_is_compared_with_the_plan_and_not_with_what_was_asked_for(
    network: nn.Module, plan: PrecisionPlan, written: dict[str, Written]
) -> None:
    """The float file, read as if it were the mixed one."""
    read = coreml._read_back(written["float"].path, export_program(network, inputs(1)[0]), plan)
    said = {fallback.what: fallback.reason for fallback in read.fallbacks if fallback.reason.startswith("planned")}
    assert set(said) == {name for name, p in PLANNED.items() if p != "fp16"}
    assert "its tensors are fp16" in said["conv2d"]


def test_an_operator_that_is_not_in_the_file_is_named(network: nn.Module, plan: PrecisionPlan, written: dict[str, Written], tmp_path: Path) -> None:
    def unname(operations: Sequence[object]) -> None:
        operation_named(operations, "sigmoid").attributes["name"].immediateValue.tensor.strings.values[0] = "other"  # type: ignore[attr-defined]

    read = coreml._read_back(edited(written["mixed"], tmp_path / "e.mlpackage", unname), export_program(network, inputs(1)[0]), plan)
    said = {fallback.what: fallback.reason for fallback in read.fallbacks}
    assert said["sigmoid"].startswith("planned fp32, and not in the file")


def test_quantization_that_was_taken_out_by_hand_is_seen(
    network: nn.Module, plan: PrecisionPlan, written: dict[str, Written], tmp_path: Path
) -> None:
    def bypass(operations: Sequence[object]) -> None:
        made = {o.outputs[0].name: o for o in operations}  # type: ignore[attr-defined]
        conv = operation_named(operations, "conv2d_3")
        binding = conv.inputs["x"].arguments[0]  # type: ignore[attr-defined]
        quantize = made[made[binding.name].inputs["input"].arguments[0].name]
        binding.name = quantize.inputs["input"].arguments[0].name

    read = coreml._read_back(edited(written["mixed"], tmp_path / "e.mlpackage", bypass), export_program(network, inputs(1)[0]), plan)
    said = {fallback.what: fallback.reason for fallback in read.fallbacks}
    assert said["conv2d_3"].startswith("planned int8, the file holds fp16")


def test_other_weights_are_an_error(network: nn.Module, plan: PrecisionPlan, written: dict[str, Written], tmp_path: Path) -> None:
    copy = tmp_path / "w.mlpackage"
    shutil.copytree(written["mixed"].path, copy)
    weight_file = next(copy.rglob("weight.bin"))
    content = bytearray(weight_file.read_bytes())
    for start in range(128, len(content) - 63, 64):
        if content[start : start + 4] != b"\xef\xbe\xad\xde":  # the mark of a description
            content[start : start + 64] = content[start + 32 : start + 64] + content[start : start + 32]
    weight_file.write_bytes(bytes(content))
    with pytest.raises(ExportError, match="are not in the saved package"):
        coreml._read_back(copy, export_program(network, inputs(1)[0]), plan)


@pytest.mark.skipif(coreml.executes_here(), reason="Core ML itself says what is wrong there")
def test_damaged_packages_are_refused(written: dict[str, Written], tmp_path: Path) -> None:
    def unknown(operations: Sequence[object]) -> None:
        operation_named(operations, "sigmoid").type = "sigmoyd"  # type: ignore[attr-defined]

    def cut(operations: Sequence[object]) -> None:
        operation_named(operations, "sigmoid").inputs["x"].arguments[0].name = "nothing"  # type: ignore[attr-defined]

    with pytest.raises(MissingBackendError, match="sigmoyd 'sigmoid'"):
        coreml.load(edited(written["mixed"], tmp_path / "unknown.mlpackage", unknown), 1)
    with pytest.raises(ExportError, match="reads 'nothing'"):
        coreml.load(edited(written["mixed"], tmp_path / "cut.mlpackage", cut), 1)
    short = tmp_path / "short.mlpackage"
    shutil.copytree(written["mixed"].path, short)
    weight_file = next(short.rglob("weight.bin"))
    weight_file.write_bytes(weight_file.read_bytes()[:500])
    with pytest.raises(ExportError, match=r"weight\.bin"):
        coreml.load(short, 1).run(inputs(1)[0].numpy())
    (short / "Manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ExportError, match=r"Manifest\.json"):
        coreml.load(short, 1)
    with pytest.raises(ExportError, match=r"Manifest\.json"):
        coreml.load(tmp_path / "nowhere.mlpackage", 1)


def test_the_package_holds_what_core_ml_knows_and_nothing_else(written: dict[str, Written]) -> None:
    for one in written.values():
        names = {path.relative_to(one.path).as_posix() for path in one.path.rglob("*") if path.is_file()}
        assert names == {"Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"}
        assert len(json.loads((one.path / "Manifest.json").read_text(encoding="utf-8"))["itemInfoEntries"]) == 2


def test_names_say_what_an_operator_stands_for() -> None:
    known = {"conv2d", "conv2d_1", "softmax"}
    assert source_of("conv2d_1", known) == "conv2d_1"
    assert source_of("softmax__2", known) == "softmax"
    assert [source_of(name, known) for name in ("conv2d_2", "softmax_2", "conv2d_1_cast_fp16", "__1")] == [None] * 4


class Doubled(nn.Module):
    """Two layers of equal weights read the same tensor, as in blocks that were just doubled; coremltools computes one of them."""

    def __init__(self, apart: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = copy.deepcopy(self.first)
        with torch.no_grad():
            self.second.weight += apart

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """(1, 3, 4, 8) -> (1, 3, 4, 8)."""
        return self.first(value).sigmoid() * 3 + self.second(value)


@pytest.mark.parametrize(("apart", "layers"), [(0.0, 1), (0.5, 2)])
def test_equal_layers_are_one_operator_of_the_file(apart: float, layers: int, tmp_path: Path) -> None:
    network, given = Doubled(apart).eval(), torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    with captured(tmp_path / "log.txt"):
        written = coreml.write(CoreMLConfig(), network, {"value": given}, None, tmp_path / "doubled")
    found = [operator.stands_for for operator in written.operators if operator.kind == "linear"]
    assert len(found) == layers
    assert sorted(name for names in found for name in names) == ["linear", "linear_1"]
    with torch.no_grad():
        assert np.allclose(coreml.load(written.path, 1).run(given.numpy()), network(given).numpy(), atol=5e-3)
