"""What the manifest states about text to image beyond its files: its components, its tokenizer, its steps, and a whole picture to check them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mcompress.errors import ExportError
from mcompress.export.bundle_files import Refused
from mcompress.export.diffusion_steps import Schedule
from mcompress.export.draw_bundle import ABLE, DrawFile, DrawingData, FileSet, file_sets, is_ready
from mcompress.export.draw_bundle import Drawing as PlainDrawing
from mcompress.export.draw_check import check_order_of, psnr_db
from mcompress.export.draw_picture import Painter
from mcompress.export.manifest import ModelFile
from mcompress.export.manifest_drawing import (
    DECODER,
    TEXT_ENCODER,
    UNET,
    CalledComponent,
    Drawing,
    DrawnPicture,
    NoiseSettings,
    PictureFacts,
    References,
    SamplingSettings,
    TokenizerFiles,
    WholePicture,
)
from mcompress.export.prompt_files import ADDED, CONFIG, MERGES, SPECIAL, VOCABULARY, WHOLE
from mcompress.export.stated import sides_of
from mcompress.record import HIGHEST_DB

if TYPE_CHECKING:
    from mcompress.compress.models.spec import Sampling
    from mcompress.export.replay import Real

FLOAT_DB = 35.0
"""Files whose operators are all float must draw each picture at least so like PyTorch."""
MIXED_SLACK_DB = 3.0
"""Another machine rounds other values up: then the error is another one, and of twice its power at most where both are as good."""
TIMESTEP_SCALING = 10.0
"""Of diffusers' `LCMScheduler`, with which consistency models are taught and sampled."""
TOKENIZER = "tokenizer"
REFERENCES = References(tokens="prompt_files.py", steps="diffusion_steps.py", pictures="draw_picture.py", check="draw_check.py")
NOISE, PICTURE = "vectors/whole-picture.noise.npy", "vectors/whole-picture.pytorch.npy"


@dataclass(frozen=True)
class DrawingFacts:
    """What is known of drawing beside the files: the original's tokenizer and noise, the final U-Net's sampling, and a picture that PyTorch drew."""

    tokenizer_folder: Path
    longest: int
    """Tokens of a text with its start and end."""
    schedule: Schedule
    """With what the final U-Net predicts."""
    sampling: Sampling
    timesteps: tuple[int, ...]
    """At which the U-Net is called, the noisiest first."""
    latents: tuple[int, ...]
    """(1, C, h, w)."""
    latent_range: tuple[float, float]
    """To which latents are clipped for the decoder."""
    scaling: float
    """The decoder takes the clipped latents divided by it."""
    prompt: str
    noise: Real
    """(1 + further, C, h, w)."""
    picture: NDArray[np.uint8]
    """What the compressed networks draw of both in PyTorch, before quantization: RGB (H, W, 3)."""


def drawing_of(facts: DrawingFacts, files: Sequence[ModelFile], bundle: Path) -> Drawing:
    """The section of the manifest; the tokenizer's files, the noise and all pictures are in `bundle` then, in which `files` are already.

    Every set of files whose runtime is here draws its picture with the script that ships. Raises `ExportError` for files or facts that do not fit.
    """
    if facts.latents[0] != 1 or facts.picture.shape[2:] != (3,) or prod(facts.noise.shape[1:]) != prod(facts.latents[1:]):
        shapes = f"latents {facts.latents}, noise {facts.noise.shape} and a picture {facts.picture.shape}"
        raise ExportError(f"a bundle draws one RGB picture at a time; it was given {shapes}")
    tokenizer = _tokenizer(facts, bundle)
    vectors = bundle / "vectors"
    vectors.mkdir(exist_ok=True)
    np.save(bundle / NOISE, np.ascontiguousarray(facts.noise, np.float32), allow_pickle=False)
    np.save(bundle / PICTURE, np.ascontiguousarray(facts.picture), allow_pickle=False)
    sampling = _sampling(facts)
    drawing = Drawing(
        components=_components(files, sampling),
        tokenizer=tokenizer,
        schedule=NoiseSettings.model_validate({name: getattr(facts.schedule, name) for name in NoiseSettings.model_fields}),
        sampling=sampling,
        latents=facts.latents,
        latent_range=facts.latent_range,
        scaling_factor=facts.scaling,
        picture=_picture(files),
        references=REFERENCES,
        check=WholePicture(prompt=facts.prompt, noise=NOISE, picture=PICTURE, drawn=()),
    )
    plain = _plain(drawing, files, bundle)
    drawn = tuple(_drawn(plain, one, facts, bundle) for one in file_sets(plain))
    return drawing.model_copy(update={"check": drawing.check.model_copy(update={"drawn": drawn})})


