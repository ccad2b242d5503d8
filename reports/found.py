"""How a network was found: the search's front, the teachers that a search found, how much each counted, and training curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mcompress.record import Run
from mcompress.reports import plots, wording
from mcompress.reports.details import FoundCandidate, Leg, StageDetails

ORIGINAL = "original"
"""As distillation calls the run's own teacher among others."""


@dataclass(frozen=True)
class SearchPart:
    """A search with its candidates and their plot."""

    name: str
    details: StageDetails
    plot: Markup
    metric: str
    """Name and unit of quality."""


@dataclass(frozen=True)
class LegRow:
    """One of several trainings behind one another; `seconds` is empty and `what` says why for one that was left out."""

    name: str
    what: str
    steps: str
    seconds: str


@dataclass(frozen=True)
class TrainingPart:
    """A stage's training curves, one plot per player where they are many, or per leg."""

    name: str
    plots: tuple[Markup, ...]
    legs: tuple[LegRow, ...] = ()


@dataclass(frozen=True)
class TaughtRow:
    """A teacher, or the student itself; texts are empty where there is nothing to say."""

    name: str
    network: str
    macs: str
    against_student: str
    quality: str
    share: float | None
    """Percent that it counted when the training ended."""


@dataclass(frozen=True)
class TaughtPart:
    """Who taught the student: rows, the label of their quality, and the stages that found the teachers and that they taught in."""

    rows: tuple[TaughtRow, ...]
    metric: str
    found_by: str
    taught_in: str


def search_part(run: Run, details: Mapping[str, StageDetails]) -> SearchPart | None:
    """The first search of a run."""
    for name, found in details.items():
        if not found.trials:
            continue
        limit = next((line for line in run.budget if line.what == "latency_ms"), None)
        metric = wording.task_metric(run) or "quality"
        plot = plots.pareto(
            _points(found.front),
            _points(found.trials),
            [candidate.latency_ms for candidate in found.rejected],
            limit_ms=None if limit is None else limit.limit,
            quality_label=wording.metric_title(metric, "on validation crops"),
            latency_label="estimated latency, ms",
        )
        return SearchPart(name, found, Markup(plot), wording.metric_title(metric))
    return None


def taught_part(run: Run, details: Mapping[str, StageDetails]) -> TaughtPart | None:
    """The teachers that a search found, and what each counted in the distillation behind it. None where no stage tells of teachers."""
    found_by, teachers = next(((name, one.teachers) for name, one in details.items() if one.teachers), ("", {}))
    taught_in, weights = next(((name, one.teacher_weights) for name, one in details.items() if one.teacher_weights), ("", {}))
    if not teachers and not weights:
        return None
    student = next((c for c in details[found_by].front if c.picked), None) if found_by else None
    rows = [] if student is None else [_row("student", student.spec_args, student.macs, student, student.quality, None)]
    for name in dict.fromkeys((*teachers, *weights)):
        share = 100 * weights.get(name, 0.0) if weights else None  # one that a search found and that did not teach counted nothing
        if name in teachers:
            one = teachers[name]
            rows.append(_row(f"{name} teacher", one.spec_args, one.macs, student, one.quality, share))
        else:
            original = run.models.get("teacher") if name == ORIGINAL else None
            rows.append(_row(f"the {name}" if original else name, {}, original.macs if original else None, student, None, share))
    return TaughtPart(tuple(rows), wording.metric_title(wording.task_metric(run) or "quality"), found_by, taught_in)


def training_parts(details: Mapping[str, StageDetails]) -> list[TrainingPart]:
    """The training curves of every stage that left some."""
    return [
        TrainingPart(name, _training_plots(name, found.curve, by_player=bool(found.legs)), tuple(map(_leg, found.legs)))
        for name, found in details.items()
        if found.curve or found.legs
    ]


def _leg(leg: Leg) -> LegRow:
    steps = "" if leg.train_steps is None else f"{leg.train_steps:,}"
    seconds = "" if leg.train_seconds is None else wording.number(leg.train_seconds)
    return LegRow(leg.name, f"left out: {leg.skipped}" if leg.skipped else leg.what, steps, seconds)


def _training_plots(stage: str, curve: Sequence[tuple[int, Mapping[str, float]]], *, by_player: bool) -> tuple[Markup, ...]:
    """One plot, or one for each player: of trainings behind one another, each begins with step 1."""
    terms = list(dict.fromkeys(term for _, values in curve for term in values))
    if len(terms) <= len(plots.SERIES) and not by_player:
        return (Markup(plots.curves(curve, title=stage)),)
    players = dict.fromkeys(term.split("/", 1)[0] for term in terms)
    return tuple(Markup(plots.curves(_of_player(player, curve), title=f"{stage}, {player}")) for player in players)


def _of_player(player: str, curve: Sequence[tuple[int, Mapping[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    own = ((step, {term: value for term, value in values.items() if term.split("/", 1)[0] == player}) for step, values in curve)
    return [(step, values) for step, values in own if values]


def _row(
    name: str, args: Mapping[str, object], macs: int | None, student: FoundCandidate | None, quality: float | None, share: float | None
) -> TaughtRow:
    times = macs / student.macs if macs and student is not None and student.macs and name != "student" else None
    return TaughtRow(
        name,
        json.dumps(args) if args else "",
        "not recorded" if macs is None else wording.count(macs),
        "" if times is None else f"{wording.number(times)}x the student",
        "" if quality is None else f"{quality:.2f}",
        share,
    )


def _points(candidates: Sequence[FoundCandidate]) -> list[plots.Candidate]:
    return [plots.Candidate(c.latency_ms, c.quality, c.picked) for c in candidates]
