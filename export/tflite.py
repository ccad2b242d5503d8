"""TFLite, converted by litert-torch and executed by ai-edge-litert.

The interface is NHWC, as Android's image code has it; the network itself is not changed. A mixed file starts as a float file with a conversion to
INT8 and back wherever the plan has one; then the operators that the plan says become INT8 kernels (`tflite_integer`) or get float16 weights
(`tflite_halves`). The converter's own INT8 mode would make INT8 of whatever stands between two conversions. Inputs and outputs are int8 where
INT8 operators read and make them, with scale and zero point in the file, and float32 otherwise.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.backend import (
    OUTPUT,
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
from mcompress.export.honoured import FileOperator, counts_of, departures, units_of
from mcompress.export.replay import IMAGE_AXES
from mcompress.record import CoverageRecord, OperatorFallback
from mcompress.targets.exports import TFLiteConfig

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter
    from torch import Tensor, fx, nn

    from mcompress.compress.quantize.plan import PrecisionPlan
    from mcompress.export.tflite_edit import OperatorObject, Sheet
    from mcompress.export.tflite_planned import Program
    from mcompress.targets.speeds import PrecisionName

NAME = "tflite"
SUFFIX = ".tflite"
HALF_REASON = "XNNPACK computes fp16 on Armv8.2 processors and newer only, and only in files without INT8 operators"
NOTE_REASON = (
    "only weights can be fp16 in the format; a note that allows fp16 for the rest is for the whole file, and the plan keeps operators in fp32"
)
LARGE_REASON = "its weights do not fit into float16"
FLOAT_REASON = "the format has no INT8 kernel for the form in which the converter left it"
ADVICE = "The message names the operator; replace it in the network, or take this backend out of the target's exports."


def probe() -> None:
    """Raise `MissingBackendError` if a package is missing."""
    packages = {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"}
    require(NAME, packages, "Its converter has packages for Linux and macOS only.")


def write(config: TFLiteConfig, model: nn.Module, examples: Mapping[str, Tensor], plan: PrecisionPlan | None, path_stem: Path) -> Written:
    """Write `path_stem`.tflite: fp32 without a plan, otherwise each operator in the precision of the plan. Static shapes, NHWC for four axes.

    Tensors and the signature `serving_default` have the names of the inputs, and `output`.
    """
    del config  # the format has no choices yet
    probe()
    given = check_examples(examples)
    path = path_stem.with_name(path_stem.name + SUFFIX)
    with BackendCall(NAME, f"write {path.name}", ADVICE):
        import litert_torch

        from mcompress.compress.quantize.program import export_program, graph_of, reference_program
        from mcompress.export import tflite_edit, tflite_halves, tflite_integer, tflite_moves
        from mcompress.export.spelled_out import NORMS, REFLECTIONS, spell_out
        from mcompress.export.tflite_planned import planned_program
        from mcompress.export.tflite_steps import as_steps
        from mcompress.export.tflite_upsampling import CUT, activate_before_cutting

        program = graph_of(export_program(model, *given, share_weights=True))
        facts = planned_program(program)
        graph = program if plan is None else reference_program(model, given, plan, fold_weights=False)
        spell_out(graph, {**REFLECTIONS, **NORMS, **CUT}, pairs=False)
        activate_before_cutting(graph)
        module = as_steps(graph)
        images = [index for index, example in enumerate(given) if example.ndim == IMAGE_AXES]
        images_out = _axes_of_output(program) == IMAGE_AXES
        converted = litert_torch.convert(
            litert_torch.to_channel_last_io(module, args=images or None, outputs=[0] if images_out else None).eval(),
            tuple(example.permute(0, 2, 3, 1).contiguous() if example.ndim == IMAGE_AXES else example for example in given),
        )
        converted.export(str(path))
        del converted, module  # with copies of the weights
        sheet = tflite_edit.opened(path)
        if plan is not None:
            tflite_integer.integer_kernels(sheet, plan)
            tflite_moves.without_round_trips(sheet)
            tflite_halves.half_weights(sheet, plan, facts.output)
        tflite_moves.narrow_concatenations(sheet)
        tflite_edit.name_ports(sheet, list(examples), OUTPUT)
        tflite_edit.save(sheet, path)
        written = _read_back(path, facts, plan)
        check_inputs(path, examples, written.inputs)
        return written


def _read_back(path: Path, program: Program, plan: PrecisionPlan | None) -> Written:
    runner = _TFLiteRunner(path, 1)
    operators = _operators(path, program, plan, runner.delegated())
    fallbacks = [
        OperatorFallback(operator=one.name, reason=f"LiteRT's XNNPACK delegate does not take {one.kind} in this form: it runs in the builtin kernel")
        for one in operators
        if one.unit != "xnnpack"
    ]
    fallbacks += departures("LiteRT", plan, operators, {})
    coverage = CoverageRecord(total=len(operators), by_unit=units_of(operators), fallbacks=tuple(fallbacks))
    return Written(
        path=path,
        precision_counts=counts_of(operators),
        coverage=coverage,
        fallbacks=as_fallbacks(path, tuple(fallbacks)),
        inputs=runner.inputs,
        outputs=runner.outputs,
        least_runtime=_least_runtime(path),
        operators=operators,
    )


def _axes_of_output(program: fx.GraphModule) -> int:
    """Of the tensor that the network gives."""
    (end,) = [node for node in program.graph.nodes if node.op == "output"]
    axes: int = end.all_input_nodes[0].meta["val"].ndim
    return axes


def _operators(path: Path, program: Program, plan: PrecisionPlan | None, delegated: Collection[object]) -> tuple[FileOperator, ...]:
    """Every operator of the file but conversions; `output` is the number of the tensor that holds its result. XNNPACK takes those in `delegated`."""
    from mcompress.export import tflite_edit
    from mcompress.export.tflite_halves import NOTE, NOTE_VALUE
    from mcompress.export.tflite_match import CONVERSIONS, makers_of, matched

    sheet = tflite_edit.opened(path)
    makers, noted = makers_of(sheet), sheet.metadata(NOTE) == NOTE_VALUE
    found = []
    for index, (operator, match) in enumerate(zip(sheet.operators, matched(sheet, program), strict=True)):
        kind = sheet.kind(operator)
        if kind in CONVERSIONS:
            continue
        precision = _precision(sheet, operator, makers, noted=noted)
        planned = {plan.precision_of(name) for name in match.stands_for} if plan is not None else set()
        found.append(
            FileOperator(
                name=f"{kind} #{index}",
                kind=kind,
                stands_for=match.stands_for,
                precision=precision,
                computed=precision,
                unit="xnnpack" if index in delegated else "builtin",
                output=str(int(operator.outputs[0])),
                reason=match.reason or _reason(kind, precision, planned),
            )
        )
    integers = any(one.precision == "int8" for one in found)
    return tuple(_as_computed(one, half=noted and not integers and _has_half_kernels()) for one in found)


def _precision(sheet: Sheet, operator: OperatorObject, makers: dict[int, OperatorObject], *, noted: bool) -> PrecisionName:
    """From the types of tensors; a float operator without weights is fp16 where the file's note allows that."""
    from mcompress.export.tflite_edit import numbers
    from mcompress.export.tflite_kinds import WEIGHTED
    from mcompress.export.tflite_match import constant_behind

    types, kind = numbers("TensorType"), sheet.kind(operator)
    result = sheet.tensors[int(operator.outputs[0])].type
    if result in (types["INT8"], types["UINT8"]):
        return "int8"
    if kind in WEIGHTED:
        weights = constant_behind(sheet, makers, int(operator.inputs[WEIGHTED[kind][1]]))
        return "fp16" if sheet.tensors[weights].type == types["FLOAT16"] else "fp32"
    return "fp16" if noted or result == types["FLOAT16"] else "fp32"


