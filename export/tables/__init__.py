"""Operator tables of files: `table_of_file` reads ONNX and TFLite; the rows are those of the network that the file was exported from.

The two readers turn nodes into the steps in which `mcompress.compress.cost` records a network, and everything after that is the same code: what is
fused, what is a view, how memory is planned. Neither imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from mcompress.errors import UsageError
from mcompress.export.tables.facts import FileFacts
from mcompress.export.tables.graph import Shape, table_of_graph
from mcompress.targets.operators import OperatorTable
from mcompress.targets.speeds import PrecisionName

READERS = {".onnx": "mcompress.export.tables.onnx", ".tflite": "mcompress.export.tables.tflite"}
"""Suffix -> module with `read`."""


@dataclass(frozen=True)
class FileTable:
    """A file as an operator table, the precision in which the file has each row, and what it says about itself."""

    table: OperatorTable
    precisions: dict[str, PrecisionName]
    """Row -> precision: that of the activations, and fp16 where the weights alone are (TFLite's float16 files)."""
    facts: FileFacts


def is_file(name: str) -> bool:
    """Whether a name stands for a model file, judged by its suffix."""
    return Path(name).suffix.lower() in READERS


def table_of_file(path: Path, input_shape: Shape | Mapping[str, Shape] | None = None) -> FileTable:
    """The operator table of an .onnx or .tflite file; `params` counts the numbers that its operators hold.

    `input_shape`, in the file's order, is needed where the file leaves sizes open: that of the first input, or name -> shape. Raises `UsageError` for
    a file that is missing, empty, damaged, of another kind, or whose shapes are not known; `MissingBackendError` without the package that reads it.
    """
    module = READERS.get(path.suffix.lower())
    if module is None:
        raise UsageError(f"{path} is no file that can be counted: its suffix is '{path.suffix}', and can be {' or '.join(READERS)}")
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise UsageError(f"{path} is empty; export or copy it again")
    found = import_module(module).read(path, input_shape)
    table, heads = table_of_graph(found.graph)
    if not table.operators:
        raise UsageError(f"{path} computes nothing: every node is a constant or a view")
    return FileTable(table, {row.name: head.precision for row, head in zip(table.operators, heads, strict=True)}, found.facts)
