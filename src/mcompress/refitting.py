"""Fitting a precision of a device again: what the new measurements decide, and what stays of the fit that the device has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mcompress.calibration.latency_fit import Fit, Prior, Sample, fit
from mcompress.measuring import How
from mcompress.targets.columns import class_of
from mcompress.targets.connect import DeviceFacts
from mcompress.targets.speeds import Source, SpeedClass, Speeds

LEAST_SIZES = 4
"""A class of operators counts as fitted with files of so many different sizes."""
HELD_SPREAD = 1e-4
"""Of the logarithms of what a fit must not move."""
LEAST_US = 1e-3
"""Taken for a cost of nothing, which has no logarithm."""


@dataclass(frozen=True)
class Before:
    """The speeds that a device has in one precision."""

    speeds: Speeds
    sources: Mapping[str, Source]
    """Of the device."""

    @property
    def fitted(self) -> tuple[SpeedClass, ...]:
        """The classes whose speed was fitted, and not assumed."""
        return tuple(name for name, speed in self.speeds.operators.items() if self.sources[speed.source].fitted_to)

    def measured_as(self, how: How, facts: DeviceFacts) -> bool:
        """Whether all that was fitted was measured on this machine, with these threads and processors."""
        cited = [self.sources[record.source] for record in self.speeds.records().values()]
        now = (facts.processor, how.threads, how.on.cpus or ())
        return all((source.machine, source.threads, source.cpus) == now for source in cited if source.fitted_to)


@dataclass(frozen=True)
class Refit:
    """A fit, and what becomes of the speeds that the device has."""

    fit: Fit
    kept: Speeds | None = None
    """What stays but for the classes that the fit decides; None where the fit replaces everything."""
    lost: tuple[SpeedClass, ...] = ()
    """Classes that the device has fitted speeds of, which do not go with the new ones, and that are only assumed now."""

    @property
    def decided(self) -> tuple[SpeedClass, ...]:
        """The classes whose speed the measurements decide, in the order of device files."""
        return tuple(name for name in self.speeds(fitted="fitted", assumed="assumed").operators if name in self.fit.determined)

    def replaces(self, place: str) -> bool:
        """Whether the record at a place of `Speeds.records` is a new one."""
        return self.kept is None or place.removeprefix("operators.") in self.fit.determined

    def speeds(self, *, fitted: str, assumed: str) -> Speeds:
        """As the device file holds it; `fitted` and `assumed` are keys of its sources for what is new."""
        found = self.fit.speeds(fitted=fitted, assumed=assumed)
        if self.kept is None:
            return found
        stays = {name: speed for name, speed in self.kept.operators.items() if name not in self.fit.determined}
        return self.kept.model_copy(update={"operators": {**found.operators, **stays}})


def refit(samples: Sequence[Sample], prior: Prior, before: Before | None, how: How, facts: DeviceFacts) -> Refit:
    """The fit to at least one sample, which replaces what the device has if it decides every class that was fitted `before`.

    If not, and what was fitted is of this machine and setting, it stays where the samples decide nothing: also the alignment, the memory and the
    overhead, which all classes share, and the classes that are decided are fitted next to them. Of another machine or setting nothing stays.
    """
    found = _decided(fit(samples, prior), samples)
    lacking = () if before is None else tuple(name for name in before.fitted if name not in found.determined)
    if before is None or not lacking:
        return Refit(found)
    if not before.measured_as(how, facts):
        return Refit(found, lost=lacking)
    return Refit(_decided(fit(samples, _next_to(before.speeds, prior)), samples), kept=before.speeds)


def _next_to(speeds: Speeds, prior: Prior) -> Prior:
    """Starts at known speeds, and holds what all classes share."""
    rates = {name: speed.gmacs for name, speed in speeds.operators.items() if speed.gmacs is not None}
    level = rates.get("convolution", prior.gmacs)
    alignment, memory, overhead = speeds.alignment, speeds.memory, speeds.overhead
    return replace(
        prior,
        gmacs=level,
        gbs=memory.gbs,
        dispatch_us=max(overhead.dispatch_us, LEAST_US),
        invoke_us=max(overhead.invoke_us, LEAST_US),
        outputs=(alignment.outputs,),
        inputs=(alignment.inputs,),
        pads_memory=(alignment.pads_memory,),
        cache_mb=memory.cache_mb,
        far_gbs=memory.far_gbs,
        level_spread=HELD_SPREAD,
        rates={name: rate / level for name, rate in rates.items()},
        slowdowns={name: speed.slowdown for name, speed in speeds.operators.items()},
    )


def _decided(found: Fit, samples: Sequence[Sample]) -> Fit:
    """A class counts as fitted only with files of `LEAST_SIZES` different sizes; with fewer, rate, ramps and memory cannot be told apart."""
    sizes: dict[SpeedClass, set[tuple[int, ...]]] = {}
    for sample in samples:
        size = tuple(number for row in sample.table.operators for number in (row.macs, row.elements_read, row.elements_written))
        for row in sample.table.operators:
            sizes.setdefault(class_of(row), set()).add(size)
    return replace(found, determined=frozenset(name for name in found.determined if len(sizes.get(name, ())) >= LEAST_SIZES))
