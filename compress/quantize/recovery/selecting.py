"""The network of one plan: recovered parameters where operators are INT8, and unrounded ones where they are not."""

from __future__ import annotations

from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.errors import StageError


def for_plan(twin: fx.GraphModule, rounded: fx.GraphModule, plan: PrecisionPlan) -> fx.GraphModule:
    """`rounded` with the parameters of `twin` for every operator that `plan` computes in float. No tensor is copied.

    Rounding weights to INT8's grid, and what biases make good for it, only costs where weights stay float. Both have the same operators and, in
    float, the same activations; a constant that an INT8 operator reads as well stays as it is in `rounded`.
    """
    int8 = plan.int8_names()
    found: dict[str, Tensor] = {}
    for node in rounded.graph.nodes:
        if not kinds.is_constant(node):
            continue
        source = rounded if any(user.name in int8 for user in node.users) else twin
        value = kinds.constant_of(source, node)
        if value is None:
            raise StageError(f"'{node.target}' is not a tensor of the network; this is a bug in mcompress")
        found[str(node.target)] = value
    return fx.GraphModule(found, rounded.graph)
