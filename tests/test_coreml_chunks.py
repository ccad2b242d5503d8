"""A Core ML package in two chunks: one package still, the same operators and numbers, half of the weights in each model, and damage is named."""

from __future__ import annotations

import gc
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from int8_plans import int8_plan
from mil_packages import edit
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.quantize.halves import half_constants, half_simulated
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import Simulated
from mcompress.errors import ExportError
from mcompress.export import coreml
from mcompress.export.backend import FloatArray, Written, captured
from mcompress.export.coreml_chunks import split
from mcompress.export.mil.blob import ALIGNMENT, WeightFile
from mcompress.export.mil.evaluate import Arithmetic, evaluate
from mcompress.export.mil.program import MilProgram, Operation, read_program
from mcompress.export.mil.proto import model_messages
from mcompress.export.parity import Halved
from mcompress.export.proof import Networks, proven
from mcompress.targets.exports import CoreMLConfig

pytestmark = pytest.mark.export
CHANNELS = 16
FOLDER = "Data/com.apple.CoreML"
HALVES = ("weights/0-weight.bin", "weights/1-weight.bin")
CASES = ("float", "int8", "mixed")


class Skips(nn.Module):
    """Six convolutions of about equal weights, two of them with the same ones, and tensors that the end reads of the beginning."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(4)])
        self.shared, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.GroupNorm(4, CHANNELS)
        self.first, self.last = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(2 * CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, 12, 16) -> the same."""
        early = self.first(x * 2)
        y = self.shared(early)
        for layer in self.layers:
            y = functional.relu(layer(y)) + early
        joined: Tensor = self.last(torch.cat((self.shared(self.norm(y)), early), 1))
        return joined + x


def inputs(count: int) -> list[Tensor]:
    source = torch.Generator().manual_seed(5)
    return [torch.rand(1, 3, 12, 16, generator=source) for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return Skips().eval()


@pytest.fixture(scope="module")
def plans(network: nn.Module) -> dict[str, PrecisionPlan | None]:
    everything = int8_plan(network, inputs(2))
    names = [operator.name for operator in everything.operators]
    behind, order = names.index("group_norm"), tuple[Precision, ...](("fp16", "fp32"))
    floats = {name: order[number % 2] for number, name in enumerate(names[behind:])}
    mixed = tuple(replace(operator, precision=floats.get(operator.name, operator.precision)) for operator in everything.operators)
    return {"float": None, "int8": everything, "mixed": PrecisionPlan(mixed, everything.ranges)}


def config(case: str, chunks: int) -> CoreMLConfig:
    return CoreMLConfig.model_validate({"chunks": chunks, "minimum_deployment_target": "iOS18" if case == "mixed" else "iOS17"})


@pytest.fixture(scope="module")
def written(network: nn.Module, plans: dict[str, PrecisionPlan | None], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Written]:
    """Every case in one chunk and in two."""
    folder = tmp_path_factory.mktemp("chunks")
    found = {}
    for case in CASES:
        for chunks in (1, 2):
            stem = folder / str(chunks) / case
            stem.parent.mkdir(exist_ok=True)
            with captured(folder / "log.txt"):
                found[case, chunks] = coreml.write(config(case, chunks), network, {"input": inputs(1)[0]}, plans[case], stem)
    return found


def computed(program: MilProgram, arithmetic: Arithmetic) -> FloatArray:
    return evaluate(program, {"input": inputs(3)[2].numpy()}, arithmetic)["output"]


def models_of(path: Path) -> list[Any]:
    model = model_messages().Model()
    model.ParseFromString((path / FOLDER / "model.mlmodel").read_bytes())
    assert model.WhichOneof("Type") == "pipeline"
    return list(model.pipeline.models)


@pytest.mark.parametrize("case", CASES)
def test_chunks_compute_the_same_bit_for_bit(case: str, written: dict[tuple[str, int], Written]) -> None:
    whole, two = (read_program(written[case, chunks].path) for chunks in (1, 2))
    for arithmetic in ("as written", "fp32"):
        np.testing.assert_array_equal(computed(two, arithmetic), computed(whole, arithmetic))
    assert (two.inputs, two.outputs, two.specification_version) == (whole.inputs, whole.outputs, whole.specification_version)


@pytest.mark.parametrize("case", CASES)
def test_everything_that_is_said_of_the_file_stays(case: str, written: dict[tuple[str, int], Written]) -> None:
    whole, two = written[case, 1], written[case, 2]
    assert two.operators == whole.operators
    assert two.coverage == whole.coverage
    for name in ("inputs", "outputs", "precision_counts", "least_runtime"):
        assert getattr(two, name) == getattr(whole, name)
    assert [(each.what, each.reason) for each in two.fallbacks] == [(each.what, each.reason) for each in whole.fallbacks]


@pytest.mark.parametrize("case", CASES)
def test_each_model_has_about_half_of_the_weights_in_a_file_of_its_own(case: str, written: dict[tuple[str, int], Written]) -> None:
    folder, whole = written[case, 2].path, (written[case, 1].path / FOLDER / "weights/weight.bin").stat().st_size
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"Manifest.json", f"{FOLDER}/model.mlmodel", *(f"{FOLDER}/{name}" for name in HALVES)}
    assert len(json.loads((folder / "Manifest.json").read_text(encoding="utf-8"))["itemInfoEntries"]) == 2
    sizes = [(folder / FOLDER / name).stat().st_size for name in HALVES]
    largest_layer = 4 * CHANNELS * CHANNELS * 9
    assert max(sizes) - min(sizes) <= 1.2 * largest_layer / {"float": 2, "int8": 4, "mixed": 4}[case]
    assert whole < sum(sizes) < 1.25 * whole, "more than the whole has: the weights that both read"


