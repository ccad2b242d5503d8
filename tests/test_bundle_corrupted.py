"""Bundles whose model files were damaged or edited by hand: the digest says so, and where it was adapted, the runtime or the vectors do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from mil_packages import edit, operations
from onnx import numpy_helper
from tiny_bundle import SIDE, a_real_export, an_export, kernel, make_bundle, replay_in
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.errors import ParityError
from mcompress.export import replay
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, TFLiteConfig

pytestmark = pytest.mark.export

ONNX, TFLITE, PTE, PACKAGE = "tiny-float.onnx", "made-float.tflite", "made-float.pte", "made-float.mlpackage"
FILES = (ONNX, TFLITE, PTE, PACKAGE)
PROGRAM, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
CHANGED = 6
"""The documented exit code of an artifact that is not what it should be."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one network in all four formats; to be copied."""
    folder = tmp_path_factory.mktemp("corrupted")
    files = [a_real_export(config, folder) for config in (TFLiteConfig(), ExecuTorchConfig(), CoreMLConfig())]
    return make_bundle(folder, an_export(folder / "onnx"), *files)


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "bundle"))


def verify(bundle: Path) -> Result:
    return CliRunner().invoke(app, ["verify", str(bundle), "--json"])


def rows_of(done: Result) -> dict[str, dict[str, str]]:
    """File -> its row."""
    return {row["file"]: row for row in json.loads(done.stdout)}


def adapt_digests(bundle: Path, *, only: str | None = None) -> None:
    """Make every digest in the manifest right again, as somebody would who edits by hand; `only` keeps the other files out of the bundle's list."""
    data = json.loads((bundle / "manifest.json").read_text())
    if only is not None:
        data["files"] = [file for file in data["files"] if file["path"] == only]
    for entry in (*data["contents"], *data["files"]):
        entry["sha256"], entry["bytes"] = replay.digest_of(bundle / entry["path"]), replay.size_of(bundle / entry["path"])
    data["manifest_sha256"] = replay.manifest_digest(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def scribble(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def inside(bundle: Path, name: str) -> Path:
    """A file to be damaged: the model itself, or the weights of a package."""
    return bundle / name / WEIGHTS if name == PACKAGE else bundle / name


def test_the_sound_bundle_passes_in_all_four_formats(sound: Path) -> None:
    done = verify(sound)
    assert done.exit_code == 0, done.output
    assert {name: row["verdict"] for name, row in rows_of(done).items()} == dict.fromkeys(FILES, "PASS")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, scribble])
def test_the_digest_comes_first(bundle: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(inside(bundle, name))
    done = verify(bundle)
    assert isinstance(done.exception, ParityError)
    assert done.exception.exit_code == CHANGED
    assert str(done.exception).startswith(f"{name} was changed: SHA-256 is ")
    assert "PASS" not in done.output  # nothing of a changed bundle is executed
    assert replay_in(bundle).returncode == 1


@pytest.mark.parametrize("change", [lambda package: (package / WEIGHTS).unlink(), lambda package: (package / "more.bin").write_bytes(b"x")])
def test_a_package_with_a_file_less_or_more_is_changed(bundle: Path, change: Callable[[Path], object]) -> None:
    change(bundle / PACKAGE)
    with pytest.raises(ParityError, match=rf"^{PACKAGE} was changed: SHA-256 is "):
        raise verify(bundle).exception or AssertionError("it was accepted")


def refused(bundle: Path, name: str) -> str:
    """What `verify` says of `name` after the digests were adapted; the ONNX file beside it must pass as before."""
    adapt_digests(bundle)
    done = verify(bundle)
    assert isinstance(done.exception, ParityError), (done.output, done.exception)
    assert done.exception.exit_code == CHANGED
    assert str(done.exception).startswith(f"1 of 4 files do not compute what they should: {name}. ")
    rows = rows_of(done)
    assert {file: row["verdict"] for file, row in rows.items()} == {file: "FAIL" if file == name else "PASS" for file in FILES}
    return rows[name]["detail"]


@pytest.mark.parametrize(
    ("name", "part", "damage", "said"),
    [
        (ONNX, "", cut, "its runtime refused it: tiny-float.onnx is no ONNX file, or is damaged"),
        (ONNX, "", scribble, "its runtime refused it: tiny-float.onnx is no ONNX file, or is damaged"),
        (TFLITE, "", cut, "its runtime refused it: made-float.tflite"),
        (TFLITE, "", scribble, "its runtime refused it: made-float.tflite"),
        (PTE, "", cut, "its runtime refused it: ExecuTorch cannot load made-float.pte"),
        (PACKAGE, WEIGHTS, cut, "weights/weight.bin: its data, bytes 128 to "),
        (PACKAGE, PROGRAM, cut, "made-float.mlpackage cannot be read: the model file com.apple.CoreML/model.mlmodel is not the protobuf of"),
        (PACKAGE, PROGRAM, scribble, "made-float.mlpackage cannot be read: the model file com.apple.CoreML/model.mlmodel is not "),
        (PACKAGE, "Manifest.json", scribble, "made-float.mlpackage cannot be read: Manifest.json does not name the model"),
    ],
)
def test_a_damaged_file_with_adapted_digests_is_refused_by_its_runtime(
    bundle: Path, name: str, part: str, damage: Callable[[Path], None], said: str
) -> None:
    damage(bundle / name / part)
    assert said in refused(bundle, name)


def test_an_empty_pte_is_refused(bundle: Path) -> None:
    (bundle / PTE).write_bytes(b"")
    assert "made-float.pte is empty. The file is damaged or was changed by hand; export it again." in refused(bundle, PTE)


def test_weights_of_an_onnx_file_that_were_edited_are_found_by_the_vectors(bundle: Path) -> None:
    model = onnx.load(str(bundle / ONNX))
    (weight,) = model.graph.initializer
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), weight.name))
    onnx.save(model, str(bundle / ONNX))
    assert "largest difference" in refused(bundle, ONNX)
    standalone = replay_in(bundle)
    assert standalone.returncode == 1
    assert f"FAIL  {ONNX}: largest difference" in standalone.stdout


