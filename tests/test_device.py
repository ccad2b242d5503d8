"""Devices: names and aliases, what a file must hold, and what is said about one that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from operator_rows import network, row

from mcompress.calibration.device_file import device_text
from mcompress.errors import TargetError
from mcompress.targets.device import Device
from mcompress.targets.device_files import device_heads, list_devices, load_device, parse_device, shipped_device
from mcompress.targets.latency import estimate

SMALL = """\
# A device.
name: small
title: A small device
aliases: [tiny]
os: linux
preferred_unit: cpu
memory: {source: guess, limit_mb: 100}
sources:
  guess:
    text: an assumption for a test
    date: '2026-01-02'
    runtime: none
units:
  cpu:
    title: one core
    runs:
      int8: all
    computes_in: {int8: int8}
    boundary: {source: guess, hop_us: 5}
    speeds:
      int8:
        alignment: {source: guess, outputs: 8, inputs: 4}
        memory: {source: guess, gbs: 10}
        overhead: {source: guess, dispatch_us: 2, invoke_us: 20}
        operators:
          convolution: {source: guess, gmacs: 100}
          depthwise_convolution: {source: guess, gmacs: 20}
          grouped_convolution: {source: guess, gmacs: 50}
          transposed_convolution: {source: guess, gmacs: 80}
          matmul: {source: guess, gmacs: 60}
          attention: {source: guess, gmacs: 40}
          shuffle: {source: guess, slowdown: 2}
    validation:
      int8:
        how: leave-one-out
        source: guess
        checks: {a: [1, 1.09], b: [2, 1.5], c: [3, 3]}