def _tokenizer(facts: DrawingFacts, bundle: Path) -> TokenizerFiles:
    folder = bundle / TOKENIZER
    folder.mkdir()
    whole = not (facts.tokenizer_folder / VOCABULARY).is_file()
    names = [CONFIG, WHOLE] if whole else [CONFIG, VOCABULARY, MERGES]
    if not whole and (facts.tokenizer_folder / ADDED).is_file():
        names.append(ADDED)
    if (facts.tokenizer_folder / SPECIAL).is_file():
        names.append(SPECIAL)  # with other special tokens than the configuration's, as in Stable Diffusion 2.x
    try:
        for name in names:
            shutil.copyfile(facts.tokenizer_folder / name, folder / name)
    except FileNotFoundError as error:
        raise ExportError(f"the tokenizer cannot be put into the bundle: {error.filename} is missing; give the folder of the whole model") from error
    return TokenizerFiles(folder=TOKENIZER, files=tuple(f"{TOKENIZER}/{name}" for name in names), longest=facts.longest)


def _sampling(facts: DrawingFacts) -> SamplingSettings:
    sampling, is_lcm = facts.sampling, facts.sampling.method == "lcm"
    return SamplingSettings(
        method=sampling.method,
        prediction=sampling.prediction,
        steps=sampling.steps,
        timesteps=facts.timesteps,
        guidance=sampling.guidance,
        guidance_by="input" if is_lcm else "none" if sampling.guidance == 1 else "two calls",
        grid_steps=sampling.grid_steps if is_lcm else None,
        timestep_scaling=TIMESTEP_SCALING if is_lcm else None,
    )


def _components(files: Sequence[ModelFile], sampling: SamplingSettings) -> tuple[CalledComponent, ...]:
    twice = 2 if sampling.guidance_by == "two calls" else 1
    per: Literal["step", "step and text"] = "step and text" if twice == 2 else "step"
    return (
        CalledComponent(name="text_encoder", per="text", calls=twice, **_ports(files, TEXT_ENCODER)),
        CalledComponent(name="unet", per=per, calls=twice * sampling.steps, **_ports(files, UNET)),
        CalledComponent(name="decoder", per="picture", calls=1, **_ports(files, DECODER)),
    )


def _ports(files: Sequence[ModelFile], component: str) -> dict[str, tuple[str, ...]]:
    file = _first(files, component)
    return {"inputs": tuple(one.name for one in file.inputs), "outputs": tuple(one.name for one in file.outputs)}


def _picture(files: Sequence[ModelFile]) -> PictureFacts:
    gave = _first(files, DECODER).outputs[0]
    height, width = sides_of(gave)
    low, high = gave.value_range
    return PictureFacts(height=height, width=width, low=low, high=high)


def _first(files: Sequence[ModelFile], component: str) -> ModelFile:
    found = next((file for file in files if file.component == component), None)
    if found is None:
        held = ", ".join(f"{file.path} ({file.component})" for file in files)
        raise ExportError(f"there is no file of the {component} in the bundle, without which nothing is drawn; it was given {held}")
    return found


def _plain(drawing: Drawing, files: Sequence[ModelFile], bundle: Path) -> PlainDrawing:
    """The same as `draw.py` reads it."""
    plain = [cast("DrawFile", file.model_dump(mode="json")) for file in files]
    return PlainDrawing(bundle, plain, cast("DrawingData", drawing.model_dump(mode="json")))


def _drawn(drawing: PlainDrawing, files: FileSet, facts: DrawingFacts, bundle: Path) -> DrawnPicture:
    variant: Literal["float", "mixed"] = "float" if files.variant == "float" else "mixed"
    if files.backend not in ABLE:
        basis = f"draw.py does not run {files.backend} files, so these were not drawn with it"
        return DrawnPicture(backend=files.backend, variant=variant, picture=None, psnr_db=None, least_db=None, basis=basis)
    if not is_ready(files.backend):
        least = FLOAT_DB if variant == "float" else None
        basis = "the limit of float files" if variant == "float" else "not drawn where the bundle was made, for the runtime was not installed"
        return DrawnPicture(backend=files.backend, variant=variant, picture=None, psnr_db=None, least_db=least, basis=basis)
    try:
        picture = Painter(drawing, files, threads=1).draw(check_order_of(drawing))
    except (Refused, RuntimeError, ValueError) as error:
        raise ExportError(f"the {files.name} files cannot draw a whole picture: {error}") from error
    if picture.shape != facts.picture.shape:
        raise ExportError(f"the {files.name} files draw a picture of shape {picture.shape}; PyTorch draws one of {facts.picture.shape}")
    path = f"vectors/whole-picture.{files.backend}-{variant}.npy"
    np.save(bundle / path, picture, allow_pickle=False)
    found = min(psnr_db(picture, facts.picture), HIGHEST_DB)
    least, basis = FLOAT_DB, "the limit of float files"
    if variant == "mixed":
        least, basis = found - MIXED_SLACK_DB, f"{found:.1f} dB where the bundle was made, less {MIXED_SLACK_DB:g} dB"
        if found > FLOAT_DB + MIXED_SLACK_DB:
            least, basis = FLOAT_DB, "the limit of float files, which these reach"
    return DrawnPicture(backend=files.backend, variant=variant, picture=path, psnr_db=round(found, 3), least_db=round(least, 3), basis=basis)
