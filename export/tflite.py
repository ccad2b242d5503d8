"""TFLite, converted by litert-torch and executed by ai-edge-litert.

The interface is NHWC, as Android's image code has it; the network itself is not changed. The mixed file comes from the same quantized graph as
every other backend's, converted in litert-torch's PT2E mode, which turns quantize/dequantize pairs into INT8 tensors and kernels; without that mode
the result would be a float graph full of conversions. INT8 networks take and give int8 tensors: scale and zero point are in the file.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.export.backend import BackendCall, FloatArray, Port, Runner, Written, as_fallbacks, require, shortfalls, version_of
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import TFLiteConfig

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter
    from torch import Tensor, nn

    from mcompress.compress.quantize.plan import PrecisionPlan

NAME = "tflite"
SUFFIX = ".tflite"
RANK_OF_IMAGES = 4
CONVERSIONS = {"QUANTIZE", "DEQUANTIZE"}
KINDS = {
    "CONV_2D": "conv2d",
    "DEPTHWISE_CONV_2D": "conv2d",
    "TRANSPOSE_CONV": "conv_transpose2d",
    "FULLY_CONNECTED": "linear",
    "ADD": "add",
    "SUB": "sub",
    "MUL": "mul",
    "LEAKY_RELU": "leaky_relu",
    "CONCATENATION": "cat",
    "RESIZE_NEAREST_NEIGHBOR": "upsample_nearest2d",
    "MAX_POOL_2D": "max_pool2d",
}
REASONS = {"conv_transpose2d": "planned int8, but litert-torch's converter does not turn transposed convolutions into INT8: computed in fp32"}
FP16_REASON = "LiteRT's CPU kernels compute it in fp32"
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."


def probe() -> None:
    """Raise `MissingBackendError` if a package is missing."""
    packages = {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"}
    require(NAME, packages, "Its converter has packages for Linux and macOS only.")


def write(config: TFLiteConfig, model: nn.Module, example: Tensor, plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.tflite: fp32 without a plan, INT8 operators where the plan has them otherwise. Static shapes, NHWC."""
    del config  # the format has no choices yet
    probe()
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE):
        import litert_torch
        from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
        from litert_torch.quantize.quant_config import QuantConfig

        from mcompress.compress.quantize.program import export_program, graph_of, reference_program

        module: nn.Module = graph_of(export_program(model, example)) if plan is None else reference_program(model, example, plan, fold_weights=False)
        # Only tells the converter to make INT8 kernels of quantize/dequantize pairs; scales are ours, the graph is already quantized.
        mode = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
        images_out = module(example).ndim == RANK_OF_IMAGES
        converted = litert_torch.convert(
            litert_torch.to_channel_last_io(module, args=[0], outputs=[0] if images_out else None),
            (example.permute(0, 2, 3, 1).contiguous(),),
            quant_config=None if plan is None else QuantConfig(pt2e_quantizer=mode),
        )
        converted.export(str(path))
        return _read_back(path, plan)


def _read_back(path: Path, plan: PrecisionPlan | None) -> Written:
    interpreter = _interpreter(path, 1)
    details = interpreter._get_ops_details()  # no public call lists operators after delegation
    tensors = {index: interpreter._get_tensor_details(index, 0) for op in details for index in op["outputs"] if index >= 0}
    operators = [op for op in details if op["op_name"] not in CONVERSIONS and op["op_name"] != "DELEGATE"]
    delegated = _delegated(details)
    counts: Counter[str] = Counter({"int8": 0, "fp16": 0, "fp32": 0})
    units: Counter[str] = Counter()
    float_kinds: Counter[str] = Counter()
    fallbacks: list[OperatorFallback] = []
    for op in operators:
        dtype = np.dtype(tensors[op["outputs"][0]]["dtype"]).name
        precision = {"int8": "int8", "float16": "fp16"}.get(dtype, "fp32")
        counts[precision] += 1
        if precision != "int8" and op["op_name"] in KINDS:
            float_kinds[KINDS[op["op_name"]]] += 1
        inside = op["index"] in delegated
        units["xnnpack" if inside else "builtin"] += 1
        if not inside:
            reason = f"LiteRT's XNNPACK delegate does not take {op['op_name']} in this form: it runs in the builtin kernel"
            fallbacks.append(OperatorFallback(operator=f"{op['op_name']} #{op['index']}", reason=reason))
    if plan is not None:
        fallbacks += shortfalls("LiteRT", plan, float_kinds, REASONS, FP16_REASON)
    coverage = CoverageRecord(total=len(operators), by_unit=dict(units), fallbacks=tuple(fallbacks))
    runner = _TFLiteRunner(path, 1)
    return Written(path, dict(counts), coverage, as_fallbacks(path, tuple(fallbacks)), runner.inputs, runner.outputs, _least_runtime(path))


