"""Every error that mcompress raises on purpose.

MCompressError
├── TargetError          exit 2   the YAML is wrong: file, line, field
├── PlanError            exit 2   the YAML is right, but this run cannot work: stage order, data, budget
│   └── CheckpointError           a weights file that cannot be read, or belongs to another architecture
├── UsageError           exit 2   a command was called with something it cannot take
├── BudgetMissed         exit 3   the result is outside the budget that the target states
├── MissingBackendError  exit 4   an exporter's packages are not installed
├── StageError           exit 5   a stage failed
│   ├── TrainingDiverged          NaN or infinity in a loss
│   └── DiskFullError             no space left while a result was being written
├── ExportError          exit 5   a backend could not write or lower the model
├── DeviceError          exit 5   a device cannot be reached, was lost, or lacks what a measurement needs
└── ParityError          exit 6   an artifact does not compute what the original computes

Messages say what is wrong, the value that was seen, what is allowed and what to do. `cli.main` is the only place that catches them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Part = TypeVar("Part")


class MCompressError(Exception):
    """Base class; `exit_code` is what the command line returns."""

    exit_code = 1


class TargetError(MCompressError):
    """One or more problems in a target file; `problems` holds one line each."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        """Join `problems` (each `file:line: what`) into one message."""
        self.problems = problems
        super().__init__("\n".join(problems))


class PlanError(MCompressError):
    """A run that cannot work, found before anything expensive was started."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        """Join `problems` into one message."""
        self.problems = problems
        super().__init__("\n".join(problems))


class CheckpointError(PlanError):
    """A weights file that the target names and that cannot be read safely or does not fit the architecture; found while planning."""

    def __init__(self, problem: str) -> None:
        """One file, one problem; it may take several lines."""
        super().__init__([problem])


class UsageError(MCompressError):
    """A command or function was called with something it cannot take."""

    exit_code = 2


class StageError(MCompressError):
    """A stage failed; what earlier stages computed is kept."""

    exit_code = 5


class Problems:
    """Collects what is wrong in several parts, so that one message says all of it."""

    def __init__(self, *problems: str) -> None:
        """Start with `problems`."""
        self.found = list(problems)

    def add(self, *problems: str) -> None:
        """Note further ones."""
        self.found.extend(problems)

    def of(self, make: Callable[[], Part], place: str = "") -> Part | None:
        """What `make` gives; None when it fails, with its problems noted. `place` is put before those that do not begin with it."""
        try:
            return make()
        except (TargetError, PlanError) as error:
            problems = error.problems
        except (UsageError, StageError) as error:
            problems = [str(error)]
        self.add(*(problem if not place or problem.startswith(place) else f"{place}: {problem}" for problem in problems))
        return None


class BudgetMissed(MCompressError):  # noqa: N818  (the name that CI logs show)
    """The finished model is outside the budget; everything was written all the same."""

    exit_code = 3


class MissingBackendError(MCompressError):
    """A backend's packages are missing; the message holds the install line."""

    exit_code = 4


class TrainingDiverged(StageError):  # noqa: N818
    """A loss became NaN or infinite; the last good checkpoint is kept."""

    def __init__(self, player: str, step: int, term: str, value: float, kept_step: int) -> None:
        """Name the player, the step, the loss term and the step of the checkpoint that is kept."""
        self.player, self.step, self.term, self.value, self.kept_step = player, step, term, value, kept_step
        super().__init__(
            f"training of the {player} diverged at step {step}: loss term '{term}' is {value}. "
            f"The checkpoint of step {kept_step} is kept. Lower learning_rate or the weight of '{term}', then run again."
        )


class DiskFullError(StageError):
    """No space left on the disk that holds the run or the cache."""


class ExportError(MCompressError):
    """A backend could not lower or write the model."""

    exit_code = 5


class DeviceError(MCompressError):
    """A device cannot be reached, was lost during a measurement, or lacks what the measurement needs; what was complete is kept."""

    exit_code = 5


class ParityError(MCompressError):
    """An artifact does not compute what the original computes."""

    exit_code = 6
