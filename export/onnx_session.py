"""ONNX files in onnxruntime: run, and asked for the value of every operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.backend import BackendCall, FloatArray, Port, Runner, encode_all, layout_of, version_of
from mcompress.export.honoured import FileOperator
from mcompress.export.onnx_checking import check
from mcompress.export.onnx_halving import HALF, element_kinds
from mcompress.export.onnx_host import MODE_NOTES, Mode, exact_here, modes_to_use, session_options
from mcompress.export.onnx_large import changed_beside, graph_file

DAMAGED = "The file may be damaged; export it again."
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxRunner:
    """An onnxruntime session on the CPU, in a mode that computes exactly on this machine."""

    def __init__(self, path: Path, threads: int, mode: Mode) -> None:
        """Load the file; `threads` computing threads."""
        import onnxruntime as ort

        self._path, self._threads, self._mode = path, threads, mode
        self._session = ort.InferenceSession(str(graph_file(path)), session_options(mode, threads), providers=["CPUExecutionProvider"])
        self.runtime = f"onnxruntime {version_of('onnxruntime')} CPU{MODE_NOTES[mode]}"
        self.inputs = tuple(_session_port(item.name, item.shape, item.type) for item in self._session.get_inputs())
        self.outputs = tuple(_session_port(item.name, item.shape, item.type) for item in self._session.get_outputs())

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """The file's own types in and out."""
        with BackendCall("onnx", f"run {self._path.name}", DAMAGED):
            (result,) = self._session.run(None, {port.name: one for port, one in zip(self.inputs, encoded, strict=True)})
        return np.asarray(result)

    def run(self, *values: FloatArray) -> FloatArray:
        """Float32 NCHW in and out."""
        return self.outputs[0].decode(self.execute(*encode_all(self.inputs, values)))

    def exact_alternatives(self) -> Iterator[Runner]:
        """The same file in the other modes that an experiment shows to be exact; none where this machine has no such trap."""
        exact = exact_here()
        if all(exact.values()):
            return
        for mode in modes_to_use(exact):
            if mode != self._mode:
                yield OnnxRunner(self._path, self._threads, mode)


def open_runner(path: Path, threads: int) -> OnnxRunner:
    """The file in the fastest mode that is exact on this machine. Raises `ExportError` for a file that no longer is what was written."""
    check(path)
    runner = OnnxRunner(path, threads, modes_to_use(exact_here())[0])
    if not runner.inputs or len(runner.outputs) != 1:
        raise ExportError(
            f"{path.name} has {len(runner.inputs)} inputs and {len(runner.outputs)} outputs; a file of mcompress has inputs and one output. "
            "Export it again."
        )
    return runner


def intermediates(path: Path, encoded: Sequence[NDArray[np.generic]], operators: Sequence[FileOperator]) -> dict[str, FloatArray]:
    """Tensor -> its value for the inputs `encoded` (in the file's own types), for every operator's `output`; quantized ones as real numbers.

    The file is run once, as `load` runs it, with these tensors as further outputs; they are all in memory at once. Integer operators are asked for
    what they write, so they stay integer kernels; fp16 tensors are asked for behind a cast to fp32, which rounds nothing that is not rounded without
    it. What changes: onnxruntime cannot fuse floating-point operators over a tensor that is asked for, so floats differ in the last bits; on x86 an
    fp16 ReLU that is asked for is computed in fp16 and not in fp32 between two others; a quantized value behind either may round the other way.
    Raises `ExportError` for a damaged file.
    """
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    check(path)
    model = onnx.load(str(graph_file(path)), load_external_data=not path.is_dir())
    graph, kinds = model.graph, element_kinds(model)
    asked = list(dict.fromkeys(operator.output for operator in operators if operator.output in kinds))
    quantized = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}  # what moved integers made
    quantized |= {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    # Of a folder, weights beyond a size are not read; scales and zero points are smaller.
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer if item.data_location != TensorProto.EXTERNAL}
    names = {name: f"{name}_asked" if kinds[name] == HALF else name for name in asked}
    given = {item.name for item in graph.output}
    for name, output in names.items():
        if output != name:
            graph.node.append(helper.make_node("Cast", [name], [output], name=output, to=TensorProto.FLOAT))
        if output not in given:
            graph.output.append(helper.make_tensor_value_info(output, kinds[name] if output == name else TensorProto.FLOAT, None))
    mode = modes_to_use(exact_here())[0]
    held = {item.name for item in graph.initializer}
    inputs = [item.name for item in graph.input if item.name not in held]
    with changed_beside(path, model) as opened:
        session = ort.InferenceSession(opened, session_options(mode, 1), providers=["CPUExecutionProvider"])
        values = session.run(list(names.values()), dict(zip(inputs, encoded, strict=True)))
    found: dict[str, FloatArray] = {}
    for name, value in zip(asked, values, strict=True):
        if name in quantized:
            scale, zero = (constants[given_name] for given_name in quantized[name].input[1:3])
            value = (np.asarray(value, np.int32) - zero.astype(np.int32)).astype(np.float32) * scale.astype(np.float32)
        found[name] = np.asarray(value, dtype=np.float32)
    return found


def _session_port(name: str, shape: list[int], kind: str) -> Port:
    return Port(name, tuple(shape), _TYPES.get(kind, kind), layout_of(shape))
