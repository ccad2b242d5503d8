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