def _reason(kind: str, precision: str, planned: Collection[str]) -> str:
    from mcompress.export.tflite_kinds import WEIGHTED

    if "int8" in planned and precision != "int8":
        return FLOAT_REASON
    if "fp16" in planned and precision == "fp32":
        return LARGE_REASON if kind in WEIGHTED and "fp32" not in planned else NOTE_REASON
    return ""


def _as_computed(operator: FileOperator, *, half: bool) -> FileOperator:
    if operator.precision != "fp16" or (half and operator.unit == "xnnpack"):
        return operator
    return replace(operator, computed="fp32", reason=operator.reason or HALF_REASON)


def _has_half_kernels() -> bool:
    """Whether XNNPACK has fp16 arithmetic on this processor."""
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return False
    facts = Path("/proc/cpuinfo")
    return not facts.exists() or "asimdhp" in facts.read_text(encoding="utf-8", errors="replace")


def _least_runtime(path: Path) -> str | None:
    """What the converter noted in the file, from the versions of its operators; the numbers are TensorFlow's, which LiteRT continued from 1.0 on."""
    from ai_edge_litert.schema_py_generated import Model

    from mcompress.export.tflite_large import mapped

    model = Model.GetRootAsModel(mapped(path), 0)
    for entry in (model.Metadata(index) for index in range(model.MetadataLength())):
        buffer = model.Buffers(entry.Buffer())
        if entry.Name() == b"min_runtime_version" and buffer.DataLength():
            version = bytes(buffer.DataAsNumpy()).rstrip(b"\0").decode("ascii", errors="replace")
            return f"TensorFlow Lite {version}" if version else None
    return None


