"""ExecuTorch with the XNNPACK delegate, executed by executorch.runtime.

What runs where is read back from the .pte: its instructions say which operators are portable kernels, and the delegate's own flatbuffer inside it
lists XNNPACK's operators with the data types of their tensors.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.backend import BackendCall, FloatArray, Port, Runner, Written, as_fallbacks, require, shortfalls, version_of
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import ExecuTorchConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mcompress.compress.quantize.plan import PrecisionPlan

NAME = "executorch"
SUFFIX = ".pte"
KINDS = {
    "XNNConv2d": "conv2d",
    "XNNDepthwiseConv2d": "conv2d",
    "XNNConvTranspose2d": "conv_transpose2d",
    "XNNFullyConnected": "linear",
    "XNNAdd": "add",
    "XNNSubtract": "sub",
    "XNNMultiply": "mul",
    "XNNLeakyReLU": "leaky_relu",
    "XNNMaxPooling2d": "max_pool2d",
    "aten::upsample_nearest2d": "upsample_nearest2d",
    "aten::pixel_shuffle": "pixel_shuffle",
    "aten::cat": "cat",
}
MOVES = {"XNNStaticReshape", "XNNStaticTranspose"}
REASONS = {
    "leaky_relu": "planned int8, but ExecuTorch's XNNPACK delegate has only an fp32 LeakyReLU: it dequantizes, computes in fp32 and quantizes again",
    "upsample_nearest2d": "planned int8, but ExecuTorch has no INT8 nearest-neighbour resize: it dequantizes, copies fp32 values and quantizes again",
}
FP16_REASON = "written as fp32, because XNNPACK mixes INT8 with fp32 only"
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."
HEADER = {"offset": slice(10, 14), "size": slice(14, 18)}
"""Where the flatbuffer lies inside XNNPACK's payload (XNNHeader in executorch/backends/xnnpack/serialization)."""


class _Value(TypedDict):
    xvalue_union_type: str
    xvalue_union: dict[str, object]


class _Node(TypedDict):
    xnode_union_type: str
    xnode_union: dict[str, object]


class _Graph(TypedDict):
    xnodes: list[_Node]
    xvalues: list[_Value]


def probe() -> None:
    """Raise `MissingBackendError` if a package is missing."""
    require(NAME, {"executorch": "executorch"}, "It has packages for Linux (x86-64, Arm64) and macOS (Apple silicon).")


