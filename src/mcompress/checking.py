"""`mcompress check`: reads two bundles, estimates both with the same constants, measures them in turns, and says what became worse.

Tier 1, what the bundles state, is deterministic. Tier 2 executes the recommended files of both on this machine, new and baseline in turns in one
process; what raises an alarm is measured once more with the two in the other order, and counts only if it does so again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from mcompress.console import Reporter
from mcompress.errors import BudgetMissed, ParityError, TargetError, UsageError
from mcompress.export.bundle import read_manifest
from mcompress.export.comparison import Comparison, EstimatedFile, read_comparison
from mcompress.export.manifest import Manifest, ModelFile
from mcompress.export.profile import BACKENDS
from mcompress.reports.gate.compare import compare, files_of
from mcompress.reports.gate.file_rows import NotTimed, Side, other_runtime
from mcompress.reports.gate.junit import junit_error, junit_xml
from mcompress.reports.gate.markdown import markdown, markdown_error
from mcompress.reports.gate.measuring import SECONDS, WITHIN_S, Pair, TimeBudget, time_pairs
from mcompress.reports.gate.timing import Timing
from mcompress.reports.gate.verdicts import Check, Verdict
from mcompress.targets.gate import stricter

FAILED: Mapping[Verdict, str] = {
    "regression": "the bundle is worse than its baseline; make it as good again, or keep the new bundle as the baseline if the change is meant:",
    "re-baseline": "the bundles were not made with the same tools, so what differs says nothing about the network; keep the new bundle as the "
    "baseline if it is as good as you want it:",
    "not decided": "the target requires a measurement, and none decides; measure again with less running beside it, or with more --seconds:",
}


@dataclass(frozen=True)
class Outputs:
    """Where the comparison is written besides the terminal; None where it is not."""

    junit: Path | None = None
    markdown: Path | None = None

    def clear(self, bundles: Sequence[Path]) -> None:
        """Leave empty files, so that nobody takes the last comparison's for those of one that breaks off. Raises `UsageError` where one cannot be.

        None may lie in one of the `bundles`, whose files it would be taken for, or replace.
        """
        paths = {option: path for option, path in (("--junit", self.junit), ("--markdown", self.markdown)) if path is not None}
        if len({path.resolve() for path in paths.values()}) < len(paths):
            raise UsageError(f"--junit and --markdown are both '{self.junit}'; give each a file of its own")
        for option, path in paths.items():
            inside = next((bundle for bundle in bundles if path.resolve().is_relative_to(bundle.resolve())), None)
            if inside is not None:
                raise UsageError(f"{option} is '{path}', which lies in '{inside}', one of the bundles that are compared; write it elsewhere")
            try:
                path.write_text("", encoding="utf-8")
            except OSError as error:
                why = f"{error.strerror or error}; it must be a file in a folder that exists and can be written"
                raise UsageError(f"{option}: '{path}' cannot be written: {why}") from error


def check(bundle: Path, against: Path, *, seconds: float | None, outputs: Outputs, reporter: Reporter) -> Check:
    """Compare two bundles (or run folders) and write `outputs`, also for bundles that cannot be compared.

    `seconds` of queries per pass and file; None measures nothing. Whatever the number of files, measuring ends `WITHIN_S` after the start, or as much
    later as `seconds` is above `SECONDS`; what has no decision by then is `not decided`.

    Raises `UsageError` for something that is no bundle, is damaged, has another schema, or is of another model, device or input.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"--seconds is {seconds:g}; it must be more than 0, for example {SECONDS:g}; --no-measure measures nothing")
    outputs.clear((bundle, against))
    budget = TimeBudget(WITHIN_S * max(1.0, (seconds or 0.0) / SECONDS))
    started = time.monotonic()
    try:
        compared = _check(bundle, against, seconds=seconds, budget=budget, reporter=reporter)
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
    if compared.failing:
        raise BudgetMissed("\n".join((FAILED[compared.failing[0].verdict], *(row.said for row in compared.failing))))


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")


def _check(bundle: Path, against: Path, *, seconds: float | None, budget: TimeBudget, reporter: Reporter) -> Check:
    folders = {"baseline": bundle_folder(against, "baseline"), "new bundle": bundle_folder(bundle, "new bundle")}
    _same_schema(*(folders[who] for who in ("baseline", "new bundle")))
    (old_manifest, old), (new_manifest, new) = (_read(folder, who) for who, folder in folders.items())
    baseline, changed = _side(old_manifest, old, new), _side(new_manifest, new, new)
    compare(baseline, changed, {})  # refuses strangers before anything is measured
    timings: dict[str, Timing | NotTimed] = {}
    if seconds is not None:
        timings = dict(_time_files(folders["baseline"], folders["new bundle"], baseline, changed, seconds, budget, reporter))
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
        estimates: dict[str, EstimatedFile] | None = comparison.estimates_with(constants.constants)
    except (ValidationError, TargetError, UsageError) as error:
        first = str(error).splitlines()[0]
        return Side(manifest, comparison, None, f"the operator table of {manifest.name} cannot be estimated by this mcompress: {first}")
    return Side(manifest, comparison, estimates)


def _time_files(
    old_folder: Path, new_folder: Path, baseline: Side, new: Side, seconds: float, budget: TimeBudget, reporter: Reporter
) -> Iterator[tuple[str, Timing | NotTimed]]:
    """The files that either bundle recommends. Those that are measured share what is left of the budget."""
    old_files, new_files = files_of(baseline.manifest), files_of(new.manifest)
    percent = stricter(baseline.comparison.gate, new.comparison.gate).measured_percent
    waiting = {}
    for subject in (name for name, file in new_files.items() if name in old_files and (file.recommended or old_files[name].recommended)):
        old, now = old_files[subject], new_files[subject]
        reason = _not_to_time(baseline, new, old, now)
        if reason is None:
            waiting[subject] = Pair(old_folder / old.path, new_folder / now.path, now.backend)
        else:
            yield subject, reason
    for subject, timing in time_pairs(waiting, percent, seconds=seconds, budget=budget, told=reporter.note):
        yield subject, timing if isinstance(timing, Timing) else NotTimed(str(timing), "not decided")


def _not_to_time(baseline: Side, new: Side, old: ModelFile, now: ModelFile) -> NotTimed | None:
    if old.sha256 == now.sha256:
        return NotTimed("the files are identical", "ok")
    elsewhere = other_runtime(baseline, new, now.backend)
    if elsewhere:
        return NotTimed(elsewhere, "re-baseline")
    if now.backend not in BACKENDS.values():
        return NotTimed(f"{now.backend} files are not timed on this machine", "not comparable")
    return None
