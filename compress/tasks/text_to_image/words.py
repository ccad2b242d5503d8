"""The tokenizer of the embedded captions: CLIP's byte pair encoding, taught on their words alone, so that each of them is one token.

Any other text can be written with it too, letter by letter, because all bytes are in its vocabulary.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

END_OF_WORD = "</w>"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def taught_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """The merges that byte pair encoding (Sennrich et al. 2016, arXiv 1508.07909) learns until every word is one piece; ties go by the alphabet."""
    pieces = {word: [*word[:-1], f"{word[-1]}{END_OF_WORD}"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merged(parts, best) for word, parts in pieces.items()}


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found


def byte_letters() -> list[str]:
    """How each of the 256 bytes is written in CLIP's vocabulary: printable ones as themselves, the others as letters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(0x100 + place) for place in range(len(others)))]


def write_tokenizer(folder: Path, words: Sequence[str], longest: int) -> None:
    """`vocab.json`, `merges.txt` and `tokenizer_config.json` as CLIP's tokenizers have them; a text has `longest` tokens at most."""
    letters, merges = byte_letters(), taught_merges(words)
    tokens = [*letters, *(f"{letter}{END_OF_WORD}" for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": longest, "bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END,
        "do_lower_case": True,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
