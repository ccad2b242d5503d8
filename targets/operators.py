"""OperatorTable: what a model costs, one row per fused operator. Built by `mcompress.compress.cost`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "convolution",
    "depthwise_convolution",
    "grouped_convolution",
    "transposed_convolution",
    "matmul",
    "attention",
    "normalization",
    "elementwise",
    "activation",
    "pooling",
    "resize",
    "shuffle",
    "concatenate",
    "reduction",
    "copy",
    "other",
]


@dataclass(frozen=True)
class Operator:
    """One operator as a runtime executes it: a convolution with the activation behind it is one row.

    Element counts, not bytes: a precision turns them into bytes. `live_elements` is everything that must exist while the operator runs.
    """

    name: str
    """Module path and position, for example `blocks.0.scales.1` or `add_3`."""
    kind: Kind
    operation: str
    """The ATen operator, for example `convolution`."""
    fused: tuple[str, ...]
    """ATen operators that run inside this one."""
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    groups: int
    kernel: tuple[int, ...]
    stride: int
    macs: int
    """Multiply-adds of exact work."""
    macs_output_convention: int
    """As published GAN tables count: transposed convolutions by the output size."""
    elements_read: int
    elements_written: int
    weight_elements: int
    live_elements: int


@dataclass(frozen=True)
class OperatorTable:
    """All operators of one forward pass in execution order, and the parameter count."""

    operators: tuple[Operator, ...]
    params: int

    @property
    def macs(self) -> int:
        """Multiply-adds, exact work, attention products included."""
        return sum(operator.macs for operator in self.operators)

    @property
    def macs_output_convention(self) -> int:
        """Multiply-adds in the convention of published GAN tables."""
        return sum(operator.macs_output_convention for operator in self.operators)

    @property
    def peak_activation_elements(self) -> int:
        """Largest number of live activation elements at any operator."""
        return max((operator.live_elements for operator in self.operators), default=0)

    @property
    def activation_traffic_elements(self) -> int:
        """Activation elements read and written over the whole pass."""
        return sum(operator.elements_read + operator.elements_written for operator in self.operators)
