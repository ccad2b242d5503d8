"""The result of one operator as ExecuTorch computes it: the network is cut behind it, written and executed.

The runtime in ExecuTorch's package cannot be asked for tensors inside a file. A shorter file, made of the same plan by the same steps, has the
operator's result as its output.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import ExportError
from mcompress.export.backend import BackendCall, FloatArray

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from mcompress.compress.quantize.plan import PrecisionPlan


def prefix_output(model: nn.Module, example: Tensor, plan: PrecisionPlan | None, operator: str, value: FloatArray) -> FloatArray:
    """What the operator named `operator` gives for the input `value` (float32, the shape of `example`), as float32 in PyTorch's layout.

    An INT8 result is what its integers stand for. An operator with a ReLU fused into it has none of its own: the ReLU's comes instead.
    Raises `ExportError` for a name that the graph does not have.
    """
    from mcompress.export.executorch import ADVICE, NAME, load
    from mcompress.export.executorch_check import trust

    with tempfile.TemporaryDirectory() as folder, BackendCall(NAME, f"write and run the network as far as '{operator}'", ADVICE):
        from mcompress.export.executorch_lowering import lower, rewritten

        path = Path(folder) / "prefix.pte"
        module = rewritten(model, example, plan)
        cut_behind(module, operator, fused=plan is not None and plan.precision_of(operator) == "int8")
        with path.open("wb") as stream:
            lower(module, example, stream)
        trust(path)
        return load(path, 1).run(value)


def cut_behind(module: fx.GraphModule, operator: str, *, fused: bool) -> None:
    """Make the result of `operator`, with `fused` of the ReLU behind it, the output of a graph that `rewritten` made, in place."""
    import torch

    from mcompress.export.executorch_half import CAST, HALF
    from mcompress.export.spelled_out import DEQUANTIZE, QUANTIZE, stands_for

    graph = module.graph
    doing = [node for node in graph.nodes if operator in stands_for(node)]
    if not doing:
        raise ExportError(f"there is no operator '{operator}' in the graph that is written; allowed are the plan's names")
    last = doing[-1]
    if fused and len(last.users) == 1 and next(iter(last.users)).target == torch.ops.aten.relu.default:
        last = next(iter(last.users))
    (output,) = [node for node in graph.nodes if node.op == "output"]
    quantize = next((reader for reader in last.users if reader.target == QUANTIZE), None)
    with graph.inserting_before(output):
        if last.meta.get(HALF):
            last = graph.call_function(CAST, (last, torch.float32))
        elif quantize is not None and fused:
            last = graph.call_function(DEQUANTIZE, (quantize, *quantize.args[1:]))
    output.args = ((last,),)
    graph.eliminate_dead_code()
    module.recompile()
