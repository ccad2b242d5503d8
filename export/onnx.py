"""ONNX, executed by onnxruntime. INT8 as QDQ: onnxruntime turns quantize/dequantize sandwiches into integer kernels, where it has one
(`mcompress.export.tables.onnx_integer`).

Activations are unsigned (the plan's INT8 values shifted by 128, the same scales) and weights signed: the combination for which it has kernels
everywhere. On x86 processors without VNNI, 8-bit products of this kind are summed in 16 bits and can saturate, which Arm does not; `load` therefore
asks onnxruntime for its exact mode there (`session.x64quantprecision`), and `export.parity` names the host when a check fails on such a processor
all the same.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.backend import BackendCall, FloatArray, Port, Runner, Written, as_fallbacks, require, saturates_int8_sums, version_of
from mcompress.export.tables.onnx_attributes import OWN
from mcompress.export.tables.onnx_integer import integer_nodes
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import OnnxConfig

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from torch import Tensor, nn

    from mcompress.compress.quantize.plan import PrecisionPlan

NAME = "onnx"
SUFFIX = ".onnx"
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "Constant"}
WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}
ALL_INPUTS = {"Concat", "Add", "Sub", "Mul", "MatMul"}
OPTIMIZED_FLOAT = "onnxruntime has no integer kernel for {op} in this form: it dequantizes, computes in fp32 and quantizes again"
FP16_REASON = "onnxruntime's CPU kernels compute it in fp32"
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."


def probe() -> None:
    """Raise `MissingBackendError` if a package is missing."""
    require(NAME, {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"}, "It runs on Linux, macOS and Windows.")


def write(config: OnnxConfig, model: nn.Module, example: Tensor, plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.onnx: fp32 without a plan, QDQ with one. Static shapes, input `input`, output `output`, NCHW float32."""
    probe()
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE):
        import onnx
        import torch

        from mcompress.compress.quantize.program import export_program, reference_program

        program = export_program(model, example) if plan is None else torch.export.export(reference_program(model, example, plan), (example,))
        exported = torch.onnx.export(
            program, (example,), dynamo=True, opset_version=config.opset, input_names=["input"], output_names=["output"], optimize=True, verbose=False
        )
        if exported is None:
            raise ExportError("torch.onnx.export returned nothing")
        proto = exported.model_proto
        _strip(proto)
        quantize_biases(proto.graph)
        _unshare(proto.graph)
        _make_activations_unsigned(proto.graph)
        onnx.checker.check_model(proto)
        onnx.save(proto, str(path))
        return _read_back(path, plan)


def _strip(proto: onnx.ModelProto) -> None:
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


def _unshare(graph: onnx.GraphProto) -> None:
    """Undo the exporter's sharing, which onnxruntime's INT8 passes do not see through.

    Every reader gets a dequantize node of its own, or its operator stays float; every quantized constant gets values and zero point of its own, or
    the exact mode for x86 cannot load the file.
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
        for number, (reader, position) in enumerate(spare):
            clone = onnx.NodeProto()
            clone.CopyFrom(node)
            clone.name, clone.output[0] = f"{node.name}_{number}", f"{node.output[0]}_{number}"
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
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _make_activations_unsigned(graph: onnx.GraphProto) -> None:
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
    _drop_unused(graph)
    del graph.value_info[:]


def _scale(node: onnx.NodeProto | None, constants: dict[str, NDArray[np.generic]]) -> NDArray[np.generic] | None:
    return constants.get(node.input[1]) if node is not None and node.op_type == "DequantizeLinear" else None


def _quantized_nodes(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes that lie between dequantize and quantize, a fused Relu included: what the file quantizes, whoever runs it."""
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in CONVERSIONS:
            continue
        count = 2 if node.op_type in WEIGHTED else len(node.input) if node.op_type in ALL_INPUTS else 1
        sources = [producers.get(name) for name in node.input[:count]]
        after = readers.get(node.output[0], [])
        end = after[0] if len(after) == 1 and after[0].op_type == "Relu" else node
        quantized = readers.get(end.output[0], [])
        if (
            all(s is not None and s.op_type == "DequantizeLinear" for s in sources)
            and quantized
            and all(r.op_type == "QuantizeLinear" for r in quantized)
        ):
            found.update((node.output[0], end.output[0]))
    return found


def _read_back(path: Path, plan: PrecisionPlan | None) -> Written:
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type not in CONVERSIONS]
    quantized = _quantized_nodes(graph)
    integer = integer_nodes(graph, next(item.version for item in model.opset_import if item.domain in OWN))
    fallbacks: list[OperatorFallback] = []
    units: Counter[str] = Counter()
    for node in nodes:
        name, operator = node.output[0], node.name.removeprefix("node_") or node.output[0]
        if name in integer:
            units["cpu int8"] += 1
            continue
        units["cpu fp32"] += 1
        planned = None if plan is None else plan.precision_of(operator)
        if name in quantized:
            fallbacks.append(OperatorFallback(operator=operator, reason=OPTIMIZED_FLOAT.format(op=node.op_type)))
        elif planned == "fp16":
            fallbacks.append(OperatorFallback(operator=operator, reason=f"planned fp16: {FP16_REASON}"))
        elif planned == "int8":
            fallbacks.append(
                OperatorFallback(operator=operator, reason=f"planned int8, but {node.op_type} is not between quantized tensors in the file")
            )
    coverage = CoverageRecord(total=len(nodes), by_unit=dict(units), fallbacks=tuple(fallbacks))
    counts = {"int8": len([node for node in nodes if node.output[0] in quantized]), "fp16": 0, "fp32": 0}
    counts["fp32"] = len(nodes) - counts["int8"]
    constants = {item.name for item in graph.initializer}
    inputs = tuple(_port(item) for item in graph.input if item.name not in constants)
    return Written(path, counts, coverage, as_fallbacks(path, tuple(fallbacks)), inputs, tuple(_port(item) for item in graph.output))


def _port(value: onnx.ValueInfoProto) -> Port:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    return Port(value.name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, "NCHW")


def _options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if saturates_int8_sums():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class _OnnxRunner:
    """An onnxruntime session on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime as ort

        self._session = ort.InferenceSession(str(path), _options(threads), providers=["CPUExecutionProvider"])
        self.runtime = f"onnxruntime {version_of('onnxruntime')} CPU"
        self.inputs = tuple(_session_port(item.name, item.shape, item.type) for item in self._session.get_inputs())
        self.outputs = tuple(_session_port(item.name, item.shape, item.type) for item in self._session.get_outputs())

    def execute(self, encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """The file's own types in and out."""
        (result,) = self._session.run(None, {self.inputs[0].name: encoded})
        return np.asarray(result)

    def run(self, value: FloatArray) -> FloatArray:
        """Float32 NCHW in and out."""
        return self.outputs[0].decode(self.execute(self.inputs[0].encode(value)))


def _session_port(name: str, shape: list[int], kind: str) -> Port:
    return Port(name, tuple(shape), {"tensor(float)": "float32", "tensor(float16)": "float16"}.get(kind, kind), "NCHW")


def load(path: Path, threads: int) -> Runner:
    """Open the file in onnxruntime with `threads` threads."""
    probe()
    with BackendCall(NAME, f"load {path.name}", "The file may be damaged; export it again."):
        return _OnnxRunner(path, threads)
