"""A cell of a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A number in words, what stands below it, and how it was obtained; empty where there is none."""

    value: str = ""
    note: str = ""
    source: str = ""
