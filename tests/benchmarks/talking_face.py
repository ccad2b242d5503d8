"""Does distillation without an adversary pay for a talking face? Is the hand-made cut a good one? What does INT8 cost, and how fast is the result?

    python tests/benchmarks/talking_face.py --only training --steps 600 --seeds 3 --jobs 2
    python tests/benchmarks/talking_face.py --only cut --steps 600 --seeds 3 --jobs 2
    python tests/benchmarks/talking_face.py --only precision
    python tests/benchmarks/talking_face.py --only speed

On the embedded clips. `training`: ways to train what the target for Jetson Xavier NX prunes the original to, at equal steps and in the time of the
slowest way; `cut`: the hand-made cut against what our search and our prune stage find within its cost; `precision`: `precision.py` for the hand-made
cut; `speed`: the original and the compressed generator in files, side by side (`talking_face_speed`; alone on the machine).

Every training runs in one thread, and its processor time is compared. A training that is finished is in the result file, so that a benchmark which
was stopped goes on where it was; `--again` forgets them, and so does a change of data, original or recipe. The last result lies in `results/` beside
this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from comparing_trainings import STEPWISE, TIMEWISE, Results, facts, in_parallel, mean_and_spread, mean_seconds, steps_in_time
from talking_face_cuts import (
    BARE,
    DEVICE,
    HAND_MADE,
    PRUNED,
    SEARCHED,
    SHAPE,
    cost_of,
    cut_args,
    find,
    kept,
    row_of,
    spec_of,
    task_of_clips,
    without_blocks,
)
from talking_face_speed import compare_speed
from talking_face_trainings import DISTILLED, FROM_SCRATCH, RATES, WAYS, Trained, Training, Worth, read, recipe, run, worth

logger = logging.getLogger("benchmark")
PARTS = ("training", "cut", "precision", "speed")
NETWORKS = Path(tempfile.gettempdir()) / "mcompress-benchmark-talking-face"


def of(results: Results[Trained], network: str, way: str, rate: float, steps: int) -> list[Trained]:
    """By their seeds."""
    wanted = (network, way, rate, steps)
    found = [one for one in results.done.values() if (one.training.network, one.training.way, one.training.rate, one.training.steps) == wanted]
    return sorted(found, key=lambda one: one.training.seed)


def complete(results: Results[Trained], wanted: Sequence[Training], jobs: int, work: Path) -> None:
    """Run those trainings that were not run yet."""
    for found in results.complete(wanted, partial(run, work), jobs):
        logger.info("%s", found)


def best_rates(results: Results[Trained], ways: Collection[str], steps: int, jobs: int, work: Path) -> dict[str, float]:
    """The learning rate of each way that gives the best PSNR on the held-out clips, with the first seed; all ways have this advantage alike."""
    complete(results, [Training(BARE, way, rate, 0, steps) for way in ways for rate in RATES], jobs, work)

    def psnr_db(way: str, rate: float) -> float:
        return next(one.worth.psnr_db for one in of(results, BARE, way, rate, steps) if one.training.seed == 0)

    return {way: max(RATES, key=lambda rate: psnr_db(way, rate)) for way in ways}


def row(results: Results[Trained], network: str, way: str, rate: float, steps: int, at: str) -> dict[str, object]:
    """Mean and spread over seeds."""
    found = of(results, network, way, rate, steps)
    of_way = {"network": network, "way": way, "at": at, "learning_rate": rate, "steps": steps, "seconds": round(mean_seconds(found), 1)}
    worths = [asdict(one.worth) for one in found]
    return {**of_way, **{key: value for name in worths[0] for key, value in mean_and_spread([one[name] for one in worths], name, 4).items()}}


def compare_training(results: Results[Trained], steps: int, seeds: int, jobs: int, work: Path) -> dict[str, object]:
    """All ways at equal steps, and all but the slowest in its time."""
    rates = best_rates(results, WAYS, steps, jobs, work)
    complete(results, [Training(BARE, way, rate, seed, steps) for way, rate in rates.items() for seed in range(seeds)], jobs, work)
    seconds = {way: mean_seconds(of(results, BARE, way, rate, steps)) for way, rate in rates.items()}
    slowest = max(seconds, key=lambda way: seconds[way])
    longer = {}
    for way in (one for one in WAYS if one != slowest):
        tried = {one.training.steps for one in results.done.values() if (one.training.network, one.training.way) == (BARE, way)} - {steps}
        longer[way] = steps_in_time(steps, seconds[way], seconds[slowest], tried)
    complete(results, [Training(BARE, way, rates[way], seed, more) for way, more in longer.items() for seed in range(seeds)], jobs, work)
    rows = [row(results, BARE, way, rate, steps, STEPWISE) for way, rate in rates.items()]
    rows += [row(results, BARE, way, rate, longer[way], TIMEWISE) for way, rate in rates.items() if way in longer]
    student = row_of(BARE, 0, without_blocks()[0], 0.0)
    return {"steps": steps, "seeds": seeds, "slowest": slowest, "student": student, "original": asdict(original_worth()), "rows": rows}


def original_worth() -> Worth:
    """Of the embedded original that teaches."""
    task = task_of_clips()
    return worth(task, task.embedded_teacher(SHAPE)[1])


def compare_cut(results: Results[Trained], steps: int, seeds: int, jobs: int, search: tuple[int, int], work: Path) -> dict[str, object]:
    """Networks of at most the hand-made cut's cost, distilled and from scratch, at the learning rates of `BARE`.

    What the search and the prune stage found begins distillation with the weights that it inherits, the hand-made cut with random ones.
    """
    found = results.document["found"]
    assert isinstance(found, list)
    known = {(one["network"], one["seed"]) for one in found if kept(one["network"], one["seed"], work)}
    for one in in_parallel(partial(find, work, *search), [(n, s) for n in (PRUNED, SEARCHED) for s in range(seeds) if (n, s) not in known], jobs):
        logger.info("%s", one)
        found[:] = [other for other in found if (other["network"], other["seed"]) != (one["network"], one["seed"])] + [one]
        results.save()
    rates = best_rates(results, (DISTILLED, FROM_SCRATCH), steps, jobs, work)
    ones = [(network, way, rates[way], steps) for network in (HAND_MADE, SEARCHED, PRUNED) for way in rates]
    complete(results, [Training(network, way, rate, seed, steps) for network, way, rate, _ in ones for seed in range(seeds)], jobs, work)
    networks = [row_of(HAND_MADE, 0, spec_of(cut_args()), 0.0), *sorted(found, key=lambda one: (one["network"], one["seed"]))]
    rows = [row(results, *one, STEPWISE) for one in ones]
    return {"device": DEVICE, "steps": steps, "seeds": seeds, "networks": networks, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--search-steps", type=int, default=200)
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=40, help="of the comparison of speeds")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--networks", type=Path, default=NETWORKS, help="where networks that were found or trained on the way are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    cut_ms = round(cost_of(spec_of(cut_args())).latency.value, 4)
    searched = {"within_ms": cut_ms, "search_steps": options.search_steps, "trials": options.trials}
    depends_on = {**facts(), **recipe(), "searched": searched}
    networks = options.networks / hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:8]
    if options.only in (None, "precision"):
        command = [sys.executable, str(Path(__file__).with_name("precision.py")), "wav2lip-cut", "--networks", str(networks)]
        subprocess.run([*command, "--out", str(options.out)], check=True)
    results = Results(options.out / "talking_face.json", read, {"found": []}, again=options.again, depends_on=depends_on)
    common = (options.steps, options.seeds, options.jobs)
    if options.only in (None, "training"):
        results.document["training"] = compare_training(results, *common, networks)
        results.save()
    if options.only in (None, "cut"):
        results.document["cut"] = compare_cut(results, *common, (options.search_steps, options.trials), networks)
        results.save()
    if options.only in (None, "speed"):
        results.document["speed"] = compare_speed(networks, options.rounds)
        results.save()


if __name__ == "__main__":
    main()
