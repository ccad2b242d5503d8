"""`device fit` and `device validate`: which device is meant, what is written where, and what is said of which machine."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mcompress.calibration.latency_fit import Sample
from mcompress.cli import app
from mcompress.device_commands import _place, subject
from mcompress.errors import DeviceError, UsageError
from mcompress.export.suite.cases import Case, cases
from mcompress.export.suite.running import Measured, Plan, Quality, Rounds, Setting
from mcompress.export.suite.writer import Number
from mcompress.export.tables import table_of_file
from mcompress.fitting import PRIORS, fit_on, validate_on, write_device
from mcompress.measuring import Wanted
from mcompress.targets.connect import DeviceFacts, Host
from mcompress.targets.connect.host import this_machine
from mcompress.targets.device import Device
from mcompress.targets.device_files import load_device

NETWORK = "patchgan"


def few(share: float = 1.0) -> tuple[Case, ...]:
    """A file of each class that the networks here have most of; a fit of it is a fit, if a bad one."""
    del share
    every = cases()
    kinds = ("convolution_", "pointwise_", "dense_", "sum_", "leaky_relu_")
    return tuple(next(case for case in every if case.name.startswith(kind)) for kind in kinds)


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few files, one alignment, in a folder of its own."""
    monkeypatch.setattr("mcompress.fitting.cases", few)
    for number, prior in PRIORS.items():
        monkeypatch.setitem(PRIORS, number, replace(prior, outputs=(16,), inputs=(prior.inputs[-1],)))
    monkeypatch.chdir(tmp_path)


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Everything that a command wrote to standard output, converters' C++ included."""
    app(arguments, standalone_mode=False)
    return capfd.readouterr().out


def chatty_export(name: str, number: Number, folder: Path) -> Path:
    """Stands for a converter, which takes many seconds: one convolution, and words on standard output, from Python and from below it."""
    print("Converting...")  # noqa: T201
    os.write(1, b"Quantization Ratio: 0.26\n")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{number}.tflite"
    path.write_bytes(few(1.0)[0].file(number))
    return path


