"""A damaged or edited .onnx is an `ExportError` when it is loaded, and never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from mcompress.errors import ExportError
from mcompress.export import onnx as backend
from mcompress.export.onnx_host import saturating_convolution


def convolution() -> ModelProto:
    """A small sound file: one INT8 convolution."""
    return onnx.load_model_from_string(saturating_convolution()[0])


def held(model: ModelProto, name: str) -> TensorProto:
    return next(item for item in model.graph.initializer if item.name == name)


def hold(model: ModelProto, name: str, value: np.ndarray) -> None:
    held(model, name).CopyFrom(numpy_helper.from_array(value, name))


def node(model: ModelProto, kind: str) -> onnx.NodeProto:
    return next(item for item in model.graph.node if item.op_type == kind)


def outside(model: ModelProto) -> None:
    item = held(model, "weight")
    item.ClearField("raw_data")
    item.data_location = TensorProto.EXTERNAL
    item.external_data.add(key="location", value="../../secret")


def second_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, (1, 32, 4, 4)))


def second_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 32, 4, 4)))


def loop(model: ModelProto) -> None:
    node(model, "Conv").input[0] = "output"


def strange_operator(model: ModelProto) -> None:
    node(model, "Conv").op_type = "Convolve"


def strange_attribute(model: ModelProto) -> None:
    node(model, "Conv").attribute.append(helper.make_attribute("group", 5))


def half_weights(model: ModelProto) -> None:
    item = held(model, "weight")
    item.raw_data = item.raw_data[:100]


def mixed_types(model: ModelProto) -> None:
    cast = helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16)
    conv = node(model, "Conv")
    conv.input[0] = "x16"
    model.graph.node.insert(2, cast)


def bad_cast(model: ModelProto) -> None:
    conv = node(model, "Conv")
    conv.op_type = "Cast"
    del conv.input[1:]
    conv.attribute.append(AttributeProto(name="to", type=AttributeProto.INT, i=99))


EDITS: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "no nodes": (lambda model: model.graph.ClearField("node"), "holds no ONNX graph"),
    "no output": (lambda model: model.graph.ClearField("output"), "holds no ONNX graph"),
    "two outputs": (second_output, "1 inputs and 2 outputs"),
    "weights in another file": (outside, "keeps 'weight' in another file"),
    "a scale of zero": (lambda model: hold(model, "step", np.float32(0)), "must be finite and above 0"),
    "a scale that is no number": (lambda model: hold(model, "weight_scale", np.full(32, np.nan, np.float32)), "must be finite and above 0"),
    "a negative scale": (lambda model: hold(model, "one", np.float32(-1)), "must be finite and above 0"),
    "too few scales": (lambda model: hold(model, "weight_scale", np.ones(3, np.float32)), "has 3 scales for 32 channels"),
    "weights of another shape": (lambda model: hold(model, "weight", np.ones((32, 8, 1, 1), np.int8)), "its input has 32 channels"),
    "a zero point of another shape": (lambda model: hold(model, "zero", np.zeros(2, np.uint8)), "its zero point has shape"),
    "half of the weights": (half_weights, "failed to load"),
    "an unknown operator": (strange_operator, "Convolve"),
    "an impossible attribute": (strange_attribute, "in 5 groups"),
    "two precisions at one operator": (mixed_types, "failed to load"),
    "a cast to no type": (bad_cast, "failed to load"),
    "a loop": (loop, "failed to load"),
    "an unknown opset": (lambda model: model.opset_import[0].__setattr__("version", 999), "failed to load"),
    "a missing tensor": (lambda model: model.graph.initializer.remove(held(model, "weight")), "failed to load"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_file_is_refused(what: str, tmp_path: Path) -> None:
    edit, message = EDITS[what]
    model = convolution()
    path = tmp_path / "edited.onnx"
    path.write_bytes(model.SerializeToString())
    backend.load(path, 1)
    edit(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=message) as caught:
        backend.load(path, 1)
    assert "edited.onnx" in str(caught.value)
    assert "xport it again" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not a model" * 100, b"\x00" * 64, saturating_convolution()[0][:-1500]], ids=["empty", "text", "zeros", "cut"]
)
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"broken\.onnx.*xport it again"):
        backend.load(path, 1)
    with pytest.raises(ExportError, match=r"broken\.onnx"):
        backend.intermediates(path, [np.zeros((1, 32, 4, 4), np.float32)], ())


def test_a_file_that_was_given_an_input_asks_for_it(tmp_path: Path) -> None:
    model, path = onnx.load_from_string(saturating_convolution()[0]), tmp_path / "edited.onnx"
    second_input(model)
    onnx.save(model, str(path))
    with pytest.raises(ExportError, match=r"the file takes 2 inputs \(input, more\); 1 were given"):
        backend.load(path, 1).run(np.zeros((1, 32, 4, 4), np.float32))


FLIPS = """
import sys
from pathlib import Path
import numpy as np
from mcompress.errors import ExportError
from mcompress.export import onnx as backend
from mcompress.export.onnx_host import saturating_convolution
content, path, source = saturating_convolution()[0], Path(sys.argv[1]), np.random.default_rng(int(sys.argv[2]))
refused = 0
for _ in range(150):
    damaged = bytearray(content)
    for at in source.integers(0, len(content), 3):
        damaged[at] ^= 1 << int(source.integers(8))
    path.write_bytes(damaged)
    try:
        backend.load(path, 1)
    except ExportError:
        refused += 1
sys.stdout.write(str(refused))
"""


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FLIPS, str(tmp_path / "flipped.onnx"), "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert 0 < int(run.stdout) < 150  # flips inside weights are no damage that a format shows