def _least_runtime(path: Path) -> str | None:
    """What the converter noted in the file, from the versions of its operators; the numbers are TensorFlow's, which LiteRT continued from 1.0 on."""
    from ai_edge_litert.schema_py_generated import Model

    model = Model.GetRootAsModel(path.read_bytes(), 0)
    for entry in (model.Metadata(index) for index in range(model.MetadataLength())):
        buffer = model.Buffers(entry.Buffer())
        if entry.Name() == b"min_runtime_version" and buffer.DataLength():
            version = bytes(buffer.DataAsNumpy()).rstrip(b"\0").decode("ascii", errors="replace")
            return f"TensorFlow Lite {version}" if version else None
    return None


def _delegated(details: list[dict[str, object]]) -> set[object]:
    """Indices of the operators that a DELEGATE node replaces: everything between its outputs and its inputs."""

    def numbers(value: object) -> list[int]:
        return [int(index) for index in np.asarray(value).reshape(-1) if int(index) >= 0]

    producers = {index: op for op in details if op["op_name"] != "DELEGATE" for index in numbers(op["outputs"])}
    found: set[object] = set()
    for delegate in details:
        if delegate["op_name"] != "DELEGATE":
            continue
        given, open_tensors = set(numbers(delegate["inputs"])), numbers(delegate["outputs"])
        while open_tensors:
            producer = producers.get(open_tensors.pop())
            if producer is None or producer["index"] in found:
                continue
            found.add(producer["index"])
            open_tensors += [index for index in numbers(producer["inputs"]) if index not in given]
    return found


def _interpreter(path: Path, threads: int) -> Interpreter:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


class _TFLiteRunner:
    """A LiteRT interpreter with the XNNPACK delegate."""

    def __init__(self, path: Path, threads: int) -> None:
        self._interpreter = _interpreter(path, threads)
        self.runtime = f"ai-edge-litert {version_of('ai-edge-litert')} CPU"
        (given,), (result,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._input, self._output = int(given["index"]), int(result["index"])
        self.inputs: tuple[Port, ...] = (_port(given),)
        self.outputs: tuple[Port, ...] = (_port(result),)

    def execute(self, encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """The file's own types and layout in and out."""
        self._interpreter.set_tensor(self._input, encoded)
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._output))

    def run(self, value: FloatArray) -> FloatArray:
        """Float32 NCHW in and out; layout and INT8 conversion happen here."""
        return self.outputs[0].decode(self.execute(self.inputs[0].encode(value)))


def _port(details: dict[str, object]) -> Port:
    name, shape = str(details["name"]), tuple(int(size) for size in np.asarray(details["shape"]))
    dtype = np.dtype(details["dtype"]).name  # type: ignore[call-overload]
    scale, zero_point = np.asarray(details["quantization"], dtype=np.float64)
    quantized = scale != 0.0
    layout = "NHWC" if len(shape) == RANK_OF_IMAGES else "NCHW"
    return Port(name, shape, dtype, layout, float(scale) if quantized else None, int(zero_point) if quantized else None)


def load(path: Path, threads: int) -> Runner:
    """Open the file in LiteRT's interpreter with `threads` threads."""
    probe()
    with BackendCall(NAME, f"load {path.name}", "The file may be damaged; export it again."):
        return _TFLiteRunner(path, threads)
