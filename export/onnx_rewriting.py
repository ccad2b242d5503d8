"""The exporter's graph in the form that onnxruntime computes in integers: biases, conversions and activations of INT8 operators.

Activations become unsigned (the plan's INT8 values shifted by 128, the same scales) and weights stay signed: the combination for which onnxruntime
has kernels everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.export.tables.onnx_attributes import captured, number, numbers

if TYPE_CHECKING:
    import onnx

CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "Constant"}
ON_INTEGERS = {"Pad"}
"""They move values, have kernels for integers, and get none from onnxruntime for standing between conversions: they are written on integers."""
WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}


def strip(proto: onnx.ModelProto) -> None:
    """Remove stack traces and other notes of the exporter: they hold paths of the machine that wrote the file."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    for item in [proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.value_info, *proto.graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    del proto.functions[:]


def quantize_biases(graph: onnx.GraphProto) -> None:
    """Store the bias of every INT8 convolution as int32 at scale (input scale x weight scale); without that onnxruntime computes it in float."""
    import onnx
    from onnx import numpy_helper

    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    added: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type not in WEIGHTED or len(node.input) < 3 or node.input[2] not in constants:
            continue
        scales = [_scale(producers.get(name), constants) for name in node.input[:2]]
        if scales[0] is None or scales[1] is None:
            continue
        bias = constants[node.input[2]].astype(np.float64)
        scale = np.broadcast_to(scales[0].astype(np.float64) * scales[1].astype(np.float64).reshape(-1), bias.shape).astype(np.float32)
        limits = np.iinfo(np.int32)
        quantized = np.clip(np.round(bias / scale), limits.min, limits.max).astype(np.int32)
        stem = f"{node.output[0]}_bias"
        for suffix, value in (("int32", quantized), ("scale", scale), ("zero_point", np.zeros(scale.shape, np.int32))):
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{stem}_{suffix}"))
        inputs = [f"{stem}_int32", f"{stem}_scale", f"{stem}_zero_point"]
        added.append(onnx.helper.make_node("DequantizeLinear", inputs, [f"{stem}_real"], name=f"{stem}_dequantize", axis=0))
        node.input[2] = f"{stem}_real"
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def turn_weights(graph: onnx.GraphProto) -> None:
    """Store the INT8 weights of linear layers as MatMul reads them; onnxruntime has no integer kernel behind a Transpose of weights."""
    from onnx import helper, numpy_helper

    constants = {item.name: item for item in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in constants:
            nodes.append(node)
            continue
        values = numpy_helper.to_array(constants[source.input[0]])
        order = numbers(node, "perm") or tuple(reversed(range(values.ndim)))
        turned = f"{node.output[0]}_turned"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values.transpose(order)), turned))
        axis = order.index(number(source, "axis", 1) % values.ndim)
        nodes.append(helper.make_node("DequantizeLinear", [turned, *source.input[1:]], node.output, name=f"{turned}_real", axis=axis))
    used = {name for node in nodes for name in (*node.input, *captured(node))} | {item.name for item in graph.output}
    nodes = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in used]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)


def unshare(graph: onnx.GraphProto) -> None:
    """Undo the exporter's sharing, which onnxruntime's INT8 passes do not see through.

    Every reader gets a dequantize node of its own, or its operator stays float; every quantized constant gets values and zero point of its own, or
    the exact mode for x86 cannot load the file. So INT8 weights that two operators share are in the file twice.
    """
    import onnx

    constants = {item.name: item for item in graph.initializer}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    outputs = {item.name for item in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "DequantizeLinear":
            continue
        spare = readers.get(node.output[0], [])[0 if node.output[0] in outputs else 1 :]
        for copy, (reader, position) in enumerate(spare):
            clone = onnx.NodeProto()
            clone.CopyFrom(node)
            # Not a number alone: what torch numbers is called so.
            clone.name, clone.output[0] = f"{node.name}_copy_{copy}", f"{node.output[0]}_copy_{copy}"
            reader.input[position] = clone.output[0]
            nodes.append(clone)
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            for position, suffix in ((0, "values"), (1, "scale"), (2, "zero_point"))[: len(node.input)]:
                own = onnx.TensorProto()
                own.CopyFrom(constants[node.input[position]])
                own.name = f"{node.output[0]}_{suffix}"
                graph.initializer.append(own)
                node.input[position] = own.name
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that no node reads."""
    used = {name for node in graph.node for name in (*node.input, *captured(node))} | {item.name for item in graph.output}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def make_activations_unsigned(graph: onnx.GraphProto) -> None:
    """Shift INT8 activations by 128 to uint8, at the same scales: the same numbers, in the form for which onnxruntime always has kernels."""
    import onnx
    from onnx import numpy_helper

    constants = {item.name: item for item in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}

    def shifted(name: str) -> str:
        unsigned = f"{name}_u8"
        if unsigned not in constants:
            values = numpy_helper.to_array(constants[name]).astype(np.int16) + 128
            constants[unsigned] = numpy_helper.from_array(values.astype(np.uint8), unsigned)
            graph.initializer.append(constants[unsigned])
        return unsigned

    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or constants[node.input[2]].data_type != onnx.TensorProto.INT8:
            continue
        if node.input[0] in constants:
            if readers[node.output[0]].op_type in {*WEIGHTED, "MatMul", "Transpose"}:
                continue
            node.input[0] = shifted(node.input[0])
        node.input[2] = shifted(node.input[2])
    drop_unused(graph)
    del graph.value_info[:]


def move_integers(graph: onnx.GraphProto) -> None:
    """Take the conversions around operators of `ON_INTEGERS` away where those have one scale and zero point: quantized values are moved themselves.

    Every dequantize node must have one reader (`unshare`), and no conversion may be the graph's output.
    """
    from onnx import numpy_helper

    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    writers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs, gone = {item.name for item in graph.output}, set[str]()
    for node in graph.node:
        before, after = writers.get(node.input[0]) if node.op_type in ON_INTEGERS else None, readers.get(node.output[0], [])
        if before is None or before.op_type != "DequantizeLinear" or len(after) != 1 or after[0].op_type != "QuantizeLinear":
            continue
        pairs = [(constants.get(one), constants.get(other)) for one, other in zip(before.input[1:3], after[0].input[1:3], strict=True)]
        same = all(one is not None and other is not None and one.dtype == other.dtype and np.array_equal(one, other) for one, other in pairs)
        if same and not outputs & {node.output[0], before.output[0]}:
            gone |= {before.name, after[0].name}
            node.input[0], node.output[0] = before.input[0], after[0].output[0]
            writers[node.output[0]] = node
    nodes = [node for node in graph.node if node.name not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)
    del graph.value_info[:]  # types that were inferred for tensors which hold integers now


def _scale(node: onnx.NodeProto | None, constants: dict[str, NDArray[np.generic]]) -> NDArray[np.generic] | None:
    return constants.get(node.input[1]) if node is not None and node.op_type == "DequantizeLinear" else None