@pytest.mark.parametrize(("chunks", "told"), [(1, 1), (2, 0)])
def test_a_large_package_says_how_it_can_be_divided(
    network: nn.Module, chunks: int, told: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(coreml, "LARGE_MB", 1e-6)
    with captured(tmp_path / "log.txt"):
        made = coreml.write(config("float", chunks), network, {"input": inputs(1)[0]}, None, tmp_path / "large")
    found = [one.reason for one in made.fallbacks if one.what == "weights"]
    assert len(found) == told
    assert all("MB in one model may be more than a phone maps at once; give the export chunks: 2" in reason for reason in found)


def test_the_first_model_has_nothing_that_the_second_computes(written: dict[tuple[str, int], Written]) -> None:
    first, second = (
        [str(o.outputs[0].name) for o in model.mlProgram.functions["main"].block_specializations["CoreML7"].operations if o.type == "conv"]
        for model in models_of(written["float", 2].path)
    )
    assert not set(first) & set(second)
    assert len(first) + len(second) == 8
    assert min(len(first), len(second)) >= 3


def alone(package: Path, folder: Path) -> Iterator[MilProgram]:
    """Each model of a pipeline read as a package of its own."""
    for number, model in enumerate(models_of(package)):
        path = Path(shutil.copytree(package, folder / f"{number}.mlpackage"))
        (path / FOLDER / "model.mlmodel").write_bytes(model.SerializeToString())
        yield read_program(path)


def test_int8_operators_stay_between_quantized_tensors_within_their_model(written: dict[tuple[str, int], Written], tmp_path: Path) -> None:
    found = 0
    for program in alone(written["int8", 2].path, tmp_path):
        producers, readers = program.main.producers(), program.main.readers()

        def quantized(operation: Operation, readers: dict[str, tuple[Operation, ...]] = readers) -> bool:
            behind = readers.get(operation.outputs[0].name, ())
            return bool(behind) and all(one.type == "quantize" or (one.type == "relu" and quantized(one)) for one in behind)

        for operation in program.main.operations:
            if operation.type == "conv":
                (source,) = operation.inputs["x"]
                assert isinstance(source, str)
                assert producers[source].type == "dequantize"
                assert quantized(operation)
                found += 1
    assert found == 8


@pytest.mark.parametrize("case", CASES)
def test_coremltools_reads_each_model(case: str, written: dict[tuple[str, int], Written]) -> None:
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    path = written[case, 2].path
    with captured(path.parent / "log.txt"):
        ct.models.MLModel(str(path), skip_model_load=True)
        for model, program in zip(
            models_of(path), (load(one, one.specificationVersion, str(path / FOLDER / "weights")) for one in models_of(path)), strict=True
        ):
            main = program.functions["main"]
            assert list(main.inputs) == [str(item.name) for item in model.description.input]
            assert [str(value.name) for value in main.outputs] == [str(item.name) for item in model.description.output]


def test_a_pipeline_of_coremltools_own_is_read(written: dict[tuple[str, int], Written], tmp_path: Path) -> None:
    import coremltools as ct

    whole = written["float", 1].path
    with captured(tmp_path / "log.txt"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # coremltools leaves its temporary folders to the garbage collector
        ct.models.utils.bisect_model(str(whole), str(tmp_path), merge_chunks_to_pipeline=True, check_output_correctness=False)
        gc.collect()
    (path,) = tmp_path.glob("*.mlpackage")
    np.testing.assert_array_equal(computed(read_program(path), "as written"), computed(read_program(whole), "as written"))


@pytest.mark.parametrize("case", ["float", "int8"])
def test_the_file_is_proven_against_the_network(
    case: str, network: nn.Module, plans: dict[str, PrecisionPlan | None], written: dict[tuple[str, int], Written]
) -> None:
    program, plan, one = export_program(network, inputs(1)[0]), plans[case], written[case, 2]
    halved = Halved(half_simulated(program), half_constants(program), 40.0) if plan is None else None
    reference = network if plan is None else Simulated(graph_of(program), plan)
    given = [(value.numpy(),) for value in inputs(4)]
    limit = CoreMLConfig().float_limit if plan is None else CoreMLConfig().int8_limit_db
    proof = proven("coreml", one, Networks(network, reference, given), plan, coreml.load(one.path, 1), limit, halved)
    assert proof.parity.passed, (proof.parity, proof.divergence)


def _models(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def changed(model: Any) -> None:
        change(model.pipeline.models)

    return lambda path: edit(path, changed)


def _operations(model: Any) -> Any:
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    return block.operations


def _handed(models: Any) -> str:
    return next(str(item.name) for item in models[1].description.input if item.name != "input")


def _without(models: Any) -> None:
    """The first model keeps a result to itself that the second one reads."""
    name = _handed(models)
    (block,) = models[0].mlProgram.functions["main"].block_specializations.values()
    block.outputs.remove(name)
    models[0].description.output.remove(next(item for item in models[0].description.output if item.name == name))


def _smaller(models: Any) -> None:
    """The second model takes a tensor with fewer rows than the first one gives."""
    name = _handed(models)
    stated = next(value for value in models[1].mlProgram.functions["main"].inputs if value.name == name)
    described = next(item for item in models[1].description.input if item.name == name)
    stated.type.tensorType.dimensions[2].constant.size = described.type.multiArrayType.shape[2] = 5


def _two_functions(models: Any) -> None:
    models[1].mlProgram.functions["other"].CopyFrom(models[1].mlProgram.functions["main"])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no models": (_models(lambda models: models.__delitem__(slice(None))), "it holds a pipeline of no models"),
    "no first model": (_models(lambda models: models.pop(0)), "model 1 of its pipeline, of 1 models, takes '.*', which neither the package takes"),
    "no second model": (
        _models(lambda models: models.pop(1)),
        "no model of its pipeline, of 1 models, gives 'output', which is a result of the package",
    ),
    "the first model twice": (_models(lambda models: models.insert(0, models[0])), "model 2 of the pipeline gives '.*', which is there already"),
    "the other order": (_models(lambda models: models.append(models.pop(0))), "model 1 of its pipeline, of 2 models, takes '.*', which neither"),
    "a model of another kind": (
        _models(lambda models: models[1].neuralNetwork.SetInParent()),
        r"model 2 of its pipeline: it holds a model of type neuralNetwork; only ML programs",
    ),
    "a pipeline inside": (_models(lambda models: models[0].pipeline.SetInParent()), "model 1 of its pipeline: it holds a model of type pipeline"),
    "a result kept back": (
        _models(_without),
        "model 2 of its pipeline, of 2 models, takes '.*', which neither the package takes nor a model in front",
    ),
    "another shape": (
        _models(_smaller),
        r"model 2 of the pipeline takes '.*' as fp32\[1, 16, 5, 16\]; what there is of that name is fp32\[1, 16, 12, 16\]",
    ),
    "two functions": (_models(_two_functions), "model 2 of the pipeline has the functions main, other; only one can be read"),
    "an unknown name": (
        _models(lambda models: setattr(_operations(models[1])[-1].inputs["x"].arguments[0], "name", "nowhere")),
        r"model 2 of its pipeline: cast '.*' \(main, operation \d+\) reads 'nowhere' as x",
    ),
    "another result": (
        lambda path: edit(path, lambda model: setattr(model.description.output[0], "name", "picture")),
        "no model of its pipeline, of 2 models, gives 'picture'",
    ),
    "no second weight file": (lambda path: (path / FOLDER / HALVES[1]).unlink(), "the weight file .*1-weight.bin cannot be read: No such file"),
    "a short weight file": (
        lambda path: (path / FOLDER / HALVES[1]).write_bytes((path / FOLDER / HALVES[1]).read_bytes()[:3000]),
        r"1-weight\.bin.*(not inside the file|offsets are multiples)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_pipeline_is_refused(damage: str, written: dict[tuple[str, int], Written], tmp_path: Path) -> None:
    path = Path(shutil.copytree(written["float", 2].path, tmp_path / "net.mlpackage"))
    change, message = DAMAGES[damage]
    change(path)
    with pytest.raises(ExportError, match=message):
        read_program(path)


def test_what_cannot_be_divided_is_refused(written: dict[tuple[str, int], Written], tmp_path: Path) -> None:
    with (
        captured(tmp_path / "log.txt"),
        pytest.raises(ExportError, match=r"one\.mlpackage cannot be divided into two models: there is no place where"),
    ):
        coreml.write(CoreMLConfig(chunks=2), nn.Conv2d(3, 64, 3), {"input": inputs(1)[0]}, None, tmp_path / "one")
    path = Path(shutil.copytree(written["float", 1].path, tmp_path / "net.mlpackage"))

    def another(model: Any) -> None:
        model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"])

    edit(path, another)
    with pytest.raises(ExportError, match="it has the functions main, other; only main can be divided"):
        split(path)


def test_weights_are_copied_from_file_to_file(written: dict[tuple[str, int], Written], tmp_path: Path) -> None:
    place = written["float", 1].path / FOLDER / "weights/weight.bin"
    source, copy = WeightFile(place), tmp_path / "copy.bin"
    size = source.size_at(ALIGNMENT)
    with copy.open("w+b") as stream:
        stream.write(place.read_bytes()[:ALIGNMENT])
        offsets = [source.copy(ALIGNMENT, stream) for _ in range(2)]
    again = [WeightFile(copy).blob(offset, "fp16", (size // 2,), "weight").read() for offset in offsets]
    np.testing.assert_array_equal(again, [source.blob(ALIGNMENT, "fp16", (size // 2,), "weight").read()] * 2)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    short = tmp_path / "short.bin"
    short.write_bytes(place.read_bytes()[: 2 * ALIGNMENT + size - 1])
    with pytest.raises(ExportError, match=r"short\.bin ends inside the data at byte 128"), copy.open("w+b") as stream:
        WeightFile(short).copy(ALIGNMENT, stream)
    with pytest.raises(ExportError, match="a blob lies at byte 65 of"):
        source.size_at(65)


def test_targets_ask_for_one_chunk_or_two() -> None:
    assert CoreMLConfig().chunks == 1
    with pytest.raises(ValidationError, match="Input should be 1 or 2"):
        CoreMLConfig.model_validate({"chunks": 3})
