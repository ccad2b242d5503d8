"""`device fit` of a device that is fitted already: what a shorter fit leaves as it is, and what it may not replace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_fits import NETWORK, ABoard, an_estimate_off_by, command, told

from mcompress import fitting
from mcompress.errors import DeviceError, UsageError
from mcompress.export.suite.cases import cases
from mcompress.export.suite.running import Setting
from mcompress.fitting import PRIORS, fit_on, write_device
from mcompress.measuring import Wanted
from mcompress.targets.device import Device
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate
from mcompress.targets.validation import Check, Validation


def decided_by(device: Device, source: str) -> list[str]:
    """Classes of operators in fp32 that cite a source."""
    return [name for name, speed in device.units["cpu"].speeds["fp32"].operators.items() if speed.source == source]


@pytest.fixture
def two_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    """`mine.yaml`: two classes of operators fitted on a board with one thread, and validated. A share of the suite has the files of one of them."""
    monkeypatch.chdir(tmp_path)
    for number, prior in PRIORS.items():
        monkeypatch.setitem(PRIORS, number, replace(prior, outputs=(16,), inputs=(prior.inputs[-1],)))
    kinds = {kind: [case for case in cases() if case.name.startswith(kind)][:4] for kind in ("leaky_relu_", "logistic_")}
    some = {1.0: [*kinds["leaky_relu_"], *kinds["logistic_"]], 0.5: kinds["leaky_relu_"], 0.1: kinds["leaky_relu_"][:2]}
    monkeypatch.setattr("mcompress.fitting.cases", lambda share=1.0: tuple(some[share]))
    monkeypatch.setattr("mcompress.fitting.connect", lambda _on: ABoard())
    monkeypatch.setattr("mcompress.fitting.measure_suite", an_estimate_off_by(1.0))
    device = fit_on(Wanted("mine", None, "ssh:pi", Path("kept")), told).device
    check = Validation(how="networks that the fit did not see", source="suite", checks=(Check(network=NETWORK, measured_ms=1.0, estimated_ms=2.0),))
    unit = device.units["cpu"].model_copy(update={"validation": {"fp32": check, "int8": check}})
    write_device(device.with_unit(unit, {}), Path("mine.yaml"))
    return load_device("mine.yaml")


@pytest.mark.export
def test_a_short_fit_keeps_what_a_fuller_one_decided(two_classes: Device, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the source that it has, next to which the rest is fitted; a whole fit replaces everything."""
    assert decided_by(two_classes, "suite") == ["leaky_relu", "sigmoid"]
    monkeypatch.setattr("mcompress.fitting.measure_suite", an_estimate_off_by(3.0))
    said = command(capfd, "device", "fit", "mine.yaml", "--on", "ssh:pi", "--share", "0.5")
    found = load_device("mine.yaml")
    assert (decided_by(found, "suite"), decided_by(found, "suite-cpu")) == (["sigmoid"], ["leaky_relu"])
    for number in ("fp32", "int8"):
        new, old = found.units["cpu"].speeds[number].records(), two_classes.units["cpu"].speeds[number].records()  # type: ignore[index]
        assert {place for place in old if new[place] != old[place]} == {"operators.leaky_relu"}
        assert f"decide the speed of 1 of {len(old) - 3} classes of operators in {number} (leaky_relu); all else there stays as it was" in said
    assert found.sources["suite"] == two_classes.sources["suite"]
    assert "in fp32 of leaky_relu only, next to the fit before it" in found.sources["suite-cpu"].text
    assert found.units["cpu"].validation == {}
    assert "warning: the validation of fp32 and int8 files was of the speeds before, and is not in the file any more" in said
    for sample in an_estimate_off_by(3.0)(None, fitting.cases(0.5), Setting("", "fp32", 1, None), Path("kept")).samples:
        assert estimate(sample.table, found, "cpu", "fp32").value == pytest.approx(sample.measured_ms, rel=0.15)
    said = command(capfd, "device", "fit", "mine.yaml", "--on", "ssh:pi")
    assert decided_by(load_device("mine.yaml"), "suite") == ["leaky_relu", "sigmoid"]
    assert "suite-cpu" not in load_device("mine.yaml").sources
    assert "stays as it was" not in said


@pytest.mark.export
def test_a_fit_that_decides_nothing_leaves_a_fuller_one_as_it_is(two_classes: Device, capfd: pytest.CaptureFixture[str]) -> None:
    before = Path("mine.yaml").read_bytes()
    said = r"mine has a fuller fit than this one, and stays as it is; 2 of 8 files decide the speed of no class of operators in fp32: give more"
    for out in ([], ["--out", "other.yaml"]):
        with pytest.raises(DeviceError, match=said):
            command(capfd, "device", "fit", "mine.yaml", "--on", "ssh:pi", "--share", "0.1", *out)
    assert Path("mine.yaml").read_bytes() == before
    assert not Path("other.yaml").exists()
    assert two_classes == load_device("mine.yaml")


@pytest.mark.export
def test_a_fit_that_would_lose_a_fuller_one_needs_to_be_told_where_to_go(
    two_classes: Device, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of other threads, of another machine, and published ones do not go with the new ones."""
    other = {key: source.model_copy(update={"machine": "A Pi"}) if source.machine else source for key, source in two_classes.sources.items()}
    nowhere = {key: source.model_copy(update={"machine": None, "threads": None}) for key, source in two_classes.sources.items()}
    monkeypatch.setattr("mcompress.fitting.check_machine", lambda *_, **__: None)  # as for the host, whose file may be of another machine
    for sources, options in ((two_classes.sources, ["--threads", "2"]), (two_classes.sources, ["--cpus", "1"]), (other, []), (nowhere, [])):
        write_device(two_classes.model_copy(update={"sources": sources}), Path("mine.yaml"))
        before = Path("mine.yaml").read_bytes()
        asked = ("device", "fit", "mine.yaml", "--on", "ssh:pi", "--share", "0.5", *options)
        with pytest.raises(
            UsageError, match=r"mine\.yaml has fitted speeds of sigmoid in fp32 and sigmoid in int8, .* Nothing was written; what was"
        ):
            command(capfd, *asked)
        assert Path("mine.yaml").read_bytes() == before
        for out in ("other.yaml", "mine.yaml"):
            said = command(capfd, *asked, "--out", out)
            assert "  warning: these classes of operators in fp32 were fitted, and are assumed now: sigmoid\n" in said
            assert decided_by(load_device(out), "suite") == ["leaky_relu"]
        write_device(two_classes.model_copy(update={"sources": sources}), Path("mine.yaml"))
        assert "assumed now" not in command(capfd, "device", "fit", "mine.yaml", "--on", "ssh:pi", *options)  # a whole fit loses nothing
