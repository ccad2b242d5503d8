"""From a network and its precision plan to the bytes of a .pte file: the graph as ExecuTorch needs it, and what is added to its XNNPACK delegate.

ExecuTorch's partitioner and serializer are extended where they have room for it: a cast between fp32 and half becomes XNNPACK's own conversion, and
LeakyReLU runs on INT8 tensors, as XNNPACK can within limits of its integer arithmetic. The file needs nothing that a stock runtime has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO
from unittest.mock import patch

import torch
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor, register_node_visitor
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.generic_node_configs import GenericNodePartitionerConfig, LeakyReLUConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNConvert, XNNGraph, XNNStaticReshape, XNode
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.dialects._ops import ops as exir_ops
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.traceback import NodeSource

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.export.executorch_file import INPUT_NAMES, input_names
from mcompress.export.executorch_half import compute_in_half, separate_dequantize_nodes
from mcompress.export.executorch_moves import keep_moves_in_delegate
from mcompress.export.executorch_spellings import SPELLINGS
from mcompress.export.spelled_out import NORMS, REFLECTIONS, STANDS_FOR, spell_out

LEAST_RATIO, GREATEST_RATIO = 2.0**-8, 2.0**7
"""XNNPACK's INT8 LeakyReLU multiplies by integers of 16 bits, 8 of them behind the point: input scale / output scale, also times the slope."""
DEFAULT_SLOPE = 0.01


def rewritten(model: nn.Module, examples: tuple[Tensor, ...], plan: PrecisionPlan | None) -> fx.GraphModule:
    """The graph that is written: INT8 between quantize and dequantize nodes, fp16 on half tensors, moves in terms that the delegate has.

    Every node says in its meta (`executorch_half.stands_for`) which operators of the exported program it does the work of.
    """
    program = graph_of(export_program(model, *examples, share_weights=True))
    operators = {node.name for node in kinds.operators(program.graph)}
    module = program if plan is None else reference_program(model, examples, plan)
    for node in module.graph.nodes:
        if node.name in operators:
            node.meta[STANDS_FOR] = (node.name,)
    spell_out(module, REFLECTIONS, pairs=True)
    spell_out(module, {**NORMS, **SPELLINGS}, pairs=False)  # they are never INT8, whatever stands around them
    keep_moves_in_delegate(module)
    if plan is not None:
        compute_in_half(module, plan.precision_of)
        separate_dequantize_nodes(module.graph)
        module.recompile()
    return module


def lower(module: fx.GraphModule, examples: tuple[Tensor, ...], stream: BinaryIO, names: Sequence[str] = ()) -> None:
    """Write the .pte file of a rewritten graph. The format has no place for the `names` of inputs: it says them where a reader would take them to be
    others (`input_names`).
    """
    configs = [config for config in ALL_PARTITIONER_CONFIGS if config is not LeakyReLUConfig]
    partitioner = XnnpackPartitioner(configs=[*configs, _CastConfig, _LeakyReLUConfig, _PixelsConfig, _ImageConfig])
    said = {INPUT_NAMES: ",".join(names)} if names and tuple(names) != input_names("", len(names)) else None
    with _history_shared():
        program = torch.export.export(module, examples)
        to_edge_transform_and_lower(program, partitioner=[partitioner], constant_methods=said).to_executorch().write_to_file(stream)


@contextmanager
def _history_shared() -> Iterator[None]:
    """torch notes of every node what it was made from, and in each of dozens of passes copies what that one was made from, and so on: a seventh
    of the time for a network of a thousand operators. Notes are never changed, so a copy can be the note itself.
    """
    with patch.object(NodeSource, "__deepcopy__", lambda note, _memo: note, create=True):
        yield


def leaky_relu_fits(scale_in: float, scale_out: float, slope: float) -> bool:
    """Whether XNNPACK's INT8 LeakyReLU can compute it."""
    ratio = scale_in / scale_out
    return LEAST_RATIO <= ratio <= GREATEST_RATIO and LEAST_RATIO <= abs(slope * ratio) < GREATEST_RATIO


