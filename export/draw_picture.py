"""From a prompt and noise to a picture with the files of a bundle: what the three networks are given, in which order, and how often.

Needs numpy. This file is part of mcompress and is copied into the bundles of text to image.
"""

from __future__ import annotations

from math import isfinite
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mcompress.export.bundle_files import LOADERS, Refused, load
from mcompress.export.diffusion_steps import Consistency, consistency_steps, ddim, guided
from mcompress.export.draw_executorch import load_executorch
from mcompress.export.prompt_files import read_tokenizer
from mcompress.export.prompt_tokens import PromptError
from mcompress.export.replay import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mcompress.export.bundle_files import Execute
    from mcompress.export.diffusion_steps import Predict
    from mcompress.export.draw_bundle import DrawFile, Drawing, FileSet
    from mcompress.export.replay import Real

    Picture = NDArray[np.uint8]


class Prompt(NamedTuple):
    """Tokens (1, L) of a prompt, and of the empty one."""

    tokens: Real
    nothing: Real

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing: it is empty, or has blanks alone."""
        return bool(np.array_equal(self.tokens, self.nothing))


class Order(NamedTuple):
    """What is to be drawn."""

    prompt: Prompt
    noise: Real
    """(1 + further, C, h, w): what the picture begins with, then what is added on the way."""
    steps: int
    guidance: float


class Clock:
    """Calls of a component, and the seconds that they took."""

    def __init__(self) -> None:
        self.calls, self.seconds = 0, 0.0


class Painter:
    """The loaded files of a bundle."""

    def __init__(self, drawing: Drawing, files: FileSet, threads: int) -> None:
        """Raises `Refused` for files that are not those of the manifest or that the runtime does not take."""
        self._drawing = drawing
        loaders = {**LOADERS, "executorch": load_executorch}
        self._files = {name: (file, load(drawing.folder, file, threads, loaders)) for name, file in files.files.items()}
        self.clocks = {name: Clock() for name in drawing.names}
        """Component -> what it took for the last picture."""

    def draw(self, order: Order) -> Picture:
        """RGB (H, W, 3). Raises `Refused` for files that give NaN."""
        self.clocks = {name: Clock() for name in self._drawing.names}
        text_encoder, unet, decoder = self._drawing.names
        text = self._call(text_encoder, order.prompt.tokens)
        calls_twice = not self._drawing.takes_guidance and order.guidance != 1 and not order.prompt.is_empty
        nothing = self._call(text_encoder, order.prompt.nothing) if calls_twice else None
        scale = [np.array([order.guidance], np.float32)] if self._drawing.takes_guidance else []

        def predict(latents: Real, timestep: int) -> Real:
            at = np.array([timestep], np.float32)
            guidance = order.guidance if calls_twice else 1.0  # with the empty prompt both calls would give the same
            return guided(lambda states: self._call(unet, latents, at, states, *scale), text, nothing, guidance)

        latents = self._latents(predict, order)
        clipped = np.clip(latents, *self._drawing.data["latent_range"])
        picture = self._call(decoder, (clipped / np.float32(self._drawing.data["scaling_factor"])).astype(np.float32))
        if not np.isfinite(picture).all():
            raise Refused("the files gave NaN or infinity; verify the bundle with verify.py, and take other files with --backend and --variant")
        return self._pixels(picture[0])

    def _latents(self, predict: Predict, order: Order) -> Real:
        first, *further = (one[None] for one in order.noise)
        schedule, sampling = self._drawing.schedule, self._drawing.sampling
        if sampling["grid_steps"] is None or sampling["timestep_scaling"] is None:
            return ddim(predict, first, schedule, order.steps)
        fresh: Iterator[Real] = iter(further)
        consistency = Consistency(sampling["grid_steps"], sampling["timestep_scaling"])
        return consistency_steps(predict, first, lambda: next(fresh), schedule, consistency, order.steps)

    def _call(self, name: str, *values: Real) -> Real:
        """A component's output; `values` in the order that the manifest states."""
        (file, execute), clock = self._files[name], self.clocks[name]
        begun = perf_counter()
        made = run(file, execute, dict(zip(self._inputs(name), values)))  # noqa: B905  (Python 3.8)
        clock.calls, clock.seconds = clock.calls + 1, clock.seconds + perf_counter() - begun
        return made

    def _inputs(self, name: str) -> list[str]:
        return next(one["inputs"] for one in self._drawing.data["components"] if one["name"] == name)

    def _pixels(self, picture: Real) -> Picture:
        facts = self._drawing.data["picture"]
        share = (np.clip(picture, facts["low"], facts["high"]) - facts["low"]) / (facts["high"] - facts["low"])
        pixels: Picture = np.ascontiguousarray(np.moveaxis(np.rint(255 * share), 0, -1).astype(np.uint8))
        return pixels


def run(file: DrawFile, execute: Execute, values: dict[str, Real]) -> Real:
    """The output of a file in float32 and the network's own layout."""
    return decode(execute([encode(values[facts["name"]], facts) for facts in file["inputs"]]), file["outputs"][0])


def read_prompt(drawing: Drawing, prompt: str) -> Prompt:
    """Raises `Refused` for a prompt that has too many tokens, and for a tokenizer that is none."""
    told = drawing.data["tokenizer"]
    try:
        tokenizer = read_tokenizer(drawing.folder / told["folder"])
        texts = [np.array([tokenizer.tokens(text, told["longest"])], np.float32) for text in (prompt, "")]
    except PromptError as error:
        raise Refused(str(error)) from error
    return Prompt(*texts)


def noises(drawing: Drawing, steps: int) -> int:
    """How many noises a picture takes: one to begin with, and of consistency models one between each two steps."""
    return steps if drawing.takes_guidance else 1


def drawn_noise(drawing: Drawing, steps: int, seed: int) -> Real:
    """Standard normal, (1 + further, C, h, w); a seed always gives the same."""
    shape = (noises(drawing, steps), *drawing.data["latents"][1:])
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def read_noise(drawing: Drawing, steps: int, path: Path) -> Real:
    """The same from a .npy file, which may hold more. Raises `Refused`."""
    wanted = (noises(drawing, steps), *drawing.data["latents"][1:])
    try:
        noise = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Refused(f"noise '{path}' cannot be read ({error}); give a .npy file of shape {wanted}, as numpy.save writes it") from error
    if not isinstance(noise, np.ndarray) or noise.ndim != len(wanted) or noise.shape[0] < wanted[0] or noise.shape[1:] != wanted[1:]:
        raise Refused(f"noise '{path}' has shape {getattr(noise, 'shape', 'of several arrays')}; {steps} steps take {wanted}")
    if noise.dtype.kind != "f" or not np.isfinite(noise).all():
        raise Refused(f"noise '{path}' holds {noise.dtype} or values that are not finite; give finite float32 numbers")
    return np.ascontiguousarray(noise[: wanted[0]], np.float32)


def check_order(drawing: Drawing, steps: int, guidance: float) -> None:
    """Raises `Refused` for what cannot be drawn."""
    if not 1 <= steps <= drawing.most_steps:
        what = "the timesteps that the U-Net was trained on" if drawing.sampling["grid_steps"] is None else "the steps that it was distilled on"
        raise Refused(f"--steps is {steps}; it must be from 1 to {drawing.most_steps}, {what}")
    if not (isfinite(guidance) and guidance >= 1):
        raise Refused(f"--guidance is {guidance:g}; it must be a finite number from 1 on, of which 1 is none")
