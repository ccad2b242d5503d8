"""Networks with several inputs in all four formats: each has its name, its layout and its scale, none is swapped, a wrong operator is found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from int8_plans import quiet
from pydantic import ValidationError
from test_divergence import break_onnx, break_package, break_tflite
from tiny_bundle import a_run, a_target, export_record, replay_in
from torch import Tensor, nn

from mcompress.compress.models.spec import InputSpec
from mcompress.compress.models.wav2lip import WITHOUT_BLOCKS, wav2lip
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.halves import half_constants, half_simulated
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.errors import ExportError
from mcompress.export import backend_named, executorch_prefix, replay
from mcompress.export.agent.protocol import Unusable
from mcompress.export.agent.sizes import Asked, sizes_of
from mcompress.export.backend import FloatArray, Port, Runner, Written, captured
from mcompress.export.bundle import ExportedFile, TestVector, verify_bundle, write_bundle
from mcompress.export.divergence import Examined, examine
from mcompress.export.interface import TensorFacts, facts_of
from mcompress.export.manifest import Manifest
from mcompress.export.parity import Halved, own_agreement_db
from mcompress.export.profile import profile
from mcompress.export.proof import Networks, proven, worst_input
from mcompress.exporting import stated_inputs
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig(), "executorch": ExecuTorchConfig()}
BACKENDS = tuple(CONFIGS)
Range = tuple[float, float]


class Uneven(nn.Module):
    """Two pictures of one shape that do not mean the same, and whose names are not in the order of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        made: Tensor = self.last(torch.relu(self.first(target)) - 3 * torch.relu(self.second(source)))
        return made


class Denoiser(nn.Module):
    """Takes tensors of every number of axes from one to four, as the network of a diffusion model does."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.time, self.words, self.style = nn.Linear(2, 8), nn.Linear(5, 8), nn.Linear(6, 8)

    def forward(self, latents: Tensor, timestep: Tensor, words: Tensor, style: Tensor) -> Tensor:
        given = self.time(torch.stack((timestep, 1 - timestep), 1)) + self.words(words).mean(1) + self.style(style)
        made: Tensor = self.tail(torch.relu(self.head(latents)) + given[:, :, None, None])
        return made


@dataclass(frozen=True)
class Case:
    """A network, what it takes, and the plan that makes INT8 of what can be."""

    network: nn.Module
    shapes: Mapping[str, tuple[int, ...]]
    ranges: tuple[Range, ...]
    precisions: Mapping[str, Precision]
    """Other than INT8, by operator."""

    def inputs(self, count: int) -> list[tuple[FloatArray, ...]]:
        source = np.random.default_rng(3)
        wanted = list(zip(self.shapes.values(), self.ranges, strict=True))
        return [tuple(source.uniform(low, high, shape).astype(np.float32) for shape, (low, high) in wanted) for _ in range(count)]

    @property
    def examples(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value) for name, value in zip(self.shapes, self.inputs(1)[0], strict=True)}

    def plan(self) -> PrecisionPlan:
        program = graph_of(export_program(self.network, *self.examples.values()))
        samples = (tuple(map(torch.from_numpy, values)) for values in self.inputs(3))
        plan = uniform_plan(program, calibrate(program, samples, "mse", self.ranges, 3, quiet)[0])
        assert self.precisions.keys() <= {one.name for one in plan.operators}
        return replace(plan, operators=tuple(replace(one, precision=self.precisions.get(one.name, one.precision)) for one in plan.operators))


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    small = wav2lip(face_widths=(4,) * 6, audio_widths=(4,) * 5, decoder_widths=(4,) * 7, output_width=4, **WITHOUT_BLOCKS)
    mixed: dict[str, Precision] = {"conv2d_3": "fp16", "relu_3": "fp16", "conv2d_12": "fp32", "relu_12": "fp32"}
    pictures = {"target": (1, 3, 8, 8), "source": (1, 3, 8, 8)}
    tensors = {"latents": (1, 4, 8, 8), "timestep": (1,), "words": (1, 7, 5), "style": (1, 6)}
    return {
        "wav2lip": Case(small.eval(), {"face": (1, 6, 96, 96), "audio": (1, 1, 80, 16)}, ((0.0, 1.0), (-4.0, 4.0)), mixed),
        "uneven": Case(Uneven().eval(), pictures, ((0.0, 1.0), (0.0, 1.0)), {}),
        "denoiser": Case(Denoiser().eval(), tensors, ((-1.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (-1.0, 1.0)), {}),
    }


@dataclass(frozen=True)
class Made:
    """A file as it was written."""

    backend: str
    case: Case
    plan: PrecisionPlan | None
    written: Written

    @property
    def runner(self) -> Runner:
        return backend_named(self.backend).load(self.written.path, 1)

    @property
    def reference(self) -> Callable[..., Tensor]:
        program = export_program(self.case.network, *self.case.examples.values())
        if self.plan is not None:
            return Simulated(graph_of(program), self.plan)
        return half_simulated(program) if self.backend == "coreml" else self.case.network

    def expected(self, values: tuple[FloatArray, ...]) -> FloatArray:
        with torch.no_grad():
            return self.reference(*map(torch.from_numpy, values)).numpy()

    def examined(self) -> Examined:
        return examine(self.backend, self.written.path, self.case.network, self.plan, self.written.operators, *self.case.inputs(4)[3])


Make = Callable[[str, str, str], Made]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A file of a backend, of one of the networks, float or INT8; written once."""
    folder, known, kept = tmp_path_factory.mktemp("several"), cases(), dict[tuple[str, str, str], Made]()

    def made(backend: str, name: str, variant: str) -> Made:
        key = (backend, name, variant)
        if key not in kept:
            case = known[name]
            plan = case.plan() if variant == "int8" else None
            with captured(folder / "log.txt"):
                written = backend_named(backend).write(CONFIGS[backend], case.network, case.examples, plan, folder / f"{backend}-{name}-{variant}")
            kept[key] = Made(backend, case, plan, written)
        return kept[key]

    return made


