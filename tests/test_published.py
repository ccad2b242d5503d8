"""Published latencies: what is read from a table, what is refused, and that a fit to them finds what made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mcompress.compress.networks import network_table
from mcompress.errors import TargetError, UsageError
from mcompress.published import PublishedRows, fit_published, prior_of, read_published
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate

NETWORKS = ("resnet18", "resnet50", "squeezenet1_1", "mobilenet_v2", "wideresnet50", "resnext50", "quicksrnetsmall", "xlsr")
HEADER = "release,device,model,component,precision,runtime,latency_ms,peak_mb,unit,layers,npu,gpu,cpu"


def row(model: str, ms: float | str, *, release: str = "v2.0", device: str = "Board", unit: str = "GPU", layers: int = 9, own: int = 9) -> str:
    return f"{release},{device},{model},Model,w8a8,tflite,{ms},10,{unit},{layers},,{own},"


def write(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    path = tmp_path / "latency.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def read(path: Path, precision: str = "int8", **where: str) -> PublishedRows:
    return read_published(path, where=where, unit="gpu", precision=precision)


def test_rows_are_chosen_and_the_rest_is_named(tmp_path: Path) -> None:
    lines = [row(name, 10.0 + index) for index, name in enumerate(NETWORKS)]
    others = [
        row("resnet18", 1.0, device="Other"), row("resnet50", 2.0, unit="CPU"), row("resnet18", 99.0, release="v1.9"), row("no_such_net", 5.0),
        row("densenet121", 7.0, own=5), row("resnet50", 3.0).replace("w8a8", "float"),
    ]  # fmt: skip
    found = read(write(tmp_path, *lines, *others), device="board")
    assert {one.network: one.latency_ms for one in found} == {name: 10.0 + index for index, name in enumerate(NETWORKS)}
    assert found.unknown == ("no_such_net/Model",)
    assert found.shared == ("densenet121",)
    assert found.left_out == "1 model not known: no_such_net/Model; 1 model left out because other units ran some of their layers: densenet121"
    assert found.runtime == "tflite v2.0"
    assert "device board" in found.chosen


def test_the_newest_release_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    lines = [row(name, 1.0, release="v0.9") for name in NETWORKS] + [row(name, 2.0, release="v0.10") for name in NETWORKS]
    assert {one.latency_ms for one in read(write(tmp_path, *lines))} == {2.0}
    chosen = read_published(write(tmp_path, *lines), where={}, unit="gpu", precision="int8", releases=("v0.9", "v0.10"))
    assert {one.latency_ms for one in chosen} == {1.0}


def test_a_component_and_a_short_table(tmp_path: Path) -> None:
    lines = ["mediapipe_hand,HandDetector,1.5", *(f"{name},,2" for name in NETWORKS)]
    found = read_published(write(tmp_path, *lines, header="network,component,latency_ms"), where={}, unit="cpu", precision="fp16")
    assert found.rows[0].network == "mediapipe_hand/HandDetector"
    assert len(found) == len(NETWORKS) + 1


def test_networks_of_the_zoo_and_files(tmp_path: Path) -> None:
    lines = ["mfagan,3", "rrdb,300", "absent.onnx,1", *(f"{name},2" for name in NETWORKS)]
    found = read_published(write(tmp_path, *lines, header="model,latency_ms"), where={}, unit="cpu", precision="int8")
    assert {"mfagan", "rrdb"} <= {one.network for one in found}
    assert found.unknown == ("absent.onnx",)


@pytest.mark.parametrize(
    ("header", "lines", "expected"),
    [
        ("model,latency_ms,colour", (), r"latency.csv:1: column 'colour' is not known; known are model, network, "),
        ("model,latncy_ms", (), r"column 'latncy_ms' is not known.*did you mean 'latency_ms'\?"),
        ("model,device", (), "there is no column 'latency_ms'; the columns are model, device"),
        ("device,latency_ms", (), "there is no column 'model'"),
        ("model,latency_ms,model", (), "a column is there twice"),
        ("model,latency_ms", ("resnet18,-3",), "latency.csv:2: latency_ms is '-3'; it must be a number of milliseconds above 0"),
        ("model,latency_ms", ("resnet18,1", "resnet50,"), "latency.csv:3: latency_ms is ''"),
        ("model,latency_ms", ("resnet18,nan",), "latency_ms is 'nan'"),
        ("model,latency_ms", (",1",), "latency.csv:2: the row names no model"),
        ("model,latency_ms", ("resnet18,1,2",), "latency.csv:2: the row has more values than the 2 columns of the header"),
        ("model,latency_ms", ("resnet18,1", "resnet18,2"), "latency.csv:3: resnet18 is there twice, with 1 and 2 ms; choose with --where"),
        ("model,latency_ms", ("resnet18,1", "nothing,2"), "has 1 known networks .*at least 5 are needed to fit a unit; 1 model not known: nothing"),
        ("", (), "there is no column 'model'; the columns are none"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, header: str, lines: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        read(write(tmp_path, *lines, header=header))


def test_other_refusals(tmp_path: Path) -> None:
    path = write(tmp_path, *(row(name, 1.0) for name in NETWORKS))
    with pytest.raises(UsageError, match=r"column 'board' is not known in .* to choose rows by; known are model, component, device"):
        read(path, board="x")
    with pytest.raises(UsageError, match="precision 'int4' is not known; known are int8, w8a16, fp16, fp32"):
        read(path, "int4")
    with pytest.raises(UsageError, match=r"none\.csv cannot be read as a CSV file in UTF-8: No such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(UsageError, match="cannot be read as a CSV file in UTF-8"):
        read(tmp_path / "binary.csv")
    device = load_device("snapdragon865")
    with pytest.raises(UsageError, match="snapdragon865 npu does not run fp16 files; it runs int8"):
        fit_published(device, read(path), "npu", "fp16")
    with pytest.raises(TargetError, match="unit 'tpu' is not known"):
        fit_published(device, read(path), "tpu", "int8")
    with pytest.raises(UsageError, match="0 networks cannot determine a unit; give at least 5"):
        fit_published(device, replace(read(path), rows=()), "gpu", "int8")


def test_a_fit_finds_the_unit_that_made_the_figures(tmp_path: Path) -> None:
    """Figures of the 888's GPU, twice as fast: the fit that starts at constants which no source calls fitted finds them again."""
    device = load_device("snapdragon888")
    times = {name: estimate(network_table(name), device, "gpu", "int8").value / 2 for name in NETWORKS}
    rows = read(write(tmp_path, *(row(name, round(ms, 6)) for name, ms in times.items())))
    fitted, validation = fit_published(device, rows, "gpu", "int8")
    for name, ms in times.items():
        assert estimate(network_table(name), fitted, "gpu", "int8").value == pytest.approx(ms, rel=0.06)
    assert validation.summary.median < 0.12
    assert validation.summary.rank_correlation is not None
    assert validation.summary.rank_correlation > 0.95
    gpu = fitted.units["gpu"]
    assert gpu.validation == {"int8": validation}
    assert "starting at the constants before" in validation.how
    assert validation.how.endswith("alignments chosen with these networks in view")
    assert gpu.band("fp16").endswith("with int8 files that the unit computes in the same way")
    source = fitted.sources[validation.source]
    assert source.fitted_to == tuple(sorted(NETWORKS))
    assert "latency.csv" in source.text
    assert {key for _, key in fitted.cited()} == set(fitted.sources)
    assert fitted.units["cpu"] == device.units["cpu"]


