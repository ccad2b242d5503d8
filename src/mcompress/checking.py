"""`mcompress check`: reads two bundles, estimates both with the same constants, measures them in turns, and says what became worse.

Tier 1, what the bundles state, is deterministic. Tier 2 executes the recommended files of both on this machine, new and baseline in turns in one
process; what raises an alarm is measured once more with the two in the other order, and counts only if it does so again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from mcompress.console import Reporter
from mcompress.errors import BudgetMissed, DeviceError, ExportError, ParityError, TargetError, UsageError
from mcompress.export.bundle import read_manifest
from mcompress.export.comparison import Comparison, FileEstimate, read_comparison
from mcompress.export.manifest import Manifest, ModelFile
from mcompress.export.profile import Job, Profile, Rules, interleave
from mcompress.reports.gate.compare import compare, files_of
from mcompress.reports.gate.file_rows import NotTimed, Side, runtime_of
from mcompress.reports.gate.junit import junit_error, junit_xml
from mcompress.reports.gate.markdown import markdown, markdown_error
from mcompress.reports.gate.timing import LEAST_ROUNDS, Ratio, Timing, ratio_of
from mcompress.reports.gate.verdicts import Check
from mcompress.targets.connect import connect

SECONDS = 3.0
"""Of alternating queries per pass and file."""
TURN_MS = 3.0
"""A file's queries in a round take at least this long, one query for most files: the shorter the turns, the more alike is what both files see."""
LONGER = 3
PROBE_ROUNDS = 3
MOST_ROUNDS = 5000
WARM_UP = Rules(min_queries=1, min_seconds=0.0, max_seconds=1.0, warm_up_s=0.3, cool_down_s=0.0)
EXECUTABLE = ("onnx", "tflite", "executorch")


@dataclass(frozen=True)
class Outputs:
    """Where the comparison is written besides the terminal; None where it is not."""

    junit: Path | None = None
    markdown: Path | None = None


def check(bundle: Path, against: Path, *, seconds: float | None, outputs: Outputs, reporter: Reporter) -> Check:
    """Compare two bundles (or run folders) and write `outputs`, also for bundles that cannot be compared. `seconds` None measures nothing.

    Raises `UsageError` for something that is no bundle, is damaged, has another schema, or is of another model, device or input.
    """
    started = time.monotonic()
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"--seconds is {seconds:g}; it must be more than 0, for example {SECONDS:g}; --no-measure measures nothing")
    for path in filter(None, (outputs.junit, outputs.markdown)):
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"'{path}' cannot be written: it must be a file in a folder that exists")
    try:
        compared = _check(bundle, against, seconds=seconds, reporter=reporter)
    except UsageError as error:  # whoever reads the files must not take the last comparison's for this one's
        _write(outputs.junit, junit_error(str(error)))
        _write(outputs.markdown, markdown_error(str(error)))
        raise
    _write(outputs.junit, junit_xml(compared, seconds=time.monotonic() - started))
    _write(outputs.markdown, markdown(compared))
    return compared


def as_json(compared: Check) -> dict[str, JsonValue]:
    """The comparison as plain data."""
    data = json.loads(json.dumps(asdict(compared)))
    return {"verdict": compared.verdict, "summary": compared.summary, **data}


def raise_for_verdict(compared: Check) -> None:
    """Raise `BudgetMissed` (exit code 3) if the gate is missed or a new baseline is needed; a pipeline must notice both."""
    if not compared.failing:
        return
    said = "\n".join(row.said for row in compared.failing)
    if compared.verdict == "re-baseline":
        raise BudgetMissed(
            "the bundles were not made with the same tools, so what differs says nothing about the network; keep the new bundle as the baseline if "
            f"it is as good as you want it:\n{said}"
        )
    raise BudgetMissed(
        f"the bundle is worse than its baseline; make it as good again, or raise `gate:` in the target if the change is meant:\n{said}"
    )


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")


def _check(bundle: Path, against: Path, *, seconds: float | None, reporter: Reporter) -> Check:
    folders = {"baseline": bundle_folder(against, "baseline"), "new bundle": bundle_folder(bundle, "new bundle")}
    _same_schema(*(folders[who] for who in ("baseline", "new bundle")))
    (old_manifest, old), (new_manifest, new) = (_read(folder, who) for who, folder in folders.items())
    baseline, changed = _side(old_manifest, old, new), _side(new_manifest, new, new)
    compare(baseline, changed, {})  # refuses strangers before anything is measured
    timings: dict[str, Timing | NotTimed] = {}
    if seconds is not None:
        timings = dict(_time_files(folders["baseline"], folders["new bundle"], baseline, changed, seconds, reporter))
    return compare(baseline, changed, timings)


def bundle_folder(path: Path, who: str) -> Path:
    """`path` itself, or the bundle inside a run folder. Raises `UsageError`."""
    if not path.is_dir():
        raise UsageError(
            f"the {who} '{path}' {'is not a folder' if path.exists() else 'does not exist'}; give a bundle, or a run folder that holds one"
        )
    inside = path / "bundle"
    return inside if not (path / "manifest.json").is_file() and (inside / "manifest.json").is_file() else path


