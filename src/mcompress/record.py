"""The record of a run: `run.json`, schema 1. The only input of reports; keys are stable, more may be added."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mcompress.targets.schema import Fallback, How, Measurement
from mcompress.targets.stages import width_name

HIGHEST_DB = 200.0
"""Recorded where decibels have no end: of values that are equal to the bit, and, below zero, of what is nothing but error. JSON has no infinity."""


def finite(value: float | None) -> float | None:
    """The number, or None for one that JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None


class Record(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TargetRecord(Record):
    """Which target was run; the digest covers its resolved form."""

    name: str
    digest: str
    title: str = ""
    quick: bool = False
    task: str = "super_resolution"


class EnvironmentRecord(Record):
    """Where it ran."""

    python: str
    platform: str
    packages: dict[str, str]
    commit: str | None
    seed: int
    cpu: str = ""


class DataRecord(Record):
    """How much of the training data has a target, for tasks that can learn without."""

    pairing: Literal["aligned", "unpaired"] = "aligned"
    """Whether an input and its target show the same thing, or are of two collections; then no input has a target."""
    labelled_fraction: float
    """Of the training pairs that were given."""
    labelled_pairs: int
    """Pairs whose target was used: for training, or for choosing between candidates."""
    unlabelled_images: int
    """Inputs without a target, for stages that learn from them."""


class StageRecord(Record):
    """One stage: what it was computed from, and how long the process that finished it took for it (the original time when it was cached)."""

    name: str
    method: str
    digest: str
    parent: str
    cached: bool
    seconds: float
    continued: bool = False
    """An earlier process, which was stopped, had begun the stage; its time is not in `seconds`."""


class OperatorCost(Record):
    """One operator of a model on the device: what it does, where, and what it is estimated to cost there, ms."""

    name: str
    kind: str
    """Whose speed it has, for example `pointwise_convolution` (`mcompress.targets.speeds.CLASSES`)."""
    fused: tuple[str, ...] = ()
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    unit: str
    precision: str
    """Of the file."""
    computed_in: str
    """Precision of arithmetic and memory on the unit."""
    macs: int
    bytes: int
    """Activations read and written and weights, in the precision that is computed in."""
    compute_ms: float
    memory_ms: float
    dispatch_ms: float
    boundary_ms: float
    stream_ms: float = 0.0
    """Fetching weights that the cache does not hold."""
    apart_ms: float
    """An activation that the runtime computes in a pass of its own."""
    latency_ms: float
    """Compute and memory traffic overlap: the larger of the two, and the rest."""


class LatencyBreakdown(Record):
    """Where the milliseconds of a model go on one unit of the device."""

    latency: Measurement
    """The estimate that the rows and `fixed_ms` add up to."""
    unit: str
    fixed_ms: float
    """Of one inference, besides its operators."""
    operators: tuple[OperatorCost, ...]
    """In execution order."""
    all_in_ms: dict[str, float] = Field(default_factory=dict)
    """Precision of a file -> the estimate if every operator had it, for the precisions that the unit takes."""


class Ceiling(Record):
    """What one unit of the device reaches at most in one precision of arithmetic."""

    unit: str
    title: str
    precision: str
    gbs: float
    """10^9 bytes per second."""
    cache_mb: float | None = None
    far_gbs: float | None = None
    """Beyond the cache."""
    gmacs: dict[str, float]
    """Class of operators -> 10^9 multiply-adds per second, for the classes of the run's models."""
    moved_gbs: dict[str, float]
    """Class of operators that multiply nothing -> 10^9 bytes per second, for the classes of the run's models; others reach `gbs`."""
    channels: int
    """Output channels are processed in groups of so many."""
    source: str


class ModelRecord(Record):
    """One of teacher, student, compressed."""

    spec: JsonValue
    params: int
    macs: int
    macs_output_convention: int
    assumed_macs: int = 0
    """How many of `macs` are assumed, of operators that the table does not know."""
    weight_bytes: int
    peak_activation_bytes: int
    activation_traffic_bytes: int
    quality: dict[str, float]
    quality_per_sample: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Sample name -> metric -> value."""
    latency: tuple[Measurement, ...] = ()
    breakdown: LatencyBreakdown | None = None
    """Of the teacher and the compressed model, on the unit that the compressed one is offered for."""


class ParityRecord(Record):
    """The exported file against PyTorch on held-out inputs; `passed` is None when it could not be executed."""

    reference: str
    metric: str
    value: float | None
    limit: float
    passed: bool | None
    runtime: str


class OperatorFallback(Record):
    """An operator that did not go to the delegate or did not get its planned precision."""

    operator: str
    reason: str


class OperatorRecord(Record):
    """One operator of an exported file, as it was read back from it."""

    name: str
    kind: str
    stands_for: tuple[str, ...] = ()
    """Operators of the precision plan whose work it does."""
    precision: str
    """What the file holds."""
    computed: str
    """What the runtime of the machine that made it computes it in."""
    unit: str


class CoverageRecord(Record):
    """Operators of the exported graph by where they run, for example {"xnnpack": 31, "portable": 1}."""

    total: int
    by_unit: dict[str, int]
    fallbacks: tuple[OperatorFallback, ...] = ()


class WalkedRecord(Record):
    """The cost of an exported graph, counted from the file alone: it confirms the operator table, or the fallbacks say where it does not."""

    macs: int
    peak_activation_bytes: int
    """fp32, whatever the file computes in."""
    peak_at: str
    """The node of the file at which that much memory is live first."""


NO_OPERATOR = "all"
"""Stands for an operator where a file as a whole is not what its network is written as."""


class DivergenceRecord(Record):
    """The first operator of a file that leaves its tolerance, looked for when parity fails; `mcompress.export.divergence` says how."""

    operator: str
    """In the precision plan; `NO_OPERATOR` where the file as a whole is not what its network is written as."""
    together: tuple[str, ...] = ()
    """Operators of the plan that were computed with it, without a result that could be looked at between them."""
    in_file: str
    """What the file calls it; empty where nothing in the file stands for it."""
    module: str
    """Path of the module it came from; empty for the network itself."""
    kind: str
    """As plans call it: `conv2d`."""
    precision: str
    """What the file holds."""
    planned: str | None
    """None in a float file."""
    measure: str
    value: float | None
    """None where it is infinite, which JSON has no number for: against a result of zeros, or of values that are not finite."""
    limit: float
    alone: bool
    """Whether it was recomputed from the file's own inputs to it, so that the error is its own; else it is where errors have grown too large."""
    suggestion: str
    not_seen: tuple[str, ...] = ()
    """Operators of the file in front of it that could not be looked at."""

    def sentence(self) -> str:
        """All of it, for people."""
        seen = "is infinitely far off" if self.value is None else f"{self.value:.3g}"
        numbers = f"{self.measure} {seen}, limit {self.limit:.3g}; {self.suggestion}"
        if self.operator == NO_OPERATOR:
            return f"no single operator, but the file: {numbers}"
        together = f" (with {', '.join(self.together)})" if self.together else ""
        planned = "" if self.planned in (None, self.precision) else f", planned {self.planned}"
        where = f" in {self.module}" if self.module else ""
        fault = "gives something else than PyTorch from the same inputs" if self.alone else "is where the differences become too large"
        unseen = f". In front of it these could not be looked at: {', '.join(self.not_seen)}" if self.not_seen else ""
        return f"{self.operator}{together}, {self.kind}{where}, {self.precision}{planned}, {fault}: {numbers}{unseen}"


class Finite(Record):
    """Frozen; unknown keys are errors; no NaN."""

    model_config = ConfigDict(allow_inf_nan=False)


class Likeness(Finite):
    """How like another network's picture a picture is, or the mean over several; `mcompress.export.fidelity` says how each is computed."""

    psnr_db: float
    """Of all values, dB; 200 for pictures that are equal."""
    ssim: float | None = Field(ge=-1, le=1)
    """Structural similarity, 1 for equal pictures; None for one smaller than its window."""
    colour_shift: tuple[float, ...]
    """Mean difference per channel, in 8-bit steps; positive where the picture is brighter."""
    largest_shift: float = Field(ge=0)
    """The largest of `colour_shift` without its sign; in a mean, the mean over pictures of this, so that opposite shifts do not cancel."""
    delta_e: float | None = Field(ge=0)
    """CIEDE2000, mean over pixels; about 1 is the smallest difference that is seen. None for a picture that is not RGB."""


class PictureRecord(Finite):
    """One held-out picture as an exported file computes it."""

    quality: dict[str, float]
    """Metric of the task -> value against the truth."""
    against: dict[str, Likeness] = Field(default_factory=dict)
    """`teacher` and `float_student` -> how like their pictures it is. The student computes the same tiles as the file, the teacher the whole."""


class WorstPicture(Finite):
    """The held-out picture on which something is worst."""

    picture: str
    value: float


class Fidelity(Finite):
    """Likeness over all held-out pictures."""

    mean: Likeness
    worst: dict[str, WorstPicture]
    """By field of `Likeness`: `psnr_db`, `ssim`, `largest_shift`, `delta_e`, each with a picture of its own."""


class ExportRecord(Record):
    """One exported file (or folder, for Core ML); `file` is relative to the run folder."""

    backend: str
    variant: Literal["float", "mixed"]
    file: str
    bytes: int
    sha256: str
    precision_counts: dict[str, int]
    parity: ParityRecord
    coverage: CoverageRecord
    latency: tuple[Measurement, ...] = ()
    quality: dict[str, float] = Field(default_factory=dict)
    """Quality on held-out data computed by the exported file, in `parity.runtime`."""
    quality_worst: dict[str, WorstPicture] = Field(default_factory=dict)
    """Metric -> the held-out picture that is worst by it."""
    fidelity: dict[str, Fidelity] = Field(default_factory=dict)
    """`teacher` and `float_student` -> how like theirs the file's pictures are."""
    pictures: dict[str, PictureRecord] = Field(default_factory=dict)
    """Sample name -> the same for one picture; what means and worst cases are taken from."""
    operators: tuple[OperatorRecord, ...] = ()
    """Every operator of the file."""
    shipped: bool = True
    """Whether it is in the bundle; a mixed file that is slower than the float file of its backend is not, unless the target asks for it."""
    recommended: bool = False
    """Whether it is offered for the target's device, before the backend's other file."""
    unit: str | None = None
    """The compute unit of the device that it is offered for; None where its backend does not run there."""
    walked: WalkedRecord | None = None
    """For ONNX files, whose graph can be walked."""
    divergence: DivergenceRecord | None = None
    """Where parity fails; None where no operator leaves its tolerance."""
    width: float | None = None
    """Of a slimmable network: the share of the widest one's channels that it has, 1 for the widest; None for a network of one width."""
    component: str | None = None
    """Of text to image: the network that goes along with the U-Net; None for the run's own."""

    @property
    def beside(self) -> str | None:
        """The name of its network, where that is not the run's own: of a narrower one, or one that goes along."""
        return self.component or narrower_suffix(self.width, "") or None

    @property
    def label(self) -> str:
        """Which of a bundle's files it is: `tflite mixed`, and of a narrower network `tflite mixed w050`, of a decoder `tflite mixed decoder`."""
        return f"{self.backend} {self.variant}{f' {self.beside}' if self.beside else ''}"


def narrower_suffix(width: float | None, joint: str) -> str:
    """What the name of a narrower network's file or row ends with, behind `joint`; nothing for the widest and for a network of one width."""
    return "" if width is None or width == 1.0 else f"{joint}{width_name(width)}"


VIDEO = "talking.mp4"
"""What the video of a performance is called, in the run's folder."""


class PerformerRecord(Finite):
    """What one network or file made of a held-out clip."""

    name: str
    """`teacher`, the file as its `ExportRecord` has it, or what else the judges were shown, so that their numbers can be read."""
    kind: Literal["context", "teacher", "file"]
    measurements: tuple[Measurement, ...]
    """What it is worth; every number is over the whole clip."""
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Name -> what was measured in each frame."""


class PerformanceRecord(Finite):
    """A held-out clip that the original and every executed file performed whole."""

    clip: str
    fps: float = Field(gt=0)
    frames: int = Field(gt=0)
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Name -> the exact truth in each frame, by the names of the performers' curves."""
    curve_unit: str = ""
    curve_note: str = ""
    """How far measured curves can be trusted."""
    performers: tuple[PerformerRecord, ...]
    shown: tuple[str, ...] = ()
    """Titles of the columns of the video, from left to right; empty where there is none."""
    shown_file: str = ""
    """The performer among the files that stands beside the original, in the video and among the curves; empty where none was executed."""
    no_video: str = ""
    """Why there is no video."""
    missing: tuple[str, ...] = ()
    """What could not be performed or judged: `what: why`."""

    def named(self, name: str) -> PerformerRecord | None:
        """The performer of this name."""
        return next((one for one in self.performers if one.name == name), None)


GALLERY = "gallery.png"
"""What the picture of held-out captions beside one another is called, in the run's folder."""
ATTENTION_BY_HEADS = "original, attention by heads"
"""In the latencies of whole pictures, and the measurement of the teacher that they take: the original in the layout of attention in which its
compression begins, where that is not the one in which it was published. Weights and results are the same, so that what the layout saves is not taken
for what compression saves."""
ATTRIBUTE_ACCURACY = "attribute accuracy"
"""What the measurement of a painter is called that says how many attributes of its pictures are as the captions say, %."""


class PainterRecord(Finite):
    """Who drew all held-out captions: text encoder, U-Net and decoder together."""

    name: str
    kind: Literal["original", "compressed", "files"]
    """`original` and `compressed` compute in PyTorch."""
    steps: int
    guidance: float
    files: tuple[str, ...] = ()
    """Text encoder, U-Net and decoder, as their `ExportRecord`s have them."""
    measurements: tuple[Measurement, ...]
    """What the pictures are worth; every number is over all of them."""
    psnr_db: float | None = None
    """Mean likeness to the pictures of the compressed networks in PyTorch, from the same noise; None for what is not to be like them."""
    least_psnr_db: float | None = None
    """The worst of them."""
    limit_db: float | None = None
    """For `least_psnr_db`; None where it is only told."""

    @property
    def passed(self) -> bool | None:
        """Whether the files draw what PyTorch draws; None without a limit."""
        return None if self.limit_db is None or self.least_psnr_db is None else self.least_psnr_db >= self.limit_db


class CallsRecord(Finite):
    """What a component takes of a whole picture."""

    component: str
    calls: int = Field(ge=1)
    each: Measurement
    """Latency of one call."""


class GalleryRecord(Finite):
    """The held-out captions as several painters drew them."""

    captions: tuple[str, ...]
    painters: tuple[PainterRecord, ...]
    shown: tuple[str, ...] = ()
    """Who stands in the picture `GALLERY`, from left to right, behind a true picture of each caption where there is one: some of the painters, and
    between them the same networks in other numbers of steps, which drew the captions of the picture alone and were not judged."""
    latency: dict[str, tuple[CallsRecord, ...]] = Field(default_factory=dict)
    """`original`, where there is one `ATTENTION_BY_HEADS`, and `compressed` -> what a whole picture is estimated to take on the target's device."""
    missing: tuple[str, ...] = ()
    """What could not be drawn or judged: `what: why`."""
    by_script: tuple[PainterRecord, ...] = ()
    """One picture, drawn by the bundle's own `draw.py` with each set of files that it can run here."""

    def named(self, name: str) -> PainterRecord | None:
        """The painter of this name."""
        return next((one for one in self.painters if one.name == name), None)

    def picture_ms(self, model: str) -> float:
        """Of a whole picture, all calls together."""
        return sum(one.calls * one.each.value for one in self.latency[model])


class DeviceLatency(Record):
    """What a model is estimated to take on the unit that a device prefers."""

    model: Literal["teacher", "compressed"]
    files: Literal["fp32", "fp16", "mixed"]
    device: str
    title: str
    unit: str
    latency: Measurement | None
    computed_in: str = ""
    """Precision of arithmetic and memory of a float file there."""
    why: str = ""
    """Why there is no estimate."""


class BudgetRecord(Record):
    """One line of the budget check."""

    what: str
    limit: float
    value: float | None
    how: How | None
    met: bool
    note: str = ""


class Run(Record):
    """Everything that is known about a run."""

    schema_version: Literal[1] = Field(default=1, alias="schema", serialization_alias="schema")
    target: TargetRecord
    environment: EnvironmentRecord
    stages: tuple[StageRecord, ...]
    models: dict[str, ModelRecord]
    baseline: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Trivial reference on the held-out data: sample name -> metric -> value; `mean` is the mean."""
    baseline_name: str = "bicubic"
    """What the trivial reference is; its pictures are called so."""
    data: DataRecord | None = None
    """For tasks that can learn without targets."""
    exports: tuple[ExportRecord, ...]
    budget: tuple[BudgetRecord, ...]
    roofline: tuple[Ceiling, ...] = ()
    """One per unit and precision that the breakdowns compute on."""
    performances: tuple[PerformanceRecord, ...] = ()
    """Of tasks whose outputs move."""
    gallery: GalleryRecord | None = None
    """Of text to image."""
    devices: tuple[DeviceLatency, ...] = ()
    """The original and the compressed model on all devices that mcompress knows, for the same tasks."""
    fallbacks: tuple[Fallback, ...]
    not_measured: tuple[str, ...] = ()
    seconds: float = 0.0
    """Wall time of the process that finished the run; what earlier processes computed is listed with its own times in `stages`."""
    peak_memory_mb: float | None = None
    """Of that same process."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True)

    @property
    def components(self) -> tuple[str, ...]:
        """Networks that go along with the run's own: each is in `models` by its name, its original as `<name>_teacher`."""
        return tuple(name for name in self.models if f"{name}_teacher" in self.models)

    def save(self, folder: Path) -> None:
        """Write `folder/run.json` as a whole."""
        temporary = folder / "run.json.tmp"
        temporary.write_text(self.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / "run.json")

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read `folder/run.json`; raises `OSError` or `pydantic.ValidationError`."""
        return cls.model_validate_json((folder / "run.json").read_text(encoding="utf-8"))