def published_again(tmp_path: Path, unit: str) -> PublishedRows:
    """What a shipped unit of the Snapdragon 865 was fitted to, as a table."""
    checks = load_device("snapdragon865").units[unit].validation["int8"].checks
    lines = [f"{check.network},{check.measured_ms!r}" for check in checks]
    return read_published(write(tmp_path, *lines, header="model,latency_ms"), where={}, unit=unit, precision="int8")


@pytest.mark.parametrize("unit", ["gpu", "npu"])
def test_refitting_a_shipped_device_does_not_improve_its_leave_out_error(tmp_path: Path, unit: str) -> None:
    """Its constants have seen every network: a fit that starts at them would claim half the error of the file."""
    device, rows = load_device("snapdragon865"), published_again(tmp_path, unit)
    fitted, validation = fit_published(device, rows, unit, "int8")
    assert validation.summary.median >= device.units[unit].validation["int8"].summary.median - 0.01
    count = len(rows)
    assert f"starting at a neutral prior, because {count} of these networks had decided the constants before" in validation.how
    if unit == "npu":
        assert fit_published(fitted, rows, unit, "int8")[1] == validation, "a fit to the same rows gets no better by being repeated"


def test_one_network_that_was_seen_is_enough(tmp_path: Path) -> None:
    """Whatever the unit's constants were before: they do not enter."""
    device = load_device("snapdragon888")
    rows = read(write(tmp_path, *(row(name, 3.0 + index) for index, name in enumerate(NETWORKS))))
    key = device.units["gpu"].speeds["fp16"].memory.source
    seen = device.sources[key].model_copy(update={"fitted_to": ("xlsr", "vit")})
    told = device.model_copy(update={"sources": {**device.sources, key: seen}})
    first = fit_published(told, rows, "gpu", "int8")[1]
    assert "because 1 of these networks" in first.how
    gpu = told.units["gpu"]
    speeds = gpu.speeds["fp16"]
    slower = speeds.model_copy(update={"memory": speeds.memory.model_copy(update={"gbs": speeds.memory.gbs / 9})})
    changed = told.model_copy(update={"units": {**told.units, "gpu": gpu.model_copy(update={"speeds": {"fp16": slower}})}})
    assert fit_published(changed, rows, "gpu", "int8")[1] == first
    assert fit_published(device, rows, "gpu", "int8")[1] != first


def test_the_prior_of_known_constants_gives_them_back() -> None:
    speeds = load_device("snapdragon8gen3").units["npu"].speeds["fp16"]
    prior = prior_of(speeds, "fp16")
    convolution = speeds.operators["convolution"].gmacs
    assert prior.gmacs == convolution
    for name, ratio in prior.rates.items():
        found = speeds.speed(name)
        assert found is not None
        assert found.gmacs == pytest.approx(ratio * prior.gmacs)
    assert prior.slowdowns["concatenate"] == speeds.operators["concatenate"].slowdown
    assert "volumetric_convolution" in prior.classes
