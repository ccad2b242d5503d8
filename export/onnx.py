"""ONNX, executed by onnxruntime: INT8 as QDQ, fp16 and fp32 as the types of tensors and weights, each operator as the plan says.

onnxruntime turns quantize/dequantize sandwiches into integer kernels, where it has one (`mcompress.export.tables.onnx_integer`). What it makes of
fp16 is in `mcompress.export.onnx_reading`; where its integer sums are not exact, and how they become so, in `mcompress.export.onnx_host`.

TensorRT takes INT8 with zero points of 0 only (NVIDIA/TensorRT issues 2774 and 4698), and neither uint8 nor int32. A plan with symmetric activations
(those for NVIDIA's boards, whose device files declare it) is written in the form that it takes (`mcompress.export.onnx_symmetric`), and the file is
held against its documented rules (`mcompress.export.onnx_tensorrt`); TensorRT itself does not run here. Of other plans it takes fp16 and fp32 only.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export import onnx_session
from mcompress.export.backend import OUTPUT, BackendCall, FloatArray, Runner, Written, check_examples, check_inputs, require
from mcompress.export.honoured import FileOperator
from mcompress.export.onnx_halving import halve
from mcompress.export.onnx_large import as_inputs, as_weights, save_checked, with_weights_outside
from mcompress.export.onnx_naming import mark_operators, name_nodes
from mcompress.export.onnx_reading import read_back
from mcompress.export.onnx_rewriting import (
    CONVERSIONS,
    drop_unused,
    make_activations_unsigned,
    move_integers,
    quantize_biases,
    strip,
    turn_weights,
    unshare,
)
from mcompress.export.onnx_symmetric import for_zero_points_of_0
from mcompress.export.onnx_tensorrt import NOT_BUILT, doubts
from mcompress.targets.exports import OnnxConfig
from mcompress.targets.schema import Fallback

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from mcompress.compress.quantize.plan import PrecisionPlan

__all__ = ["CONVERSIONS", "NAME", "SUFFIX", "intermediates", "load", "probe", "write"]

NAME = "onnx"
SUFFIX = ".onnx"
LEAST_EXPORTED = 18
"""The opset that torch's operators are written in; asked for a lower one, its exporter loses the names of the nodes, or keeps 18 without an error."""
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."


def probe() -> None:
    """Raise `MissingBackendError` if a package is missing."""
    require(NAME, {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"}, "It runs on Linux, macOS and Windows.")


def write(config: OnnxConfig, model: nn.Module, examples: Mapping[str, Tensor], plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.onnx: fp32 without a plan, else each operator as planned. Static shapes, inputs as named, output `output`, NCHW float32.

    Where the weights are too large for one file, it is a folder (`mcompress.export.onnx_large`).

    With symmetric activations `fallbacks` has what TensorRT is documented to refuse of the file, and that it was not asked.
    """
    probe()
    given = check_examples(examples)
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE), _without_collection():
        import torch

        from mcompress.compress.quantize.program import export_program, reference_program

        if plan is None:
            program = export_program(model, *given, share_weights=True)
            computes = mark_operators(program.graph)
        else:
            reference = reference_program(model, given, plan)
            computes = mark_operators(reference.graph)
            program = torch.export.export(reference, given)
        opset = max(config.opset, LEAST_EXPORTED)
        exported = torch.onnx.export(
            program, given, dynamo=True, opset_version=opset, input_names=[*examples], output_names=[OUTPUT], optimize=True, verbose=False
        )
        if exported is None or exported.exported_program is None:
            raise ExportError("torch.onnx.export returned nothing")
        outside = None if plan is not None else with_weights_outside(exported, path)
        proto = exported.model_proto if outside is None else outside
        name_nodes(proto.graph, exported.exported_program.graph, computes)
        strip(proto)
        if opset != config.opset:
            proto = _lowered(proto, config.opset)
        if plan is not None:
            _as_planned(proto, plan)
        drop_unused(proto.graph)
        del proto.graph.value_info[:]
        save_checked(proto, path)
        written = read_back(path, plan)
        check_inputs(path, examples, written.inputs)
        if plan is not None and plan.activations == "symmetric":
            unbuilt = Fallback(where=f"export {path.name}", what="TensorRT", reason=NOT_BUILT)
            written = replace(written, fallbacks=(*written.fallbacks, *doubts(path), unbuilt))
        return written


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Python's search for cycles of objects is a tenth of the time of an export, and the graphs that it walks through stay until the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _as_planned(proto: onnx.ModelProto, plan: PrecisionPlan) -> None:
    """The graph in the form that keeps to the plan, in place."""
    turn_weights(proto.graph)
    if plan.activations == "symmetric":
        unshare(proto.graph)
        for_zero_points_of_0(proto.graph)
    else:
        quantize_biases(proto.graph)
        unshare(proto.graph)
        make_activations_unsigned(proto.graph)
        move_integers(proto.graph)
    halve(proto, frozenset(operator.name for operator in plan.operators if operator.precision == "fp16"))


def _lowered(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    from onnx import checker, version_converter

    try:
        outside = as_inputs(proto)  # the converter would lose where they are
        lowered: onnx.ModelProto = version_converter.convert_version(proto, opset)
        checker.check_model(lowered)  # the converter leaves attributes that the older operators do not have
        as_weights(lowered, outside)
        return lowered
    except (RuntimeError, checker.ValidationError) as problem:
        raise ExportError(f"this network cannot be written in opset {opset}: {problem}; set opset to {LEAST_EXPORTED} or more") from problem


def load(path: Path, threads: int) -> Runner:
    """Open the file in onnxruntime with `threads` threads, in a mode whose integer sums are exact here. Raises `ExportError` for a damaged file."""
    probe()
    with BackendCall(NAME, f"load {path.name}", onnx_session.DAMAGED):
        return onnx_session.open_runner(path, threads)


def intermediates(path: Path, encoded: Sequence[NDArray[np.generic]], operators: Sequence[FileOperator]) -> dict[str, FloatArray]:
    """The value of the `output` of every operator for inputs of the file's own types; see `mcompress.export.onnx_session.intermediates`."""
    probe()
    with BackendCall(NAME, f"run {path.name}", onnx_session.DAMAGED):
        return onnx_session.intermediates(path, encoded, operators)
