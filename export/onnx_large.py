"""ONNX files over the limit of protobuf: a folder with the graph and, beside it, the weights.

A message of protobuf is smaller than 2 GiB (protobuf.dev/programming-guides/proto-limits), and so is an .onnx file; ONNX keeps larger weights in
another file, whose name the graph states (onnx/docs/ExternalData.md). The folder has the name of the file, as a Core ML package has: it is copied,
measured and hashed as a whole, and the two files in it never part.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LARGEST_BYTES = 2**31 - 2**24
"""Of the weights in a file; what is left of 2 GiB is for the graph."""
KEPT_INSIDE_BYTES = 2**16
"""Smaller tensors, scales and zero points among them, stay in the graph, which is read without its weights."""
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"


def graph_file(path: Path) -> Path:
    """Where the graph is: the file itself, or the one in the folder."""
    return path / GRAPH if path.is_dir() else path


def is_too_large(proto: onnx.ModelProto) -> bool:
    """Whether it needs a folder."""
    return sum(len(item.raw_data) for item in proto.graph.initializer) > LARGEST_BYTES


def save_checked(proto: onnx.ModelProto, path: Path) -> None:
    """Write a file, or the folder of one that is too large, whose weights `proto` then no longer holds. Raises what onnx's checker raises."""
    from onnx import checker, save

    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if not is_too_large(proto):
        checker.check_model(proto, full_check=True)
        save(proto, str(path))
        return
    path.mkdir()
    save(proto, str(path / GRAPH), save_as_external_data=True, location=WEIGHTS, size_threshold=KEPT_INSIDE_BYTES)
    checker.check_model(str(path / GRAPH), full_check=True)  # by its name: the only way for a graph whose weights are elsewhere


@contextmanager
def changed_beside(path: Path, proto: onnx.ModelProto) -> Iterator[str | bytes]:
    """What onnxruntime opens for `proto`, a changed form of the graph of `path`: its bytes, or for a folder a file that has the weights beside it."""
    from onnx import save

    if not path.is_dir():
        yield proto.SerializeToString()
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        try:
            os.link(path / WEIGHTS, folder / WEIGHTS)
        except OSError:  # a file system without hard links
            shutil.copyfile(path / WEIGHTS, folder / WEIGHTS)
        save(proto, str(folder / GRAPH))
        yield str(folder / GRAPH)
