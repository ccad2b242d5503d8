"""What a model costs and how long it takes on a device: a network by name or import path, or an .onnx or .tflite file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from mcompress.errors import UsageError
from mcompress.opening import Opened, open_model
from mcompress.targets.device_files import load_device
from mcompress.targets.latency import OperatorLatency, Precisions, WholeLatency, estimate_in_parts
from mcompress.targets.operators import OperatorTable
from mcompress.targets.speeds import PRECISIONS

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
class Estimate:
    """The estimated latency of a model, and where the milliseconds go."""

    model: Opened
    whole: WholeLatency

    def top(self, count: int) -> list[tuple[OperatorLatency, str, str]]:
        """The `count` slowest operators with their kind and what runs inside them, slowest first."""
        paired = zip(self.whole.operators, self.model.table.operators, strict=True)
        slowest = sorted(paired, key=lambda pair: -pair[0].latency_ms)[:count]
        return [(row, operator.kind, "+".join(operator.fused)) for row, operator in slowest]

    def as_json(self, count: int) -> dict[str, JsonValue]:
        """Everything that the command prints, milliseconds."""
        return {
            "model": self.model.name,
            "file": self.model.facts or None,
            "latency": self.whole.latency.model_dump(mode="json"),
            "fixed_ms": self.whole.fixed_ms,
            "operators": len(self.whole.operators),
            "precisions": dict(Counter(str(row.precision) for row in self.whole.operators)),
            "unknown_operators": [*unknown_names(self.model.table)],
            "assumed_macs": self.model.table.assumed_macs,
            "recurrent_operators": [operator.name for operator in self.model.table.recurrent],
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
        latency, total, shown = self.whole.latency, self.whole.latency.value or 1.0, _short_names(self.model.table)
        file = f" ({self.model.facts})" if self.model.facts else ""
        found = [
            f"{latency.value:.3g} {latency.unit} estimated on {latency.on} for {self.model.name}{file}",
            f"error: {latency.band}",
            f"from:  {latency.source}",
            "",
            f"{'ms':>9} {'share':>6} {'compute':>9} {'memory':>9} {'weights':>9} {'other':>9}  unit  precision  operator",
        ]
        for row, kind, fused in self.top(count):
            share = row.latency_ms / total
            other_ms = row.dispatch_ms + row.boundary_ms + row.apart_ms
            times = " ".join(f"{value:>9.4f}" for value in (row.compute_ms, row.memory_ms, row.stream_ms, other_ms))
            what = f"{kind}{f' + {fused}' if fused else ''}"
            found.append(f"{row.latency_ms:>9.4f} {share:>6.1%} {times}  {row.unit:<5} {row.precision:<10} {shown[row.name]} ({what})")
        if len(self.whole.operators) > count:
            others_ms = total - self.whole.fixed_ms - sum(row.latency_ms for row, _, _ in self.top(count))
            more = len(self.whole.operators) - count
            found.append(f"{others_ms:>9.4f} {others_ms / total:>6.1%} for {more} more operator{'s' if more > 1 else ''}")
        if self.whole.fixed_ms:
            found.append(f"{self.whole.fixed_ms:>9.4f} {self.whole.fixed_ms / total:>6.1%} fixed, whatever the operators")
        return [*found, *_assumed_lines(self.model.table)]


@dataclass(frozen=True)
class Counted:
    """What a model costs, whatever it runs on."""

    model: Opened

    @property
    def figures(self) -> dict[str, int]:
        """The keys of `FIGURES`, with their amounts."""
        from mcompress.compress.counting.rows import figures

        return figures(self.model.table)

    def as_json(self) -> dict[str, JsonValue]:
        """Everything that the command prints."""
        table = self.model.table
        return {**self.figures, "file": self.model.facts or None, "unknown_operators": [*unknown_names(table)], "assumed_macs": table.assumed_macs}

    def lines(self) -> list[str]:
        """The same for people."""
        table, figures = self.model.table, self.figures
        assumed = [_figure("  of which assumed", table.assumed_macs)] if table.unknown else []
        return [
            *([self.model.facts] if self.model.facts else ()),
            *(line for key, label in FIGURES.items() for line in (_figure(label, figures[key]), *(assumed if key == "macs" else ()))),
            *([f"not known, multiply-adds assumed: {_named(unknown_names(table))}"] if table.unknown else ()),
        ]


def estimate_model(
    model: str,
    device: str,
    unit: str | None = None,
    precision: str | None = None,
    *,
    inputs: Sequence[str] = (),
    args: str = "{}",
) -> Estimate:
    """Estimated latency of a network or a file on a unit of a device; the preferred unit where none is given.

    A file has its precision; `precision` takes its place where it is given. Raises
    `UsageError` for what cannot be read, and what `estimate` raises.
    """
    chosen = load_device(device)
    known = chosen.unit(unit)
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision is '{precision}'; it can be {', '.join(PRECISIONS)}")
    opened = open_model(model, inputs, args)
    precisions: Precisions
    if precision is not None:
        precisions = next(name for name in PRECISIONS if name == precision)
    elif opened.precisions is not None:
        precisions = opened.precisions
    else:
        takes = ", ".join(known.runs)
        raise UsageError(f"{model} has no precision of its own; give one with --precision: {known.name} of {chosen.name} takes {takes}")
    return Estimate(opened, estimate_in_parts(opened.table, chosen, known.name, precisions))


def count_model(model: str, inputs: Sequence[str] = (), args: str = "{}") -> Counted:
    """Parameters, multiply-adds and memory of a network or a file. Raises `UsageError` for what cannot be read."""
    return Counted(open_model(model, inputs, args))


def _figure(label: str, value: int) -> str:
    return f"{label:<40} {value:>20,}"


def unknown_names(table: OperatorTable) -> tuple[str, ...]:
    """Unknown operators as `operator (name)`."""
    return tuple(f"{operator.operation} ({operator.name})" for operator in table.unknown)


def _short_names(table: OperatorTable) -> dict[str, str]:
    from mcompress.export.tables.naming import short_names

    return short_names(table.operators)


def _assumed_lines(table: OperatorTable) -> list[str]:
    """What is assumed of unknown operators, with their names, and of recurrent ones; nothing where there are none."""
    shown = _short_names(table)
    found = []
    if table.unknown:
        names = [f"{operator.operation} ({shown[operator.name]})" for operator in table.unknown]
        amount = f"{table.assumed_macs:,} of {table.macs:,} multiply-adds"
        found.append(f"assumed: {amount}, those of dense operators over the same memory, for {_named(names)}")
    if table.recurrent:
        names = [f"{operator.operation} ({shown[operator.name]})" for operator in table.recurrent]
        how = "priced as one matrix product over the whole sequence; a runtime goes step by step, which takes longer; not validated"
        found.append(f"recurrent: {_named(names)}: {how}")
    return found


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
