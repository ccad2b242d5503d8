"""The command line. Each command parses, calls one function and prints; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mcompress.errors import MCompressError, UsageError

if TYPE_CHECKING:
    from mcompress.targets.schema import Target

app = typer.Typer(
    help="Compress and export mobile generative models: one YAML in, a verified bundle for the app team out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TargetArgument = Annotated[str, typer.Argument(metavar="TARGET", help="A target file, or the name of a shipped target (mcompress list targets).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the target, e.g. stages[0].steps=500. Repeatable.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where runs and the cache lie.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="The same path with tiny budgets, about a minute; the results mean nothing.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name from `mcompress list models`, package.module:function, or an .onnx or .tflite file.")
]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="[NAME=]SHAPE", help="Input shape; 1,3,128,128 for a network, a file has its own. Repeatable: one each."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
BenchmarkBinary = Annotated[
    Path | None,
    typer.Option("--benchmark-binary", metavar="PATH", help="LiteRT's benchmark_model, built for the phone (adb); or MCOMPRESS_BENCHMARK_MODEL."),
]


device_app = typer.Typer(help="Constants of devices: fit them to measurements, and say how far they are off.", no_args_is_help=True)
app.add_typer(device_app, name="device")

COLLECT_AFTER = 50_000, 10, 10
"""Python's thresholds for looking for garbage: exporters build graphs of millions of small objects that live on, and to walk through them after every
700 new ones was a tenth of a run."""


def main() -> None:
    """Entry point; the only place that catches our errors."""
    gc.set_threshold(*COLLECT_AFTER)
    logging.getLogger("mcompress").addHandler(logging.NullHandler())
    try:
        app()
    except MCompressError as error:
        from mcompress.console import LastingConsole

        console = LastingConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False)  # a path may hold what rich takes for an emoji, `:x:`
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), markup=False)
        raise SystemExit(error.exit_code) from error


@app.command()
def run(
    target: TargetArgument,
    set_: SetOption = None,
    out: OutOption = Path("runs"),
    quick: QuickOption = False,
    force: Annotated[list[str] | None, typer.Option("--force", metavar="STAGE", help="Compute this stage again. Repeatable.")] = None,
) -> None:
    """Search, prune, distill, quantize, export, verify, measure, bundle and report."""
    from mcompress.console import LastingConsole, Terminal
    from mcompress.pipeline import run as run_target
    from mcompress.reports.terminal import render

    with Terminal() as reporter:
        outcome = run_target(target, set_ or (), out=out, quick=quick, force=force or (), reporter=reporter)
    render(outcome.record, LastingConsole(highlight=False), folder=outcome.folder)
    outcome.raise_for_status()


@app.command()
def plan(
    target: TargetArgument, set_: SetOption = None, out: OutOption = Path("runs"), quick: QuickOption = False, json_: JsonOption = False
) -> None:
    """Check a target, and show what a run would do and what is cached."""
    from mcompress.pipeline import check_out, open_target
    from mcompress.previewing import preview

    check_out(out)
    loaded = open_target(target, set_ or ())
    found = preview(loaded.quick() if quick else loaded, out)
    for note in found.data_notes:
        typer.echo(f"data: {note}", err=True)
    if json_:
        typer.echo(json.dumps(found.rows, indent=2))
        return
    for row in found.rows:
        typer.echo(f"{row['step']:<12} {row['method']:<18} {row['state']}")


@app.command()
def show(target: TargetArgument, set_: SetOption = None, quick: QuickOption = False, json_: JsonOption = False) -> None:
    """Print a target with every default filled in."""
    from mcompress.targets.load import resolved_yaml

    loaded = _load(target, set_, quick=quick)
    typer.echo(loaded.model_dump_json(indent=2) if json_ else resolved_yaml(loaded), nl=json_)


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(metavar="models|devices|targets|stages|exporters")], json_: JsonOption = False) -> None:
    """List what there is."""
    from mcompress.listing import LISTS

    if what not in LISTS:
        raise UsageError(f"cannot list '{what}'; what can be listed: {', '.join(LISTS)}")
    rows = LISTS[what]()
    typer.echo(json.dumps(rows, indent=2) if json_ else "\n".join(f"{name:<22} {text}" for name, text in rows.items()))


@app.command()
def count(
    model: ModelArgument,
    input_: InputOption = None,
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="Arguments of the network, e.g. '{\"blocks\": 6}'.")] = "{}",
    json_: JsonOption = False,
) -> None:
    """Parameters, multiply-adds in both conventions, and activation memory of a network or a file."""
    from mcompress.estimating import count_model

    counted = count_model(model, input_ or (), args)
    typer.echo(json.dumps(counted.as_json()) if json_ else "\n".join(counted.lines()))


@app.command()
def estimate(
    model: ModelArgument,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="A device (mcompress list devices).")],
    unit: Annotated[str | None, typer.Option("--unit", metavar="UNIT", help="Compute unit; the device's preferred one.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", metavar="P", help="int8, w8a16, fp16 or fp32; a file has its own.")] = None,
    input_: InputOption = None,
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="Arguments of the network, e.g. '{\"blocks\": 6}'.")] = "{}",
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Show so many operators.")] = 10,
    json_: JsonOption = False,
) -> None:
    """Estimated latency of a network or a file on a device, with its error, and where the milliseconds go."""
    from mcompress.estimating import estimate_model

    estimated = estimate_model(model, device, unit, precision, inputs=input_ or (), args=args)
    typer.echo(json.dumps(estimated.as_json(top), indent=2) if json_ else "\n".join(estimated.lines(top)))


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    arm64: Annotated[bool, typer.Option("--arm64", help="Also its TFLite files on emulated Arm64, in the old runtime that apps carry.")] = False,
    json_: JsonOption = False,
) -> None:
    """Check a bundle's digests, execute its files, and compare them with its vectors."""
    from mcompress.listing import verify_rows

    emulated = []
    if arm64:
        from mcompress.export.arm64.verifying import verify_on_arm64

        emulated = verify_on_arm64(bundle)
    rows = [*verify_rows(bundle), *emulated]
    if json_:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            typer.echo(f"{row['verdict']:<14} {row['file']:<36} {row['detail']}")
    failed = list(dict.fromkeys(str(row["file"]) for row in rows if row["verdict"] == "FAIL"))
    if failed:
        from mcompress.errors import ParityError

        raise ParityError(
            f"{len(failed)} of {len({row['file'] for row in rows})} files do not compute what they should: {', '.join(failed)}. Which operator it is "
            "cannot be said without the network: `mcompress run TARGET --force export` on this machine compares each with PyTorch and names the first"
        )
    if not any(row["verdict"] == "PASS" for row in rows):
        from mcompress.errors import MissingBackendError

        raise MissingBackendError(f"none of the {len(rows)} files could be executed here; their digests are right, but nothing was computed")


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The new bundle, or the run folder that holds it.")],
    against: Annotated[Path, typer.Option("--against", metavar="BASELINE", help="The bundle to compare it with, or its run folder.")],
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the comparison as JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write it as a comment for a pull request.")] = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Execute the recommended files of both in turns on this machine.")] = True,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="Per pass and file; all ends within 25 s, with 6 within 50 s.")] = 3.0,
    json_: JsonOption = False,
) -> None:
    """Compare a bundle with a baseline; exit code 3 if it is slower, bigger or worse than the target's `gate` allows, or needs a new baseline."""
    from mcompress.checking import Outputs, as_json, raise_for_verdict
    from mcompress.checking import check as compare
    from mcompress.console import LastingConsole, Terminal
    from mcompress.reports.gate.table import render

    with Terminal() as reporter:
        compared = compare(bundle, against, seconds=seconds if measure else None, outputs=Outputs(junit, markdown), reporter=reporter)
    if json_:
        typer.echo(json.dumps(as_json(compared), indent=2))
    else:
        render(compared, LastingConsole(highlight=False))
    raise_for_verdict(compared)


