"""report.html: one self-contained file that a person enjoys reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from mcompress.errors import UsageError
from mcompress.record import Run
from mcompress.reports import components, likeness, wording
from mcompress.reports import latency_budget as milliseconds
from mcompress.reports import roofline as roofs
from mcompress.reports.advice import advice
from mcompress.reports.costs import cost_rows, network_parts, quality_rows
from mcompress.reports.details import StageDetails, read_details
from mcompress.reports.drawing import drawing_part
from mcompress.reports.drawing_headlines import drawn_headlines
from mcompress.reports.evolution import evolution_part
from mcompress.reports.found import search_part, taught_part, training_parts
from mcompress.reports.headlines import headlines, verdicts
from mcompress.reports.labels import label_part
from mcompress.reports.pictures import WorstPlace, photographs, worst_place
from mcompress.reports.precision import precision_part, triple
from mcompress.reports.strips import strips
from mcompress.reports.talking import talking_part
from mcompress.reports.widths import width_table
from mcompress.targets.schema import Fallback, How, Measurement


@dataclass(frozen=True)
class LatencyBar:
    """One latency on a scale of its own kind; `share` and `p90_share` in percent of the longest bar of that kind."""

    label: str
    measurement: Measurement
    share: float
    p90_share: float | None


@dataclass(frozen=True)
class LatencyGroup:
    """Latencies obtained in one way."""

    how: How
    title: str
    bars: tuple[LatencyBar, ...]


@dataclass(frozen=True)
class FallbackGroup:
    """Fallbacks with one place and reason."""

    where: str
    reason: str
    what: tuple[str, ...]


def write_report(folder: Path) -> Path:
    """Write `folder/report.html` from `run.json` and what lies beside it, and return its path.

    Raises `UsageError` if the folder holds no readable run. Pictures and details that are missing are left out and said to be missing.
    """
    run = load_run(folder)
    details = {stage.name: found for stage in run.stages if (found := read_details(folder / "stages" / stage.name)) is not None}
    everywhere = details | _details_along(run, folder)
    whole = run.target.task in wording.SAME_SIZE
    pictures, count = ((), 0) if whole or run.gallery is not None else photographs(folder / "samples", run.baseline_name)
    rows, row_count = strips(folder / "samples", run) if whole else ((), 0)
    target = folder / "target.yaml"
    environment = Environment(
        loader=PackageLoader("mcompress.reports", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=wording.number,
        count=wording.count,
        size=wording.size,
        latency=wording.latency,
        provenance=wording.provenance,
        budget_name=wording.budget_name,
        kind=wording.kind,
        obtained=wording.obtained,
        triple=triple,
    )
    spent, roof = milliseconds.latency_budget(run), roofs.roofline(run)
    page = environment.get_template("report.html.j2").render(
        run=run,
        title=run.target.title or run.target.name,
        headlines=drawn_headlines(run) or headlines(run),
        verdicts=verdicts(run),
        photographs=[(photo, scores_of(run, photo.name)) for photo in pictures],
        strips=[(strip, scores_of(run, strip.name)) for strip in rows],
        sample_count=count + row_count,
        samples=wording.samples(run),
        labels=label_part(run, folder),
        talking=talking_part(run, folder, details),
        drawing=drawing_part(run, folder),
        widths=width_table(run),
        compressed_by=wording.quality_source(run, "compressed") if "compressed" in run.models else "",
        models=wording.models_of(run),
        costs=cost_rows(wording.models_of(run)),
        qualities=quality_rows(run),
        own=components.network_of(run, None),
        budget=[(components.budget_name(run, line.what), line) for line in run.budget],
        along=network_parts(run),
        latency_groups=latency_groups(run),
        spent=spent,
        advice=advice(run) if spent else "",
        spent_plot=Markup(milliseconds.bars(spent.breakdowns)) if spent else "",
        spent_shown=milliseconds.SHOWN,
        measured=milliseconds.measured(run),
        roofline=roof,
        roofline_plot=Markup(roofs.draw(roof)) if roof else "",
        exports=[
            (export, wording.file_name(export), wording.parity(export.parity), components.network_of(run, export.component)) for export in run.exports
        ],
        picture_rows=likeness.picture_rows(run),
        picture_fields=tuple(likeness.FIELDS.values()),
        worst=_worst(run, folder / "samples"),
        search=search_part(run, details),
        evolution=evolution_part(run, details),
        taught=taught_part(run, details),
        curves=training_parts(everywhere),
        pruned=[(name, found) for name, found in everywhere.items() if found.layers or found.blocks],
        precision=precision_part(run, details),
        fallbacks=fallback_groups(wording.all_fallbacks(run)),
        fallback_count=len(wording.all_fallbacks(run)),
        metric=wording.metric,
        quality=wording.quality,
        target_yaml=target.read_text(encoding="utf-8") if target.is_file() else None,
    )
    path = folder / "report.html"
    temporary = folder / "report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def load_run(folder: Path) -> Run:
    """The run's record; raises `UsageError` with what to do if there is none."""
    try:
        return Run.load(folder)
    except FileNotFoundError as error:
        raise UsageError(f"'{folder}' is not a run: it has no run.json. Give a folder below runs/, or make one with: mcompress run TARGET") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / 'run.json'} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{folder / 'run.json'}: {where}: {first['msg']}. It was written by another version, or damaged; run the target again."
        ) from error


