"""The sizes at which a file is measured: those that it states, those that are asked for, and what is said where it leaves them open."""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx_graphs import node, write_graph
from tflite_graphs import Made, write_tflite
from tiny_bundle import FAST, SIDE, kernel
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.errors import UsageError
from mcompress.export.agent.protocol import Unusable
from mcompress.export.agent.sizes import Asked, sizes_of
from mcompress.export.agent.tflite_files import load_tflite
from mcompress.export.agent.values import input_values
from mcompress.export.profile import FailedJob, InputShape, Job, Profile, Rules, measurements, profile_files
from mcompress.export.suite import layers
from mcompress.export.suite.writer import Graph
from mcompress.export.tables import table_of_file
from mcompress.opening import open_model
from mcompress.targets.connect import Host

Stated = Sequence[tuple[str, tuple[object, ...]]]
IMAGE: Stated = [("x", (1, 3, "h", "w"))]
PAIR: Stated = [("a", ("n", 8)), ("b", ("n", "m"))]


def sizes(stated: Stated, shape: tuple[int, ...] = (), **inputs: list[int]) -> list[list[int]]:
    return [one["shape"] for one in sizes_of(stated, Asked([shape] if shape else (), inputs)).inputs]


def refused(stated: Stated, shape: tuple[int, ...] = (), **inputs: list[int]) -> str:
    with pytest.raises(Unusable) as caught:
        sizes(stated, shape, **inputs)
    return str(caught.value)


def test_open_sizes_are_asked_for_and_never_made_up() -> None:
    assert refused(IMAGE) == "the file leaves sizes open (x: 1,3,h,w); give --input SHAPE"
    assert refused([("x", (1, -1, None, 8))]) == "the file leaves sizes open (x: 1,?,?,8); give --input SHAPE"
    assert refused([("a", (2,)), ("b", ("m", 4, "n")), ("c", ("k", "k"))]) == (
        "the file leaves sizes open (b: m,4,n; c: k,k); give --input b=SHAPE --input c=SHAPE"
    )
    assert refused(PAIR, a=[4, 8]) == "the file leaves sizes open (b: n,m); give --input b=SHAPE"
    assert sizes(IMAGE, (1, 3, 7, 9)) == sizes(IMAGE, x=[1, 3, 7, 9]) == [[1, 3, 7, 9]]
    assert [one["shape"] for one in sizes_of(IMAGE, Asked((), {"": [1, 3, 7, 9]})).inputs] == [[1, 3, 7, 9]]
    assert sizes([("x", ()), ("y", (2, 3))]) == [[], [2, 3]]


def test_sizes_with_one_name_are_one_size() -> None:
    assert sizes(PAIR, a=[4, 8], b=[4, 5]) == [[4, 8], [4, 5]]
    assert sizes([("a", ("n", 8)), ("b", (2, "n"))], a=[4, 8]) == [[4, 8], [2, 4]]
    assert refused(PAIR, a=[4, 8], b=[3, 5]) == "the file has one size for 'n', and --input gives it 4 and 3"


def test_an_open_batch_alone_is_one_and_said_as_counting_does() -> None:
    found = sizes_of([("a", ("n", 8)), ("b", (-1,)), ("c", (2, 2))], Asked((), {}))
    assert [one["shape"] for one in found.inputs] == [[1, 8], [1], [2, 2]]
    assert found.assumed == "batch 1 assumed, which the file leaves open"
    assert sizes_of([("a", ("n", 8))], Asked((), {"a": [1, 8]})).assumed == ""
    assert "leaves sizes open (b: m,4)" in refused([("a", ("n", 8)), ("b", ("m", 4))], a=[1, 8])


