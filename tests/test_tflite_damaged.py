"""A damaged or hand-edited .tflite file is refused with a clear error before the interpreter sees it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_graphs import Made, packed, unpacked, write_tflite

from mcompress.errors import ExportError
from mcompress.export import tflite
from mcompress.export.backend import captured
from mcompress.export.tflite_check import check
from mcompress.export.tflite_tensors import intermediates

pytestmark = pytest.mark.export


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    weights = np.linspace(-1, 1, 4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3)
    constants = {"w": weights, "b": np.zeros(4, np.float32), "order": np.array([0, 3, 1, 2], np.int32)}
    operators = [Made("CONV_2D", "x w b", "y", {"strideH": 1, "strideW": 1}), Made("TRANSPOSE", "y order", "z")]
    shapes = {"x": (1, 6, 6, 3), "y": (1, 6, 6, 4), "z": (1, 4, 6, 6)}
    return write_tflite(tmp_path / "m.tflite", operators, shapes, "x", "z", constants)


def _short_weights(model: schema.ModelT) -> None:
    model.buffers[1].data = model.buffers[1].data[:-4]


def _wrong_shape(model: schema.ModelT) -> None:
    model.subgraphs[0].tensors[3].shape = [4, 3, 3, 400]


def _strange_tensor(model: schema.ModelT) -> None:
    model.subgraphs[0].operators[0].inputs = [0, 77, 4]


def _strange_buffer(model: schema.ModelT) -> None:
    model.subgraphs[0].tensors[3].buffer = 99


def _strange_scales(model: schema.ModelT) -> None:
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint, quantization.quantizedDimension = [0.1, 0.2], [0, 0], 0
    model.subgraphs[0].tensors[3].quantization = quantization


def _no_scale(model: schema.ModelT) -> None:
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = [float("nan")], [0]
    model.subgraphs[0].tensors[3].quantization = quantization


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_short_weights, "has 428 bytes"),
        (_wrong_shape, r"\(4, 3, 3, 400\)"),
        (_strange_tensor, "names tensor 77"),
        (_strange_buffer, "list index out of range|names buffer 99"),
        (_strange_scales, "2 scales along dimension 0"),
        (_no_scale, "has the scales"),
    ],
)
def test_what_contradicts_itself_is_named(change: Callable[[schema.ModelT], None], said: str, sound: Path, tmp_path: Path) -> None:
    check(sound)
    model = unpacked(sound)
    change(model)
    sound.write_bytes(packed(model))
    with captured(tmp_path / "log.txt"), pytest.raises(ExportError, match=said) as seen:
        tflite.load(sound, 1)
    assert "xport it again" in str(seen.value) or "export or copy it again" in str(seen.value)


def test_cut_and_changed_bytes_never_raise_anything_else(sound: Path, tmp_path: Path) -> None:
    content, chance, refused = sound.read_bytes(), random.Random(1), 0
    for _ in range(300):
        changed = bytearray(content)
        place = chance.randrange(len(changed))
        if chance.random() < 0.3:
            changed = changed[: max(place, 8)]
        else:
            changed[place : place + 4] = chance.choice([b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x10\x00\x00"])
        path = tmp_path / "changed.tflite"
        path.write_bytes(bytes(changed))
        try:
            check(path)
        except ExportError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "compute",
    [
        lambda path: tflite.load(path, 1).run(np.zeros((1, 3, 2, 2), np.float32)),
        lambda path: intermediates(path, [np.zeros((1, 2, 2, 3), np.float32)]),
    ],
)
def test_a_file_that_computes_in_doubles_is_to_be_exported_again(compute: Callable[[Path], object], tmp_path: Path) -> None:
    """LiteRT loads such a file and refuses it when it computes."""
    shapes = dict.fromkeys("xhky", (1, 2, 2, 3))
    path = write_tflite(tmp_path / "old.tflite", [Made("CAST", "x", "h"), Made("ADD", "h h", "k"), Made("CAST", "k", "y")], shapes, "x", "y")
    model = unpacked(path)
    for tensor in model.subgraphs[0].tensors:
        if tensor.name in (b"h", b"k"):
            tensor.type = schema.TensorType.FLOAT64
    path.write_bytes(packed(model))
    with captured(tmp_path / "log.txt"), pytest.raises(ExportError, match=r"old\.tflite.*FLOAT64 is unsupported by op Add.*xport it again"):
        compute(path)


def test_a_missing_file_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing\.tflite"):
        tflite.load(tmp_path / "nothing.tflite", 1)
