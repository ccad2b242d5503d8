"""manifest.json of a bundle, schema 2: everything an app team needs to use its files, as data."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mcompress.export.interface import TensorFacts
from mcompress.export.manifest_drawing import Drawing
from mcompress.export.manifest_part import Part
from mcompress.export.manifest_speech import Speech, Streaming
from mcompress.record import CoverageRecord, Fidelity, ParityRecord, WorstPicture
from mcompress.targets.schema import How, Measurement

SCHEMA = 2
"""2: test vectors and preprocessing of each input by its name; 1 had one input."""
ComputedBy = Literal["this file in its runtime", "this file in ONNX Runtime", "this file in mcompress's evaluator", "PyTorch"]
"""What computed a number or picture of the manifest. The evaluator executes Core ML files where there is no Core ML;
ONNX Runtime executes the files that the device builds engines from."""


class Runtime(Part):
    """What executes the file."""

    name: str
    least_version: str
    """The oldest version that is known to execute the file."""
    basis: str
    """How that is known."""


class Recommended(Part):
    """How to run the file, and why."""

    unit: str
    delegate: str
    threads: int = Field(ge=1)
    basis: str


class ProcessingStep(Part):
    """One step between a picture, or another tensor of the network, and the file's tensor, in order.

    `arguments` are numbers and words, so that any language can follow them. Those of talking faces:

    - `crop_face`: the square that holds the face, resized to `height` x `width`; the middle of its closed mouth is then near pixel
      (`mouth_x`, `mouth_y`);
    - `mask_rows`: rows `first` to `last`, from 0, become `value`;
    - `stack`: in channels, the pictures `first` and `second`; what stands before `mask_rows` is done to both, and that to the first alone;
    - `log_mel`: the window of the frame, `bands` x `columns`, as `speech` says;
    - `paste_rows`: rows `first` to `last` go back into the square, faded in over `feather` rows, and over as many at its other borders.
    """

    operation: Literal[
        "tile",
        "colour_order",
        "scale",
        "layout",
        "quantize",
        "dequantize",
        "clip",
        "round",
        "crop_face",
        "mask_rows",
        "stack",
        "log_mel",
        "paste_rows",
    ]
    arguments: dict[str, float | int | str]


class Tolerance(Part):
    """A replayed vector passes within `max_abs`, or with at least `or_sqnr_db` where that is given."""

    max_abs: float = Field(ge=0)
    or_sqnr_db: float | None = None
    basis: str


class VectorInput(Part):
    """The value of one input of the file."""

    name: str
    npy: str
    bin: str


class VectorFiles(Part):
    """One test vector; paths relative to the bundle.

    `.npy` is float32 in real values, as the network has it (NCHW); `.bin` is raw, little-endian, in the file's own layout and type.
    """

    name: str
    inputs: tuple[VectorInput, ...] = Field(min_length=1)
    """In the order of the file's inputs."""
    expected_bin: str
    expected_from: ComputedBy
    reference_npy: str
    """What PyTorch computes for the inputs."""


class Quality(Part):
    """Metric -> value on held-out data; `after` was computed by `after_from`."""

    before: dict[str, float]
    after: dict[str, float]
    after_from: ComputedBy
    baseline: dict[str, float]
    """What costs nothing (bicubic enlargement), where there is such a thing."""
    worst: dict[str, WorstPicture] = Field(default_factory=dict)
    """Metric -> the held-out picture that is worst by it, as `after_from` computes it."""


class ModelFile(Part):
    """One shipped file, or folder for Core ML."""

    path: str
    backend: str
    variant: Literal["float", "mixed"]
    recommended: bool
    """The one to start with; of a network of several widths, among the backend's files of this width."""
    bytes: int = Field(ge=0)
    sha256: str
    runtime: Runtime
    run_with: Recommended
    inputs: tuple[TensorFacts, ...] = Field(min_length=1)
    """In the file's order, in which runtimes without names take them."""
    outputs: tuple[TensorFacts, ...] = Field(min_length=1)
    preprocessing: dict[str, tuple[ProcessingStep, ...]]
    """Name of each input -> the steps that make it: of a picture all, of another tensor those behind what the network itself takes."""
    postprocessing: tuple[ProcessingStep, ...]
    precision_counts: dict[str, int]
    coverage: CoverageRecord
    parity: ParityRecord
    latency: tuple[Measurement, ...]
    quality: Quality
    fidelity: dict[str, Fidelity] = Field(default_factory=dict)
    """`teacher` and `float_student` (the network before quantization, in PyTorch) -> how like theirs the file's held-out pictures are."""
    tolerance: Tolerance
    vectors: tuple[VectorFiles, ...]
    width: float | None = None
    """Of a slimmable network: the share of the widest one's channels that it has, 1 for the widest."""
    component: str | None = None
    """Of text to image: which network it is, `unet`, `text_encoder` or `decoder`."""


