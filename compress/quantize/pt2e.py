"""The precision plan in PT2E's terms: a quantizer that annotates exactly what the plan says, and the conversion with it.

Apart from `program.py`, because torchao takes a second to import and only conversions need it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY, QuantizationSpecBase
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import WEIGHT_MAX
from mcompress.compress.quantize.plan import INT8_MAX, INT8_MIN, ActivationRange, PrecisionPlan
from mcompress.errors import StageError


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold every batch norm into the convolution in front of it, in place."""
    _fuse_conv_bn_(module)


def convert(module: fx.GraphModule, examples: tuple[Tensor, ...], plan: PrecisionPlan, *, fold_weights: bool) -> fx.GraphModule:
    """Insert quantize/dequantize pairs at the plan's scales."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation notices of torch inside torchao's passes
        prepared = prepare_pt2e(module, PlanQuantizer(plan))
        with torch.no_grad():
            prepared(*examples)  # shows the weights to their observers; activations have fixed scales
        converted: fx.GraphModule = convert_pt2e(prepared, fold_quantize=fold_weights)
    _share_quantize_nodes(converted.graph)
    converted.recompile()
    return converted


class PlanQuantizer(Quantizer):  # type: ignore[misc]  # torchao ships no types
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
    """A fixed INT8 scale and zero point, per tensor."""
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