def as_stated(port: Port) -> tuple[str, tuple[int, ...], str, str]:
    return port.name, port.shape, port.dtype, port.layout


@pytest.mark.export
@pytest.mark.parametrize("variant", ["float", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_talking_face_is_written_and_proven(backend: str, variant: str, make: Make, tmp_path: Path) -> None:
    made = make(backend, "wav2lip", variant)
    written, case = made.written, made.case
    kind = "int8" if (backend, variant) == ("tflite", "int8") else "float32"
    if backend == "tflite":
        face, audio = ("face", (1, 96, 96, 6), kind, "NHWC"), ("audio", (1, 80, 16, 1), kind, "NHWC")
    else:
        face, audio = ("face", (1, 6, 96, 96), kind, "NCHW"), ("audio", (1, 1, 80, 16), kind, "NCHW")
    assert [as_stated(port) for port in written.inputs] == [face, audio]
    assert [port.name for port in written.outputs] == ["output"]
    if kind == "int8":
        assert made.plan is not None
        assert [(port.scale, port.zero_point) for port in written.inputs] == [
            (pytest.approx(made.plan.ranges[name].scale), made.plan.ranges[name].zero_point) for name in ("face", "audio")
        ]
    with captured(tmp_path / "log.txt"):
        runner = made.runner
        halved = None
        if (backend, variant) == ("coreml", "float"):
            program = export_program(case.network, *case.examples.values())
            halved = Halved(half_simulated(program), half_constants(program), 40.0)
        networks = Networks(case.network, made.reference, case.inputs(2))
        proof = proven(backend, written, networks, made.plan, runner, 35.0 if made.plan else 1e-4, halved)
    assert (runner.inputs, runner.outputs) == (written.inputs, written.outputs)
    assert proof.parity.passed, proof.parity
    if made.plan is not None:
        assert written.precision_counts["int8"] > 20
        standing = {name for operator in written.operators for name in operator.stands_for}
        assert {"conv2d_3", "conv2d_12", "sigmoid"} <= standing
        assert {operator.precision for operator in written.operators if "conv2d_12" in operator.stands_for} == {"fp32"}


@pytest.mark.export
@pytest.mark.parametrize("variant", ["float", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_of_one_shape_are_not_swapped(backend: str, variant: str, make: Make, tmp_path: Path) -> None:
    made = make(backend, "uneven", variant)
    assert [port.name for port in made.written.inputs] == ["target", "source"]
    (values,) = made.case.inputs(1)
    expected, swapped = made.expected(values), made.expected(values[::-1])
    with captured(tmp_path / "log.txt"):
        runner = made.runner
        found = runner.run(*values)
        again = runner.execute(*(port.encode(value) for port, value in zip(runner.inputs, values, strict=True)))
    assert np.array_equal(runner.outputs[0].decode(again), found)
    near, far = (float(np.square(found - one).sum()) for one in (expected, swapped))
    assert near < 1e-3 * far
    for wrong in (values[:1], (*values, values[0])):
        with pytest.raises(ExportError, match=rf"the file takes 2 inputs \(target, source\); {len(wrong)} were given"):
            runner.run(*wrong)


@pytest.mark.export
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_have_any_number_of_axes(backend: str, make: Make, tmp_path: Path) -> None:
    made = make(backend, "denoiser", "float")
    latents = (1, 8, 8, 4) if backend == "tflite" else (1, 4, 8, 8)
    assert [as_stated(port)[:2] for port in made.written.inputs] == [
        ("latents", latents),
        ("timestep", (1,)),
        ("words", (1, 7, 5)),
        ("style", (1, 6)),
    ]
    assert [port.layout for port in made.written.inputs] == ["NHWC" if backend == "tflite" else "NCHW", "ND", "ND", "ND"]
    (values,) = made.case.inputs(1)
    with captured(tmp_path / "log.txt"):
        found = made.runner.run(*values)
    np.testing.assert_allclose(found, made.expected(values), atol=2e-3 if backend == "coreml" else 1e-5)


@pytest.mark.export
@pytest.mark.parametrize("variant", ["float", "int8"])
@pytest.mark.parametrize("backend", ["onnx", "tflite", "coreml"])
def test_the_wrong_operator_of_a_damaged_file_is_named(backend: str, variant: str, make: Make, tmp_path: Path) -> None:
    made = make(backend, "uneven", variant)
    with captured(tmp_path / "log.txt"):
        assert made.examined() == Examined(None, ())
        path = tmp_path / made.written.path.name
        place = next(one for one in made.written.operators if "conv2d_1" in one.stands_for)
        {"onnx": break_onnx, "tflite": break_tflite, "coreml": break_package}[backend](made.written.path, place.name, path)
        found = replace(made, written=replace(made.written, path=path)).examined().divergence
    assert found is not None
    assert (found.operator, found.module, found.alone) == ("conv2d_1", "second", True)


@pytest.mark.export
def test_the_wrong_operator_of_an_executorch_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases()["uneven"]
    wrong = cases()["uneven"].network
    with torch.no_grad():
        weight = wrong.get_submodule("second").get_parameter("weight")
        weight.copy_(weight.flip(0))
    whole = executorch_prefix.prefix_output
    monkeypatch.setattr(executorch_prefix, "prefix_output", lambda _model, *given: whole(wrong, *given))
    with captured(tmp_path / "log.txt"):
        written = backend_named("executorch").write(CONFIGS["executorch"], wrong, case.examples, None, tmp_path / "wrong")
        found = Made("executorch", case, None, written).examined().divergence
    assert found is not None
    assert (found.operator, found.module) == ("conv2d_1", "second")


def shipped(made: Made) -> ExportedFile:
    """With a vector, as a run makes it; the sound is no picture."""
    (values,) = made.case.inputs(1)
    specs = zip(made.case.shapes.items(), made.case.ranges, strict=True)
    inputs = stated_inputs(made.written.inputs, tuple(InputSpec(name, shape, span) for (name, shape), span in specs))
    variant = "float" if made.plan is None else "mixed"
    record = export_record(made.written.path, backend=made.backend, variant=variant, precision_counts=made.written.precision_counts)
    outputs = tuple(facts_of(port) for port in made.written.outputs)
    vector = TestVector("a face, speaking", values, made.expected(values), made.runner.run(*values))
    return ExportedFile(record, made.written.path, inputs, outputs, (vector,))


def bundle_of(folder: Path, *files: ExportedFile) -> Path:
    return write_bundle(folder / "bundle", run=a_run(*(file.record for file in files)), target=a_target(), files=files, plan=None)


@pytest.mark.export
def test_a_bundle_carries_and_replays_every_input(make: Make, tmp_path: Path) -> None:
    with captured(tmp_path / "log.txt"):
        files = [shipped(make(backend, "wav2lip", "int8" if backend == "tflite" else "float")) for backend in BACKENDS]
        folder = bundle_of(tmp_path, *files)
        results = verify_bundle(folder)
    assert [result.verdict for result in results] == ["PASS"] * 4, results
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    assert manifest.scale == 1
    of = {file.backend: file for file in manifest.files}
    for backend, file in of.items():
        (vector,) = file.vectors
        assert [one.name for one in vector.inputs] == [facts.name for facts in file.inputs] == ["face", "audio"]
        for given, facts, value in zip(vector.inputs, file.inputs, files[BACKENDS.index(backend)].vectors[0].inputs, strict=True):
            assert np.array_equal(np.load(folder / given.npy), value)
            assert (folder / given.bin).stat().st_size == np.prod(facts.shape) * np.dtype(facts.dtype).itemsize
    for file in of.values():
        face, audio = file.inputs
        assert (face.picture, face.colour_order, face.value_range) == (True, "RGB", (0.0, 1.0))
        assert (audio.picture, audio.colour_order, audio.value_range) == (False, None, (-4.0, 4.0))
    assert [step.operation for step in of["onnx"].preprocessing["face"]] == ["tile", "colour_order", "scale", "layout"]
    assert [step.operation for step in of["onnx"].preprocessing["audio"]] == ["layout"]
    assert [step.operation for step in of["tflite"].preprocessing["audio"]] == ["layout", "quantize"]
    assert of["onnx"].vectors[0].inputs == of["executorch"].vectors[0].inputs, "files that take the same share it"
    done = subprocess.run([sys.executable, "-B", str(folder / "verify.py")], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASS  executorch-wav2lip") == done.stdout.count("PASS  tflite-wav2lip") == done.stdout.count("PASS  onnx-wav2lip") == 1
    for loader in ("kotlin/LiteRt.kt", "kotlin/ExecuTorch.kt", "swift/VerifyBundle.swift"):
        text = (folder / loader).read_text()
        assert text.index('"face"') < text.index('"audio"')
        assert text.index(".face.") < text.index(".audio.")
        assert (text.count("{"), text.count("(")) == (text.count("}"), text.count(")"))


@pytest.mark.export
def test_a_vector_whose_inputs_were_swapped_fails(make: Make, tmp_path: Path) -> None:
    with captured(tmp_path / "log.txt"):
        folder = bundle_of(tmp_path, shipped(make("onnx", "uneven", "float")))
    assert replay_in(folder).returncode == 0
    data = json.loads((folder / "manifest.json").read_text())
    data["files"][0]["vectors"][0]["inputs"].reverse()
    data["manifest_sha256"] = replay.manifest_digest(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    said = "the vector 'a face, speaking' holds source, target; the file takes target, source"
    (result,) = verify_bundle(folder)
    assert result.verdict == "FAIL"
    assert said in result.detail
    done = replay_in(folder)
    assert done.returncode == 1
    assert said in done.stdout


@pytest.mark.export
def test_every_input_is_measured(make: Make, tmp_path: Path) -> None:
    for backend in ("onnx", "tflite", "executorch"):
        made = make(backend, "wav2lip", "float")
        latency, *_ = profile(backend, made.written.path, list(made.case.shapes.values()), precision="fp32", threads=1, seconds=0.05)
        shapes = ("face 1x96x96x6, audio 1x80x16x1", "face 1x6x96x96, audio 1x1x80x16")[backend != "tflite"]
        assert f"input {shapes}" in str(latency.source)
    with pytest.raises(ExportError, match=r"the file takes an input of shape \[1, 1, 80, 16\], and \[1, 1, 80, 17\] was asked for"):
        profile("onnx", make("onnx", "wav2lip", "float").written.path, [(1, 6, 96, 96), (1, 1, 80, 17)], precision="fp32", threads=1, seconds=0.05)


def test_sizes_are_asked_for_in_the_files_order() -> None:
    stated = [("face", ("n", 96, 96, 6)), ("audio", (1, 80, 16, 1)), ("level", (1,))]
    found = sizes_of(stated, Asked([(2, 96, 96, 6), (1, 1, 80, 16)], {}))
    assert [one["shape"] for one in found.inputs] == [[2, 96, 96, 6], [1, 80, 16, 1], [1]]
    with pytest.raises(Unusable, match="the file takes 3 inputs, and 4 were asked for"):
        sizes_of(stated, Asked([(2, 96, 96, 6)] * 4, {}))


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ({}, "a network without inputs cannot be exported"),
        ({"output": torch.zeros(1, 3)}, "an input is named 'output'; it must be letters, digits and `_` without a digit in front, and not 'output'"),
        ({"a face": torch.zeros(1, 3)}, "an input is named 'a face'"),
        ({"face": torch.zeros(1, 3), "step": torch.zeros(1, dtype=torch.int64)}, "the input 'step' is int64 of 1 axes"),
        ({"step": torch.tensor(1.0)}, "the input 'step' is float32 of 0 axes"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_no_format_takes_are_refused(backend: str, examples: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        backend_named(backend).write(CONFIGS[backend], nn.Identity(), examples, None, tmp_path / "none")
    assert said in str(caught.value)


def test_a_reference_is_moved_in_all_of_its_inputs() -> None:
    source = np.random.default_rng(0)
    large, small = (source.uniform(0, top, (1, 1, 64, 64)).astype(np.float32) for top in (100.0, 1.0))
    only_small = own_agreement_db(lambda _, value: value, [(large, small)])
    assert only_small == pytest.approx(own_agreement_db(lambda value: value, [(small,)]), abs=0.3), "each by a share of its own range"
    assert own_agreement_db(lambda one, other: 0 * one + 0 * other + 1, [(large, small)]) == own_agreement_db(lambda one: 0 * one + 1, [(small,)])


class Adds:
    """A runner that is wrong for one of its inputs."""

    runtime = "made up"

    def run(self, *values: FloatArray) -> FloatArray:
        return values[0] + values[1] + np.float32(values[1].flat[0] > 0.5)


def test_the_worst_test_input_is_found_whole() -> None:
    given = [(np.ones((1, 2), np.float32), np.full((1, 2), level, np.float32)) for level in (0.1, 0.7, 0.2)]
    assert worst_input(Adds(), lambda one, other: one + other, given) is given[1]  # type: ignore[arg-type]


def test_facts_say_what_is_no_picture() -> None:
    plain = {"name": "words", "shape": (1, 7, 5), "dtype": "float32", "layout": "ND"}
    assert TensorFacts.model_validate({**plain, "picture": False, "colour_order": None}).layout == "ND"
    for changed, said in (
        ({}, "is no picture's"),
        ({"picture": False}, "colour_order is RGB, and it is no picture"),
        ({"layout": "NCHW"}, "layout NCHW does not go with 3 axes"),
        ({"shape": (1, 3, 4, 4)}, "layout ND does not go with 4 axes"),
    ):
        with pytest.raises(ValidationError, match=said):
            TensorFacts.model_validate({**plain, **changed})
