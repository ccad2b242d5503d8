"""The bodies of `mcompress device fit` and `mcompress device validate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import JsonValue

from mcompress.console import Step, Terminal
from mcompress.errors import UsageError
from mcompress.targets.connect import parse_cpus
from mcompress.targets.device import Device, list_devices, load_device
from mcompress.targets.validation import Validation


def fit_measured(name: str, on: str, *, unit: str, threads: int, cpus: str | None, minutes: float, share: float, keep: Path, out: Path | None) -> str:
    """Measure the suite, fit, write the device file; what to tell the user."""
    from mcompress.fitting import Wanted, fit_on, write_device

    wanted = Wanted(Path(name).stem, on, keep / f"device-{Path(name).stem}", unit, threads, parse_cpus(cpus), minutes * 60, share)
    with Terminal() as reporter:
        found = fit_on(wanted, _told(reporter))
    path = out or Path(f"{wanted.name}.yaml")
    write_device(found.device, path)
    lines = [f"{path}: {found.device.title}, unit {unit}, fitted in {found.seconds:.0f} s"]
    for number, measured in found.measured.items():
        missing = f"; {len(measured.failed)} could not be measured, the first: {next(iter(measured.failed.items()))}" if measured.failed else ""
        short = "" if measured.complete else "; the time ran out before the rest (--minutes)"
        lines.append(f"  {number}: {len(measured.samples)} files of the suite, {measured.runtime}{missing}{short}")
    place = f" --on {on}"
    return "\n".join([*lines, f"next: mcompress device validate {path}{place}, so that estimates carry their error"])


def fit_to_published(name: str, table: Path, where: Sequence[str], *, unit: str, precision: str, out: Path | None) -> str:
    """Fit a unit to published latencies, write the device file; what to tell the user."""
    from mcompress.fitting import write_device
    from mcompress.published import fit_published, read_published

    device = load_device(name)
    conditions = dict(condition_of(text) for text in where)
    rows = read_published(table, where=conditions, unit=unit, precision=precision)
    fitted, validation = fit_published(device, rows, unit, precision)
    path = out or Path(f"{device.name}.yaml")
    write_device(fitted, path)
    left = f"\nleft out: {rows.left_out}" if rows.left_out else ""
    return f"{path}: unit {unit}, {precision} files: {validation.band}{left}"


def validate_measured(name: str, on: str, networks: str | None, *, unit: str, threads: int, cpus: str | None, keep: Path, out: Path | None) -> str:
    """Measure networks, write the device file with their checks; the file's name."""
    from mcompress.export.suite.networks import NETWORKS
    from mcompress.fitting import Wanted, validate_on, write_device

    device = load_device(name)
    chosen = tuple(part.strip() for part in networks.split(",")) if networks else NETWORKS
    wanted = Wanted(device.name, on, keep / f"device-{device.name}", unit, threads, parse_cpus(cpus))
    with Terminal() as reporter:
        checked, failed = validate_on(device, wanted, _told(reporter), chosen)
        for what, reason in failed.items():
            reporter.note(f"{what} could not be measured: {reason}")
    path = out or Path(name if name not in list_devices() else f"{device.name}.yaml")
    write_device(checked, path)
    return str(path)


def validation_rows(name: str, unit: str | None) -> list[dict[str, JsonValue]]:
    """One row per unit and precision of file that has been validated. Raises `UsageError` where nothing has."""
    device = load_device(name)
    units = [device.unit(unit)] if unit else list(device.units.values())
    rows = [_row(device, one.name, precision, checked) for one in units for precision, checked in one.validation.items()]
    if not rows:
        place = "host" if device.name == "host" else "adb, or ssh:HOST"
        which = f"{device.name} {unit}" if unit else device.name
        raise UsageError(f"{which} has not been validated; measure on it with: mcompress device validate {name} --on {place}")
    return rows


def validation_text(rows: Sequence[dict[str, JsonValue]]) -> str:
    """The rows as a table for a terminal, worst networks last."""
    lines = []
    for row in rows:
        summary, checks = row["summary"], row["checks"]
        if not isinstance(summary, dict) or not isinstance(checks, list):
            raise TypeError("rows of validation_rows have a summary and checks")
        rank = f", rank correlation {summary['rank_correlation']:.3f}" if isinstance(summary["rank_correlation"], float) else ""
        lines += [
            f"{row['device']} {row['unit']} {row['precision']}: {row['how']}, {summary['networks']} networks, {row['source']}",
            f"  error: median {_percent(summary['median'])}, mean {_percent(summary['mean'])}, largest {_percent(summary['largest'])}; within 10 %: "
            f"{_percent(summary['within_10'])}, 20 %: {_percent(summary['within_20'])}, 25 %: {_percent(summary['within_25'])} of them{rank}",
        ]
        lines += [
            f"  {c['network']:<36} {c['measured_ms']:>10.3f} ms {c['estimated_ms']:>10.3f} ms {c['error']:>+8.1%}"
            for c in checks
            if isinstance(c, dict)
        ]
    return "\n".join(lines)


def condition_of(text: str) -> tuple[str, str]:
    """`COLUMN=VALUE` as a pair. Raises `UsageError`."""
    column, found, value = text.partition("=")
    if not found or not column:
        raise UsageError(f"--where is {text!r}; give COLUMN=VALUE, for example --where 'device=RB5 (Proxy)'")
    return column, value


def _told(reporter: Terminal) -> Callable[[str, int, int], None]:
    """A progress line per title."""
    steps: dict[str, Step] = {}

    def told(title: str, done: int, total: int) -> None:
        if title not in steps:
            steps[title] = reporter.progress(title)
        steps[title](done, total, "")

    return told


def _row(device: Device, unit: str, precision: str, checked: Validation) -> dict[str, JsonValue]:
    source = device.sources[checked.source]
    checks: list[JsonValue] = [
        {"network": c.network, "measured_ms": c.measured_ms, "estimated_ms": c.estimated_ms, "error": c.error}
        for c in sorted(checked.checks, key=lambda c: abs(c.error))
    ]
    return {
        "device": device.name,
        "unit": unit,
        "precision": precision,
        "how": checked.how,
        "source": f"{source.text} ({source.runtime}, {source.date})",
        "summary": checked.summary.model_dump(mode="json"),
        "checks": checks,
    }


def _percent(share: JsonValue) -> str:
    return f"{share:.1%}".replace("%", " %") if isinstance(share, float) else f"{share}"
