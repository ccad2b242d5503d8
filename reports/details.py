"""What stages left for the report in `stages/<name>/details.json`; keys that the report does not show are passed over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError

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


class OperatorPrecision(_Read):
    """One operator of the precision plan."""

    name: str = Field(validation_alias=AliasChoices("name", "operator"))
    module: str = ""
    kind: str = ""
    precision: str
    sqnr_db: float | None = None
    reason: str = ""


class StageDetails(_Read):
    """Everything that any stage may have left."""

    front: tuple[FoundCandidate, ...] = ()
    trials: tuple[FoundCandidate, ...] = ()
    rejected: tuple[RejectedCandidate, ...] = ()
    rejected_over_budget: int | None = None
    curve: tuple[tuple[int, dict[str, float]], ...] = ()
    before: dict[str, float] = Field(default_factory=dict)
    after: dict[str, float] = Field(default_factory=dict)
    layers: tuple[PrunedLayer, ...] = ()
    operators: tuple[OperatorPrecision, ...] = Field(default=(), validation_alias=AliasChoices("operators", "sensitivity"))
    keep_float_below_db: float | None = None
    output_sqnr_db: float | None = None
    calibration_samples: int | None = None

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