@pytest.mark.parametrize("name", [TFLITE, PTE, PACKAGE])
def test_weights_that_were_edited_are_found_by_the_vectors(bundle: Path, name: str) -> None:
    path = inside(bundle, name)
    held = kernel().transpose(0, 2, 3, 1) if name in (TFLITE, PTE) else kernel().astype(np.float16)
    before, after = (np.ascontiguousarray(values).tobytes() for values in (held, held * held.dtype.type(1.05)))
    assert path.read_bytes().count(before) == 1
    path.write_bytes(path.read_bytes().replace(before, after))
    assert "largest difference" in refused(bundle, name)


def test_an_operation_of_a_package_that_nobody_knows_is_named_and_not_passed(bundle: Path) -> None:
    def rename(model: object) -> None:
        next(one for one in operations(model) if one.type == "conv").type = "convolve_backwards"

    edit(bundle / PACKAGE, rename)
    adapt_digests(bundle)
    done = verify(bundle)
    row = rows_of(done)[PACKAGE]
    assert row["verdict"] == "NOT EXECUTED"
    assert "convolve_backwards" in row["detail"]


def test_a_file_for_another_input_than_the_manifest_states_fails(bundle: Path) -> None:
    model = onnx.load(str(bundle / ONNX))
    for value, factor in ((model.graph.input[0], 1), (model.graph.output[0], 4)):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_value = (SIDE + 1) * factor
    onnx.save(model, str(bundle / ONNX))
    shapes = f"has shape (1, 3, {SIDE + 1}, {SIDE + 1}); the manifest states shape (1, 3, {SIDE}, {SIDE})"
    assert refused(bundle, ONNX) == f"its input 'input' {shapes}. Take the bundle again from where it was made"


def test_a_precision_plan_that_was_edited_is_changed(bundle: Path) -> None:
    path = bundle / "precision_plan.json"
    path.write_text(path.read_text().replace('"int8"', '"fp16"'))
    with pytest.raises(ParityError, match=r"^precision_plan\.json was changed: SHA-256 is "):
        raise verify(bundle).exception or AssertionError("it was accepted")


def test_the_bundles_own_program_names_damaged_files(bundle: Path) -> None:
    cut(bundle / ONNX)
    adapt_digests(bundle, only=ONNX)
    done = replay_in(bundle)
    assert done.returncode == 1
    assert f"FAIL  {ONNX}: its runtime refused it: [ONNXRuntimeError]" in done.stdout
    assert done.stdout.endswith("FAIL  1 of 1 files executed\n")
