"""Which plan is taken: against every assignment of a network small enough to try them all, with measurements that are made up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from made_up_device import DEVICE
from operator_rows import network as rows_of
from operator_rows import row
from torch import Tensor, fx, nn
from torch.nn import functional

from mcompress.compress.quantize.choosing import POINTS, REPAIRS, SAME, Choice, Floor, Tried, best_within, fastest_within, front_of, runner
from mcompress.compress.quantize.decisions import Decision, Problem, named_table, problem_of
from mcompress.compress.quantize.doubts import doubts_about_plan
from mcompress.compress.quantize.greedy import assigned, expressible, greedy
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.planner import Solution, least_latency, least_noise
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.sensitivity import Sensitivity
from mcompress.compress.tasks.task import Sample
from mcompress.errors import StageError
from mcompress.targets.device_files import load_device
from mcompress.targets.precision_latency import precision_latency
from mcompress.targets.stages import QuantizeConfig

SHAPE = (1, 3, 16, 16)
NOISE = (1e-3, 3e-5, 4e-4, 1e-5, 2e-4, 8e-5, 6e-4, 5e-5, 1.5e-4)
"""Of INT8, operator by operator; FP16 has a thousandth of it."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A chain of nine convolutions on an NPU that computes INT8 twice as fast as FP16, and converts between the two."""
    rows = []
    for index, channels in enumerate((16, 48, 32, 96, 24, 40, 200, 72, 128)):
        made = row(inputs=channels, outputs=32, side=40)
        rows.append(replace(made, sources=((index - 1, made.elements_read),) if index else ()))
    priced = precision_latency(rows_of(*rows), DEVICE, "npu", ("int8", "fp16"))
    decisions = (Decision((f"o{i}",), ("int8", "fp16"), {"int8": noise, "fp16": noise / 1000}) for i, noise in enumerate(NOISE))
    return Problem(tuple(decisions), (priced,), tuple(range(len(rows))))


def every(problem: Problem) -> list[Solution]:
    return [assigned(problem, chosen) for chosen in itertools.product(*(decision.allowed for decision in problem.decisions))]


def db(noise: float) -> float:
    return -10 * math.log10(noise)


def as_predicted(solutions: Sequence[Solution]) -> list[Tried]:
    """Running finds just the noise that was predicted; a thousandth of the energy costs one of the metric."""
    return [Tried(one, db(one.noise), 1000 * one.noise) for one in solutions]


def interacting(solutions: Sequence[Solution]) -> list[Tried]:
    """Roundings of more than two operators reinforce one another: with each further one there is more than the sum."""
    found = []
    for one in solutions:
        noise = one.noise * (1 + 0.2 * max(0, one.chosen.count("int8") - 2) ** 2)
        found.append(Tried(one, db(noise), 1000 * noise))
    return found


def test_the_front_is_monotone_and_every_point_of_it_is_optimal(problem: Problem) -> None:
    front, costs = front_of(problem), [(one.latency_ms, one.noise) for one in every(problem)]
    assert 5 <= len(front) <= POINTS
    assert all(a.latency_ms * (1 + SAME) < b.latency_ms and a.noise > b.noise for a, b in pairwise(front))
    assert front[0].latency_ms == pytest.approx(min(latency for latency, _ in costs), rel=1e-6)
    assert front[-1].noise == pytest.approx(min(noise for _, noise in costs), rel=1e-3)
    for point in front:
        fastest = min(latency for latency, noise in costs if noise <= point.noise * (1 + 1e-9))
        assert fastest * (1 - 1e-9) <= point.latency_ms <= fastest * (1 + 1e-4)


def test_a_front_of_one_latency_is_its_cleanest_plan() -> None:
    table = rows_of(row(), row())
    priced = precision_latency(table, DEVICE, "cpu", ("int8", "fp16"))  # it computes FP16 as INT8
    decisions = tuple(Decision((f"o{i}",), ("int8", "fp16"), {"int8": 1e-4, "fp16": 1e-7}) for i in range(2))
    (only,) = front_of(Problem(decisions, (priced,), (0, 1)))
    assert only.chosen == ("fp16", "fp16")


