"""How far the outputs of one file in two runtimes are from each other, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mcompress.export import replay
from mcompress.export.arm64.program import Kernels
from mcompress.record import HIGHEST_DB

FLOAT_SHARE = 0.1
MIXED_SHARE, MIXED_DB = 0.5, 10.0
STEP_SLACK = 1e-3
"""Of a step; a limit of two steps that was rounded when it was written is still two."""
SAME_FILE = "file, weights and inputs are the same, so only roundings may differ: a tenth of the difference that the bundle allows from its vectors"
ROUNDED_TWICE = "the old built-in INT8 kernels round in fixed point, twice, where XNNPACK rounds once: what the bundle allows any machine"
STATED = "stated in the bundle"


@dataclass(frozen=True)
class Limit:
    """How far outputs may be apart, and why so far."""

    tolerance: replay.Tolerance
    reason: str


@dataclass(frozen=True)
class Agreement:
    """Over all vectors together; SQNR is that of the worst."""

    values: int
    differing: int
    """Values that are not equal to the bit."""
    most_steps: int | None
    """Largest difference in quantization steps; None where outputs are not quantized."""
    max_abs: float
    """Largest difference in real values; infinite for NaN, infinity or another shape."""
    span: float
    """Largest minus smallest expected value."""
    sqnr_db: float

    def words(self) -> str:
        """For a line of output."""
        if not self.differing:
            return f"all {self.values:,} values equal"
        if not math.isfinite(self.max_abs):
            return "NaN, infinity or another shape"
        by = f"{self.max_abs:.2g} at most, {self.max_abs / self.span if self.span else math.inf:.1g} of the range"
        if self.most_steps is not None:
            by = f"{self.most_steps} {'step' if self.most_steps == 1 else 'steps'} at most"
        return f"{self.differing:,} of {self.values:,} values differ, by {by}, SQNR {min(self.sqnr_db, HIGHEST_DB):.1f} dB"

    def as_json(self) -> dict[str, float | int | None]:
        """For `--json`; what is not finite is null."""
        finite = math.isfinite(self.max_abs)
        return {
            "values": self.values,
            "differing": self.differing,
            "most_steps": self.most_steps,
            "max_abs": self.max_abs if finite else None,
            "sqnr_db": min(self.sqnr_db, HIGHEST_DB) if finite else None,
        }


def agreement(found: Sequence[replay.Tensor], expected: Sequence[replay.Tensor], facts: replay.Facts) -> Agreement:
    """Compare outputs in the file's own layout and type, vector by vector; at least one."""
    real = [(replay.decode(a, facts), replay.decode(b, facts)) for a, b in zip(found, expected, strict=True)]
    seen = [replay.difference(a, b) for a, b in real]
    differing, most = 0, 0
    for a, b in zip(found, expected, strict=True):
        same_form = a.shape == b.shape and a.dtype == b.dtype
        differing += int(np.count_nonzero(_bits(a) != _bits(b))) if same_form else b.size
        if facts["scale"] is not None and same_form:
            most = max(most, int(np.abs(a.astype(np.int32) - b.astype(np.int32)).max(initial=0)))
    return Agreement(
        values=sum(b.size for b in expected),
        differing=differing,
        most_steps=most if facts["scale"] is not None else None,
        max_abs=max(one.max_abs for one in seen),
        span=max(float(b.max()) for _, b in real) - min(float(b.min()) for _, b in real),
        sqnr_db=min(one.sqnr_db for one in seen),
    )


def same_file_limit(stated: replay.Tolerance, kernels: Kernels) -> Limit:
    """How far one file may be from itself in another runtime with these kernels, from what the bundle allows from its vectors.

    Float files: a tenth of the largest difference. INT8 files: half of it (one quantization step of two), or a tenth of the noise, 10 dB more; with
    built-in kernels, which have another arithmetic, what is stated.
    """
    least = stated["or_sqnr_db"]
    if least is None:
        return Limit({"max_abs": stated["max_abs"] * FLOAT_SHARE, "or_sqnr_db": None}, SAME_FILE)
    if kernels == "builtin":
        return Limit(stated, ROUNDED_TWICE)
    return Limit({"max_abs": stated["max_abs"] * MIXED_SHARE, "or_sqnr_db": least + MIXED_DB}, SAME_FILE)


def passes(seen: Agreement, tolerance: replay.Tolerance, step: float | None) -> bool:
    """Within the tolerance; where the output is quantized in steps of `step`, its differences are counted in steps, which nothing rounds."""
    if step is not None and seen.most_steps is not None and seen.most_steps <= _steps(tolerance, step):
        return math.isfinite(seen.max_abs)
    return replay.within(replay.Difference(seen.max_abs, seen.sqnr_db), tolerance)


def _steps(tolerance: replay.Tolerance, step: float) -> int:
    return int(tolerance["max_abs"] / step + STEP_SLACK)


def allowed(tolerance: replay.Tolerance, step: float | None) -> str:
    """The tolerance in words; `step` is the output's quantization step."""
    least = tolerance["or_sqnr_db"]
    most = f"{tolerance['max_abs']:.2g}"
    if step is not None:
        count = _steps(tolerance, step)
        most = f"{count} {'step' if count == 1 else 'steps'}"
    return f"at most {most}" + ("" if least is None else f", or SQNR of at least {least:g} dB")


def _bits(array: replay.Tensor) -> NDArray[np.uint8] | replay.Tensor:
    """NaN is equal to itself, and zero is not equal to minus zero, in bits."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "f" else array
