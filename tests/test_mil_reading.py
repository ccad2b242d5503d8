"""Reading Core ML packages: constants byte by byte, and what damaged or edited packages are refused with."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mil_packages import edit, operations, outputs_of, write_torch
from torch import nn

from mcompress.errors import ExportError
from mcompress.export.mil.blob import WeightFile
from mcompress.export.mil.evaluate import constant_value
from mcompress.export.mil.program import read_program
from mcompress.export.mil.runner import MilRunner

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "net.mlpackage"
    write_torch(network(), torch.zeros(1, 3, 8, 8), path, half=True)
    return path


@pytest.fixture
def package(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "net.mlpackage"))


@pytest.mark.export
def test_a_package_reads_as_it_was_written(pristine: Path) -> None:
    program = read_program(pristine)
    assert program.specification_version == 8
    assert [value.name for value in program.outputs] == ["out_0"]
    computed = [operation.type for operation in program.main.operations if operation.type != "const"]
    assert computed == ["cast", "conv", "leaky_relu", "conv", "sigmoid", "cast"]
    producers, readers, types = program.main.producers(), program.main.readers(), program.main.types()
    first, second = (operation for operation in program.main.operations if operation.type == "conv")
    assert [operation.type for operation in readers[first.outputs[0].name]] == ["leaky_relu"]
    assert producers[second.outputs[0].name] is second
    assert str(types[first.outputs[0].name]) == "fp16[1, 8, 8, 8]"
    (weight,) = first.inputs["weight"]
    held = program.main.constant(weight)
    assert held is not None
    assert held.in_weight_file
    original = network()[0].weight.detach().numpy()  # type: ignore[index, union-attr, operator]
    np.testing.assert_array_equal(held.array, original.astype(np.float16))
    np.testing.assert_array_equal(constant_value(program.main, weight), original.astype(np.float16))
    assert constant_value(program.main, second.inputs["x"][0]) is None


@pytest.mark.export
def test_reading_and_computing_import_no_torch(pristine: Path) -> None:
    script = (
        "import sys, numpy as np; from pathlib import Path; from mcompress.export.mil.runner import MilRunner; "
        "out = MilRunner(Path(sys.argv[1])).run(np.zeros((1, 3, 8, 8), np.float32)); assert out.shape == (1, 3, 8, 8); "
        "assert not {'torch', 'coremltools', 'coremltools.converters'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(pristine)], check=True, timeout=120)


@pytest.mark.export
def test_every_type_of_a_weight_file_is_read_as_coremltools_writes_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from coremltools.libmilstoragepython import _BlobStorageWriter
    path, written = tmp_path / "weight.bin", {}
    writer = _BlobStorageWriter(str(path))
    for bits in (1, 2, 3, 4, 6):
        values = ((np.arange(29) * 5 + 1) % 2**bits).astype(np.uint8)
        written[f"uint{bits}"] = (getattr(writer, f"write_uint{bits}_data")(values), values)
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32"):
        values = np.linspace(np.iinfo(dtype).min, np.iinfo(dtype).max, 7).astype(dtype)
        written[dtype] = (getattr(writer, f"write_{dtype}_data")(values), values)
    nibbles = np.arange(-8, 7, dtype=np.int8)
    written["int4"] = (writer.write_int4_data(nibbles), nibbles)
    halves = np.array([1.5, -2.0, 65504, 6e-8], np.float16)
    written["fp16"] = (writer.write_fp16_data(halves.view(np.uint16)), halves)
    singles = np.array([1.5, np.inf, -0.0], np.float32)
    written["fp32"] = (writer.write_float_data(singles), singles)
    del writer
    file = WeightFile(path)
    for dtype, (offset, values) in written.items():
        found = file.blob(offset, dtype, values.shape, dtype).read()
        np.testing.assert_array_equal(found, values, err_msg=dtype)
        assert found.dtype == values.dtype


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads((path / "Manifest.json").read_text())
        change(content)
        (path / "Manifest.json").write_text(json.dumps(content))

    return apply


def _weights(change: Callable[[bytearray], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = bytearray((path / WEIGHTS).read_bytes())
        shorter = change(content)
        (path / WEIGHTS).write_bytes(shorter if isinstance(shorter, bytes | bytearray) else content)

    return apply


def _edited(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda model: change(model) and None)


def _stored(model: Any) -> Any:
    return next(operation for operation in operations(model) if operation.attributes["val"].WhichOneof("value") == "blobFileValue")


def _set_offset(model: Any, offset: int) -> None:
    _stored(model).attributes["val"].blobFileValue.offset = offset


def _set_shape(model: Any, size: int) -> None:
    operation = _stored(model)
    operation.attributes["val"].type.tensorType.dimensions[0].constant.size = size
    operation.outputs[0].type.tensorType.dimensions[0].constant.size = size


def _set_dtype(model: Any, dtype: int) -> None:
    operation = _stored(model)
    operation.attributes["val"].type.tensorType.dataType = dtype
    operation.outputs[0].type.tensorType.dataType = dtype


def _conv(model: Any) -> Any:
    return next(operation for operation in operations(model) if operation.type == "conv")


def _stated(model: Any, dtype: int) -> None:
    _stored(model).outputs[0].type.tensorType.dataType = dtype


def _twice(model: Any) -> None:
    operations(model).append(operations(model)[-1])


def _rename_function(model: Any) -> None:
    model.mlProgram.functions["other"].CopyFrom(model.mlProgram.functions["main"])
    del model.mlProgram.functions["main"]


def _immediate(model: Any) -> None:
    """A vector of four strides that holds two."""
    operation = next(o for o in operations(model) if o.type == "const" and o.attributes["val"].immediateValue.tensor.ints.values)
    operation.attributes["val"].immediateValue.tensor.ints.values.append(1)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda path: (path / "Manifest.json").unlink(), "Manifest.json cannot be read: No such file"),
    "manifest is not JSON": (lambda path: (path / "Manifest.json").write_text("{"), "Manifest.json does not name the model"),
    "manifest without the model": (_manifest(lambda content: content.pop("rootModelIdentifier")), "KeyError: 'rootModelIdentifier'"),
    "manifest leaves the package": (
        _manifest(lambda content: [item.update(path="../../etc/passwd") for item in content["itemInfoEntries"].values()]),
        "which is not inside the package",
    ),
    "no model": (lambda path: (path / MODEL).unlink(), "model.mlmodel cannot be read: No such file"),
    "model is no protobuf": (lambda path: (path / MODEL).write_bytes(b"\xff" * 100), "is not the protobuf of a Core ML model"),
    "model is cut": (lambda path: (path / MODEL).write_bytes((path / MODEL).read_bytes()[:-200]), "is not the protobuf of a Core ML model"),
    "model is empty": (lambda path: (path / MODEL).write_bytes(b""), "a model of type none"),
    "another kind of model": (_edited(lambda model: model.identity.SetInParent()), "a model of type identity; only ML programs"),
    "no weights": (lambda path: (path / WEIGHTS).unlink(), "the weight file .* cannot be read: No such file"),
    "weights are empty": (_weights(lambda content: b""), "has 0 bytes; its header alone has 64"),
    "weights of another version": (_weights(lambda content: struct.pack_into("<I", content, 4, 1)), "is of version 1; only version 2"),
    "weights are cut": (_weights(lambda content: content[: len(content) // 2]), "not inside the file of|lies at byte .* offsets are multiples"),
    "sentinel": (_weights(lambda content: struct.pack_into("<I", content, 64, 7)), "where 0xdeadbeef must stand and 0x00000007 stands"),
    "offset behind the end": (_edited(lambda model: _set_offset(model, 1 << 40)), "offsets are multiples of 64 inside the file"),
    "offset between": (_edited(lambda model: _set_offset(model, 65)), "offsets are multiples of 64 inside the file"),
    "shape does not fit": (_edited(lambda model: _set_shape(model, 9)), "values of shape .* take .* bytes, the weight file holds"),
    "type does not fit": (_edited(lambda model: _set_dtype(model, 11)), "the program says fp32, the weight file fp16"),
    "stated type differs": (_edited(lambda model: _stated(model, 11)), "is stated as fp32.* and holds fp16"),
    "immediate value does not fit": (_edited(_immediate), r"is int32\[\d\], \d values, and holds \d"),
    "reads an unknown name": (
        _edited(lambda model: setattr(_conv(model).inputs["x"].arguments[0], "name", "nowhere")),
        r"conv '.*' \(main, operation \d+\) reads 'nowhere' as x; nothing in front of it defines that name",
    ),
    "defines a name twice": (_edited(_twice), "'out_0' is defined again by cast"),
    "no main function": (_edited(_rename_function), "the program has no function 'main'; it has other"),
    "another output": (_edited(lambda model: setattr(model.description.output[0], "name", "image")), r"the model gives \['image'\], its function"),
    "an output of another type": (
        _edited(lambda model: setattr(model.description.output[0].type.multiArrayType, "dataType", 65552)),
        r"the model gives 'out_0' as fp16\[1, 3, 8, 8\], its function as fp32\[1, 3, 8, 8\]",
    ),
    "an input of another size": (
        _edited(lambda model: model.description.input[0].type.multiArrayType.shape.__setitem__(3, 9)),
        r"the model takes 'input' as fp32\[1, 3, 8, 9\], its function as fp32\[1, 3, 8, 8\]",
    ),
    "an image": (
        _edited(lambda model: model.description.input[0].type.imageType.SetInParent()),
        "is of type imageType; only multi-arrays can be read",
    ),
}


@pytest.mark.export
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_is_refused(damage: str, package: Path) -> None:
    apply, message = DAMAGES[damage]
    apply(package)
    with pytest.raises(ExportError, match=message):
        read_program(package)


@pytest.mark.export
def test_a_weight_file_that_shrinks_after_reading_is_refused(package: Path) -> None:
    program = read_program(package)
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:128])
    with pytest.raises(ExportError, match="ends inside the data"):
        outputs_of(program, np.zeros((1, 3, 8, 8), np.float32), "fp32")


@pytest.mark.export
def test_all_unknown_operators_are_named_before_anything_is_computed(package: Path) -> None:
    def rename(model: Any) -> None:
        for operation in operations(model):
            if operation.type in ("leaky_relu", "sigmoid"):
                operation.type += "_of_tomorrow"

    edit(package, rename)
    read_program(package)
    with pytest.raises(ExportError, match=r"1 leaky_relu_of_tomorrow, 1 sigmoid_of_tomorrow.*'.*' \(main, operation \d+\); sigmoid_of_tomorrow"):
        MilRunner(package)


def _give(model: Any) -> None:
    _conv(model).inputs["padding_of_tomorrow"].CopyFrom(_conv(model).inputs["strides"])


def _attribute(model: Any) -> None:
    _conv(model).attributes["padding_of_tomorrow"].CopyFrom(_conv(model).attributes["name"])


@pytest.mark.export
@pytest.mark.parametrize("change", [_give, _attribute])
def test_an_unknown_argument_of_a_known_operator_is_named(change: Callable[[Any], None], package: Path) -> None:
    edit(package, change)
    with pytest.raises(ExportError, match=r"conv '.*' \(main, operation \d+\): it has arguments that are not known here: padding_of_tomorrow"):
        MilRunner(package).run(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.export
def test_an_operator_with_a_block_of_its_own_is_named(package: Path) -> None:
    edit(package, lambda model: _conv(model).blocks.add() and None)
    with pytest.raises(ExportError, match=r"cannot be computed here: 1 conv\."):
        MilRunner(package)


@pytest.mark.export
def test_a_result_of_another_type_is_refused(package: Path) -> None:
    edit(package, lambda model: setattr(_conv(model).outputs[0].type.tensorType, "dataType", 23))
    with pytest.raises(ExportError, match=r"conv .* gives float32 numbers, and the file states int32\[1, 8, 8, 8\]"):
        MilRunner(package).run(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.export
def test_a_result_that_is_not_what_the_file_states_is_refused(package: Path) -> None:
    def shrink(model: Any) -> None:
        next(operation for operation in operations(model) if operation.type == "leaky_relu").outputs[0].type.tensorType.dimensions[
            1
        ].constant.size = 4

    edit(package, shrink)
    with pytest.raises(ExportError, match=r"leaky_relu .* gives an array of shape \(1, 8, 8, 8\), and the file states fp16\[1, 4, 8, 8\]"):
        outputs_of(read_program(package), np.zeros((1, 3, 8, 8), np.float32), "fp32")


@pytest.mark.export
def test_inputs_that_do_not_fit_are_refused(pristine: Path) -> None:
    runner = MilRunner(pristine)
    with pytest.raises(ExportError, match=r"has the shape \(1, 3, 4, 4\); the program takes fp32\[1, 3, 8, 8\]"):
        runner.execute(np.zeros((1, 3, 4, 4), np.float32))
