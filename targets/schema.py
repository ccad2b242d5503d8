"""The vocabulary of a run: what a target file may say, and the one type in which numbers reach a report.

Everything here is frozen and rejects unknown keys. Nothing here imports torch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from mcompress.targets.exports import ExportConfig
from mcompress.targets.gate import Gate
from mcompress.targets.stages import QuantizeConfig, StageConfig, TrainingConfig

How = Literal["device", "host", "estimated", "published"]

SMALLEST_SIDE = 8
"""Pixels; on a smaller input, whatever a network computes is mostly its padding, and pictures cannot be cut into overlapping tiles."""
MOST_VALUES = 2**25
"""Values of one input; a 4K picture has 24.9 million."""


class Frozen(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Measurement(Frozen):
    """A number and how it was obtained. No number reaches a user without one."""

    what: str
    """What was measured, for example `latency`."""
    value: float
    unit: str
    how: How
    on: str
    """Device, unit and runtime, for example `snapdragon865 gpu int8`."""
    p50: float | None = None
    p90: float | None = None
    n: int | None = None
    band: str | None = None
    """The error band of an estimate, for example `not validated` or `median error 18 %`."""
    source: str | None = None


class Fallback(Frozen):
    """Something that was planned one way and happened another, or was not done at all."""

    where: str
    """Stage or backend, for example `export tflite`."""
    what: str
    """The operator, file or figure."""
    reason: str


class QualityFloor(Frozen):
    """The least acceptable quality on held-out data."""

    metric: str = "psnr_db"
    at_least: float | None = None
    """Absolute floor, in the metric's unit."""
    within: float | None = Field(default=None, ge=0)
    """Largest loss against the teacher, in the metric's unit."""

    @model_validator(mode="after")
    def _some_floor(self) -> QualityFloor:
        if self.at_least is None and self.within is None:
            raise ValueError("give at_least (absolute) or within (loss against the teacher); without one nothing is checked")
        return self


class Budget(Frozen):
    """What the result must stay within; every limit is optional and is compared with a `Measurement`."""

    latency_ms: float | None = Field(default=None, gt=0)
    size_mb: float | None = Field(default=None, gt=0)
    peak_memory_mb: float | None = Field(default=None, gt=0)
    """Live activations of one forward pass as fp32, so that precisions do not change the limit's meaning."""
    macs_g: float | None = Field(default=None, gt=0)
    """Multiply-adds of one forward pass (exact work), in 10^9."""
    quality: QualityFloor | None = None


NETWORK_PATTERN = r"^[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?$"
ColourOrder = Literal["RGB", "BGR"]


class NetworkConfig(Frozen):
    """A network: a name from `mcompress list models`, or `package.module:function` for the user's own; its arguments; its weights."""

    network: str = Field(pattern=NETWORK_PATTERN)
    args: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: Path | None = None
    colour_order: ColourOrder = "RGB"
    """Of the pictures that the checkpoint was trained on. Wav2Lip's public ones are BGR: they load as networks of RGB, which compute the same."""

    @model_validator(mode="after")
    def _colours_of_a_checkpoint(self) -> NetworkConfig:
        _check_colours(self.colour_order, self.checkpoint)
        return self