def write(config: ExecuTorchConfig, model: nn.Module, example: Tensor, plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.pte: fp32 without a plan, INT8 operators where the plan has them otherwise. Static shapes, NCHW float32."""
    del config  # the format has no choices yet
    probe()
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE):
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from mcompress.compress.quantize.program import export_program, graph_of, reference_program
        from mcompress.export.executorch_moves import keep_moves_in_delegate

        module = graph_of(export_program(model, example)) if plan is None else reference_program(model, example, plan)
        keep_moves_in_delegate(module)
        program = torch.export.export(module, (example,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        with path.open("wb") as stream:
            lowered.write_to_file(stream)
        return _read_back(path, plan)


def _read_back(path: Path, plan: PrecisionPlan | None) -> Written:
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall, Tensor

    program = deserialize_pte_binary(path.read_bytes()).program
    counts: Counter[str] = Counter({"int8": 0, "fp16": 0, "fp32": 0})
    units: Counter[str] = Counter()
    float_kinds: Counter[str] = Counter()
    fallbacks: list[OperatorFallback] = []
    execution = program.execution_plan[0]
    for instruction in (item.instr_args for chain in execution.chains for item in chain.instructions):
        if isinstance(instruction, KernelCall):
            name = execution.operators[instruction.op_index].name
            if "quantize" in name:
                continue
            units["portable"] += 1
            counts["fp32"] += 1
            float_kinds[KINDS.get(name, name)] += 1
            fallbacks.append(
                OperatorFallback(operator=name, reason=f"the XNNPACK delegate has no kernel for {name}: it runs in ExecuTorch's portable kernel")
            )
        elif isinstance(instruction, DelegateCall):
            delegate = execution.delegates[instruction.delegate_index]
            payload = bytes(program.backend_delegate_data[delegate.processed.index].data)
            for kind, precision in _xnnpack_operators(payload):
                units["xnnpack"] += 1
                counts[precision] += 1
                if precision != "int8" and kind in KINDS:
                    float_kinds[KINDS[kind]] += 1
                if precision != "int8" and kind in MOVES and plan is not None and not plan.counts()["fp16"]:
                    fallbacks.append(
                        OperatorFallback(operator=kind, reason="moves dequantized fp32 values: the same values, four times the memory traffic")
                    )
    fallbacks += shortfalls("ExecuTorch", plan, float_kinds, REASONS, FP16_REASON)
    coverage = CoverageRecord(total=sum(units.values()), by_unit=dict(units), fallbacks=tuple(fallbacks))
    ports = []
    for kind, indices in (("input", execution.inputs), ("output", execution.outputs)):
        for index in indices:
            value = execution.values[index].val
            if not isinstance(value, Tensor):
                raise ExportError(f"{path.name} has an {kind} that is a {type(value).__name__}, not a tensor")
            ports.append(Port(kind, tuple(value.sizes), value.scalar_type.name.lower().replace("float", "float32"), "NCHW"))
    return Written(
        path,
        dict(counts),
        coverage,
        as_fallbacks(path, tuple(fallbacks)),
        tuple(ports[: len(execution.inputs)]),
        tuple(ports[len(execution.inputs) :]),
    )


def _xnnpack_operators(payload: bytes) -> Iterator[tuple[str, str]]:
    """(operator, precision) of every node of XNNPACK's graph, conversions between precisions left out."""
    graph = _xnnpack_graph(payload)
    types = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = cast("dict[str, object]", union.get("tensor_value", union))
        types[tensor.get("id_out")] = str(tensor.get("datatype"))
    for node in graph["xnodes"]:
        if node["xnode_union_type"] == "XNNConvert":
            continue
        datatype = types.get(node["xnode_union"].get("output_id"), "")
        yield node["xnode_union_type"], "int8" if "qint8" in datatype or "qcint8" in datatype else "fp16" if "fp16" in datatype else "fp32"


def _xnnpack_graph(payload: bytes) -> _Graph:
    """The flatbuffer inside the delegate's payload, through the flatc that ships with ExecuTorch."""
    from executorch.backends.xnnpack import serialization
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    offset, size = (int.from_bytes(payload[part], "little") for part in HEADER.values())
    with tempfile.TemporaryDirectory() as folder:
        schema, data = Path(folder) / "schema.fbs", Path(folder) / "data.bin"
        schema.write_bytes((Path(next(iter(serialization.__path__))) / "schema.fbs").read_bytes())
        data.write_bytes(payload[offset : offset + size])
        _flatc_decompile(folder, str(schema), str(data), ["--defaults-json"])
        text = (Path(folder) / "data.json").read_text(encoding="utf-8")
    # flatc writes infinities, which are the open bounds of activations, in C's spelling.
    return cast("_Graph", json.loads(re.sub(r"(:\s*-?)inf\b", r"\1Infinity", text)))


class _ExecuTorchRunner:
    """A loaded `forward` method."""

    def __init__(self, path: Path, threads: int) -> None:
        import torch  # first: it loads the libraries that the runtime is linked with

        # The C++ runtime itself. `executorch.runtime` wraps it and imports the whole compiler (4 s and 300 MB), which would be counted as the file's
        # memory and paid for each timing; the bundle's verify.py executes the same files through `executorch.runtime`.
        from executorch.extension.pybindings import _portable_lib

        _portable_lib._unsafe_reset_threadpool(threads)  # the only way to say how many threads XNNPACK may use
        self._torch = torch
        self._program = _portable_lib._load_program(str(path))
        self._method = self._program.load_method("forward")
        self.runtime = f"executorch {version_of('executorch')} XNNPACK CPU"
        meta = self._method.method_meta()
        self.inputs: tuple[Port, ...] = (Port("input", tuple(meta.input_tensor_meta(0).sizes()), "float32", "NCHW"),)
        self.outputs: tuple[Port, ...] = (Port("output", tuple(meta.output_tensor_meta(0).sizes()), "float32", "NCHW"),)

    def execute(self, encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """Float32 NCHW in and out; the binding clones the output, because the runtime reuses its memory."""
        output: NDArray[np.generic] = self._method([self._torch.from_numpy(encoded)])[0].numpy()
        return output

    def run(self, value: FloatArray) -> FloatArray:
        """Float32 NCHW in and out."""
        return self.outputs[0].decode(self.execute(self.inputs[0].encode(value)))


def load(path: Path, threads: int) -> Runner:
    """Load the file into ExecuTorch's runtime. The number of threads holds for the whole process."""
    probe()
    with BackendCall(NAME, f"load {path.name}", "The file may be damaged; export it again."):
        return _ExecuTorchRunner(path, threads)
