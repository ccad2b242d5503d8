"""What a report says first: the few numbers that were achieved, and the verdicts."""

from __future__ import annotations

from dataclasses import dataclass

from mcompress.record import ExportRecord, GalleryRecord, Run
from mcompress.reports import wording


@dataclass(frozen=True)
class Headline:
    """One large number: what it is, and before -> after."""

    value: str
    label: str
    detail: str
    estimated: bool = False


def shipped(run: Run) -> ExportRecord | None:
    """The file of the run's own network that the headline speaks of: the recommended one, else the smallest."""
    inside = [export for export in run.exports if export.shipped and export.component is None]
    return next((e for e in inside if e.recommended), None) or min(inside, key=lambda e: e.bytes, default=None)


def headlines(run: Run) -> list[Headline]:
    """The few numbers that say what was achieved; none where a model is missing."""
    teacher, small = run.models.get("teacher"), run.models.get("compressed") or run.models.get("student")
    if teacher is None or small is None:
        return []
    found = [
        times("multiply-adds", teacher.macs, small.macs, f"{wording.count(teacher.macs)} to {wording.count(small.macs)} per picture", "fewer"),
        times(
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
        found.append(times("to download", teacher.weight_bytes, file.bytes, detail, "less"))
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


def times(label: str, before: float, after: float, detail: str, less: str) -> Headline:
    """How many times smaller or larger something became; `less` is the word in front of `label` for what shrinks, `fewer` or `less`."""
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
    if run.gallery is not None:
        said += _drawn(run.gallery)
    count = len(wording.all_fallbacks(run))
    said.append((f"{count} fallback{'s' if count > 1 else ''}, listed with the reason" if count else "no fallbacks", True if not count else None))
    return said


def _drawn(gallery: GalleryRecord) -> list[tuple[str, bool | None]]:
    """Whether whole pictures of files are those of PyTorch."""
    judged = [painter for painter in gallery.painters if painter.passed is not None]
    failed = [painter.name for painter in judged if not painter.passed]
    if not judged:
        return []
    text = (
        f"{', '.join(failed)} files draw other pictures than PyTorch"
        if failed
        else "float files of all backends that were executed draw PyTorch's pictures"
    )
    return [(text, not failed)]
