"""The tokenizer files of a diffusers folder: vocab.json with merges.txt, or tokenizer.json, tokenizer_config.json, and special_tokens_map.json.

This file needs the standard library alone. It is part of mcompress and is copied into the bundles of text to image.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mcompress.export.prompt_tokens import WORD_END, Added, PromptError, PromptTokenizer, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mcompress.export.prompt_tokens import Merges

CONFIG, VOCABULARY, MERGES, WHOLE, ADDED = "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json"
"""`WHOLE` holds what `VOCABULARY` and `MERGES` hold; newer versions of transformers write it alone."""
SPECIAL = "special_tokens_map.json"
"""Special tokens by their names, as older versions of transformers write them beside the configuration; a folder need not have it."""
START, END = "<|startoftext|>", "<|endoftext|>"
NAMED = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
"""Special tokens by name, and what they are where no file says."""
DECODER = "added_tokens_decoder"
"""Field of the configuration: numbers of the added tokens. With it, the configuration says all about special tokens."""


def read_tokenizer(folder: Path) -> PromptTokenizer:
    """The tokenizer of a folder with vocab.json and merges.txt, or tokenizer.json, and tokenizer_config.json. Raises `PromptError`.

    What special_tokens_map.json says goes before what the configuration says of the same token, unless that numbers its added tokens, as in
    transformers: of Stable Diffusion 2.x the one pads with "!", the other with the end of the text.
    """
    config = _json(folder / CONFIG)
    mapped = _json(folder / SPECIAL) if (folder / SPECIAL).is_file() and DECODER not in config else {}
    listed: list[object] = []
    if (folder / VOCABULARY).is_file() or not (folder / WHOLE).is_file():
        vocabulary, merges = _json(folder / VOCABULARY), _merges(folder / MERGES)
        if (folder / ADDED).is_file():
            _check_added(folder / ADDED, vocabulary)
    else:
        vocabulary, merges, listed = _whole(folder / WHOLE)
    numbers: dict[str, int] = {}
    for name, number in vocabulary.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise PromptError(f"{folder}: the vocabulary gives '{name}' the number {number!r}; it must be a whole number from 0 on")
        numbers[name] = number
    return PromptTokenizer(numbers, merges, _settings(folder, config, mapped, numbers, listed))


def _settings(
    folder: Path, config: Mapping[str, object], mapped: Mapping[str, object], vocabulary: Mapping[str, int], listed: Sequence[object]
) -> Settings:
    """The special tokens; those that `listed` or, before it, the configuration spells out one by one are as it says there."""
    path = folder / CONFIG
    names: dict[str, str] = {}
    added: dict[str, Added] = {}
    for key, usual in NAMED.items():
        said, given = (folder / SPECIAL, mapped[key]) if mapped.get(key) else (path, config.get(key) or usual)
        entry = {"content": given} if isinstance(given, str) else given
        entry = {"normalized": False, **entry} if isinstance(entry, dict) else entry  # the default of named tokens
        names[key], added[names[key]] = _added(said, entry, vocabulary, None)
    spelled = config.get(DECODER) or {}
    if not isinstance(spelled, dict):
        raise PromptError(f"{path}: {DECODER} is {spelled!r}; it must be an object, number to token")
    entries = [(entry.get("id") if isinstance(entry, dict) else None, entry) for entry in listed]
    for number, entry in [*entries, *spelled.items()]:
        name, one = _added(path, entry, vocabulary, number)
        added[name] = one
    side = config.get("padding_side", "right")
    if side not in ("left", "right"):
        raise PromptError(f"{path}: padding_side is {side!r}; it must be right or left")
    start, end, unknown, padding = (added[names[key]].number for key in NAMED)
    return Settings(start, end, unknown, padding, side == "left", added)


def _added(path: Path, entry: object, vocabulary: Mapping[str, int], number: object) -> tuple[str, Added]:
    name = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str) or not name:
        raise PromptError(f"{path}: a special token is {entry!r}; it must be text, or an object whose content is text")
    for strips in ("lstrip", "rstrip", "single_word"):
        if entry.get(strips, False):
            raise PromptError(f"{path}: the token '{name}' has {strips}, which is not done here; set it to false")
    told = int(number) if isinstance(number, int) or (isinstance(number, str) and number.isdecimal()) else vocabulary.get(name)
    if told is None:
        raise PromptError(f"{path}: the token '{name}' has no number, for it is not in the vocabulary; take both from one tokenizer")
    return name, Added(told, bool(entry.get("normalized", True)))


def _whole(path: Path) -> tuple[dict[str, object], Merges, list[object]]:
    data = _json(path)
    model = data.get("model")
    if not isinstance(model, dict) or (model.get("type"), model.get("end_of_word_suffix")) != ("BPE", WORD_END):
        raise PromptError(f"{path}: its model is not CLIP's, BPE with the suffix '{WORD_END}'; take the tokenizer of the text encoder")
    vocabulary, merges, listed = model.get("vocab"), model.get("merges"), data.get("added_tokens")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or not isinstance(listed, list):
        raise PromptError(f"{path} lacks the vocabulary, the merges or the added tokens; take it again from where it was made")
    return vocabulary, [_pair(path, one.split(" ") if isinstance(one, str) else one) for one in merges], listed


def _merges(path: Path) -> Merges:
    lines = _text(path).split("\n")
    kept = lines[1:] if "#version" in lines[0] else lines
    return [_pair(path, line.rstrip("\r").split(" ")) for line in kept if line.strip()]


def _pair(path: Path, parts: object) -> tuple[str, str]:
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise PromptError(f"{path}: a merge is {parts!r}; it must be two tokens with one blank between them")
    return parts[0], parts[1]


def _check_added(path: Path, vocabulary: Mapping[str, object]) -> None:
    unknown = [name for name in _json(path) if name not in vocabulary]
    if unknown:
        raise PromptError(
            f"{path} adds {', '.join(unknown[:5])}, which the vocabulary does not have; load the tokenizer with transformers and save it again"
        )


def _json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(_text(path))
    except ValueError as error:
        raise PromptError(f"{path} is no JSON ({error}); take it again from where it was made") from error
    if not isinstance(data, dict):
        raise PromptError(f"{path} holds a {type(data).__name__}; it must be a JSON object")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read ({error}); a tokenizer has {CONFIG}, and {VOCABULARY} with {MERGES}, or {WHOLE}") from error