@pytest.mark.parametrize("within", [math.inf, 2.4, 1.0, 0.3, 0.05, 0.0026])
def test_the_plan_taken_is_the_fastest_that_was_run_and_keeps_the_floor(problem: Problem, within: float) -> None:
    for run in (as_predicted, interacting):
        choice = fastest_within(problem, Floor(within), run)
        assert choice.taken.keeps(Floor(within))
        assert choice.taken in choice.tried
        assert list(choice.tried) == sorted(choice.tried, key=lambda one: (one.solution.latency_ms, one.lost))
        faster = [one for one in choice.tried if one.solution.latency_ms < choice.taken.solution.latency_ms]
        assert not any(one.keeps(Floor(within)) for one in faster)
        assert choice.broken == len(faster)
        assert len(choice.tried) <= POINTS + REPAIRS
        assert choice.beaten is None
    least = min(one.latency_ms for one in every(problem) if 1000 * one.noise <= within)
    exact = fastest_within(problem, Floor(within), as_predicted).taken.solution.latency_ms
    assert exact >= least * (1 - 1e-9), "nothing can be faster than the best of all"
    if within == math.inf:
        assert exact == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("within", [0.35, 0.5])
def test_where_interactions_break_the_floor_the_plan_is_repaired(problem: Problem, within: float) -> None:
    front, floor = front_of(problem), Floor(within)
    predicted = max((one for one in front if 1000 * one.noise <= within), key=lambda one: one.noise)
    assert not interacting([predicted])[0].keeps(floor), "what the prediction allows breaks the floor when it is run"
    taken = fastest_within(problem, floor, interacting).taken
    assert taken.keeps(floor)
    assert taken.solution.latency_ms < 0.98 * min(one.solution.latency_ms for one in interacting(front) if one.keeps(floor))
    assert taken.solution.gap <= 1e-4
    best = min(one.solution.latency_ms for one in interacting(every(problem)) if one.keeps(floor))
    assert taken.solution.latency_ms == pytest.approx(best, rel=1e-6), "here, of all assignments there are"


def test_both_parts_of_the_floor_count(problem: Problem) -> None:
    by_noise = fastest_within(problem, Floor(math.inf, sqnr_db=40.0), as_predicted).taken
    assert by_noise.sqnr_db >= 40.0
    assert by_noise.solution.latency_ms > fastest_within(problem, Floor(math.inf), as_predicted).taken.solution.latency_ms
    assert not Tried(by_noise.solution, 39.9, -1.0).keeps(Floor(0.0, 40.0))
    assert not Tried(by_noise.solution, math.inf, math.nan).keeps(Floor(1e9)), "a metric that could not be computed keeps nothing"


def test_a_floor_that_nothing_meets_names_the_best_that_can_be_reached(problem: Problem) -> None:
    quietest = least_noise(problem, math.inf)
    assert quietest is not None
    least = 1000 * quietest.noise
    with pytest.raises(StageError) as caught:
        fastest_within(problem, Floor(least / 2), as_predicted)
    assert str(caught.value) == (
        f"no precision plan keeps within {least / 2:g} of the float network's quality; the best reachable loses {least:.4g} of it and has "
        f"{db(quietest.noise):.1f} dB ({quietest.latency_ms:.3g} ms on the planned units). Lower the floor (within, least_sqnr_db), take "
        "operators out of keep, or add a unit that computes in FP32"
    )

    def lucky(solutions: Sequence[Solution]) -> list[Tried]:
        """The coarser a plan, the more does it happen to gain."""
        return [Tried(one, db(one.noise), -one.noise) for one in solutions]

    with pytest.raises(StageError, match=rf"within 0 of .* and 100 dB SQNR; the best reachable loses .* and has {db(quietest.noise):.1f} dB "):
        fastest_within(problem, Floor(0.0, 100.0), lucky)


