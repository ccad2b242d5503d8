"""From a target to the task of one network of a text-to-image model: the original, embedded or from a folder, and the captioned pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from mcompress.compress.tasks.text_to_image.caption_files import limited, shortened
from mcompress.compress.tasks.text_to_image.data import Captioned, ResizedScenes, held_out_scenes, training_scenes
from mcompress.compress.tasks.text_to_image.decoding import Decoding
from mcompress.compress.tasks.text_to_image.drawing import SIDE
from mcompress.compress.tasks.text_to_image.folders import FolderPictures, captioned_folder
from mcompress.compress.tasks.text_to_image.judge import embedded_judge
from mcompress.compress.tasks.text_to_image.likeness import AttributeAccuracy, LikenessToOriginal, PictureQuality
from mcompress.compress.tasks.text_to_image.original import Original, Part
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.compress.tasks.text_to_image.text_encoding import TextEncoding
from mcompress.errors import PlanError, Problems
from mcompress.targets.schema import Target

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def component_task(target: Target) -> Task:
    """The task of the target's component. Raises `PlanError` for an original or data that cannot be used."""
    original = _original(target)
    config = target.model.sampling
    _check_steps(config.steps, original)
    sampling = Sampling(original.prediction, config.steps, config.guidance)
    data = _data(target, original)
    original = replace(original, notes=(*original.notes, *data.notes))
    training, held_out = data.training, data.held_out
    if target.model.component == "decoder":
        return Decoding(original, _different(training), held_out.captions, sampling)
    if target.model.component == "text_encoder":
        return TextEncoding(original, _different(training), held_out.captions)
    return TextToImage(original, training, held_out, data.judged, sampling)


@dataclass(frozen=True)
class _Data:
    training: Captioned
    held_out: Captioned
    judged: PictureQuality
    notes: tuple[str, ...] = ()


def _data(target: Target, original: Original) -> _Data:
    """The embedded scenes, or the folders of a user's own pictures, whose truths are the original's. Raises `PlanError`."""
    found = _of_folders(target, original) if target.data.training is not None else _of_scenes(original)
    problems = Problems()
    if isinstance(found.training, FolderPictures) and isinstance(found.held_out, FolderPictures):
        problems.add(*_too_long(original, found.training, "data.training"), *_too_long(original, found.held_out, "data.held_out"))
    else:
        problems.add(*_scenes_too_long(original, (*found.training.captions, *found.held_out.captions)))
    if problems.found:
        raise PlanError(problems.found)
    return found


def _of_folders(target: Target, original: Original) -> _Data:
    size, problems, config = _drawn_size(original), Problems(), target.data
    if config.training is None or config.held_out is None:
        raise TypeError("a target has both folders or none")
    training, held_out = config.training, config.held_out
    one = problems.of(lambda: captioned_folder(training, "data.training", size))
    other = problems.of(lambda: captioned_folder(held_out, "data.held_out", size))
    if one is None or other is None:
        raise PlanError(problems.found)
    return _Data(one.pictures, other.pictures, LikenessToOriginal(), (*one.notes, *other.notes))


def _of_scenes(original: Original) -> _Data:
    size, training, held_out = _drawn_size(original), training_scenes(), held_out_scenes()
    if size == (SIDE, SIDE):
        return _Data(training, held_out, AttributeAccuracy(embedded_judge()))
    note = (
        f"data: the embedded scenes have {SIDE}x{SIDE} pixels and are resized to the {size[1]}x{size[0]} that the original draws; it was made for "
        "other pictures than these, and likeness to it is all that is judged. Give data.training and data.held_out"
    )
    return _Data(ResizedScenes(training, size), ResizedScenes(held_out, size), LikenessToOriginal(), (note,))


def _drawn_size(original: Original) -> tuple[int, int]:
    """Height and width of the original's pictures."""
    _, _, height, width = original.latents
    return height * original.enlarged, width * original.enlarged


def _too_long(original: Original, pictures: FolderPictures, place: str) -> list[str]:
    """Captions that the text encoder does not take, each with the words that are over."""
    problems = []
    for path, caption, count in zip(pictures.files, pictures.captions, original.token_counts(pictures.captions), strict=True):
        if count > original.longest:
            words = caption.split()
            beginnings = [" ".join(words[:end]) for end in range(1, min(len(words), original.longest) + 1)]
            fitting = sum(one <= original.longest for one in original.token_counts(beginnings))
            problems.append(
                f"{place}: the caption of '{path.name}' has {count} tokens, and the text encoder takes {original.longest}, start and end among them; "
                f"over are '{shortened(' '.join(words[fitting:]))}' of '{shortened(caption)}'. Shorten it"
            )
    return limited(problems, place)


def _scenes_too_long(original: Original, captions: Sequence[str]) -> list[str]:
    """The same of the embedded captions, which nobody can shorten."""
    different = sorted(set(captions))
    most, longest = max(zip(original.token_counts(different), different, strict=True))
    if most <= original.longest:
        return []
    return [
        f"data: the embedded caption '{longest}' has {most} tokens, and the text encoder takes {original.longest}, start and end among them; give "
        "pictures with captions of your own as data.training and data.held_out"
    ]


def _check_steps(steps: int, original: Original) -> None:
    most = original.schedule.settings.num_train_timesteps
    if steps > most:
        raise PlanError([f"model.sampling.steps is {steps}, and the original's noise schedule has {most} timesteps; at most so many are possible"])


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
    """With its weights in memory, float32. Raises `CheckpointError`, and `PlanError` for a latent consistency model."""
    if found.takes_guidance:
        raise PlanError(
            [
                "model.teacher.checkpoint: the U-Net takes the scale of guidance as an input (time_cond_proj_dim in unet/config.json), as latent "
                "consistency models do; the original must be one that is called with and without the caption. Give the folder of the model that it "
                "was made from, and {stage: distill, method: consistency}"
            ]
        )
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
