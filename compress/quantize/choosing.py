"""Which plan: the front of quality against latency, every point of it run on the real network, and the point that the target asks for.

The planner's noise is a prediction: it leaves out how rounding errors interact. So plans are executed. Where the one that the prediction allows
breaks the floor, the program is solved again with less noise, and so on between the fastest plan that keeps the floor and the slowest that does not;
each of these plans is optimal for its noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx

from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.plan import Precision
from mcompress.compress.quantize.planner import Solution, least_latency, least_noise
from mcompress.compress.quantize.sensitivity import Quality
from mcompress.compress.tasks.task import Sample
from mcompress.errors import StageError

POINTS = 8
"""Of the front, from the fastest plan to the one with the least noise."""
QUIET = 1e-10
"""Noise below this share of the output, 100 dB, is none."""
REPAIRS = 5
"""Plans between a point of the front that keeps the floor and the next faster one that does not."""
SAME = 1e-4
"""Latencies closer than this share are one plan."""


@dataclass(frozen=True)
class Floor:
    """What the quantized network must keep of the float one."""

    within: float
    """The task's metric may be lower by this much, on samples that nothing was measured on before."""
    sqnr_db: float = 0.0
    """Least output SQNR, dB."""

    def __str__(self) -> str:
        """What may be lost, in words."""
        return f"at most {self.within:g} lost" + (f" and at least {self.sqnr_db:g} dB" if self.sqnr_db else "")


@dataclass(frozen=True)
class Tried:
    """A plan that was run: what it loses, measured."""

    solution: Solution
    sqnr_db: float
    """Of all outputs together; infinite for equal ones."""
    lost: float
    """Of the task's metric, mean over samples."""

    def keeps(self, floor: Floor) -> bool:
        """Whether it is good enough."""
        return self.lost <= floor.within and self.sqnr_db >= floor.sqnr_db

    def __str__(self) -> str:
        """What it loses, in words."""
        return f"{self.lost:.3g} of the task's metric is lost and the output has {self.sqnr_db:.1f} dB"


@dataclass(frozen=True)
class Choice:
    """The plan that was chosen, and every other that was run, the fastest first."""

    taken: Tried
    tried: tuple[Tried, ...]
    broken: int = 0
    """How many plans that are faster than the one taken broke the floor; none where there is no floor."""
    beaten: Tried | None = None
    """The plan with the least predicted noise, where one of its rivals was taken because it turned out better."""


Run = Callable[[Sequence[Solution]], list[Tried]]


def runner(
    reference: fx.GraphModule,
    network_of: Callable[[Sequence[Precision]], Callable[..., Tensor]],
    samples: Callable[[], Iterable[Sample]],
    quality: Quality,
) -> Run:
    """Executes assignments on samples, which are streamed anew each time, against the float network `reference`.

    A sample for which the metric is not finite, as the PSNR of an all black picture that the float network gets exactly right, counts by its SQNR
    alone. One that only the plan gets exactly right counts as nothing lost: an infinite gain would hide what is lost on all others. What is returned
    raises `StageError` if there is no sample, or none for which the metric is finite: a plan that was never judged keeps nothing.
    """

    def run(solutions: Sequence[Solution]) -> list[Tried]:
        networks = [network_of(solution.chosen) for solution in solutions]
        signal, noise, lost, count, judged = 0.0, [0.0] * len(networks), [0.0] * len(networks), 0, 0
        with torch.no_grad():
            for sample in samples():
                expected = reference(*sample.inputs)
                before = quality(expected, sample.truth)
                signal += float(expected.double().square().sum())
                count += 1
                judged += math.isfinite(before)
                for index, network in enumerate(networks):
                    output = network(*sample.inputs)
                    error = float((output.double() - expected.double()).square().sum())
                    noise[index] += error if math.isfinite(error) else math.inf
                    if math.isfinite(before):
                        lost[index] += _lost(before, quality(output, sample.truth)) if math.isfinite(error) else math.inf
        if not count:
            raise StageError("the task gave no samples to run precision plans on, besides those for calibration; at least one is needed")
        if not judged:
            raise StageError(f"the task's metric of the float network is finite for none of the {count} samples that plans are run on; give others")
        return [Tried(s, _sqnr_db(signal, n), quality_lost / judged) for s, n, quality_lost in zip(solutions, noise, lost, strict=True)]

    return run