"""


def wrong(old: str, new: str) -> list[str]:
    assert old in SMALL
    with pytest.raises(TargetError) as caught:
        parse_device(SMALL.replace(old, new), "x.yaml")
    return list(caught.value.problems)


def test_a_file_and_its_device_say_the_same() -> None:
    device = parse_device(SMALL, "small.yaml")
    assert device.unit().name == "cpu"
    assert device.units["cpu"].speeds["int8"].operators["shuffle"].slowdown == 2
    assert parse_device(device_text(device, "A device."), "x.yaml") == device


def test_the_band_comes_from_the_checks() -> None:
    unit = parse_device(SMALL, "small.yaml").unit()
    assert unit.band("int8") == "median error 9 %, mean 11 %, largest 25 %, on 3 networks, leave-one-out"
    summary = unit.validation["int8"].summary
    assert (summary.within_10, summary.within_25, summary.rank_correlation) == (pytest.approx(2 / 3), 1.0, 1.0)
    assert unit.band("fp16") == "not validated"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("memory: {source: guess, gbs: 10}", "memory: {gbs: 10}", "x.yaml:23: units.cpu.speeds.int8.memory.source is missing; it is required"),
        ("convolution: {source: guess, gmacs: 100}", "convolution: {source: guess, gmacs: -3}",
         "x.yaml:26: units.cpu.speeds.int8.operators.convolution.gmacs is -3; it must be above 0"),
        ("dispatch_us: 2", "dispatch_us: -2", "x.yaml:24: units.cpu.speeds.int8.overhead.dispatch_us is -2; it must be at least 0"),
        ("limit_mb: 100", "limit_mb: 100, speed: 3",
         "x.yaml:7: memory.speed is not known; memory takes source, limit_mb"),
        ("os: linux", "os: linux\nspeed: 3", "x.yaml:6: speed is not known; a device takes name, title, aliases, os, sources, memory, "
        "preferred_unit, units"),
        ("os: linux", "os: beos", "x.yaml:5: os is 'beos'; it must be one of android, ios, linux, macos"),
        ("boundary: {source: guess", "boundary: {source: gess", "x.yaml:19: units.cpu.boundary.source is 'gess', which is not in sources; "
        "these are guess"),
        ("          matmul: {source: guess, gmacs: 60}\n", "", "units.cpu: it runs int8 files, but speeds.int8.operators has no matmul"),
        ("shuffle: {source: guess, slowdown: 2}", "shuffle: {source: guess, gmacs: 2}", "operators.shuffle multiplies nothing: give slowdown, "
        "not gmacs"),
        ("matmul: {source: guess, gmacs: 60}", "matmul: {source: guess, slowdown: 60}", "operators.matmul needs gmacs"),
        ("gbs: 10}", "gbs: 10, cache_mb: 4}", "give both cache_mb and far_gbs, or neither"),
        ("computes_in: {int8: int8}", "computes_in: {}", "it runs int8 files, but computes_in does not say in which precision"),
        ("computes_in: {int8: int8}", "computes_in: {int8: fp16}", "it computes int8 files in fp16, but speeds has only int8"),
        ("computes_in: {int8: int8}", "computes_in: {int8: int8}\n    fallback_unit: cpu", "units.cpu.fallback_unit is 'cpu'; other units are "),
        ("preferred_unit: cpu", "preferred_unit: gpu", "preferred_unit is 'gpu'; units are cpu"),
        ("text: an assumption for a test", "text: guess", "x.yaml:10: sources.guess.text is 'guess'; it must have at least 10 characters"),
        ("date: '2026-01-02'", "date: yesterday", "x.yaml:11: sources.guess.date: it is 'yesterday'; write it as 2026-11-21"),
        ("date: '2026-01-02'", "date: 2026-13-01", "x.yaml:11: sources.guess.date: it is '2026-13-01'; write it as 2026-11-21"),
        ("date: '2026-01-02'", "date: 20260102", "x.yaml:11: sources.guess.date: it is 20260102; write it as 2026-11-21"),
        ("b: [2, 1.5]", "b: [2]", "x.yaml:37: units.cpu.validation.int8.checks.b is [2]; it must be [measured_ms, estimated_ms], two numbers"),
        ("b: [2, 1.5]", "b: [2, -1]", "x.yaml:37: units.cpu.validation.int8.checks.b is [2, -1]; it must be [measured_ms, estimated_ms]"),
        ("matmul: {", "matmull: {", "x.yaml:30: units.cpu.speeds.int8.operators.matmull is not known; units.cpu.speeds.int8.operators takes "
        "convolution, depthwise_convolution, "),
        ("matmul: {", "matmull: {", "; did you mean 'matmul'?"),
        ("  cpu:\n", "  CPU:\n", "x.yaml:14: units.CPU: the name must be small letters, digits, '_', '.' and '-', starting with a letter or digit"),
        ("int8: all", "int8: most", "x.yaml:17: units.cpu.runs.int8: it is 'most'; it must be a list of kinds of operators, or all"),
        ("memory: {source: guess, limit_mb", "memory: {limit_mb", "x.yaml:7: memory.source is missing; it is required"),
        ("gmacs: 40", "gmacs: .inf", "attention.gmacs is inf; it must be a finite number"),
        ("outputs: 8", "outputs: 0", "alignment.outputs is 0; it must be at least 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(old: str, new: str, expected: str) -> None:
    found = wrong(old, new)
    assert any(expected in problem for problem in found), found
    assert all(problem.startswith("x.yaml:") for problem in found)


def test_a_misspelt_class_is_one_problem() -> None:
    assert len(wrong("matmul: {", "matmull: {")) == 1


def test_the_host_says_when_it_is_another_processor_than_the_fitted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = "    runtime: none\n    machine: AMD EPYC (family 26, model 2)\n"
    here = parse_device(SMALL.replace("name: small", "name: host").replace("    runtime: none\n", machine), "x.yaml")
    assert here.measured_on(here.unit()) == ("AMD EPYC (family 26, model 2)",)
    monkeypatch.setattr("mcompress.targets.connect.host.this_machine", lambda: "AMD EPYC (family 26, model 2)")
    assert here.elsewhere(here.unit()) is None
    monkeypatch.setattr("mcompress.targets.connect.host.this_machine", lambda: "AMD EPYC (family 25, model 1)")
    said = "not validated on this processor (fitted on AMD EPYC (family 26, model 2)); run mcompress device fit host --on host, and use its host.yaml"
    assert here.elsewhere(here.unit()) == said
    table = network(row(inputs=8, outputs=8, side=9))
    found = estimate(table, here, "cpu", "int8")
    assert found.band == said
    assert "measured on AMD EPYC (family 26, model 2)" in str(found.source)
    other = parse_device(SMALL.replace("    runtime: none\n", machine), "x.yaml")  # is what it is, wherever its estimates are made
    assert other.elsewhere(other.unit()) is None
    assert "median error" in str(estimate(table, other, "cpu", "int8").band)


def test_all_problems_at_once() -> None:
    text = SMALL.replace("gmacs: 100", "gmacs: -1").replace("os: linux", "os: x").replace("gbs: 10", "gbs: fast")
    with pytest.raises(TargetError) as caught:
        parse_device(text, "x.yaml")
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["5", "23", "26"]


@pytest.mark.parametrize(("text", "expected"), [("", "x.yaml:1: the file holds empty; a device is a mapping"), ("a: [", "x.yaml:1: not valid YAML")])
def test_no_device_at_all(text: str, expected: str) -> None:
    with pytest.raises(TargetError, match=expected):
        parse_device(text, "x.yaml")


def test_a_device_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL)
    assert load_device(str(path)).name == "small"
    with pytest.raises(TargetError, match=r"device file .*none\.yaml: No such file or directory"):
        load_device(str(tmp_path / "none.yaml"))


def test_every_file_is_a_device_that_its_aliases_find() -> None:
    files = [entry.name for entry in (resources.files("mcompress.targets") / "devices").iterdir() if entry.name.endswith(".yaml")]
    assert sorted(f"{name}.yaml" for name in list_devices()) == sorted(files)
    seen: set[str] = set()
    for name, head in device_heads().items():
        device = load_device(name)
        assert (head.name, head.title, head.aliases, head.units) == (device.name, device.title, device.aliases, tuple(device.units))
        for alias in (device.name, *device.aliases):
            assert load_device(alias.upper()) is device
            assert shipped_device(alias) is device
            assert alias not in seen
            seen.add(alias)


def test_one_name_reads_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from mcompress.targets import device_files as module

    parsed: list[str] = []

    def counting(real: Callable[[str, str], Device]) -> Callable[[str, str], Device]:
        def parse(text: str, file: str) -> Device:
            parsed.append(file)
            return real(text, file)

        return parse

    monkeypatch.setattr(module, "parse_device", counting(module.parse_device))
    module._shipped.cache_clear()
    module.device_heads.cache_clear()
    assert module.load_device("S24").name == "snapdragon8gen3"
    assert parsed == ["snapdragon8gen3.yaml"]


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(TargetError, match=r"device 'snapdragn865' is not known.*known are apple-a14, .*; did you mean 'snapdragon865'\?"):
        load_device("snapdragn865")
    with pytest.raises(TargetError, match=r"unit 'npuu' is not known of device snapdragon865; known are cpu, gpu, npu; did you mean 'npu'\?"):
        load_device("snapdragon865").unit("npuu")
