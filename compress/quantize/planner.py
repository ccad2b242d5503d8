"""The precision of every operator, chosen exactly: a mixed-integer program solved by HiGHS (Huangfu & Hall, 2018) through scipy.

    minimise    latency(x), the estimator's own sum on every unit that the files reach, conversions between precisions included
    subject to  sum of noise <= what the quality floor leaves          (or the other way round: least noise within a latency)
    over        x[operator, precision] in {0, 1}, one precision for each operator

Noise is additive: rounding errors of different tensors and weights are independent, so the energies that they add to the output add up. A tensor
that an INT8 operator makes is rounded once, for all that read it; one made in float is rounded for the INT8 operators among its readers alone.
What the sum leaves out, interactions, is found by running the plan (`choosing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.plan import Precision
from mcompress.errors import StageError
from mcompress.targets.columns import Integers
from mcompress.targets.precision_latency import PrecisionLatency

TIME_LIMIT_S = 10.0
TIE = 1e-5
"""Latencies closer than about this share of one another are equal: of such assignments the one with less noise is taken."""
RELATIVE_GAP = 1e-7
OBJECTIVE = 1e4
"""What the objective's coefficients add up to: large against the solver's absolute tolerance."""
INFEASIBLE = 2
"""scipy's status of a program without a solution."""


@dataclass(frozen=True)
class Solution:
    """Precisions of all decisions, what they cost, and how far from the optimum they can be."""

    chosen: tuple[Precision, ...]
    latency_ms: float
    """Sum over the units, of the estimator."""
    noise: float
    gap: float
    """The solver's proof: no assignment is better than this by more than this share of it."""
    seconds: float


def least_latency(problem: Problem, noise: float, time_limit_s: float = TIME_LIMIT_S) -> Solution | None:
    """The fastest assignment whose noise is at most `noise`; None if there is none."""
    program = _Program(problem)
    program.at_most(program.noise, noise)
    return program.solve(program.latency, tie=program.noise, time_limit_s=time_limit_s)


def least_noise(problem: Problem, latency_ms: float, time_limit_s: float = TIME_LIMIT_S) -> Solution | None:
    """The assignment with the least noise whose latency, summed over the units, is at most `latency_ms`; None if there is none."""
    program = _Program(problem)
    program.at_most(program.latency, latency_ms)
    return program.solve(program.noise, tie=program.latency, time_limit_s=time_limit_s)


