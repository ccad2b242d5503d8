"""ONNX files over the limit of protobuf: a folder with the graph and, beside it, the weights.

A message of protobuf is smaller than 2 GiB (protobuf.dev/programming-guides/proto-limits), and so is an .onnx file; ONNX keeps larger weights in
another file, whose name the graph states (onnx/docs/ExternalData.md). The folder has the name of the file, as a Core ML package has: it is copied,
measured and hashed as a whole, and the two files in it never part.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch.onnx import ONNXProgram

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


def remove(path: Path) -> None:
    """Whatever is at `path`."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def with_weights_outside(exported: ONNXProgram, path: Path) -> onnx.ModelProto | None:
    """The graph of a network that is too large for a file, without its weights, which are now in a new folder `path`; None for a smaller network.

    They go there tensor by tensor from the memory of the network: the graph never holds them, and nothing is in memory twice.
    """
    import onnx
    import onnx_ir

    tensors = [value.const_value for value in exported.model.graph.initializers.values()]
    if sum(one.nbytes for one in tensors if one is not None) <= LARGEST_BYTES:
        return None
    remove(path)
    path.mkdir()
    onnx_ir.save(exported.model, path / GRAPH, external_data=WEIGHTS, size_threshold_bytes=KEPT_INSIDE_BYTES)
    return onnx.load(str(path / GRAPH), load_external_data=False)


def as_inputs(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Make inputs of the weights that are outside of the graph, in place, for tools that know no such weights; gives them."""
    from onnx import TensorProto, helper

    outside = [item for item in proto.graph.initializer if item.data_location == TensorProto.EXTERNAL]
    inside = [item for item in proto.graph.initializer if item.data_location != TensorProto.EXTERNAL]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(inside)
    proto.graph.input.extend(helper.make_tensor_value_info(item.name, item.data_type, tuple(item.dims)) for item in outside)
    return outside


def as_weights(proto: onnx.ModelProto, outside: Sequence[onnx.TensorProto]) -> None:
    """Take `as_inputs` back, in place."""
    names = {item.name for item in outside}
    kept = [item for item in proto.graph.input if item.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(outside)


def save_checked(proto: onnx.ModelProto, path: Path) -> None:
    """Write a file, or the folder of one that is too large, whose weights `proto` then no longer holds; of `with_weights_outside` only the graph.

    Raises what onnx's checker raises.
    """
    from onnx import TensorProto, checker, save

    if any(item.data_location == TensorProto.EXTERNAL for item in proto.graph.initializer):
        save(proto, str(path / GRAPH))
        checker.check_model(str(path / GRAPH), full_check=True)
        return
    remove(path)
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
