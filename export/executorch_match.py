"""Which operators of the plan each operator of a .pte file stands for.

ExecuTorch keeps no names in its files. The file's graph is laid over the graph that was to be written: from the input onwards, an operator is found
by its kind and by the tensors that it reads, a convolution also by the very bytes of its weights, a transpose by its permutation. A convolution whose
weights are in the file once is found wherever it stands, and its neighbours from there. What is then left on both sides between the same tensors was
decomposed by ExecuTorch; it stands for all operators there together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mcompress.compress.quantize import kinds
from mcompress.export.executorch_file import Content, FileGraph, FileNode
from mcompress.export.executorch_half import CAST, QUANTIZATION
from mcompress.export.executorch_moves import IMAGE, PIXELS
from mcompress.export.honoured import FileOperator
from mcompress.export.spelled_out import stands_for
from mcompress.targets.speeds import PrecisionName

Item = TypeVar("Item", bound=Hashable)
aten = torch.ops.aten
LAYOUTS = ([0, 2, 3, 1], [0, 3, 1, 2])
"""Transposes between NCHW and NHWC, which the delegate adds."""
XNNPACK_KINDS = {
    "conv1d": ("XNNConv2d", "XNNDepthwiseConv2d"),
    "conv2d": ("XNNConv2d", "XNNDepthwiseConv2d"),
    "conv_transpose2d": ("XNNConvTranspose2d",),
    "linear": ("XNNFullyConnected",),
    "add": ("XNNAdd",),
    "sub": ("XNNSubtract",),
    "mul": ("XNNMultiply",),
    "div": ("XNNDiv",),
    "relu": ("XNNClamp",),
    "relu6": ("XNNClamp",),
    "clamp": ("XNNClamp",),
    "hardtanh": ("XNNClamp",),
    "leaky_relu": ("XNNLeakyReLU",),
    "prelu": ("XNNPReLU",),
    "sqrt": ("XNNSquareRoot",),
    "rsqrt": ("XNNReciprocalSquareRoot",),
    "pow": ("XNNSquare",),
    "neg": ("XNNNegate",),
    "ceil": ("XNNCeiling",),
    "mean": ("XNNGlobalAvgPooling2d",),
    "adaptive_avg_pool2d": ("XNNGlobalAvgPooling2d",),
    "avg_pool2d": ("XNNAvgPooling2d",),
    "max_pool2d": ("XNNMaxPooling2d",),
    "upsample_bilinear2d": ("XNNStaticResizeBilinear2D",),
    "reshape": ("XNNStaticReshape",),
    "pixels": ("XNNStaticReshape",),
    "image": ("XNNStaticReshape",),
    "permute": ("XNNStaticTranspose",),
    "permute_copy": ("XNNStaticTranspose",),
    "slice": ("XNNStaticSlice",),
    "cat": ("XNNConcatenate2", "XNNConcatenate3", "XNNConcatenate4", "XNNConcatenate5"),
    "pad": ("XNNStaticConstantPad",),
    "constant_pad_nd": ("XNNStaticConstantPad",),
    "matmul": ("XNNBatchMatrixMultiply",),
    "bmm": ("XNNBatchMatrixMultiply",),
}
PERMUTING = {aten.permute.default, aten.permute_copy.default}
CLIPPING = {aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default}
WIDTH = {"int8": 0, "fp16": 1, "fp32": 2}
NAMES: dict[str, PrecisionName] = {"int8": "int8", "fp16": "fp16", "fp32": "fp32"}


def file_operators(file: FileGraph, written: fx.GraphModule) -> tuple[FileOperator, ...]:
    """Every operator of the file that computes or moves values, in execution order. `written` is what `executorch_lowering.rewritten` made."""
    found = _Overlay(file, written).found()
    return tuple(_operator(file, node, found.get(node.name, ())) for node in file.nodes if not node.converts and _precision(file, node) is not None)


def _operator(file: FileGraph, node: FileNode, names: Sequence[str]) -> FileOperator:
    precision = _precision(file, node) or "fp32"
    reason = f"the XNNPACK delegate has no kernel for {node.kind}: it runs in ExecuTorch's portable kernel" if node.unit == "portable" else ""
    return FileOperator(node.name, node.kind, tuple(names), precision, precision, node.unit, reason=reason)


def _precision(file: FileGraph, node: FileNode) -> PrecisionName | None:
    """The type of its result, or the wider one of result and weights where the weights are not those that XNNPACK itself narrows; None for integers
    that are no values of the network, such as indices."""
    types = [file.tensors[number].type for number in (node.output, node.weight) if number is not None and number in file.tensors]
    if types == ["fp16", "fp32"]:
        types = ["fp16"]  # the only form in which XNNPACK takes the weights of a half convolution; see `widened_weights`
    known = [name for name in types if name in WIDTH]
    return NAMES[max(known, key=WIDTH.__getitem__)] if known else None


def widened_weights(file: FileGraph, operators: Sequence[FileOperator]) -> dict[str, int]:
    """Operator of the plan -> bytes that the file is larger because it stores the half weights of this convolution as fp32.

    XNNPACK's convolutions on half tensors take their weights as fp32 only and round them to half when the file is loaded.
    """
    nodes = {node.name: node for node in file.nodes}
    found = {}
    for operator in operators:
        node = nodes[operator.name]
        weight = file.tensors[node.weight] if node.weight is not None else None
        if operator.stands_for and operator.precision == "fp16" and weight is not None and weight.type == "fp32":
            found[operator.stands_for[0]] = len(weight.content or b"") // 2
    return found


class _Overlay:
    """The two graphs and what is known of each other."""

    def __init__(self, file: FileGraph, written: fx.GraphModule) -> None:
        self._file, self._module = file, written
        self._same = _Same()
        for node in file.nodes:
            if node.converts or _only_layout(node):
                for source in node.inputs:
                    self._same.join(source, node.output)
        self._free = {node.name: node for node in file.nodes if not node.converts and not _only_layout(node)}
        self._readers: dict[int, list[FileNode]] = {}
        self._writers: dict[int, FileNode] = {}
        for node in self._free.values():
            self._writers[self._same.of(node.output)] = node
            for source in node.inputs:
                self._readers.setdefault(self._same.of(source), []).append(node)
        self._asked = [node for node in written.graph.nodes if stands_for(node)]
        self._place: dict[fx.Node, int] = {}
        self._node_of: dict[fx.Node, FileNode] = {}
        self._names: dict[str, list[str]] = {}
        for given, number in zip((n for n in written.graph.nodes if n.op == "placeholder"), file.inputs, strict=True):
            self._place[given] = self._same.of(number)

    def found(self) -> dict[str, list[str]]:
        """Name of the file's node -> names of the plan's operators."""
        while self._forwards() or self._by_weights() or self._backwards():
            pass
        self._together()
        return self._names

    def _forwards(self) -> bool:
        changed = False
        for node in self._asked:
            sources = self._sources(node)
            if node in self._node_of or any(source not in self._place for source in sources):
                continue
            places = [self._place[source] for source in sources]
            candidate = next((c for c in self._candidates(node, places) if self._reads(c) == sorted(set(places))), None)
            if candidate is not None:
                self._claim(node, candidate)
            elif len(sources) == 1 and node not in self._place and self._is_fused(node, sources[0]):
                self._names[self._node_of[sources[0]].name] += stands_for(node)
                self._node_of[node], self._place[node] = self._node_of[sources[0]], places[0]
            elif len(sources) == 1 and node not in self._place and self._changes_nothing(node, sources[0]):
                self._place[node] = places[0]
            else:
                continue
            changed = True
        return changed

    def _by_weights(self) -> bool:
        for node in self._asked:
            if node in self._node_of or node.target not in kinds.WEIGHTED:
                continue
            candidates = [candidate for candidate in self._free.values() if self._fits(node, candidate)]
            if len(candidates) == 1:
                self._claim(node, candidates[0])
                return True
        return False

    def _backwards(self) -> bool:
        for node in self._asked:
            if node in self._node_of or node not in self._place:
                continue
            writer = self._writers.get(self._place[node])
            if writer is not None and writer.name in self._free and self._fits(node, writer):
                self._claim(node, writer)
                return True
        return False

    def _claim(self, node: fx.Node, found: FileNode) -> None:
        del self._free[found.name]
        self._names[found.name] = list(stands_for(node))
        self._node_of[node], self._place[node] = found, self._same.of(found.output)
        sources = self._sources(node)
        if len(sources) == 1 and len(self._reads(found)) == 1:
            self._place.setdefault(sources[0], self._reads(found)[0])

    def _together(self) -> None:
        """What is left between the same tensors on both sides stands for each other."""
        left = [node for node in self._asked if node not in self._node_of and node not in self._place]
        writers = {self._same.of(node.output): node for node in self._free.values()}
        pieces = _components(list(self._free.values()), lambda node: [writers[number] for number in self._reads(node) if number in writers])
        for part in _components(left, lambda node: [source for source in self._sources(node) if source in left]):
            places = {self._place[node] for member in part for node in [member, *self._sources(member)] if node in self._place}
            names = list(dict.fromkeys(name for node in part for name in stands_for(node)))
            for piece in pieces:
                if any(self._same.of(node.output) in places or places & set(self._reads(node)) for node in piece):
                    for node in piece:
                        self._names.setdefault(node.name, []).extend(names)

    def _candidates(self, node: fx.Node, places: Sequence[int]) -> Iterator[FileNode]:
        readers = (reader for place in dict.fromkeys(places) for reader in self._readers.get(place, []))
        return (reader for reader in readers if reader.name in self._free and self._fits(node, reader))

    def _reads(self, node: FileNode) -> list[int]:
        """The tensors that it reads and that are computed, each once."""
        return sorted(
            {self._same.of(number) for number in node.inputs if number in self._file.tensors and self._file.tensors[number].content is None}
        )

    def _fits(self, node: fx.Node, candidate: FileNode) -> bool:
        kind = kinds.kind_of(node)
        name = candidate.kind.rsplit("::", 1)[-1].removesuffix("_copy").removeprefix("_").removeprefix("native_")
        if candidate.kind not in XNNPACK_KINDS.get(kind, ()) and name != kind and candidate.kind != "XNN" + kind.title().replace("_", ""):
            return False
        if node.target in kinds.WEIGHTED and candidate.weight is not None:
            weight = self._constant(node.args[1])
            stored = self._file.tensors[candidate.weight]
            if weight is not None and stored.type == "fp32":
                weight = weight.float()
            return weight is not None and any(_is_stored(layout, stored.content) for layout in _layouts(node, weight))
        if node.target in PERMUTING and candidate.unit == "xnnpack":
            return candidate.attributes.get("perm") == node.args[1]
        if node.target == aten.reshape.default and candidate.unit == "xnnpack":
            return candidate.attributes.get("new_shape") == node.args[1]
        if node.target in (PIXELS, IMAGE):
            shape = self._file.tensors[candidate.inputs[0]].shape  # NHWC
            channels = node.args[1] if node.target == IMAGE else 1
            return isinstance(channels, int) and candidate.attributes.get("new_shape") == [*shape[:2], math.prod(shape[2:]) // channels, channels]
        if node.target == aten.leaky_relu.default and candidate.unit == "xnnpack":
            return bool(
                np.isclose(float(str(candidate.attributes["negative_slope"])), float(str(node.args[1])) if len(node.args) > 1 else 0.01, rtol=1e-3)
            )
        return True

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """What the operator reads, behind conversions; constants left out."""
        behind = (_behind(source) for source in node.all_input_nodes)
        return [source for source in dict.fromkeys(behind) if source.op != "get_attr"]

    def _is_fused(self, node: fx.Node, source: fx.Node) -> bool:
        return node.target in CLIPPING and source in self._node_of and self._node_of[source].clips

    def _changes_nothing(self, node: fx.Node, source: fx.Node) -> bool:
        """A reshape to the shape that there already is, or a copy: ExecuTorch leaves them out."""
        if node.target == aten.reshape.default:
            places = self._file.tensors.get(self._place[source])
            return places is not None and list(places.shape) == node.args[1]
        if node.target in PERMUTING:
            return node.args[1] in LAYOUTS  # not to be told from the transposes that the delegate adds
        return node.target in (aten.clone.default, aten.contiguous.default)

    def _constant(self, node: object) -> Tensor | None:
        while isinstance(node, fx.Node) and node.op != "get_attr":
            node = node.args[0] if node.target in QUANTIZATION or node.target == CAST else None
        if not isinstance(node, fx.Node):
            return None
        value: object = self._module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else None


def _is_stored(layout: Tensor, content: Content | None) -> bool:
    """Whether a constant of the file holds exactly these bytes."""
    if content is None or len(content) != layout.nbytes:
        return False
    held = np.frombuffer(content, np.uint8)
    first = _bytes_of(layout[:1])  # enough to tell others apart, of which a large network has hundreds of the same shape
    return np.array_equal(first, held[: len(first)]) and np.array_equal(_bytes_of(layout), held)


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.contiguous().numpy().reshape(-1).view(np.uint8)


def _layouts(node: fx.Node, weight: Tensor) -> Iterator[Tensor]:
    """The weights as XNNPACK wants them: (out, height, width, in) for convolutions, (1, height, width, out) for depthwise ones."""
    if weight.ndim == 3:
        weight = weight.unsqueeze(-1)  # a convolution over one dimension
    if weight.ndim == 2:
        yield weight
        return
    if node.target == aten.conv_transpose2d.input:
        groups = node.args[6] if len(node.args) > 6 and isinstance(node.args[6], int) else 1
        inner, outer, *kernel = weight.shape
        weight = weight.reshape(groups, inner // groups, outer, *kernel).transpose(1, 2).reshape(outer * groups, inner // groups, *kernel)
    elif weight.shape[1] == 1:
        yield weight.transpose(0, 1).permute(0, 2, 3, 1)
    yield weight.permute(0, 2, 3, 1)


def _behind(node: fx.Node) -> fx.Node:
    """The node that computed the tensor, behind quantize, dequantize and cast nodes, and what writes an input as whole numbers."""
    while node.target in QUANTIZATION or node.target == CAST or _counts(node):
        source = node.args[0]
        if not isinstance(source, fx.Node):
            break
        node = source
    return node


def _counts(node: fx.Node) -> bool:
    """Whether it gives the numbers of its only argument as whole ones, or in another shape."""
    value = node.meta.get("val")
    whole = isinstance(value, Tensor) and not value.is_floating_point()
    return whole and node.op == "call_function" and len(node.all_input_nodes) == 1 and node.all_input_nodes[0] is node.args[0]


def _only_layout(node: FileNode) -> bool:
    return node.kind == "XNNStaticTranspose" and node.attributes.get("perm") in LAYOUTS


class _Same:
    """Numbers of tensors that hold the same values."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def of(self, number: int) -> int:
        while self._parent.setdefault(number, number) != number:
            number = self._parent[number]
        return number

    def join(self, first: int, second: int) -> None:
        self._parent[self.of(second)] = self.of(first)


def _components(nodes: Sequence[Item], sources: Callable[[Item], Sequence[Item]]) -> list[list[Item]]:
    """The nodes in groups that are connected with each other."""
    group: dict[Item, list[Item]] = {node: [node] for node in nodes}
    for node in nodes:
        for source in sources(node):
            first, second = group[node], group[source]
            if first is not second:
                first += second
                group.update(dict.fromkeys(second, first))
    return list({id(members): members for members in group.values()}.values())
