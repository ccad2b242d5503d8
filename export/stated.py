"""What the manifest states about a file beyond its facts: runtime, processing around it, quality, and how far another machine may be off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from mcompress.export.fidelity import quality_worst
from mcompress.export.interface import TensorFacts
from mcompress.export.manifest import ComputedBy, ProcessingStep, Quality, Recommended, Runtime, Tolerance
from mcompress.export.mil import EVALUATOR
from mcompress.export.replay import PLAIN
from mcompress.record import ExportRecord, ModelRecord, PictureRecord, Run
from mcompress.targets.exports import OnnxConfig

FLOAT_TOLERANCE = 1e-3  # share of the output range: the parity limit of float files, and what another CPU's order of additions stays below
INT8_STEPS = 2  # two runtimes may round the last operator and the one before it differently
INT8_SQNR_DB = 35.0  # the parity limit of quantized files: other CPUs' integer kernels round inside the network as well
HALF_SQNR_DB = 40.0  # the parity limit of files that are FP16 throughout
PHONE_THREADS = 4  # the big cores of a phone's CPU

RUNTIMES: Mapping[str, tuple[str, str]] = {
    "onnx": ("ONNX Runtime", "onnxruntime"),
    "tflite": ("LiteRT (TensorFlow Lite)", "ai-edge-litert"),
    "executorch": ("ExecuTorch", "executorch"),
    "coreml": ("Core ML", "coremltools"),
}
DELEGATES: Mapping[tuple[str, str], str] = {
    ("onnx", "cpu"): "CPUExecutionProvider",
    ("tflite", "cpu"): "XNNPACK",
    ("tflite", "gpu"): "LiteRT's GPU delegate",
    ("executorch", "cpu"): "XNNPACK",
}
COMPILER = "TensorRT"
"""What builds engines from ONNX files for units that ONNX Runtime does not reach here (`targets.device.Unit.builds_from`)."""
BY_COREML: Mapping[ComputedBy, str] = {
    "PyTorch": "not executed",
    "this file in mcompress's evaluator": "computed by mcompress's evaluator",
    "this file in its runtime": "executed by Core ML on the machine that made it",
}
OWN_CHOICE = ("all", "Core ML's own choice of CPU, GPU and Neural Engine")


def tolerance_of(variant: str, output: TensorFacts, *, halves: bool = False, int8_db: float = INT8_SQNR_DB) -> Tolerance:
    """How far another machine may be from the expected output: float files by range, those of `halves` (FP16) also by SQNR, quantized ones by steps
    of the output or by SQNR, at least `int8_db`.
    """
    low, high = output.value_range
    if variant == "float" and halves:
        basis = f"{FLOAT_TOLERANCE:g} of the output range, or {HALF_SQNR_DB:g} dB SQNR: the file is FP16, and units sum in different ways"
        return Tolerance(max_abs=FLOAT_TOLERANCE * (high - low), or_sqnr_db=HALF_SQNR_DB, basis=basis)
    if variant == "float":
        return Tolerance(max_abs=FLOAT_TOLERANCE * (high - low), basis=f"{FLOAT_TOLERANCE:g} of the output range")
    step = output.scale if output.scale is not None else (high - low) / 255.0
    of = "of the output" if output.scale is not None else "of an 8-bit picture (the output is not quantized)"
    why = "" if int8_db == INT8_SQNR_DB else ", the limit of its parity"
    return Tolerance(max_abs=INT8_STEPS * step, or_sqnr_db=int8_db, basis=f"{INT8_STEPS} quantization steps {of}, or {int8_db:g} dB SQNR{why}")


def preprocessing_of(took: TensorFacts) -> tuple[ProcessingStep, ...]:
    """From an 8-bit picture to the file's input, as data; of an input that is no picture, from what the network takes."""
    steps: list[ProcessingStep] = []
    if took.picture:
        low, high = took.value_range
        height, width = sides_of(took)
        steps += [
            ProcessingStep(operation="tile", arguments={"height": height, "width": width}),
            *([ProcessingStep(operation="colour_order", arguments={"order": took.colour_order})] if took.colour_order else []),
            ProcessingStep(operation="scale", arguments={"multiply": (high - low) / 255.0, "add": low}),
        ]
    if took.layout != PLAIN:
        steps.append(ProcessingStep(operation="layout", arguments={"order": took.layout}))
    if took.scale is not None and took.zero_point is not None:
        steps.append(ProcessingStep(operation="quantize", arguments={"scale": took.scale, "zero_point": took.zero_point, "dtype": took.dtype}))
    return tuple(steps)


def postprocessing_of(gave: TensorFacts) -> tuple[ProcessingStep, ...]:
    """From the file's output to an 8-bit picture, as data; to real values, where it is none."""
    low, high = gave.value_range
    steps = []
    if gave.scale is not None and gave.zero_point is not None:
        steps.append(ProcessingStep(operation="dequantize", arguments={"scale": gave.scale, "zero_point": gave.zero_point, "dtype": gave.dtype}))
    if not gave.picture:
        return tuple(steps)
    return (
        *steps,
        ProcessingStep(operation="clip", arguments={"low": low, "high": high}),
        ProcessingStep(operation="scale", arguments={"multiply": 255.0 / (high - low), "add": -255.0 * low / (high - low)}),
        ProcessingStep(operation="round", arguments={"dtype": "uint8"}),
        ProcessingStep(operation="layout", arguments={"order": gave.layout}),
        *([ProcessingStep(operation="colour_order", arguments={"order": gave.colour_order})] if gave.colour_order else []),
    )


