"""What is said beside an estimate: where it holds, how far off it may be, and where its constants come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mcompress.targets.columns import OTHER
from mcompress.targets.device import Device, Unit
from mcompress.targets.operators import OperatorTable
from mcompress.targets.placement import Placed
from mcompress.targets.speeds import CLASSES, PRECISIONS, PrecisionName, Record, Source, Speeds

SHOWN = 3
NEGLIGIBLE = 0.01
"""The share of the time up to which unknown operators leave the band what it is."""


def files_of(placed: Placed) -> list[PrecisionName]:
    """Precisions of the file, the least first."""
    return [PRECISIONS[index] for index in np.unique(placed.precisions)]


def on(placed: Placed) -> str:
    """The units that take part: `npu+cpu`."""
    return "+".join(unit.name for unit in _used(placed))


def band(placed: Placed, device: Device) -> str:
    """How far the estimate may be off, in words."""
    used = _used(placed)
    elsewhere = device.elsewhere(used[0])
    unknown = _unknown_share(placed)
    if unknown:
        return f"{elsewhere}; {unknown}" if elsewhere else f"not validated ({unknown})"
    if elsewhere:
        return elsewhere
    if len(used) > 1:
        return "not validated (several units)"
    unit, files = used[0], files_of(placed)
    if len({unit.computes_in[name] for name in files}) == 1:
        # A unit that computes INT8 and FP16 files alike (a GPU) is as well validated on a mixture of them as on either.
        return unit.band(min(files, key=lambda name: (name not in unit.validation, name)))
    known = [name for name in files if name in unit.validation]
    if len(known) < len(files):
        return "not validated (mixed precision)"
    widest = max(known, key=lambda name: unit.validation[name].summary.median)
    return f"{unit.band(widest)}, files all in {widest}; mixtures are not validated"


def provenance(table: OperatorTable, placed: Placed, device: Device) -> str:
    """Where the constants come from that the estimate really used, what runs elsewhere than asked for, and what is not known."""
    used = dict(_records(placed))
    assumed = [place for place, record in used.items() if _assumed(device.sources[record.source])]
    seen = [device.sources[record.source] for place, record in used.items() if place not in assumed]
    said = [*dict.fromkeys(map(_measured, seen)), *([_shortened(assumed, "assumed", everything=len(assumed) == len(used))] if assumed else [])]
    return f"constants of {device.name} {on(placed)} ({'; '.join(said)}){_away(placed)}{_unknown(table, placed)}"


def _used(placed: Placed) -> tuple[Unit, ...]:
    return tuple(placed.chain[index] for index in np.unique(placed.units))


def _records(placed: Placed) -> Iterator[tuple[str, Record]]:
    """What each record is for -> the record; each place is named by its unit where several take part, and by the precision where one has several."""
    forms = np.unique(np.stack([placed.units, placed.computed]), axis=1).T.tolist()
    last = max(unit for unit, _ in forms)
    several_units = any(unit < last for unit, _ in forms)
    for index, computed in forms:
        unit, precision = placed.chain[index], PRECISIONS[computed]
        several = sum(one == index for one, _ in forms) > 1
        before = f"{unit.name} " if several_units else ""
        before += f"{precision} " if several else ""
        rows = (placed.units == index) & (placed.computed == computed)
        classes = np.unique(np.append(placed.columns.classes[rows], placed.passes[rows & (placed.passes >= 0)]))
        for place, record in _of_speeds(unit.speeds[precision], classes.tolist()):
            yield f"{before}{place}", record
        if index < last:  # of two units, the one further up the chain says what going to the other costs
            yield f"{before}boundary", unit.boundary


def _of_speeds(speeds: Speeds, classes: Sequence[int]) -> Iterator[tuple[str, Record]]:
    yield from (("alignment", speeds.alignment), ("memory", speeds.memory), ("overhead", speeds.overhead))
    for name in (CLASSES[index] for index in classes):
        speed = speeds.speed(name)
        if speed is not None:
            yield name, speed


def _assumed(source: Source) -> bool:
    return not source.fitted_to and source.machine is None


def _measured(source: Source) -> str:
    return f"{source.runtime}, {source.date}{f', measured on {source.machine}' if source.machine else ''}"


def _shortened(names: Sequence[str], what: str, *, everything: bool) -> str:
    if everything:
        return f"all {what}"
    return f"{what}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"


def _away(placed: Placed) -> str:
    """How many operators run on which other unit."""
    counts = [(unit.name, int((placed.units == index).sum())) for index, unit in enumerate(placed.chain)][1:]
    there = [(name, count) for name, count in counts if count]
    total = f" of {len(placed.units)} operators"
    parts = [f"{count}{'' if index else total} on {name}" for index, (name, count) in enumerate(there)]
    return f"; {', '.join(parts)}, which the {placed.chain[0].name} does not take" if parts else ""


def _unknown_share(placed: Placed) -> str:
    """Which share of the time is a matter of assumption, and between what the whole then is; empty where it is negligible."""
    unknown = placed.columns.classes == OTHER
    whole = float(placed.latency_ms.sum() + placed.invoke_ms.sum())
    share = float(placed.latency_ms[unknown].sum()) / whole
    if share <= NEGLIGIBLE:
        return ""
    count = int(unknown.sum())
    what = "an operator of no known kind" if count == 1 else "operators of no known kind"
    percent = f"{share:.0%}".replace("%", " %")
    return f"{percent} of it {'is' if count == 1 else 'are'} {what}; between {whole - float(placed.doubt_ms.sum()):.3g} and {whole:.3g} ms"


def _unknown(table: OperatorTable, placed: Placed) -> str:
    names = list(dict.fromkeys(operator.operation for operator in table.operators if operator.kind == "other"))
    if not names:
        return ""
    unknown = placed.columns.classes == OTHER
    count, taken, spare = int(unknown.sum()), float(placed.latency_ms[unknown].sum()), float(placed.doubt_ms.sum())
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    one = count == 1
    known = f"{count} operator{'' if one else 's'} of no known kind ({shown}) {'is' if one else 'are'} {taken:.3g} ms of it, an assumption"
    return f"; {known}; moving {'its' if one else 'their'} data alone takes {taken - spare:.3g} ms"