@pytest.mark.export
def test_fit_validate_and_estimate(quick_fits: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`device fit` writes a file that validates, carries its error, and estimates; `--json` prints JSON and nothing else."""
    del quick_fits
    monkeypatch.setattr("mcompress.fitting.export_network", chatty_export)
    said = command(capfd, "device", "fit", "my_board", "--on", "host", "--keep", "kept")
    assert said.startswith("my_board.yaml: ")
    assert "next: mcompress device validate my_board.yaml --on host" in said
    said = command(capfd, "device", "validate", "my_board.yaml", "--on", "host", "--networks", NETWORK, "--keep", "kept", "--json")
    assert [(row["precision"], row["elsewhere"], [check["network"] for check in row["checks"]]) for row in json.loads(said)] == [
        ("fp32", None, [NETWORK]),
        ("int8", None, [NETWORK]),
    ]
    log = Path("kept/device-my_board/log.txt").read_text(encoding="utf-8")
    assert log.count("Converting...") == log.count("Quantization Ratio") == 2
    device = load_device("my_board.yaml")
    assert (device.sources["suite"].machine, device.sources["networks"].machine) == (this_machine(), this_machine())
    said = command(capfd, "estimate", f"kept/device-my_board/networks/{NETWORK}_fp32.tflite", "--device", "my_board.yaml")
    assert "error: median error" in said

    # The file is the device: fitted again in place, from what is kept, with the facts that it has.
    path = Path("my_board.yaml")
    path.write_text(path.read_text().replace("name: my_board", "name: my_board\naliases: [bored]"))
    said = command(capfd, "device", "fit", "my_board.yaml", "--on", "host", "--keep", "kept")
    again = load_device("my_board.yaml")
    assert (again.name, again.aliases, again.units["cpu"].validation) == ("my_board", ("bored",), {})
    with pytest.raises(UsageError, match=r"my_board\.yaml exists already: name that file instead of my_board"):
        command(capfd, "device", "fit", "my_board", "--on", "host", "--keep", "kept")

    # The host that ships keeps its facts in a file of the working directory; the package's file stays as it is.
    shipped = load_device("host")
    shutil.copytree("kept/device-my_board", "kept/device-host")  # measured already
    said = command(capfd, "device", "fit", "localhost", "--on", "host", "--keep", "kept")
    assert "use it as --device host.yaml, or device: host.yaml in a target; host by name is still the device that ships" in said
    fitted = load_device("host.yaml")
    assert (fitted.name, fitted.aliases, fitted.memory) == (shipped.name, shipped.aliases, shipped.memory)
    assert fitted.units["cpu"].speeds != shipped.units["cpu"].speeds
    load_device.__globals__["_shipped"].cache_clear()
    assert load_device("host") == shipped


def test_which_device_is_meant_and_where_its_result_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kona = subject("KONA", None)
    assert (kona.name, kona.device, kona.out) == ("snapdragon865", load_device("snapdragon865"), Path("snapdragon865.yaml"))
    assert subject("kona", tmp_path / "new" / "mine.yaml").out == tmp_path / "new" / "mine.yaml"
    new = subject("my_pi", None)
    assert (new.name, new.device, new.out) == ("my_pi", None, Path("my_pi.yaml"))
    assert subject("boards/my_pi.yaml", None) == replace(new, out=Path("boards/my_pi.yaml"))
    write_device(load_device("raspberrypi5"), Path("other.yaml"))
    own = subject("other.yaml", None)
    assert (own.name, own.device, own.out) == ("raspberrypi5", load_device("raspberrypi5"), Path("other.yaml"))
    for name, out, said in (
        ("My Pi", None, "a device cannot be called 'My Pi'; names are small letters, digits"),
        ("boards/pi", None, "a device cannot be called 'boards/pi'"),
        ("x" * 65, None, "at most 64"),
        ("kona", Path("kona.json"), r"--out is kona\.json; a device file ends in \.yaml or \.yml"),
        ("kona", Path("other.yaml/kona.yaml"), r"other\.yaml is no folder for it"),
    ):
        with pytest.raises(UsageError, match=said):
            subject(name, out)


def test_a_share_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the share of the suite is 0; it must be above 0 and at most 1"):
        fit_on(Wanted("x", None, "host", tmp_path, share=0.0), lambda *_: None)


def test_an_unknown_network_is_refused_before_anything_is_reached(tmp_path: Path) -> None:
    pi = load_device("raspberrypi5")
    with pytest.raises(UsageError, match=r"network 'patchgam' is not known; known are .*; did you mean 'patchgan'\?"):
        validate_on(pi, Wanted("raspberrypi5", pi, "ssh:nowhere.invalid", tmp_path), lambda *_: None, ("patchgam",))


def test_what_this_machine_measures_is_never_said_of_another(tmp_path: Path) -> None:
    phone = load_device("snapdragon865")
    with pytest.raises(
        UsageError, match=r"snapdragon865 is Qualcomm Snapdragon 865 \(android\), and host is .* \(linux\).*: measure on snapdragon865 itself"
    ):
        fit_on(Wanted("snapdragon865", phone, "host", tmp_path), lambda *_: None)
    with pytest.raises(UsageError, match="give the machine a name of its own"):
        validate_on(load_device("raspberrypi5"), Wanted("raspberrypi5", None, "host", tmp_path), lambda *_: None)
    with pytest.raises(UsageError, match="files are measured on the cpu only"):
        fit_on(Wanted("mine", None, "host", tmp_path, unit="gpu"), lambda *_: None)
    host = load_device("host")
    elsewhere = {key: source.model_copy(update={"machine": "another"}) if source.machine else source for key, source in host.sources.items()}
    moved = host.model_copy(update={"sources": elsewhere})
    with pytest.raises(UsageError, match=r"host was measured on another, and host is .*: measure on that machine, or fit this one with"):
        validate_on(moved, Wanted("host", moved, "host", tmp_path), lambda *_: None)


def test_a_lost_device_says_where_its_measurements_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_connection: object, _cases: object, setting: object, folder: Path, **_: object) -> None:
        from mcompress.export.suite.running import Journal, Setting, Timing

        assert isinstance(setting, Setting)
        Journal(folder / "suite_fp32.jsonl", setting).add(
            Timing(name="a", p50_ms=1.0, cv=0.0, n=20, runtime="x 1", program="", digest="0", day="2026-11-20")
        )
        raise DeviceError("adb:1 was lost: offline")

    monkeypatch.setattr("mcompress.fitting.measure_suite", lost)
    with pytest.raises(DeviceError, match=r"adb:1 was lost: offline\. 1 measurements are kept in .*; the same command goes on from there"):
        fit_on(Wanted("x", None, "host", tmp_path), lambda *_: None)


def facts(**changed: object) -> DeviceFacts:
    """Of a Raspberry Pi 5, with what is changed."""
    said = {"model": "Raspberry Pi 5 Model B", "processor": "Raspberry Pi 5 Model B", "names": (("device tree", "brcm,bcm2712"),)}
    rest = {"soc": None, "os": "Debian GNU/Linux 12", "machine": "aarch64", "cores_khz": (None,) * 4, "memory_mb": 4000.0, "governor": None}
    return DeviceFacts(**{**said, **rest, **changed})  # type: ignore[arg-type]


class ABoard(Host):
    """This machine, which says that it is a Raspberry Pi 5: there is none here."""

    said = facts()

    def facts(self) -> DeviceFacts:
        return self.said


def an_estimate_off_by(factor: float) -> Callable[..., Measured]:
    """Measurements as the prior has them, times a factor: a stand-in for the suite, which takes minutes."""

    def measured(_connection: object, suite: Sequence[Case], setting: Setting, folder: Path, **_: object) -> Measured:
        prior = PRIORS[setting.number]
        samples = []
        for case in suite:
            path = folder / f"{case.name}_{setting.number}.tflite"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(case.file(setting.number))
            table = table_of_file(path).table
            macs, moved = sum(row.macs for row in table.operators), sum(row.elements_read + row.elements_written for row in table.operators)
            samples.append(Sample(case.name, table, factor * (macs / prior.gmacs + moved / prior.gbs) / 1e6 + 0.01))
        return Measured(tuple(samples), {}, "ai-edge-litert 9.9 CPU", True, Quality(2 * len(samples), 0, 0, 0, 0, ("2026-11-01", "2026-11-02")))

    return measured


@pytest.mark.export
def test_fitting_a_known_device_replaces_what_was_measured_and_nothing_else(
    quick_fits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del quick_fits
    monkeypatch.setattr("mcompress.fitting.connect", lambda _on: ABoard())
    monkeypatch.setattr("mcompress.fitting.measure_suite", an_estimate_off_by(1.0))
    shipped = load_device("raspberrypi5")
    own = shipped.units["cpu"].model_copy(update={"runs": {**shipped.units["cpu"].runs, "w8a16": ("convolution",)}, "fallback_unit": "gpu"})
    checked = own.model_copy(update={"validation": {**own.validation, "int8": own.validation["fp16"]}})
    gpu = shipped.units["cpu"].model_copy(update={"name": "gpu", "validation": {}})
    known = shipped.model_copy(update={"units": {"cpu": checked, "gpu": gpu}})
    taken = {**known.sources, "suite": known.sources["cpu-fp16"]}  # keys that a fit would like to have, of what stays
    fp16 = checked.speeds["fp16"].model_copy(update={"overhead": checked.speeds["fp16"].overhead.model_copy(update={"source": "suite"})})
    checked = checked.model_copy(update={"speeds": {**checked.speeds, "fp16": fp16}})
    known = known.model_copy(update={"sources": taken, "units": {"cpu": checked, "gpu": gpu}})
    found = fit_on(Wanted("raspberrypi5", known, "ssh:pi", tmp_path, threads=2), lambda *_: None).device
    cpu = found.units["cpu"]
    assert (cpu.runs, cpu.computes_in, cpu.fallback_unit, cpu.title, cpu.boundary) == (
        checked.runs, checked.computes_in, "gpu", checked.title, checked.boundary,
    )  # fmt: skip
    for kept in ("fp16", "w8a16"):
        assert cpu.speeds[kept] == checked.speeds[kept]
        for record in checked.speeds[kept].records().values():
            assert found.sources[record.source] == known.sources[record.source]
    assert found.units["gpu"] == gpu
    assert set(cpu.validation) == {"fp16"}
    for fresh in ("fp32", "int8"):
        source = found.sources[cpu.speeds[fresh].memory.source]
        assert (source.machine, source.threads, source.cpus, source.date) == ("Raspberry Pi 5 Model B", 2, (), "2026-11-02")
        assert source.text.startswith("fit of the microbenchmark suite, 5 of ")
    write_device(found, tmp_path / "again.yaml")
    assert load_device(str(tmp_path / "again.yaml")) == Device.model_validate(found.model_dump())


@pytest.mark.export
def test_a_class_with_few_files_is_assumed_and_the_output_says_so(
    quick_fits: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del quick_fits
    every = [case for case in cases() if case.name.startswith("leaky_relu_")][:4] + list(few(1.0))[:2]
    monkeypatch.setattr("mcompress.fitting.cases", lambda _share=1.0: tuple(every))
    monkeypatch.setattr("mcompress.fitting.measure_suite", an_estimate_off_by(1.0))
    said = command(capfd, "device", "fit", "my_board", "--on", "host")
    assert "not a full suite" not in said
    device = load_device("my_board.yaml")
    operators = device.units["cpu"].speeds["fp32"].operators
    assert [name for name, speed in operators.items() if speed.source == "suite"] == ["leaky_relu"]
    assert "a class counts as fitted with files of 4 different sizes" in device.sources["suite"].text
    monkeypatch.setattr("mcompress.fitting.cases", lambda share=1.0: tuple(every[:2] if share < 1 else every))
    said = command(capfd, "device", "fit", "other_board", "--on", "host", "--share", "0.5")
    assert "warning: not a full suite: 2 of 6 files in fp32 and 2 of 6 files in int8; " in said
    assert "classes of operators in fp32 are assumed" in said


def test_a_machine_that_is_another_is_refused_through_any_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi, host = load_device("raspberrypi5"), load_device("host")
    monkeypatch.setattr("mcompress.fitting.connect", lambda _on: ABoard())
    monkeypatch.setattr(ABoard, "said", facts(machine="x86_64", processor="AMD EPYC (family 26, model 2)", names=()))
    for run in (
        lambda wanted: fit_on(wanted, lambda *_: None),
        lambda wanted: validate_on(pi, wanted, lambda *_: None, (NETWORK,)),
    ):
        for known in (pi, None):  # a file of that name that is not there yet is no way around it
            with pytest.raises(UsageError, match=r"its processor is AMD EPYC \(family 26, model 2\) \(x86\), and that of Raspberry Pi 5 is an Arm"):
                run(Wanted("raspberrypi5", known, "ssh:pi", tmp_path))
    for on in ("ssh:pi", "adb"):
        with pytest.raises(UsageError, match=f"host is the machine on which mcompress runs, and --on is {on}"):
            fit_on(Wanted("host", host, on, tmp_path), lambda *_: None)
    wrongly = pi.model_copy(update={"sources": {k: s.model_copy(update={"machine": ABoard.said.processor}) for k, s in pi.sources.items()}})
    with pytest.raises(UsageError, match="is an Arm one"):  # even of a file that was once made so
        validate_on(wrongly, Wanted("raspberrypi5", wrongly, "ssh:pi", tmp_path), lambda *_: None, (NETWORK,))
    fitted = pi.model_copy(update={"name": "my_pi", "sources": {k: s.model_copy(update={"machine": "Another Pi"}) for k, s in pi.sources.items()}})
    monkeypatch.setattr(ABoard, "said", facts())
    with pytest.raises(UsageError, match="my_pi was measured on Another Pi, and ssh:pi is Raspberry Pi 5 Model B"):
        validate_on(fitted, Wanted("my_pi", fitted, "ssh:pi", tmp_path), lambda *_: None, (NETWORK,))


@pytest.mark.export
def test_a_validation_is_measured_as_the_fit_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = load_device("host")
    asked: list[Setting] = []

    def measured(_connection: object, plan: Plan, *_: object) -> Rounds:
        asked.append(plan.setting)
        return Rounds({NETWORK: 1.0}, {}, "x 1", True, Quality(2, 1, 1, 0, 1, ("2026-11-01", "2026-11-03")))

    monkeypatch.setattr("mcompress.fitting.export_network", chatty_export)
    monkeypatch.setattr("mcompress.fitting.measure_rounds", measured)
    here = {"machine": this_machine(), "threads": 1}
    sources = {key: source.model_copy(update=here) if source.machine else source for key, source in host.sources.items()}
    pinned_to = {key: source.model_copy(update={"cpus": (0,)}) if source.machine else source for key, source in sources.items()}
    for known, cpus in ((host.model_copy(update={"sources": sources}), None), (host.model_copy(update={"sources": pinned_to}), (0,))):
        asked.clear()
        wanted = Wanted("host", known, "host", tmp_path)
        found = validate_on(known, wanted, lambda *_: None, (NETWORK,)).device
        assert {(one.threads, one.cpus) for one in asked} == {(1, cpus)}
        source = found.sources["networks"]
        assert (source.threads, source.cpus, source.date) == (1, cpus or (), "2026-11-03")
        assert "1 of 2 measurements from an earlier run, 1 throttled and measured again, 1 unstable" in source.text
        for changed in ({"threads": 2}, {"cpus": (1,)}):
            with pytest.raises(UsageError, match=r"host was fitted with 1 thread.*, and would be measured with .*: leave --threads and --cpus out"):
                validate_on(known, replace(wanted, **changed), lambda *_: None, (NETWORK,))  # type: ignore[arg-type]


def test_processors_are_chosen_for_a_fit_as_for_a_profile(quick_fits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest of unequal ones, in the journal's setting, in the source and in its text."""
    del quick_fits
    settings: list[Setting] = []
    measure = an_estimate_off_by(1.0)

    def measured(connection: object, suite: Sequence[Case], setting: Setting, folder: Path, **rest: object) -> Measured:
        settings.append(setting)
        return measure(connection, suite, setting, folder, **rest)

    monkeypatch.setattr("mcompress.fitting.measure_suite", measured)
    monkeypatch.setattr("mcompress.fitting.connect", lambda _on: ABoard())
    monkeypatch.setattr(ABoard, "said", facts(cores_khz=(1_800_000, 2_400_000, 1_800_000, 2_400_000)))
    device = fit_on(Wanted("my_pi", None, "ssh:pi", tmp_path, threads=2), lambda *_: None).device
    assert {(setting.threads, setting.cpus) for setting in settings} == {(2, (1, 3))}
    assert (device.sources["suite"].threads, device.sources["suite"].cpus) == (2, (1, 3))
    assert "2 threads on processors 1, 3 (the fastest of unequal ones)" in device.sources["suite"].text
    with pytest.raises(UsageError, match=r"--threads is 2, and --cpus is 0: 2 threads would wait for one another on 1 processor; name at least 2"):
        fit_on(Wanted("my_pi", None, "ssh:pi", tmp_path, threads=2, cpus=(0,)), lambda *_: None)


def test_options_of_the_other_mode_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("a\n")
    fit = ["device", "fit", "kona"]
    for arguments, said in (
        ([*fit, "--published", "t.csv", "--threads", "1", "--minutes", "10"], "--threads, --minutes belong to --on, which measures"),
        *(
            ([*fit, "--published", "t.csv", option, "1"], f"{option} belongs to --on")
            for option in ("--cpus", "--share", "--keep", "--benchmark-binary")
        ),
        ([*fit, "--on", "adb", "--where", "a=b"], "--where belongs to --published; leave it out with --on"),
        ([*fit, "--on", "adb", "--precision", "int8"], "--precision belongs to --published"),
        *(
            (["device", "validate", "kona", option, "1"], f"{option} belongs to --on, which measures; add --on PLACE")
            for option in ("--networks", "--cpus", "--threads", "--out", "--keep", "--benchmark-binary")
        ),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            app(arguments, standalone_mode=False)


def test_where_to_validate_is_said_by_the_machine_that_was_measured() -> None:
    host = load_device("host")
    machines = {key: source.model_copy(update={"machine": this_machine()}) if source.machine else source for key, source in host.sources.items()}
    bare = {"cpu": host.units["cpu"].model_copy(update={"validation": {}})}
    mine = host.model_copy(update={"name": "my_machine", "sources": machines, "units": bare})
    assert _place(mine, list(mine.units.values())) == "host"
    assert _place(load_device("raspberrypi5"), [load_device("raspberrypi5").units["cpu"]]) == "ssh:HOST"
    assert _place(load_device("kona"), [load_device("kona").units["cpu"]]) == "adb"
