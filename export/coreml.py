"""Core ML program (.mlpackage), FP16. It can be converted and inspected anywhere, but executed on macOS only.

Away from macOS the saved package is loaded again, its operators are counted, and every weight is compared with PyTorch's; what was not executed
says so. The mixed file is the same quantized graph as every other backend's (W8A8: `quantize`, `dequantize`, `constexpr_affine_dequantize`, iOS 17
and later).
"""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError, MissingBackendError
from mcompress.export.backend import BackendCall, FloatArray, Port, Runner, Written, as_fallbacks, require, version_of
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import CoreMLConfig

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Operation, Program
    from coremltools.models import MLModel
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from mcompress.compress.quantize.plan import PrecisionPlan

NAME = "coreml"
SUFFIX = ".mlpackage"
CONVERSIONS = {"const", "cast", "quantize", "dequantize", "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"}
WEIGHTED = {"conv": "weight", "conv_transpose": "weight", "linear": "weight"}
LEAST_SYSTEM = {7: "iOS 16, macOS 13", 8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15"}
"""Specification version of a saved package -> the first systems whose Core ML reads it (coremltools, `specificationVersion`)."""
FP16_TOLERANCE = 2e-3  # relative; half precision has a relative step of 1e-3
INT8_TOLERANCE = 0.1  # relative; a channel's weights are rounded to 1/127 of their largest
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."
NOT_EXECUTED = "Core ML executes on macOS only; the saved program was reloaded, its operators counted and its weights compared"


def probe() -> None:
    """Raise `MissingBackendError` if coremltools is missing."""
    require(NAME, {"coremltools": "coremltools"}, "It converts on Linux and macOS; only macOS can execute the result.")


def write(config: CoreMLConfig, model: nn.Module, example: Tensor, plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.mlpackage: FP16 without a plan, INT8 operators where the plan has them otherwise. Static shapes, NCHW, float32 interface.

    Raises `ExportError` when a weight of the saved package is not the network's.
    """
    probe()
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE):
        import coremltools as ct
        import torch

        from mcompress.compress.quantize.program import export_program, reference_program

        program = export_program(model, example)
        source = program if plan is None else torch.export.export(reference_program(model, example, plan), (example,))
        if plan is not None and plan.counts()["int8"] and config.minimum_deployment_target == "iOS16":
            raise ExportError("INT8 activations need Core ML of iOS 17; set minimum_deployment_target: iOS17, or leave the quantize stage out")
        converted = ct.convert(
            source.run_decompositions({}),
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, config.minimum_deployment_target),
            compute_precision=ct.precision.FLOAT16,
            outputs=[ct.TensorType(name="output", dtype=np.float32)],
            skip_model_load=True,
        )
        given = str(converted.get_spec().description.input[0].name)
        if path.exists():
            shutil.rmtree(path)
        if given == "input":
            converted.save(str(path))
        else:
            specification = converted.get_spec()
            ct.utils.rename_feature(specification, given, "input")
            ct.models.MLModel(specification, weights_dir=converted.weights_dir, skip_model_load=True).save(str(path))
        return _read_back(path, program, plan)


def _read_back(path: Path, program: ExportedProgram, plan: PrecisionPlan | None) -> Written:
    import coremltools as ct

    saved = ct.models.MLModel(str(path), skip_model_load=True)
    mil = _mil_program(saved)
    operations = [operation for operation in mil.functions["main"].operations if operation.op_type not in CONVERSIONS]
    counts: Counter[str] = Counter({"int8": 0, "fp16": 0, "fp32": 0})
    for operation in operations:
        counts[_precision(operation)] += 1
    fallbacks = _weights_that_differ(operations, program)
    if plan is not None and counts["int8"] < plan.counts()["int8"]:
        missing = plan.counts()["int8"] - counts["int8"]
        reason = "planned int8, but coremltools removed or merged these operators, or left them between fp16 tensors"
        fallbacks.append(OperatorFallback(operator=f"{missing} of {plan.counts()['int8']} operators", reason=reason))
    if platform.system() != "Darwin":
        reason = "which of CPU, GPU and Neural Engine an operator goes to is decided on the device; it cannot be known here"
        fallbacks.append(OperatorFallback(operator="all", reason=reason))
    coverage = CoverageRecord(total=len(operations), by_unit={"decided on the device": len(operations)}, fallbacks=tuple(fallbacks))
    description = saved.get_spec().description
    inputs = tuple(Port(str(item.name), tuple(item.type.multiArrayType.shape), "float32", "NCHW") for item in description.input)
    outputs = tuple(Port(str(item.name), tuple(item.type.multiArrayType.shape), "float32", "NCHW") for item in description.output)
    least = LEAST_SYSTEM.get(saved.get_spec().specificationVersion)
    return Written(path, dict(counts), coverage, as_fallbacks(path, tuple(fallbacks)), inputs, outputs, least)


def _mil_program(saved: MLModel) -> Program:
    """The MIL program of a saved package, weights read from its weight file."""
    from coremltools.converters.mil.frontend.milproto.load import load as load_mil

    specification = saved.get_spec()
    return load_mil(specification, specification.specificationVersion, saved.weights_dir)


def _precision(operation: Operation) -> str:
    """What the operator computes in: int8 when it lies between dequantize and quantize (a relu in between included), else its output's type."""
    source = operation.inputs["values"][0] if operation.op_type == "concat" else operation.inputs.get("x")
    before = source.op if source is not None else None
    if before is not None and operation.op_type == "relu" and before.op_type in {*WEIGHTED, "add", "sub", "mul"}:
        return _precision(before)
    after = list(operation.outputs[0].child_ops)
    if len(after) == 1 and after[0].op_type == "relu":
        after = list(after[0].outputs[0].child_ops)
    if before is not None and before.op_type == "dequantize" and after and all(reader.op_type == "quantize" for reader in after):
        return "int8"
    return {"fp16": "fp16", "fp32": "fp32"}.get(operation.outputs[0].dtype.__name__, "fp32")


def _weights_that_differ(operations: list[Operation], program: ExportedProgram) -> list[OperatorFallback]:
    """Compare every convolution's and linear layer's weights with PyTorch's, per output channel; scaled channels are named, others are an error.

    The converter multiplies a constant behind a convolution into its weights (`conv(x) * 0.2`), so a channel may differ by a factor.
    """
    expected = _torch_weights(program)
    found = [(str(operation.name), *_weight_of(operation)) for operation in operations if operation.op_type in WEIGHTED]
    if len(expected) != len(found):
        raise ExportError(f"the saved package has {len(found)} convolutions and linear layers, the network has {len(expected)}; do not use this file")
    scaled: list[OperatorFallback] = []
    unclaimed = list(found)
    for name, weight in expected.items():
        matches = [(item, _channel_factors(weight, item[1], item[2])) for item in unclaimed if item[1].shape == weight.shape]
        exact = [(item, factors) for item, factors in matches if factors is not None]
        if not exact:
            raise ExportError(f"the weights of '{name}' (shape {weight.shape}) are not in the saved package; do not use this file")
        item, factors = min(exact, key=lambda match: float(np.abs(_known(match[1]) - 1).max()))
        unclaimed.remove(item)
        if float(np.abs(_known(factors) - 1).max()) > item[2]:
            scaled.append(
                OperatorFallback(operator=item[0], reason=f"coremltools multiplied a constant into the weights of '{name}'; equal up to that factor")
            )
    return scaled


def _known(factors: NDArray[np.float64] | None) -> NDArray[np.float64]:
    return np.ones(1) if factors is None else factors


def _torch_weights(program: ExportedProgram) -> dict[str, NDArray[np.float64]]:
    """Parameter name -> value, for the weights of convolutions and linear layers."""
    names = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    weights: dict[str, NDArray[np.float64]] = {}
    for node in program.graph.nodes:
        kind = str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))
        if node.op == "call_function" and kind in ("conv1d", "conv2d", "conv_transpose2d", "linear") and node.args[1].name in names:
            weights[node.name] = program.state_dict[names[node.args[1].name]].detach().double().numpy()
    return weights


