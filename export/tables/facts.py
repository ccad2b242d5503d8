"""What a reader of files hands over: the graph, and what the file says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mcompress.export.tables.graph import Graph, Shape


@dataclass(frozen=True)
class FileFacts:
    """What the file says about itself."""

    format: str
    """`onnx` or `tflite`."""
    version: str
    """Of the format, for example `opset 18, IR 10`."""
    producer: str
    """What wrote it, empty where it does not say; for TFLite the least runtime."""
    inputs: Mapping[str, Shape]
    """Name -> shape in the file's order."""
    assumed: str = ""
    """What the file leaves open and was decided here, and which of its operators its runtime does not have; empty where there is nothing to say."""


@dataclass(frozen=True)
class Read:
    """A file that was read."""

    graph: Graph
    facts: FileFacts
