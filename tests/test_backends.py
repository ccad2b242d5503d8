"""What stands around the backends: what is missing, errors and chatter of libraries, ports, and parity by its formula."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from mcompress.errors import DiskFullError, ExportError, MissingBackendError, ParityError
from mcompress.export import backend_of, parity
from mcompress.export.backend import BackendCall, Port, captured
from mcompress.record import HIGHEST_DB
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig


@pytest.mark.parametrize("config", [OnnxConfig(), TFLiteConfig(), ExecuTorchConfig(), CoreMLConfig()], ids=lambda config: config.backend)
def test_a_missing_backend_says_how_to_install_it(config: ExportConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    backend_of(config).probe()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingBackendError, match=rf"pip install 'mcompress\[{config.backend}\]'"):
        backend_of(config).probe()


class Known:
    """A runner with a known error: what a wrong file would look like."""

    runtime = "known"
    inputs: tuple[Port, ...] = (Port("input", (1, 1, 2, 2), "float32", "NCHW"),)
    outputs: tuple[Port, ...] = inputs

    def __init__(self, error: float) -> None:
        self._error = np.float32(error)

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.asarray(encoded[0] + self._error)

    def run(self, *values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.execute(*values), dtype=np.float32)


def test_parity_is_the_formula() -> None:
    inputs = [(np.array([[[[0.0, 1.0], [2.0, 4.0]]]], dtype=np.float32),)]
    record = parity.float_parity(Known(0.01), nn.Identity(), inputs, 1e-3)
    assert record.value == pytest.approx(0.01 / 4, rel=1e-4)
    assert record.passed is False
    assert parity.float_parity(Known(0.001), nn.Identity(), inputs, 1e-3).passed is True
    record = parity.int8_parity(Known(0.5), nn.Identity(), inputs, 35.0)
    assert record.value == pytest.approx(10 * np.log10(21 / (4 * 0.25)))
    assert record.passed is False
    assert parity.int8_parity(Known(0.0), nn.Identity(), inputs, 35.0).value == HIGHEST_DB
    with pytest.raises(ParityError, match="NaN"):
        parity.float_parity(Known(float("nan")), nn.Identity(), inputs, 1e-3)
    assert parity.not_executed("PyTorch", "x", 1.0, "no macOS").passed is None


def test_chatter_goes_to_the_log_even_below_python(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "deep" / "log.txt"
    with captured(log):
        os.write(1, b"from C, standard output\n")
        os.write(2, b"from C, standard error\n")
        sys.stderr.write("from Python\n")
    os.write(1, b"afterwards\n")
    content = log.read_text()
    assert all(line in content for line in ("from C, standard output", "from C, standard error", "from Python"))
    assert capfd.readouterr().out == "afterwards\n"


def test_what_a_library_logs_afterwards_is_not_written_to_a_closed_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("a_library_that_logs")
    with captured(tmp_path / "log.txt"):
        handler = logging.StreamHandler()
        library.addHandler(handler)
        library.warning("within")
    try:
        library.warning("behind")
        with captured(tmp_path / "second.txt"):
            library.warning("again")
    finally:
        library.removeHandler(handler)
    assert (tmp_path / "log.txt").read_text() == "within\n"
    said = capfd.readouterr().err
    assert "behind\n" in said
    assert "closed file" not in said


def test_errors_of_libraries_become_ours() -> None:
    with (
        pytest.raises(ExportError, match=r"onnx failed to write x\.onnx: KeyError: 'aten::strange'.*Do this") as seen,
        BackendCall("onnx", "write x.onnx", "Do this."),
    ):
        raise KeyError("aten::strange")
    assert isinstance(seen.value.__cause__, KeyError)
    with pytest.raises(DiskFullError, match="free some space"), BackendCall("onnx", "write x.onnx", ""):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KeyboardInterrupt), BackendCall("onnx", "write x.onnx", ""):
        raise KeyboardInterrupt


def test_ports_convert_both_ways() -> None:
    port = Port("x", (1, 2, 3, 1), "int8", "NHWC", scale=1 / 255, zero_point=-128)
    value = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3) * 51 / 255
    encoded = port.encode(value)
    assert encoded.shape == (1, 2, 3, 1)
    assert encoded.dtype == np.int8
    assert encoded.reshape(-1).tolist() == [-128, -77, -26, 25, 76, 127]
    np.testing.assert_allclose(port.decode(encoded), value, atol=1e-6)
