"""How far a unit's estimates are from measured latencies: the checks, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from pydantic import Field, field_validator

from mcompress.targets.speeds import Facts, Positive

LEAST_FOR_SHARES = 8
"""With fewer checks "9 in 10" is the largest error under another name."""


class Check(Facts):
    """One network: its measured latency, and the estimate with constants that were fitted without it."""

    network: str
    measured_ms: Positive
    estimated_ms: Positive

    @property
    def error(self) -> float:
        """Relative error of the estimate, signed."""
        return self.estimated_ms / self.measured_ms - 1


class Validation(Facts):
    """Checks of one precision of file on one unit."""

    how: str
    """For example `leave-one-family-out` or `networks that the fit did not see`."""
    source: str
    """A key of the device's `sources`: who measured, with which runtime."""
    checks: tuple[Check, ...] = Field(min_length=1)

    @field_validator("checks", mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        """`network: [measured, estimated]`, a line each."""
        if not isinstance(value, dict):
            return value
        for name, pair in value.items():
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(ms, (int, float)) and ms > 0 for ms in pair)):
                raise ValueError(f"{name} is {pair}; it must be [measured_ms, estimated_ms], two numbers above 0")
        return [{"network": name, "measured_ms": pair[0], "estimated_ms": pair[1]} for name, pair in value.items()]

    @property
    def summary(self) -> Summary:
        """What the checks say together."""
        return summarize(self.checks)

    @property
    def band(self) -> str:
        """For example `median error 12 %, mean 15 %, 9 in 10 within 40 %, on 13 networks, leave-one-family-out`.

        Of fewer than `LEAST_FOR_SHARES` checks the largest error is named instead of a share.
        """
        found, count = self.summary, len(self.checks)
        wide = f"9 in 10 within {found.nine_in_ten:.0%}" if count >= LEAST_FOR_SHARES else f"largest {found.largest:.0%}"
        figures = f"median error {found.median:.0%}, mean {found.mean:.0%}, {wide}".replace("%", " %")
        return f"{figures}, on {count} network{'s' if count > 1 else ''}, {self.how}"


class Summary(Facts):
    """Absolute relative errors, as fractions of the measured latency."""

    networks: int
    median: float
    mean: float
    nine_in_ten: float
    """Nine checks in ten are at most this far off."""
    largest: float
    within_10: float
    """Share of checks within 10 %."""
    within_20: float
    within_25: float
    rank_correlation: float | None
    """Spearman's; None for fewer than three networks."""


def summarize(checks: Sequence[Check]) -> Summary:
    """Raises `ValueError` for no checks."""
    if not checks:
        raise ValueError("there is nothing to summarize")
    errors = sorted(abs(check.error) for check in checks)

    def within(limit: float) -> float:
        return sum(error <= limit for error in errors) / len(errors)

    return Summary(
        networks=len(errors),
        median=median(errors),
        mean=fmean(errors),
        nine_in_ten=errors[math.ceil(0.9 * len(errors)) - 1],
        largest=errors[-1],
        within_10=within(0.10),
        within_20=within(0.20),
        within_25=within(0.25),
        rank_correlation=_rank_correlation([c.measured_ms for c in checks], [c.estimated_ms for c in checks]),
    )


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    if len(one) < 3:
        return None
    a, b = _ranks(one), _ranks(other)
    mean_a, mean_b = fmean(a), fmean(b)
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / spread if spread else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    ordered = sorted(values)
    return [(2 * ordered.index(value) + ordered.count(value) + 1) / 2 for value in values]
