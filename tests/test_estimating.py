"""`count` and `estimate` of networks that take several inputs, and what they say of what they assume."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_graphs import node, write_graph
from typer.testing import CliRunner

from mcompress import cli
from mcompress.errors import UsageError
from mcompress.estimating import count_model, estimate_model
from mcompress.export.profile import InputShape
from mcompress.opening import MOST_MIXED, mixtures

NETWORKS = """
import torch
from torch import nn

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.time, self.out = nn.Conv2d(4, 16, 3, padding=1), nn.Linear(8, 16), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x, t, context=None):
        steps = torch.outer(t, torch.arange(8) * 0.5)
        y = self.conv(x) + self.time(steps)[:, :, None, None]
        return self.out(y if context is None else y + context.mean(1)[:, :, None, None])

class Captioner(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.words, self.scale = nn.Linear(12, 16), nn.Embedding(50, 16), nn.Linear(3, 16)

    def forward(self, image, ids, scale):
        return self.image(image)[:, None] + self.words(ids) + self.scale(scale)[:, None]

class Mylib(nn.Module):
    def __init__(self, count=1):
        super().__init__()
        self.count = count

    def forward(self, x):
        for _ in range(self.count):
            x = torch.fft.fft(x).real
        return x

def recurrent():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 4)
        def forward(self, x):
            return self.out(self.layer(x)[0])
    return Cell()
