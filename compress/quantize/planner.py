"""The precision of every operator, chosen exactly: a mixed-integer program solved by HiGHS (Huangfu & Hall, 2018) through scipy.

    minimise    latency(x), the estimator's own sum on every unit that the files reach, conversions between precisions included
    subject to  sum of noise <= what the quality floor leaves          (or the other way round: least noise within a latency)
    over        x[operator, precision] in {0, 1}, one precision for each operator

Noise is additive: rounding errors of different tensors and weights are independent, so the energies that they add to the output add up. A tensor
that an INT8 operator makes is rounded once, for all that read it; one made in float is rounded for the INT8 operators among its readers alone.
What the sum leaves out, interactions, is found by running the plan (`choosing`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mcompress.compress.quantize.decisions import Problem
from mcompress.compress.quantize.plan import Precision
from mcompress.errors import StageError
from mcompress.targets.columns import Floats, Integers
from mcompress.targets.precision_latency import PrecisionLatency

TIME_LIMIT_S = 10.0
TIE = 1e-6
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
    return program.solve(program.latency, tie=program.noise, tie_limit=noise, time_limit_s=time_limit_s)


def least_noise(problem: Problem, latency_ms: float, time_limit_s: float = TIME_LIMIT_S) -> Solution | None:
    """The assignment with the least noise whose latency, summed over the units, is at most `latency_ms`; None if there is none."""
    program = _Program(problem)
    program.at_most(program.latency, latency_ms)
    return program.solve(program.noise, tie=program.latency, tie_limit=latency_ms, time_limit_s=time_limit_s)


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

    def solve(self, cost: dict[int, float], tie: dict[int, float], tie_limit: float, time_limit_s: float) -> Solution | None:
        """Minimise `cost`, and among what costs the same `tie`, which is bounded by `tie_limit`."""
        main, small = self._dense(cost, OBJECTIVE), self._dense(tie, TIE * OBJECTIVE)
        rows, columns, values = (np.array(part) for part in zip(*self._entries, strict=True))
        matrix = csr_array((values, (rows.astype(np.int64), columns.astype(np.int64))), (len(self._limits), self._count))
        low, high = np.array(self._limits).T
        started = monotonic()
        found = milp(
            main + small,
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
        # The solver bounds both sums together. What the tie adds to the best there is, is at most its limit.
        allowed = min(tie_limit / (sum(tie.values()) or 1.0), 1.0) * TIE * OBJECTIVE
        reached = float(main @ found.x)
        gap = max(0.0, reached + allowed - float(found.mip_dual_bound)) / reached if reached > 0 else 0.0
        return Solution(chosen, self._problem.latency_ms(chosen), self._problem.noise_of(chosen), gap, monotonic() - started)

    def _dense(self, cost: dict[int, float], total: float) -> Floats:
        """One coefficient for each variable; together they are `total`."""
        found = np.zeros(self._count)
        for column, value in cost.items():
            found[column] = value
        scaled: Floats = found * (total / (found.sum() or 1.0))
        return scaled

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
        edges, forms = unit.edges, unit.forms
        readers: dict[int, list[tuple[int, float]]] = {}
        for maker, reader, elements in zip(edges.made_by.tolist(), edges.read_by.tolist(), edges.elements.tolist(), strict=True):
            readers.setdefault(maker, []).append((reader, elements))
        waits: dict[tuple[int, int, int], int] = {}
        for maker, found in readers.items():
            for here in sorted({form for reader, _ in found for form in formed[reader]}):
                reading = [(reader, elements) for reader, elements in found if here in formed[reader]]
                stays, leaves = formed[maker].get(here, []), {there: made for there, made in formed[maker].items() if there != here}
                self._add_conversions(unit, reading, formed, leaves, stays, maker, here)
                earlier: list[int] = []
                for reader, _ in reading:
                    reads = formed[reader][here]
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

    def _add_conversions(
        self,
        unit: PrecisionLatency,
        reading: Sequence[tuple[int, float]],
        formed: Sequence[dict[int, list[int]]],
        leaves: dict[int, list[int]],
        stays: Sequence[int],
        maker: int,
        here: int,
    ) -> None:
        """What bringing a tensor into the form `here` costs, once for all that read it so: one conversion, of what they read but never of more than
        the whole."""
        forms, written, channels = unit.forms, float(unit.columns.written[maker]), unit.columns.written_channels[[maker]]

        def converted(elements: float, *, dispatched: bool) -> list[int]:
            """One variable for each form that the tensor can come from."""
            found = []
            for there, made in leaves.items():
                pair = np.array([there]), np.array([here])
                cost_ms = forms.traffic_ms(np.array([elements]), channels, *pair) + (forms.conversion_ms(*pair) if dispatched else 0.0)
                found.append(self._conversion(made, float(cost_ms[0])))
            return found

        parts = [min(elements, written) for _, elements in reading]
        if len(set(parts)) == 1 and (len(parts) == 1 or parts[0] == written):  # whoever reads, it is as much
            once = converted(parts[0], dispatched=True)
            whole: list[int] = []
            own: list[list[int]] = [[] for _ in parts]
        else:
            once = converted(0.0, dispatched=True)
            whole = converted(written, dispatched=False) if sum(parts) > written else []
            own = [converted(part, dispatched=False) if part < written or not whole else [] for part in parts]
        for (reader, _), part in zip(reading, own, strict=True):
            self._at_least(once, formed[reader][here], stays)
            self._at_least([*whole, *part], formed[reader][here], stays)

    def _conversion(self, made: Sequence[int], cost_ms: float) -> int:
        """A variable for converting a tensor from the form that it is `made` in."""
        found = self._variable()
        self.latency[found] = cost_ms
        self._row({found: 1.0, **dict.fromkeys(made, -1.0)}, -np.inf, 0.0)
        return found

    def _at_least(self, paid: Sequence[int], reads: Sequence[int], without: Sequence[int]) -> None:
        """One of `paid` is 1 where one of `reads` is and none of `without`; tight in the relaxation, for it needs no sum of pairs.

        Where one operator has several rows that read one another, the same variable is in both: then it asks for nothing.
        """
        if paid:
            entries = Counter(without)
            entries.subtract(reads)
            entries.update(paid)
            self._row({column: float(times) for column, times in entries.items() if times}, 0.0, np.inf)


def _by_form(forms: Integers, columns: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for column, position in columns:
        found.setdefault(int(forms[position]), []).append(column)
    return found
