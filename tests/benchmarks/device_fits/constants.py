"""Constants of a unit with their sources: fitted to published figures, or those of a similar unit moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from device_fits.figures import PADDLE, PADDLE_TEXT, Figures, Publication
from mcompress.calibration.device_file import four_digits
from mcompress.calibration.latency_fit import Fit, Prior, Sample, fit, leave_families_out, leave_networks_out
from mcompress.compress.networks import family_of, network_table
from mcompress.published import PublishedRows, prior_of, read_published
from mcompress.targets.speeds import MemorySpeed, Overhead, PrecisionName, Source, Speeds
from mcompress.targets.validation import Validation, summarize

FITTED_ON = "2026-11-21"
"""The date of every source: when the constants were derived. When figures were published stands in its text."""
ASSUMED = "an assumption, not fitted: "
GUESS = "a guess about this kind of unit, relative to its convolutions or to its memory: no network of the fit decides it"
FEW_RATE_SPREAD, FEW_LEVEL_SPREAD = 0.5, 0.3
"""Of fits to few figures."""
NEXT_RATE_SPREAD = 0.4
"""Of fits that start at the next chip."""

Again = Callable[[Sequence[Sample], str | None], Fit]
"""Fits a unit to some of its samples, always in the same way, at a start that has not seen the family that is named."""
IN_VIEW = "priors and speed classes chosen with these networks in view"


def _never(family: str) -> Speeds:
    raise ValueError(f"constants that nothing starts at, without {family}")


@dataclass(frozen=True)
class Fitted:
    """Speeds with the keys of their sources, those sources, and the checks."""

    speeds: Speeds
    sources: dict[str, Source]
    validation: Validation | None = None
    measured: PrecisionName | None = None
    """Precision of the files that were measured, for `validation`."""
    without: Callable[[str], Speeds] = _never
    """The constants as they are without a family of networks, on this chip and on those that it starts at."""

    def unseen(self, family: str | None) -> Speeds:
        """The constants without the family that is left out; all of them where none is."""
        return self.without(family) if family else self.speeds


Precisions = dict[PrecisionName, Fitted]
"""Of a unit, by the precision that is computed in."""


def samples(figures: Figures) -> tuple[Sample, ...]:
    """Published figures with their tables; every network has a family, its own where it is alone."""
    return tuple(Sample(name, network_table(name), ms, family=family_of(name) or name) for name, ms in sorted(figures.items()))


@dataclass(frozen=True)
class Words:
    """What a fit's sources and checks say besides its figures."""

    start: str = ""
    """What it starts from."""
    kept: str = GUESS
    """Where constants come from that it does not decide."""
    seen: str = IN_VIEW
    """What the checks had seen all the same."""


def fitted(
    key: str, some: Sequence[Sample], again: Again, published: Publication, *, files: PrecisionName, words: Words, donor: Fitted | None = None,
    one_by_one: bool = False,
) -> Fitted:  # fmt: skip
    """A fit and what it is worth without each family. `donor` is what it starts at; `one_by_one` says what leaving out single networks gives too."""
    solved: dict[frozenset[str], Fit] = {}

    def solve(kept: Sequence[Sample]) -> Fit:
        names = frozenset(sample.name for sample in kept)
        if names not in solved:
            solved[names] = again(kept, next((sample.family for sample in some if sample.name not in names), None))
        return solved[names]

    def without(family: str) -> Speeds:
        kept = [sample for sample in some if sample.family != family]
        if not kept:
            return donor.without(family) if donor else _never(family)
        if len(kept) == len(some):
            return (again(kept, family) if donor else solve(kept)).speeds(fitted=key, assumed=f"{key}-assumed")
        return solve(kept).speeds(fitted=key, assumed=f"{key}-assumed")

    found = solve(some)
    held = leave_families_out(some, solve) if len(some) > 1 else None
    started = f", {words.start}" if words.start else ""
    text = f"fit of tests/benchmarks/fit_devices.py to {len(some)} published latencies{started}: {published.text}"
    if one_by_one:
        singly = summarize(leave_networks_out(some, solve).checks)
        text += (
            f"; where single networks are left out instead of families, and others of their family stay, the median error is {singly.median:.1%} and "
            f"the rank correlation {singly.rank_correlation or 0.0:.3f}"
        ).replace("%", " %")
    sources = {
        key: Source(text=text, date=FITTED_ON, runtime=published.runtime, fitted_to=tuple(sample.name for sample in some)),
        f"{key}-assumed": Source(text=words.kept, date=FITTED_ON, runtime="none"),
    }
    how = f"{held.how}, {words.seen}{published.left_out}" if held else ""
    validation = Validation(how=how, source=key, checks=held.checks) if held else None
    return Fitted(found.speeds(fitted=key, assumed=f"{key}-assumed"), sources, validation, files, without)


def to_prior(prior: Prior) -> Again:
    """Fits that start at a prior, with alignments that are chosen anew each time."""
    return lambda some, _: fit(some, prior)


