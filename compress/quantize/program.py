"""The program that every backend starts from, and the fake-quantized reference that every INT8 file must agree with.

Both come from `torch.export`. The reference is that graph with quantize/dequantize pairs in front of and behind every operator that the plan makes
INT8, at exactly the scales of the plan, so whatever a backend makes of it (integer kernels) computes with the same numbers. Annotated through PT2E
(torchao.quantization.pt2e), because ExecuTorch, LiteRT, Core ML and ONNX all read what PT2E writes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.splits import SPLITTING, spell_out_splits
from mcompress.compress.quantize.tidying import drop_checks, is_tidy, tidy
from mcompress.errors import StageError


def export_program(model: nn.Module, *examples: Tensor, share_weights: bool = False) -> ExportedProgram:
    """`torch.export` of the network in evaluation mode at the shapes of `examples`, batch norms folded into the convolutions in front of
    them, splits spelled out as slices, without what changes nothing or is computed of nothing (`tidying`).

    With `share_weights` the program's weights are the network's own memory, which must not change while the program is in use, and whose values
    must not be changed through it; without, they are a copy. Deterministic: the same network gives the same node names. Raises `StageError` when
    the network cannot be exported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch copies the description of a graph's inputs by a name that it has deprecated
        network = copy.deepcopy(model, shared_tensors(model) if share_weights else None).eval().requires_grad_(False)
    try:
        program = torch.export.export(network, examples)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as problem:
        shapes = " and ".join(str(tuple(one.shape)) for one in examples)
        raise StageError(
            f"torch.export cannot trace {type(model).__name__} at input shape {shapes}: {type(problem).__name__}: {problem}. "
            "The network must be a fixed graph: no branches on tensor values, no Python side effects."
        ) from problem
    targets = {node.target for node in program.graph.nodes}
    graph_module = graph_of(program)
    if not targets & (kinds.IDENTITY | SPLITTING | {torch.ops.aten.batch_norm.default}) and is_tidy(graph_module.graph):
        return _spelled_out(_without_changes_in_place(program, examples))
    if torch.ops.aten.batch_norm.default in targets:
        from mcompress.compress.quantize.pt2e import fold_batch_norms  # imports torchao, see there

        fold_batch_norms(graph_module)
    spell_out_splits(graph_module.graph)
    for node in list(graph_module.graph.nodes):
        if node.target in kinds.IDENTITY:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph_module.graph.erase_node(node)
    tidy(graph_module)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return _spelled_out(_without_changes_in_place(torch.export.export(graph_module, examples), examples))


def shared_tensors(model: nn.Module) -> dict[int, Tensor]:
    """What a deep copy takes instead of copies of the network's tensors (its memo): other tensors in the same memory, which learn nothing."""
    found: dict[int, Tensor] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()}
    return found | {id(one): one.detach() for one in model.buffers()}


def _without_changes_in_place(program: ExportedProgram, examples: tuple[Tensor, ...]) -> ExportedProgram:
    """Write operators that change a tensor in place (`relu_`) as those that make a new one, which whoever reads the tensor afterwards reads.

    What a program writes into its own input is nobody's: it is left out.
    """
    if not any(_changes_in_place(node) for node in program.graph.nodes):
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as above
        module = graph_of(program.run_decompositions({}))
    for node in list(module.graph.nodes):
        if node.target == torch.ops.aten.copy_.default and node.args[0].op == "placeholder":
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)
    module.recompile()
    return torch.export.export(module, examples)


def _changes_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _spelled_out(program: ExportedProgram) -> ExportedProgram:
    """Write out the default stride of max pooling, which ExecuTorch and coremltools expect to find, and leave checks of types out."""
    drop_checks(program.graph)
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.max_pool2d.default and (len(node.args) == 2 or not node.args[2]):
            node.args = (*node.args[:2], node.args[1], *node.args[3:])
    program.graph_module.recompile()
    return program


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph module whose parameters are `get_attr` nodes; operators keep their names."""
    module = program.module(check_guards=False)
    if not isinstance(module, fx.GraphModule):
        raise StageError(f"torch.export gave a {type(module).__name__} instead of a graph module")
    return module


def as_inputs(examples: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a network is called with; a tensor alone is its only input."""
    return (examples,) if isinstance(examples, Tensor) else tuple(examples)