class _CastConfig(GenericNodePartitionerConfig):  # type: ignore[misc]  # executorch ships no types
    """Takes every cast between fp32 and half into the delegate."""

    target_name = "cast.default"

    def get_node_and_deps(self, node: fx.Node, ep: ExportedProgram) -> list[fx.Node]:
        """The cast alone."""
        del ep
        return [node]

    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        """Floating point."""
        return [ConfigPrecisionType.FP32]


class _PixelsConfig(GenericNodePartitionerConfig):  # type: ignore[misc]
    """An image as rows of pixels, on tensors of any type."""

    target_name = "pixels.default"

    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        """Floating point and INT8."""
        return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]


class _ImageConfig(_PixelsConfig):
    """Rows of pixels as an image, on tensors of any type."""

    target_name = "image.default"


class _LeakyReLUConfig(LeakyReLUConfig):  # type: ignore[misc]
    """LeakyReLU on INT8 tensors where XNNPACK's arithmetic can hold its factors, in floating point otherwise."""

    def get_node_and_deps(self, node: fx.Node, ep: ExportedProgram) -> list[fx.Node]:
        """With the quantize and dequantize nodes around it, if it is INT8."""
        (source,) = node.all_input_nodes
        ends = list(node.users)
        if is_dequant(source) and len(ends) == 1 and is_quant(ends[0]):
            slope = float(str(node.args[1])) if len(node.args) > 1 else DEFAULT_SLOPE
            if not leaky_relu_fits(float(str(source.args[1])), float(str(ends[0].args[1])), slope):
                return [node]
        nodes: list[fx.Node] = super().get_node_and_deps(node, ep)
        return nodes

    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        """Floating point and INT8."""
        return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]


@register_node_visitor
class _CastVisitor(NodeVisitor):  # type: ignore[misc]
    """Writes a cast as XNNPACK's conversion."""

    target = "mcompress.cast.default"

    def define_node(self, node: fx.Node, xnn_graph: XNNGraph, vals_to_ids: dict[fx.Node, int], debug_handle: int) -> None:
        """Add the conversion and its two tensors to the delegate's graph."""
        self.define_nodes_tensor_inputs_outputs(node, xnn_graph, vals_to_ids)
        (source,) = node.all_input_nodes
        conversion = XNNConvert(input_id=vals_to_ids[source], output_id=vals_to_ids[node], flags=0)
        xnn_graph.xnodes.append(XNode(xnode_union=conversion, debug_handle=debug_handle))


class _ReshapeVisitor(NodeVisitor):  # type: ignore[misc]
    """Writes another shape for a tensor that lies in memory as NHWC: nothing is transposed."""

    def define_node(self, node: fx.Node, xnn_graph: XNNGraph, vals_to_ids: dict[fx.Node, int], debug_handle: int) -> None:
        """Add the reshape and its two tensors to the delegate's graph."""
        self.define_nodes_tensor_inputs_outputs(node, xnn_graph, vals_to_ids)
        (source,) = node.all_input_nodes
        batch, channels, height, width = node.meta["val"].shape
        shape = [batch, height, width, channels]
        reshape = XNNStaticReshape(num_dims=4, new_shape=shape, input_id=vals_to_ids[source], output_id=vals_to_ids[node], flags=0)
        xnn_graph.xnodes.append(XNode(xnode_union=reshape, debug_handle=debug_handle))


@register_node_visitor
class _PixelsVisitor(_ReshapeVisitor):
    target = "mcompress.pixels.default"


@register_node_visitor
class _ImageVisitor(_ReshapeVisitor):
    target = "mcompress.image.default"


# Both take and give NHWC, as convolutions do; the pass that adds transposes has to know.
ChannelsLastTaggedReshapePass.memory_sensitive_ops_nhwc |= {exir_ops.edge.mcompress.pixels.default, exir_ops.edge.mcompress.image.default}
