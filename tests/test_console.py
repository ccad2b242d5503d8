"""A reader that leaves (`| head -1`) does not end the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcompress.console import LastingConsole, Terminal

NETWORK = """\
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
"""
TARGET = """\
name: piped
device: snapdragon865
threads: 1
model: {network: piped_network:build, input_shape: [1, 3, 16, 16]}
budget: {quality: {metric: psnr_db, at_least: 90}}
stages:
  - {stage: prune, ratio: 0.0, importance_batches: 1}
exports:
  - {backend: onnx, profile_s: 0.05}
"""


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_what_is_left_to_say_is_dropped() -> None:
    with os.fdopen(closed_pipe(), "w", buffering=1) as stream:
        console = LastingConsole(file=stream)
        with pytest.raises(BrokenPipeError):
            os.write(stream.fileno(), b"x")
        console.print("one")
        console.print("two")
        assert console.quiet
        os.write(stream.fileno(), b"nowhere")


def test_a_reporter_outlives_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(closed_pipe(), "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Terminal() as reporter:
            reporter.note("one")
            step = reporter.progress("two")
            step(1, 1, "three")
            reporter.note("four")


@pytest.mark.pipeline
def test_a_run_outlives_its_reader_and_ends_with_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "piped_network.py").write_text(NETWORK)
    (tmp_path / "piped.yaml").write_text(TARGET)
    writing = closed_pipe()
    try:
        command = [sys.executable, "-m", "mcompress.cli", "run", "piped.yaml"]
        done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=writing, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    finally:
        os.close(writing)
    assert done.returncode == 3  # the budget was missed; a console that gives up would be 1
    assert len(list(tmp_path.glob("runs/piped-*/bundle/manifest.json"))) == 1
