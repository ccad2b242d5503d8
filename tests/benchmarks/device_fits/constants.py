"""Constants of a unit with their sources: fitted to published figures, or those of a similar unit moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from device_fits.figures import PADDLE, PADDLE_TEXT, Figures, Publication
from mcompress.calibration.latency_fit import Fit, Prior, Sample, fit, leave_families_out
from mcompress.compress.networks import family_of, network_table
from mcompress.published import prior_of, read_published
from mcompress.targets.speeds import FilePrecision, MemorySpeed, Overhead, PrecisionName, Source, SpeedClass, Speeds
from mcompress.targets.validation import Validation

FITTED_ON = "2026-11-21"
"""The date of every source: when the constants were derived. When figures were published stands in its text."""
ASSUMED = "an assumption, not fitted: "
GUESS = "a guess about this kind of unit, relative to its convolutions or to its memory: no network of the fit decides it"
FEW_RATE_SPREAD, FEW_LEVEL_SPREAD = 0.5, 0.3
"""Of fits to few figures."""
NEXT_RATE_SPREAD = 0.4
"""Of fits that start at the next chip."""

Again = Callable[[Sequence[Sample]], Fit]
"""Fits a unit to any of its samples, always in the same way."""


@dataclass(frozen=True)
class Fitted:
    """Speeds with the keys of their sources, those sources, and the checks."""

    speeds: Speeds
    sources: dict[str, Source]
    validation: Validation | None = None
    measured: FilePrecision | None = None
    """Precision of the files that were measured, for `validation`."""


Precisions = dict[PrecisionName, Fitted]
"""Of a unit, by the precision that is computed in."""


def samples(figures: Figures) -> tuple[Sample, ...]:
    """Published figures with their tables."""
    return tuple(Sample(name, network_table(name), ms, family=family_of(name)) for name, ms in sorted(figures.items()))


def fitted(
    key: str, some: Sequence[Sample], again: Again, published: Publication, *, files: FilePrecision, words: str = "", kept: str = GUESS
) -> Fitted:
    """A fit and what it is worth without each family. `words` says what it starts from, `kept` where constants come from that it does not decide."""
    found = again(some)
    started = f", {words}" if words else ""
    text = f"fit of tests/benchmarks/fit_devices.py to {len(some)} published latencies{started}: {published.text}"
    sources = {
        key: Source(text=text, date=FITTED_ON, runtime=published.runtime, fitted_to=tuple(sample.name for sample in some)),
        f"{key}-assumed": Source(text=kept, date=FITTED_ON, runtime="none"),
    }
    held = leave_families_out(some, again) if len(some) > 1 else None
    validation = Validation(how=held.how, source=key, checks=held.checks) if held else None
    return Fitted(found.speeds(fitted=key, assumed=f"{key}-assumed"), sources, validation, files)


def to_prior(prior: Prior) -> Again:
    """Fits that start at a prior, with alignments that are chosen anew each time."""
    return partial(fit, prior=prior)


def near(donor: Speeds, computed: PrecisionName, *, apart: tuple[SpeedClass, ...] = ()) -> Again:
    """Fits to few figures: the constants of a similar unit times the one factor that suits them best, and from there as far as they ask for.

    `apart` gets speeds of its own that the donor has not.
    """

    def again(some: Sequence[Sample]) -> Fit:
        prior, alignment = prior_of(donor, computed, FEW_RATE_SPREAD), donor.alignment
        estimated = Fit.of(donor, prior).estimate_ms([sample.table for sample in some])
        factor = math.exp(float(np.mean(np.log(estimated / [sample.measured_ms for sample in some]))))
        moved = replace(
            prior, gmacs=prior.gmacs * factor, gbs=prior.gbs * factor, dispatch_us=prior.dispatch_us / factor, invoke_us=prior.invoke_us / factor,
            outputs=(alignment.outputs,), inputs=(alignment.inputs,), pads_memory=(alignment.pads_memory,), level_spread=FEW_LEVEL_SPREAD,
            classes=tuple(dict.fromkeys((*prior.classes, *apart))),
        )  # fmt: skip
        return fit(some, moved)

    return again


def few(
    key: str, donor: Speeds, computed: PrecisionName, figures: Figures, published: Publication, *, like: str, apart: tuple[SpeedClass, ...] = ()
) -> Fitted:
    """A unit of which little is published. `like` names the donor: `the Snapdragon 865's constants of this precision`."""
    listed = ", ".join(f"{name} {ms:g} ms" for name, ms in sorted(figures.items()))
    words = f"starting at {like}, all times the factor that suits {listed} best"
    kept = f"relative to the others as in {like}, for want of figures that decide it"
    files: FilePrecision = computed
    return fitted(key, samples(figures), near(donor, computed, apart=apart), published, files=files, words=words, kept=kept)


def scaled(
    key: str, speeds: Speeds, text: str, *, rate: float = 1.0, memory: float | None = None, overhead: float | None = None, runtime: str = "none"
) -> Fitted:
    """Constants of a similar unit times factors: of arithmetic, of memory (the same where it is left out), of overheads (inverse of arithmetic)."""
    moved = rate if memory is None else memory
    less = 1 / rate if overhead is None else overhead
    own = speeds.memory
    changed = Speeds(
        alignment=speeds.alignment.model_copy(update={"source": key}),
        memory=MemorySpeed(gbs=four(own.gbs * moved), cache_mb=own.cache_mb, far_gbs=four(own.far_gbs * moved) if own.far_gbs else None, source=key),
        overhead=Overhead(dispatch_us=four(speeds.overhead.dispatch_us * less), invoke_us=four(speeds.overhead.invoke_us * less), source=key),
        operators={
            name: row.model_copy(update={"gmacs": four(row.gmacs * rate) if row.gmacs else None, "source": key})
            for name, row in speeds.operators.items()
        },
    )
    return Fitted(changed, {key: Source(text=text, date=FITTED_ON, runtime=runtime)})


def times(donor: Mapping[PrecisionName, Fitted], unit: str, factor: float, text: str) -> Precisions:
    """All precisions of a unit, faster by one factor; nothing is known of its error."""
    return {name: scaled(f"{unit}-{name}", found.speeds, f"{ASSUMED}{text}", rate=factor) for name, found in donor.items()}


def in_fp32(fp16: Speeds) -> Fitted:
    """A CPU in FP32 from the same in FP16."""
    ratio = PADDLE["fp16"] / PADDLE["fp32"]
    text = f"{ASSUMED}FP16 constants times {ratio:.3g}, the ratio in {PADDLE_TEXT}; as many elements a second as in FP16"
    return scaled("cpu-fp32", fp16, text, rate=ratio, memory=2.0, overhead=1.0)


def four(value: float) -> float:
    """Rounded to four digits."""
    return float(f"{value:.4g}")


def figures_of(path: Path, device: str, unit: str, precision: str, runtime: str, releases: Sequence[str]) -> dict[str, float]:
    """Network -> milliseconds, of the CSV file."""
    where = {"device": device, "runtime": runtime, "unit": unit, "precision": precision}
    return {row.network: row.latency_ms for row in read_published(path, where=where, unit=unit, precision="int8", releases=releases)}
