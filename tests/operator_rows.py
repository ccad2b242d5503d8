"""Rows and tables of operators made by hand or at random, and what of a row must be the same wherever it was counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mcompress.targets.operators import Kind, Operator, OperatorTable

KINDS: tuple[Kind, ...] = (
    "convolution", "depthwise_convolution", "grouped_convolution", "elementwise", "concatenate", "shuffle", "other", "normalization",
)  # fmt: skip


def row(
    kind: Kind = "convolution", inputs: int = 32, outputs: int = 64, side: int = 50, kernel: int = 3, groups: int = 1, name: str = "o",
    operation: str = "convolution",
) -> Operator:  # fmt: skip
    """An operator from so many channels of square pictures to so many; what does not multiply has neither work nor weights."""
    multiplies = kind.endswith("convolution") or kind in ("matmul", "attention")
    weights = outputs * inputs // groups * kernel**2 if multiplies else 0
    return Operator(
        name=name, kind=kind, operation=operation, fused=(), input_shape=(1, inputs, side, side), output_shape=(1, outputs, side, side),
        groups=groups, kernel=(kernel, kernel), stride=1, macs=weights * side**2, macs_output_convention=weights * side**2,
        elements_read=inputs * side**2, elements_written=outputs * side**2, weight_elements=weights, live_elements=(inputs + outputs) * side**2,
    )  # fmt: skip


def pixel_shuffle(channels: int, scale: int, side: int, name: str = "shuffle") -> Operator:
    """To so many channels of pictures that are `scale` times as large; `side` is the smaller one."""
    moved = row("shuffle", channels * scale**2, channels * scale**2, side, name=name, operation="pixel_shuffle")
    return replace(moved, output_shape=(1, channels, side * scale, side * scale), kernel=())


def network(*rows: Operator) -> OperatorTable:
    """A table of these rows, named o0, o1, ... in their order."""
    return OperatorTable(tuple(replace(operator, name=f"o{index}") for index, operator in enumerate(rows)), 0)


def random_tables(count: int, seed: int = 0, most: int = 30, least: int = 1) -> list[OperatorTable]:
    """Tables of chains with skips; one in eight says nothing of its edges."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        rows: list[Operator] = []
        known = rng.random() > 1 / 8
        for index in range(int(rng.integers(least, most))):
            kind: Kind = rng.choice(KINDS)
            channels = int(rng.integers(1, 40)) * 4
            groups = channels if kind == "depthwise_convolution" else 4 if kind == "grouped_convolution" else 1
            outputs = channels if groups > 1 else int(rng.integers(1, 300))
            made = row(kind, channels, outputs, int(rng.integers(1, 90)), int(rng.choice([1, 3, 7])), groups, operation=f"{kind}_op")
            makers = () if index == 0 else (index - 1,) if rng.random() < 0.7 else (index - 1, int(rng.integers(index)))
            read = tuple((maker, rows[maker].elements_written) for maker in dict.fromkeys(makers))
            rows.append(replace(made, sources=read if known else None))
        found.append(network(*rows))
    return found


Row = tuple[object, ...]


def row_of(operator: Operator) -> Row:
    o = operator
    return (
        *(o.kind, o.macs, o.macs_output_convention, o.input_shape, o.output_shape, o.groups, o.kernel, o.stride),
        *(o.weight_elements, o.elements_read, o.elements_written),
    )
