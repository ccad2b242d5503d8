"""What is said about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def unknown_name(what: str, seen: str, known: Sequence[str], where: str = "", show: Sequence[str] | None = None) -> str:
    """`device 'sm825' is not known (...); known are ...; did you mean 'sm8250'?`"""
    return f"{what} {seen!r} is not known {where}".rstrip() + f"; known are {', '.join(show or known)}{near(seen, known)}"


def near(seen: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    name = nearest(seen, known)
    return "" if name is None else f"; did you mean {name!r}?"


def nearest(seen: str, known: Iterable[str]) -> str | None:
    """The known name that is most like it, whatever the case; None if none is."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(seen.lower(), list(by_lower), n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None
