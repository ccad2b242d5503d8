"""What a model costs and how long it takes on a device: a network by name or import path, or an .onnx or .tflite file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from mcompress.errors import StageError, UsageError
from mcompress.targets.device import load_device
from mcompress.targets.latency import FILE_PRECISIONS, OperatorLatency, Precisions, estimate, operator_latencies
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import MOST_VALUES, Measurement
from mcompress.targets.speeds import FilePrecision

DEFAULT_INPUT = "1,3,128,128"
FIGURES = {
    "params": "parameters",
    "macs": "multiply-adds, exact work",
    "macs_output_convention": "multiply-adds, output-size convention",
    "peak_activation_bytes": "peak live activations, bytes (fp32)",
    "planned_peak_bytes": "arena of TFLite's planner, bytes (fp32)",
    "activation_traffic_bytes": "activation traffic, bytes (fp32)",
}
"""What `count` prints: key -> what it is."""
NAMED = 8
"""Unknown operators that are named; the rest is counted."""


@dataclass(frozen=True)
class Opened:
    """A model as an operator table, and the precisions of a file (None for a network, which has none yet)."""

    name: str
    table: OperatorTable
    precisions: dict[str, FilePrecision] | None
    facts: str
    """What a file says about itself, and what was assumed to read the model; empty where there is nothing to say."""


@dataclass(frozen=True)
class Estimate:
    """The estimated latency of a model, and where the milliseconds go."""

    model: Opened
    latency: Measurement
    rows: tuple[OperatorLatency, ...]

    def top(self, count: int) -> list[tuple[OperatorLatency, str, str]]:
        """The `count` slowest operators with their kind and what runs inside them, slowest first."""
        paired = zip(self.rows, self.model.table.operators, strict=True)
        slowest = sorted(paired, key=lambda pair: -pair[0].latency_ms)[:count]
        return [(row, operator.kind, "+".join(operator.fused)) for row, operator in slowest]

    def as_json(self, count: int) -> dict[str, JsonValue]:
        """Everything that the command prints, milliseconds."""
        return {
            "model": self.model.name,
            "file": self.model.facts or None,
            "latency": self.latency.model_dump(mode="json"),
            "operators": len(self.rows),
            "precisions": dict(Counter(str(row.precision) for row in self.rows)),
            "unknown_operators": [*unknown_names(self.model.table)],
            "assumed_macs": self.model.table.assumed_macs,
            "top": [
                {
                    "name": row.name,
                    "kind": kind,
                    "fused": fused,
                    "unit": row.unit,
                    "precision": row.precision,
                    "latency_ms": row.latency_ms,
                    "compute_ms": row.compute_ms,
                    "memory_ms": row.memory_ms,
                    "dispatch_ms": row.dispatch_ms,
                    "boundary_ms": row.boundary_ms,
                    "stream_ms": row.stream_ms,
                    "apart_ms": row.apart_ms,
                }
                for row, kind, fused in self.top(count)
            ],
        }

    def lines(self, count: int) -> list[str]:
        """The same for people, with short names of operators."""
        latency, total, shown = self.latency, sum(row.latency_ms for row in self.rows), _short_names(self.model.table)
        file = f" ({self.model.facts})" if self.model.facts else ""
        found = [
            f"{latency.value:.3g} {latency.unit} estimated on {latency.on} for {self.model.name}{file}",
            f"error: {latency.band}",
            f"from:  {latency.source}",
            "",
            f"{'ms':>9} {'share':>6} {'compute':>9} {'memory':>9} {'weights':>9} {'other':>9}  unit  precision  operator",
        ]
        for row, kind, fused in self.top(count):
            share = row.latency_ms / total if total else 0.0
            other_ms = row.dispatch_ms + row.boundary_ms + row.apart_ms
            times = " ".join(f"{value:>9.4f}" for value in (row.compute_ms, row.memory_ms, row.stream_ms, other_ms))
            what = f"{kind}{f' + {fused}' if fused else ''}"
            found.append(f"{row.latency_ms:>9.4f} {share:>6.1%} {times}  {row.unit:<5} {row.precision:<10} {shown[row.name]} ({what})")
        if len(self.rows) > count:
            found.append(f"... and {len(self.rows) - count} more operators")
        return [*found, *_unknown_lines(self.model.table)]


def estimate_model(
    model: str,
    device: str,
    unit: str | None = None,
    precision: str | None = None,
    *,
    input_shape: str | None = None,
    args: str = "{}",
) -> Estimate:
    """Estimated latency of a network or a file on a unit of a device; the preferred unit where none is given.

    A file has its precision; `precision` takes its place where it is given. Raises
    `UsageError` for what cannot be read, and what `estimate` raises.
    """
    chosen = load_device(device)
    known = chosen.unit(unit)
    if precision is not None and precision not in FILE_PRECISIONS:
        raise UsageError(f"--precision is '{precision}'; it can be {', '.join(FILE_PRECISIONS)}")
    opened = open_model(model, input_shape, args)
    precisions: Precisions
    if precision is not None:
        precisions = next(name for name in FILE_PRECISIONS if name == precision)
    elif opened.precisions is not None:
        precisions = opened.precisions
    else:
        takes = ", ".join(known.runs)
        raise UsageError(f"{model} has no precision of its own; give one with --precision: {known.name} of {chosen.name} takes {takes}")
    latency = estimate(opened.table, chosen, known.name, precisions)
    return Estimate(opened, latency, operator_latencies(opened.table, chosen, known.name, precisions))


def count_model(model: str, input_shape: str | None = None, args: str = "{}") -> dict[str, JsonValue]:
    """Parameters, multiply-adds and memory of a network or a file. Raises `UsageError` for what cannot be read."""
    from mcompress.compress.counting.rows import figures

    opened = open_model(model, input_shape, args)
    table = opened.table
    return {**figures(table), "file": opened.facts or None, "unknown_operators": [*unknown_names(table)], "assumed_macs": table.assumed_macs}


def count_lines(counted: Mapping[str, JsonValue]) -> list[str]:
    """What `count_model` found, for people."""
    unknown, file = counted["unknown_operators"], counted["file"]
    return [
        *([f"{file}"] if file else ()),
        *(f"{label:<40} {counted[key]:>20,}" for key, label in FIGURES.items()),
        *(f"not known, multiply-adds assumed: {name}" for name in (unknown if isinstance(unknown, list) else ())),
    ]


def unknown_names(table: OperatorTable) -> tuple[str, ...]:
    """Unknown operators as `operator (name)`."""
    return tuple(f"{operator.operation} ({operator.name})" for operator in table.unknown)


def _short_names(table: OperatorTable) -> dict[str, str]:
    from mcompress.export.tables.naming import short_names

    return short_names(table.operators)


def _unknown_lines(table: OperatorTable) -> list[str]:
    """What to say about unknown operators; nothing where all are known."""
    shown = _short_names(table)
    names = [f"{operator.operation} ({shown[operator.name]})" for operator in table.unknown]
    if not names:
        return []
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [
        f"{len(names)} of {len(table.operators)} operators are not known, and are counted like dense ones over the same memory "
        f"({table.assumed_macs:,} of {table.macs:,} multiply-adds are assumed): {', '.join(names[:NAMED])}{more}"
    ]


def open_model(model: str, shape: str | None, args: str) -> Opened:
    """The operator table of a network or a file. Raises `UsageError` for a name, a shape, arguments or a file that cannot be read."""
    from mcompress.export.tables import READERS, is_file, table_of_file

    if is_file(model):
        if args != "{}":
            raise UsageError(f"--args is {args}, but {model} is a file, which takes no arguments; leave it out")
        read = table_of_file(Path(model), None if shape is None else _shape(shape))
        facts = ", ".join(part for part in (read.facts.format, read.facts.version, read.facts.producer, read.facts.assumed) if part)
        return Opened(model, read.table, read.precisions, facts)
    if ":" not in model and (Path(model).suffix or Path(model).exists()):
        ends = " or ".join(READERS)
        raise UsageError(f"'{model}' is neither a network (mcompress list models, or package.module:function) nor a file that ends in {ends}")
    table, assumed = _table_of_network(model, shape or DEFAULT_INPUT, args)
    return Opened(model, table, None, assumed)


def _shape(shape: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in shape.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        what = "positive whole numbers with commas between them, the batch first"
        raise UsageError(f"--input is '{shape}'; it must be {what}, for example {DEFAULT_INPUT} (batch, channels, height, width)")
    return sizes


def _table_of_network(model: str, shape: str, args: str) -> tuple[OperatorTable, str]:
    """The table of a network on an input of `shape`, and what that input was taken to be if it is none of numbers with a fraction."""
    input_shape = _shape(shape)
    try:
        arguments = json.loads(args)
    except ValueError as error:
        raise UsageError(f"--args is not JSON: {error}; for example --args '{{\"blocks\": 6}}'") from error
    if not isinstance(arguments, dict):
        raise UsageError(f"--args is {args}; it must be a JSON object, for example '{{\"blocks\": 6}}'")
    import torch

    from mcompress.compress.cost import operator_table
    from mcompress.compress.models.build import build, build_meta
    from mcompress.compress.models.spec import ModelSpec

    spec = ModelSpec(model, arguments, (), input_shape)
    try:
        return operator_table(build_meta(spec, weightless=True), input_shape), ""
    except StageError as error:
        if math.prod(input_shape) > MOST_VALUES:
            raise _refused(model, shape, error) from error
    network = build(spec, weightless=True)
    try:  # the network may need numbers to find its way, and if it does not, the message is about the input alone
        return operator_table(network, input_shape), ""
    except StageError as error:
        try:  # a network that looks its input up, words for example, takes whole numbers only
            return operator_table(network, input_shape, torch.int64), "input of whole numbers"
        except StageError:
            raise _refused(model, shape, error) from error


def _refused(model: str, shape: str, error: StageError) -> UsageError:
    return UsageError(f"--input is '{shape}', which {model} does not take: {error}")
