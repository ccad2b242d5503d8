"""From a target to the task of one network of a text-to-image model: the original, embedded or from a folder, and the captioned pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import file_digest, sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mcompress.compress.diffusion import NoiseSchedule
from mcompress.compress.models.diffusers_folder import DiffusersFolder, FolderPart, read_diffusers_folder
from mcompress.compress.models.hugging_face import class_of
from mcompress.compress.models.spec import Sampling
from mcompress.compress.tasks.task import Task
from mcompress.compress.tasks.text_to_image.data import Captioned, held_out_scenes, training_scenes
from mcompress.compress.tasks.text_to_image.decoding import Decoding
from mcompress.compress.tasks.text_to_image.judge import embedded_judge
from mcompress.compress.tasks.text_to_image.likeness import AttributeAccuracy
from mcompress.compress.tasks.text_to_image.original import Original, Part
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.compress.tasks.text_to_image.text_encoding import TextEncoding
from mcompress.errors import PlanError
from mcompress.targets.schema import Target

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def component_task(target: Target) -> Task:
    """The task of the target's component. Raises `PlanError` for an original or data that cannot be used."""
    original = _original(target)
    config = target.model.sampling
    sampling = Sampling(original.prediction, config.steps, config.guidance)
    training, held_out = training_scenes(), held_out_scenes()
    if target.model.component == "decoder":
        return Decoding(original, _different(training), held_out.captions, sampling)
    if target.model.component == "text_encoder":
        return TextEncoding(original, _different(training), held_out.captions)
    return TextToImage(original, training, held_out, AttributeAccuracy(embedded_judge()), sampling)


def _different(pictures: Captioned) -> Sequence[str]:
    return tuple(dict.fromkeys(pictures.captions))


def _original(target: Target) -> Original:
    teacher = target.model.teacher
    if teacher.network == "embedded":
        return embedded_original()
    if teacher.network != "diffusers" or teacher.checkpoint is None:
        raise PlanError(
            [
                f"model.teacher.network is '{teacher.network}'; of text to image give the folder of a whole model as model.teacher.checkpoint, as "
                "diffusers saves it, or leave the teacher out for the embedded one"
            ]
        )
    return _loaded(teacher.checkpoint, _state(teacher.checkpoint))


def embedded_original() -> Original:
    """The small one that ships; of it there is nothing to note."""
    folder = Path(str(files(__package__).joinpath("embedded")))
    return replace(_loaded(folder, _state(folder)), notes=())


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Of the files in it, so that what was read is read again when one was changed."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found)


@lru_cache(maxsize=1)
def _loaded(folder: Path, _state: tuple[tuple[str, int, int], ...]) -> Original:
    """Kept, because the tasks of all three networks need all of it."""
    return original_of(read_diffusers_folder(folder))


def original_of(found: DiffusersFolder) -> Original:
    """With its weights in memory, float32. Raises `CheckpointError`."""
    kind = cast("type[CLIPTokenizer]", class_of("transformers", "CLIPTokenizer"))
    tokenizer = kind.from_pretrained(found.tokenizer_folder, local_files_only=True)
    return Original(
        unet=_part(found.unet),
        decoder=_part(found.decoder),
        text_encoder=_part(found.text_encoder),
        autoencoder=found.load_autoencoder(),
        tokenizer=tokenizer,
        tokenizer_folder=found.tokenizer_folder,
        schedule=NoiseSchedule(found.scheduler.settings),
        prediction=found.scheduler.prediction,
        scaling=found.scaling_factor,
        longest=found.longest,
        latents=found.latents,
        enlarged=found.pixels_per_latent,
        digest=_digest(found),
        notes=found.notes,
    )


def _part(found: FolderPart) -> Part:
    return Part(found.network, dict(found.args), found.load())


def _digest(found: DiffusersFolder) -> str:
    sha = sha256()
    for path in found.files:
        with path.open("rb") as file:
            sha.update(path.relative_to(found.folder).as_posix().encode() + file_digest(file, "sha256").digest())
    return sha.hexdigest()
