"""ONNX beyond the limit of protobuf, tried with a low limit: a folder of graph and weights that everything treats as one file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mcompress.errors import ExportError
from mcompress.export import backend_named, bundle_files, onnx_large, replay
from mcompress.export.backend import Written, captured
from mcompress.export.onnx import intermediates
from mcompress.export.onnx_large import GRAPH, WEIGHTS, graph_file
from mcompress.export.replay import digest_of, size_of
from mcompress.export.walked import walk
from mcompress.targets.exports import OnnxConfig

pytestmark = pytest.mark.export
WEIGHT_BYTES = 4 * 64 * 64 * 9


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 1)).eval()


def example() -> torch.Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def written_to(stem: Path) -> Written:
    with captured(stem.parent / "log.txt"):
        return backend_named("onnx").write(OnnxConfig(), network(), {"input": example()}, None, stem)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit below the largest weight of the network."""
    monkeypatch.setattr(onnx_large, "LARGEST_BYTES", WEIGHT_BYTES // 2)


@pytest.mark.usefixtures("small")
def test_a_folder_says_and_does_what_a_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written_to(tmp_path / "large")
    monkeypatch.undo()
    file = written_to(tmp_path / "small")
    assert folder.path.is_dir()
    assert file.path.is_file()
    assert sorted(path.name for path in folder.path.iterdir()) == sorted((GRAPH, WEIGHTS))
    assert (folder.path / WEIGHTS).stat().st_size >= WEIGHT_BYTES > (folder.path / GRAPH).stat().st_size
    assert (folder.inputs, folder.outputs, folder.precision_counts) == (file.inputs, file.outputs, file.precision_counts)
    assert [one.name for one in folder.operators] == [one.name for one in file.operators]
    assert walk(folder.path) == walk(file.path)
    given = example().numpy()
    results = [backend_named("onnx").load(one.path, 1).run(given) for one in (folder, file)]
    assert np.array_equal(*results)
    with torch.no_grad():
        assert np.allclose(results[0], network()(example()).numpy(), atol=1e-5)
    inner = [intermediates(one.path, [given], one.operators) for one in (folder, file)]
    assert inner[0].keys() == inner[1].keys() != set()
    assert all(np.array_equal(value, inner[1][name]) for name, value in inner[0].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.onnx", "log.txt", "small.onnx"], "nothing is left behind"


@pytest.mark.usefixtures("small")
def test_bundles_run_it_and_see_either_file_change(tmp_path: Path) -> None:
    path = written_to(tmp_path / "large").path
    facts: replay.Facts = {"name": "input", "shape": [1, 3, 8, 8], "dtype": "float32", "layout": "NCHW", "scale": None, "zero_point": None}
    given = example().numpy()
    expected = backend_named("onnx").load(path, 1).run(given)
    assert np.allclose(replay.RUNNERS["onnx"](path, [given], [facts]), expected, atol=1e-6)
    stated = {"path": path.name, "sha256": digest_of(path), "backend": "onnx", "inputs": [facts]}
    assert np.allclose(bundle_files.load(tmp_path, stated, 1)([given]), expected, atol=1e-6)  # type: ignore[arg-type]  # of a manifest, what it asks for
    assert size_of(path) == sum(one.stat().st_size for one in path.iterdir())
    for name in (GRAPH, WEIGHTS):
        copy = tmp_path / "copy" / path.name
        shutil.copytree(path, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(bytes(data))
        with pytest.raises(bundle_files.Refused, match=r"not the file that the manifest states"):
            bundle_files.load(tmp_path / "copy", stated, 1)  # type: ignore[arg-type]
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.usefixtures("small")
def test_a_folder_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = written_to(tmp_path / "large").path
    (path / WEIGHTS).unlink()
    with pytest.raises(ExportError, match=r"large\.onnx"):
        backend_named("onnx").load(path, 1)


def test_weights_outside_of_a_folder_are_refused_as_ever(tmp_path: Path) -> None:
    path = written_to(tmp_path / "small").path
    onnx.save(onnx.load(str(path)), str(tmp_path / "other.onnx"), save_as_external_data=True, location="elsewhere.bin", size_threshold=16)
    with pytest.raises(ExportError, match=r"keeps '.*' in another file, which files of mcompress never do"):
        backend_named("onnx").load(tmp_path / "other.onnx", 1)


def test_what_was_there_is_replaced_by_either_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written_to(tmp_path / "one").path.is_file()
    monkeypatch.setattr(onnx_large, "LARGEST_BYTES", WEIGHT_BYTES // 2)
    assert graph_file(written_to(tmp_path / "one").path).name == GRAPH
    monkeypatch.undo()
    assert written_to(tmp_path / "one").path.is_file()


@pytest.mark.usefixtures("small")
def test_a_folder_in_an_older_opset(tmp_path: Path) -> None:
    with captured(tmp_path / "log.txt"):
        written = backend_named("onnx").write(OnnxConfig(opset=17), network(), {"input": example()}, None, tmp_path / "old")
    proto = onnx.load(str(written.path / GRAPH), load_external_data=False)
    assert [item.version for item in proto.opset_import if not item.domain] == [17]
    assert [item.name for item in proto.graph.input] == ["input"]
    result = backend_named("onnx").load(written.path, 1).run(example().numpy())
    with torch.no_grad():
        assert np.allclose(result, network()(example()).numpy(), atol=1e-5)


@pytest.mark.usefixtures("small")
def test_the_network_is_neither_copied_nor_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    seen: list[int] = []
    monkeypatch.setattr(torch.onnx.ONNXProgram, "model_proto", property(lambda self: seen.append(1)))
    with captured(tmp_path / "log.txt"):
        backend_named("onnx").write(OnnxConfig(), model, {"input": example()}, None, tmp_path / "large")
    assert not seen, "the graph with all weights in it"
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