class TeacherConfig(Frozen):
    """The original that is to be compressed. `embedded` is the small teacher that ships with mcompress.

    A checkpoint without a network is ESRGAN's generator, `rrdb`, or of talking faces Wav2Lip's, `wav2lip`, at the size that the checkpoint has.
    """

    network: str = Field(default="embedded", pattern=NETWORK_PATTERN)
    args: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: Path | None = None
    colour_order: ColourOrder = "RGB"
    """Of the pictures that the checkpoint was trained on, as in `NetworkConfig`."""

    @model_validator(mode="before")
    @classmethod
    def _checkpoint_means_esrgan(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("checkpoint") and value.get("network", "embedded") == "embedded":
            return {**value, "network": "rrdb"}
        return value

    @model_validator(mode="after")
    def _embedded_takes_nothing(self) -> TeacherConfig:
        if self.network == "embedded" and self.args:
            raise ValueError("the embedded teacher takes no args; name a network, for example rrdb")
        _check_colours(self.colour_order, self.checkpoint)
        return self


def _check_colours(order: ColourOrder, checkpoint: Path | None) -> None:
    if order != "RGB" and checkpoint is None:
        raise ValueError(f"colour_order is {order}, that of the pictures that a checkpoint was trained on, and there is no checkpoint; remove it")


def _one_picture(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4 or shape[0] != 1 or min(shape[2:]) < SMALLEST_SIDE or math.prod(shape) > MOST_VALUES:
        seen = str(list(shape)) if len(shape) <= 8 else f"a list of {len(shape)} numbers"
        raise ValueError(
            f"{seen} cannot be exported; it must be [1, channels, height, width] with height and width of at least {SMALLEST_SIDE} and at most "
            f"{MOST_VALUES} values in all, for example [1, 3, 128, 128]. Exported files take one picture at a time"
        )
    return shape


FACES = (1, 6, 96, 96)
"""A face with its lower half masked above a reference frame, as talking-face networks take it."""
LATENTS, EMBEDDED_LATENTS = (1, 4, 64, 64), (1, 4, 8, 8)
"""What Stable Diffusion 1.5's U-Net takes for pictures of 512 pixels, and the embedded one for its 32."""
Component = Literal["unet", "decoder", "text_encoder"]
"""A network of a text-to-image model."""


class SamplingConfig(Frozen):
    """How the original of a text-to-image model draws."""

    steps: int = Field(default=32, ge=1, le=1000)
    """Of DDIM."""
    guidance: float = Field(default=7.5, ge=1, le=100)
    """Scale of classifier-free guidance; 1 is none."""


SHORT_FORMS = ("network", "args", "checkpoint", "colour_order")
"""What may stand directly under `model` for the teacher."""


_NETWORK_OF_CHECKPOINTS = {"talking_face": "wav2lip", "text_to_image": "diffusers"}
"""Task -> what a checkpoint is of, where no network is named: of text to image it is a folder as diffusers writes it."""


class ModelConfig(Frozen):
    """The model: its task, the teacher, where compression starts, and the input that the exported files take.

    `model: my_package.my_module:build` is short for `model: {teacher: {network: my_package.my_module:build}}`; so are `network`, `args`, `checkpoint`
    and `colour_order` directly under `model`.
    """

    task: Literal["super_resolution", "translation", "talking_face", "text_to_image"] = "super_resolution"
    component: Component = "unet"
    """Text to image: the network that `stages` and `budget` are about. The others go along as `components` says; with a component alone, none do."""
    sampling: SamplingConfig = SamplingConfig()
    """Text to image: how the original draws."""
    teacher: TeacherConfig = TeacherConfig()
    student: NetworkConfig | None = None
    """Where compression starts when no search stage builds a student; the teacher itself if left out."""
    expert: NetworkConfig | None = None
    """Talking faces: a trained lip-sync expert for clips of one's own, `{network: syncnet, checkpoint: FILE}`; the embedded clips have one."""
    input_shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_one_picture)] = (1, 3, 128, 128)
    """(1, channels, height, width) that the exported files take; larger pictures go through them in tiles. Talking faces are (1, 6, 96, 96)."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_task(cls, value: object) -> object:
        """Talking faces and text to image: the shape that is theirs, and the network of a checkpoint without one."""
        if not isinstance(value, dict) or not isinstance(value.get("task"), str) or value["task"] not in _NETWORK_OF_CHECKPOINTS:
            return value
        teacher, of_checkpoints = value.get("teacher"), _NETWORK_OF_CHECKPOINTS[value["task"]]
        own = isinstance(teacher, dict) and bool(teacher.get("checkpoint"))
        if isinstance(teacher, dict) and own and teacher.get("network", "embedded") == "embedded":
            value = {**value, "teacher": {**teacher, "network": of_checkpoints}}
        return {"input_shape": FACES if value["task"] == "talking_face" else LATENTS if own else EMBEDDED_LATENTS, **value}

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if isinstance(value, str):
            return {"teacher": {"network": value}}
        if isinstance(value, dict):
            short = {key: value[key] for key in SHORT_FORMS if key in value}
            if short and "teacher" not in value:
                return {**{k: v for k, v in value.items() if k not in short}, "teacher": short}
        return value


class DataConfig(Frozen):
    """Folders of images; left out, the task's embedded data are used: the photographs inside scikit-image and scikit-learn, or procedural scenes.

    Of text to image each picture has a caption: in `metadata.jsonl` with `file_name` and `text`, or in a .txt of its name beside it.
    """

    training: Path | None = None
    held_out: Path | None = None
    unlabelled: Path | None = None
    """Translation: further inputs, without a target."""
    labelled_fraction: float = Field(default=1.0, gt=0, le=1)
    """Translation: so many of the training pairs keep their target; of the others only the inputs are used."""
    pairing: Literal["aligned", "unpaired"] = "aligned"
    """Translation: whether input and target show the same thing (pix2pix), or are two collections (CycleGAN)."""
    embedded: Literal["objects", "photographs"] = "objects"
    """Translation: which embedded pairs, edges to shaded objects or edges to photographs."""

    @model_validator(mode="after")
    def _both_or_none(self) -> DataConfig:
        if (self.training is None) != (self.held_out is None):
            raise ValueError("give both training and held_out, or neither: quality is only honest on images that were not trained on")
        if self.training is not None and self.embedded != "objects":
            raise ValueError("embedded names data that come with mcompress, but training and held_out give folders; remove one of the two")
        if self.unlabelled is not None and self.training is None:
            raise ValueError("unlabelled gives inputs for the pairs in training, which is missing; give training and held_out as well")
        if self.pairing == "unpaired" and self.labelled_fraction < 1.0:
            raise ValueError("labelled_fraction is about pairs, and pairing is unpaired; remove one of the two")
        return self

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that is given."""
        return tuple(folder for folder in (self.training, self.held_out, self.unlabelled) if folder is not None)