def test_within_a_latency_a_rival_is_taken_only_if_it_turns_out_better(problem: Problem) -> None:
    fast, slow = problem.latency_ms(problem.uniform("int8")), problem.latency_ms(problem.uniform("fp16"))
    limit = fast + 0.35 * (slow - fast)
    sensitivity = Sensitivity(alone={f"o{i}": {"int8": noise} for i, noise in enumerate(NOISE)})
    rival, optimal = greedy(problem, sensitivity, limit), least_noise(problem, limit)
    assert rival is not None
    assert optimal is not None
    assert rival.latency_ms <= limit
    assert rival.noise > 1.1 * optimal.noise

    plain = best_within(problem, limit, as_predicted, (rival,))
    assert (plain.taken.solution.chosen, plain.beaten, plain.broken) == (optimal.chosen, None, 0)
    assert plain.taken.solution.gap <= 1e-3

    def surprising(solutions: Sequence[Solution]) -> list[Tried]:
        return [Tried(one, 90.0 if one.chosen == rival.chosen else db(one.noise), 0.0) for one in solutions]

    other = best_within(problem, limit, surprising, (rival,))
    assert other.taken.solution == rival
    assert other.beaten is not None
    assert other.beaten.solution.chosen == optimal.chosen
    too_slow = replace(rival, latency_ms=limit * 1.01)
    assert best_within(problem, limit, surprising, (too_slow,)).taken.solution.chosen == optimal.chosen


def test_no_plan_is_run_twice(problem: Problem) -> None:
    limit = problem.latency_ms(problem.uniform("int8"))
    given: list[tuple[Precision, ...]] = []

    def noting(solutions: Sequence[Solution]) -> list[Tried]:
        given.extend(one.chosen for one in solutions)
        return as_predicted(solutions)

    best_within(problem, limit, noting, (assigned(problem, problem.uniform("int8")),))
    assert len(given) == len(set(given))


def test_a_latency_that_nothing_reaches_names_the_fastest(problem: Problem) -> None:
    fastest = least_latency(problem, math.inf)
    assert fastest is not None
    said = (
        rf"no precision plan runs in 0\.001 ms; the fastest reaches {fastest.latency_ms:.3g} ms\. Raise latency_ms, or make the network smaller first"
    )
    with pytest.raises(StageError, match=said):
        best_within(problem, 0.001, as_predicted)


def test_the_greedy_choice_is_one_that_a_file_can_say(problem: Problem) -> None:
    decisions = list(problem.decisions)
    decisions[2] = replace(decisions[2], between=(1, 3))
    decisions[5] = replace(decisions[5], follows=4)
    ruled = replace(problem, decisions=tuple(decisions))
    enclosed: list[Precision] = ["fp16", "int8", "fp16", "int8", "int8", "fp16", "fp16", "fp16", "fp16"]
    assert expressible(ruled, enclosed) == ["fp16", "int8", "int8", "int8", "int8", "int8", "fp16", "fp16", "fp16"]
    sensitivity = Sensitivity(alone={f"o{i}": {"int8": noise} for i, noise in enumerate(NOISE)})
    for step in (0.0, 0.3, 0.6, 1.0):
        slow, fast = ruled.latency_ms(ruled.uniform("fp16")), ruled.latency_ms(ruled.uniform("int8"))
        found = greedy(ruled, sensitivity, fast + step * (slow - fast))
        assert found is not None
        assert found.chosen[5] == found.chosen[4]
        assert found.chosen[2] == "int8" or (found.chosen[1], found.chosen[3]) != ("int8", "int8")
        assert found.gap == math.inf


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x) * 2.0


@pytest.fixture(scope="module")
def doubling() -> fx.GraphModule:
    return graph_of(export_program(Doubling(), torch.rand(1, 1, 2, 2)))


def two_samples() -> Iterator[Sample]:
    for value in (0.25, 0.5):
        yield Sample(f"all {value}", (torch.full((1, 1, 2, 2), value),), torch.full((1, 1, 2, 2), 2 * value))


def likeness(output: Tensor, truth: Tensor) -> float:
    return -float((output - truth).abs().mean())


def test_running_a_plan_is_plain_arithmetic(problem: Problem, doubling: fx.GraphModule) -> None:
    int8, plain = (assigned(problem, problem.uniform(precision)) for precision in ("int8", "fp16"))
    loud = replace(int8, chosen=("fp16", *int8.chosen[1:]))

    def network_of(chosen: Sequence[Precision]) -> Callable[[Tensor], Tensor]:
        if "int8" not in chosen:
            return doubling
        return (lambda x: x * 2 + 0.1) if chosen[0] == "int8" else (lambda x: x * math.inf)

    coarse, exact, broken = runner(doubling, network_of, two_samples, likeness)([int8, plain, loud])
    assert coarse.solution is int8
    assert coarse.lost == pytest.approx(0.1)
    assert coarse.sqnr_db == pytest.approx(10 * math.log10((0.5**2 + 1.0**2) / (2 * 0.1**2)), abs=1e-4)
    assert (exact.lost, exact.sqnr_db) == (0.0, math.inf)
    assert (broken.lost, broken.sqnr_db) == (math.inf, -math.inf)
    assert not broken.keeps(Floor(math.inf))