@app.command()
def work(folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="The folder of a run in progress, runs/<target>-<digest>.")]) -> None:
    """Join the search of a run in progress, from another terminal or another machine that shares the disk."""
    from mcompress.console import Terminal
    from mcompress.joining import work as join

    with Terminal() as reporter:
        joined = join(folder, reporter=reporter)
    if joined.search_was_over:
        typer.echo(f"the search in {folder} is finished already; there is nothing to evaluate")
    else:
        typer.echo(f"the search is finished; this worker evaluated {joined.evaluated} of its {joined.wanted} candidates")


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write report.html of a run again and print its table."""
    from rich.console import Console

    from mcompress.reports.html import load_run, write_report
    from mcompress.reports.terminal import render

    render(load_run(folder), Console(highlight=False), folder=folder)
    typer.echo(f"report: {write_report(folder)}")


@app.command()
def profile(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or one .onnx, .tflite or .pte file.")],
    on: Annotated[str, typer.Option("--on", metavar="DEVICE", help="host, adb, adb:SERIAL, ssh:HOST or ssh:USER@HOST:PORT.")] = "host",
    file: Annotated[str | None, typer.Option("--file", metavar="NAME", help="Only this file of the bundle.")] = None,
    threads: Annotated[int, typer.Option("--threads", help="Threads of the runtime.")] = 1,
    cpus: Annotated[str | None, typer.Option("--cpus", metavar="0,1", help="Processors to pin to; the fastest where they differ.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="128 queries or a second instead of 1,024 queries or 60 s.")] = False,
    operators: Annotated[bool, typer.Option("--operators", help="Also the time of each operator, from the runtime's own profiler.")] = False,
    input_: InputOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the results there as JSON, after every file.")] = None,
    benchmark_binary: BenchmarkBinary = None,
    json_: JsonOption = False,
) -> None:
    """Measure a bundle's files on this machine, on a phone, or on a machine behind ssh."""
    from mcompress.profiling import run_command

    run_command(source, on, file, threads, cpus, input_, out, benchmark_binary, quick=quick, operators=operators, as_json=json_)


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """Say which backends work here, and what to install for the others."""
    from mcompress.listing import doctor_rows

    rows = doctor_rows()
    typer.echo(json.dumps(rows, indent=2) if json_ else "\n".join(f"{r['state']:<8} {r['name']:<14} {r['detail']}" for r in rows))
    broken = [r["name"] for r in rows if r["state"] != "ok"]
    if broken:
        sys.exit(4)


