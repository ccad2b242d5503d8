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

CLAMPS = frozenset(("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"))
"""Activations that only limit the range."""
ACTIVATIONS = CLAMPS | frozenset(
    ("leaky_relu", "prelu", "sigmoid", "tanh", "gelu", "silu", "mish", "elu", "celu", "selu", "softplus", "hardswish", "hardsigmoid", "threshold",
     "softshrink", "hardshrink", "log_sigmoid", "rrelu_with_noise")
)  # fmt: skip
"""Activations by ATen's names."""
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
"""Layers of recurrent networks, by torch's names."""
Runtime = Literal["xnnpack", "litert", "onnxruntime"]
"""Runtimes that compute only some activations inside an operator; those that are not named here (Core ML, QNN, GPU delegates) take all."""
_CLAMPING: tuple[Kind, ...] = (
    "convolution", "depthwise_convolution", "grouped_convolution", "transposed_convolution", "matmul", "elementwise", "pooling",
)  # fmt: skip
_OF_CONVOLUTIONS = CLAMPS | {"leaky_relu", "sigmoid", "tanh", "hardsigmoid"}
FUSES: dict[tuple[Runtime, Kind], frozenset[str]] = {
    # output_min and output_max are all that its operators take (xnn_subgraph_fusion)
    **{("xnnpack", kind): CLAMPS for kind in _CLAMPING},
    # ActivationFunctionType has TANH and SIGN_BIT as well, which no kernel of today takes
    **{("litert", kind): CLAMPS for kind in _CLAMPING},
    # FusedConv and FusedGemm, as ONNX Runtime 1.31 writes optimized float files: not behind transposed convolutions, sums and poolings
    ("onnxruntime", "convolution"): _OF_CONVOLUTIONS,
    ("onnxruntime", "depthwise_convolution"): _OF_CONVOLUTIONS,
    ("onnxruntime", "grouped_convolution"): _OF_CONVOLUTIONS,
    ("onnxruntime", "matmul"): frozenset(("relu", "leaky_relu", "sigmoid", "tanh", "hardsigmoid", "elu")),
}
"""Runtime and kind of operator -> activations that are computed inside it in a float file. In a quantized file clamps are no work behind anything."""


@dataclass(frozen=True)
class Operator:
    """One operator as a runtime executes it: a convolution with the activation behind it is one row.

    Element counts, not bytes: a precision turns them into bytes. `live_elements` is everything that must exist while the operator runs. Shapes are in
    PyTorch's order (batch, channels, height, width), whatever the order in a file; a linear layer's are (rows, features), a batched product's and
    attention's (batch x heads, rows, columns), and a reduction keeps the axes that it reduces with size 1.

    Kind `other` is an operator that the table does not know: `operation` names it, and its multiply-adds are those of a dense operator over the same
    memory, an assumption (`mcompress.compress.counting.steps.assumed_macs`) and never zero.
    """

    name: str
    """Module path and position, for example `blocks.0.scales.1` or `add_3`."""
    kind: Kind
    operation: str
    """The operator that the row is: ATen's name where it has one, for example `convolution`, else the name in the file."""
    fused: tuple[str, ...]
    """Operators that run inside this one, by ATen's names: a folded normalization, an activation, the parts of attention."""
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
    channel_axis: int = 1
    """Axis of the shapes that holds the channels: 1, or -1 where they come last (matrix products, attention, and what is computed between them).
    A copy that moves the channels has both shapes in the order in which it writes."""
    sources: tuple[tuple[int, int], ...] | None = None
    """(index of the row that makes it, elements) of every activation that is read; those of the network's inputs are left out. None in a table that
    was put together without it: everything comes from the row before."""
    weights_of: str = ""
    """Name of the earlier row whose weights these are, where a module is called twice or a matrix is shared; empty where they are its own."""
    weights_read: int | None = None
    """How many of the weights one inference reads, where those are not all of them: of a table, what is looked up."""

    @property
    def moved_elements(self) -> int:
        """Everything that one inference reads and writes: activations, and weights as often as they are read."""
        return self.elements_read + self.elements_written + (self.weight_elements if self.weights_read is None else self.weights_read)


@dataclass(frozen=True)
class OperatorTable:
    """All operators of one forward pass in execution order, and the parameter count."""

    operators: tuple[Operator, ...]
    params: int
    planned_peak_elements: int = 0
    """Size of the arena in which TFLite's planner would put all activations (offsets aligned); 0 where nothing was planned."""

    @property
    def unknown(self) -> tuple[Operator, ...]:
        """The operators that the table does not know; their multiply-adds are assumed."""
        return tuple(operator for operator in self.operators if operator.kind == "other")

    @property
    def recurrent(self) -> tuple[Operator, ...]:
        """Layers of recurrent networks: a matrix product over the whole sequence in the table; a runtime takes its elements one after the other."""
        return tuple(operator for operator in self.operators if operator.operation in RECURRENT)

    @property
    def assumed_macs(self) -> int:
        """Multiply-adds of the unknown operators: the share of `macs` that is assumed."""
        return sum(operator.macs for operator in self.unknown)

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
