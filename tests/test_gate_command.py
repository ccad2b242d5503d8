"""`mcompress check` from the command line: exit codes, what is printed and written, and bundles that cannot be compared."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gate_bundles import OTHER_WEIGHTS, PACKAGES, a_comparison, gate_bundle, recorded, table
from tiny_bundle import PICTURES, make_bundle

from mcompress import checking
from mcompress.cli import main
from mcompress.errors import ExportError
from mcompress.export import replay
from mcompress.export.comparison import NAME, read_comparison
from mcompress.reports.gate.measuring import time_files

Command = Callable[..., tuple[int, str, str]]


WHOLE = a_comparison(pictures={"tiny-float.onnx": PICTURES})


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `mcompress check NEW --against OLD ...`; exit code, standard output, standard error."""

    def run(new: Path, old: Path, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mcompress", "check", str(new), "--against", str(old), *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capfd.readouterr()
        return int(stopped.value.code or 0), printed.out, " ".join(printed.err.split())

    return run


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gate_bundle(tmp_path_factory.mktemp("slower"), a_comparison(table(middle=96)))


def rewritten(bundle: Path, name: str, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    """Edit a JSON file of a bundle and sign the bundle again."""
    path = bundle / name
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["contents"]:
        if entry["path"] == name:
            entry["sha256"], entry["bytes"] = replay.digest_of(path), path.stat().st_size
    manifest["manifest_sha256"] = replay.manifest_digest(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_equal_bundles_pass(check: Command, baseline: Path) -> None:
    code, out, _ = check(baseline, baseline)
    assert code == 0
    assert "verdict  ok  (17 ok)" in out
    assert "measured latency" in out


def test_a_slower_network_ends_with_3_and_names_the_operator(check: Command, baseline: Path, slower: Path) -> None:
    code, out, err = check(slower, baseline, "--no-measure")
    assert code == 3
    assert "verdict  regression" in out
    assert re.search(r"^ middle +changed +[\d.]+ +[\d.]+ +\+[\d.]+ ", out, flags=re.M)
    assert "the bundle is worse than its baseline" in err
    assert "onnx float: estimated latency" in err


def test_everything_is_written_even_where_the_gate_is_missed(check: Command, baseline: Path, slower: Path, tmp_path: Path) -> None:
    code, out, _ = check(slower, baseline, "--no-measure", "--json", "--junit", str(tmp_path / "check.xml"), "--markdown", str(tmp_path / "check.md"))
    assert code == 3
    data = json.loads(out)
    assert data["verdict"] == "regression"
    assert {row["verdict"] for row in data["rows"]} == {"ok", "regression"}
    assert data["operators"]["onnx float"][0]["name"] == "middle"
    failures = ElementTree.parse(tmp_path / "check.xml").getroot().findall(".//failure")
    assert {failure.get("type") for failure in failures} == {"regression"}
    assert (tmp_path / "check.md").read_text().startswith("<!-- mcompress check -->\n### :x: mcompress check: regression\n")


def test_run_folders_are_taken_for_their_bundles(check: Command, baseline: Path) -> None:
    assert check(baseline.parent, baseline.parent, "--no-measure")[0] == 0


def test_a_new_runtime_ends_with_3_and_is_no_regression(check: Command, baseline: Path, tmp_path: Path) -> None:
    newer = a_comparison(packages={**PACKAGES, "onnxruntime": "1.32.0"})
    new = gate_bundle(tmp_path, newer, export=lambda made: recorded(made, quality={"psnr_db": 20.0}))
    files = tmp_path / "check.xml", tmp_path / "check.md"
    code, out, err = check(new, baseline, "--junit", str(files[0]), "--markdown", str(files[1]))
    assert code == 3
    assert "verdict  re-baseline" in out
    assert "keep the new bundle as the baseline" in err
    assert "regression" not in out + err + files[0].read_text() + files[1].read_text()


def test_other_weights_are_measured(check: Command, baseline: Path, tmp_path: Path) -> None:
    new = gate_bundle(tmp_path, weights=OTHER_WEIGHTS)
    code, out, err = check(new, baseline, "--seconds", "0.05", "--json")
    assert "measuring onnx float: baseline and new in turns" in err
    (measured,) = [row for row in json.loads(out)["rows"] if row["field"] == "measured latency"]
    assert "interleaved, " in measured["note"]
    assert measured["values"][0] > 0
    assert code in (0, 3)  # what so short a measurement says is not this test's subject


def test_what_cannot_be_executed_here_is_said_and_fails_nothing(check: Command, baseline: Path, tmp_path: Path) -> None:
    def broken(made):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        from tiny_bundle import export_record

        made.path.write_bytes(b"not a network")
        return replace(made, record=export_record(made.path, bytes=replay.size_of(made.path)))

    old = gate_bundle(tmp_path / "old", a_comparison(gate={"size_percent": 1000}))
    new = gate_bundle(tmp_path / "new", a_comparison(gate={"size_percent": 1000}), export=broken)
    code, out, _ = check(new, old, "--seconds", "0.05", "--json")
    assert code == 0
    (measured,) = [row for row in json.loads(out)["rows"] if row["field"] == "measured latency"]
    assert measured["verdict"] == "not decided"
    assert "tiny-float.onnx" in measured["note"]


def test_a_required_measurement_that_decides_nothing_ends_with_3(
    check: Command, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "WITHIN_S", 0.01)
    files = tmp_path / "check.xml", tmp_path / "check.md"
    options = ("--seconds", "0.05", "--junit", str(files[0]), "--markdown", str(files[1]))
    for name, required, expected, tag in (("shown", False, 0, "skipped"), ("required", True, 3, "failure")):
        new = gate_bundle(tmp_path / name, a_comparison(gate={"measured_required": required}), weights=OTHER_WEIGHTS)
        code, out, err = check(new, baseline, *options)
        assert code == expected
        assert "verdict  not decided  (1 not decided, 16 ok)" in out
        assert "the time ended during a measurement" in " ".join(out.split())
        assert ("the target requires a measurement" in err) == required
        (found,) = ElementTree.parse(files[0]).getroot().findall(f".//{tag}")
        assert "the time ended during a measurement" in str(found.get("message")) + str(found.text)
        assert "not decided" in files[1].read_text().split("<details>")[0]


def test_a_file_that_is_no_network_is_an_export_error(baseline: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(ExportError, match=r"broken\.onnx"):
        time_files(baseline / "tiny-float.onnx", tmp_path / "broken.onnx", "onnx", 3.0, seconds=0.05)


def test_another_model(check: Command, baseline: Path, tmp_path: Path) -> None:
    new = gate_bundle(tmp_path, a_comparison(model={"network": "my_net:build", "args": {}}))
    code, out, err = check(new, baseline, "--junit", str(tmp_path / "check.xml"), "--markdown", str(tmp_path / "check.md"))
    assert (code, out) == (2, "")
    assert "model.network: the baseline has rrdb, the new bundle my_net:build" in err
    assert "--against" in err
    root = ElementTree.parse(tmp_path / "check.xml").getroot()
    assert root.get("errors") == "1"
    assert "my_net" in (root.findtext(".//error") or "")
    assert "not comparable" in (tmp_path / "check.md").read_text()


def test_another_schema(check: Command, baseline: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(baseline, tmp_path / "old"))
    rewritten(old, "manifest.json", lambda data: data.update(schema=1))
    code, _, err = check(baseline, old)
    assert code == 2
    assert "the baseline has schema 1, the new bundle schema 2" in err


def test_another_schema_of_the_comparison(check: Command, baseline: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(baseline, tmp_path / "old"))
    rewritten(old, NAME, lambda data: data.update(schema=7))
    code, _, err = check(baseline, old)
    assert code == 2
    assert "the baseline cannot be compared" in err
    assert "has schema 7; this mcompress compares schema 1" in err


def test_a_bundle_from_before_the_gate(check: Command, baseline: Path, tmp_path: Path) -> None:
    code, _, err = check(baseline, make_bundle(tmp_path))
    assert code == 2
    assert "the baseline cannot be compared" in err
    assert "holds no comparison.json" in err


@pytest.mark.parametrize("name", ["manifest.json", NAME, "tiny-float.onnx"])
def test_a_damaged_baseline(check: Command, baseline: Path, tmp_path: Path, name: str) -> None:
    old = Path(shutil.copytree(baseline, tmp_path / "old"))
    data = bytearray((old / name).read_bytes())
    data[len(data) // 2] ^= 1
    (old / name).write_bytes(data)
    code, out, err = check(baseline, old)
    assert (code, out) == (2, "")
    assert "the baseline cannot be compared" in err
    assert "regression" not in err


def test_a_damaged_table_with_a_right_digest_asks_for_a_new_baseline(check: Command, baseline: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(baseline, tmp_path / "old"))
    rewritten(old, NAME, lambda data: data["table"][0].pop("macs"))
    code, out, err = check(baseline, old, "--no-measure")
    assert code == 3
    assert "verdict  re-baseline" in out
    assert "cannot be estimated by this mcompress" in err


def test_places_that_are_no_bundles(check: Command, baseline: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, message in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "file", "is not a folder"), (tmp_path, "has no manifest.json")):
        code, _, err = check(baseline, place)
        assert code == 2
        assert message in err
        assert "baseline" in err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_seconds_that_mean_nothing(check: Command, baseline: Path, seconds: str) -> None:
    code, _, err = check(baseline, baseline, "--seconds", seconds)
    assert code == 2
    assert "--no-measure" in err


def test_outputs_that_cannot_be_written_are_refused_before_anything_is_measured(check: Command, baseline: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing" / "check.xml", Path("/proc/check.xml")):
        code, _, err = check(baseline, baseline, "--junit", str(place))
        assert code == 2
        assert f"--junit: '{place}' cannot be written" in err
        assert "it must be a file in a folder that exists" in err
    code, _, err = check(baseline, baseline, "--markdown", str(baseline / "manifest.json"))
    assert code == 2
    assert "one of the bundles that are compared; write it elsewhere" in err
    assert read_comparison(baseline) == WHOLE
    code, _, err = check(baseline, baseline, "--junit", str(tmp_path / "one"), "--markdown", str(tmp_path / "x" / ".." / "one"))
    assert code == 2
    assert "--junit and --markdown are both" in err


def test_a_comparison_that_breaks_off_leaves_nothing_of_the_last_one(
    check: Command, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "check.xml"
    report.write_text("<testsuites/>")

    def broken_off(*_files: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mcompress.checking._same_schema", broken_off)
    code, out, _ = check(baseline, baseline, "--no-measure", "--junit", str(report))
    assert (code, out) == (130, "")
    assert report.read_text() == ""


def test_the_bundle_carries_what_the_gate_needs(baseline: Path) -> None:
    comparison = read_comparison(baseline)
    assert comparison == WHOLE
    assert comparison.operators() == table()
    again = comparison.estimates_with(comparison.constants)["tiny-float.onnx"]
    assert again.latency_ms == pytest.approx(comparison.files["tiny-float.onnx"].latency_ms)
    listed = {entry["path"] for entry in json.loads((baseline / "manifest.json").read_text())["contents"]}
    assert NAME in listed