class _Program:
    """Columns are variables; rows are constraints, written as they are added."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._count = 0
        self._whole: list[bool] = []
        self._upper: list[float] = []
        self._entries: list[tuple[int, int, float]] = []
        self._limits: list[tuple[float, float]] = []
        self.latency: dict[int, float] = {}
        self.noise: dict[int, float] = {}
        self._x = [{precision: self._variable(whole=True) for precision in decision.allowed} for decision in problem.decisions]
        for options in self._x:
            self._row(dict.fromkeys(options.values(), 1.0), 1.0, 1.0)
        self._add_noise()
        self._add_shape()
        for unit in problem.units:
            self._add_latency(unit)

    def at_most(self, cost: dict[int, float], limit: float) -> None:
        """Bound a sum from above; scaled, so that the solver's absolute tolerance is one relative to the limit."""
        if limit == np.inf:
            return
        scale = limit if limit > 0 else min((value for value in cost.values() if value > 0), default=1.0)
        self._row({column: value / scale for column, value in cost.items()}, -np.inf, limit / scale)

    def solve(self, cost: dict[int, float], tie: dict[int, float], time_limit_s: float) -> Solution | None:
        """Minimise `cost`, and among what costs the same `tie`."""
        objective = np.zeros(self._count)
        for column, value in cost.items():
            objective[column] += value
        objective *= OBJECTIVE / (objective.sum() or 1.0)
        small = sum(tie.values()) or 1.0
        for column, value in tie.items():
            objective[column] += value / small * TIE * OBJECTIVE
        rows, columns, values = (np.array(part) for part in zip(*self._entries, strict=True))
        matrix = csr_array((values, (rows.astype(np.int64), columns.astype(np.int64))), (len(self._limits), self._count))
        low, high = np.array(self._limits).T
        started = monotonic()
        found = milp(
            objective,
            integrality=np.array(self._whole, dtype=np.int64),
            bounds=Bounds(0.0, np.array(self._upper)),
            constraints=LinearConstraint(matrix, low, high),
            options={"time_limit": time_limit_s, "mip_rel_gap": RELATIVE_GAP},
        )
        if found.status == INFEASIBLE:
            return None
        if found.x is None:
            raise StageError(f"the precision planner found no plan within {time_limit_s:g} s for {len(self._x)} operators: {found.message}")
        chosen = tuple(max(options, key=lambda precision: float(found.x[options[precision]])) for options in self._x)
        gap = max(0.0, float(found.mip_gap or 0.0)) + TIE
        return Solution(chosen, self._problem.latency_ms(chosen), self._problem.noise_of(chosen), gap, monotonic() - started)

    def _variable(self, *, whole: bool = False, upper: float = 1.0) -> int:
        self._whole.append(whole)
        self._upper.append(upper)
        self._count += 1
        return self._count - 1

    def _row(self, entries: dict[int, float], low: float, high: float) -> None:
        self._entries += [(len(self._limits), column, value) for column, value in entries.items()]
        self._limits.append((low, high))

    def _implied(self, consequence: int, *reasons: Sequence[int]) -> None:
        """`consequence` is 1 where of every group in `reasons` one is 1."""
        entries = {column: 1.0 for group in reasons for column in group}
        self._row({**entries, consequence: -1.0}, -np.inf, len(reasons) - 1.0)

    def _add_noise(self) -> None:
        for decision, options in zip(self._problem.decisions, self._x, strict=True):
            for precision, noise in decision.noise.items():
                if precision not in options:
                    continue
                if np.isfinite(noise):
                    self.noise[options[precision]] = noise
                else:
                    self._upper[options[precision]] = 0.0
            for maker, noise in decision.reads:
                made = [] if maker is None or "int8" not in self._x[maker] else [self._x[maker]["int8"]]
                rounded = self._variable()
                self.noise[rounded] = noise
                self._at_least([rounded], [options["int8"]], made)

    def _add_shape(self) -> None:
        """What lies between INT8 operators on all sides is INT8, for no file could say anything else; what runs inside another has its precision."""
        for index, decision in enumerate(self._problem.decisions):
            options = self._x[index]
            if decision.between and "int8" in options and all("int8" in self._x[other] for other in decision.between):
                self._implied(options["int8"], *([self._x[other]["int8"]] for other in decision.between))
            elif decision.between and all("int8" in self._x[other] for other in decision.between):
                self._row({self._x[other]["int8"]: 1.0 for other in decision.between}, 0.0, len(decision.between) - 1.0)
            if decision.follows is not None:
                leader = self._x[decision.follows]
                for precision in [p for p in options if p in leader]:
                    same = set(options) == set(leader)
                    self._row({options[precision]: 1.0, leader[precision]: -1.0}, 0.0, 0.0 if same else np.inf)

    def _add_latency(self, unit: PrecisionLatency) -> None:
        choices = self._choices_of_rows(unit)
        for row, columns in enumerate(choices):
            for column, position in columns:
                cost = float(unit.own_ms[row, position])
                if np.isfinite(cost):
                    self.latency[column] = self.latency.get(column, 0.0) + cost
                else:
                    self._upper[column] = 0.0
        formed = [_by_form(unit.form[row], columns) for row, columns in enumerate(choices)]
        self._add_fixed(unit, formed)
        self._add_crossings(unit, formed)

    def _choices_of_rows(self, unit: PrecisionLatency) -> list[list[tuple[int, int]]]:
        """Of each row of the table, its variables with the position of their precision in `unit.precisions`."""
        owners = self._problem.row_owner
        return [[(column, unit.precisions.index(precision)) for precision, column in self._x[owner].items()] for owner in owners]

    def _add_fixed(self, unit: PrecisionLatency, formed: Sequence[dict[int, list[int]]]) -> None:
        for place in sorted(set(unit.forms.units.tolist())):
            of_unit = np.flatnonzero(unit.forms.units == place)
            # The largest fixed cost of a unit's forms counts: in ascending order each one adds what it has more than the one before.
            base = 0.0
            for form in of_unit[np.argsort(unit.invoke_ms[of_unit])]:
                at_least = [other for other in of_unit if unit.invoke_ms[other] >= unit.invoke_ms[form]]
                more = float(unit.invoke_ms[form]) - base
                base = float(unit.invoke_ms[form])
                if more <= 0:
                    continue
                used = self._variable()
                self.latency[used] = more
                for columns in formed:
                    reasons = [column for other in at_least for column in columns.get(int(other), [])]
                    if reasons:
                        self._implied(used, reasons)

    def _add_crossings(self, unit: PrecisionLatency, formed: Sequence[dict[int, list[int]]]) -> None:
        edges, forms, written = unit.edges, unit.forms, unit.columns.written
        readers: dict[int, list[tuple[int, float]]] = {}
        for maker, reader, elements in zip(edges.made_by.tolist(), edges.read_by.tolist(), edges.elements.tolist(), strict=True):
            readers.setdefault(maker, []).append((reader, elements))
        waits: dict[tuple[int, int, int], int] = {}
        for maker, found in readers.items():
            channels, whole = unit.columns.written_channels[[maker]], written[[maker]]
            for here in sorted({form for reader, _ in found for form in formed[reader]}):
                reading = [(reader, elements) for reader, elements in found if here in formed[reader]]
                stays, leaves = formed[maker].get(here, []), {there: made for there, made in formed[maker].items() if there != here}
                pairs = {there: (np.array([there]), np.array([here])) for there in leaves}
                in_parts = sum(elements for _, elements in reading) <= written[maker]
                traffic = {there: 0.0 if in_parts else float(forms.traffic_ms(whole, channels, *pair)[0]) for there, pair in pairs.items()}
                shared = {
                    there: self._conversion(leaves[there], traffic[there] + float(forms.conversion_ms(*pair)[0])) for there, pair in pairs.items()
                }
                earlier: list[int] = []
                for reader, elements in reading:
                    reads = formed[reader][here]
                    self._at_least(list(shared.values()), reads, stays)
                    if in_parts:
                        size = np.array([elements])
                        own = [self._conversion(leaves[there], float(forms.traffic_ms(size, channels, *pair)[0])) for there, pair in pairs.items()]
                        self._at_least(own, reads, stays)
                    one = int(forms.units[here])
                    for other in sorted({int(forms.units[there]) for there in leaves} - {one}):
                        key = reader, one, other
                        if key not in waits:
                            waits[key] = self._variable()
                            self.latency[waits[key]] = float(forms.wait_ms(np.array([one]), np.array([other]))[0])
                        elsewhere = [column for there, made in formed[maker].items() if forms.units[there] != other for column in made]
                        # Whoever reads the tensor later finds it on this unit already.
                        self._at_least([waits[key]], reads, [*elsewhere, *earlier])
                    earlier += reads

    def _conversion(self, made: Sequence[int], cost_ms: float) -> int:
        """A variable for converting a tensor from the form that it is `made` in."""
        found = self._variable()
        self.latency[found] = cost_ms
        self._row({found: 1.0, **dict.fromkeys(made, -1.0)}, -np.inf, 0.0)
        return found

    def _at_least(self, paid: Sequence[int], reads: Sequence[int], without: Sequence[int]) -> None:
        """One of `paid` is 1 where one of `reads` is and none of `without`; tight in the relaxation, for it needs no sum of pairs."""
        if paid:
            self._row({**dict.fromkeys(without, 1.0), **dict.fromkeys(reads, -1.0), **dict.fromkeys(paid, 1.0)}, 0.0, np.inf)


def _by_form(forms: Integers, columns: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for column, position in columns:
        found.setdefault(int(forms[position]), []).append(column)
    return found
