"""Checks of a builder's arguments: they come from a YAML or JSON file, so any type may arrive."""

from __future__ import annotations

from collections.abc import Sequence

from mcompress.errors import UsageError


def check_whole(network: str, argument: str, value: object, *, low: int, high: int) -> int:
    """`value` if it is a whole number in [low, high]; raises `UsageError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{network}: {argument} is {value!r}; it must be a whole number from {low} to {high}")
    return value


def check_choice(network: str, argument: str, value: object, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`; raises `UsageError` otherwise."""
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f"{network}: {argument} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def whole_numbers(network: str, argument: str, value: object, *, lengths: Sequence[int], low: int, high: int, meaning: str) -> tuple[int, ...]:
    """A list of whole numbers, or the same written `24_16_16`; raises `UsageError` for another length, or a number outside [low, high]."""
    listed: list[object] = []
    if isinstance(value, str):
        listed = [int(part) if part.isascii() and part.isdigit() else part for part in value.split("_")]
    elif isinstance(value, Sequence):
        listed = list(value)
    if len(listed) not in lengths:
        counts = " or ".join(str(length) for length in lengths)
        seen = f"{argument} is {value!r}" + (f", which is {len(listed)} numbers" if listed else "")
        # YAML reads 24_16_16 without quotes as the number 241616.
        quotes = "; in YAML, put quotes around numbers that underscores join" if isinstance(value, int) and not isinstance(value, bool) else ""
        raise UsageError(f"{network}: {seen}; it must be a list of {counts} whole numbers: {meaning}{quotes}")
    return tuple(check_whole(network, f"{argument}[{position}]", number, low=low, high=high) for position, number in enumerate(listed))
