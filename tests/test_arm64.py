"""What `verify --arm64` decides without an emulated machine: agreement, refusals, sources of packages, what is said where nothing is set up."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tflite_graphs import Made, packed, unpacked, write_tflite
from tiny_bundle import export_record, make_bundle
from typer.testing import CliRunner

from mcompress.cli import app
from mcompress.errors import DeviceError, MissingBackendError, UsageError
from mcompress.export import replay
from mcompress.export.arm64 import emulation, program, set_up
from mcompress.export.arm64.agreement import agreement, allowed, passes, same_file_limit
from mcompress.export.arm64.refusals import operator_versions, refusal
from mcompress.export.arm64.verifying import verify_on_arm64
from mcompress.export.bundle import ExportedFile, TestVector
from mcompress.export.interface import TensorFacts

OLD = "tflite-runtime 2.14.0"
TOO_NEW = (
    "Didn't find op for builtin opcode 'ADD' version '6'. An older version of this builtin might be supported. "
    "Are you using an old TFLite binary with a newer model?\nRegistration failed.\n"
)
REQUEST: program.Request = {"packages": "", "file": "", "kernels": "builtin", "inputs": [], "outputs": []}


def facts(dtype: str, scale: float | None = None, zero_point: int | None = None) -> replay.Facts:
    return {"name": "y", "shape": [1, 2, 2, 1], "dtype": dtype, "layout": "NHWC", "scale": scale, "zero_point": zero_point}


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int8).reshape(1, 2, 2, 1)


def test_int8_outputs_are_compared_value_by_value_first() -> None:
    seen = agreement([whole(1, 2, 3, 4), whole(0, 0, 0, 8)], [whole(1, 3, 3, 2), whole(0, 0, 0, 8)], facts("int8", 0.5, 0))
    assert (seen.values, seen.differing, seen.most_steps, seen.max_abs, seen.span) == (8, 2, 2, 1.0, 4.0)
    assert seen.sqnr_db == pytest.approx(10 * np.log10((1 + 9 + 9 + 4) / (1 + 4)))
    assert seen.words() == f"2 of 8 values differ, by 2 steps at most, SQNR {seen.sqnr_db:.1f} dB"
    same = agreement([whole(1, 2, 3, 4)], [whole(1, 2, 3, 4)], facts("int8", 0.5, 0))
    assert same.words() == "all 4 values equal"
    assert same.as_json()["sqnr_db"] == 200.0


def test_a_float_output_that_is_not_a_number_never_passes() -> None:
    ones = np.ones((1, 2, 2, 1), np.float32)
    seen = agreement([ones * np.float32(np.nan)], [ones], facts("float32"))
    assert seen.as_json() == {"values": 4, "differing": 4, "most_steps": None, "max_abs": None, "sqnr_db": None}
    assert not passes(seen, {"max_abs": 1e9, "or_sqnr_db": None}, None)
    assert "NaN" in seen.words()


@given(st.floats(1e-4, 10.0), st.integers(-128, 127), st.integers(0, 4))
def test_a_limit_in_steps_is_exact_for_every_scale(scale: float, zero_point: int, steps: int) -> None:
    stored = float(np.float32(scale))
    tolerance: replay.Tolerance = {"max_abs": 2 * stored, "or_sqnr_db": 400.0}
    seen = agreement([whole(steps, 0, 0, 0)], [whole(0, 0, 0, 0)], facts("int8", stored, zero_point))
    assert passes(seen, tolerance, stored) == (steps <= 2)
    assert passes(seen, same_file_limit(tolerance, "xnnpack").tolerance, stored) == (steps <= 1)


def test_one_file_must_agree_with_itself_better_than_with_its_vectors() -> None:
    floats: replay.Tolerance = {"max_abs": 1e-3, "or_sqnr_db": None}
    for kernels in ("xnnpack", "builtin"):
        assert same_file_limit(floats, kernels).tolerance == {"max_abs": pytest.approx(1e-4), "or_sqnr_db": None}
    stated: replay.Tolerance = {"max_abs": 0.02, "or_sqnr_db": 35.0}
    assert same_file_limit(stated, "builtin").tolerance == stated
    mixed = same_file_limit(stated, "xnnpack").tolerance
    assert mixed == {"max_abs": 0.01, "or_sqnr_db": 45.0}
    assert allowed(mixed, 0.01) == "at most 1 step, or SQNR of at least 45 dB"
    assert allowed({"max_abs": 1e-4, "or_sqnr_db": None}, None) == "at most 0.0001"


def an_addition(path: Path, version: int) -> Path:
    """Adds its input to itself, and that to itself; `version` is the first operator's."""
    shape = (1, 4, 4, 3)
    write_tflite(path, [Made("ADD", "x x", "h"), Made("ADD", "h h", "y")], {"x": shape, "h": shape, "y": shape}, "x", "y")
    model = unpacked(path)
    model.operatorCodes[0].version = version
    path.write_bytes(packed(model))
    return path


def test_a_refusal_names_the_operator_its_version_and_how_many_the_file_has(tmp_path: Path) -> None:
    versions = operator_versions(an_addition(tmp_path / "new.tflite", 6))
    assert versions == Counter({("ADD", 6): 1, ("ADD", 1): 1})
    said = refusal(OLD, TOO_NEW, versions)
    assert said.startswith(f"{OLD} does not load it: it has no ADD in version 6, which 1 of the file's 2 operators are")


