"""TFLite files over the limit of FlatBuffers, of which one is smaller than 2 GiB: large buffers follow behind it in the same file.

The schema has it for such models: a buffer then states where in the file its data are, and how many bytes (`Buffer.offset` and `.size`, valid if
greater than 1; tensorflow/lite/schema/schema.fbs). LiteRT's converter writes that, and its interpreter reads it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

LARGEST_BYTES = 2**31 - 2**26
"""Of the data of all buffers in a FlatBuffer; what is left of 2 GiB is for the graph."""
KEPT_INSIDE_BYTES = 2**10
"""Smaller buffers stay: notes, which readers look for there, and numbers."""
ALIGNMENT = 16
SOMEWHERE = 2
"""An offset that holds the place of another one: 0 and 1 are none, and would not be stored."""


def mapped(path: Path) -> mmap.mmap:
    """The content of a file, of which only what is looked at is read. Raises what opening it raises, and `ValueError` for an empty file."""
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def with_data_inside(model: schema.ModelT, whole: bytes | mmap.mmap) -> None:
    """Give every buffer of `model` that is behind the FlatBuffer of the file `whole` its data, as if they were in it; nothing is copied."""
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(whole, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0


def write(model: schema.ModelT, packed: Callable[[], bytes], path: Path) -> None:
    """Write the file of `model`, which `packed` makes a FlatBuffer of; where it is too large, with its large buffers behind it.

    What was at `path` stays whole until it is replaced, because `model` may have its data from there.
    """
    whole = path.with_name(f"{path.name}.part")
    _write(model, packed, whole)
    whole.replace(path)


def _write(model: schema.ModelT, packed: Callable[[], bytes], path: Path) -> None:
    if sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None) <= LARGEST_BYTES:
        path.write_bytes(packed())
        return
    behind = [(buffer, buffer.data) for buffer in model.buffers if buffer.data is not None and len(buffer.data) > KEPT_INSIDE_BYTES]
    for buffer, data in behind:
        buffer.data, buffer.offset, buffer.size = None, SOMEWHERE, len(data)
    place = _aligned(len(packed()))  # numbers have fixed places: the length is the same with the true offsets
    for buffer, data in behind:
        buffer.offset, place = place, _aligned(place + len(data))
    with path.open("wb") as file:
        file.write(packed())
        for buffer, data in behind:
            file.write(b"\0" * (buffer.offset - file.tell()))
            file.write(np.asarray(data, np.uint8).data)
            buffer.data, buffer.offset, buffer.size = data, 0, 0


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
