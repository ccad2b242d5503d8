"""Draws what a prompt says, with the files of this bundle, and writes a PNG.

    python BUNDLE/draw.py --prompt "a red striped circle at the top left" --out picture.png
    python BUNDLE/draw.py --check            (do the files draw what PyTorch draws?)

Needs numpy and the files' runtime: onnxruntime, ai-edge-litert (or tflite-runtime), or executorch, which brings torch along. Exit code 0: the
picture was written, or what could be executed draws what it must; 1: the check failed; 2: something cannot be used, and the message says what to do.

This file is part of mcompress (`mcompress.export.draw`) and is copied into the bundles of text to image, so in them it imports what lies beside it.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # a bundle holds what its manifest lists, and nothing else
    if not __package__ and str(Path(__file__).resolve().parent) not in sys.path:
        sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I and PYTHONSAFEPATH leave the script's folder out
    if find_spec("numpy") is None:  # what is imported below needs it
        sys.stderr.write("numpy is needed and not installed; pip install numpy\n")
        sys.exit(2)

from mcompress.export.bundle_files import Refused
from mcompress.export.draw_bundle import ABLE, VARIANTS, choose, read_bundle
from mcompress.export.draw_check import check_pictures
from mcompress.export.draw_picture import Order, Painter, check_order, drawn_noise, read_noise, read_prompt
from mcompress.export.draw_png import write_png
from mcompress.export.replay import check_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mcompress.export.draw_bundle import Drawing
    from mcompress.export.draw_picture import Prompt


class Options(NamedTuple):
    """The command line."""

    prompt: str | None
    out: Path | None
    seed: int
    steps: int | None
    guidance: float | None
    backend: str | None
    variant: str | None
    noise: Path | None
    threads: int
    check: bool


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Draw and say what was done. Left out, `arguments` are those of the command line, and `folder` is the bundle that holds this file."""
    options = _options(arguments)
    bundle = Path(__file__).resolve().parent if folder is None else folder
    try:
        if options.check:
            return _check(options, bundle)
        for line in _draw(options, bundle):
            sys.stdout.write(f"{line}\n")
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f"a package cannot be imported ({error}); install it again\n")
        return 2
    return 0


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Draws what a prompt says.")
    parser.add_argument("--prompt", help='what is to be drawn; "" draws without a caption')
    parser.add_argument("--out", type=Path, help="the picture to write, .png")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that the picture begins with; 0 if left out")
    parser.add_argument("--steps", type=int, help="calls of the U-Net, or with guidance pairs of calls; left out, what the bundle was made for")
    parser.add_argument("--guidance", type=float, help="how much the prompt weighs, from 1 on, which is none; left out, what the bundle was made for")
    parser.add_argument("--backend", choices=sorted(ABLE), help="left out, the fastest recommended one whose runtime is installed")
    parser.add_argument("--variant", choices=VARIANTS, help="float or mixed files; left out, what is recommended")
    parser.add_argument("--noise", type=Path, help="a .npy file to begin with, in place of --seed")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime; 1 if left out. ExecuTorch chooses itself")
    parser.add_argument("--check", action="store_true", help="draw the bundle's own prompt with each set of files, and compare with PyTorch")
    given = Options(**vars(parser.parse_args(arguments)))
    for name in ("prompt", "out"):
        if given.check != (getattr(given, name) is None):
            parser.error(f"--check takes no --{name}; the bundle has its own" if given.check else f"--{name} is needed")
    for name in ("steps", "guidance", "noise"):
        if given.check and getattr(given, name) is not None:
            parser.error(f"--check takes no --{name}; the bundle has its own")
    if given.threads < 1 or given.seed < 0:
        parser.error(f"--threads is {given.threads} and --seed {given.seed}; threads must be at least 1, and the seed at least 0")
    return given


