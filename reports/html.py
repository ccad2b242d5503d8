"""report.html: one self-contained file that a person enjoys reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from mcompress.errors import UsageError
from mcompress.record import ExportRecord, ModelRecord, Run
from mcompress.reports import latency_budget as milliseconds
from mcompress.reports import likeness, wording
from mcompress.reports import roofline as roofs
from mcompress.reports.advice import advice
from mcompress.reports.details import read_details
from mcompress.reports.found import search_part, taught_part, training_parts
from mcompress.reports.labels import label_part
from mcompress.reports.pictures import WorstPlace, photographs, worst_place
from mcompress.reports.precision import precision_part, triple
from mcompress.reports.strips import strips
from mcompress.reports.talking import talking_part
from mcompress.reports.widths import width_table
from mcompress.targets.schema import Fallback, How, Measurement


@dataclass(frozen=True)
class Headline:
    """One large number: what it is, and before -> after."""

    value: str
    label: str
    detail: str
    estimated: bool = False


@dataclass(frozen=True)
class CostRow:
    """One kind of cost over all models; `shares` are in percent of the largest."""

    label: str
    note: str
    values: tuple[str, ...]
    ratios: tuple[str, ...]
    shares: tuple[float, ...]


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
    whole = run.target.task in wording.SAME_SIZE
    pictures, count = ((), 0) if whole else photographs(folder / "samples", run.baseline_name)
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
        headlines=headlines(run),
        verdicts=verdicts(run),
        photographs=[(photo, scores_of(run, photo.name)) for photo in pictures],
        strips=[(strip, scores_of(run, strip.name)) for strip in rows],
        sample_count=count + row_count,
        samples=wording.samples(run),
        labels=label_part(run, folder),
        talking=talking_part(run, folder, details),
        widths=width_table(run),
        compressed_by=wording.quality_source(run, "compressed") if "compressed" in run.models else "",
        models=wording.models_of(run),
        costs=cost_rows(wording.models_of(run)),
        qualities=quality_rows(run),
        latency_groups=latency_groups(run),
        spent=spent,
        advice=advice(run) if spent else "",
        spent_plot=Markup(milliseconds.bars(spent.breakdowns)) if spent else "",
        spent_shown=milliseconds.SHOWN,
        measured=milliseconds.measured(run),
        roofline=roof,
        roofline_plot=Markup(roofs.draw(roof)) if roof else "",
        exports=[(export, wording.file_name(export), wording.parity(export.parity)) for export in run.exports],
        picture_rows=likeness.picture_rows(run),
        picture_fields=tuple(likeness.FIELDS.values()),
        worst=_worst(run, folder / "samples"),
        search=search_part(run, details),
        taught=taught_part(run, details),
        curves=training_parts(details),
        pruned=[(name, found) for name, found in details.items() if found.layers or found.blocks],
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


def shipped(run: Run) -> ExportRecord | None:
    """The file that the headline speaks of: the recommended one, else the smallest."""
    inside = [export for export in run.exports if export.shipped]
    return next((e for e in inside if e.recommended), None) or min(inside, key=lambda e: e.bytes, default=None)


def headlines(run: Run) -> list[Headline]:
    """The few numbers that say what was achieved; none where a model is missing."""
    teacher, small = run.models.get("teacher"), run.models.get("compressed") or run.models.get("student")
    if teacher is None or small is None:
        return []
    found = [
        _headline("multiply-adds", teacher.macs, small.macs, f"{wording.count(teacher.macs)} to {wording.count(small.macs)} per picture", "fewer"),
        _headline(
            "activation memory",
            teacher.peak_activation_bytes,
            small.peak_activation_bytes,
            f"{wording.size(teacher.peak_activation_bytes)} to {wording.size(small.peak_activation_bytes)} at the peak, as fp32",
            "less",
        ),
    ]
    file = shipped(run)
    if file is not None:
        detail = f"{wording.size(teacher.weight_bytes)} of weights to a {wording.size(file.bytes)} {file.backend} file"
        found.append(_headline("to download", teacher.weight_bytes, file.bytes, detail, "less"))
    for name, before in teacher.quality.items():
        after, source = (file.quality[name], f"the {file.backend} file") if file and name in file.quality else (small.quality.get(name), "PyTorch")
        if after is None:
            continue
        label, unit = wording.metric(name)
        base = run.baseline.get("mean", {}).get(name)
        trivial = f"; {run.baseline_name} {wording.quality(name, base)}" if base is not None else ""
        if wording.against_teacher(name):
            found.append(Headline(wording.quality(name, after), label, f"on held-out {wording.samples(run)} ({source}){trivial}"))
            continue
        detail = f"{wording.quality(name, before)} to {wording.quality(name, after)} ({source}){trivial}"
        value = f"{after - before:+.2f} {unit}".strip().replace("-", "\N{MINUS SIGN}")
        found.append(Headline(value, f"{label} against the teacher", detail))
    return found


def _headline(label: str, before: float, after: float, detail: str, less: str) -> Headline:
    if before <= 0 or after <= 0:
        return Headline("not known", label, detail)
    fewer = before >= after
    return Headline(
        f"{wording.number(before / after if fewer else after / before)}\N{MULTIPLICATION SIGN}", f"{less if fewer else 'more'} {label}", detail
    )


def verdicts(run: Run) -> list[tuple[str, bool | None]]:
    """Short sentences with good (True), bad (False) or open (None)."""
    said: list[tuple[str, bool | None]] = []
    if run.budget:
        missed = sum(not line.met for line in run.budget)
        said.append((f"{missed} of {len(run.budget)} budget lines missed" if missed else f"all {len(run.budget)} budget lines met", missed == 0))
    executed = [e for e in run.exports if e.parity.passed is not None]
    failed = [e for e in executed if not e.parity.passed]
    if run.exports:
        text = (
            f"{len(failed)} files fail parity"
            if failed
            else f"{len(executed)} of {len(run.exports)} files executed and equal to PyTorch within their limits"
        )
        said.append((text, not failed if executed else None))
    count = len(wording.all_fallbacks(run))
    said.append((f"{count} fallback{'s' if count > 1 else ''}, listed with the reason" if count else "no fallbacks", True if not count else None))
    return said


def cost_rows(models: Mapping[str, ModelRecord]) -> list[CostRow]:
    """Costs of every model, as text, as ratio to the first, and as bars."""
    kinds = (
        ("Parameters", "counted", [m.params for m in models.values()], wording.count),
        ("Multiply-adds", "counted, exact work", [m.macs for m in models.values()], wording.count),
        (
            "Multiply-adds, published convention",
            "transposed convolutions by output size",
            [m.macs_output_convention for m in models.values()],
            wording.count,
        ),
        ("Peak activation memory", "live tensors as fp32", [m.peak_activation_bytes for m in models.values()], wording.size),
        ("Activation traffic", "read and written, as fp32", [m.activation_traffic_bytes for m in models.values()], wording.size),
        ("Weights", "as stored", [m.weight_bytes for m in models.values()], wording.size),
    )
    rows = []
    for label, note, values, text in kinds:
        if not values or (label.endswith("convention") and values == [m.macs for m in models.values()]):
            continue
        largest = max(values) or 1
        ratios = (
            "",
            *(wording.ratio(values[0], value) + (" less" if value < values[0] else "") if value != values[0] else "the same" for value in values[1:]),
        )
        rows.append(CostRow(label, note, tuple(text(v) for v in values), ratios, tuple(100 * v / largest for v in values)))
    return rows


def quality_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """(what, value, against the baseline, computed by) for the means over held-out data."""
    rows = []
    base = run.baseline.get("mean", {})
    for name in dict.fromkeys(n for m in run.models.values() for n in m.quality):
        label, unit = wording.metric(name)
        if name in base:
            rows.append((f"{run.baseline_name}, {label}", wording.quality(name, base[name]), "", "PyTorch"))
        sources = [(model, record.quality, wording.quality_source(run, model)) for model, record in wording.models_of(run).items()]
        sources += [(wording.file_name(e), e.quality, e.parity.runtime) for e in run.exports]
        for what, values, by in sources:
            if name in values:
                gain = wording.gain(values[name], base[name]) if name in base else ""
                gain = f"{gain} {unit}".strip().replace("-", "\N{MINUS SIGN}") if gain else ""
                rows.append((f"{what}, {label}", wording.quality(name, values[name]), gain, by))
    return rows


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
    everything = [(name, m) for name, model in wording.models_of(run).items() for m in model.latency if m.what == "latency"]
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


def _worst(run: Run, samples: Path) -> tuple[WorstPlace, str] | None:
    """Where the compressed network's picture that is least like the teacher's differs most, and how like it is."""
    worst = likeness.worst_shown(run)
    place = worst_place(samples, worst.picture) if worst else None
    if worst is None or place is None:
        return None
    titles = {"truth": wording.truth_title(run)}
    details = tuple(replace(one, variant=title) for one in place.details if (title := titles.get(one.variant, one.variant)))
    return replace(place, details=details), likeness.said("psnr_db", worst.value)
