"""Results of operators as ExecuTorch computes them: of one, the network is cut behind it, written and executed; of all, in one longer file.

The runtime in ExecuTorch's package cannot be asked for tensors inside a file. A shorter file, made of the same plan by the same steps, has the
operator's result as its output; a file with many outputs takes about as long to write as the network's own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import ExportError
from mcompress.export.backend import BackendCall, FloatArray

if TYPE_CHECKING:
    from torch import fx, nn

    from mcompress.compress.quantize.plan import PrecisionPlan


def prefix_output(model: nn.Module, plan: PrecisionPlan | None, operator: str, inputs: Sequence[FloatArray]) -> FloatArray:
    """What the operator named `operator` gives for the network's `inputs` (float32), as float32 in PyTorch's layout.

    An INT8 result is what its integers stand for. An operator with a ReLU fused into it has none of its own: the ReLU's comes instead.
    Raises `ExportError` for a name that the graph does not have.
    """
    return _outputs(model, plan, [operator], inputs, f"write and run the network as far as '{operator}'")[operator]


def operator_outputs(model: nn.Module, plan: PrecisionPlan | None, operators: Sequence[str], inputs: Sequence[FloatArray]) -> dict[str, FloatArray]:
    """The same for all of `operators`, from one file of which each result is an output; all of them are in memory at once."""
    return _outputs(model, plan, operators, inputs, "write and run the network with the results of its operators as outputs")


def _outputs(
    model: nn.Module, plan: PrecisionPlan | None, operators: Sequence[str], inputs: Sequence[FloatArray], what: str
) -> dict[str, FloatArray]:
    from mcompress.export.executorch import ADVICE, NAME, load
    from mcompress.export.executorch_check import trust

    with tempfile.TemporaryDirectory() as folder, BackendCall(NAME, what, ADVICE):
        import torch

        from mcompress.export.executorch_lowering import lower, rewritten

        path, examples = Path(folder) / "results.pte", tuple(torch.from_numpy(value) for value in inputs)
        module = rewritten(model, examples, plan)
        give_results_of(module, {name: plan is not None and plan.precision_of(name) == "int8" for name in operators})
        with path.open("wb") as stream:
            lower(module, examples, stream)
        trust(path)
        return dict(zip(operators, load(path, 1).run_for_all(*inputs), strict=True))


def give_results_of(module: fx.GraphModule, operators: Mapping[str, bool]) -> None:
    """Make the results of `operators` the outputs of a graph that `rewritten` made, in place; an operator -> whether its result is INT8.

    Of an INT8 operator it is the result of the ReLU behind it, where that alone reads it: the two are one.
    """
    from torch import fx

    graph = module.graph
    (output,) = [node for node in graph.nodes if node.op == "output"]
    output.args = (tuple(_result_of(graph, name, output, fused=fused) for name, fused in operators.items()),)
    graph.set_codegen(fx.graph.CodeGen())  # the exported program's own says that there is one output
    graph.eliminate_dead_code()
    module.recompile()


def _result_of(graph: fx.Graph, operator: str, output: fx.Node, *, fused: bool) -> fx.Node:
    import torch

    from mcompress.export.executorch_half import CAST, HALF
    from mcompress.export.spelled_out import DEQUANTIZE, QUANTIZE, stands_for

    doing: list[fx.Node] = [node for node in graph.nodes if operator in stands_for(node)]
    if not doing:
        raise ExportError(f"there is no operator '{operator}' in the graph that is written; allowed are the plan's names")
    last = doing[-1]
    if fused and len(last.users) == 1 and next(iter(last.users)).target == torch.ops.aten.relu.default:
        last = next(iter(last.users))
    quantize = next((reader for reader in last.users if reader.target == QUANTIZE), None)
    with graph.inserting_before(output):
        if last.meta.get(HALF):
            last = graph.call_function(CAST, (last, torch.float32))
        elif quantize is not None and fused:
            last = graph.call_function(DEQUANTIZE, (quantize, *quantize.args[1:]))
    return last
