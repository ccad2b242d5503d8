"""TFLite beyond the limit of FlatBuffers, tried with a low limit: the same file to everybody who opens it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mcompress.export import backend_named, replay, tflite_edit, tflite_large
from mcompress.export.backend import Written, captured
from mcompress.targets.exports import TFLiteConfig

pytestmark = pytest.mark.export
WEIGHT_BYTES = 4 * 32 * 32 * 9


def written_to(stem: Path) -> Written:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 1)).eval()
    with captured(stem.parent / "log.txt"):
        return backend_named("tflite").write(TFLiteConfig(), network, {"input": torch.zeros(1, 3, 8, 8)}, None, stem)


def test_buffers_behind_the_flatbuffer_are_read_like_any_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written_to(tmp_path / "small")
    monkeypatch.setattr(tflite_large, "LARGEST_BYTES", WEIGHT_BYTES // 2)
    large = written_to(tmp_path / "large")
    model = tflite_edit.schema.Model.GetRootAsModel(large.path.read_bytes(), 0)
    outside = [model.Buffers(index) for index in range(model.BuffersLength()) if model.Buffers(index).Offset() > 1]
    assert max(buffer.Size() for buffer in outside) == WEIGHT_BYTES
    assert all(buffer.Offset() % tflite_large.ALIGNMENT == 0 and not buffer.DataLength() for buffer in outside)
    ends = sorted((buffer.Offset(), buffer.Offset() + buffer.Size()) for buffer in outside)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert ends[-1][1] == large.path.stat().st_size
    small_sheet, sheet = (tflite_edit.opened(one.path) for one in (file, large))
    held = [
        [None if buffer.data is None else bytes(np.asarray(buffer.data, np.uint8)) for buffer in one.model.buffers] for one in (small_sheet, sheet)
    ]
    assert held[0] == held[1]
    assert (large.inputs, large.outputs, large.operators) == (file.inputs, file.outputs, file.operators)
    given = np.random.default_rng(3).random((1, 3, 8, 8), np.float32)
    results = [backend_named("tflite").load(one.path, 1).run(given) for one in (file, large)]
    assert np.array_equal(*results)
    facts: replay.Facts = {"name": "input", "shape": [1, 8, 8, 3], "dtype": "float32", "layout": "NHWC", "scale": None, "zero_point": None}
    assert np.allclose(replay.decode(replay.RUNNERS["tflite"](large.path, [replay.encode(given, facts)], [facts]), facts), results[0], atol=1e-6)


def test_what_is_written_twice_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_large, "LARGEST_BYTES", WEIGHT_BYTES // 2)
    path = written_to(tmp_path / "large").path
    sheet, found = tflite_edit.opened(path), []
    for _ in range(2):
        tflite_edit.save(sheet, path)
        found.append(path.read_bytes())
    assert found[0] == found[1]
    assert len(found[0]) > WEIGHT_BYTES