def with_parameters(model: nn.Module, examples: Tensor | Sequence[Tensor], parameters: Mapping[str, Tensor]) -> fx.GraphModule:
    """The network's graph with other values of some parameters; `export_program` of it has the same operators by the same names.

    Raises `StageError` for a parameter that the graph does not have, or has in another shape.
    """
    module = graph_of(export_program(model, *as_inputs(examples)))
    state = module.state_dict()
    for name, value in parameters.items():
        if name not in state or state[name].shape != value.shape:
            there = f"has it in shape {tuple(state[name].shape)}" if name in state else "has no such parameter"
            raise StageError(f"the recovered parameter '{name}' has shape {tuple(value.shape)}; the network {there}. Quantize the network again")
    module.load_state_dict({**state, **parameters})
    return module


def reference_program(model: nn.Module, examples: Tensor | Sequence[Tensor], plan: PrecisionPlan, *, fold_weights: bool = True) -> fx.GraphModule:
    """The network as the plan says: INT8 operators between quantize/dequantize pairs at the plan's scales, all others float.

    `fold_weights` stores weights as int8 constants; without it they stay fp32 behind a quantize node (LiteRT's converter wants that).
    Raises `StageError` when the converted graph does not have exactly the INT8 operators of the plan.
    """
    from mcompress.compress.quantize.pt2e import convert  # imports torchao, see there

    converted = convert(graph_of(export_program(model, *as_inputs(examples))), as_inputs(examples), plan, fold_weights=fold_weights)
    check_against_plan(converted, plan)
    return converted


def int8_operators(graph: fx.Graph) -> set[str]:
    """Names of the operators that read only dequantized activations and whose result (behind a fused ReLU) is only ever quantized."""
    found: set[str] = set()
    for node in kinds.operators(graph):
        if _is_quantization(node) or kinds.group_of_target(node) is None:
            continue
        sources = [source for source in node.all_input_nodes if source is not _bias(node)]
        end = next(iter(node.users)) if len(node.users) == 1 and next(iter(node.users)).target == torch.ops.aten.relu.default else node
        reads = bool(sources) and all(_is_dequantize(source) for source in sources)
        if reads and end.users and all(_is_quantize(user) for user in end.users):
            found.add(node.name)
            if end is not node:
                found.add(end.name)
    return found


def check_against_plan(module: fx.GraphModule, plan: PrecisionPlan) -> None:
    """Raise `StageError` naming the operators whose precision in `module` is not the plan's.

    An operator without weights that is float in the plan and stands between INT8 operators looks like an INT8 one: what every runtime makes of it,
    each backend reads back from its file.
    """
    weightless = {node.name for node in kinds.operators(module.graph) if kinds.group_of_target(node) != "weighted"}
    planned = set(plan.int8_names())
    found = int8_operators(module.graph) - (weightless - planned)
    if found != planned:
        raise StageError(
            f"the quantized graph does not match the precision plan ({len(found)} INT8 operators instead of {len(planned)}). "
            f"Planned but not INT8: {sorted(planned - found) or 'none'}; INT8 but not planned: {sorted(found - planned) or 'none'}. "
            "Quantize the network again; if it stays so, keep these operators in float."
        )


def _bias(node: fx.Node) -> object:
    return node.args[2] if node.target in kinds.WEIGHTED and len(node.args) > 2 else None


def _is_quantization(node: fx.Node) -> bool:
    return _is_quantize(node) or _is_dequantize(node)


def _is_quantize(node: fx.Node) -> bool:
    return node.target in {
        torch.ops.quantized_decomposed.quantize_per_tensor.default,
        torch.ops.quantized_decomposed.quantize_per_channel.default,
    }


def _is_dequantize(node: fx.Node) -> bool:
    return node.target in {
        torch.ops.quantized_decomposed.dequantize_per_tensor.default,
        torch.ops.quantized_decomposed.dequantize_per_channel.default,
    }
