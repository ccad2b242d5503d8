"""Two bundles, field by field, each with the stricter tolerance of the two; what cannot be compared is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from mcompress.errors import UsageError
from mcompress.export.manifest import Manifest, ModelFile
from mcompress.record import narrower_suffix
from mcompress.reports.gate.file_rows import FileRows, NotTimed, Side, estimate, other_mcompress
from mcompress.reports.gate.operators import operator_changes
from mcompress.reports.gate.rows import excused, relative
from mcompress.reports.gate.timing import Timing
from mcompress.reports.gate.tolerances import Tolerances
from mcompress.reports.gate.verdicts import NETWORK, Check, Row

SAME_ESTIMATE = 1e-6


def compare(baseline: Side, new: Side, timings: Mapping[str, Timing | NotTimed]) -> Check:
    """Everything that two bundles state, and what was measured of them; `timings` has subjects (`tflite mixed`) as keys.

    Raises `UsageError`, naming both values, for bundles that are not of one model, device and input.
    """
    _refuse_strangers(baseline, new)
    old_files, new_files = files_of(baseline.manifest), files_of(new.manifest)
    tolerances = Tolerances(baseline.comparison.gate, new.comparison.gate)
    rows = [*_network_rows(baseline, new, tolerances)]
    for subject in dict.fromkeys((*new_files, *old_files)):
        if subject not in new_files:
            rows.append(Row(subject, "file", old_files[subject].path, "none", "removed", "none removed", "regression"))
        elif subject not in old_files:
            rows.append(Row(subject, "file", "none", new_files[subject].path, "added", "any added", "ok", "nothing to compare it with"))
        else:
            rows += FileRows(baseline, new, subject, old_files[subject], new_files[subject], timings.get(subject), tolerances).rows()
    operators = {}
    for subject in old_files.keys() & new_files.keys():
        old, now = (estimate(side, files[subject]) for side, files in ((baseline, old_files), (new, new_files)))
        changes = operator_changes(old.operators, now.operators) if old and now else ()
        if changes:
            operators[subject] = changes
    ordered = {subject: operators[subject] for subject in new_files if subject in operators}
    notes = tuple(_notes(baseline, new, tolerances))
    return Check(new.manifest.name, new.manifest.device, tuple(rows), ordered, notes, tolerances.gate.measured_required)


def files_of(manifest: Manifest) -> dict[str, ModelFile]:
    """Subject (`tflite mixed`, of a narrower width `tflite mixed w050`, of a decoder that goes along `tflite mixed decoder`) -> file."""
    return {" ".join(filter(None, (file.backend, file.variant, file.component or narrower_suffix(file.width, "")))): file for file in manifest.files}


def _refuse_strangers(baseline: Side, new: Side) -> None:
    old, now = baseline.manifest, new.manifest
    pairs: list[tuple[str, JsonValue, JsonValue]] = [
        ("target", old.name, now.name),
        ("model", baseline.comparison.model, new.comparison.model),
        ("task", old.task, now.task),
        ("device", old.device, now.device),
        ("output side / input side", old.scale, now.scale),
        ("made with --quick", old.quick, now.quick),
    ]
    old_files, new_files = files_of(old), files_of(now)
    common = [subject for subject in new_files if subject in old_files]
    pairs += [pair for name in common for pair in _input_pairs(name, old_files[name], new_files[name])]
    problems = [line for what, one, other in pairs for line in _differences(what, one, other)]
    if not common:
        problems.append(f"files: the baseline has {', '.join(old_files)}, the new bundle {', '.join(new_files)}; none are of one backend and variant")
    if problems:
        raise UsageError(
            "the bundle cannot be compared with this baseline:\n  "
            + "\n  ".join(problems)
            + "\nGive the baseline of the same target with --against, or make the new bundle the baseline if the change is meant"
        )


def _input_pairs(name: str, old: ModelFile, new: ModelFile) -> list[tuple[str, JsonValue, JsonValue]]:
    """The shapes of all inputs, in the order of the files; where there are more or fewer of them, their names."""
    if len(old.inputs) != len(new.inputs):
        return [(f"inputs of {name}", ", ".join(facts.name for facts in old.inputs), ", ".join(facts.name for facts in new.inputs))]
    called = [f" {facts.name}" if len(new.inputs) > 1 else "" for facts in new.inputs]
    both = zip(called, old.inputs, new.inputs, strict=True)
    return [(f"input{which} of {name}", list(was.shape), list(now.shape)) for which, was, now in both]


def _differences(what: str, old: JsonValue, new: JsonValue) -> Iterator[str]:
    """Only what differs inside mappings, each with its place."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(f"{what}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield f"{what}: the baseline has {_short(old)}, the new bundle {_short(new)}"


def _short(value: JsonValue) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _network_rows(baseline: Side, new: Side, allowed: Tolerances) -> Iterator[Row]:
    other, olds, news = other_mcompress(baseline, new), baseline.comparison.narrower, new.comparison.narrower
    networks = {NETWORK: (baseline.comparison.network, new.comparison.network)}
    networks |= {f"{NETWORK} {name}": (olds[name].network, news[name].network) for name in news if name in olds}
    for subject, (old, now) in networks.items():
        yield excused(relative(subject, "multiply-adds", old.macs, now.macs, "", "macs_percent", allowed), other)
        yield excused(relative(subject, "parameters", old.params, now.params, "", "params_percent", allowed), other)
        peaks = old.peak_memory_bytes, now.peak_memory_bytes
        yield excused(relative(subject, "planned peak memory, fp32", *peaks, "B", "peak_memory_percent", allowed), other)


def _notes(baseline: Side, new: Side, tolerances: Tolerances) -> Iterator[str]:
    old, now = baseline.comparison, new.comparison
    differences = ", ".join(tolerances.differences())
    if differences:
        yield f"the bundles do not allow the same, and what allows less counts: gate {differences}"
    if old.cpu != now.cpu:
        yield f"made on different processors: the baseline on {old.cpu or 'an unknown one'}, the new bundle on {now.cpu or 'an unknown one'}"
    for side, who in ((baseline, "the baseline"), (new, "the new bundle")):
        for path, found in (side.estimates or {}).items():
            stored = side.comparison.files[path].latency_ms
            if abs(found.latency_ms / stored - 1) > SAME_ESTIMATE:
                yield (
                    f"{path}: the estimate of {who} was {stored:.4g} ms when it was made; with the constants of the new bundle and this mcompress it "
                    f"is {found.latency_ms:.4g} ms, which is what is compared"
                )
    changed = [name for name in sorted(old.packages.keys() | now.packages.keys()) if old.packages.get(name) != now.packages.get(name)]
    if changed:
        versions = ", ".join(f"{name} {old.packages.get(name, 'none')} -> {now.packages.get(name, 'none')}" for name in changed)
        yield f"packages that changed: {versions}"
