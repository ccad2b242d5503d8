"""What `device fit` and `device validate` refuse: another machine than the device, options of the other mode, what is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_fits import NETWORK, ABoard, facts, told

from mcompress.cli import app
from mcompress.errors import UsageError
from mcompress.fitting import fit_on, validate_on
from mcompress.measuring import Wanted
from mcompress.targets.device_files import load_device


def test_a_share_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the share of the suite is 0; it must be above 0 and at most 1"):
        fit_on(Wanted("x", None, "host", tmp_path, share=0.0), told)


def test_an_unknown_network_is_refused_before_anything_is_reached(tmp_path: Path) -> None:
    pi = load_device("raspberrypi5")
    with pytest.raises(UsageError, match=r"network 'patchgam' is not known; known are .*; did you mean 'patchgan'\?"):
        validate_on(pi, Wanted("raspberrypi5", pi, "ssh:nowhere.invalid", tmp_path), told, ("patchgam",))


def test_what_this_machine_measures_is_never_said_of_another(tmp_path: Path) -> None:
    phone = load_device("snapdragon865")
    with pytest.raises(
        UsageError, match=r"snapdragon865 is Qualcomm Snapdragon 865 \(android\), and host is .* \(linux\).*: measure on snapdragon865 itself"
    ):
        fit_on(Wanted("snapdragon865", phone, "host", tmp_path), told)
    with pytest.raises(UsageError, match="give the machine a name of its own"):
        validate_on(load_device("raspberrypi5"), Wanted("raspberrypi5", None, "host", tmp_path), told)
    with pytest.raises(UsageError, match="files are measured on the cpu only"):
        fit_on(Wanted("mine", None, "host", tmp_path, unit="gpu"), told)
    host = load_device("host")
    elsewhere = {key: source.model_copy(update={"machine": "another"}) if source.machine else source for key, source in host.sources.items()}
    moved = host.model_copy(update={"sources": elsewhere})
    with pytest.raises(UsageError, match=r"host was measured on another, and host is .*: measure on that machine, or fit this one with"):
        validate_on(moved, Wanted("host", moved, "host", tmp_path), told)


def test_a_machine_that_is_another_is_refused_through_any_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi, host = load_device("raspberrypi5"), load_device("host")
    monkeypatch.setattr("mcompress.fitting.connect", lambda _on: ABoard())
    monkeypatch.setattr(ABoard, "said", facts(machine="x86_64", processor="AMD EPYC (family 26, model 2)", names=()))
    for run in (
        lambda wanted: fit_on(wanted, told),
        lambda wanted: validate_on(pi, wanted, told, (NETWORK,)),
    ):
        for known in (pi, None):  # a file of that name that is not there yet is no way around it
            with pytest.raises(UsageError, match=r"its processor is AMD EPYC \(family 26, model 2\) \(x86\), and that of Raspberry Pi 5 is an Arm"):
                run(Wanted("raspberrypi5", known, "ssh:pi", tmp_path))
    for on in ("ssh:pi", "adb"):
        with pytest.raises(UsageError, match=f"host is the machine on which mcompress runs, and --on is {on}"):
            fit_on(Wanted("host", host, on, tmp_path), told)
    wrongly = pi.model_copy(update={"sources": {k: s.model_copy(update={"machine": ABoard.said.processor}) for k, s in pi.sources.items()}})
    with pytest.raises(UsageError, match="is an Arm one"):  # even of a file that was once made so
        validate_on(wrongly, Wanted("raspberrypi5", wrongly, "ssh:pi", tmp_path), told, (NETWORK,))
    fitted = pi.model_copy(update={"name": "my_pi", "sources": {k: s.model_copy(update={"machine": "Another Pi"}) for k, s in pi.sources.items()}})
    monkeypatch.setattr(ABoard, "said", facts())
    with pytest.raises(UsageError, match="my_pi was measured on Another Pi, and ssh:pi is Raspberry Pi 5 Model B"):
        validate_on(fitted, Wanted("my_pi", fitted, "ssh:pi", tmp_path), told, (NETWORK,))


@pytest.mark.parametrize("keep", ["file", "file/below", "/proc/xx", "/dev/null/x"])
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_measurements_are_kept_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, keep: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(UsageError, match=f"--keep is '{keep}'; it must be a folder, or a path where one can be made, that you may write to"):
        app(["device", verb, "host", "--on", "host", "--keep", keep], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_more_threads_than_anybody_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--threads is 5000; it must be at least 1 and at most 256"):
        fit_on(Wanted("x", None, "host", tmp_path, threads=5000), told)


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
