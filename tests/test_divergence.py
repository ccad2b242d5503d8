"""The first wrong operator of a file is named: weights of one operator are changed in a file of each format, and exactly it is found."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from int8_plans import int8_plan
from onnx import numpy_helper
from rich.console import Console
from torch import Tensor, nn

from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import Simulated
from mcompress.errors import ExportError, ParityError
from mcompress.export import backend_named, executorch_prefix, proof
from mcompress.export.backend import FloatArray, Runner, Written, captured
from mcompress.export.divergence import Examined, examine
from mcompress.export.divergence_prefixes import bisect, bisected
from mcompress.export.divergence_reference import Expected
from mcompress.export.parity import own_agreement_db
from mcompress.export.proof import Networks, Proof, proven, worst_input
from mcompress.pipeline import Outcome
from mcompress.record import HIGHEST_DB, DivergenceRecord, ParityRecord, Run
from mcompress.reports.html import write_report
from mcompress.reports.terminal import render
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

pytestmark = pytest.mark.export
SHAPE = (1, 3, 16, 16)
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig(), "executorch": ExecuTorchConfig()}
BROKEN, MODULE = "conv2d_3", "blocks.0.scales.1"


@dataclass(frozen=True)
class Case:
    network: nn.Module
    plan: PrecisionPlan | None
    written: Written
    backend: str

    def examined(self) -> Examined:
        return examine(self.backend, self.written.path, self.network, self.plan, self.written.operators, images(4)[3].numpy())

    def first(self) -> DivergenceRecord | None:
        return self.examined().divergence


Make = Callable[[str, str], Case]


def images(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(4)
    return [torch.rand(SHAPE, generator=source) for _ in range(count)]


def small() -> nn.Module:
    torch.manual_seed(0)
    return mfagan(blocks=((2, 8),), channels=8).eval()


def mixed(plan: PrecisionPlan) -> PrecisionPlan:
    """INT8, FP16 and FP32, an operator with its ReLU in one; what is broken is FP16."""
    chosen: dict[str, Precision] = {"conv2d_2": "fp32", "add": "fp32", BROKEN: "fp16", "relu_2": "fp16", "conv2d_5": "fp16", "conv2d_7": "fp16"}
    return replace(plan, operators=tuple(replace(one, precision=chosen.get(one.name, one.precision)) for one in plan.operators))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder, network, kept = tmp_path_factory.mktemp("files"), small(), dict[tuple[str, str], Case]()
    int8 = int8_plan(network, images(3))
    plans = {"float": None, "int8": int8, "mixed": mixed(int8)}

    def made(backend: str, name: str) -> Case:
        if (backend, name) not in kept:
            with captured(folder / "log.txt"):
                written = backend_named(backend).write(CONFIGS[backend], network, {"input": images(1)[0]}, plans[name], folder / f"{backend}-{name}")
            kept[backend, name] = Case(network, plans[name], written, backend)
        return kept[backend, name]

    return made


@pytest.mark.parametrize("name", ["float", "int8", "mixed"])
@pytest.mark.parametrize("backend", ["onnx", "tflite", "coreml"])
def test_a_healthy_file_has_no_divergence_and_a_broken_one_names_its_operator(backend: str, name: str, make: Make, tmp_path: Path) -> None:
    case = make(backend, name)
    assert case.examined() == Examined(None, ())
    found = broken(case, BROKEN, tmp_path).first()
    assert found is not None
    assert (found.operator, found.module, found.kind) == (BROKEN, MODULE, "conv2d")
    expected = {"float": "fp16" if backend == "coreml" else "fp32", "int8": "int8", "mixed": "fp16"}[name]
    assert found.precision == expected
    assert found.planned == (None if name == "float" else expected)
    assert found.alone
    assert found.value is not None
    assert found.value > found.limit
    assert not found.not_seen
    assert set(found.together) <= {"relu_2"}
    advice = {"int8": f"keep: {{{BROKEN}: fp16}}", "fp16": f"keep: {{{BROKEN}: fp32}}", "fp32": "replace it in the network"}[expected]
    assert advice in found.suggestion
    said = found.sentence()
    for word in (BROKEN, MODULE, expected, found.suggestion):
        assert word in said


def broken(case: Case, operator: str, folder: Path) -> Case:
    """The case with the output channels of `operator` in the wrong order in the file."""
    path = folder / case.written.path.name
    place = next(one for one in case.written.operators if operator in one.stands_for)
    {"onnx": break_onnx, "tflite": break_tflite, "coreml": break_package}[case.backend](case.written.path, place.name, path)
    return replace(case, written=replace(case.written, path=path))


def break_onnx(source: Path, name: str, path: Path) -> None:
    model = onnx.load(str(source))
    weight = next(node for node in model.graph.node if node.name == name).input[1]
    constants = {item.name: item for item in model.graph.initializer}
    while weight not in constants:
        weight = next(node for node in model.graph.node if weight in node.output).input[0]
    values = numpy_helper.to_array(constants[weight])
    constants[weight].CopyFrom(numpy_helper.from_array(values[::-1].copy(), weight))
    onnx.save(model, str(path))


def break_tflite(source: Path, name: str, path: Path) -> None:
    from mcompress.export import tflite_edit
    from mcompress.export.tflite_match import constant_behind, makers_of, stored

    sheet = tflite_edit.opened(source)
    tensor = constant_behind(sheet, makers_of(sheet), int(sheet.operators[int(name.split("#")[1])].inputs[1]))
    held = stored(sheet, tensor)
    assert held is not None
    sheet.model.buffers[sheet.tensors[tensor].buffer].data = np.frombuffer(held[::-1].tobytes(), dtype=np.uint8)
    tflite_edit.save(sheet, path)


def break_package(source: Path, name: str, path: Path) -> None:
    from mcompress.export.mil.blob import Blob
    from mcompress.export.mil.program import read_program

    shutil.copytree(source, path)
    main = read_program(path).main
    operation = next(one for one in main.operations if one.name == name)
    producer = main.producers()[str(operation.inputs["weight"][0])]
    constant = producer.attributes["quantized_data" if producer.type.startswith("constexpr") else "val"]
    blob = constant.held
    assert isinstance(blob, Blob)
    data = bytearray(blob.file.read_bytes())
    data[blob.start : blob.start + blob.size_bytes] = constant.array[::-1].tobytes()
    blob.file.write_bytes(bytes(data))


class Chain(nn.Module):
    """Few operators, for a backend that has to write a file for each that is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(i, o, 1) for i, o in ((3, 4), (4, 4), (4, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.last(torch.relu(self.second(torch.relu(self.first(x))))))


def chain(change: str = "") -> nn.Module:
    torch.manual_seed(2)
    made = Chain().eval()
    if change:
        with torch.no_grad():
            weight = made.get_submodule(change).get_parameter("weight")
            weight.copy_(weight.flip(0))
    return made


def test_executorch_is_searched_by_writing_the_network_up_to_an_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    whole = executorch_prefix.prefix_output

    def of_the_wrong_network(_model: nn.Module, plan: PrecisionPlan | None, operator: str, inputs: Sequence[FloatArray]) -> FloatArray:
        asked.append(operator)
        return whole(chain("second"), plan, operator, inputs)

    network = chain()
    plan = int8_plan(network, images(3))
    with captured(tmp_path / "log.txt"):
        written = backend_named("executorch").write(CONFIGS["executorch"], chain("second"), {"input": images(1)[0]}, plan, tmp_path / "wrong")
        monkeypatch.setattr(executorch_prefix, "prefix_output", of_the_wrong_network)
        found = Case(network, plan, written, "executorch").first()
    assert found is not None
    assert (found.operator, found.module, found.precision) == ("conv2d_1", "second", "int8")
    assert found.alone
    assert found.together == ("relu_1",)
    assert not found.not_seen, found
    assert len(set(asked)) == len(asked) <= 3


def test_every_operator_of_an_executorch_file_is_recomputed_where_its_result_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    results = executorch_prefix.operator_outputs

    def of_the_wrong_network(
        _model: nn.Module, plan: PrecisionPlan | None, operators: Sequence[str], inputs: Sequence[FloatArray]
    ) -> dict[str, FloatArray]:
        asked.append(operators)
        return results(chain("second"), plan, operators, inputs)

    network = chain()
    plan = int8_plan(network, images(3))
    with captured(tmp_path / "log.txt"):
        healthy = backend_named("executorch").write(CONFIGS["executorch"], network, {"input": images(1)[0]}, plan, tmp_path / "healthy")
        assert Case(network, plan, healthy, "executorch").examined() == Examined(None, ())
        monkeypatch.setattr(executorch_prefix, "operator_outputs", of_the_wrong_network)
        with pytest.raises(ExportError, match="cannot be looked at: ExecuTorch computes another result where all of them are outputs"):
            Case(network, plan, healthy, "executorch").examined()
        # A wrong operator whose error is lost in the noise of the whole network's roundings.
        wrong = backend_named("executorch").write(CONFIGS["executorch"], chain("second"), {"input": images(1)[0]}, plan, tmp_path / "wrong")
        monkeypatch.setattr(Expected, "judge_grown", lambda *_: None)
        found = Case(network, plan, wrong, "executorch").first()
    assert found is not None
    assert (found.operator, found.together, found.alone) == ("conv2d_1", ("relu_1",), True)
    assert len(asked) == 2


def test_an_executorch_file_that_is_not_what_is_written_now_blames_no_operator(tmp_path: Path) -> None:
    with captured(tmp_path / "log.txt"):
        written = backend_named("executorch").write(CONFIGS["executorch"], chain("second"), {"input": images(1)[0]}, None, tmp_path / "other")
        found = Case(chain(), None, written, "executorch").first()
    assert found is not None
    assert (found.operator, found.module) == ("all", "")
    assert "export it again" in found.suggestion
    assert "no single operator" in found.sentence()


def test_what_should_be_zero_and_is_not_can_be_kept_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = nn.Conv2d(3, 3, 1).eval()
    loud = nn.Conv2d(3, 3, 1).eval()
    with torch.no_grad():
        silent.weight.zero_()
        cast("Tensor", silent.bias).zero_()
    monkeypatch.setattr(Expected, "judge_alone", lambda *_: None)  # only the whole network is left to compare with
    with captured(tmp_path / "log.txt"):
        written = backend_named("onnx").write(CONFIGS["onnx"], loud, {"input": images(1)[0]}, None, tmp_path / "loud")
        found = Case(silent, None, written, "onnx").first()
    assert found is not None
    assert (found.measure, found.value) == ("sqnr_db", None)
    assert "sqnr_db is infinitely far off, limit 60" in found.sentence()
    assert DivergenceRecord.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("wrong", range(9))
def test_bisection_finds_every_first_wrong_operator_with_few_questions(wrong: int) -> None:
    # 0 -> 1 -> 2 -> 3 and 0 -> 4 -> 5 -> 6 meet in 7 -> 8
    sources = {0: (), 1: (0,), 2: (1,), 3: (2,), 4: (0,), 5: (4,), 6: (5,), 7: (3, 6), 8: (7,)}
    ancestors: dict[str, frozenset[str]] = {}
    for node, before in sources.items():
        ancestors[str(node)] = frozenset({str(node)}).union(*(ancestors[str(source)] for source in before))
    asked: list[str] = []

    def is_wrong(name: str) -> bool | None:
        asked.append(name)
        return None if name == "3" else str(wrong) in ancestors[name]

    found = bisect(ancestors, "8", is_wrong)
    assert found == ("7" if wrong == 3 else str(wrong))  # nothing can be said about 3, so what reads it is the first that is known to be wrong
    assert len(asked) <= 5


def in_a_row(*silent: str) -> tuple[list[str], set[str]]:
    """What is found in a row of eight convolutions of which the sixth is wrong, and the operators that count as not looked at."""
    torch.manual_seed(3)
    row = [nn.Conv2d(3, 3, 1) for _ in range(8)]
    network, wrong = nn.Sequential(*row), nn.Sequential(*row[:5], nn.Conv2d(3, 3, 1), *row[6:])
    value = images(1)[0].numpy()
    expected, given = (Expected(one.eval(), None, (), [value], [value]) for one in (network, wrong))
    found = bisected(expected, expected.operators, lambda name: None if name in silent else given.results[name])
    assert found is not None
    return [node.name for node in found.nodes], {node.name for node in expected.operators} - found.seen


def test_what_a_right_result_cleared_is_not_said_to_be_unseen() -> None:
    assert in_a_row() == (["conv2d_5"], set())
    assert in_a_row("conv2d_3") == (["conv2d_5"], set()), "what reads it is right"


def test_an_operator_behind_one_without_a_result_is_recomputed_with_it_alone() -> None:
    assert in_a_row("conv2d_4") == (["conv2d_4", "conv2d_5"], set())
    assert in_a_row("conv2d_3", "conv2d_4") == (["conv2d_3", "conv2d_4", "conv2d_5"], set())


class Loud(nn.Module):
    """The second convolution gives values that FP16 does not hold, and the third makes them small again."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.loud, self.quiet = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.first.weight.mul_(30.0)
            self.loud.weight.mul_(factor)
            self.quiet.weight.mul_(1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.quiet(self.loud(torch.relu(self.first(x)))))


def test_what_overflows_in_fp16_is_to_be_kept_in_fp32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Loud(1e5).eval()
    with captured(tmp_path / "log.txt"):
        written = backend_named("coreml").write(CONFIGS["coreml"], network, {"input": images(1)[0]}, None, tmp_path / "loud")
        case = Case(network, None, written, "coreml")
        found = case.first()
        assert found is not None
        assert (found.operator, found.module, found.precision) == ("conv2d_1", "loud", "fp16")
        assert "FP16 ends at 65504 and its results reach" in found.suggestion
        assert "keep: {conv2d_1: fp32}" in found.suggestion
        with pytest.raises(ParityError, match=r"loud.mlpackage: .*NaN or infinity.*conv2d_1, conv2d in loud, fp16.*keep it in FP32"):
            proof_of(case, 1e-3)


def proof_of(case: Case, limit: float) -> Proof:
    from mcompress.export.mil.runner import MilRunner

    path = case.written.path
    runner: Runner = MilRunner(path) if case.backend == "coreml" else backend_named(case.backend).load(path, 1)
    reference = case.network if case.plan is None else Simulated(graph_of(export_program(case.network, images(1)[0])), case.plan)
    return proven(case.backend, case.written, Networks(case.network, reference, [(value.numpy(),) for value in images(3)]), case.plan, runner, limit)


def test_a_failing_parity_is_explained_and_a_passing_one_is_not_looked_into(make: Make, tmp_path: Path) -> None:
    healthy = make("onnx", "int8")
    passed = proof_of(healthy, 35.0)
    assert passed.parity.passed
    assert passed.divergence is None
    assert not passed.doubts
    failed = proof_of(broken(healthy, "conv2d_7", tmp_path), 35.0)
    assert failed.parity.passed is False
    assert failed.divergence is not None
    assert (failed.divergence.operator, failed.divergence.module) == ("conv2d_7", "upsampler")
    stricter = proof_of(healthy, 201.0)  # a limit that no correct file meets is no operator's fault
    assert stricter.parity.passed is False
    assert stricter.divergence is None
    assert "within its tolerance" in stricter.doubts[0].reason


def test_a_file_may_be_as_far_from_its_reference_as_that_is_from_itself(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy, agreement_db = make("onnx", "int8"), [34.0]
    failing = ParityRecord(reference="made up", metric="sqnr_db", value=33.0, limit=35.0, passed=False, runtime="made up")
    monkeypatch.setattr(proof, "int8_parity", lambda *_: failing)
    monkeypatch.setattr(proof, "own_agreement_db", lambda *_: agreement_db[0])
    found = proof_of(healthy, 35.0)
    assert (found.parity.passed, found.parity.limit, found.divergence) == (True, 32.5, None)
    assert "agrees only to 34.0 dB with what it computes when its input moves by a hundredth of an 8-bit step" in found.doubts[0].reason
    for asked in (34.5, 40.0):
        assert proof_of(healthy, asked).parity.passed is False, "who asks for another limit than the usual one is not overruled"
    agreement_db[0] = 36.0
    assert proof_of(healthy, 35.0).parity.passed is False
    agreement_db[0] = 34.0
    wrong = proof_of(broken(healthy, "conv2d_7", tmp_path), 35.0)
    assert wrong.parity.passed is False
    assert wrong.divergence is not None


def test_a_limit_stays_where_not_every_operator_was_looked_at(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = make("onnx", "int8")
    failing = ParityRecord(reference="made up", metric="sqnr_db", value=33.0, limit=35.0, passed=False, runtime="made up")
    monkeypatch.setattr(proof, "int8_parity", lambda *_: failing)
    monkeypatch.setattr(proof, "own_agreement_db", lambda *_: 30.0)

    def refused(*_: object) -> Examined:
        raise ExportError("the file cannot be asked")

    for examined, said in (
        (lambda *_: Examined(None, ("conv2d_3",)), "these could not be looked at by themselves: conv2d_3"),
        (refused, "it could not be looked for: the file cannot be asked"),
    ):
        monkeypatch.setattr(proof, "examine", examined)
        found = proof_of(healthy, 35.0)
        assert (found.parity.passed, found.parity.limit, found.divergence) == (False, 35.0, None)
        assert said in found.doubts[0].reason


def test_what_is_not_shown_of_a_file_is_not_said_to_be_right(make: Make) -> None:
    case = make("onnx", "int8")
    value = images(1)[0].numpy()
    expected = Expected(case.network, case.plan, case.written.operators, [value], [value])
    names = [node.name for node in expected.operators]
    assert expected.not_alone() == tuple(names)
    assert expected.first_alone({name: expected.results[name] for name in names[:-1]}) is None
    assert expected.not_alone() == (names[-1],), "what is behind the last result that is known"


def test_how_far_a_reference_is_from_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64)).astype(np.float32) / 255
    pictures, power = [(picture,)], float(np.square(picture).mean())
    nudge = 0.01 / 255
    smooth = own_agreement_db(lambda value: value, pictures)
    assert smooth == pytest.approx(10 * np.log10(power / (nudge**2 / 3)), abs=0.2)
    on_ties = own_agreement_db(lambda value: torch.round(value * 255 + 0.5) / 255, pictures)  # every value of a picture is half way between two
    rounded = np.square(np.round(picture * 255 + 0.5) / 255).mean()
    assert on_ties == pytest.approx(10 * np.log10(rounded / (0.5 / 255**2)), abs=0.5)
    assert own_agreement_db(lambda value: 0 * value + 1, pictures) == HIGHEST_DB


class Fixed:
    """A runner that adds to some inputs."""

    runtime = "made up"

    def run(self, *values: FloatArray) -> FloatArray:
        return values[0] + np.float32(values[0].flat[0] > 0.5)


def test_the_worst_input_is_looked_at() -> None:
    inputs = [(np.full((1, 1, 2, 2), level, np.float32),) for level in (0.1, 0.7, 0.2)]
    assert worst_input(cast("Runner", Fixed()), lambda value: value, inputs) is inputs[1]


def test_what_was_found_is_in_the_error_the_report_and_the_terminal(run_folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run_folder, copied)
    run = Run.load(copied)
    divergence = DivergenceRecord(
        operator="conv2d_3",
        in_file="CONV_2D #4",
        module="blocks.0.scales.1",
        kind="conv2d",
        precision="int8",
        planned="int8",
        measure="steps of its scale",
        value=41.0,
        limit=2.0,
        alone=True,
        suggestion="keep it in FP16",
    )
    failed = run.exports[0].model_copy(
        update={"parity": run.exports[0].parity.model_copy(update={"value": 11.0, "passed": False}), "divergence": divergence}
    )
    run = run.model_copy(update={"exports": (failed, *run.exports[1:])})
    run.save(copied)
    assert Run.load(copied).exports[0].divergence == divergence
    with pytest.raises(ParityError, match=r"conv2d_3, conv2d in blocks\.0\.scales\.1, int8, gives something else .*41, limit 2; keep it in FP16"):
        Outcome(copied, run).raise_for_status()
    unexplained = run.model_copy(update={"exports": (failed.model_copy(update={"divergence": None}), *run.exports[1:])})
    with pytest.raises(ParityError, match="No single operator was found"):
        Outcome(copied, unexplained).raise_for_status()
    console = Console(file=io.StringIO(), width=100)
    render(run, console, folder=copied)
    assert isinstance(console.file, io.StringIO)
    assert "First wrong operator" in console.file.getvalue()
    write_report(copied)
    page = (copied / "report.html").read_text(encoding="utf-8")
    assert "First wrong operator" in page
    assert "blocks.0.scales.1" in page
