"""What a stage takes and returns. A stage is a function `(config, context) -> StageOutput`; it prints nothing and, but for what a search shares with
its workers, touches no disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.tasks.task import Task
from mcompress.compress.train import CheckpointStore, Progress
from mcompress.targets.device import Device, Unit
from mcompress.targets.schema import Budget, Fallback, Measurement
from mcompress.targets.speeds import PrecisionName


@dataclass(frozen=True)
class CompanionNetwork:
    """A network that goes along with the model through the stages, with its specification."""

    spec: ModelSpec
    network: nn.Module


@dataclass(frozen=True)
class StageContext:
    """Everything that a stage may use besides its configuration."""

    task: Task
    device: Device
    unit: Unit
    budget: Budget
    teacher: nn.Module
    teacher_spec: ModelSpec
    model: nn.Module
    """What the stage before it produced; the stage owns this copy."""
    spec: ModelSpec
    plan: PrecisionPlan | None
    seed: int
    checkpoints: Callable[[str], CheckpointStore]
    """A named place for training state."""
    search_folder: Path
    """What a search shares with workers: its journal, so that a killed search resumes, and the trained supernet. No other stage uses it."""
    ships_as: PrecisionName
    """The precision for which costs are estimated: `int8` with a quantize stage behind, otherwise `fp16`, as which float networks go to phones."""
    progress: Callable[[str], Progress]
    """Opens a progress line with this title."""
    planned_units: tuple[str, ...]
    """The device's units that the target's files reach: precisions are planned for all of them at once."""
    remember: Callable[[str, dict[str, JsonValue], Callable[[], str]], str]
    """`remember(what, depends_on, compute)`: a text that other configurations of the stage share. It is kept by the network, the data and the seed,
    which are known, and by `depends_on`."""
    given_plan: PrecisionPlan | None = None
    """A precision plan that the target gives for the quantize stage to apply."""
    teachers: Mapping[str, CompanionNetwork] = field(default_factory=dict)
    """`wider` and `deeper`: networks that a search found to teach its student, as later stages made them; the stage owns these copies."""

    def generator(self, offset: int = 0) -> torch.Generator:
        """A fresh source of randomness for this stage."""
        return torch.Generator().manual_seed(self.seed + offset)


@dataclass(frozen=True)
class StageOutput:
    """What a stage produced; `details` is JSON for the report (a Pareto front, loss curves)."""

    model: nn.Module
    spec: ModelSpec
    plan: PrecisionPlan | None = None
    measurements: tuple[Measurement, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    details: dict[str, JsonValue] = field(default_factory=dict)
    recovered: dict[str, Tensor] | None = None
    """Parameters of the exported program (`quantize.program.graph_of`) with which mixed files are written; None where they are the network's own."""
    teachers: Mapping[str, CompanionNetwork] = field(default_factory=dict)
    """Networks for later stages; where there are none, those that the stage was given go on."""
    narrower: Mapping[str, CompanionNetwork] = field(default_factory=dict)
    """Networks that ship beside the model, by the name of their width (`w050`), the widest first; each goes through the later stages alone."""
