"""Bundles that are refused: changed, incomplete, pointing outside, of another schema."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import replay_in

from mcompress.errors import ParityError, UsageError
from mcompress.export import replay
from mcompress.export.bundle import verify_bundle
from mcompress.listing import verify_rows


def rewrite(bundle: Path, change: Callable[[dict], None], *, sign: bool = True) -> None:  # type: ignore[type-arg]
    """Edit the manifest, and its own digest with it as an attacker would."""
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    if sign:
        data["manifest_sha256"] = replay.manifest_digest(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a bundle: it has no manifest\.json"):
        verify_bundle(tmp_path)


def test_corrupted_model_is_refused_before_it_is_read(bundle: Path) -> None:
    data = bytearray((bundle / "tiny-float.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "tiny-float.onnx").write_bytes(data)
    with pytest.raises(ParityError, match=r"tiny-float.onnx was changed: SHA-256 is [0-9a-f]{16}"):
        verify_bundle(bundle)
    done = replay_in(bundle)
    assert done.returncode == 1
    assert done.stdout.endswith("FAIL\n")


def test_tampered_digest_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda data: data["files"][0].update(sha256="0" * 64), sign=False)
    with pytest.raises(ParityError, match="its own SHA-256 does not match"):
        verify_bundle(bundle)


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/hostname", "vectors/../../outside.onnx", "a\\..\\b", ".", "./manifest.json", "C:x", ""])
def test_paths_that_escape_are_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "outside.onnx").write_bytes(b"secret")

    def point(data: dict) -> None:  # type: ignore[type-arg]
        data["files"][0]["path"] = path
        data["contents"].append({"path": path, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()})

    rewrite(bundle, point)
    with pytest.raises(UsageError, match="only relative paths inside the bundle are allowed"):
        verify_bundle(bundle)
    assert replay_in(bundle).returncode == 1


def part_of(vector: dict[str, object], part: str) -> dict[str, object]:
    """What of a vector has the path `part`: the vector, or its first input."""
    return vector if part in vector else vector["inputs"][0]  # type: ignore[index, no-any-return]


@pytest.mark.parametrize("part", ["npy", "reference_npy", "bin", "expected_bin"])
def test_vectors_outside_the_bundle_are_not_read(bundle: Path, part: str) -> None:
    (bundle.parent / "outside").write_bytes(b"secret")
    rewrite(bundle, lambda data: part_of(data["files"][0]["vectors"][0], part).update({part: "../outside"}))
    with pytest.raises(UsageError, match=r"names the path '\.\./outside'; only relative paths inside the bundle are allowed"):
        verify_bundle(bundle)
    assert replay_in(bundle).returncode == 1


@pytest.mark.parametrize(("part", "size"), [("npy", 0), ("npy", 200), ("expected_bin", 0), ("expected_bin", 200)])
def test_a_vector_that_was_cut_fails_its_file_and_says_so(bundle: Path, part: str, size: int) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    name = str(part_of(data["files"][0]["vectors"][0], part)[part])
    (bundle / name).write_bytes((bundle / name).read_bytes()[:size])
    digest = {"bytes": size, "sha256": replay.digest_of(bundle / name)}
    rewrite(bundle, lambda data: next(entry for entry in data["contents"] if entry["path"] == name).update(digest))
    (found,) = verify_bundle(bundle)
    assert found.verdict == "FAIL"
    assert found.detail.startswith("a vector of it does not fit it or cannot be read: ")
    assert found.detail.endswith("Take the bundle again from where it was made")


@pytest.mark.parametrize(
    ("tensor", "stated", "detail"),
    [
        ("inputs", {"name": "picture"}, "its input 'input' has name input; the manifest states name picture"),
        ("inputs", {"shape": [1, 3, 24, 24]}, "its input 'input' has shape (1, 3, 12, 12); the manifest states shape (1, 3, 24, 24)"),
        (
            "outputs",
            {"dtype": "int8", "scale": 0.5, "zero_point": 3},
            "its output 'output' has dtype float32, scale None, zero_point None; the manifest states dtype int8, scale 0.5, zero_point 3",
        ),
    ],
)
def test_a_file_with_other_tensors_than_stated_fails(bundle: Path, tensor: str, stated: dict[str, object], detail: str) -> None:
    """As where a float file stands in the place of the int8 file: what it computes is close, and an app that feeds it int8 gets rubbish."""
    rewrite(bundle, lambda data: data["files"][0][tensor][0].update(stated))
    (found,) = verify_bundle(bundle)
    assert found.verdict == "FAIL"
    assert found.detail == f"{detail}. Take the bundle again from where it was made"


def test_a_file_that_gives_no_numbers_fails_in_words_and_in_json(bundle: Path) -> None:
    vector = json.loads((bundle / "manifest.json").read_text())["files"][0]["vectors"][0]
    name = vector["inputs"][0]["npy"]
    path = bundle / name
    np.save(path, np.full_like(np.load(path), np.nan))
    digest = {"sha256": replay.digest_of(path)}
    rewrite(bundle, lambda data: next(entry for entry in data["contents"] if entry["path"] == name).update(digest))
    (row,) = verify_rows(bundle)
    assert row["verdict"] == "FAIL"
    assert str(row["detail"]).startswith("it gave NaN, infinity or another shape than expected (allowed: ")
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def choice(**changed: object) -> dict[str, object]:
    """An entry of `choose` as a bundle of several widths has it."""
    plain = {"within_ms": 9.0, "file": "tiny-float.onnx", "backend": "onnx", "width": 0.5, "unit": "cpu", "how": "estimated", "on": "phone cpu"}
    return {**plain, "quality": {}, **changed}


def test_a_choice_that_is_no_file_of_the_bundle_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda data: data.update(choose=[choice(file="../outside.onnx")]))
    with pytest.raises(UsageError, match=r"`choose` names '\.\./outside\.onnx', which is none of the model files in `files`"):
        verify_bundle(bundle)
    done = replay_in(bundle)
    assert done.returncode == 1
    assert "`choose` names '../outside.onnx'" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        ([choice(width=1.0)], "choose names 'tiny-float.onnx', which is no onnx file of width 1 in `files`"),
        ([choice(backend="tflite")], "choose names 'tiny-float.onnx', which is no tflite file of width 0.5 in `files`"),
        ([choice(within_ms=5.0), choice()], "choose has [5.0, 9.0] ms for onnx; each runtime's files go from slow to fast"),
        ([choice(within_ms=0)], "Input should be greater than 0"),
    ],
)
def test_choices_fit_their_files(bundle: Path, choose: list[dict[str, object]], said: str) -> None:
    def change(data: dict) -> None:  # type: ignore[type-arg]
        data["files"][0]["width"] = 0.5
        data["choose"] = choose

    rewrite(bundle, change)
    with pytest.raises(UsageError, match=re.escape(said)):
        verify_bundle(bundle)
    rewrite(bundle, lambda data: data.update(choose=[choice(), choice(within_ms=5.0)]))
    assert [result.status for result in verify_bundle(bundle)] == ["passed"]
    assert replay_in(bundle).returncode == 0


def test_links_are_refused(bundle: Path) -> None:
    model = bundle / "tiny-float.onnx"
    model.rename(bundle.parent / "outside.onnx")
    model.symlink_to(bundle.parent / "outside.onnx")
    with pytest.raises(UsageError, match=r"tiny-float\.onnx is a symbolic link"):
        verify_bundle(bundle)


def test_unknown_and_missing_files_are_refused(bundle: Path) -> None:
    (bundle / "vectors" / "stranger.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"vectors/stranger\.bin is not in the manifest; remove it"):
        verify_bundle(bundle)
    (bundle / "vectors" / "stranger.bin").unlink()
    (bundle / "LICENSES").unlink()
    with pytest.raises(UsageError, match="LICENSES is in the manifest but not in the bundle"):
        verify_bundle(bundle)


@pytest.mark.parametrize(("schema", "advice"), [(3, "or a newer one"), (1, "or make the bundle again with this one")])
def test_another_schema_is_refused(bundle: Path, schema: int, advice: str) -> None:
    rewrite(bundle, lambda data: data.update(schema=schema))
    with pytest.raises(UsageError, match=f"has schema {schema}; this program reads schema 2. Use the mcompress that made it, {advice}"):
        verify_bundle(bundle)
    assert f"has schema {schema}; this program reads schema 2" in replay_in(bundle).stdout


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 2}'])
def test_manifests_that_are_none(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises((UsageError, ParityError)):
        verify_bundle(bundle)
    assert replay_in(bundle).returncode == 1


def test_manifest_without_its_parts(bundle: Path) -> None:
    rewrite(bundle, lambda data: data.pop("contents"))
    with pytest.raises(UsageError, match="lacks what a manifest of schema 2 has"):
        verify_bundle(bundle)
    rewrite(bundle, lambda data: data.update(files=[{"path": 3, "vectors": []}], contents=[]))
    with pytest.raises(UsageError):
        verify_bundle(bundle)
