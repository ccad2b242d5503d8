"""Streamed statistics of activations, and INT8 ranges chosen from them.

`Observer` sees one tensor after another and keeps a minimum, a maximum and one histogram, so its memory does not depend on how much it sees. The
bins are powers of two wide and lie on a fixed grid around zero; when a value falls outside, neighbouring bins are merged. The result is therefore
exactly the histogram of all values at the final bin width, in whatever order they came.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Method = Literal["minmax", "percentile", "mse"]

BINS = 8192
LEVELS = 256  # of INT8
SYMMETRIC_STEPS = 127  # of INT8 on each side of zero
PERCENTILE = 99.99  # share of the values, in percent, that a percentile range covers
SHRINK_STEPS = 64  # candidates per bound in the search for the least squared error
SMALLEST_EXPONENT = -100  # of a bin's width, so that the arithmetic stays inside float64's normal numbers


class Observer:
    """Statistics of one tensor over all calibration samples."""

    def __init__(self, bins: int = BINS) -> None:
        """`bins` must be a multiple of 4; memory is 8 bytes per bin."""
        if bins < 8 or bins % 4:
            raise ValueError(f"bins is {bins}; it must be a multiple of 4 and at least 8")
        self.counts: NDArray[np.int64] = np.zeros(bins, dtype=np.int64)
        self.exponent: int | None = None
        self.low, self.high = math.inf, -math.inf
        self.total, self.zeros = 0, 0

    @property
    def width(self) -> float:
        """Width of a bin, in the tensor's unit."""
        return 0.0 if self.exponent is None else 2.0**self.exponent

    def edges(self) -> NDArray[np.float64]:
        """The `bins + 1` edges of the histogram."""
        half = len(self.counts) // 2
        return np.arange(-half, half + 1, dtype=np.float64) * self.width

    def observe(self, values: Tensor) -> None:
        """Add every element of `values`. Raises `ValueError` for NaN or infinity."""
        flat = values.detach().reshape(-1).to(torch.float64)
        if flat.numel() == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"activations between {low} and {high} were seen; calibration needs finite values")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.total += flat.numel()
        self.zeros += int((flat == 0).sum())
        self._widen(max(abs(low), abs(high)))
        half = len(self.counts) // 2
        index = torch.floor(flat / self.width).to(torch.int64) + half
        self.counts += torch.bincount(index, minlength=len(self.counts)).numpy()

    def _widen(self, magnitude: float) -> None:
        half = len(self.counts) // 2
        needed = max(SMALLEST_EXPONENT, math.frexp(magnitude / half)[1] if magnitude > 0 else SMALLEST_EXPONENT)
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[half // 2 : half // 2 + half] = merged
            self.exponent += 1

    def bounds(self, method: Method) -> tuple[float, float]:
        """The range (low, high) that INT8 should cover; it always contains zero. Raises `ValueError` if nothing was observed."""
        if self.total == 0:
            raise ValueError("no activation was observed; calibration needs at least one sample")
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "percentile":
            low, high = self._percentile(low, high)
        elif method == "mse":
            low, high = self._least_squares(low, high)
        return low, high

    def magnitude(self, method: Method) -> float:
        """The largest magnitude that symmetric INT8 should cover. Raises `ValueError` if nothing was observed."""
        if method == "mse" and self.total:
            return self._least_squares_magnitude(max(-self.low, self.high))
        low, high = self.bounds("minmax" if method == "mse" else method)
        return max(-low, high)

    def _percentile(self, low: float, high: float) -> tuple[float, float]:
        """Cut an equal share from both ends, at the outer edge of the bin in which the percentile lies."""
        tail = (100.0 - PERCENTILE) / 200.0 * self.total
        below, edges = np.cumsum(self.counts), self.edges()
        first = int(np.searchsorted(below, tail, side="right"))
        last = int(np.searchsorted(below, self.total - tail, side="left"))
        return max(low, min(0.0, float(edges[first]))), min(high, max(0.0, float(edges[last + 1])))

    def _least_squares(self, low: float, high: float) -> tuple[float, float]:
        """The best of SHRINK_STEPS^2 pairs of bounds: clipping error from the histogram, plus step^2 / 12 for every value that is not zero."""
        centres = (self.edges()[:-1] + self.edges()[1:]) / 2
        shrink = np.linspace(1.0, 0.2, SHRINK_STEPS)
        lows, highs = (low * shrink if low < 0 else np.zeros(1)), (high * shrink if high > 0 else np.zeros(1))
        beyond_low = np.array([np.sum(self.counts * np.minimum(centres - bound, 0.0) ** 2) for bound in lows])
        beyond_high = np.array([np.sum(self.counts * np.maximum(centres - bound, 0.0) ** 2) for bound in highs])
        step = (highs[None, :] - lows[:, None]) / (LEVELS - 1)
        error = beyond_low[:, None] + beyond_high[None, :] + (self.total - self.zeros) * step**2 / 12
        best_low, best_high = np.unravel_index(int(np.argmin(error)), error.shape)
        return float(lows[best_low]), float(highs[best_high])

    def _least_squares_magnitude(self, largest: float) -> float:
        """The best of SHRINK_STEPS magnitudes, by the same error; what is clipped is beyond the magnitude on either side of zero."""
        distances = np.abs((self.edges()[:-1] + self.edges()[1:]) / 2)
        candidates = largest * np.linspace(1.0, 0.2, SHRINK_STEPS)
        beyond = np.array([np.sum(self.counts * np.maximum(distances - bound, 0.0) ** 2) for bound in candidates])
        error = beyond + (self.total - self.zeros) * (candidates / SYMMETRIC_STEPS) ** 2 / 12
        return float(candidates[int(np.argmin(error))])
