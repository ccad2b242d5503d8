"""`device fit` and `device validate`: which device is meant, what is written where, and what is said of which machine."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mcompress.cli import app
from mcompress.device_commands import subject
from mcompress.errors import DeviceError, UsageError
from mcompress.export.suite.cases import Case, cases
from mcompress.export.suite.writer import Number
from mcompress.fitting import PRIORS, Wanted, fit_on, validate_on, write_device
from mcompress.targets.connect.host import this_machine
from mcompress.targets.device import load_device

NETWORK = "patchgan"


def few(share: float) -> tuple[Case, ...]:
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
    host = load_device("host")
    with pytest.raises(UsageError, match=r"network 'patchgam' is not known; known are .*; did you mean 'patchgan'\?"):
        validate_on(host, Wanted("host", host, "ssh:nowhere.invalid", tmp_path), lambda *_: None, ("patchgam",))


def test_what_this_machine_measures_is_never_said_of_another(tmp_path: Path) -> None:
    phone = load_device("snapdragon865")
    with pytest.raises(
        UsageError, match=r"snapdragon865 is Qualcomm Snapdragon 865 \(android\), and host is .* \(linux\): measure on snapdragon865 itself"
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
        Journal(folder / "suite_fp32.jsonl", setting).add(Timing(name="a", p50_ms=1.0, cv=0.0, n=20, runtime="x 1"))
        raise DeviceError("adb:1 was lost: offline")

    monkeypatch.setattr("mcompress.fitting.measure_suite", lost)
    with pytest.raises(DeviceError, match=r"adb:1 was lost: offline\. 1 measurements are kept in .*; the same command goes on from there"):
        fit_on(Wanted("x", None, "host", tmp_path), lambda *_: None)