"""


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "several.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "several", raising=False)


CONVOLUTIONS = 2 * 4 * 16 * 9 * 64


@pytest.mark.parametrize("inputs", [["1,4,8,8", "1"], ["x=1,4,8,8", "t=1"], ["t=1", "x=1x4x8x8"], ["1,4,8,8", "t=1"]])
def test_inputs_are_given_in_their_order_or_by_name(inputs: list[str]) -> None:
    assert count_model("several:Denoiser", inputs).figures["macs"] == CONVOLUTIONS + 8 * 16


def test_an_input_that_may_be_left_out() -> None:
    without, with_it = (
        count_model("several:Denoiser", ["1,4,8,8", "t=1", *more]).figures["activation_traffic_bytes"] for more in ([], ["context=1,7,16"])
    )
    assert with_it > without


def test_each_input_is_of_the_numbers_that_it_needs() -> None:
    counted = count_model("several:Captioner", ["1,12", "ids=1,9", "scale=1,3"])
    assert counted.figures["macs"] == 12 * 16 + 3 * 16
    assert counted.as_json()["file"] == "ids of whole numbers"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"several:Denoiser takes x and t \(and, if given, context\); give the shape of each: --input x=SHAPE --input t=SHAPE \(t missing\)"),
        (["1,4,8,8"], r"takes x and t .*\(t missing\)"),
        (["t=1"], r"takes x and t .*\(x missing\)"),
        (["1,4,8,8", "time=1"], r"--input names 'time', but several:Denoiser takes x and t"),
        (["1,4,8,8", "1", "1,7,16", "1"], r"takes x and t .*\(4 given\)"),
        (["x=1,4,8,8", "x=1,4,8,8"], r"--input gives 'x' twice"),
        (["=1,4"], r"write NAME=SHAPE"),
        (["x=1,4,8,8", "t=0"], r"--input is 't=0'; it must be positive whole numbers"),
        (["1,5,8,8", "1"], r"--input is '1,5,8,8' and '1', which several:Denoiser does not take: module 'conv'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        count_model("several:Denoiser", inputs)


def test_mixtures_are_few() -> None:
    few = [InputShape("", (1,) * rank) for rank in (4, 1, 3)]
    assert next(mixtures(few)) == (1,)
    assert len(set(mixtures(few))) == len(list(mixtures(few))) == 2 ** len(few) - 1
    assert len(list(mixtures([InputShape("", (1, 2))] * (MOST_MIXED + 1)))) == MOST_MIXED + 3


def test_the_command_takes_several_inputs() -> None:
    found = CliRunner().invoke(cli.app, ["count", "several:Denoiser", "--input", "1,4,8,8", "--input", "t=1", "--json"])
    assert json.loads(found.output)["macs"] == CONVOLUTIONS + 8 * 16
    told = CliRunner().invoke(
        cli.app, ["estimate", "several:Denoiser", "--device", "snapdragon865", "--precision", "fp16", "--input", "x=1,4,8,8", "--input", "t=1"]
    )
    assert told.exit_code == 0, told.output


def test_every_millisecond_is_told() -> None:
    found = estimate_model("mfagan", "snapdragon865", "gpu", "fp16", inputs=["1,3,32,32"])
    told = found.as_json(len(found.whole.operators))
    assert found.whole.fixed_ms > 0.1 * found.whole.latency.value  # a small image, a large start
    assert found.whole.fixed_ms + sum(row.latency_ms for row in found.whole.operators) == pytest.approx(found.whole.latency.value)
    assert told["fixed_ms"] == found.whole.fixed_ms
    for count in (1, 3, len(found.whole.operators) - 1, len(found.whole.operators)):
        costs = [line.split()[:2] for line in found.lines(count) if re.match(r" *\d+\.\d+ +\d+\.\d%", line)]
        assert len(costs) == count + 1 + (count < len(found.whole.operators))
        assert sum(float(ms) for ms, _ in costs) == pytest.approx(found.whole.latency.value, rel=2e-3)
        assert sum(float(share.rstrip("%")) for _, share in costs) == pytest.approx(100, abs=0.06 * len(costs))


def test_what_is_assumed_is_said_once_and_not_at_length() -> None:
    for count in (1, 20):
        args = json.dumps({"count": count})
        counted = count_model("several:Mylib", ["1,4,8,8"], args)
        lines = counted.lines()
        (share,) = [line for line in lines if line.strip().startswith("of which assumed")]
        assert share.split()[-1] == f"{counted.model.table.assumed_macs:,}"
        assert lines[-1].count("_fft_r2c (") == min(count, 8)
        assert lines[-1].endswith("and 12 more") == (count == 20)
        told = estimate_model("several:Mylib", "snapdragon865", "cpu", "fp32", inputs=["1,4,8,8"], args=args).lines(1)
        assert sum("multiply-adds" in line for line in told) == 1
        assert not any("operators are not known" in line for line in told)
    assert not any("assumed" in line for line in count_model("mfagan", ["1,3,8,8"]).lines())


def test_a_recurrent_layer_says_how_it_is_priced() -> None:
    told = estimate_model("several:recurrent", "snapdragon865", "cpu", "fp32", inputs=["1,20,16"])
    (line,) = [line for line in told.lines(5) if line.startswith("recurrent")]
    assert "lstm (layer)" in line
    assert "not validated" in line
    assert told.as_json(1)["recurrent_operators"] == ["layer"]
    assert not any("recurrent:" in line for line in estimate_model("mfagan", "snapdragon865", "cpu", "fp16").lines(5))


@pytest.fixture
def two_inputs(tmp_path: Path) -> Path:
    """x (batch, 4, height, width) through a convolution, plus t (batch, 8), whose sizes are all open, through a matrix."""
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("MatMul", "t m", "l"),
        node("Unsqueeze", "l axes", "u"),
        node("Add", "c u", "y"),
    ]
    weights = {"w": (6, 4, 3, 3), "m": (8, 6), "axes": np.array([2, 3], np.int64)}
    return write_graph(tmp_path / "two.onnx", nodes, {"x": ["n", 4, "h", "w_"], "t": ["m_", "k"]}, ["y"], weights)


def test_a_file_takes_several_inputs_by_name(two_inputs: Path) -> None:
    assert count_model(str(two_inputs), ["x=1,4,8,8", "t=1,8"]).figures["macs"] == 6 * 4 * 9 * 64 + 8 * 6
    assert count_model(str(two_inputs), ["t=1,8", "x=1,4,8,8"]).figures["macs"] == 6 * 4 * 9 * 64 + 8 * 6


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"two\.onnx: the file leaves sizes open \(x: n,4,h,w_; t: m_,k\); give --input x=SHAPE --input t=SHAPE"),
        (["1,4,8,8"], r"two\.onnx: the file leaves sizes open \(t: m_,k\); give --input t=SHAPE"),
        (["1,4,8,8", "1,8"], r"--input is given 2 times; for a file each needs the name of its input, for example --input NAME=1,4,8,8"),
        (["x=1,4,8,8", "time=1,8"], r"two\.onnx: --input names 'time', but the inputs of the file are: x, t"),
        (["x=1,4,8", "t=1,8"], r"--input is x=1,4,8, but the file takes n,4,h,w_ only"),
        (["x=1,5,8,8", "t=1,8"], r"--input is x=1,5,8,8, but the file takes n,4,h,w_ only"),
    ],
)
def test_open_inputs_of_a_file_are_named(two_inputs: Path, inputs: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        count_model(str(two_inputs), inputs)
