"""What benchmarks of trainings share: a training in one thread with its processor time, results that are kept as they come, equal time."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mcompress.compress.checkpoints import NoCheckpoints
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.stage import StageContext
from mcompress.compress.tasks.task import Task
from mcompress.compress.train import Objective, TrainSettings, train
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget

logger = logging.getLogger("benchmark")
STEPWISE, TIMEWISE = "equal steps", "equal wall time"
SAME_TIME = 0.1
"""Steps that differ by less than this share take the same time."""


def fit(objective: Objective, settings: TrainSettings) -> float:
    """Train; returns the processor time of this process, seconds, which on an idle machine is the wall time and on a busy one does not change."""
    started = time.process_time()
    train(objective, settings, NoCheckpoints(), lambda _done, _total, _note: None)
    return time.process_time() - started


def stage_context(task: Task, device_name: str, budget: Budget, original: tuple[ModelSpec, nn.Module], seed: int, folder: Path) -> StageContext:
    """For a stage that is run alone on the preferred unit of a device, whose files ship in INT8. It begins with a copy of the original, which it may
    change.
    """
    device = load_device(device_name)
    spec, network = original[0], original[1].eval()
    return StageContext(
        task, device, device.units[device.preferred_unit], budget, network, spec, copy.deepcopy(network), spec, None, seed,
        lambda _name: NoCheckpoints(), folder, "int8", lambda _title: lambda _done, _total, _note: None, (device.preferred_unit,),
        lambda _what, _depends_on, compute: compute(),
    )  # fmt: skip


class Training(Hashable, Protocol):
    """What tells one training from another; a dataclass of JSON values."""

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...


class Trained(Protocol):
    """What came of it; a dataclass of JSON values but for `training`."""

    @property
    def training(self) -> Training: ...
    @property
    def seconds(self) -> float: ...


Found = TypeVar("Found", bound=Trained)
Given = TypeVar("Given")
Made = TypeVar("Made")


def in_parallel(work: Callable[[Given], Made], given: Collection[Given], jobs: int) -> Iterator[Made]:
    """What `work` makes of each, as it comes, in processes of their own."""
    if not given:
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(work, one) for one in given]):
            yield future.result()


class Results(Generic[Found]):
    """Finished trainings, in the result file after each; `document` is the whole file, with `more` where there is none.

    `depends_on`: facts of which each result is; a file with others is begun anew.
    """

    def __init__(
        self, path: Path, read: Callable[[dict[str, object]], Found], more: dict[str, object], *, again: bool, depends_on: Mapping[str, object]
    ) -> None:
        self.path = path
        self.document: dict[str, object] = json.loads(path.read_text()) if path.exists() and not again else {}
        changed = [name for name, value in depends_on.items() if self.document.get(name) != value]
        if changed:
            if self.document:
                path.rename(path.with_suffix(".old"))
                logger.warning("%s has other values of %s; it is %s now, and this begins anew", path, ", ".join(changed), path.with_suffix(".old"))
            self.document = {"trainings": [], **more, **depends_on}
        trainings = self.document["trainings"]
        assert isinstance(trainings, list)
        self.done: dict[Training, Found] = {one.training: one for one in map(read, trainings)}

    def save(self) -> None:
        """Write the file as a whole."""
        self.document["trainings"] = [asdict(one) for one in self.done.values()]  # type: ignore[call-overload]  # a dataclass
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.document, indent=1) + "\n")
        temporary.replace(self.path)

    def complete(self, wanted: Sequence[Training], run: Callable[[Training], Found], jobs: int) -> Iterator[Found]:
        """Run what has not been run, and keep each; yields what is new."""
        for found in in_parallel(run, [one for one in wanted if one not in self.done], jobs):
            self.done[found.training] = found
            self.save()
            yield found


def mean_seconds(found: Sequence[Trained]) -> float:
    """Of trainings that differ in their seeds."""
    return statistics.mean(one.seconds for one in found)


def steps_in_time(steps: int, own_s: float, rival_s: float, tried: Collection[int]) -> int:
    """The steps that a way which takes `own_s` for `steps` steps takes in `rival_s`; of those `tried` before, where one takes that time."""
    exact = steps * rival_s / own_s
    more = round(exact / 50) * 50 or max(1, round(exact))
    kept = min(tried, key=lambda count: abs(count - more), default=more)
    return kept if abs(kept - more) <= SAME_TIME * more else more


def mean_and_spread(values: Sequence[float], unit: str, digits: int = 3) -> dict[str, object]:
    """Mean, standard deviation (None of one value) and all of them, named with their unit."""
    spread = round(statistics.stdev(values), digits) if len(values) > 1 else None
    return {f"mean_{unit}": round(statistics.mean(values), digits), f"spread_{unit}": spread, f"each_{unit}": list(values)}


def facts() -> dict[str, object]:
    """How every training was computed."""
    return {"torch": torch.__version__, "threads": 1}


def digest_of(tensors: Iterable[Tensor]) -> str:
    """The start of the SHA-256 of their values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
