"""Operators that the plan computes in half precision, as PyTorch's graph says it: half weights, half tensors, and casts where a tensor changes.

XNNPACK has one operator for every change of type (XNNConvert). Between INT8 and half the graph goes through fp32, in two of them, which was measured
to be faster than one. ATen's own casts are of no use here: the delegate takes them for changes of memory layout.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from mcompress.compress.quantize.plan import Precision
from mcompress.export.spelled_out import DEQUANTIZE, QUANTIZE, STANDS_FOR, stands_for

aten = torch.ops.aten
QUANTIZATION = {QUANTIZE, DEQUANTIZE, torch.ops.quantized_decomposed.dequantize_per_channel.default}
BINARY = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
HALF = "half"
"""Key of a node's meta: whether it computes half tensors."""
FULL = "full"
"""Key of a node's meta: whether it computes FP32 tensors although the plan has its operator in fp16."""
LIBRARY = torch.library.Library("mcompress", "FRAGMENT")  # type: ignore[no-untyped-call]
LIBRARY.define("cast(Tensor x, ScalarType dtype) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("cast", lambda x, dtype: x.to(dtype, copy=True), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
CAST = torch.ops.mcompress.cast.default


def compute_in_half(module: fx.GraphModule, precision_of: Callable[[str], Precision]) -> None:
    """Put every operator that `precision_of` makes fp16 on half tensors and half weights, in place; the network's input and output stay fp32."""
    _Halving(module, precision_of).run()


def in_full(result: fx.Node, node: fx.Node) -> fx.Node:
    """Say of all nodes that `result` is computed with and that stand for `node` that they compute in FP32; gives `result`."""
    names, pending = stands_for(result), [result]
    while pending:
        each = pending.pop()
        if each is not node and each.op == "call_function" and stands_for(each) == names and not each.meta.get(FULL):
            each.meta[FULL] = True
            pending += each.all_input_nodes
    return result


class _Halving:
    """The rewriting of one graph; every tensor is cast once, every constant stored once."""

    def __init__(self, module: fx.GraphModule, precision_of: Callable[[str], Precision]) -> None:
        self._module, self._graph = module, module.graph
        planned = {node for node in self._graph.nodes if any(precision_of(name) == "fp16" for name in stands_for(node))}
        self._half = {node for node in planned if not node.meta.get(FULL)}
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self._constants: dict[str, fx.Node] = {}

    def run(self) -> None:
        for node in list(self._graph.nodes):
            if node in self._half and node.target == aten.silu.default:
                self._spell_out_silu(node)
        for node in list(self._graph.nodes):
            if node in self._half:
                node.meta[HALF] = True
                node.args = tuple(self._scalar(node, value) for value in node.args)
                for source in node.all_input_nodes:
                    node.replace_input_with(source, self._as_half(node, source))
            elif node.op in ("call_function", "output"):
                for source in [source for source in node.all_input_nodes if source in self._half]:
                    node.replace_input_with(source, self._cast(node, source, torch.float32))
        self._graph.eliminate_dead_code()
        self._module.recompile()

    def _as_half(self, reader: fx.Node, source: fx.Node) -> fx.Node:
        value = source.meta.get("val")
        if source in self._half or (isinstance(value, Tensor) and not value.is_floating_point()) or isinstance(value, tuple | list):
            return source
        return self._constant(source) if source.op == "get_attr" else self._cast(reader, source, torch.float16)

    def _cast(self, reader: fx.Node, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        if (source, dtype) not in self._casts:
            with self._graph.inserting_before(reader):
                self._casts[source, dtype] = self._graph.call_function(CAST, (source, dtype))
        return self._casts[source, dtype]

    def _constant(self, source: fx.Node) -> fx.Node:
        value: object = self._module
        for part in str(source.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return source
        return self._stored(str(source.target).replace(".", "_"), value.detach())

    def _scalar(self, node: fx.Node, value: fx.node.Argument) -> fx.node.Argument:
        """A number that an operator reads is a tensor in fp32 to ExecuTorch, which then casts it at run time; as half it is stored."""
        if node.target not in BINARY or isinstance(value, bool) or not isinstance(value, int | float):
            return value
        return self._stored(f"{node.name}_number", torch.tensor([float(value)]))

    def _stored(self, name: str, value: Tensor) -> fx.Node:
        name = f"_half_{name}"
        if name not in self._constants:
            self._module.register_buffer(name, value.to(torch.float16))
            first = next(node for node in self._graph.nodes if node.op != "placeholder")
            with self._graph.inserting_before(first):
                self._constants[name] = self._graph.get_attr(name)
        return self._constants[name]

    def _spell_out_silu(self, node: fx.Node) -> None:
        """x * sigmoid(x): ExecuTorch's own decomposition goes back to fp32."""
        with self._graph.inserting_before(node):
            sigmoid = self._graph.call_function(aten.sigmoid.default, (node.args[0],))
            product = self._graph.call_function(aten.mul.Tensor, (node.args[0], sigmoid))
        for made in (sigmoid, product):
            made.meta[STANDS_FOR] = stands_for(node)
            self._half.add(made)
        node.replace_all_uses_with(product)
        self._half.discard(node)
        self._graph.erase_node(node)


def separate_dequantize_nodes(graph: fx.Graph) -> None:
    """Give every reader its own dequantize node: the delegate drops those in front of INT8 operators, and other readers need theirs."""
    for node in list(graph.nodes):
        if node.target != DEQUANTIZE:
            continue
        for reader in list(node.users)[1:]:
            with graph.inserting_before(node):
                own = graph.call_function(DEQUANTIZE, node.args)
            own.meta = dict(node.meta)
            reader.replace_input_with(node, own)
