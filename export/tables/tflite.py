"""TFLite files as operator tables: float, float16 weights, INT8. Of the weights the sizes are enough (`mcompress.export.tables.tflite_file`).

Tensors of images lie channels last in such a file, and rows show them channels first. The transpositions that a converter puts around what it cannot
express so are views here (`mcompress.export.tables.graph`); LiteRT does carry them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mcompress.compress.counting.describing import Window
from mcompress.errors import UsageError
from mcompress.export.backend import require
from mcompress.export.tables.facts import FileFacts, Read
from mcompress.export.tables.graph import Graph, Shape
from mcompress.export.tables.making import Node, activations, clamps, convolution, linear, padding, plain, product, recurrent, reduction
from mcompress.export.tables.tflite_file import LEFT_OUT, File, Operator, decode
from mcompress.export.tables.tflite_operators import (
    DATA_AT,
    FROM_SHAPES,
    FUSED,
    IMAGES,
    KEEP_LAYOUT,
    LARGEST,
    LIMITS,
    NOISE,
    PADDED_WITH,
    PARAMETERS_FROM,
    PARTS,
    PLAIN,
    RECURRENT,
    REDUCTIONS,
    RESHAPES,
    WITHOUT_KERNEL,
)
from mcompress.export.tables.tflite_resized import Sizes, sizes_of
from mcompress.targets.speeds import PrecisionName

TO_FIRST, TO_LAST = {4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}, {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
_HALF = ("FLOAT16", "BFLOAT16")


def read(path: Path, input_shape: Shape | Mapping[str, Shape] | None) -> Read:
    """The first graph of the file. Raises `UsageError` for a file that is not TFLite, or is damaged, or whose shapes are not known."""
    require("tflite", {"ai_edge_litert": "ai-edge-litert"}, "It runs on Linux and macOS.")
    file = decode(path)
    sizes = sizes_of(file, input_shape)
    reader = _Reader(file, sizes)
    missing = sorted({operator.kind for operator in file.operators} & WITHOUT_KERNEL)
    notes = [sizes.assumed] * bool(sizes.assumed) + [f"LiteRT has no kernel for {kind}" for kind in missing]
    return Read(reader.graph, FileFacts("tflite", f"schema {file.version}", file.least_runtime, reader.inputs, "; ".join(notes)))


class _Reader:
    """Goes over the operators in their order."""

    def __init__(self, file: File, sizes: Sizes) -> None:
        self.file, self.shapes, self.graph = file, sizes.shapes, Graph()
        self.names = [tensor.name for tensor in file.tensors]
        self.readers: dict[int, list[int]] = {}
        for index, operator in enumerate(file.operators):
            for tensor in operator.inputs:
                self.readers.setdefault(tensor, []).append(index)
        self.producers = {tensor: index for index, operator in enumerate(file.operators) for tensor in operator.outputs}
        self.outputs = set(file.outputs)
        for index, name in enumerate(self.names):
            if index not in self.producers and index not in file.inputs:
                self.graph.constant(name, self.shapes[index])
        self.inputs = {self.names[index]: self.shapes[index] for index in file.inputs}
        for index in file.inputs:
            shape = self.shapes[index]
            self.graph.input(self.names[index], shape, channels_last=len(shape) in TO_FIRST and self._ends_in_images(index))
        for index, operator in enumerate(file.operators):
            self._visit(index, operator)
        for tensor in sorted(self.outputs):
            self.graph.output(self.names[tensor])

    def _visit(self, index: int, operator: Operator) -> None:
        graph, kind = self.graph, operator.kind
        took = [self.names[tensor] if tensor != LEFT_OUT else "" for tensor in operator.inputs]
        gave = [self.names[tensor] for tensor in operator.outputs]
        if kind == "ASSIGN_VARIABLE" and not graph.is_constant(took[1]):
            self._assign_variable(operator, *took[:2])
        elif not gave:
            return  # fills a table, or a variable, before the first call
        elif kind in NOISE:
            # Of what enters it takes the sizes.
            plain(graph, self._node(operator, ()), NOISE[kind], "elementwise")
        elif kind == "READ_VARIABLE":
            self._read_variable(operator, took[0])
        elif kind in FROM_SHAPES or all(graph.is_constant(name) for name in took):
            for tensor in operator.outputs:
                graph.constant(self.names[tensor], self.shapes[tensor])
        elif kind in ("QUANTIZE", "DEQUANTIZE"):
            if self._is_lone(index):
                plain(graph, self._node(operator, took[:1]), kind.lower(), "copy")
            else:
                graph.same(took[0], gave[0])
        elif kind == "TRANSPOSE":
            self._transpose(operator, took[0], gave[0])
        elif kind == "BITCAST" and graph.shape(took[0]) == self.shapes[operator.outputs[0]]:
            graph.same(took[0], gave[0])
        elif kind in RESHAPES or kind == "BROADCAST_TO":
            self._reshape(operator, took[0])
        elif kind in PARTS:
            self._part(operator, took)
        else:
            self._compute(operator, took)
            self._activation(operator)

    def _read_variable(self, operator: Operator, variable: str) -> None:
        """What calls before this one left behind: it enters, whatever made its handle."""
        if self.graph.is_constant(variable):
            self.graph.input(variable, self.shapes[operator.outputs[0]])
        plain(self.graph, self._node(operator, (variable,)), "clone", "copy")

    def _assign_variable(self, operator: Operator, variable: str, source: str) -> None:
        name = f"{variable}/assigned"
        plain(self.graph, Node(name, (source,), {name: self.graph.shape(source)}, self._precision(operator, operator.inputs[1])), "copy", "copy")
        self.graph.output(name)

    def _compute(self, operator: Operator, took: list[str]) -> None:
        graph, kind = self.graph, operator.kind
        places = DATA_AT.get(kind, range(min(PARAMETERS_FROM.get(kind, len(took)), len(took))))
        node = self._node(operator, [took[place] for place in places if took[place]])
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"):
            self._convolution(operator, node)
        elif kind == "STABLEHLO_CONVOLUTION":
            self._general_convolution(operator, node)
        elif kind == "FULLY_CONNECTED":
            bias = len(operator.inputs) > 2 and operator.inputs[2] != LEFT_OUT and not self._is_zero(operator.inputs[2])
            inputs = node.inputs if bias else node.inputs[:2]
            inner = graph.shape(node.inputs[1])[-1]
            if graph.is_constant(node.inputs[1]):
                linear(graph, replace(node, inputs=inputs, channels_last=False), inner, has_bias=bias)
            else:
                rows = math.prod(graph.shape(node.inputs[0])) // inner
                product(graph, node, inner, (1, rows, inner))
        elif kind == "BATCH_MATMUL":
            self._product(operator, node)
        elif kind in RECURRENT:
            operation, weights = RECURRENT[kind]
            recurrent(graph, node, operation, [took[i] for i in weights if i < len(took) and took[i]])
        elif kind in REDUCTIONS:
            self._reduction(operator, node)
        elif kind in ("PAD", *PADDED_WITH):
            padding(graph, node, zeros=kind == "PAD" or self._is_zero(operator.inputs[PADDED_WITH[kind]]))
        elif kind == "MIRROR_PAD":
            padding(graph, node, "reflection_pad", zeros=False)
        elif kind in LIMITS and clamps(graph, node):
            plain(graph, replace(node, inputs=activations(graph, node)), "clamp", "activation")
        elif kind == "STABLEHLO_REDUCE_WINDOW":
            plain(graph, node, "max_pool" if self._is_lowest(operator.inputs[1]) else "avg_pool", "pooling")
        elif kind == "REDUCE_WINDOW":
            plain(graph, node, "max_pool" if operator.options.get("ReduceFunction") == LARGEST else "avg_pool", "pooling")
        elif kind in PLAIN:
            plain(graph, node, *PLAIN[kind])
            if PLAIN[kind][0] == "_softmax":
                graph.trace.steps[-1].axis = 1 if node.channels_last else len(node.result) - 1
        else:
            plain(graph, node, kind, "other")

    def _activation(self, operator: Operator) -> None:
        """What the options of an operator say runs on its result, as a step of its own behind it."""
        name = FUSED.get(operator.options.get("FusedActivationFunction", 0))
        if name is not None:
            plain(self.graph, self._node(operator, [self.names[operator.outputs[0]]]), name, "activation")

    def _convolution(self, operator: Operator, node: Node) -> None:
        kind, graph = operator.kind, self.graph
        transposed = "TRANSPOSE" in kind
        # The first input of a transposed convolution is the shape of its output.
        places = (2, 1, 3) if transposed else (0, 1, 2)
        source, weight, bias = (operator.inputs[i] if i < len(operator.inputs) else LEFT_OUT for i in places)
        shape, channels = graph.shape(self.names[weight]), graph.shape(self.names[source])[-1]
        groups, per_group, kernel = 1, shape[-1], shape[1:-1]
        if kind == "DEPTHWISE_CONV_2D":
            groups, per_group = channels, 1
        elif kind in ("CONV_3D", "CONV_3D_TRANSPOSE"):
            kernel, per_group = shape[:3], shape[3]
        elif transposed:
            per_group = shape[0]
        else:
            groups = channels // per_group
        strides = [operator.options[name] for name in ("StrideD", "StrideH", "StrideW") if name in operator.options]
        has_bias = bias != LEFT_OUT and not self._is_zero(bias)
        inputs = tuple(self.names[tensor] for tensor in (source, weight, bias) if tensor != LEFT_OUT and (tensor != bias or has_bias))
        window = Window(transposed, kernel, max(strides, default=1), groups, per_group, has_bias)
        convolution(graph, replace(node, inputs=inputs), window)

    def _general_convolution(self, operator: Operator, node: Node) -> None:
        """One that spreads its input out is a transposed one; an operator that is not known where its axes are not those of an image."""
        weight, options = self.graph.shape(node.inputs[1]), operator.options
        features, axes = {options["InputFeatureDimension"], options["OutputFeatureDimension"]}, range(len(weight))
        taken, given = options["KernelInputFeatureDimension"], options["KernelOutputFeatureDimension"]
        if features != {len(weight) - 1 if node.channels_last else 1} or taken == given or not {taken, given} <= set(axes):
            plain(self.graph, node, operator.kind, "other")
            return
        groups, spread = max(options["FeatureGroupCount"], 1), options["LhsDilation"]
        per_group = weight[given] // groups if spread > 1 else weight[taken]
        kernel = tuple(weight[axis] for axis in axes if axis not in (taken, given))
        window = Window(spread > 1, kernel, spread if spread > 1 else options["WindowStrides"], groups, per_group, has_bias=False)
        convolution(self.graph, node, window)

    def _product(self, operator: Operator, node: Node) -> None:
        left = self.graph.shape(node.inputs[0])
        if len(left) < 2:
            raise UsageError(f"{self._what(operator)} multiplies a tensor of the shape {left}, which is no matrix; the file is damaged")
        rows, inner = (left[-1], left[-2]) if operator.options.get("AdjX") else (left[-2], left[-1])
        if self.graph.is_constant(node.inputs[1]) and len(self.graph.shape(node.inputs[1])) <= 2:
            linear(self.graph, node, inner, has_bias=False)
        else:
            product(self.graph, node, inner, (math.prod(left[:-2]), rows, inner))

    def _reduction(self, operator: Operator, node: Node) -> None:
        source, result = self.graph.shape(node.inputs[0]), self.shapes[operator.outputs[0]]
        axes = self._values(operator.inputs[1])
        if axes is None:
            if math.prod(result) == 1:
                axes = tuple(range(len(source)))
            elif operator.options.get("KeepDims") and len(source) == len(result):
                axes = tuple(axis for axis, (before, after) in enumerate(zip(source, result, strict=True)) if before != after)
            else:
                raise UsageError(
                    f"{self._what(operator)} reduces {source} to {result} over axes that only an execution has; keep the reduced axes "
                    f"(keepdims), or name them when the network is exported"
                )
        if any(not -len(source) <= axis < len(source) for axis in axes):
            raise UsageError(f"{self._what(operator)} reduces the axes {axes} of {source}; the file is damaged")
        if axes:
            reduction(self.graph, node, REDUCTIONS[operator.kind], axes)
        else:
            self.graph.same(node.inputs[0], self.names[operator.outputs[0]])

    def _transpose(self, operator: Operator, source: str, result: str) -> None:
        order, shape = self._values(operator.inputs[1]), self.graph.shape(source)
        if order is None or self.graph.is_constant(source):
            # Only an execution knows where the elements go.
            plain(self.graph, self._node(operator, (source,)), "permute", "copy")
            return
        if sorted(order) != list(range(len(shape))):
            raise UsageError(f"{self._what(operator)} puts the axes of {shape} in the order {order}; the file is damaged")
        last = self.graph.is_channels_last(source)
        if last and order == TO_FIRST.get(len(shape)):
            last = False
        elif not last and order == TO_LAST.get(len(shape)):
            # Behind the last operator it is the layout in which the file hands an image out.
            last = operator.outputs[0] in self.outputs or self._ends_in_images(operator.outputs[0])
        self.graph.transpose(source, result, order, channels_last=last)

    def _reshape(self, operator: Operator, source: str) -> None:
        tensor, graph = operator.outputs[0], self.graph
        result, before, shape = self.names[tensor], graph.shape(source), self.shapes[tensor]
        if graph.is_constant(source):
            # Whatever decides its shape: what it holds is known.
            graph.constant(result, shape)
        elif operator.kind == "BROADCAST_TO":
            graph.expand(source, result, shape)
        else:
            graph.reshape(source, result, shape)
            if len(shape) in TO_FIRST and len(before) != len(shape) and self._ends_in_images(tensor) and math.prod(shape) == shape[0] * shape[-1]:
                graph.lay_out(result)

    def _part(self, operator: Operator, took: list[str]) -> None:
        source = took[PARTS[operator.kind]]
        if self.graph.is_constant(source):
            # What enters decides the part: a lookup.
            deciding = [name for name in took if name and not self.graph.is_constant(name)]
            plain(self.graph, self._node(operator, [source, *deciding]), "slice", "copy")
            return
        for tensor in operator.outputs:
            self.graph.part(source, self.names[tensor], self.shapes[tensor])

    def _ends_in_images(self, tensor: int) -> bool:
        """Whether an operator on images reads the tensor, through what keeps its layout, or a transposition to channels first does."""
        seen, left = set[int](), [tensor]
        rank = len(self.shapes[tensor])
        while left:
            one = left.pop()
            if one in seen:
                continue
            seen.add(one)
            for reader in self.readers.get(one, ()):
                operator = self.file.operators[reader]
                if operator.kind in IMAGES or (operator.kind == "TRANSPOSE" and self._values(operator.inputs[1]) == TO_FIRST.get(rank, ())):
                    return True
                if operator.kind in KEEP_LAYOUT:
                    left += [result for result in operator.outputs if len(self.shapes[result]) == rank]
        return False

    def _is_lone(self, index: int) -> bool:
        """Whether neither side needs the conversion to compute as it does: at the border of the network, or between two float operators."""
        operator = self.file.operators[index]
        source, result = operator.inputs[0], operator.outputs[0]
        if source not in self.producers:
            return True
        made = self.producers[source]
        if self.file.operators[made].kind in ("QUANTIZE", "DEQUANTIZE"):
            return self._is_lone(made) if self.file.operators[made].kind == "QUANTIZE" else result in self.outputs
        if result in self.outputs:
            return True
        after = [self.file.operators[reader].kind for reader in self.readers.get(result, ())]
        return operator.kind == "QUANTIZE" and bool(after) and all(kind == "DEQUANTIZE" for kind in after)

    def _node(self, operator: Operator, inputs: Sequence[str]) -> Node:
        used = [tensor for i, tensor in enumerate(operator.outputs) if i == 0 or tensor in self.readers or tensor in self.outputs]
        outputs = {self.names[tensor]: self.shapes[tensor] for tensor in used}
        first = self.shapes[operator.outputs[0]]
        activations = [name for name in inputs if not self.graph.is_constant(name) and len(self.graph.shape(name)) == len(first)]
        last = len(first) in TO_FIRST and (operator.kind in IMAGES or any(self.graph.is_channels_last(name) for name in activations[:1]))
        return Node(self.names[operator.outputs[0]], tuple(inputs), outputs, self._precision(operator, operator.outputs[0]), last)

    def _precision(self, operator: Operator, result: int) -> PrecisionName:
        """That of the result; fp16 where the weights alone are, w8a16 where activations have 16 bits."""
        kind = self.file.tensors[result].type
        if kind in ("INT8", "UINT8"):
            return "int8"
        if kind == "INT16":
            return "w8a16"
        half = any(tensor != LEFT_OUT and self.file.tensors[self._origin(tensor)].type in _HALF for tensor in operator.inputs)
        return "fp16" if half or kind in _HALF else "fp32"

    def _origin(self, tensor: int) -> int:
        """The constant that a DEQUANTIZE makes the tensor of."""
        made = self.file.operators[self.producers[tensor]] if tensor in self.producers else None
        return made.inputs[0] if made is not None and made.kind == "DEQUANTIZE" and made.inputs[0] not in self.producers else tensor

    def _values(self, tensor: int) -> tuple[int, ...] | None:
        """What a constant of integers holds; None for what only an execution has."""
        numbers = self.file.tensors[tensor].numbers() if tensor not in self.producers else None
        return None if numbers is None else tuple(int(value) for value in numbers.tolist())

    def _is_zero(self, tensor: int) -> bool:
        """Whether a constant holds zeros only: the bias that a converter adds because the kernel takes one."""
        content = self.file.tensors[self._origin(tensor)].content
        return content.size > 0 and not content.any()

    def _is_lowest(self, tensor: int) -> bool:
        """Whether a constant is a number below which there is none: where the search for a maximum begins."""
        least = {"FLOAT32": float(np.finfo(np.float32).min), "FLOAT16": float(np.finfo(np.float16).min), "INT8": -128.0}
        found = self.file.tensors[tensor]
        numbers = found.numbers() if tensor not in self.producers and found.type in least else None
        return numbers is not None and numbers.size > 0 and float(numbers.tolist()[0]) <= least[found.type]

    def _what(self, operator: Operator) -> str:
        return f"{operator.kind} of {self.file.path}, which writes '{self.names[operator.outputs[0]]}',"
