"""What fits of devices are tested with: few files, a board that says what it is, and stand-ins for a converter and for the suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mcompress.calibration.latency_fit import Sample
from mcompress.cli import app
from mcompress.export.suite.cases import Case, cases
from mcompress.export.suite.running import Measured, Quality, Setting
from mcompress.export.suite.writer import Number
from mcompress.export.tables import table_of_file
from mcompress.fitting import PRIORS
from mcompress.targets.connect import DeviceFacts, Host

NETWORK = "patchgan"


def few(share: float = 1.0) -> tuple[Case, ...]:
    """A file of each class that the networks here have most of; a fit of it is a fit, if a bad one."""
    del share
    every = cases()
    kinds = ("convolution_", "pointwise_", "dense_", "sum_", "leaky_relu_")
    return tuple(next(case for case in every if case.name.startswith(kind)) for kind in kinds)


def told(_what: str, _done: int, _of: int) -> None:
    """Nobody who measures here wants to know how far it is."""


def chatty_export(name: str, number: Number, folder: Path) -> Path:
    """Stands for a converter, which takes many seconds: one convolution, and words on standard output, from Python and from below it."""
    print("Converting...")  # noqa: T201
    os.write(1, b"Quantization Ratio: 0.26\n")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{number}.tflite"
    path.write_bytes(few(1.0)[0].file(number))
    return path


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Everything that a command wrote to standard output, converters' C++ included."""
    app(arguments, standalone_mode=False)
    return capfd.readouterr().out


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