def test_what_the_file_does_not_take_is_refused() -> None:
    for inputs, said in (
        ({"x": [1, 4, 7, 9]}, "--input is x=1,4,7,9, but the file takes 1,3,h,w only"),
        ({"x": [3, 7, 9]}, "--input is x=3,7,9, but the file takes 1,3,h,w only"),
        ({"y": [1, 3, 7, 9]}, "--input names 'y', but the inputs of the file are: x"),
        ({"": [1, 3, 7]}, "--input is 1,3,7, but the file takes 1,3,h,w only"),
    ):
        assert refused(IMAGE, (), **inputs) == said
    assert sizes([("x", (1, 3, 4, 5))], (1, 4, 5, 3)) == [[1, 3, 4, 5]]  # a run states the network's layout, the file has its own
    assert "takes an input of shape [1, 3, 4, 5], and [1, 4, 4, 3] was asked for" in refused([("x", (1, 3, 4, 5))], (1, 4, 4, 3))
    assert refused([("x", (1, 3, 4, 5))], x=[1, 4, 5, 3]) == "--input is x=1,4,5,3, but the file takes 1,3,4,5 only; leave --input out"
    assert "--input names 'x', but the inputs of the file are: none" in refused([], x=[1])


@pytest.mark.export
@pytest.mark.parametrize(
    ("stated", "inputs"),
    [
        ([("x", (-1, 3, 8, 8))], {}),
        ([("x", (-1, 3, 8, 8))], {"": (2, 3, 8, 8)}),
        ([("x", (-1, 3, 8, 8))], {"": (1, 3, 32, 8)}),
        ([("x", (-1, 3, 8, 8))], {"": (1, 8, 8, 3)}),
        ([("x", (2, 3, -1, 8))], {}),
        ([("x", (2, 3, -1, 8))], {"x": (2, 3, 5, 8)}),
        ([("x", (2, 3, 8, 8))], {"x": (1, 3, 8, 8)}),
        ([("x", (2, 3, 8, 8))], {"": (2, 3)}),
        ([("x", (-1, 4)), ("z", (-1, 4))], {}),
        ([("x", (-1, 4)), ("z", (-1, 4))], {"x": (3, 4)}),
        ([("x", (-1, 4)), ("z", (-1, 4))], {"x": (3, 4), "z": (3, 4)}),
        ([("x", (-1, 4)), ("z", (1, -1))], {}),
        ([("x", (-1, 4)), ("z", (1, -1))], {"y": (1, 4)}),
        ([("x", ("n", 3, 8)), ("z", ("n", 4))], {"x": (3, 3, 8)}),
        ([("x", ("n", 3, 8)), ("z", ("n", 4))], {"z": (2, 4), "x": (3, 3, 8)}),
    ],
)
def test_one_rule_for_what_is_measured_and_for_what_is_counted(
    stated: Sequence[tuple[str, tuple[int | str, ...]]], inputs: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    """The same sizes, or the same words, from the program that measures and from both readers of files."""
    asked = Asked((), {name: list(shape) for name, shape in inputs.items()})
    try:
        found = sizes_of(stated, asked)
    except Unusable as error:
        verdict: object = str(error)
    else:
        verdict = ({one["name"]: tuple(one["shape"]) for one in found.inputs}, found.assumed)
    given = inputs.get("", inputs) or None
    names = [name for name, _ in stated]
    in_onnx = {name: [None if size == -1 else size for size in shape] for name, shape in stated}
    results = {name: f"{name}_tanh" for name in names}
    files = [write_graph(tmp_path / "file.onnx", [node("Tanh", name, result) for name, result in results.items()], in_onnx, list(results.values()))]
    if all(isinstance(size, int) for _, shape in stated for size in shape):  # no sizes have names in a TFLite file
        signatures = {tensor: [int(size) for size in shape] for name, shape in stated for tensor in (name, results[name])}
        shapes = {name: [max(1, size) for size in signature] for name, signature in signatures.items()}
        operators = [Made("TANH", name, result) for name, result in results.items()]
        files.append(write_tflite(tmp_path / "file.tflite", operators, shapes, " ".join(names), " ".join(results.values()), signatures=signatures))
    for file in files:
        if isinstance(verdict, str):
            with pytest.raises(UsageError) as caught:
                table_of_file(file, given)
            assert str(caught.value) == f"{file}: {verdict}"
        else:
            facts = table_of_file(file, given).facts
            assert (dict(facts.inputs), facts.assumed) == verdict


@pytest.fixture
def open_onnx(tmp_path: Path) -> Path:
    nodes = [node("Conv", "x weight", "y", pads=[1, 1, 1, 1]), node("Mul", "y gain", "z")]
    return write_graph(tmp_path / "open.onnx", nodes, {"x": [1, 3, "h", "w"], "gain": ["n", 1, 1, 1]}, ["z"], {"weight": kernel()})


def open_tflite(path: Path, signature: list[int]) -> Path:
    """A convolution whose sizes the file leaves open where `signature` has -1; as converters do, 1 is written beside it."""
    graph = Graph("fp32")
    source = graph.activation(tuple(max(1, size) for size in signature))
    result = layers.convolution(graph, source, 16, 3)
    graph.tensors[source].shapeSignature = signature
    graph.tensors[result].shapeSignature = [*signature[:3], 16]
    path.write_bytes(graph.file([source], [result]))
    return path


@pytest.mark.export
def test_both_runtimes_measure_what_was_asked_for(host: Host, open_onnx: Path, tmp_path: Path) -> None:
    tflite = open_tflite(tmp_path / "open.tflite", [1, -1, -1, 8])
    batch = open_tflite(tmp_path / "batch.tflite", [-1, 4, 4, 8])
    shapes = (InputShape("x", (1, 3, 6, 10)), InputShape("gain", (2, 1, 1, 1)))
    jobs = [
        Job(open_onnx, "onnx", rules=FAST),
        Job(open_onnx, "onnx", rules=FAST, inputs=shapes),
        Job(tflite, "tflite", rules=FAST),
        Job(tflite, "tflite", rules=FAST, inputs=(InputShape("", (1, 6, 10, 8)),)),
        Job(batch, "tflite", rules=FAST),
    ]
    without, given, open_sizes, resized, assumed = profile_files(host, jobs)
    assert isinstance(without, FailedJob)
    assert without.reason == "the file leaves sizes open (x: 1,3,h,w; gain: n,1,1,1); give --input x=SHAPE --input gain=SHAPE"
    assert isinstance(open_sizes, FailedJob)
    assert "leaves sizes open (t0: 1,?,?,8); give --input SHAPE" in open_sizes.reason
    assert isinstance(given, Profile)
    assert isinstance(resized, Profile)
    assert isinstance(assumed, Profile)
    assert given.inputs == shapes
    assert resized.inputs == (InputShape("t0", (1, 6, 10, 8)),)
    assert assumed.inputs == (InputShape("t0", (1, 4, 4, 8)),)
    sources = [measurements(one, device="", how="host", precision="")[0].source or "" for one in (given, resized, assumed)]
    assert "; input x 1x3x6x10, gain 2x1x1x1" in sources[0]
    assert "; input t0 1x6x10x8" in sources[1]
    assert "; input t0 1x4x4x8; batch 1 assumed, which the file leaves open" in sources[2]


class Library:
    """A library as `ctypes.CDLL` opens it."""

    real = ctypes.CDLL

    def __init__(self, name: str) -> None:
        self._library = self.real(name)

    def __getattr__(self, name: str) -> Callable[..., object]:
        found: Callable[..., object] = getattr(self._library, name)
        return found


@pytest.mark.export
def test_operators_of_an_open_tflite_are_those_of_the_shape_that_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LiteRT says of its outputs after the profiled runs' inputs were given their sizes."""
    path = open_tflite(tmp_path / "open.tflite", [1, -1, -1, 8])
    layouts: list[bytes] = []

    class Watched(Library):
        def __getattr__(self, name: str) -> Callable[..., object]:
            function = super().__getattr__(name)
            if name != "LiteRtGetCompiledModelOutputTensorLayouts":
                return function

            def called(*arguments: ctypes.Array[ctypes.c_char]) -> object:
                status = function(*arguments)
                layouts.append(arguments[3].raw)
                return status

            return called

    monkeypatch.setattr(ctypes, "CDLL", Watched)
    for height, width in ((8, 8), (24, 40)):
        loaded = load_tflite(path, 1, Asked((), {"": [1, height, width, 8]}))
        rows, said = loaded.operators()
        assert [row["kind"] for row in rows] == ["Convolution"]
        assert said == ["LiteRT's profiler counts whole microseconds"]
        assert struct.unpack("4i", layouts.pop()[4:20]) == (1, height, width, 16)
    assert not layouts


def test_an_older_litert_says_that_it_takes_no_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = open_tflite(tmp_path / "open.tflite", [1, -1, -1, 8])
    loaded = load_tflite(path, 1, Asked((), {"": [1, 8, 8, 8]}))

    class Older(Library):
        def __getattr__(self, name: str) -> Callable[..., object]:
            if "Resize" in name:
                raise AttributeError(name)
            return super().__getattr__(name)

    monkeypatch.setattr(ctypes, "CDLL", Older)
    rows, (said,) = loaded.operators()
    assert rows == []
    assert said.startswith("no operator times: the file leaves sizes open")


def test_a_shape_that_the_network_cannot_take_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    graph = Graph("fp32")
    source = graph.activation((1, 1, 1, 8))
    result = layers.convolution(graph, source, 16, 3)
    graph.tensors[source].shapeSignature = [1, -1, -1, -1]
    (tmp_path / "m.tflite").write_bytes(graph.file([source], [result]))
    with pytest.raises(Unusable, match=r"does not take inputs of shape t0=1,8,8,5: ") as caught:
        load_tflite(tmp_path / "m.tflite", 1, Asked((), {"": [1, 8, 8, 5]}))
    assert "damaged" not in str(caught.value)


@pytest.mark.export
def test_inputs_that_do_not_fit_into_memory_are_told_from_a_damaged_file(host: Host, tmp_path: Path) -> None:
    huge = write_graph(tmp_path / "huge.onnx", [node("Relu", "x", "y")], {"x": [4_000_000, 100_000, 1_000]}, ["y"])
    unknown = write_graph(tmp_path / "unknown.onnx", [node("NoSuch", "x", "y", domain="nobody")], {"x": [1]}, ["y"])
    first, second = profile_files(host, [Job(huge, "onnx", rules=FAST), Job(unknown, "onnx", rules=FAST)])
    assert isinstance(first, FailedJob)
    assert first.reason == "inputs of shape 4000000,100000,1000 do not fit into memory"
    assert isinstance(second, FailedJob)
    assert "the runtime cannot load it (" in second.reason


@pytest.mark.export
def test_the_option_and_the_result_file(open_onnx: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rules, "QUICK", FAST)
    batch = write_graph(tmp_path / "batch.onnx", [node("Relu", "x", "y")], {"x": ["batch", 3]}, ["y"])

    def measured(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(app, ["profile", *arguments, "--quick", "--json"])
        assert done.exit_code == 0, done.output
        (row,) = json.loads(done.stdout)["files"]
        return dict(row)

    given = measured(str(open_onnx), "--input", f"x=1,3,{SIDE},8", "--input", "gain=1x1x1x1")
    assert given["inputs"] == [{"name": "x", "shape": [1, 3, SIDE, 8]}, {"name": "gain", "shape": [1, 1, 1, 1]}]
    assert given["assumed"] is None
    alone = measured(str(batch))
    assert (alone["inputs"], alone["assumed"]) == ([{"name": "x", "shape": [1, 3]}], "batch 1 assumed, which the file leaves open")
    assert alone["assumed"] == open_model(str(batch), None, "{}").facts.split(", ", 3)[-1]
    shown = CliRunner().invoke(app, ["profile", str(batch), "--quick"])
    assert "batch.onnx: batch 1 assumed, which the file leaves open" in shown.stdout
    for source, wrong, said in (
        (open_onnx, ["--input", "1,3"], "the file takes 1,3,h,w only"),
        (open_onnx, ["--input", "1,3,8,8", "--input", "1,1,1,1"], "each needs the name of its input"),
        (open_onnx, ["--input", "x=1,3,8,8", "--input", "x=1,3,8,8"], "--input gives 'x' twice"),
        (open_onnx, ["--input", "1,three"], "positive whole numbers"),
        (bundle, ["--input", "x=1,3,8,8"], f"--input is x=1,3,8,8, and {bundle} is a bundle, whose files have their sizes; leave --input out"),
    ):
        failed = CliRunner().invoke(app, ["profile", str(source), "--quick", *wrong]).exception
        assert said in str(failed), failed


def test_random_inputs_have_the_sizes_and_types() -> None:
    for kind in ("float32", "float16", "int8", "uint8", "int64", "bool"):
        values = input_values(np, [2, 3], kind)
        assert np.asarray(values).shape == (2, 3)
        assert np.asarray(values).dtype == np.dtype(kind)
    with pytest.raises(Unusable, match="no values can be made"):
        input_values(np, [1], "string")
