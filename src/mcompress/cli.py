"""The command line. Each command parses, calls one function and prints; nothing heavy is imported before a command needs it."""

from __future__ import annotations

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
QuickOption = Annotated[bool, typer.Option("--quick", help="The same path with tiny budgets, under a minute; the results mean nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def main() -> None:
    """Entry point; the only place that catches our errors."""
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
    rows = preview(loaded.quick() if quick else loaded, out)
    if json_:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `mcompress list models`, or package.module:function.")],
    input_: Annotated[str, typer.Option("--input", metavar="SHAPE", help="Input shape, e.g. 1,3,128,128.")] = "1,3,128,128",
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="Arguments of the model, e.g. '{\"blocks\": 6}'.")] = "{}",
    json_: JsonOption = False,
) -> None:
    """Parameters, multiply-adds in both conventions, and activation memory of a model."""
    from mcompress.listing import count_model

    counted = count_model(model, input_, args)
    if json_:
        typer.echo(json.dumps(counted))
        return
    labels = {
        "params": "parameters",
        "macs": "multiply-adds, exact work",
        "macs_output_convention": "multiply-adds, output-size convention",
        "peak_activation_bytes": "peak live activations, bytes (fp32)",
        "activation_traffic_bytes": "activation traffic, bytes (fp32)",
    }
    for key, label in labels.items():
        typer.echo(f"{label:<40} {counted[key]:>20,}")


@app.command()
def verify(bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")], json_: JsonOption = False) -> None:
    """Check a bundle's digests, execute its files, and compare them with its vectors."""
    from mcompress.listing import verify_rows

    rows = verify_rows(bundle)
    if json_:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            typer.echo(f"{row['verdict']:<14} {row['file']:<36} {row['detail']}")
    failed = [str(row["file"]) for row in rows if row["verdict"] == "FAIL"]
    if failed:
        from mcompress.errors import ParityError

        raise ParityError(f"{len(failed)} of {len(rows)} files do not compute what they should: {', '.join(failed)}")
    if not any(row["verdict"] == "PASS" for row in rows):
        from mcompress.errors import MissingBackendError

        raise MissingBackendError(f"none of the {len(rows)} files could be executed here; their digests are right, but nothing was computed")


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
def doctor(json_: JsonOption = False) -> None:
    """Say which backends work here, and what to install for the others."""
    from mcompress.listing import doctor_rows

    rows = doctor_rows()
    typer.echo(json.dumps(rows, indent=2) if json_ else "\n".join(f"{r['state']:<8} {r['name']:<14} {r['detail']}" for r in rows))
    broken = [r["name"] for r in rows if r["state"] != "ok"]
    if broken:
        sys.exit(4)


def _load(target: str, overrides: list[str] | None, *, quick: bool) -> Target:
    from mcompress.targets.load import load_target

    loaded = load_target(Path(target), overrides or ())
    return loaded.quick() if quick else loaded


if __name__ == "__main__":
    main()
