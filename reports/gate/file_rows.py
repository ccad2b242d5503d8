"""The rows of one file, in the baseline and in the new bundle.

What a runtime or a processor computed is only comparable where they are the same. Where they are not, worse is no finding about the network, and the
verdict is `re-baseline`; so it is where another mcompress counted the operator table. What is read off the file or its operator table is a regression
whatever the runtime. What the baseline states and the new bundle does not is lost, which is as bad as worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mcompress.export.comparison import Comparison, EstimatedFile
from mcompress.export.manifest import Manifest, ModelFile
from mcompress.export.parity import INT8_METRIC
from mcompress.export.stated import RUNTIMES
from mcompress.reports.gate.picture_rows import picture_rows
from mcompress.reports.gate.rows import Gated, counted, excused, figure, noted, one_sided, plain, relative
from mcompress.reports.gate.timing import Timing, signed
from mcompress.reports.gate.tolerances import Tolerances, percent
from mcompress.reports.gate.verdicts import Row, Verdict
from mcompress.targets.gate import GatedField

WRITTEN_BY_RUNTIME = ("executorch",)
"""Backends of which one package both writes the files and executes them."""
BITS = {"int8": 8, "fp16": 16, "fp32": 32}
SHOWN_FALLBACKS = 4


@dataclass(frozen=True)
class Side:
    """One bundle: what it states, and its estimates by the constants and the estimator that both sides share."""

    manifest: Manifest
    comparison: Comparison
    estimates: Mapping[str, EstimatedFile] | None
    """By name of the file; None where they could not be made."""
    stale: str = ""
    """Why they could not be made."""


@dataclass(frozen=True)
class NotTimed:
    """Why there is no timing of a file, and what that makes of its row."""

    reason: str
    verdict: Verdict


def runtime_of(comparison: Comparison, backend: str) -> str:
    """The runtime that executed the files of a backend where the bundle was made, for example `onnxruntime 1.31.1`."""
    package = RUNTIMES[backend][1] if backend in RUNTIMES else backend
    return f"{package} {comparison.packages.get(package, 'of unknown version')}"


def other_runtime(baseline: Side, new: Side, backend: str) -> str:
    """Why what the runtime of a backend computed cannot be compared; empty where it can."""
    versions = [runtime_of(side.comparison, backend) for side in (baseline, new)]
    return "" if versions[0] == versions[1] else f"{versions[0]} made the baseline, {versions[1]} the new file"


def other_mcompress(baseline: Side, new: Side, did: Literal["counted", "made"] = "counted") -> str:
    """Another mcompress may write another operator table for the same network, and state something else of the same file."""
    versions = [side.comparison.packages.get("mcompress", "of unknown version") for side in (baseline, new)]
    return "" if versions[0] == versions[1] else f"{did} by mcompress {versions[0]} for the baseline, by {versions[1]} now"


def estimate(side: Side, file: ModelFile) -> EstimatedFile | None:
    """None for a file that does not run on the device, and where nothing could be estimated."""
    return side.estimates.get(file.path) if side.estimates is not None else None


@dataclass(frozen=True)
class FileRows:
    """One file in both bundles, and what was measured of it."""

    baseline: Side
    new: Side
    subject: str
    old: ModelFile
    now: ModelFile
    timing: Timing | NotTimed | None
    tolerances: Tolerances

    def rows(self) -> Iterator[Row]:
        """All of them, in the order in which they are shown."""
        elsewhere = other_runtime(self.baseline, self.new, self.now.backend)
        old, now = (runtime_of(side.comparison, self.now.backend) for side in (self.baseline, self.new))
        cpus = [side.comparison.cpu for side in (self.baseline, self.new)]
        computed = elsewhere or ("" if cpus[0] == cpus[1] else f"computed on {cpus[0]} for the baseline, on {cpus[1]} now")
        if elsewhere:
            yield Row(self.subject, "runtime", old, now, "", "the same", "re-baseline", "make the new bundle the baseline")
        yield excused(self._latency(), other_mcompress(self.baseline, self.new))
        if isinstance(self.timing, Timing):
            yield self._measured(self.timing)
        elif self.timing is not None:
            change = "identical" if self.timing.verdict == "ok" else ""
            allowed = self.tolerances.shown("measured_percent", percent)
            yield Row(self.subject, "measured latency", "-", "-", change, allowed, self.timing.verdict, f"not measured: {self.timing.reason}")
        written = elsewhere if self.now.backend in WRITTEN_BY_RUNTIME else ""
        yield excused(relative(self.subject, "size", self.old.bytes, self.now.bytes, "B", "size_percent", self.tolerances), written)
        yield excused(self._fallbacks(), elsewhere)
        yield excused(self._precisions(), written)
        lost = computed or other_mcompress(self.baseline, self.new, "made")
        yield excused(self._parity(), computed if self.now.parity.value is not None else lost)
        data = "" if self.baseline.comparison.held_out == self.new.comparison.held_out else "the held-out data are not the baseline's"
        for row in (*self._quality(), *self._pictures()):
            yield excused(row, data or (computed if row.values[1] is not None else lost), always=bool(data))

    def _latency(self) -> Row:
        name = "estimated latency"
        for side in (self.baseline, self.new):
            if side.estimates is None:
                return Row(self.subject, name, "?", "?", "", self.tolerances.shown("latency_percent", percent), "re-baseline", side.stale)
        old, now = estimate(self.baseline, self.old), estimate(self.new, self.now)
        if old is None and now is None:
            return Row(self.subject, name, "none", "none", "", "-", "not comparable", f"the file does not run on {self.new.manifest.device}")
        if now is None or old is None:
            verdict: Verdict = "regression" if now is None else "better"
            lost = f"the {'new' if now is None else 'old'} file does not run on {self.new.manifest.device}"
            return Row(self.subject, name, _on(old), _on(now), "", "runs there", verdict, lost)
        row = relative(self.subject, name, old.latency_ms, now.latency_ms, "ms", "latency_percent", self.tolerances)
        return noted(row, now.on if old.on == now.on else f"{old.on} -> {now.on}")

    def _measured(self, timing: Timing) -> Row:
        allowed, last = self.tolerances.of("measured_percent"), timing.passes[-1]
        noise = 100 * max(one.noise for one in timing.passes)
        intervals = " and ".join(f"{signed(one.low)} to {signed(one.high)}" for one in timing.passes)
        note = f"interleaved, {last.rounds} rounds a pass, 95 % interval {intervals}"
        verdict: Verdict = "regression" if timing.slower(allowed) else "better" if timing.faster(allowed) else "ok"
        if not timing.decided(allowed):
            verdict, note = "not decided", f"noise {noise:.3g} % is above the tolerance {allowed:g} %; {note}"
        elif noise > allowed:
            note = f"more than the noise, {noise:.3g} %; {note}"
        elif len(timing.passes) > 1 and verdict == "ok":
            note += "; the first pass raised an alarm, the second did not confirm it"
        note = "; ".join([note, *dict.fromkeys(disturbance for one in timing.passes for disturbance in one.notes)])
        values = last.baseline_ms, last.baseline_ms * timing.ratio
        cells = figure(values[0], "ms"), figure(values[1], "ms"), signed(timing.ratio)
        return Gated(self.subject, "measured latency", "measured_percent", self.tolerances).row(cells, verdict, values, note)

    def _fallbacks(self) -> Row:
        known = {item.operator for item in self.old.coverage.fallbacks}
        added = [f"{item.operator}: {item.reason}" for item in self.now.coverage.fallbacks if item.operator not in known]
        more = f"; and {len(added) - SHOWN_FALLBACKS} more" if len(added) > SHOWN_FALLBACKS else ""
        row = counted(self.subject, "fallbacks", len(self.old.coverage.fallbacks), len(self.now.coverage.fallbacks), "fallbacks", self.tolerances)
        return noted(row, "; ".join(added[:SHOWN_FALLBACKS]) + more)

    def _precisions(self) -> Row:
        """Counted against the narrowest precision of the baseline, so that a float file with one more operator is not a worse one."""
        old, now = self.old.precision_counts, self.now.precision_counts
        narrowest = next((name for name in BITS if old.get(name)), "fp32")
        wider = [sum(count for name, count in counts.items() if BITS.get(name, 32) > BITS[narrowest]) for counts in (old, now)]
        row = counted(self.subject, f"operators wider than {narrowest}", wider[0], wider[1], "wider_operators", self.tolerances)
        shown = ["/".join(str(counts.get(name, 0)) for name in BITS) for counts in (old, now)]
        return noted(row, f"int8/fp16/fp32 {shown[0]} -> {shown[1]}" if shown[0] != shown[1] else f"int8/fp16/fp32 {shown[1]}")

    def _parity(self) -> Row:
        old, now = self.old.parity, self.now.parity
        name = f"parity, {'dB' if now.metric == INT8_METRIC else 'share of the range'}"
        allowed: GatedField = "parity_db" if now.metric == INT8_METRIC else "parity_limit_percent"
        if now.passed is False and old.passed is not False:
            cells = plain(old.value), plain(now.value), "", f"limit {now.limit:g}"
            return Row(self.subject, name, *cells, "regression", "outside its limit", (old.value, now.value))
        if old.value is None or now.value is None:
            return one_sided(self.subject, name, allowed, self.tolerances, (old.value, now.value), (now if now.value is None else old).runtime)
        if old.metric != now.metric:
            return Row(self.subject, name, old.metric, now.metric, "", "the same metric", "re-baseline", "parity is measured another way")
        values, note = (old.value, now.value), f"limit {now.limit:g}"
        if now.metric == INT8_METRIC:
            gated = Gated(self.subject, name, allowed, self.tolerances, lambda less: f"-{less:g} dB")
            return gated.judged((f"{old.value:.2f}", f"{now.value:.2f}", f"{now.value - old.value:+.2f} dB"), old.value - now.value, values, note)
        share = now.limit / 100
        gated = Gated(self.subject, name, allowed, self.tolerances, lambda more: f"+{share * more:.2g}")
        change = now.value - old.value
        return gated.judged((plain(old.value), plain(now.value), f"{change:+.2g}"), change, values, note, scale=share)

    def _quality(self) -> Iterator[Row]:
        old, now = self.old.quality, self.now.quality
        where = f"computed by {now.after_from}" if old.after_from == now.after_from else f"computed by {old.after_from}, now by {now.after_from}"
        for metric in dict.fromkeys((*old.after, *now.after)):
            field, one, other = f"quality, {metric}", old.after.get(metric), now.after.get(metric)
            if one is None or other is None:
                yield one_sided(
                    self.subject, field, "quality", self.tolerances, (one, other), f"only the {'baseline' if other is None else 'new bundle'} has it"
                )
                continue
            gated = Gated(self.subject, field, "quality", self.tolerances, lambda allowed: f"-{allowed:g}")
            yield gated.judged((f"{one:.3f}", f"{other:.3f}", f"{other - one:+.3f}"), one - other, (one, other), where)

    def _pictures(self) -> Iterator[Row]:
        old, now = (side.comparison.pictures.get(file.path, {}) for side, file in ((self.baseline, self.old), (self.new, self.now)))
        return picture_rows(self.subject, old, now, self.tolerances)


def _on(found: EstimatedFile | None) -> str:
    return "none" if found is None else figure(found.latency_ms, "ms")
