"""The manifest says which runtime a file needs at least, and how that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bundle import SCALE, SIDE, an_export, export_record, facts, make_bundle

from mcompress.export.bundle import ExportedFile
from mcompress.export.manifest import Manifest, Runtime


def runtime_of(folder: Path, file: ExportedFile) -> Runtime:
    return Manifest.model_validate_json((make_bundle(folder, file) / "manifest.json").read_text()).files[0].runtime


def test_what_the_file_states_is_in_the_manifest_and_the_model_card(tmp_path: Path) -> None:
    runtime = runtime_of(tmp_path, replace(an_export(tmp_path / "made"), least_runtime="TensorFlow Lite 1.14.0"))
    assert runtime.least_version == "TensorFlow Lite 1.14.0"
    assert runtime.basis.startswith("stated in the file; executed here by ")
    assert "TensorFlow Lite 1.14.0 (stated in the file; executed here by" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(("least", "expected"), [("iOS 17, macOS 14", ("iOS 17, macOS 14", "stated in the file; not executed here")), (None, None)])
def test_a_file_that_was_not_executed_says_so(least: str | None, expected: tuple[str, str] | None, tmp_path: Path) -> None:
    export = an_export(tmp_path / "made")
    record = export_record(export.path, backend="coreml")
    record = record.model_copy(update={"parity": record.parity.model_copy(update={"passed": None, "value": None})})
    runtime = runtime_of(
        tmp_path, replace(export, record=record, inputs=(facts("input", SIDE),), outputs=(facts("output", SIDE * SCALE),), least_runtime=least)
    )
    assert (runtime.least_version, runtime.basis) == (expected or ("not known", "the file does not say; not executed here"))


def test_a_format_that_does_not_say_has_the_version_that_executed_it(tmp_path: Path) -> None:
    assert runtime_of(tmp_path, an_export(tmp_path / "made")).basis == "the version that executed it; older ones were not tried"