def test_a_refusal_is_checked_against_the_file() -> None:
    assert "says what the file does not show: Didn't find op" in refusal(OLD, TOO_NEW, Counter({("ADD", 5): 2}))
    unknown = "Op builtin_code out of range: 206. Are you using old TFLite binary with newer model?"
    assert "it has no STABLEHLO_COMPOSITE, which 2 of the file's 6" in refusal(OLD, unknown, Counter({("STABLEHLO_COMPOSITE", 1): 2, ("ADD", 1): 4}))
    newest = unknown.replace("206", "9999")
    assert "it has no BUILTIN_9999, which 1 of the file's 1" in refusal(OLD, newest, Counter({("BUILTIN_9999", 1): 1}))
    custom = "Encountered unresolved custom op: Nice.\nSee instructions"
    assert "it has no Nice, which 1 of the file's 1" in refusal(OLD, custom, Counter({("Nice", 1): 1}))
    assert refusal(OLD, "Input tensor\nlacks data", Counter({("ADD", 1): 1})) == f"{OLD} does not load it: Input tensor lacks data"


def test_debian_12_is_asked_of_the_mirrors_that_this_system_uses() -> None:
    own = [
        "https://mirror.test/debian/|trixie|main",
        "https://mirror.test/security/|trixie-security|main",
        "https://mirror.test/debian/|trixie|contrib",
    ]
    others = ["https://node.test/|nodistro|main", "https://mirror.test/debian/|trixie-backports|main", "", "broken"]
    lines = set_up.debian_sources([*own, *others, own[0]], "trixie")
    assert lines == [
        f"deb [signed-by={set_up.KEYRING}] https://mirror.test/debian/ bookworm main",
        f"deb [signed-by={set_up.KEYRING}] https://mirror.test/security/ bookworm-security main",
    ]
    assert set_up.debian_sources(["https://mirror.test/ubuntu/|noble|main"], "noble")[0].endswith("bookworm main")
    assert set_up.debian_sources(others, "trixie") == []


def a_tflite_bundle(folder: Path) -> Path:
    path = an_addition(folder / "tiny-float.tflite", 1)
    shape = TensorFacts(name="x", shape=(1, 4, 4, 3), dtype="float32", layout="NHWC")
    picture = np.random.default_rng(1).random((1, 3, 4, 4), dtype=np.float32)
    vector = TestVector("noise", (picture,), picture * 4, picture * 4)
    return make_bundle(folder, ExportedFile(export_record(path, backend="tflite"), path, (shape,), (shape,), (vector,)))


def test_without_the_set_up_the_command_that_makes_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(emulation.FOLDER, str(tmp_path / "none"))
    done = CliRunner().invoke(app, ["verify", str(a_tflite_bundle(tmp_path)), "--arm64"])
    assert isinstance(done.exception, MissingBackendError)
    assert done.exception.exit_code == 4
    assert f"{sys.executable} -m mcompress.export.arm64" in str(done.exception)
    assert str(tmp_path / "none") in str(done.exception)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / emulation.MARK).write_text('{"recipe": 0, "packages": []}')
    with pytest.raises(MissingBackendError, match="was set up by another mcompress"):
        emulation.find_emulation()


def test_a_bundle_without_tflite_files_is_refused(pristine_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no TFLite file, .* it holds: onnx\. Leave --arm64 out"):
        verify_on_arm64(pristine_bundle)


def test_the_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(emulation.FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert emulation.default_folder() == tmp_path / "mcompress" / "arm64"
    monkeypatch.setenv(emulation.FOLDER, str(tmp_path / "own"))
    assert emulation.default_folder() == tmp_path / "own"


def an_emulator(folder: Path, script: str) -> emulation.Emulation:
    """A stand-in for an emulator that ends as no real one can be made to."""
    (folder / emulation.QEMU).write_text(f"#!/bin/sh\n{script}\n")
    (folder / emulation.QEMU).chmod(0o755)
    return emulation.Emulation(folder)


def test_an_emulated_program_that_ends_without_an_answer_is_quoted(tmp_path: Path) -> None:
    crashed = an_emulator(tmp_path, "echo 'uncaught target signal 4 (Illegal instruction)' >&2; exit 132")
    assert crashed.ask(REQUEST, core="max", what="a file") == "code 132: uncaught target signal 4 (Illegal instruction)"


def test_an_emulator_that_hangs_or_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"a file: emulated max: .* did not finish within 0\.2 s\. Emulation is slow"):
        an_emulator(tmp_path, "exec sleep 5").ask(REQUEST, core="max", what="a file", timeout_s=0.2)
    with pytest.raises(DeviceError, match=r"cannot be started .* set it up again: .* -m mcompress\.export\.arm64"):
        emulation.Emulation(tmp_path / "nowhere").ask(REQUEST, core="max", what="a file")


def test_the_program_stands_alone() -> None:
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); assert not {'numpy', 'mcompress', 'pydantic'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-I", "-c", code, str(Path(program.__file__))], check=True)


def test_operators_inside_a_delegate_are_found() -> None:
    own = [{"op_name": "ADD", "index": i, "inputs": [i, -1], "outputs": [i + 1]} for i in range(4)]
    delegate = {"op_name": "DELEGATE", "index": 4, "inputs": np.array([1]), "outputs": np.array([3])}
    assert program.replaced([*own, delegate]) == {1, 2}
    assert program.replaced(own) == set()