def _draw(options: Options, folder: Path) -> list[str]:
    """Write the picture; the lines that say what was done. Raises `Refused`."""
    if options.prompt is None or options.out is None:
        raise Refused("--prompt and --out are needed")
    _check_out(options.out, folder)
    drawing = read_bundle(folder)
    steps = drawing.sampling["steps"] if options.steps is None else options.steps
    guidance = drawing.sampling["guidance"] if options.guidance is None else options.guidance
    check_order(drawing, steps, guidance)
    prompt = read_prompt(drawing, options.prompt)
    noise = drawn_noise(drawing, steps, options.seed) if options.noise is None else read_noise(drawing, steps, options.noise)
    files, notes = choose(drawing, options.backend, options.variant)
    painter = Painter(drawing, files, options.threads)
    picture = painter.draw(Order(prompt, noise, steps, guidance))
    try:
        write_png(options.out, picture)
    except OSError as error:
        raise Refused(f"'{options.out}' cannot be written ({error}); look at the space and the permissions of its folder") from error
    begun = f"seed {options.seed}" if options.noise is None else f"noise of {options.noise.name}"
    return [
        *(f"note: {note}" for note in (*notes, *_unusual(drawing, prompt, steps, guidance))),
        f"{options.out}: {picture.shape[1]}x{picture.shape[0]} pixels, {steps} step{'s' if steps > 1 else ''} of {drawing.sampling['method']}, "
        f"guidance {guidance:g}, {begun}, by {files.shown}",
        *_times(painter, files.backend, options.threads),
    ]


def _unusual(drawing: Drawing, prompt: Prompt, steps: int, guidance: float) -> Iterator[str]:
    if prompt.is_empty:
        yield f"the prompt is empty, so the picture is drawn without a caption{'' if drawing.takes_guidance else ', and guidance has no effect'}"
    made_for = drawing.sampling["steps"]
    if steps != made_for:
        yield f"{steps} step{'s' if steps > 1 else ''}, and the U-Net was made for {made_for}, with which it was judged"
    low, high = drawing.guidance_range
    if not low <= guidance <= high:
        yield f"guidance {guidance:g} is outside of {low:g} to {high:g}, which the U-Net was taught; what it draws then was never judged"


def _times(painter: Painter, backend: str, threads: int) -> list[str]:
    """What each component took."""
    lines = [
        f"{name}: {clock.calls} call{'s' if clock.calls > 1 else ''}, {1000 * clock.seconds:.1f} ms, {1000 * clock.seconds / clock.calls:.2f} ms each"
        for name, clock in painter.clocks.items()
    ]
    whole = sum(clock.seconds for clock in painter.clocks.values())
    many = "as many threads as ExecuTorch chooses" if backend == "executorch" else f"{threads} thread{'s' if threads > 1 else ''}"
    here = f"{many}, {platform.machine()}, {platform.system()}"
    return [*lines, f"together {1000 * whole:.1f} ms ({here}), which says nothing of another machine"]


def _check_out(out: Path, folder: Path) -> None:
    if out.suffix.lower() != ".png":
        raise Refused(f"--out is '{out}'; the picture is a PNG, so its name must end in .png")
    if not out.parent.is_dir() or out.is_dir():
        raise Refused(f"--out is '{out}', which is a folder or in one that does not exist; give a file in a folder that does")
    if folder.resolve() in out.resolve().parents:
        raise Refused(f"--out is '{out}', inside the bundle, which holds what its manifest lists and nothing else; write elsewhere")


def _check(options: Options, folder: Path) -> int:
    """Compare, and say what was found; the exit code."""
    _, problems = check_bundle(folder)
    if problems:
        raise Refused("\n".join(problem.message for problem in problems))
    results = check_pictures(folder, options.threads, options.backend, options.variant)
    sys.stdout.write("".join(f"{result.verdict}  {result.file}: {result.detail}\n" for result in results))
    executed = sum(result.status != "not executed" for result in results)
    passed = executed > 0 and all(result.status != "failed" for result in results)
    sys.stdout.write(f"{'PASS' if passed else 'FAIL'}  {executed} of {len(results)} sets of files drew\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