def fastest_within(problem: Problem, floor: Floor, run: Run) -> Choice:
    """The fastest plan that keeps the floor. Raises `StageError`, naming the best that can be reached, if none does."""
    tried = run(front_of(problem))
    kept = [one for one in tried if one.keeps(floor)]
    if not kept:
        raise StageError(_unreachable(floor, tried))
    taken = min(kept, key=_order)
    for _ in range(REPAIRS):
        faster = [one for one in tried if one.solution.latency_ms < taken.solution.latency_ms * (1 - SAME)]
        if not faster:
            break
        rejected = max(faster, key=_order)
        between = math.sqrt(max(taken.solution.noise, QUIET) * max(rejected.solution.noise, QUIET))
        found = least_latency(problem, between)
        if found is None or any(abs(found.latency_ms - one.solution.latency_ms) <= SAME * found.latency_ms for one in (taken, rejected)):
            break
        (one,) = run([found])
        tried.append(one)
        if one.keeps(floor):
            taken = one
    tried.sort(key=_order)
    return Choice(taken, tuple(tried), sum(_order(one) < _order(taken) for one in tried))


def best_within(problem: Problem, latency_ms: float, run: Run, rivals: Sequence[Solution] = ()) -> Choice:
    """The plan with the least noise within a latency; one of `rivals` within that latency is taken if it turns out better when it is run.

    Raises `StageError`, naming the fastest that can be reached, if there is none.
    """
    found = least_noise(problem, latency_ms)
    if found is None:
        fastest = least_latency(problem, math.inf)
        reached = "nothing" if fastest is None else f"{fastest.latency_ms:.3g} ms"
        raise StageError(
            f"no precision plan runs in {latency_ms:g} ms; the fastest reaches {reached}. Raise latency_ms, or make the network smaller first"
        )
    able = [found, *(rival for rival in rivals if rival.latency_ms <= latency_ms and rival.chosen != found.chosen)]
    front = [one for one in front_of(problem) if one.chosen not in {other.chosen for other in able}]
    tried = run([*able, *front])
    optimal = tried[0]
    taken = max(tried[: len(able)], key=lambda one: (one.sqnr_db, -one.solution.latency_ms))
    return Choice(taken, tuple(sorted(tried, key=_order)), beaten=None if taken is optimal else optimal)


def front_of(problem: Problem) -> list[Solution]:
    """Optimal plans from the fastest to the least noise, no two of one latency: the widest step of the front is halved until there are enough.

    Raises `StageError` if the device's units can run none.
    """
    fastest, cleanest = least_latency(problem, math.inf), least_noise(problem, math.inf)
    if fastest is None or cleanest is None:
        raise StageError("no assignment of precisions can be run on the device's units; allow other precisions or another unit")
    in_float = problem.noise_of(problem.uniform("fp16"))
    # What is cleaner than FP16 throughout is slower than that: one point is enough to show it.
    ends = [least_latency(problem, noise * (1 + SAME)) for noise in dict.fromkeys((max(in_float, cleanest.noise), cleanest.noise))]
    found = [fastest]
    for end in ends:
        if end is not None and end.latency_ms > found[-1].latency_ms * (1 + SAME):
            found.append(end)
    if len(found) == 1:
        return [end for end in ends if end is not None][-1:] or found
    finished = set[float]()
    for _ in range(POINTS - len(found)):
        steps = [(a, b) for a, b in pairwise(found) if b.latency_ms not in finished and b.noise >= in_float * (1 - SAME)]
        if not steps:
            break
        faster, slower = max(steps, key=lambda step: (step[1].latency_ms - step[0].latency_ms) * (_db(step[1]) - _db(step[0])))
        between = least_latency(problem, math.sqrt(max(faster.noise, QUIET) * max(slower.noise, QUIET)))
        if between is None or between.latency_ms >= slower.latency_ms * (1 - SAME):
            finished.add(slower.latency_ms)
        elif between.latency_ms <= faster.latency_ms * (1 + SAME):
            found[found.index(faster)] = between  # as fast, with less noise
        else:
            found.insert(found.index(slower), between)
    return found


def _lost(before: float, after: float) -> float:
    return 0.0 if after == math.inf else before - after


def _db(one: Solution) -> float:
    return -10.0 * math.log10(max(one.noise, QUIET))


def _order(one: Tried) -> tuple[float, float]:
    return one.solution.latency_ms, one.lost


def _unreachable(floor: Floor, tried: Sequence[Tried]) -> str:
    good = [one for one in tried if one.lost <= floor.within]  # these fail by their SQNR, and the others by what they lose
    best = max(good, key=lambda one: one.sqnr_db) if good else min(tried, key=lambda one: (one.lost, -one.sqnr_db))
    wanted = f"within {floor.within:g} of the float network's quality" + (f" and {floor.sqnr_db:g} dB SQNR" if floor.sqnr_db else "")
    return (
        f"no precision plan keeps {wanted}; the best reachable loses {best.lost:.4g} of it and has {best.sqnr_db:.1f} dB "
        f"({best.solution.latency_ms:.3g} ms on the planned units). Lower the floor (within, least_sqnr_db), take operators out of keep, or "
        "add a unit that computes in FP32"
    )


def _sqnr_db(signal: float, noise: float) -> float:
    if noise <= 0.0:
        return math.inf
    return 10.0 * math.log10(max(signal, 1e-30) / noise) if math.isfinite(noise) else -math.inf