OnOption = Annotated[str | None, typer.Option("--on", metavar="PLACE", help="Measure there: host, adb[:SERIAL] or ssh:[USER@]HOST[:PORT].")]
DeviceOut = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The device file to write; DEVICE if that is a file, else NAME.yaml here.")
]
KEEP = Path("runs")
Processors = Annotated[str | None, typer.Option("--cpus", metavar="LIST", help="Processors to pin to, for example 4,5,6,7.")]


@device_app.command("fit")
def device_fit(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="A device or its alias, a device file, or a new name (with --on).")],
    on: OnOption = None,
    published: Annotated[Path | None, typer.Option("--published", metavar="CSV", help="Fit to published latencies of whole networks.")] = None,
    where: Annotated[list[str] | None, typer.Option("--where", metavar="COLUMN=VALUE", help="Rows of the CSV to take. Repeatable.")] = None,
    unit: Annotated[str, typer.Option("--unit", help="The unit whose constants are fitted.")] = "cpu",
    precision: Annotated[str | None, typer.Option("--precision", help="Of the published files: int8 (if left out), w8a16, fp16 or fp32.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the runtime; 1 if left out.")] = None,
    cpus: Processors = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.1, max=60, help="The longest that measuring may take; 10 if left out.")] = None,
    share: Annotated[float | None, typer.Option("--share", min=0.01, max=1, help="About this share of the suite; all if left out.")] = None,
    keep: Annotated[Path | None, typer.Option("--keep", metavar="DIR", help="Measurements are kept here (runs), and gone on from.")] = None,
    benchmark_binary: BenchmarkBinary = None,
    out: DeviceOut = None,
) -> None:
    """Fit a device's constants: to a suite that is measured on it, or to published latencies.

    A device that ships, or its alias (kona), keeps its facts and gets new speeds in NAME.yaml in the working directory: use that file as --device
    NAME.yaml, or device: NAME.yaml in a target. The file inside the package stays as it is. A file of your own is fitted again in place.
    """
    from mcompress.device_commands import Measuring, belongs_to, fit_measured, fit_to_published

    if (on is None) == (published is None):
        raise UsageError("give either --on PLACE, to measure a suite there, or --published CSV")
    if published is not None:
        measuring = {"--threads": threads, "--cpus": cpus, "--minutes": minutes, "--share": share, "--keep": keep}
        belongs_to({**measuring, "--benchmark-binary": benchmark_binary}, "--on, which measures", "leave it out with --published")
        typer.echo(fit_to_published(device, published, where or (), unit=unit, precision=precision or "int8", out=out))
    elif on is not None:
        belongs_to({"--where": where, "--precision": precision}, "--published", "leave it out with --on, which measures fp32 and int8 files")
        how = Measuring(on, unit, threads, cpus, keep or KEEP, benchmark_binary)
        typer.echo(fit_measured(device, how, minutes=minutes or 10.0, share=share or 1.0, out=out))


@device_app.command("validate")
def device_validate(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="A device or its alias, or a device file.")],
    on: OnOption = None,
    networks: Annotated[str | None, typer.Option("--networks", metavar="LIST", help="Networks to measure; eighteen if left out.")] = None,
    unit: Annotated[str | None, typer.Option("--unit", help="One unit only; with --on, the unit that is measured (cpu if left out).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the runtime; as the fit if left out.")] = None,
    cpus: Processors = None,
    keep: Annotated[Path | None, typer.Option("--keep", metavar="DIR", help="Where networks and measurements are kept; runs if left out.")] = None,
    benchmark_binary: BenchmarkBinary = None,
    out: DeviceOut = None,
    json_: JsonOption = False,
) -> None:
    """Say how far a device's estimates are off; with --on, measure networks that the fit did not see first, and keep the result in the file."""
    from mcompress.device_commands import Measuring, belongs_to, reproduced_lines, validate_measured
    from mcompress.unit_validations import unit_validations

    if on is None:
        measuring = {"--networks": networks, "--threads": threads, "--cpus": cpus, "--keep": keep}
        belongs_to({**measuring, "--benchmark-binary": benchmark_binary, "--out": out}, "--on, which measures", "add --on PLACE, or leave it out")
    how = None if on is None else Measuring(on, unit or "cpu", threads, cpus, keep or KEEP, benchmark_binary)
    checked = device if how is None else validate_measured(device, how, networks, out=out)
    found = unit_validations(checked, unit)
    if json_:
        typer.echo(json.dumps([one.as_json() for one in found], indent=2))
    else:
        typer.echo("\n".join(line for one in found for line in (*one.lines(), *reproduced_lines(one.device, one.unit, one.precision))))


def _load(target: str, overrides: list[str] | None, *, quick: bool) -> Target:
    from mcompress.targets.load import load_target

    loaded = load_target(Path(target), overrides or ())
    return loaded.quick() if quick else loaded


if __name__ == "__main__":
    main()