def scores_of(run: Run, sample: str) -> dict[str, list[str]]:
    """Variant -> its scores on this held-out sample, worded."""
    per_variant: dict[str, Mapping[str, float]] = {}
    for variant, samples in ((run.baseline_name, run.baseline), *((name, model.quality_per_sample) for name, model in run.models.items())):
        values = samples.get(sample) or next((v for name, v in samples.items() if Path(name).stem == sample), None)
        if values:
            per_variant[variant] = values
    return {
        variant: [f"{wording.metric(name)[0]} {wording.quality(name, value)}" for name, value in values.items()]
        for variant, values in per_variant.items()
    }


def latency_groups(run: Run) -> list[LatencyGroup]:
    """Latencies of models and files, one group and one scale per way of obtaining them."""
    models = [(components.named(run, None, name), model) for name, model in wording.models_of(run).items()]
    models += [(components.named(run, name, which), model) for name, pair in components.along(run).items() for which, model in pair.items()]
    everything = [(name, m) for name, model in models for m in model.latency if m.what == "latency"]
    everything += [(wording.file_name(e), m) for e in run.exports for m in e.latency if m.what == "latency"]
    groups = []
    for how, title in (
        ("device", "Measured on the device"),
        ("estimated", "Estimated for the device"),
        ("host", "Measured on this host, which is not a phone"),
        ("published", "Published by others"),
    ):
        found = [(label, m) for label, m in everything if m.how == how]
        longest = max((max(m.value, m.p90 or 0.0) for _, m in found), default=0.0) or 1.0
        bars = tuple(LatencyBar(label, m, 100 * m.value / longest, None if m.p90 is None else 100 * m.p90 / longest) for label, m in found)
        if bars:
            groups.append(LatencyGroup(found[0][1].how, title, bars))
    return groups


def fallback_groups(fallbacks: Sequence[Fallback]) -> list[FallbackGroup]:
    """Fallbacks by place and reason, in their order; each operator is still named."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for fallback in fallbacks:
        grouped.setdefault((fallback.where, fallback.reason), []).append(fallback.what)
    return [FallbackGroup(where, reason, tuple(what)) for (where, reason), what in grouped.items()]


def _details_along(run: Run, folder: Path) -> dict[str, StageDetails]:
    """Stage of a network that goes along, `prune-decoder` -> what it left."""
    below = {stage.name: path for stage in run.stages if (path := components.stage_folder(run, folder, stage.name)) is not None}
    return {name: found for name, path in below.items() if (found := read_details(path)) is not None}


def _worst(run: Run, samples: Path) -> tuple[WorstPlace, str] | None:
    """Where the compressed network's picture that is least like the teacher's differs most, and how like it is."""
    worst = likeness.worst_shown(run)
    place = worst_place(samples, worst.picture) if worst else None
    if worst is None or place is None:
        return None
    titles = {"truth": wording.truth_title(run)}
    details = tuple(replace(one, variant=title) for one in place.details if (title := titles.get(one.variant, one.variant)))
    return replace(place, details=details), likeness.said("psnr_db", worst.value)
