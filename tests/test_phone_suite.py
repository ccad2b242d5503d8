"""The suite, and with it `device fit`, on a stand-in device through adb: where it ends, goes on, and measures again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from phone_programs import benchmark, program
from stand_in_device import StandInDevice, adb, attach, needs_adb

from mcompress.cli import app
from mcompress.errors import DeviceError, MissingBackendError, UsageError
from mcompress.export.profile_phone import Programs
from mcompress.export.suite.cases import cases
from mcompress.export.suite.running import Journal, Measured, Setting, Timing, measure_suite
from mcompress.targets.connect import connect


def measured(folder: Path, files: int, programs: Programs | None = None) -> Measured:
    """The first so many files of the suite, measured on the only phone that adb sees."""
    setting = Setting("a stand-in", "fp32", 1, None)
    with connect("adb") as phone:
        return measure_suite(phone, cases(0.01)[:files], setting, folder / "suite", seconds=60.0, progress=lambda *_: None, programs=programs)


@needs_adb
def test_a_suite_without_a_program_ends_at_the_first_file(stand_in: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCOMPRESS_BENCHMARK_MODEL", raising=False)
    with pytest.raises(MissingBackendError, match=r"adb:.* cannot measure anything: no program was given: --benchmark-binary or MCOMPRESS_"):
        measured(tmp_path, 6, Programs())
    broken = program(tmp_path, "broken", "echo >> ../runs; exit 1\n")
    with monkeypatch.context() as changed:
        changed.setattr("mcompress.export.suite.running.BATCH", 2)
        with pytest.raises(DeviceError, match="no fp32 file of the suite could be measured; the first reason: broken ended with code 1"):
            measured(tmp_path, 6, Programs(broken))
    assert len((stand_in.tmp / "runs").read_text(encoding="ascii").splitlines()) == 2  # one batch, not all of the suite
    assert measured(tmp_path, 6, Programs(benchmark(tmp_path))).complete


@needs_adb
def test_a_suite_on_a_phone_that_is_unplugged_goes_on_where_it_was(stand_in: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCOMPRESS_BENCHMARK_MODEL", str(benchmark(tmp_path)))
    journal = tmp_path / "suite" / "suite_fp32.jsonl"

    def kept() -> int:
        return len(journal.read_text(encoding="utf-8").splitlines()) - 1

    def unplug_in_time(add: Callable[[Journal, Timing], None]) -> Callable[[Journal, Timing], None]:
        def added(self: Journal, timing: Timing) -> None:
            add(self, timing)
            if len(self.timings) == 4:
                stand_in.unplug()

        return added

    with monkeypatch.context() as changed:
        changed.setattr(Journal, "add", unplug_in_time(Journal.add))
        with pytest.raises(DeviceError, match="was lost"):
            measured(tmp_path, 6)
    assert kept() == 4
    again = StandInDevice(tmp_path / "again")
    adb("disconnect")
    attach(again)
    found = measured(tmp_path, 6)
    again.unplug()
    assert found.complete
    assert len(found.samples) == 6
    assert kept() == 12  # both rounds of six
    assert sum("--graph=" in command for command in again.commands) == 8


@needs_adb
def test_a_phone_is_only_what_it_says_that_it_is(stand_in: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in says SM8250, on x86 unless it says something else of its processor."""
    monkeypatch.chdir(tmp_path)
    failing = program(tmp_path, "benchmark_model", "exit 1\n")

    def fit(name: str) -> None:
        app(["device", "fit", name, "--on", "adb", "--share", "0.01", "--benchmark-binary", str(failing)], standalone_mode=False)

    stand_in.add_program("uname", 'case "$1" in -m) echo x86_64;; *) echo Linux 6;; esac\n')
    with pytest.raises(UsageError, match=r"\(x86\), and that of Qualcomm Snapdragon 865 is an Arm one"):
        fit("kona")
    stand_in.add_program("uname", 'case "$1" in -m) echo aarch64;; *) echo Linux 6;; esac\n')
    for name, said in (
        ("lahaina", r"snapdragon888 is .* and adb is Stand-in \(android\); its SoC is SM8250, which is snapdragon865: measure on snapdragon888"),
        ("raspberrypi5", r"raspberrypi5 is Raspberry Pi 5 \(linux\), and adb is Stand-in \(android\)"),
        ("host", "host is the machine on which mcompress runs, and --on is adb"),
    ):
        with pytest.raises(UsageError, match=said):
            fit(name)
    with pytest.raises(DeviceError, match="no fp32 file of the suite could be measured; the first reason: benchmark_model ended with code 1"):
        fit("kona")  # it is one: measuring begins


@needs_adb
def test_another_program_measures_again(stand_in: StandInDevice, tmp_path: Path) -> None:
    found = [measured(tmp_path, 2, Programs(benchmark(tmp_path, first=f"# {version}\n"))) for version in (1, 1, 2, 2)]
    assert [one.quality.earlier for one in found] == [0, 4, 0, 4]
