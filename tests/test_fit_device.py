"""`device fit` and `device validate`: which device is meant, what is written where, and with what it was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_fits import NETWORK, ABoard, an_estimate_off_by, chatty_export, command, facts, few, told

from mcompress.device_commands import subject
from mcompress.errors import DeviceError, UsageError
from mcompress.export.suite.cases import Case, cases
from mcompress.export.suite.running import Measured, Plan, Quality, Rounds, Setting
from mcompress.fitting import PRIORS, fit_on, validate_on, write_device
from mcompress.measuring import Wanted
from mcompress.targets.connect.host import this_machine
from mcompress.targets.device import Device
from mcompress.targets.device_files import load_device
from mcompress.unit_validations import place_of


@pytest.fixture
def quick_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few files, one alignment, in a folder of its own."""
    monkeypatch.setattr("mcompress.fitting.cases", few)
    for number, prior in PRIORS.items():
        monkeypatch.setitem(PRIORS, number, replace(prior, outputs=(16,), inputs=(prior.inputs[-1],)))
    monkeypatch.chdir(tmp_path)


@pytest.mark.export
@pytest.mark.usefixtures("quick_fits")
def test_fit_validate_and_estimate(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`device fit` writes a file that validates, carries its error, and estimates; `--json` prints JSON and nothing else."""
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
    elsewhere = {key: source.model_copy(update={"machine": "another"}) if source.machine else source for key, source in shipped.sources.items()}
    monkeypatch.setattr("mcompress.device_commands.shipped_device", lambda _name: shipped.model_copy(update={"sources": elsewhere}))
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
        fit_on(Wanted("x", None, "host", tmp_path), told)


@pytest.mark.export
@pytest.mark.usefixtures("quick_fits")
def test_fitting_a_known_device_replaces_what_was_measured_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    found = fit_on(Wanted("raspberrypi5", known, "ssh:pi", tmp_path, threads=2), told).device
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
@pytest.mark.usefixtures("quick_fits")
def test_a_class_with_few_files_is_assumed_and_the_output_says_so(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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


def without(number: str) -> Callable[..., Measured]:
    """Measurements in the other precision alone: the time was up before the first in this one."""
    measure = an_estimate_off_by(1.0)

    def measured(connection: object, suite: Sequence[Case], setting: Setting, folder: Path, **rest: object) -> Measured:
        found = measure(connection, suite, setting, folder, **rest)
        nothing = Quality(0, 0, 0, 0, 0, ("2026-11-01", "2026-11-01"))
        return replace(found, samples=(), runtime="none", complete=False, quality=nothing) if setting.number == number else found

    return measured


@pytest.mark.export
@pytest.mark.usefixtures("quick_fits")
def test_time_that_runs_out_in_one_precision_keeps_the_fit_of_the_other(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds that nobody measured, or that this machine had before, stay; those of another machine or setting do not go with what is new."""
    monkeypatch.setattr("mcompress.fitting.connect", lambda _on: ABoard())
    shipped = load_device("raspberrypi5")
    for number, kept in (("int8", "fp32"), ("fp32", "int8")):
        monkeypatch.setattr("mcompress.fitting.measure_suite", without(number))
        with pytest.raises(
            DeviceError, match=rf"host: nothing was measured in {number} \(there was no time: give more --minutes\), and new_board has no"
        ):
            command(capfd, "device", "fit", "new_board", "--on", "host")
        assert not Path("new_board.yaml").exists()
        said = command(capfd, "device", "fit", "raspberrypi5", "--on", "ssh:pi", "--out", f"{number}.yaml")
        assert f"  warning: nothing was measured in {number} (there was no time: give more --minutes); its speeds stay as they were\n" in said
        assert f"  {kept}: 5 files of the suite" in said
        cpu = load_device(f"{number}.yaml").units["cpu"]
        assert cpu.speeds[number] == shipped.units["cpu"].speeds[number]  # type: ignore[index]
        assert cpu.speeds[kept] != shipped.units["cpu"].speeds[kept]  # type: ignore[index]
        assert number not in load_device(f"{number}.yaml").sources["suite"].text
    monkeypatch.setattr("mcompress.fitting.measure_suite", an_estimate_off_by(1.0))
    command(capfd, "device", "fit", "mine", "--on", "ssh:pi")
    monkeypatch.setattr("mcompress.fitting.measure_suite", without("int8"))
    assert "warning: nothing was measured in int8" in command(capfd, "device", "fit", "mine.yaml", "--on", "ssh:pi")
    for changed in (["--threads", "2"], ["--cpus", "1"]):
        with pytest.raises(DeviceError, match="mine has no speeds of it that may stay: none at all, or of another machine, or with other threads"):
            command(capfd, "device", "fit", "mine.yaml", "--on", "ssh:pi", *changed)
    monkeypatch.setattr(ABoard, "said", facts(processor="Raspberry Pi 5 Model B Rev 1.1"))
    monkeypatch.setattr("mcompress.fitting.check_machine", lambda *_, **__: None)  # as for the host, whose file may be of another machine
    with pytest.raises(DeviceError, match="or of another machine"):
        command(capfd, "device", "fit", "mine.yaml", "--on", "ssh:pi")


@pytest.mark.export
@pytest.mark.usefixtures("quick_fits")
def test_a_fit_without_time_for_anything_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither for a device that is known."""
    wanted = Wanted("raspberrypi5", load_device("raspberrypi5"), "host", Path("kept"), seconds=0.0)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("mcompress.fitting.connect", lambda _on: ABoard())
        with pytest.raises(DeviceError, match=r"nothing was measured in fp32 \(there was no time.*\) and in int8 \(there was no time"):
            fit_on(wanted, told)


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
        found = validate_on(known, wanted, told, (NETWORK,)).device
        assert {(one.threads, one.cpus) for one in asked} == {(1, cpus)}
        source = found.sources["networks"]
        assert (source.threads, source.cpus, source.date) == (1, cpus or (), "2026-11-03")
        assert "1 of 2 measurements from an earlier run, 1 throttled and measured again, 1 unstable" in source.text
        for changed in ({"threads": 2}, {"cpus": (1,)}):
            with pytest.raises(UsageError, match=r"host was fitted with 1 thread.*, and would be measured with .*: leave --threads and --cpus out"):
                validate_on(known, replace(wanted, **changed), told, (NETWORK,))  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick_fits")
def test_processors_are_chosen_for_a_fit_as_for_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest of unequal ones, in the journal's setting, in the source and in its text."""
    settings: list[Setting] = []
    measure = an_estimate_off_by(1.0)

    def measured(connection: object, suite: Sequence[Case], setting: Setting, folder: Path, **rest: object) -> Measured:
        settings.append(setting)
        return measure(connection, suite, setting, folder, **rest)

    monkeypatch.setattr("mcompress.fitting.measure_suite", measured)
    monkeypatch.setattr("mcompress.fitting.connect", lambda _on: ABoard())
    monkeypatch.setattr(ABoard, "said", facts(cores_khz=(1_800_000, 2_400_000, 1_800_000, 2_400_000)))
    device = fit_on(Wanted("my_pi", None, "ssh:pi", tmp_path, threads=2), told).device
    assert {(setting.threads, setting.cpus) for setting in settings} == {(2, (1, 3))}
    assert (device.sources["suite"].threads, device.sources["suite"].cpus) == (2, (1, 3))
    assert "2 threads on processors 1, 3 (the fastest of unequal ones)" in device.sources["suite"].text
    with pytest.raises(UsageError, match=r"--threads is 2, and --cpus is 0: 2 threads would wait for one another on 1 processor; name at least 2"):
        fit_on(Wanted("my_pi", None, "ssh:pi", tmp_path, threads=2, cpus=(0,)), told)


def test_where_to_validate_is_said_by_the_machine_that_was_measured() -> None:
    host = load_device("host")
    machines = {key: source.model_copy(update={"machine": this_machine()}) if source.machine else source for key, source in host.sources.items()}
    bare = {"cpu": host.units["cpu"].model_copy(update={"validation": {}})}
    mine = host.model_copy(update={"name": "my_machine", "sources": machines, "units": bare})
    assert place_of(mine, list(mine.units.values())) == "host"
    assert place_of(load_device("raspberrypi5"), [load_device("raspberrypi5").units["cpu"]]) == "ssh:HOST"
    assert place_of(load_device("kona"), [load_device("kona").units["cpu"]]) == "adb"
