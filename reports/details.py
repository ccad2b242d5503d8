"""What stages left for the report in `stages/<name>/details.json`; keys that the report does not show are passed over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from mcompress.errors import UsageError


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)


class FoundCandidate(_Read):
    """A candidate of a search that was evaluated."""

    latency_ms: float
    quality: float
    macs: int | None = None
    peak_memory_mb: float | None = None
    spec_args: dict[str, JsonValue] = Field(default_factory=dict)
    picked: bool = False
    state: str = "complete"


class FoundTeacher(_Read):
    """A network of the supernet that a search found to teach the student; `quality` is with the supernet's weights."""

    spec_args: dict[str, JsonValue] = Field(default_factory=dict)
    macs: int
    quality: float


class RejectedCandidate(_Read):
    """A candidate that was rejected before it was evaluated; `over` says by how much of each limit (0.5: half as much again)."""

    latency_ms: float
    macs: int
    peak_memory_mb: float
    over: dict[str, float]


class PrunedLayer(_Read):
    """Channels of a layer before and after."""

    module: str
    before: int
    after: int


class RemovedBlock(_Read):
    """A residual block that pruning removed; the loss is the mean absolute error of the output."""

    block: str
    loss_increase: float
    saved_ms: float


class OperatorPrecision(_Read):
    """One operator of the precision plan, and what the output is worth when it alone has another precision."""

    name: str = Field(validation_alias=AliasChoices("name", "operator"))
    module: str = ""
    kind: str = ""
    precision: str
    sqnr_db: float | None = None
    """In INT8."""
    fp16_sqnr_db: float | None = None
    quality_lost: float | None = None
    """Of the task's metric, in INT8."""
    reason: str = ""


class TriedPlan(_Read):
    """A precision plan that was run; `latency_ms` is estimated and summed over the planned units."""

    latency_ms: float
    predicted_sqnr_db: float | None = None
    sqnr_db: float | None = None
    quality_lost: float | None = None
    int8_macs: float | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    seconds: float | None = None
    taken: bool = False


class RecoveryTried(_Read):
    """A step that was to make the network bear INT8 better; `plan` says under which plan."""

    plan: str = Field(validation_alias=AliasChoices("plan", "for"), default="")
    step: str
    before_db: float | None = None
    after_db: float | None = None
    kept: bool


class StageBlocks(_Read):
    """How many attention or residual blocks stand at a stage of a UNet before and after it evolved."""

    stage: str
    """`Down-1` to `Up-3` by resolution; all that has the lowest one is `Mid`."""
    side: int
    channels: int
    kind: Literal["attention", "residual"]
    before: int
    after: int


class ValuedBlock(_Read):
    """A block when it was looked at: what the error of the prediction rises by without it, and what it takes on the device."""

    block: str
    loss_rise: float
    milliseconds: float
    value: float | None = None
    """Rise per millisecond; None for a block that takes no time."""


class EvolvingAction(_Read):
    """What evolving did to a UNet; the error is that from before, training behind the action before included."""

    what: Literal["removed", "doubled", "taken back"]
    blocks: tuple[ValuedBlock, ...]
    error_before: float
    latency_before_ms: float
    latency_after_ms: float


class PhaseTraining(_Read):
    """The training before the first action (phase 0), or behind so many of them."""

    phase: int
    seconds: float
    curve: tuple[tuple[int, dict[str, float]], ...] = ()


class Leg(_Read):
    """One training of a distillation that has several behind one another, or why it was left out."""

    name: str
    what: str = ""
    train_steps: int | None = None
    train_seconds: float | None = None
    skipped: str = ""


class StageDetails(_Read):
    """Everything that any stage may have left."""

    front: tuple[FoundCandidate, ...] = ()
    trials: tuple[FoundCandidate, ...] = ()
    rejected: tuple[RejectedCandidate, ...] = ()
    rejected_over_budget: int | None = None
    curve: tuple[tuple[int, dict[str, float]], ...] = ()
    teachers: dict[str, FoundTeacher] = Field(default_factory=dict)
    """Of a semi-supervised search: in what it is larger than the student -> the teacher."""
    teacher_weights: dict[str, float] = Field(default_factory=dict)
    """Of adaptive distillation: teacher -> its share of 1 when the training ended."""
    before: dict[str, float] = Field(default_factory=dict)
    after: dict[str, float] = Field(default_factory=dict)
    layers: tuple[PrunedLayer, ...] = ()
    blocks: tuple[RemovedBlock, ...] = ()
    blocks_before: int = 0
    """Residual blocks that pruning might have removed."""
    block_map: tuple[StageBlocks, ...] = ()
    """Of an evolution, or of BK-SDM's removals."""
    removed_as: str = ""
    """`BK-SDM Base`: blocks that were removed whatever they are worth."""
    actions: tuple[EvolvingAction, ...] | None = None
    """Of an evolution; empty for one that met its budget as it was and had no room."""
    scores: tuple[ValuedBlock, ...] = ()
    """Of an evolution: all blocks before the first one went."""
    trainings: tuple[PhaseTraining, ...] = ()
    measure: str = ""
    """Of an evolution: by what blocks were valued."""
    legs: tuple[Leg, ...] = ()
    """Of a distillation to fewer steps: the first part of the names of its curves."""
    operators: tuple[OperatorPrecision, ...] = Field(default=(), validation_alias=AliasChoices("operators", "sensitivity"))
    given: bool = False
    """The plan was given with the target instead of being made."""
    goal: Literal["latency", "quality"] = "latency"
    within: float | None = None
    least_sqnr_db: float | None = None
    latency_limit_ms: float | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    planned_units: tuple[str, ...] = ()
    planned_ms: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """`chosen`, `all int8`, `all float` -> unit -> estimated milliseconds."""
    precision_front: tuple[TriedPlan, ...] = ()
    faster_plans_that_broke_the_floor: int = 0
    optimality_gap: float | None = None
    output_sqnr_db: float | None = None
    quality_lost: float | None = None
    recovery: tuple[RecoveryTried, ...] = ()
    calibration_samples: int | None = None
    sensitivity_samples: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _blocks_of_an_evolution(cls, found: object) -> object:
        """What pruning calls its removed blocks, evolving calls its map of all blocks."""
        if not isinstance(found, dict) or "actions" not in found:
            return found
        return {("block_map" if key == "blocks" else key): value for key, value in found.items()}

    def rejected_by(self) -> dict[str, int]:
        """Limit -> how many candidates were over it; one candidate may be over several."""
        return dict(Counter(name for candidate in self.rejected for name in candidate.over).most_common())


def read_details(folder: Path) -> StageDetails | None:
    """`folder/details.json`, or None if the stage left none. Raises `UsageError` if it is broken."""
    path = folder / "details.json"
    if not path.is_file():
        return None
    try:
        return StageDetails.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {where}: {first['msg']}. The run folder is damaged; run the target again.") from error