def runtime_of(record: ExportRecord, least_runtime: str | None) -> Runtime:
    """The runtime and its least version: what the file itself states, else the version that executed it."""
    backend, runtime = record.backend, record.parity.runtime
    if is_built_on_device(record):
        how = "not executed here" if record.parity.passed is None else f"checked here with {runtime}"
        return Runtime(name=COMPILER, least_version="not known", basis=f"built on the device; not built with {COMPILER} here; {how}")
    name, package = RUNTIMES[backend]
    if least_runtime is not None:
        how = "not executed here" if record.parity.passed is None else f"executed here by {runtime}"
        return Runtime(name=name, least_version=least_runtime, basis=f"stated in the file; {how}")
    if backend == "coreml":
        how = "not executed here" if record.parity.passed is None else f"executed here by {runtime}"
        return Runtime(name=name, least_version="not known", basis=f"the file does not say; {how}")
    return Runtime(name=name, least_version=version(package), basis="the version that executed it; older ones were not tried")


def default_unit(record: ExportRecord) -> Recommended:
    """Where and how to run the file when nothing was measured on a phone: on the unit that its estimate is for."""
    if record.backend == "coreml":
        unit, delegate = OWN_CHOICE
        return Recommended(unit=unit, delegate=delegate, threads=PHONE_THREADS, basis=f"{BY_COREML[computed_by(record)]}; not measured on a phone")
    unit = record.unit or "cpu"
    if is_built_on_device(record):
        has_int8 = record.precision_counts.get("int8", 0) > 0  # without scales in the file, --int8 would ask for a calibration
        flags = "--int8 --fp16" if has_int8 else "--fp16"
        delegate = f"an engine that trtexec --onnx=FILE {flags} builds from the file on the device"
        return Recommended(unit=unit, delegate=delegate, threads=1, basis="not measured on the device")
    executed = (
        "executed so on the machine that made it" if unit == "cpu" else f"executed by {DELEGATES[record.backend, 'cpu']} on the CPU that made it"
    )
    return Recommended(unit=unit, delegate=DELEGATES[record.backend, unit], threads=PHONE_THREADS, basis=f"{executed}; not measured on a phone")


def is_built_on_device(record: ExportRecord) -> bool:
    """Whether a compiler on the device builds an engine from the file for its unit, which the backend's own runtime does not reach."""
    return record.backend == "onnx" and record.unit not in (None, *OnnxConfig.units)


def computed_by(record: ExportRecord) -> ComputedBy:
    """What computed the file's own results; PyTorch if the file was not executed."""
    if record.parity.passed is None:
        return "PyTorch"
    if is_built_on_device(record):
        return "this file in ONNX Runtime"  # not in the one that is stated for the device
    return "this file in mcompress's evaluator" if record.parity.runtime.startswith(EVALUATOR) else "this file in its runtime"


def computed_in(record: ExportRecord) -> str:
    """The same behind the file's name: `in its runtime`."""
    return computed_by(record).removeprefix("this file ")


def quality_of(record: ExportRecord, run: Run) -> Quality:
    """Before (the teacher) and after: the file's own where it was executed, else that of the network that it was written from."""
    teacher = run.models.get("teacher" if record.component is None else f"{record.component}_teacher")
    baseline = run.baseline.get("mean", {}) if record.component is None else {}
    before = teacher.quality if teacher else {}
    if record.quality:
        return Quality(before=before, after=record.quality, after_from=computed_by(record), baseline=baseline, worst=record.quality_worst)
    model = _network_of(record, run)
    after, worst = ({}, {}) if model is None else (model.quality, quality_worst(_pictures(model)))
    return Quality(before=before, after=after, after_from="PyTorch", baseline=baseline, worst=worst)


def _network_of(record: ExportRecord, run: Run) -> ModelRecord | None:
    """The network that the file was written from, with the quality that PyTorch computes of it."""
    if record.beside is None:
        return run.models.get("distilled")
    # The record of a network beside the run's own has the quality of a file of it, where one was executed.
    return None if any(other.quality for other in run.exports if other.beside == record.beside) else run.models.get(record.beside)


def _pictures(model: ModelRecord) -> dict[str, PictureRecord]:
    return {name: PictureRecord(quality=values) for name, values in model.quality_per_sample.items()}


def scale_of(took: Sequence[TensorFacts], gave: TensorFacts) -> int:
    """How many times the output is as high as the first picture among the inputs, at least 1; 1 without a picture on both sides."""
    picture = next((facts for facts in took if facts.picture), None)
    return 1 if picture is None or not gave.picture else max(1, sides_of(gave)[0] // sides_of(picture)[0])


def sides_of(facts: TensorFacts) -> tuple[int, int]:
    """Height and width of a picture."""
    height, width = facts.shape[1:3] if facts.layout == "NHWC" else facts.shape[2:4]
    return height, width
