"""`count` and `estimate` as commands: of files and of networks, of inputs of any rank, and what they say of an input that does not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from onnx_graphs import node, write_graph

from mcompress import cli
from mcompress.errors import UsageError
from mcompress.estimating import count_model, estimate_model


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_graph(tmp_path / "graph.onnx", [node("Conv", "x w", "c"), node("Relu", "c", "y")], {"x": (1, 2, 4, 4)}, ["y"], {"w": (8, 2, 1, 1)})

    def command(*args: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["mcompress", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capsys.readouterr())

    code, out, _ = command("count", str(path), "--json")
    assert (code, json.loads(out)["macs"]) == (0, 8 * 2 * 16)
    code, out, _ = command("estimate", str(path), "--device", "snapdragon865", "--unit", "cpu", "--json", "--top", "3")
    told = json.loads(out)
    assert (code, told["latency"]["how"], told["precisions"]) == (0, "estimated", {"fp32": 1})
    assert told["top"][0]["latency_ms"] > 0
    code, out, _ = command("estimate", "mfagan", "--device", "snapdragon865", "--precision", "fp16", "--top", "2")
    assert (code, "more operators" in out, "compute" in out) == (0, True, True)
    for args, message in (
        (("estimate", "mfagan", "--device", "snapdragon865"), "has no precision of its own"),
        (("estimate", "mfagan", "--device", "snapdragon865", "--precision", "int3"), "it can be int8, w8a16, fp16, fp32"),
        (("count", str(tmp_path / "none.tflite")), "there is no file"),
        (("count", "model.h5"), "is neither a network"),
        (("count", str(path), "--input", "nonsense"), "must be positive whole numbers"),
        (("count", str(path), "--args", '{"a": 1}'), "takes no arguments"),
    ):
        code, out, told_wrong = command(*args)
        assert (code, out) == (2, ""), args
        assert message in told_wrong


@pytest.mark.parametrize(
    ("network", "shape", "kinds"),
    [
        ("resized", "1,3,16,16", ["resize", "pooling"]),
        ("sound", "1,8,32", ["convolution"]),
        ("features", "4,16", ["matmul"]),
        ("video", "1,3,4,8,8", ["convolution"]),
        ("words", "1,7", ["copy", "matmul"]),
    ],
)
def test_any_rank_of_input_and_networks_without_weights(
    network: str, shape: str, kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any_rank.py").write_text(
        "from torch import nn\n"
        "def resized(): return nn.Sequential(nn.Upsample(scale_factor=2), nn.MaxPool2d(2))\n"
        "def sound(): return nn.Sequential(nn.Conv1d(8, 12, 3, padding=1), nn.ReLU())\n"
        "def features(): return nn.Sequential(nn.Linear(16, 8), nn.GELU())\n"
        "def video(): return nn.Sequential(nn.Conv3d(3, 6, 3), nn.ReLU())\n"
        "def words(): return nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 8))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "any_rank", raising=False)
    estimated = estimate_model(f"any_rank:{network}", "snapdragon865", "cpu", "fp32", inputs=[shape])
    assert [operator.kind for operator in estimated.model.table.operators] == kinds
    assert all(row.latency_ms > 0 for row in estimated.whole.operators)
    assert (estimated.model.facts == "input of whole numbers") == (network == "words")


def test_an_input_that_a_network_does_not_take_is_named() -> None:
    with pytest.raises(UsageError, match=r"--input is '1,4,8', which mfagan does not take: module 'head.*' of .* failed on an input of shape"):
        count_model("mfagan", ["1,4,8"])
    with pytest.raises(UsageError, match=r"--input is '1,0'; it must be positive whole numbers .*, the batch first"):
        count_model("mfagan", ["1,0"])
