"""Which parts a diffusers folder says that it has, and its tokenizer's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mcompress.compress.models.diffusers_folder.fields import Config, Fields
from mcompress.compress.models.diffusers_folder.networks import TEXT, UNET, VAE
from mcompress.errors import PlanError

INDEX = "model_index.json"
PARTS: dict[str, tuple[str, ...]] = {"unet": (UNET,), "vae": (VAE,), "text_encoder": (TEXT,), "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast")}
"""Sub-folders -> the classes that they may be of; both tokenizers have the same files."""
SCHEDULER = "scheduler"
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that nothing here needs."""
SECOND = "text_encoder_2"
VOCABULARY, MERGES, WHOLE = "vocab.json", "merges.txt", "tokenizer.json"
"""The last one holds what both others hold."""


@dataclass(frozen=True)
class TokenizerFacts:
    """The largest number of a token; tokens of a text, None where the tokenizer does not say."""

    largest: int
    longest: int | None


def check_pipeline(folder: Path) -> tuple[str, ...]:
    """What is left out of the pipeline, as notes. Raises `PlanError` for a folder that is no pipeline, lacks a part, or has others than are known."""
    if not folder.is_dir():
        seen = "is a file" if folder.is_file() else "does not exist"
        single = "" if not folder.is_file() else ": one file with all weights becomes a folder by diffusers' from_single_file and save_pretrained"
        raise PlanError([f"{folder} {seen}; a diffusers folder is needed, with {INDEX} and a sub-folder for each part{single}"])
    if not (folder / INDEX).is_file():
        part = ", and looks like one part of a pipeline: give the folder above it" if (folder / "config.json").is_file() else ""
        raise PlanError([f"{folder} has no {INDEX}{part or '; give the folder that diffusers saved the pipeline in, whole'}"])
    index = Fields(folder / INDEX)
    has = {name: _class_of(value) for name, value in index.values.items() if isinstance(value, list)}
    for name, allowed in PARTS.items():
        told = has.get(name)
        if told is None or not (folder / name).is_dir():
            where = "it lists none" if told is None else f"there is no folder '{folder / name}'"
            index.refuse(f"{name} is missing, {where}; it must be of class {allowed[0]}: download or copy the whole folder")
        elif told not in allowed:
            index.refuse(f"{name} is of class {told}; only {allowed[0]} is taken: give a pipeline like Stable Diffusion 1 or 2")
    if has.get(SCHEDULER) is None or not (folder / SCHEDULER).is_dir():
        index.refuse(
            f"{SCHEDULER} is missing, and without it the noise that the network was trained with is not known: download or copy the whole folder"
        )
    if has.get(SECOND) is not None:
        index.refuse(
            f"{SECOND} is of class {has[SECOND]}: two text encoders, as Stable Diffusion XL has; one is taken: "
            "give a pipeline like Stable Diffusion 1 or 2"
        )
    known = (*PARTS, SCHEDULER, SECOND, "tokenizer_2", *UNUSED)
    for name, told in has.items():
        if name not in known and told is not None:
            index.refuse(f"{name} is of class {told}, which pictures from text alone do not need; give a pipeline without it")
    index.finish()
    left_out = [name for name in UNUSED if has.get(name) is not None]
    return (f"{index.path}: left out {', '.join(left_out)}, which make no picture",) if left_out else ()


def present(folder: Path) -> tuple[str, ...]:
    """Parts whose own files can be looked at, whatever else is wrong."""
    try:
        index = Fields(folder / INDEX).values
    except PlanError:
        return ()
    classes = {**PARTS, SCHEDULER: None}
    return tuple(name for name, allowed in classes.items() if (folder / name).is_dir() and _taken(index, name, allowed))


def _taken(index: Config, name: str, allowed: tuple[str, ...] | None) -> bool:
    told = _class_of(index.get(name))
    return told is not None and (allowed is None or told in allowed)


def _class_of(value: object) -> str | None:
    """Of an entry [library, class]; [null, null] stands for a part that is left out."""
    return value[1] if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str) else None


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Raises `PlanError` where files of the tokenizer are missing or hold something else."""
    config = Fields(folder / "tokenizer_config.json")
    separate = (folder / VOCABULARY).is_file() and (folder / MERGES).is_file()
    if not separate and not (folder / WHOLE).is_file():
        raise PlanError(
            [f"{folder} has no {VOCABULARY} with {MERGES}, and no {WHOLE}; it must have one or the other: download or copy the whole folder"]
        )
    file = Fields(folder / (VOCABULARY if separate else WHOLE))
    model = file.values.get("model")
    vocabulary = file.values if separate else model.get("vocab") if isinstance(model, dict) else None
    numbers = [number for number in vocabulary.values() if isinstance(number, int)] if isinstance(vocabulary, dict) else []
    if not isinstance(vocabulary, dict) or len(numbers) < max(1, len(vocabulary)):
        raise PlanError([f"{file.path}: this is no vocabulary, tokens with their numbers; take it again from where it was made"])
    added = config.values.get("added_tokens_decoder")
    numbers += [int(number) for number in added if number.isdecimal()] if isinstance(added, dict) else []
    longest = config.values.get("model_max_length")
    return TokenizerFacts(max(numbers), longest if isinstance(longest, int) and longest > 0 else None)