def decibels(output: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((output - truth).square().mean()))


def test_a_picture_that_is_exactly_right_in_float_does_not_decide_alone(problem: Problem, doubling: fx.GraphModule) -> None:
    def one_of_two() -> Iterator[Sample]:
        exact, other = two_samples()
        yield exact
        yield replace(other, truth=other.truth + 0.1)

    int8 = assigned(problem, problem.uniform("int8"))
    (found,) = runner(doubling, lambda _: lambda x: x * 2 - 0.1, one_of_two, decibels)([int8])
    assert found.lost == pytest.approx(20 * math.log10(2), abs=1e-3), "of the other: twice its error"
    assert found.sqnr_db == pytest.approx(10 * math.log10((0.5**2 + 1.0**2) / (2 * 0.1**2)), abs=1e-4)
    with pytest.raises(StageError, match="metric of the float network is finite for none of the 2 samples that plans are run on; give others"):
        runner(doubling, lambda _: doubling, two_samples, decibels)([int8])


def test_a_picture_that_only_the_plan_gets_exactly_right_does_not_decide_alone(problem: Problem, doubling: fx.GraphModule) -> None:
    def off_by_a_tenth() -> Iterator[Sample]:
        lower, higher = two_samples()
        yield replace(lower, truth=lower.truth - 0.1)
        yield replace(higher, truth=higher.truth + 0.1)

    int8 = assigned(problem, problem.uniform("int8"))
    (found,) = runner(doubling, lambda _: lambda x: x * 2 - 0.1, off_by_a_tenth, decibels)([int8])
    assert found.lost == pytest.approx(20 * math.log10(2) / 2, abs=1e-3), "twice the error on one of two"
    assert not found.keeps(Floor(1.0))


def test_a_plan_that_was_never_run_keeps_nothing(problem: Problem, doubling: fx.GraphModule) -> None:
    with pytest.raises(StageError, match="gave no samples to run precision plans on, besides those for calibration; at least one is needed"):
        runner(doubling, lambda _: doubling, lambda: iter(()), likeness)([assigned(problem, problem.uniform("int8"))])


def test_values_that_no_precision_of_the_unit_holds_are_named() -> None:
    module = graph_of(export_program(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid()).eval(), torch.rand(SHAPE)))
    loud = Sensitivity(alone={"sigmoid": {"fp16": math.inf}})
    said = r"'sigmoid' \(sigmoid\) has values beyond what FP16 holds \(65504\), and gpu can run it in nothing else\. Keep its values smaller"
    with pytest.raises(StageError, match=said):
        problem_of(module, named_table(module, SHAPE), {}, loud, load_device("snapdragon865"), ("gpu",), ("int8", "fp16"))


def test_a_plan_without_int8_says_which_of_its_reasons_it_has(problem: Problem, doubling: fx.GraphModule) -> None:
    def said(of: Problem, **config: object) -> str:
        (found,) = doubts_about_plan(QuantizeConfig.model_validate(config), doubling, of, PrecisionPlan((), {}), choice)
        assert found.what == "no operator is INT8"
        return found.reason

    choice = Choice(Tried(assigned(problem, problem.uniform("fp16")), 60.0, 0.0), ())
    choice = replace(choice, taken=replace(choice.taken, solution=replace(choice.taken.solution, gap=0.0)))
    fast, slow = problem.latency_ms(problem.uniform("int8")), problem.latency_ms(problem.uniform("fp16"))
    both = f"{fast:.3g} ms on npu against {slow:.3g} ms in float"
    assert said(problem) == f"{both}: what INT8 would save costs more quality than the floor allows"
    assert said(problem, goal="quality", latency_ms=9) == f"{both}: without INT8 it is within 9 ms too, with less noise"
    table = rows_of(row())
    alike = Problem((Decision(("o0",), ("int8", "fp16"), {}),), (precision_latency(table, DEVICE, "cpu", ("int8", "fp16")),), (0,))
    assert said(alike).endswith(": INT8 throughout does not pay there")
    float_only = Problem((Decision(("o0",), ("fp16",), {}),), alike.units, (0,))
    assert said(float_only) == "no operator can be INT8"
