"""Quantizers of others, each in the way its documentation shows first, with the same network and the same calibration inputs.

Every function writes the artifact of its own runtime and returns it with the share of multiply-accumulates that it computes in INT8, read from the
artifact (for ExecuTorch from the quantized graph that is lowered).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.program import int8_operators


@dataclass(frozen=True)
class PeerFile:
    """An artifact: its path, the backend of mcompress whose runtime executes it, and the share of MACs in INT8."""

    path: Path
    backend: str
    int8_share: float


def _xnnpack_quantizer() -> object:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def torchao_pt2e(network: nn.Module, inputs: Sequence[Tensor], stem: Path) -> PeerFile:
    """torchao's PT2E: prepare, calibrate, convert with ExecuTorch's XNNPACKQuantizer, per channel."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(_captured(network, inputs[0]), _xnnpack_quantizer())
    with torch.no_grad():
        for value in inputs:
            prepared(value)
    return _lowered(convert_pt2e(prepared), inputs[0], stem)


def nncf_pt2e(network: nn.Module, inputs: Sequence[Tensor], stem: Path) -> PeerFile:
    """NNCF's quantize_pt2e with its defaults (fast bias correction) and ExecuTorch's XNNPACKQuantizer, per channel."""
    os.environ["NNCF_CI"] = os.environ["CI"] = "true"  # no telemetry
    import nncf
    from nncf.experimental.torch.fx import quantize_pt2e

    quantized = quantize_pt2e(_captured(network, inputs[0]), _xnnpack_quantizer(), nncf.Dataset(list(inputs)))
    return _lowered(quantized, inputs[0], stem)


def _captured(network: nn.Module, example: Tensor) -> fx.GraphModule:
    module = torch.export.export(network.eval(), (example,)).module(check_guards=False)
    if not isinstance(module, fx.GraphModule):
        raise TypeError(f"torch.export gave a {type(module).__name__}")
    return module


def _lowered(module: fx.GraphModule, example: Tensor, stem: Path) -> PeerFile:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    path = stem.with_name(stem.name + ".pte")
    program = torch.export.export(module, (example,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)
    return PeerFile(path, "executorch", graph_share(program.graph))


def graph_share(graph: fx.Graph) -> float:
    """Share of the MACs of convolutions and linear layers that read and write INT8 in a graph of quantize/dequantize pairs."""
    int8 = int8_operators(graph)
    macs = {node.name: node_macs(node) for node in graph.nodes if node.target in kinds.WEIGHTED}
    return sum(value for name, value in macs.items() if name in int8) / sum(macs.values())


def node_macs(node: fx.Node) -> int:
    """Multiply-accumulates of a convolution or linear layer."""
    weight = node.args[1]
    shape = weight.meta["val"].shape if isinstance(weight, fx.Node) else ()
    return int(node.meta["val"].numel() * np.prod(shape) // shape[kinds.WEIGHTED[node.target]])


def _float_onnx(network: nn.Module, example: Tensor, stem: Path) -> Path:
    path = stem.with_name(stem.name + "_float.onnx")
    torch.onnx.export(network, (example,), dynamo=True, input_names=["input"], output_names=["output"], verbose=False).save(str(path))  # type: ignore[union-attr]
    return path


def onnxruntime_static(network: nn.Module, inputs: Sequence[Tensor], stem: Path) -> PeerFile:
    """onnxruntime's quantize_static with its defaults: QDQ, per tensor."""
    return _onnxruntime(network, inputs, stem, per_channel=False)


def onnxruntime_static_per_channel(network: nn.Module, inputs: Sequence[Tensor], stem: Path) -> PeerFile:
    """The same with per-channel weights."""
    return _onnxruntime(network, inputs, stem, per_channel=True)


def _onnxruntime(network: nn.Module, inputs: Sequence[Tensor], stem: Path, *, per_channel: bool) -> PeerFile:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self._values: Iterator[dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = iter({"input": v.numpy()} for v in inputs)

        def get_next(self) -> object:
            return next(self._values, None)

    source, prepared, path = _float_onnx(network, inputs[0], stem), stem.with_name(stem.name + "_prepared.onnx"), stem.with_name(stem.name + ".onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(str(prepared), str(path), Reader(), per_channel=per_channel)
    return PeerFile(path, "onnx", _onnx_share(path))


def _onnx_share(path: Path) -> float:
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    producers = {name: node for node in graph.node for name in node.output}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.input, *graph.output]}
    sizes = {item.name: list(item.dims) for item in graph.initializer}
    total = int8 = 0.0
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        makers = [producers.get(name) for name in node.input[:2]]
        weight = node.input[1] if makers[1] is None else makers[1].input[0]
        macs = float(np.prod(shapes[node.output[0]]) * np.prod(sizes[weight][1:]))
        total += macs
        int8 += macs * all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
    return int8 / total


def ai_edge_static(network: nn.Module, inputs: Sequence[Tensor], stem: Path) -> PeerFile:
    """ai-edge-quantizer's recipe static_wi8_ai8 on the file that litert-torch converts, images in NHWC as in Android's apps."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    example = inputs[0].permute(0, 2, 3, 1).contiguous()
    source, path = stem.with_name(stem.name + "_float.tflite"), stem.with_name(stem.name + ".tflite")
    litert_torch.convert(litert_torch.to_channel_last_io(network, args=[0], outputs=[0]), (example,)).export(str(source))
    working = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
    (signature,) = _signatures(source).items()
    data = {signature[0]: [{signature[1]: value.permute(0, 2, 3, 1).contiguous().numpy()} for value in inputs]}
    working.quantize(working.calibrate(data, num_threads=1)).export_model(str(path), overwrite=True)
    return PeerFile(path, "tflite", tflite_share(path))


def _signatures(path: Path) -> dict[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    return {name: found["inputs"][0] for name, found in Interpreter(model_path=str(path)).get_signature_list().items()}


def tflite_share(path: Path) -> float:
    """Share of the MACs of convolutions whose result is INT8."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    total = int8 = 0.0
    for op in interpreter._get_ops_details():
        if op["op_name"] not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        output, weight = (interpreter._get_tensor_details(index, 0) for index in (op["outputs"][0], op["inputs"][1]))
        kernel = np.prod(weight["shape"][1:3]) if op["op_name"] == "DEPTHWISE_CONV_2D" else np.prod(weight["shape"][1:])
        macs = float(np.prod(output["shape"]) * kernel)
        total += macs
        int8 += macs * (np.dtype(output["dtype"]) == np.int8)
    return int8 / total


PEERS: dict[str, Callable[[nn.Module, Sequence[Tensor], Path], PeerFile]] = {
    "torchao PT2E": torchao_pt2e,
    "NNCF": nncf_pt2e,
    "onnxruntime static": onnxruntime_static,
    "onnxruntime static, per channel": onnxruntime_static_per_channel,
    "ai-edge-quantizer": ai_edge_static,
}