_OF_TRANSLATION = ("unlabelled", "labelled_fraction", "pairing", "embedded")


def _each_backend_once(exports: tuple[ExportConfig, ...]) -> tuple[ExportConfig, ...]:
    names = [export.backend for export in exports]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there more than once; a backend writes its files once, under one name, so keep one of each")
    return exports


class ComponentConfig(Frozen):
    """What is done to a network of a text-to-image model beside its U-Net."""

    stages: tuple[StageConfig, ...] = Field(default=(QuantizeConfig(),), min_length=1)
    budget: Budget = Budget()


def _uncut(stage: StageConfig) -> StageConfig:
    """The quick form of a stage with its crops as they are: latents are never cut."""
    quick = stage.quick()
    return quick.model_copy(update={"crop_size": stage.crop_size}) if isinstance(stage, TrainingConfig) else quick


class Target(Frozen):
    """One run: the only input of the pipeline."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)
    device: str
    """A name or alias from `mcompress list devices`, or a device file of the user's own, *.yaml."""
    unit: str | None = None
    """The compute unit to estimate for; the device's preferred one if left out."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    budget: Budget = Budget()
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    components: dict[Literal["decoder", "text_encoder"], ComponentConfig] = Field(default_factory=dict)
    """Text to image: what is done to the networks beside the U-Net; one that is not named here is quantized."""
    exports: Annotated[tuple[ExportConfig, ...], AfterValidator(_each_backend_once)] = Field(min_length=1)
    gate: Gate = Gate()
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    threads: int = Field(default=2, ge=1, le=256)
    """Threads for training and calibration on this machine; part of what makes a result repeatable."""

    @model_validator(mode="after")
    def _fields_of_the_task(self) -> Target:
        given = [name for name in _OF_TRANSLATION if getattr(self.data, name) != DataConfig.model_fields[name].default]
        if self.model.task != "translation" and given:
            raise ValueError(f"data.{given[0]} belongs to the task translation, and model.task is {self.model.task}; remove one of the two")
        if self.model.task != "talking_face" and self.model.expert is not None:
            raise ValueError(f"model.expert belongs to the task talking_face, and model.task is {self.model.task}; remove one of the two")
        own = {
            "components": self.components,
            "model.component": self.model.component != "unet",
            "model.sampling": self.model.sampling != SamplingConfig(),
        }
        wrong = [name for name, given in own.items() if given]
        if self.model.task != "text_to_image" and wrong:
            raise ValueError(f"{wrong[0]} belongs to the task text_to_image, and model.task is {self.model.task}; remove one of the two")
        if self.components and self.model.component != "unet":
            raise ValueError(f"components go along with the unet, and model.component is {self.model.component}; remove one of the two")
        return self

    @property
    def beside(self) -> tuple[Literal["decoder", "text_encoder"], ...]:
        """The networks that go along with this target's own."""
        return ("text_encoder", "decoder") if self.model.task == "text_to_image" and self.model.component == "unet" else ()

    def of_component(self, name: Literal["decoder", "text_encoder"]) -> Target:
        """The target of a network that goes along."""
        config = self.components.get(name, ComponentConfig())
        model = self.model.model_copy(update={"component": name, "student": None})
        update = {"name": f"{self.name}-{name}", "model": model, "stages": config.stages, "budget": config.budget, "components": {}}
        return self.model_copy(update=update)

    def stage_names(self) -> tuple[str, ...]:
        """Folder name per stage: its kind, numbered from the second of a kind on."""
        kinds = [stage.stage for stage in self.stages]
        return tuple(kind if kinds[: i + 1].count(kind) == 1 else f"{kind}{kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds))

    def quick(self) -> Target:
        """The same path with tiny budgets: few steps, a small input, and no quality floor, since nothing that comes out means anything.

        A U-Net keeps the size of its input and of the crops, because it halves them as often as they allow; faces and latents have one size.
        """
        batch, channels, *sides = self.model.input_shape
        model = self.model.model_copy(update={"input_shape": (batch, channels, *(min(side, 32) for side in sides))})
        stages = tuple(stage.quick() for stage in self.stages)
        components = {
            name: config.model_copy(update={"stages": tuple(_uncut(stage) for stage in config.stages), "budget": Budget()})
            for name, config in self.components.items()
        }
        unet = any(network is not None and network.network == "unet_generator" for network in (model.teacher, model.student))
        if unet or model.task == "talking_face":
            model, fewest = self.model, 2 if unet else 5  # as the lip-sync expert judges them
            stages = tuple(
                quick.model_copy(update={"crop_size": stage.crop_size, "batch_size": min(stage.batch_size, fewest)})
                if isinstance(stage, TrainingConfig)
                else quick
                for stage, quick in zip(self.stages, stages, strict=True)
            )
        if model.task == "text_to_image":
            model, stages = self.model, tuple(_uncut(stage) for stage in self.stages)
        budget = self.budget.model_copy(update={"quality": None})
        exports = tuple(export.quick() for export in self.exports)
        update = {"stages": stages, "exports": exports, "model": model, "budget": budget, "components": components}
        return self.model_copy(update=update)
