"""What the program is asked and what it answers, as JSON; why a file cannot be measured."""

from __future__ import annotations

from typing import Dict, List, Optional, TypedDict


class Rules(TypedDict):
    """As `mcompress.export.profile.Rules`."""

    min_queries: int
    min_seconds: float
    max_seconds: float
    warm_up_s: float
    cool_down_s: float


class Job(TypedDict):
    """One file; `file` is relative to the working directory."""

    file: str
    backend: str
    shapes: List[List[int]]
    """Of the inputs, from the first one on; where the file states all sizes, their order may be another one. Left out: as the file states it."""
    inputs: Dict[str, List[int]]
    """Name -> shape, just as the file has it; '' is the first input."""
    threads: int
    cpus: Optional[List[int]]
    rules: Rules
    operators: bool


class Request(TypedDict):
    """What is to be done. With `rounds`, the first two jobs are measured in turns in one process."""

    jobs: List[Job]
    rounds: int
    queries_per_round: int
    sys: str
    fork: bool


class Operator(TypedDict):
    """One operator and its mean time."""

    name: str
    kind: str
    mean_ms: float


class Input(TypedDict):
    """An input of a file, with the sizes that it was measured at."""

    name: str
    shape: List[int]


class Result(TypedDict):
    """What a child process found out about one file."""

    runtime: str
    load_ms: float
    samples_ms: List[float]
    clock_jumps: int
    peak_memory_mb: Optional[float]
    warnings: List[str]
    inputs: List[Input]
    assumed: str
    """What the file leaves open and was decided here; empty if nothing was."""


class MissingRuntime(Exception):  # noqa: N818
    """No runtime for the file; the message says what to install."""


class Unusable(Exception):  # noqa: N818
    """The file cannot be measured as asked; the message says why."""


class WrongInput(Unusable):
    """The sizes that were asked for with `--input`, or that were not, do not suit the file."""
