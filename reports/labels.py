"""How many labels the network was made from, and what quality other shares of the labels gave: runs of one target beside each other.

Runs belong together where their resolved targets differ in `data.labelled_fraction` alone and they were judged on the same held-out samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup
from pydantic import JsonValue, ValidationError

from mcompress.errors import TargetError
from mcompress.record import DataRecord, Run
from mcompress.reports import plots, wording
from mcompress.targets.document import MAX_BYTES, parse
from mcompress.targets.load import digest, load_target, shipped_targets

NETWORKS: Mapping[str, tuple[str, ...]] = {"teacher": ("teacher",), "float student": ("distilled", "student"), "compressed": ("compressed",)}
"""What is shown -> the model of run.json that stands for it, the first that is there."""
LOOKS = {"teacher": (plots.MUTED, "s", (0, (1, 1.5))), "float student": (plots.ACCENT, "o", "solid"), "compressed": (plots.SECOND, "D", (0, (4, 2)))}
FRACTIONS = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class LabelPoint:
    """One run: where it lies, how many labels it had, and what came out."""

    run: str
    data: DataRecord
    quality: Mapping[str, float]
    """By the names of `NETWORKS`."""
    here: bool
    """Whether it is the run of the report."""
    note: str = ""


@dataclass(frozen=True)
class LabelPart:
    """What the report says of labels."""

    data: DataRecord
    metric: str
    """The key of the quality that is shown, for `mcompress.reports.wording`."""
    networks: tuple[str, ...]
    points: tuple[LabelPoint, ...]
    """From few labels to many; this run's own alone where no other was found, none without pairs."""
    plot: Markup | None
    command: str
    """Makes a run that belongs to these; empty where every usual share is there."""


def label_part(run: Run, folder: Path) -> LabelPart | None:
    """For the run in `folder`, among the runs beside it. None for a task that takes a target for granted."""
    metric = wording.task_metric(run)
    if run.data is None or metric is None:
        return None
    paired = run.data.pairing == "aligned"
    points = tuple(sorted(_points(run, folder, metric), key=lambda point: (point.data.labelled_fraction, point.run))) if paired else ()
    return LabelPart(
        data=run.data,
        metric=metric,
        networks=tuple(name for name in NETWORKS if any(name in point.quality for point in points)),
        points=points,
        plot=Markup(draw(points, metric)) if len(points) > 1 else None,
        command=_command(run, folder.resolve(), points) if points else "",
    )


def draw(points: tuple[LabelPoint, ...], metric: str) -> str:
    """Quality over the share of labelled pairs, as SVG; the run of the report is ringed."""
    with mpl.rc_context(plots.STYLE):
        figure, axes = plots.new_figure(plots.WIDTH, 3.4)
        for name, (colour, marker, stroke) in LOOKS.items():
            known = [(100 * point.data.labelled_fraction, point.quality[name]) for point in points if name in point.quality]
            axes.plot([x for x, _ in known], [y for _, y in known], color=colour, marker=marker, linestyle=stroke, linewidth=1.6, label=name)
        own = [(100 * point.data.labelled_fraction, y) for point in points if point.here for y in point.quality.values()]
        axes.scatter(
            [x for x, _ in own], [y for _, y in own], s=170, facecolors="none", edgecolors=plots.WARN, linewidths=1.6, zorder=5, label="this run"
        )
        pairs = {100 * point.data.labelled_fraction: point.data.labelled_pairs for point in points}
        axes.set_xlim(0, 104)
        axes.set_xticks(list(pairs), [f"{percent:g} %\n{count}" for percent, count in pairs.items()])
        axes.set_xlabel("training pairs that keep their target: share and number")
        axes.set_ylabel(wording.metric_title(metric, "on held-out data"))
        plots.legend(figure)
        said = f"{wording.metric(metric)[0]} of {', '.join(LOOKS)} over the share of labelled pairs, {len(points)} runs."
        return plots.as_svg(figure, f"Line plot of {said}")


def _points(run: Run, folder: Path, metric: str) -> Iterator[LabelPoint]:
    folder = folder.resolve()
    assert run.data is not None  # noqa: S101  (checked by `label_part`)
    yield LabelPoint(folder.name, run.data, _quality(run, metric), here=True)
    own = _apart_from_labels(folder)
    if own is None:
        return
    seen = {run.data.labelled_fraction}
    for other in _beside(folder):
        if _apart_from_labels(other) != own:
            continue
        found = _run(other)
        if found is None or found.data is None or wording.task_metric(found) != metric or found.baseline.keys() != run.baseline.keys():
            continue
        if found.target.quick != run.target.quick or found.data.labelled_fraction in seen:
            continue
        seen.add(found.data.labelled_fraction)
        note = "" if found.environment.commit == run.environment.commit else f"made by commit {found.environment.commit or 'unknown'}"
        yield LabelPoint(other.name, found.data, _quality(found, metric), here=False, note=note)


def _beside(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.parent.iterdir() if path.is_dir() and path != folder)
    except OSError:
        return []


def _apart_from_labels(folder: Path) -> JsonValue | None:
    """The resolved target of a run without the share of labels; None where it cannot be read."""
    path = folder / "target.yaml"
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        document = parse(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError):
        return None
    if document.problems or not isinstance(document.data, dict):
        return None
    data = document.data.get("data")
    rest = {key: value for key, value in data.items() if key != "labelled_fraction"} if isinstance(data, dict) else data
    return {**document.data, "data": rest}


def _run(folder: Path) -> Run | None:
    try:
        return Run.load(folder)
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def _quality(run: Run, metric: str) -> dict[str, float]:
    found = {name: next((run.models[model] for model in models if model in run.models), None) for name, models in NETWORKS.items()}
    return {name: model.quality[metric] for name, model in found.items() if model is not None and metric in model.quality}


def _command(run: Run, folder: Path, points: tuple[LabelPoint, ...]) -> str:
    """How to get the next point, from the folder that holds the runs; a share that would leave no pair to train on is not proposed."""
    assert run.data is not None  # noqa: S101  (checked by `label_part`)
    pairs = run.data.labelled_pairs / run.data.labelled_fraction
    known = {point.data.labelled_fraction for point in points}
    missing = next((share for share in FRACTIONS if share not in known and math.ceil(share * pairs) >= 2), None)
    if missing is None:
        return ""
    target = run.target.name if _as_shipped(run) else f"{folder.name}/target.yaml"
    return f"mcompress run {target} --set data.labelled_fraction={missing:g}{' --quick' if run.target.quick else ''} --out ."


def _as_shipped(run: Run) -> bool:
    """Whether the target is one that comes with mcompress, but for the share of labels."""
    assert run.data is not None  # noqa: S101  (checked by `label_part`)
    if run.target.name not in shipped_targets():
        return False
    try:
        shipped = load_target(run.target.name, [f"data.labelled_fraction={run.data.labelled_fraction!r}"])
    except TargetError:
        return False
    return digest(shipped.quick() if run.target.quick else shipped) == run.target.digest