def _weight_of(operation: Operation) -> tuple[NDArray[np.float64], float]:
    """The operator's weights as the runtime would compute with them, and the tolerance of their precision."""
    value = operation.inputs[WEIGHTED[operation.op_type]]
    if value.op is not None and value.op.op_type.startswith("constexpr"):
        return np.asarray(value.op.materialized_val_inference(), dtype=np.float64), INT8_TOLERANCE
    if value.val is None:
        raise ExportError(f"the weights of '{operation.name}' in the saved package are not constant")
    return np.asarray(value.val, dtype=np.float64), FP16_TOLERANCE


def _channel_factors(expected: NDArray[np.float64], found: NDArray[np.float64], tolerance: float) -> NDArray[np.float64] | None:
    """Per slice along either of the first two axes (output channels), the factor between the two; None if they are not proportional."""
    for axis in (0, 1):
        a, b = (np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1) for value in (expected, found))
        norm = np.sum(a * a, axis=1)
        factors = np.where(norm > 0, np.sum(a * b, axis=1) / np.maximum(norm, 1e-30), 1.0)
        residual = np.linalg.norm(b - factors[:, None] * a, axis=1)
        if np.all(residual <= tolerance * np.linalg.norm(b, axis=1) + 1e-6):
            return factors
    return None


class _CoreMLRunner:
    """A Core ML model on macOS."""

    def __init__(self, path: Path) -> None:
        import coremltools as ct

        self._model = ct.models.MLModel(str(path))
        description = self._model.get_spec().description
        (given,), (result,) = description.input, description.output
        self.runtime = f"Core ML on macOS {platform.mac_ver()[0]}, coremltools {version_of('coremltools')}"
        self.inputs: tuple[Port, ...] = (Port(str(given.name), tuple(given.type.multiArrayType.shape), "float32", "NCHW"),)
        self.outputs: tuple[Port, ...] = (Port(str(result.name), tuple(result.type.multiArrayType.shape), "float32", "NCHW"),)

    def execute(self, encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """Float32 NCHW in and out."""
        return np.asarray(self._model.predict({self.inputs[0].name: encoded})[self.outputs[0].name])

    def run(self, value: FloatArray) -> FloatArray:
        """Float32 NCHW in and out."""
        return self.outputs[0].decode(self.execute(self.inputs[0].encode(value)))


def executes_here() -> bool:
    """Whether this machine can run the files."""
    return platform.system() == "Darwin"


def load(path: Path, threads: int) -> Runner:
    """Load the package; on macOS only. Raises `MissingBackendError` elsewhere. Core ML chooses its threads itself."""
    del threads
    probe()
    if not executes_here():
        raise MissingBackendError(f"{path.name} cannot be executed on {platform.system()}: {NOT_EXECUTED}")
    with BackendCall(NAME, f"load {path.name}", "The package may be damaged; export it again."):
        return _CoreMLRunner(path)
