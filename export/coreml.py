"""Core ML program (.mlpackage): FP16, or with a plan INT8, FP16 and FP32 as planned. It can be converted, read back and computed anywhere.

INT8 is the same quantized graph as every other backend's (W8A8: `quantize`, `dequantize`, `constexpr_affine_dequantize`, iOS 17 and later). What is
said about a file is read from the saved package. Core ML itself runs on macOS only; elsewhere an evaluator of ours executes the package.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError, MissingBackendError
from mcompress.export.backend import (
    BackendCall,
    FloatArray,
    Port,
    Runner,
    Written,
    as_fallbacks,
    check_examples,
    check_inputs,
    encode_all,
    layout_of,
    require,
    version_of,
)
from mcompress.export.coreml_chunks import split
from mcompress.export.coreml_conversion import save_package
from mcompress.export.coreml_read import file_operators, wide_int8
from mcompress.export.coreml_weights import match_weights, scaled_weights
from mcompress.export.honoured import counts_of, departures, units_of
from mcompress.export.mil.program import Value, read_program
from mcompress.export.replay import size_of
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import CoreMLConfig
from mcompress.targets.schema import Fallback

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from mcompress.compress.quantize.plan import PrecisionPlan
    from mcompress.export.mil.evaluate import Arithmetic

NAME = "coreml"
SUFFIX = ".mlpackage"
LEAST_SYSTEM = {7: "iOS 16, macOS 13", 8: "iOS 17, macOS 14", 9: "iOS 18, macOS 15"}
"""Specification version of a saved package -> the first systems whose Core ML reads it (coremltools, `specificationVersion`)."""
LARGE_MB = 1000
"""Apple chunks Stable Diffusion's U-Net, 1.7 GB, for iOS; from where between that and its half it is needed is not published."""
UNKNOWN_UNIT = "which of CPU, GPU and Neural Engine an operator goes to is decided on the device; it cannot be known here"
WIDE_INT8 = "int8, between fp32 tensors: FP16 cannot tell its scales apart. Core ML computes with FP32 tensors on CPU and GPU only"
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."


def probe() -> None:
    """Raise `MissingBackendError` if coremltools is missing."""
    require(NAME, {"coremltools": "coremltools"}, "It converts on Linux and macOS.")


def write(config: CoreMLConfig, model: nn.Module, examples: Mapping[str, Tensor], plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.mlpackage: FP16 without a plan, otherwise every operator as planned. Static shapes, NCHW, float32 interface.

    Raises `ExportError` when a weight of the saved package is not the network's, or the plan has INT8 operators and the deployment target is iOS 16.
    """
    probe()
    given = check_examples(examples)
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE):
        from mcompress.compress.quantize.program import export_program

        if plan is not None and plan.counts()["int8"] and config.minimum_deployment_target == "iOS16":
            raise ExportError("INT8 activations need Core ML of iOS 17; set minimum_deployment_target: iOS17, or leave the quantize stage out")
        program = export_program(model, *given, share_weights=True)
        save_package(config, model, examples, program, plan, path)
        if config.chunks == 2:
            split(path)
        written = _read_back(path, program, plan)
        check_inputs(path, examples, written.inputs)
        return replace(written, fallbacks=(*written.fallbacks, *_too_large(config, path)))


def _too_large(config: CoreMLConfig, path: Path) -> Iterator[Fallback]:
    size_mb = size_of(path) / 1e6
    if config.chunks == 1 and size_mb > LARGE_MB:
        reason = f"{size_mb:.0f} MB in one model may be more than a phone maps at once; give the export chunks: 2 for two models in one package"
        yield Fallback(where=f"export {path.name}", what="weights", reason=reason)


def _read_back(path: Path, program: ExportedProgram, plan: PrecisionPlan | None) -> Written:
    package = read_program(path)
    weights = match_weights(package.main, program)
    operators = file_operators(package.main, program, plan, weights)
    found = [*departures(NAME, plan, operators, {}), *scaled_weights(weights)]
    found += [OperatorFallback(operator=name, reason=WIDE_INT8) for name in wide_int8(package.main, operators)]
    if not executes_here():
        found.append(OperatorFallback(operator="all", reason=UNKNOWN_UNIT))
    fallbacks = tuple(found)
    coverage = CoverageRecord(total=len(operators), by_unit=units_of(operators), fallbacks=fallbacks)
    inputs, outputs = (tuple(_port(value) for value in values) for values in (package.inputs, package.outputs))
    least = LEAST_SYSTEM.get(package.specification_version)
    return Written(path, counts_of(operators), coverage, as_fallbacks(path, fallbacks), inputs, outputs, least, operators)


def _port(value: Value) -> Port:
    shape = tuple(size for size in value.type.shape if size is not None)
    if value.type.dtype != "fp32" or len(shape) != len(value.type.shape):
        raise ExportError(f"'{value.name}' of the saved package is {value.type}; it must be fp32 of a fixed shape. Export it again")
    return Port(value.name, shape, "float32", layout_of(shape))


class _CoreMLRunner:
    """A Core ML model on macOS."""

    def __init__(self, path: Path) -> None:
        import coremltools as ct

        self._path = path
        self._model = ct.models.MLModel(str(path))
        description = self._model.get_spec().description
        (result,) = description.output
        self.runtime = f"Core ML on macOS {platform.mac_ver()[0]}, coremltools {version_of('coremltools')}"
        self.inputs: tuple[Port, ...] = tuple(_described(item.name, item.type.multiArrayType.shape) for item in description.input)
        self.outputs: tuple[Port, ...] = (_described(result.name, result.type.multiArrayType.shape),)

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """Float32 NCHW in and out."""
        given = {port.name: one for port, one in zip(self.inputs, encoded, strict=True)}
        return np.asarray(self._model.predict(given)[self.outputs[0].name])

    def run(self, *values: FloatArray) -> FloatArray:
        """Float32 NCHW in and out."""
        return self.outputs[0].decode(self.execute(*encode_all(self.inputs, values)))

    def in_fp32(self) -> Runner:
        """The same package in the evaluator, with FP32 arithmetic. Raises `MissingBackendError` for operations that it does not know."""
        return _evaluator(self._path, "fp32")


def _described(name: object, shape: Iterable[int]) -> Port:
    sizes = tuple(int(size) for size in shape)
    return Port(str(name), sizes, "float32", layout_of(sizes))


def executes_here() -> bool:
    """Whether Core ML itself runs on this machine, so that times are Core ML's. Elsewhere the evaluator runs files, which says nothing about time."""
    return platform.system() == "Darwin"


def load(path: Path, threads: int) -> Runner:
    """Load the package: on macOS into Core ML, elsewhere into the evaluator, as its `runtime` says. Both choose their threads themselves.

    Raises `ExportError` for a package that is damaged, and `MissingBackendError` for operations that only Core ML itself can compute, all named.
    """
    del threads
    probe()
    with BackendCall(NAME, f"load {path.name}", "The package may be damaged; export it again."):
        if executes_here():
            return _CoreMLRunner(path)
        return _evaluator(path, "as written")


def _evaluator(path: Path, arithmetic: Arithmetic) -> Runner:
    from mcompress.export.mil.evaluate import check_operators
    from mcompress.export.mil.runner import MilRunner

    package = read_program(path)
    try:
        check_operators(package)
    except ExportError as unknown:
        raise MissingBackendError(str(unknown)) from unknown
    return MilRunner(path, arithmetic)