def next_to(donor: Fitted, computed: PrecisionName) -> Again:
    """Fits that start at another chip's constants and keep its alignment; for a family that is left out, at those that were fitted without it."""
    return lambda some, family: fit(some, _aligned_as(donor.unseen(family), computed, NEXT_RATE_SPREAD))


def _aligned_as(start: Speeds, computed: PrecisionName, rate_spread: float) -> Prior:
    own = start.alignment
    return replace(prior_of(start, computed, rate_spread), outputs=(own.outputs,), inputs=(own.inputs,), pads_memory=(own.pads_memory,))


DONOR_TOO = "the constants that it starts at fitted without it too"
"""Of a fit that starts at another chip's."""


def near(donor: Fitted, computed: PrecisionName) -> Again:
    """Fits to few figures: the constants of a similar unit times the one factor that suits them best, and from there as far as they ask for."""

    def again(some: Sequence[Sample], family: str | None) -> Fit:
        start = donor.unseen(family)
        prior = _aligned_as(start, computed, FEW_RATE_SPREAD)
        estimated = Fit.of(start, prior).estimate_ms([sample.table for sample in some])
        factor = math.exp(float(np.mean(np.log(estimated / [sample.measured_ms for sample in some]))))
        moved = replace(
            prior, gmacs=prior.gmacs * factor, gbs=prior.gbs * factor, dispatch_us=prior.dispatch_us / factor, invoke_us=prior.invoke_us / factor,
            level_spread=FEW_LEVEL_SPREAD,
        )  # fmt: skip
        return fit(some, moved)

    return again


def few(key: str, donor: Fitted, computed: PrecisionName, figures: Figures, published: Publication, *, like: str) -> Fitted:
    """A unit of which little is published. `like` names the donor: `the Snapdragon 865's constants of this precision`."""
    listed = ", ".join(f"{name} {ms:g} ms" for name, ms in sorted(figures.items()))
    words = Words(
        f"starting at {like}, all times the factor that suits {listed} best",
        f"relative to the others as in {like}, for want of figures that decide it", f"{DONOR_TOO}, {IN_VIEW}",
    )  # fmt: skip
    files: PrecisionName = computed
    return fitted(key, samples(figures), near(donor, computed), published, files=files, words=words, donor=donor)


def scaled(
    key: str, donor: Fitted, text: str, *, rate: float = 1.0, memory: float | None = None, overhead: float | None = None, runtime: str = "none"
) -> Fitted:
    """Constants of a similar unit times factors: of arithmetic, of memory (the same where it is left out), of overheads (inverse of arithmetic)."""
    moved = rate if memory is None else memory
    less = 1 / rate if overhead is None else overhead

    def of(speeds: Speeds) -> Speeds:
        return faster(key, speeds, rate=rate, memory=moved, overhead=less)

    return Fitted(of(donor.speeds), {key: Source(text=text, date=FITTED_ON, runtime=runtime)}, without=lambda family: of(donor.without(family)))


def faster(key: str, speeds: Speeds, *, rate: float, memory: float, overhead: float) -> Speeds:
    """Constants times factors, all under one source."""
    own = speeds.memory
    far = four_digits(own.far_gbs * memory) if own.far_gbs else None
    return Speeds(
        alignment=speeds.alignment.model_copy(update={"source": key}),
        memory=MemorySpeed(gbs=four_digits(own.gbs * memory), cache_mb=own.cache_mb, far_gbs=far, source=key),
        overhead=Overhead(
            dispatch_us=four_digits(speeds.overhead.dispatch_us * overhead), invoke_us=four_digits(speeds.overhead.invoke_us * overhead), source=key
        ),
        operators={
            name: row.model_copy(
                update={
                    "gmacs": four_digits(row.gmacs * rate) if row.gmacs else None,
                    "scores_gbs": four_digits(row.scores_gbs * rate) if row.scores_gbs else None,
                    "source": key,
                }
            )
            for name, row in speeds.operators.items()
        },
    )


def times(donor: Mapping[PrecisionName, Fitted], unit: str, factor: float, text: str) -> Precisions:
    """All precisions of a unit, faster by one factor; nothing is known of its error."""
    return {name: scaled(f"{unit}-{name}", found, f"{ASSUMED}{text}", rate=factor) for name, found in donor.items()}


def in_fp32(fp16: Fitted) -> Fitted:
    """A CPU in FP32 from the same in FP16."""
    ratio = PADDLE["fp16"] / PADDLE["fp32"]
    text = f"{ASSUMED}FP16 constants times {ratio:.3g}, the ratio in {PADDLE_TEXT}; as many elements a second as in FP16"
    return scaled("cpu-fp32", fp16, text, rate=ratio, memory=2.0, overhead=1.0)


def rows_of(path: Path, device: str, unit: str, precision: str, runtime: str, releases: Sequence[str]) -> PublishedRows:
    """Of the CSV file."""
    where = {"device": device, "runtime": runtime, "unit": unit, "precision": precision}
    return read_published(path, where=where, unit=unit, precision="int8", releases=releases)