def _same_schema(baseline: Path, new: Path) -> None:
    seen = {}
    for who, folder in (("baseline", baseline), ("new bundle", new)):
        try:
            data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # reading it in earnest says what is wrong
        seen[who] = data.get("schema") if isinstance(data, dict) else None
    if seen["baseline"] != seen["new bundle"]:
        raise UsageError(
            f"the bundles cannot be compared: the baseline has schema {seen['baseline']}, the new bundle schema {seen['new bundle']}. Make both with "
            "one mcompress: run the baseline's target again and keep its bundle"
        )


def _read(folder: Path, who: str) -> tuple[Manifest, Comparison]:
    try:
        return read_manifest(folder), read_comparison(folder)
    except (UsageError, ParityError) as error:
        raise UsageError(f"the {who} cannot be compared: {error}") from error


def _side(manifest: Manifest, comparison: Comparison, constants: Comparison) -> Side:
    """A bundle, estimated with the constants that `constants` carries."""
    try:
        estimates: dict[str, FileEstimate] | None = comparison.estimates_with(constants.constants)
    except (ValidationError, TargetError, UsageError) as error:
        first = str(error).splitlines()[0]
        return Side(manifest, comparison, None, f"the operator table of {manifest.name} cannot be estimated by this mcompress: {first}")
    return Side(manifest, comparison, estimates)


def _time_files(
    old_folder: Path, new_folder: Path, baseline: Side, new: Side, seconds: float, reporter: Reporter
) -> Iterator[tuple[str, Timing | NotTimed]]:
    old_files, new_files = files_of(baseline.manifest), files_of(new.manifest)
    subjects = [name for name, file in new_files.items() if name in old_files and (file.recommended or old_files[name].recommended)]
    for subject in subjects:
        old, now = old_files[subject], new_files[subject]
        reason = _not_to_time(baseline, new, old, now)
        if reason is not None:
            yield subject, reason
            continue
        reporter.note(f"measuring {subject}: baseline and new in turns")
        try:
            yield (
                subject,
                time_files(old_folder / old.path, new_folder / now.path, now.backend, new.comparison.gate.measured_percent, seconds=seconds),
            )
        except (DeviceError, ExportError, UsageError) as error:
            yield subject, NotTimed(str(error))


def _not_to_time(baseline: Side, new: Side, old: ModelFile, now: ModelFile) -> NotTimed | None:
    if old.sha256 == now.sha256:
        return NotTimed("the files are identical", same=True)
    versions = [runtime_of(side.comparison, now.backend) for side in (baseline, new)]
    if versions[0] != versions[1]:
        return NotTimed(f"{versions[0]} made the baseline, {versions[1]} the new file")
    if now.backend not in EXECUTABLE:
        return NotTimed(f"{now.backend} files are not executed on this machine")
    return None


def time_files(baseline: Path, new: Path, backend: str, percent: float, *, seconds: float = SECONDS) -> Timing:
    """Measure two files on this machine; a second pass, in the other order, follows an alarm. `seconds` of queries per pass.

    Where the noise hides what `percent` allows, passes take `LONGER` times as long. Raises `DeviceError` or `ExportError` when a file cannot be
    executed here.
    """
    rounds, queries = _plan(baseline, new, backend, seconds)
    first = _pass(baseline, new, backend, rounds, queries, swapped=False)
    if first.noise > percent / 100:
        rounds *= LONGER
        first = _pass(baseline, new, backend, rounds, queries, swapped=False)
    if not first.alarms(percent):
        return Timing((first,))
    return Timing((first, _pass(baseline, new, backend, rounds, queries, swapped=True)))


def _plan(baseline: Path, new: Path, backend: str, seconds: float) -> tuple[int, int]:
    """(rounds, queries per round) that fill `seconds`."""
    probed = _interleave(baseline, new, backend, PROBE_ROUNDS, 1)
    slower_ms = max(min(side.samples_ms) for side in probed)
    queries = max(1, math.ceil(TURN_MS / slower_ms))
    round_s = sum(min(side.samples_ms) for side in probed) * (queries + 1) / 1e3  # the first query after each change does not count
    return min(MOST_ROUNDS, max(LEAST_ROUNDS, math.ceil(seconds / round_s))), queries


def _pass(baseline: Path, new: Path, backend: str, rounds: int, queries: int, *, swapped: bool) -> Ratio:
    one, other = (new, baseline) if swapped else (baseline, new)
    first, second = _interleave(one, other, backend, rounds, queries)
    old, now = (second, first) if swapped else (first, second)
    return ratio_of(old.samples_ms, now.samples_ms, queries_per_round=queries)


def _interleave(one: Path, other: Path, backend: str, rounds: int, queries: int) -> tuple[Profile, Profile]:
    with connect("host") as host:
        jobs = [Job(path, backend, rules=WARM_UP) for path in (one, other)]
        return interleave(host, jobs[0], jobs[1], rounds=rounds, queries_per_round=queries)
