"""Does semi-supervised distillation (UGC-style) help where labels are few? Does the evolutionary search? Comparisons that anyone can rerun.

    python tests/benchmarks/translation.py --steps 800 --seeds 3 --jobs 2

Edges to shaded objects, the embedded pairs: PSNR on the held-out pictures, mean and spread over seeds, at equal steps and at equal wall time. Every
training runs in one thread, and its processor time is compared. A training that is finished is in the result file, so that a benchmark which was
stopped goes on where it was; `--again` forgets them. The last result lies in `results/` beside this file.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from comparing_trainings import STEPWISE, TIMEWISE, Results, facts, fit, in_parallel, mean_and_spread, mean_seconds, stage_context, steps_in_time
from torch import nn

from mcompress.compress.candidates import CandidateCost, candidate_cost
from mcompress.compress.models.build import build
from mcompress.compress.models.space import SPACES, Args
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.adaptive import AdaptiveDistillation
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.objectives.pix2pix import Pix2Pix
from mcompress.compress.search import search
from mcompress.compress.tasks.translation.task import Translation
from mcompress.compress.train import TrainSettings
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget, DataConfig
from mcompress.targets.stages import AdaptiveDistillConfig, DistillConfig, SemiSupervisedSearchConfig, TrainingConfig

logger = logging.getLogger("benchmark")
SHAPE, RANGE = (1, 3, 256, 256), (-1.0, 1.0)
FLOOR_FRACTION = 0.25
FRACTIONS = (FLOOR_FRACTION, 0.1, 0.5)
BATCH, CROP, RATE = 4, 64, 2e-3
FAMILY: Args = {"convolutions": "separable", "normalization": "batch"}
STUDENT: Args = {"widths": [12] * 8, "depths": [2, 2, 2], **FAMILY}
WIDER: Args = {"widths": [20] * 8, "depths": [2, 2, 2], **FAMILY}
DEEPER: Args = {"widths": [12] * 8, "depths": [4, 4, 4], **FAMILY}
BUDGET = Budget(macs_g=0.774)  # that of targets/xiaomi10-edges2objects.yaml
RANDOM_PICKS = 2  # per seed
SEARCH_STEPS, TRIALS = 400, 60


@dataclass(frozen=True)
class Training:
    """One training that is compared: its way, the share of the labels that it sees, seed and steps."""

    way: str
    fraction: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Trained:
    """What came of it: held-out PSNR, and processor time of one thread, seconds; of a distillation, with the training of its teacher."""

    training: Training
    db: float
    seconds: float


def network(args: Args) -> nn.Module:
    return build(ModelSpec("resnet_generator", args, (), SHAPE, RANGE))


def quality_db(task: Translation, made: nn.Module) -> float:
    with torch.no_grad():
        return statistics.mean(task.quality(made.eval()(*s.inputs), s.truth) for s in task.held_out())


def settings(steps: int, seed: int) -> TrainSettings:
    return TrainSettings(steps, RATE, seed)


def labelled_only(task: Translation, args: Args, steps: int, seed: int) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    made = network(args)
    return made, fit(FitTruth(task, TrainingConfig(steps=steps, batch_size=BATCH, crop_size=CROP), made), settings(steps, seed))


def pix2pix(task: Translation, args: Args, steps: int, seed: int) -> tuple[nn.Module, float]:
    """As pix2pix trains: with a discriminator, 100 times the weight of truth for 1 of adversary."""
    torch.manual_seed(seed)
    made = network(args)
    config = AdaptiveDistillConfig(steps=steps, batch_size=BATCH, crop_size=CROP, truth=1.0, adversarial=0.01)
    return made, fit(Pix2Pix(task, config, made), settings(steps, seed))


def plainly_distilled(task: Translation, steps: int, seed: int, *, original: bool = False) -> tuple[nn.Module, float]:
    """From a wider teacher of the same labels, whose training counts; with `original` from the embedded original, which was trained on all labels."""
    teacher, seconds = (task.embedded_teacher(SHAPE)[1], 0.0) if original else labelled_only(task, WIDER, steps, seed)
    torch.manual_seed(seed)
    made = network(STUDENT)
    config = DistillConfig(steps=steps, batch_size=BATCH, crop_size=CROP, truth=0.5, output=1.0)
    return made, seconds + fit(Distillation(task, config, made, teacher.eval(), seed), settings(steps, seed))


def semi_supervised(
    task: Translation, steps: int, seed: int, *, original: bool | Literal["alone"] = False, student: Args = STUDENT
) -> tuple[nn.Module, float]:
    """`original`: the embedded original, which was trained on all labels, teaches as well, or alone."""
    torch.manual_seed(seed)
    made, taught_by = network(student), task.embedded_teacher(SHAPE)[1] if original else None
    if original == "alone":
        teachers, config = {}, AdaptiveDistillConfig(steps=steps, batch_size=BATCH, crop_size=CROP, original="alone")
    else:
        teachers = {"wider": network(WIDER), "deeper": network(DEEPER)}
        config = AdaptiveDistillConfig(steps=steps, batch_size=BATCH, crop_size=CROP, original=original, adversarial=ADVERSARIAL)
    return made, fit(AdaptiveDistillation(task, config, made, teachers, taught_by), settings(steps, seed))


ADVERSARIAL = 0.001
PLAIN, SEMI_SUPERVISED = "plain distillation", "semi-supervised"
PLAIN_FROM_ORIGINAL, SEMI_SUPERVISED_WITH_ORIGINAL = "plain distillation, from the original", "semi-supervised, original too"
SEMI_SUPERVISED_FROM_ORIGINAL = "semi-supervised, original alone"
OF_THE_ORIGINAL = (PLAIN_FROM_ORIGINAL, SEMI_SUPERVISED_WITH_ORIGINAL, SEMI_SUPERVISED_FROM_ORIGINAL)
PIX2PIX, L1 = "labelled only, pix2pix", "labelled only, L1 alone"
WAYS: dict[str, Callable[[Translation, int, int], tuple[nn.Module, float]]] = {
    PIX2PIX: lambda task, steps, seed: pix2pix(task, STUDENT, steps, seed),
    L1: lambda task, steps, seed: labelled_only(task, STUDENT, steps, seed),
    PLAIN: plainly_distilled,
    SEMI_SUPERVISED: semi_supervised,
    PLAIN_FROM_ORIGINAL: lambda task, steps, seed: plainly_distilled(task, steps, seed, original=True),
    SEMI_SUPERVISED_WITH_ORIGINAL: lambda task, steps, seed: semi_supervised(task, steps, seed, original=True),
    SEMI_SUPERVISED_FROM_ORIGINAL: lambda task, steps, seed: semi_supervised(task, steps, seed, original="alone"),
}


def run(training: Training) -> Trained:
    torch.set_num_threads(1)
    task = Translation.from_config(DataConfig(labelled_fraction=training.fraction))
    made, seconds = WAYS[training.way](task, training.steps, training.seed)
    return Trained(training, round(quality_db(task, made), 4), round(seconds, 1))


def read(row: dict[str, object]) -> Trained:
    return Trained(Training(**row["training"]), row["db"], row["seconds"])  # type: ignore[arg-type]  # as `Results` wrote it


def of(results: Results[Trained], way: str, fraction: float, steps: int) -> list[Trained]:
    return [one for one in results.done.values() if (one.training.way, one.training.fraction, one.training.steps) == (way, fraction, steps)]


def compare_training(results: Results[Trained], fractions: Sequence[float], steps: int, seeds: int, jobs: int) -> dict[str, object]:
    """Rows of way x labels, at equal steps, and at the processor time of the semi-supervised training.

    The share of the floor has all of them: those of all labels, those that the original teaches, and a longer pix2pix, which does not gain by time.
    """

    def complete(ones: list[tuple[str, float, int]]) -> None:
        wanted = [Training(way, fraction, seed, steps) for way, fraction, steps in ones for seed in range(seeds)]
        for found in results.complete(wanted, run, jobs):
            logger.info("%s", found)

    equal_steps, equal_time = [], []
    for fraction in fractions:
        own = [(way, fraction, steps) for way in WAYS if way not in OF_THE_ORIGINAL or fraction == FLOOR_FRACTION]
        longer_than = {L1: SEMI_SUPERVISED, PLAIN: SEMI_SUPERVISED}
        if fraction == FLOOR_FRACTION:
            own += [(way, 1.0, steps) for way in (PIX2PIX, L1)]
            longer_than[PIX2PIX] = SEMI_SUPERVISED
            longer_than |= dict.fromkeys((PLAIN_FROM_ORIGINAL, SEMI_SUPERVISED_FROM_ORIGINAL), SEMI_SUPERVISED_WITH_ORIGINAL)
        complete(own)
        longer = [(way, fraction, _steps_for(results, way, rival, fraction, steps)) for way, rival in longer_than.items()]
        if fraction == FLOOR_FRACTION:
            longer += [(way, 1.0, count) for way, _, count in longer if way == L1]
        complete(longer)
        equal_steps += own
        equal_time += longer
    rows = [_row(results, *one, at) for at, ones in ((STEPWISE, equal_steps), (TIMEWISE, equal_time)) for one in ones]
    return {"steps": steps, "seeds": seeds, "rows": rows}


def _steps_for(results: Results[Trained], way: str, rival: str, fraction: float, steps: int) -> int:
    """The steps that `way` takes in the time of its rival; as many as a benchmark that was stopped had taken, where it is near."""
    own_s, rival_s = (mean_seconds(of(results, which, fraction, steps)) for which in (way, rival))
    tried = {one.training.steps for one in results.done.values() if (one.training.way, one.training.fraction) == (way, fraction)} - {steps}
    return steps_in_time(steps, own_s, rival_s, tried)


def _row(results: Results[Trained], way: str, fraction: float, steps: int, at: str) -> dict[str, object]:
    found = sorted(of(results, way, fraction, steps), key=lambda one: one.training.seed)
    of_way = {"way": way, "labels": fraction, "at": at, "steps": steps, "seconds": round(mean_seconds(found), 1)}
    return {**of_way, **mean_and_spread([one.db for one in found], "db")}


def compare_search(steps: int, seed: int) -> dict[str, object]:
    """One search, and random networks at the estimated latency of its pick, each trained in two ways; what the search took."""
    torch.set_num_threads(1)
    task = Translation.from_config(DataConfig(labelled_fraction=0.25))
    device = load_device("snapdragon865")
    unit = device.units[device.preferred_unit]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        context = stage_context(task, "snapdragon865", BUDGET, task.embedded_teacher(SHAPE), seed, Path(work))
        config = SemiSupervisedSearchConfig(
            steps=SEARCH_STEPS, trials=TRIALS, batch_size=BATCH, crop_size=CROP, learning_rate=RATE, adversarial=ADVERSARIAL
        )
        output = search(config, context)
    search_seconds = time.process_time() - started

    def cost_of(args: Args) -> CandidateCost:
        return candidate_cost(ModelSpec("resnet_generator", args, (), SHAPE, RANGE), device, unit, "int8")

    latency_ms = cost_of(output.spec.args).latency.value
    others = list(random_networks(latency_ms, torch.Generator().manual_seed(seed), cost_of))
    pick = judged(task, output.spec.args, steps, seed)
    return {
        "seed": seed,
        "latency_ms": round(latency_ms, 3),
        "search_seconds": round(search_seconds, 1),
        "seconds_of_training_each_candidate": round(pick.labelled_seconds * TRIALS, 1),
        "pick": asdict(pick),
        "randoms": [asdict(judged(task, args, steps, seed)) for args in others],
    }


@dataclass(frozen=True)
class Judged:
    """A network and what it comes to, dB: by the labelled pairs with L1 alone, and as the target distills, where the original teaches alone."""

    network: Args
    labelled_db: float
    labelled_seconds: float
    taught_db: float
    taught_seconds: float


def judged(task: Translation, args: Args, steps: int, seed: int) -> Judged:
    labelled, labelled_seconds = labelled_only(task, args, steps, seed)
    taught, taught_seconds = semi_supervised(task, steps, seed, student=args, original="alone")
    return Judged(
        args, round(quality_db(task, labelled), 3), round(labelled_seconds, 1), round(quality_db(task, taught), 3), round(taught_seconds, 1)
    )


def random_networks(latency_ms: float, generator: torch.Generator, cost_of: Callable[[Args], CandidateCost]) -> Iterator[Args]:
    """`RANDOM_PICKS` random networks of the space within 5 % of a latency and within the budget."""
    found = 0
    for _ in range(3000):
        args = SPACES["resnet_generator"].random(generator)
        cost = cost_of(args)
        if abs(cost.latency.value - latency_ms) <= 0.05 * latency_ms and not cost.exceeded(BUDGET):
            yield args
            found += 1
            if found == RANDOM_PICKS:
                return
    raise SystemExit(f"only {found} random networks at {latency_ms:.2f} ms in 3000 draws")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--labels", type=float, nargs="+", default=FRACTIONS, help="shares of the training pairs that keep their target")
    parser.add_argument("--only", choices=("training", "search"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    depends_on = {**facts(), "data": Translation.from_config(DataConfig()).data_digest}
    results = Results(options.out / "translation.json", read, {"searches": []}, again=options.again, depends_on=depends_on)
    if options.only != "search":
        results.document["training"] = compare_training(results, options.labels, options.steps, options.seeds, options.jobs)
    if options.only != "training":
        searches = results.document["searches"]
        assert isinstance(searches, list)
        done = {row["seed"] for row in searches}
        for found in in_parallel(partial(compare_search, options.steps), [seed for seed in range(options.seeds) if seed not in done], options.jobs):
            logger.info("%s", found)
            searches.append(found)
            searches.sort(key=lambda row: row["seed"])
            results.save()
    results.save()


if __name__ == "__main__":
    main()
