"""The program that every backend starts from, and the fake-quantized reference that every INT8 file must agree with.

Both come from `torch.export`. The reference is that graph with quantize/dequantize pairs in front of and behind every operator that the plan makes INT8, at
exactly the scales of the plan, so whatever a backend makes of it (integer kernels) computes with the same numbers. Annotated through PT2E
(torchao.quantization.pt2e), because ExecuTorch, LiteRT, Core ML and ONNX all read what PT2E writes.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY, QuantizationSpecBase
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import WEIGHT_MAX
from mcompress.compress.quantize.plan import INT8_MAX, INT8_MIN, ActivationRange, PrecisionPlan
from mcompress.errors import StageError



def export_program(model: nn.Module, example: Tensor) -> ExportedProgram:
    """`torch.export` of the network in evaluation mode at the shape of `example`, batch norms folded into the convolutions in front of them.

    Deterministic: the same network gives the same node names. Raises `StageError` when the network cannot be exported.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    try:
        program = torch.export.export(network, (example,))
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as problem:
        raise StageError(
            f"torch.export cannot trace {type(model).__name__} at input shape {tuple(example.shape)}: {type(problem).__name__}: {problem}. "
            "The network must be a fixed graph: no branches on tensor values, no Python side effects."
        ) from problem
    if not any(node.target in kinds.IDENTITY or node.target == torch.ops.aten.batch_norm.default for node in program.graph.nodes):
        return program
    graph_module = program.module(check_guards=False)
    if not isinstance(graph_module, fx.GraphModule):
        raise StageError(f"torch.export gave a {type(graph_module).__name__} instead of a graph module")
    _fuse_conv_bn_(graph_module)
    for node in list(graph_module.graph.nodes):
        if node.target in kinds.IDENTITY:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return torch.export.export(graph_module, (example,))


def graph_of(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph module whose parameters are `get_attr` nodes; operators keep their names."""
    module = program.module(check_guards=False)
    if not isinstance(module, fx.GraphModule):
        raise StageError(f"torch.export gave a {type(module).__name__} instead of a graph module")
    return module


def reference_program(model: nn.Module, example: Tensor, plan: PrecisionPlan, *, fold_weights: bool = True) -> fx.GraphModule:
    """The network as the plan says: INT8 operators between quantize/dequantize pairs at the plan's scales, all others float.

    `fold_weights` stores weights as int8 constants; without it they stay fp32 behind a quantize node (LiteRT's converter wants that).
    Raises `StageError` when the converted graph does not have exactly the INT8 operators of the plan.
    """
    graph_module = graph_of(export_program(model, example))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notices of torch inside torchao's passes
        prepared = prepare_pt2e(graph_module, PlanQuantizer(plan))
        with torch.no_grad():
            prepared(example)  # shows the weights to their observers; activations have fixed scales
        converted = convert_pt2e(prepared, fold_quantize=fold_weights)
    _share_quantize_nodes(converted.graph)
    converted.recompile()
    check_against_plan(converted, plan)
    return converted


class PlanQuantizer(Quantizer):
    """Annotates exactly what the plan says: nothing is matched by pattern, nothing is decided here."""

    def __init__(self, plan: PrecisionPlan) -> None:
        """Translate `plan`."""
        self._plan = plan
        self._int8 = plan.int8_names()

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Turn scalar operands of INT8 operators (`x * 0.2`) into constants, which can be quantized."""
        for node in list(model.graph.nodes):
            if node.name in self._int8 and node.target in kinds.ARITHMETIC and node.target != torch.ops.aten.leaky_relu.default:
                node.args = tuple(_constant(model, node, value) if isinstance(value, int | float) else value for value in node.args)
        model.recompile()
        return model

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Attach a fixed scale to every activation that an INT8 operator reads or writes, and per-channel scales to its weights."""
        for node in model.graph.nodes:
            if node.name not in self._int8 or node.op != "call_function":
                continue
            fused = kinds.fused_activation(node)
            fused_here = fused is not None and fused.name in self._int8
            inputs: dict[fx.Node, QuantizationSpecBase | None] = {}
            if not (kinds.is_fused(node) and node.all_input_nodes[0].name in self._int8):
                inputs = {source: self._spec(source) for source in kinds.activations(node)}
            if node.target in kinds.WEIGHTED:
                inputs[node.args[1]] = _weight_spec(kinds.WEIGHTED[node.target])
            elif node.target in kinds.ARITHMETIC:
                inputs.update({source: _constant_spec(model, source) for source in node.all_input_nodes if kinds.is_constant(source)})
            output = None if fused_here else self._spec(node)
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=inputs, output_qspec=output, _annotated=True)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check before conversion; `check_against_plan` counts after it."""

    def _spec(self, node: fx.Node) -> FixedQParamsQuantizationSpec:
        found = self._plan.ranges.get(node.name)
        if found is None:
            raise StageError(f"the precision plan has no range for '{node.name}', which an INT8 operator reads or writes; quantize the network again")
        return activation_spec(found)


def activation_spec(found: ActivationRange) -> FixedQParamsQuantizationSpec:
    """A fixed asymmetric INT8 scale, per tensor."""
    return FixedQParamsQuantizationSpec(
        dtype=torch.int8,
        scale=found.scale,
        zero_point=found.zero_point,
        quant_min=INT8_MIN,
        quant_max=INT8_MAX,
        qscheme=torch.per_tensor_affine,
    )


def _weight_spec(axis: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
        quant_min=-WEIGHT_MAX,
        quant_max=WEIGHT_MAX,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
    )


def _constant(model: fx.GraphModule, node: fx.Node, value: float) -> fx.Node:
    name = f"_constant_{node.name}"
    model.register_buffer(name, torch.tensor([float(value)]))
    with model.graph.inserting_before(node):
        constant = model.graph.get_attr(name)
    constant.meta["val"] = torch.tensor([float(value)])
    return constant


def _constant_spec(model: fx.GraphModule, node: fx.Node) -> FixedQParamsQuantizationSpec:
    """A scale at which the one value is an integer, +-127, so that quantizing it is exact."""
    found: object = model
    for part in str(node.target).split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise StageError(f"'{node.target}' is not a tensor")
    return activation_spec(ActivationRange(max(abs(float(found.reshape(-1)[0])), 1e-12) / WEIGHT_MAX, 0))


def _share_quantize_nodes(graph: fx.Graph) -> None:
    """Merge quantize nodes of one tensor with the same parameters: two readers of one tensor were annotated apart."""
    seen: dict[tuple[object, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.target != torch.ops.quantized_decomposed.quantize_per_tensor.default:
            continue
        first = seen.setdefault(node.args, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


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
    """Raise `StageError` naming the operators whose precision in `module` is not the plan's."""
    found, planned = int8_operators(module.graph), set(plan.int8_names())
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
