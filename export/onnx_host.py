"""Does onnxruntime add up 8-bit products exactly on this machine? Answered by an experiment, not by what the processor calls itself.

On x86 without VNNI onnxruntime's kernels multiply unsigned by signed bytes in pairs and keep each pair's sum in 16 bits, where it saturates
(`vpmaddubsw`); Arm and x86 with VNNI do not. Whoever computes there gets other numbers than the file describes: an artefact of the host, not an error
of the file. onnxruntime has a slower mode without it (`session.x64quantprecision`), and without graph optimizations it dequantizes, computes in
float and quantizes again. The experiment runs one convolution whose pairs of products must saturate, in each mode, and compares every value with
integer arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Mode = Literal["default", "exact", "unfused"]
"""onnxruntime as it comes; with its exact mode for x86; without graph optimizations, so that no integer kernel is used."""
MODES: tuple[Mode, ...] = ("default", "exact", "unfused")
"""The fastest first."""
MODE_NOTES: dict[Mode, str] = {
    "default": "",
    "exact": ", in its exact mode (session.x64quantprecision): this processor saturates 8-bit sums in the default mode, an experiment shows",
    "unfused": ", without graph optimizations: this processor saturates 8-bit sums in the other modes, an experiment shows",
}
Run = Callable[[bytes, NDArray[np.float32], Mode], NDArray[np.generic]]
"""Computes the only output of an ONNX model for its only input, in a mode."""
_CHANNELS, _PIXELS, _STEP = 32, 4, 4096.0


def session_options(mode: Mode, threads: int) -> onnxruntime.SessionOptions:
    """onnxruntime's options for a mode."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if mode == "exact":
        options.add_session_config_entry("session.x64quantprecision", "1")
    elif mode == "unfused":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def experiment(run: Run) -> dict[Mode, bool]:
    """Mode -> whether every sum of 8-bit products is exact in it."""
    model, given, expected = saturating_convolution()
    return {mode: bool(np.array_equal(run(model, given, mode), expected)) for mode in MODES}


def saturating_convolution() -> tuple[bytes, NDArray[np.float32], NDArray[np.float32]]:
    """A QDQ model of one 1x1 convolution, its input (1, 32, 4, 4), and its output (1, 32, 4, 4) by integer arithmetic.

    Activations are 200 to 255, weights 100 to 127, so every sum of two products (40,000 and more) is above 32,767. Scales are powers of two and
    sums below 2^24, so that neither scaling nor float sums round.
    """
    from onnx import TensorProto, helper, numpy_helper

    source = np.random.default_rng(5)
    weights = source.integers(100, 128, (_CHANNELS, _CHANNELS), dtype=np.int64)
    given = source.integers(200, 256, (_CHANNELS, _PIXELS * _PIXELS), dtype=np.int64)
    sums = weights @ given
    expected = (np.clip(np.round(sums / _STEP), 0, 255) * _STEP).astype(np.float32).reshape(1, _CHANNELS, _PIXELS, _PIXELS)
    ones = np.ones(_CHANNELS, np.float32)
    constants = {
        "one": np.float32(1),
        "step": np.float32(_STEP),
        "zero": np.uint8(0),
        "weight_zero": np.zeros(_CHANNELS, np.int8),
        "weight_scale": ones,
        "weight": weights.astype(np.int8).reshape(_CHANNELS, _CHANNELS, 1, 1),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "one", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "one", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "step", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["output"]),
    ]
    shape = (1, _CHANNELS, _PIXELS, _PIXELS)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "saturating_convolution", ends[:1], ends[1:], held)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString(), given.astype(np.float32).reshape(shape), expected


@functools.cache
def exact_here() -> Mapping[Mode, bool]:
    """The experiment with the installed onnxruntime on this machine; made once per process, in a few milliseconds."""
    return experiment(_in_onnxruntime)


def modes_to_use(exact: Mapping[Mode, bool]) -> tuple[Mode, ...]:
    """The exact modes, the fastest first; onnxruntime as it comes where no mode is exact."""
    return tuple(mode for mode in MODES if exact[mode]) or ("default",)


def _in_onnxruntime(model: bytes, given: NDArray[np.float32], mode: Mode) -> NDArray[np.generic]:
    import onnxruntime as ort

    session = ort.InferenceSession(model, session_options(mode, 1), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": given})
    return np.asarray(result)
