"""From any frame rate, constant or not, to 25 frames a second: each output frame is the input frame that is nearest to its time.

Nothing is blended: a mouth is never the mean of two mouths. Times are exact fractions of a second, as containers keep them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Generic, TypeVar

from mcompress.compress.tasks.talking_face.frames import FRAMES_PER_SECOND

Part = TypeVar("Part")

STEP = Fraction(1, FRAMES_PER_SECOND)
STANDSTILL = Fraction(1, 2)
"""Seconds between two frames from which on the gap is noted."""
STEADY, STEADY_SHARE = Fraction(2, 1000), Fraction(1, 10)
"""How much the intervals of a constant rate may differ, in seconds or as a share of the mean, because containers round times: Matroska to 1 ms."""
EXACT = 0.02
"""Frames a second by which a rate may differ from 25 without being noted, if every frame is used once."""


@dataclass(frozen=True)
class Timed(Generic[Part]):
    """Something that is shown from `time` on for `duration`, both in seconds; 0 where the duration is not known."""

    time: Fraction
    duration: Fraction
    part: Part


@dataclass
class Pace:
    """What the times of a clip were, and what became of its frames; complete when `at_25` has come to its end."""

    read: int = 0
    used: int = 0
    given: int = 0
    first: Fraction = Fraction(0)
    last: Fraction = Fraction(0)
    end: Fraction = Fraction(0)
    intervals: list[Fraction] = field(default_factory=list)
    standstills: list[tuple[Fraction, Fraction]] = field(default_factory=list)
    unordered: int = 0

    @property
    def rate(self) -> float:
        """Frames a second on average; 25 for a single frame."""
        return float((self.read - 1) / (self.last - self.first)) if self.read > 1 else float(FRAMES_PER_SECOND)

    def notes(self, name: str) -> tuple[str, ...]:
        """What was converted, each `name: what`."""
        notes = []
        if self.unordered:
            notes.append(f"{name}: {self.unordered} frames are not later than those before them; left out")
        shortest, longest = min(self.intervals, default=STEP), max(self.intervals, default=STEP)
        variable = longest - shortest > max(STEADY, STEADY_SHARE * (self.last - self.first) / max(1, len(self.intervals)))
        if not self.read == self.used == self.given or abs(self.rate - FRAMES_PER_SECOND) > EXACT:
            rate = f"a variable frame rate, {self.rate:.2f} a second on average" if variable else f"{self.rate:.2f} frames a second"
            frames = f"of {self.read} frames {self.used} are used, and make {self.given}"
            notes.append(f"{name}: {rate}, converted to {FRAMES_PER_SECOND} by the nearest time: {frames}")
        notes += [
            f"{name}: no frame between {float(start - self.first):.2f} s and {float(end - self.first):.2f} s, where the picture stands still"
            for start, end in self.standstills
        ]
        return tuple(notes)


def at_25(frames: Iterable[Timed[Part]], pace: Pace) -> Iterator[Part]:
    """The parts to show at 0, 40, 80 ms and so on after the first one; of two that are equally near the earlier one.

    As many as the clip lasts, rounded, and at least to the beginning of the last one, because some containers say nothing true of how long that is
    shown. A part that is not later than the one before it is left out. `pace` notes what happened.
    """
    held: Timed[Part] | None = None
    for frame in frames:
        if held is None:
            pace.first = frame.time
        elif frame.time <= held.time:
            pace.unordered += 1
            continue
        else:
            interval = frame.time - held.time
            pace.intervals.append(interval)
            if interval > STANDSTILL:
                pace.standstills.append((held.time, frame.time))
            yield from _shown_until((held.time + frame.time) / 2, held.part, pace)
        held = frame
        pace.read, pace.last = pace.read + 1, frame.time
    if held is None:
        return
    duration = held.duration or (pace.intervals[-1] if pace.intervals else STEP)
    pace.end = held.time + duration
    count = round((pace.end - pace.first) / STEP)
    yield from _shown_until(max(pace.first + (count - 1) * STEP, held.time), held.part, pace)


def _shown_until(time: Fraction, part: Part, pace: Pace) -> Iterator[Part]:
    """`part` for each output time that has not been given yet and is not after `time`."""
    before = pace.given
    while pace.first + pace.given * STEP <= time:
        pace.given += 1
        yield part
    pace.used += pace.given > before