class Choice(Part):
    """One width of a slimmable network for one runtime: load `file` where `within_ms` fits the time that there is."""

    within_ms: float = Field(gt=0)
    """Latency of the file on the target's device."""
    file: str
    backend: str
    width: float = Field(gt=0, le=1)
    unit: str
    how: How
    """How `within_ms` was obtained, and, below, on what and within which error."""
    on: str
    band: str | None = None
    quality: dict[str, float]
    """Metric -> held-out mean."""


class Content(Part):
    """A file or model folder of the bundle and its digest; a folder's covers its sorted relative paths, sizes and contents."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str


class Source(Part):
    """What the bundle was made from."""

    target: str
    target_sha256: str
    stages: dict[str, str]
    """Stage name -> digest of its result."""
    mcompress: str
    commit: str | None
    seed: int


class Manifest(Part):
    """The whole manifest; `manifest_sha256` covers the canonical JSON of everything else."""

    schema_version: Literal[2] = Field(default=2, alias="schema", serialization_alias="schema")
    name: str
    task: str
    device: str
    scale: int = Field(ge=1)
    """Output side divided by input side."""
    quick: bool
    """Made with tiny budgets, to try the path; not for shipping."""
    weights_licence: str
    source: Source
    files: tuple[ModelFile, ...] = Field(min_length=1)
    choose: tuple[Choice, ...] = ()
    """Of a slimmable network: from slow and best to fast. An app takes the first entry of its runtime whose `within_ms` fits the time that it has,
    the last of its runtime where none does."""
    speech: Speech | None = None
    """Of talking faces."""
    streaming: Streaming | None = None
    """Of networks that follow a sound as it arrives."""
    drawing: Drawing | None = None
    """Of text to image."""
    contents: tuple[Content, ...] = ()
    manifest_sha256: str = ""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="after")
    def _files_take_what_is_streamed(self) -> Self:
        for file in self.files:
            taken, given = (tuple(facts.name for facts in ports) for ports in (file.inputs, file.outputs))
            if self.speech is not None and self.speech.input not in taken:
                raise ValueError(f"speech goes into '{self.speech.input}'; {file.path} takes {', '.join(taken)}")
            for component in () if self.streaming is None else self.streaming.components:
                if (component.inputs, component.outputs) != (taken, given):
                    made = f"{', '.join(component.outputs)} from {', '.join(component.inputs)}"
                    raise ValueError(f"the component {component.name} makes {made}; {file.path} makes {', '.join(given)} from {', '.join(taken)}")
        return self

    @model_validator(mode="after")
    def _files_draw_together(self) -> Self:
        if self.drawing is None:
            return self
        for file in self.files:
            taken, given = (tuple(facts.name for facts in ports) for ports in (file.inputs, file.outputs))
            problem = self.drawing.file_problem(file.path, file.component, taken, given)
            if problem is not None:
                raise ValueError(problem)
        floats = {(file.backend, file.component) for file in self.files if file.variant == "float"}
        for backend in dict.fromkeys(file.backend for file in self.files):
            lacking = [component.name for component in self.drawing.components if (backend, component.name) not in floats]
            if lacking:
                raise ValueError(f"there is no float {backend} file of {', '.join(lacking)}; each backend needs one of every component that draws")
        return self

    @model_validator(mode="after")
    def _choices_are_files(self) -> Self:
        of = {file.path: (file.backend, file.width) for file in self.files}
        for choice in self.choose:
            if of.get(choice.file) != (choice.backend, choice.width):
                raise ValueError(f"choose names '{choice.file}', which is no {choice.backend} file of width {choice.width:g} in `files`")
        for backend in {choice.backend for choice in self.choose}:
            times = [choice.within_ms for choice in self.choose if choice.backend == backend]
            if times != sorted(times, reverse=True):
                raise ValueError(f"choose has {times} ms for {backend}; each runtime's files go from slow to fast")
        return self
