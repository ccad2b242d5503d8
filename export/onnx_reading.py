"""An ONNX file read back, operator by operator: what it holds, and what onnxruntime computes on this machine.

INT8 is what stands between dequantize and quantize nodes, with the steps of an operator and a ReLU behind it taken together; fp16 and fp32 are the
types of the tensors. An operator that was planned float and stands there because its neighbours are INT8 is INT8 if onnxruntime makes it so. Whether
onnxruntime computes in INT8 is the rule of `mcompress.export.tables.onnx_integer`, the same everywhere. Whether it computes in fp16 differs from
processor to processor, so it is asked: it writes the graph that it makes of the file, in which every operator without an fp16 kernel stands between
casts. onnxruntime 1.31.1 on x86 has fp16 kernels for operators that move values (Concat, Reshape, Transpose, Slice) and hardly any other; it
computes chains of them in fp32 and drops the casts between, so that activations are not rounded to fp16 at all, only weights are. On Arm (the
aarch64 wheel, run in emulation) Conv, Relu, Add and Concat are really fp16; DepthToSpace and Resize are not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mcompress.export.backend import Port, Written, as_fallbacks, layout_of
from mcompress.export.honoured import FileOperator, counts_of, departures, units_of
from mcompress.export.onnx_halving import FLOAT, HALF, element_kinds, is_border, opset_of, why_not_half
from mcompress.export.onnx_host import session_options
from mcompress.export.onnx_large import graph_file
from mcompress.export.onnx_naming import operators_named
from mcompress.export.onnx_rewriting import CONVERSIONS, ON_INTEGERS, WEIGHTED
from mcompress.export.tables.onnx_integer import integer_nodes
from mcompress.record import CoverageRecord
from mcompress.targets.speeds import PrecisionName

if TYPE_CHECKING:
    import onnx

    from mcompress.compress.quantize.plan import PrecisionPlan

TITLE = "ONNX"
ALL_INPUTS = {"Concat", "Add", "Sub", "Mul", "MatMul"}
MULTIPLIED = {*WEIGHTED, "MatMul"}
UINT8, INT8 = 2, 3
"""TensorProto's numbers."""
OPTIMIZED_FLOAT = "onnxruntime has no integer kernel for {op} in this form: it dequantizes, computes in fp32 and quantizes again"
NO_HALF_KERNEL = "onnxruntime has no fp16 kernel for {op} on this processor: it computes in fp32 with the fp16 weights, and rounds no activation"
SHARED = "one {op} computes {names}, which are planned in different precisions"
NOT_QUANTIZED = "{op} is not between quantized tensors in the file"
MADE_INTEGER = "{op} stands between quantized tensors, where onnxruntime computes it in integers"
_UNROUNDED = "InsertedPrecisionFreeCast_"
"""What onnxruntime puts before the name of an fp16 tensor that it computes in fp32."""