def _interpreter(path: Path, threads: int) -> Interpreter:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


class _TFLiteRunner:
    """A LiteRT interpreter with the XNNPACK delegate."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._interpreter = path, _interpreter(path, threads)
        self.runtime = f"ai-edge-litert {version_of('ai-edge-litert')} CPU"
        given, (result,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._places, self._output = [int(one["index"]) for one in given], int(result["index"])
        self.inputs: tuple[Port, ...] = tuple(_port(one) for one in given)
        self.outputs: tuple[Port, ...] = (_port(result),)

    def delegated(self) -> Collection[object]:
        """The operators of the file that XNNPACK takes, by their positions."""
        from mcompress.export.arm64.program import replaced

        return replaced(self._interpreter._get_ops_details())  # no public call lists operators after delegation

    def execute(self, *encoded: NDArray[np.generic]) -> NDArray[np.generic]:
        """The file's own types and layout in and out. Raises `ExportError` where LiteRT has no kernel for a type, which it says only now."""
        for place, one in zip(self._places, encoded, strict=True):
            self._interpreter.set_tensor(place, one)
        try:
            self._interpreter.invoke()
        except RuntimeError as problem:
            raise ExportError(f"LiteRT loads {self._path.name} and cannot compute it: {' '.join(str(problem).split())} Export it again.") from problem
        return np.asarray(self._interpreter.get_tensor(self._output))

    def run(self, *values: FloatArray) -> FloatArray:
        """Float32 NCHW in and out; layout and INT8 conversion happen here."""
        return self.outputs[0].decode(self.execute(*encode_all(self.inputs, values)))


def _port(details: dict[str, object]) -> Port:
    name, shape = str(details["name"]), tuple(int(size) for size in np.asarray(details["shape"]))
    dtype = np.dtype(details["dtype"]).name  # type: ignore[call-overload]
    scale, zero_point = np.asarray(details["quantization"], dtype=np.float64)
    quantized = scale != 0.0
    return Port(name, shape, dtype, layout_of(shape, "NHWC"), float(scale) if quantized else None, int(zero_point) if quantized else None)


def load(path: Path, threads: int) -> Runner:
    """Open the file in LiteRT's interpreter with `threads` threads."""
    probe()
    with BackendCall(NAME, f"load {path.name}", "The file may be damaged; export it again."):
        from mcompress.export.tflite_check import check

        check(path)
        return _TFLiteRunner(path, threads)
