"""The rows of one file, in the baseline and in the new bundle.

What a runtime or a processor computed is only comparable where they are the same. Where they are not, worse is no finding about the network, and the
verdict is `re-baseline`; so it is where another mcompress counted the operator table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mcompress.export.comparison import Comparison, FileEstimate
from mcompress.export.manifest import Manifest, ModelFile
from mcompress.export.parity import INT8_METRIC
from mcompress.export.stated import RUNTIMES
from mcompress.reports.gate.rows import EPSILON, allowed_percent, counted, excused, figure, judged, noted, plain, relative, shown_only, signed
from mcompress.reports.gate.timing import Timing
from mcompress.reports.gate.verdicts import Row, Verdict
from mcompress.targets.gate import Gate

BITS = {"int8": 8, "fp16": 16, "fp32": 32}
SHOWN_FALLBACKS = 4


@dataclass(frozen=True)
class Side:
    """One bundle: what it states, and its estimates by the constants and the estimator that both sides share."""

    manifest: Manifest
    comparison: Comparison
    estimates: Mapping[str, FileEstimate] | None
    """By name of the file; None where they could not be made."""
    stale: str = ""
    """Why they could not be made."""


@dataclass(frozen=True)
class NotTimed:
    """Why a file was not measured."""

    reason: str
    same: bool = False
    """The two files are one and the same, so there is nothing to measure."""


def runtime_of(comparison: Comparison, backend: str) -> str:
    """The runtime that executed the files of a backend where the bundle was made, for example `onnxruntime 1.31.1`."""
    package = RUNTIMES[backend][1] if backend in RUNTIMES else backend
    return f"{package} {comparison.packages.get(package, 'of unknown version')}"


def other_counter(baseline: Side, new: Side) -> str:
    """Another mcompress may write another operator table for the same network."""
    versions = [side.comparison.packages.get("mcompress", "of unknown version") for side in (baseline, new)]
    return "" if versions[0] == versions[1] else f"counted by mcompress {versions[0]} for the baseline, by {versions[1]} now"


def estimate(side: Side, file: ModelFile) -> FileEstimate | None:
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

    @property
    def gate(self) -> Gate:
        """The new bundle's."""
        return self.new.comparison.gate

    def rows(self) -> Iterator[Row]:
        """All of them, in the order in which they are shown."""
        versions = [runtime_of(side.comparison, self.now.backend) for side in (self.baseline, self.new)]
        same_runtime = versions[0] == versions[1]
        elsewhere = "" if same_runtime else f"{versions[0]} made the baseline, {versions[1]} the new file"
        cpus = [side.comparison.cpu for side in (self.baseline, self.new)]
        computed = elsewhere or ("" if cpus[0] == cpus[1] else f"computed on {cpus[0]} for the baseline, on {cpus[1]} now")
        if not same_runtime:
            yield Row(self.subject, "runtime", versions[0], versions[1], "", "the same", "re-baseline", "make the new bundle the baseline")
        yield excused(self._latency(), other_counter(self.baseline, self.new))
        if isinstance(self.timing, Timing):
            yield excused(self._measured(self.timing), elsewhere)
        elif isinstance(self.timing, NotTimed):
            verdict: Verdict = "ok" if self.timing.same else "not comparable"
            change = "identical" if self.timing.same else ""
            allowed, note = allowed_percent("measured_percent", self.gate), f"not measured: {self.timing.reason}"
            yield Row(self.subject, "measured latency", "-", "-", change, allowed, verdict, note)
        yield excused(relative(self.subject, "size", self.old.bytes, self.now.bytes, "B", "size_percent", self.gate), elsewhere)
        yield excused(self._fallbacks(), elsewhere)
        yield excused(self._precisions(), elsewhere)
        yield excused(self._parity(), computed)
        data = "" if self.baseline.comparison.held_out == self.new.comparison.held_out else "the held-out data are not the baseline's"
        for row in self._quality():
            yield excused(row, data or computed, always=bool(data))

    def _latency(self) -> Row:
        name = "estimated latency"
        for side in (self.baseline, self.new):
            if side.estimates is None:
                return Row(self.subject, name, "?", "?", "", allowed_percent("latency_percent", self.gate), "re-baseline", side.stale)
        old, now = estimate(self.baseline, self.old), estimate(self.new, self.now)
        if old is None and now is None:
            return Row(self.subject, name, "none", "none", "", "-", "not comparable", f"the file does not run on {self.new.manifest.device}")
        if now is None or old is None:
            verdict: Verdict = "regression" if now is None else "better"
            lost = f"the {'new' if now is None else 'old'} file does not run on {self.new.manifest.device}"
            return Row(self.subject, name, _on(old), _on(now), "", "runs there", verdict, lost)
        row = relative(self.subject, name, old.latency_ms, now.latency_ms, "ms", "latency_percent", self.gate)
        return noted(row, now.on if old.on == now.on else f"{old.on} -> {now.on}")

    def _measured(self, timing: Timing) -> Row:
        percent, last = self.gate.measured_percent, timing.passes[-1]
        threshold = 100 * max(one.threshold(percent) for one in timing.passes)
        noisy = threshold > percent + EPSILON
        verdict: Verdict = "regression" if timing.slower(percent) else "better" if timing.faster(percent) else "ok"
        intervals = " and ".join(f"{signed(one.low)} to {signed(one.high)}" for one in timing.passes)
        note = f"interleaved, {last.rounds} rounds a pass, 95 % interval {intervals}"
        if len(timing.passes) > 1 and verdict == "ok":
            note += "; the first pass raised an alarm, the second did not confirm it"
        return shown_only(
            Row(
                self.subject,
                "measured latency",
                figure(last.baseline_ms, "ms"),
                figure(last.baseline_ms * timing.ratio, "ms"),
                signed(timing.ratio),
                f"+{threshold:.3g} %{' (noise)' if noisy else ''}",
                verdict,
                note,
                (last.baseline_ms, last.baseline_ms * timing.ratio),
            ),
            "measured_percent",
            self.gate,
        )

    def _fallbacks(self) -> Row:
        known = {item.operator for item in self.old.coverage.fallbacks}
        added = [f"{item.operator}: {item.reason}" for item in self.now.coverage.fallbacks if item.operator not in known]
        more = f"; and {len(added) - SHOWN_FALLBACKS} more" if len(added) > SHOWN_FALLBACKS else ""
        row = counted(self.subject, "fallbacks", len(self.old.coverage.fallbacks), len(self.now.coverage.fallbacks), "fallbacks", self.gate)
        return noted(row, "; ".join(added[:SHOWN_FALLBACKS]) + more)

    def _precisions(self) -> Row:
        """Counted against the narrowest precision of the baseline, so that a float file with one more operator is not a worse one."""
        old, now = self.old.precision_counts, self.now.precision_counts
        narrowest = next((name for name in BITS if old.get(name)), "fp32")
        wider = [sum(count for name, count in counts.items() if BITS.get(name, 32) > BITS[narrowest]) for counts in (old, now)]
        row = counted(self.subject, f"operators wider than {narrowest}", wider[0], wider[1], "wider_operators", self.gate)
        shown = ["/".join(str(counts.get(name, 0)) for name in BITS) for counts in (old, now)]
        return noted(row, f"int8/fp16/fp32 {shown[0]} -> {shown[1]}" if shown[0] != shown[1] else f"int8/fp16/fp32 {shown[1]}")

    def _parity(self) -> Row:
        old, now = self.old.parity, self.now.parity
        name = f"parity, {'dB' if now.metric == INT8_METRIC else 'share of the range'}"
        if old.value is None or now.value is None:
            note = next(parity.runtime for parity in (old, now) if parity.value is None)
            return Row(self.subject, name, plain(old.value), plain(now.value), "", "-", "not comparable", note)
        if old.metric != now.metric:
            return Row(self.subject, name, old.metric, now.metric, "", "the same metric", "re-baseline", "parity is measured another way")
        values = (old.value, now.value)
        if now.passed is False and old.passed is not False:
            return Row(self.subject, name, plain(old.value), plain(now.value), "", f"limit {now.limit:g}", "regression", "outside its limit", values)
        if now.metric == INT8_METRIC:
            change, tolerance = old.value - now.value, self.gate.parity_db
            shown, allowed = f"{now.value - old.value:+.2f} dB", f"-{tolerance:g} dB"
            row = Row(
                self.subject, name, f"{old.value:.2f}", f"{now.value:.2f}", shown, allowed, judged(change, tolerance), f"limit {now.limit:g}", values
            )
            return shown_only(row, "parity_db", self.gate)
        tolerance = self.gate.parity_limit_percent / 100 * now.limit
        change = now.value - old.value
        allowed = f"+{tolerance:.2g}"
        row = Row(
            self.subject,
            name,
            plain(old.value),
            plain(now.value),
            f"{change:+.2g}",
            allowed,
            judged(change, tolerance),
            f"limit {now.limit:g}",
            values,
        )
        return shown_only(row, "parity_limit_percent", self.gate)

    def _quality(self) -> Iterator[Row]:
        old, now = self.old.quality, self.now.quality
        tolerance = self.gate.quality
        for metric in dict.fromkeys((*old.after, *now.after)):
            one, other = old.after.get(metric), now.after.get(metric)
            if one is None or other is None:
                yield Row(self.subject, f"quality, {metric}", plain(one), plain(other), "", "-", "re-baseline", "only one of the bundles has it")
                continue
            where = f"computed by {now.after_from}" if old.after_from == now.after_from else f"computed by {old.after_from}, now by {now.after_from}"
            verdict = judged(one - other, tolerance)
            row = Row(
                self.subject,
                f"quality, {metric}",
                f"{one:.3f}",
                f"{other:.3f}",
                f"{other - one:+.3f}",
                f"-{tolerance:g}",
                verdict,
                where,
                (one, other),
            )
            yield shown_only(row, "quality", self.gate)


def _on(found: FileEstimate | None) -> str:
    return "none" if found is None else figure(found.latency_ms, "ms")