@dataclass(frozen=True)
class OnnxGraph:
    """A file's graph with what its readers look up."""

    model: onnx.ModelProto
    kinds: Mapping[str, int]
    """Tensor -> type of its elements."""
    writers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> OnnxGraph:
        """Infer the types and index the nodes and constants."""
        found = cls(model, element_kinds(model), constants={item.name: item for item in model.graph.initializer})
        for node in model.graph.node:
            found.writers.update(dict.fromkeys((name for name in node.output if name), node))
            for name in node.input:
                found.readers.setdefault(name, []).append(node)
        return found

    def operators(self) -> list[onnx.NodeProto]:
        """The nodes that are no conversions, in their order."""
        return [node for node in self.model.graph.node if node.op_type not in CONVERSIONS and not is_border(node)]

    def is_float(self, name: str) -> bool:
        """Whether the tensor holds fp32 or fp16."""
        return self.kinds.get(name) in (FLOAT, HALF)

    def leaves(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """The tensors of the node that are the graph's outputs."""
        outputs = {item.name for item in self.model.graph.output}
        return tuple(name for name in node.output if name in outputs)


def read_back(path: Path, plan: PrecisionPlan | None) -> Written:
    """What the file at `path` holds, compared with `plan`; everything is read from the file."""
    import onnx

    graph = onnx.load(str(graph_file(path)), load_external_data=False).graph
    operators = operators_of(path, plan)
    found = departures(TITLE, plan, operators, {})
    coverage = CoverageRecord(total=len(operators), by_unit=units_of(operators), fallbacks=found)
    constants = {item.name for item in graph.initializer}
    inputs = tuple(_port(item) for item in graph.input if item.name not in constants)
    outputs = tuple(_port(item) for item in graph.output)
    return Written(path, counts_of(operators), coverage, as_fallbacks(path, found), inputs, outputs, operators=operators)


def operators_of(path: Path, plan: PrecisionPlan | None = None) -> tuple[FileOperator, ...]:
    """Every operator of the file in its order; with `plan`, those that are not as planned say why.

    `FileOperator.output` is the tensor that `mcompress.export.onnx.intermediates` gives; of an INT8 operator the quantized one, and None where
    the next node computes on before anything is quantized (a convolution whose ReLU is fused).
    """
    import onnx
    from onnx import numpy_helper

    graph = OnnxGraph.of(onnx.load(str(graph_file(path)), load_external_data=not path.is_dir()))
    opset, nodes = opset_of(graph.model), graph.operators()
    ends = quantized_ends(graph)
    integer = integer_nodes(graph.model.graph, opset)
    halves = [node.output[0] for node in nodes if node.output[0] not in ends and _float_kind(graph, node) == HALF]
    half_here = _computed_in_half(path, halves)
    inside = {name: item for name, item in graph.constants.items() if item.data_location != onnx.TensorProto.EXTERNAL}  # scales are never outside
    constants = {name: numpy_helper.to_array(item) for name, item in inside.items()}
    planned = {} if plan is None else {operator.name: operator.precision for operator in plan.operators}
    found: list[FileOperator] = []
    for node in nodes:
        result = node.output[0]
        moves = node.op_type in ON_INTEGERS and graph.kinds.get(result) in (UINT8, INT8)
        stands_for = operators_named(node.name) if moves or any(graph.is_float(name) for name in (*node.input, *node.output)) else ()
        wanted = {planned[name] for name in stands_for if name in planned}
        quantized = result in ends and (result in integer or not wanted or "int8" in wanted)
        precision: PrecisionName = "int8" if quantized or moves else "fp16" if _float_kind(graph, node) == HALF else "fp32"
        computed: PrecisionName = "int8" if precision == "int8" and (moves or result in integer) else "fp16" if result in half_here else "fp32"
        reason = ""
        if precision == "int8" and computed != "int8":
            reason = OPTIMIZED_FLOAT.format(op=node.op_type)
        elif "int8" in wanted and precision != "int8":
            reason = NOT_QUANTIZED.format(op=node.op_type)
        elif precision == "int8" and wanted and "int8" not in wanted:
            reason = MADE_INTEGER.format(op=node.op_type)
        elif precision == "fp16" and computed != "fp16":
            reason = NO_HALF_KERNEL.format(op=node.op_type)
        elif len(wanted) > 1:
            reason = SHARED.format(op=node.op_type, names=", ".join(stands_for))
        elif "fp16" in wanted and precision == "fp32":
            reason = why_not_half(node, graph.kinds, constants, opset)
        unit = f"cpu {'int8' if result in integer else computed}"
        output = ends[result] if quantized else result if moves or graph.is_float(result) else None
        found.append(FileOperator(node.name or result, node.op_type, stands_for, precision, computed, unit, output, reason))
    return tuple(found)


def quantized_ends(graph: OnnxGraph) -> dict[str, str | None]:
    """First outputs of the nodes that the file quantizes, whoever runs it -> the quantized tensor that holds the result; None where there is none.

    Nodes that compute one operator together are judged together: no tensor between them is rounded.
    """
    regions: dict[tuple[str, ...], list[onnx.NodeProto]] = {}
    for node in graph.operators():
        regions.setdefault(operators_named(node.name) or (node.output[0],), []).append(node)
    found: dict[str, str | None] = {}
    for nodes in regions.values():
        last = _behind_relu(graph, nodes)
        if all(_reads_quantized(graph, node, nodes) for node in nodes) and all(_writes_quantized(graph, node, [*nodes, last]) for node in nodes):
            for node in (*nodes, last):
                if _writes_quantized(graph, node, [*nodes, last]):
                    quantize = next((reader for reader in graph.readers.get(node.output[0], []) if reader.op_type == "QuantizeLinear"), None)
                    found[node.output[0]] = None if quantize is None else quantize.output[0]
    return found


def _behind_relu(graph: OnnxGraph, nodes: list[onnx.NodeProto]) -> onnx.NodeProto:
    """The Relu that alone reads what the nodes write, else the last node."""
    after = graph.readers.get(nodes[-1].output[0], [])
    return after[0] if len(after) == 1 and after[0].op_type == "Relu" and not graph.leaves(nodes[-1]) else nodes[-1]


def _reads_quantized(graph: OnnxGraph, node: onnx.NodeProto, together: list[onnx.NodeProto]) -> bool:
    given = list(node.input[: 2 if node.op_type in MULTIPLIED else len(node.input) if node.op_type in ALL_INPUTS else 1])
    own = {name for other in together for name in other.output}
    for name in given:
        writer = graph.writers.get(name)
        # The bias that a step adds, and a factor that is one number.
        held = graph.constants.get(name)
        beside = held is not None and node.op_type not in MULTIPLIED and (len(together) > 1 or np.prod(held.dims) == 1)
        if not (name in own or beside or not graph.is_float(name) or (writer is not None and writer.op_type == "DequantizeLinear")):
            return False
    return any(graph.is_float(name) for name in given)


def _writes_quantized(graph: OnnxGraph, node: onnx.NodeProto, together: list[onnx.NodeProto]) -> bool:
    """Whether what the node writes is only ever quantized, or read by the nodes that it works with."""
    names = [other.output[0] for other in together]
    for written in (name for name in node.output if name):
        readers = graph.readers.get(written, [])
        if not readers or written in graph.leaves(node) or not graph.is_float(written):
            return False
        if not all(reader.op_type == "QuantizeLinear" or reader.output[0] in names for reader in readers):
            return False
    return True


def _float_kind(graph: OnnxGraph, node: onnx.NodeProto) -> int:
    """Type of the first float that the node writes, else reads."""
    return next((graph.kinds[name] for name in (*node.output, *node.input) if graph.is_float(name)), FLOAT)


def _computed_in_half(path: Path, results: Iterable[str]) -> set[str]:
    """Those of the fp16 tensors `results` that onnxruntime computes in fp16 on this machine."""
    results = set(results)
    if not results:
        return set()
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = session_options("unfused", 1)  # else fused operators hide the tensors between them; which kernels there are is the same
        options.optimized_model_filepath = str(Path(folder) / "made_of_it.onnx")
        if path.is_dir():
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights_of_it.bin")
        ort.InferenceSession(str(graph_file(path)), options, providers=["CPUExecutionProvider"])
        made = onnx.load(options.optimized_model_filepath, load_external_data=False)
    written = {name for node in made.graph.node if not (node.op_type == "Cast" and node.name.startswith(_UNROUNDED)) for name in node.output}
    return {name for name in results if name in written and _UNROUNDED + name not in written}


def _port(value: onnx.ValueInfoProto) -> Port:
    from onnx import helper

    tensor = value.type.tensor_type
    shape = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    return Port(value.name, shape, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, layout_of(shape))
