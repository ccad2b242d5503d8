"""CLIP's tokenizer: from a prompt to the numbers that the text encoder takes.

Byte-level byte-pair encoding (Radford et al. 2019, section 2.2; 2021, section 2.4): the text is brought into one form, cut into pieces, a piece into
its bytes, and those are joined by the merges, the earliest learned first. Letters, numbers and blanks are those of Python's Unicode tables; a
character that a newer Unicode made a letter is cut off from its neighbours here.

This file needs the standard library alone. It is part of mcompress and is copied into the bundles of text to image.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Merges = Sequence[tuple[str, str]]

WORD_END = "</w>"
SHOWN_CHARACTERS = 300
"""What a message shows of a prompt."""
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
_RUN = re.compile("L+|N|O+")
"""In the kinds of the characters, see `_kind`."""


class PromptError(ValueError):
    """A prompt, or tokenizer files, that cannot be used: what is wrong, the value seen, what is allowed, what to do."""


class Added(NamedTuple):
    """A token that stands in prompts as it is written; `normalized`: it is looked for in the text when that has been brought into its form."""

    number: int
    normalized: bool


class Settings(NamedTuple):
    """What the tokenizer's configuration says."""

    start: int
    end: int
    unknown: int
    padding: int
    pads_left: bool
    added: Mapping[str, Added]


class _Piece(NamedTuple):
    """A piece of the prompt: as it is shown, with the blank before it, and its tokens."""

    shown: str
    numbers: Sequence[int]


class PromptTokenizer:
    """Prompts to tokens; `vocabulary` says the number of each token, `merges` which two become one, the first learned first."""

    def __init__(self, vocabulary: Mapping[str, int], merges: Merges, settings: Settings) -> None:
        """Raises `PromptError` for merges that make what is not in the vocabulary."""
        self.vocabulary, self.settings = vocabulary, settings
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        for left, right in self._ranks:
            if left + right not in vocabulary:
                raise PromptError(f"the merge of '{left}' and '{right}' makes what the vocabulary does not have; take both from one tokenizer")
        self._raw = _alternatives(name for name, added in settings.added.items() if not added.normalized)
        self._normalized = _alternatives(name for name, added in settings.added.items() if added.normalized)

    def tokens(self, prompt: str, length: int) -> list[int]:
        """`length` numbers: start, the tokens of the prompt, end, padding. An empty prompt is the unconditional one.

        Raises `PromptError` for a prompt that has more tokens, and for one that is no Unicode text.
        """
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt holds {prompt[error.start]!r} at character {error.start + 1}, no Unicode; write it again") from error
        pieces = list(self._pieces(prompt))
        numbers = [self.settings.start, *(number for piece in pieces for number in piece.numbers), self.settings.end]
        if len(numbers) > length:
            raise PromptError(
                f"the prompt has {len(numbers)} tokens with its start and end, and the text encoder takes at most {length}; "
                f"shorten it: '{_over(pieces, length - 2)}' is over"
            )
        padding = [self.settings.padding] * (length - len(numbers))
        return padding + numbers if self.settings.pads_left else numbers + padding

    def _pieces(self, prompt: str) -> Iterator[_Piece]:
        for part in self._raw.split(prompt):
            if part in self.settings.added and not self.settings.added[part].normalized:
                yield _Piece(part, [self.settings.added[part].number])
                continue
            for text in self._normalized.split(normalized(part)):
                if text in self.settings.added and self.settings.added[text].normalized:
                    yield _Piece(text, [self.settings.added[text].number])
                else:
                    for blank, piece in _cut(text):
                        yield _Piece(blank + piece, self._encoded(piece))

    def _encoded(self, piece: str) -> list[int]:
        symbols = [_BYTES[byte] for byte in piece.encode("utf-8")]
        symbols[-1] += WORD_END
        while len(symbols) > 1:
            pairs = zip(symbols[:-1], symbols[1:])  # noqa: B905, RUF007  (Python 3.8)
            first = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if first not in self._ranks:
                break
            symbols = _joined(symbols, first)
        return [self.vocabulary.get(symbol, self.settings.unknown) for symbol in symbols]


def normalized(text: str) -> str:
    """Composed (NFC), every run of blanks as one, in small letters, each for itself: a final sigma is none here."""
    composed = unicodedata.normalize("NFC", text)
    blanks = "".join(" " if _kind(character) == "S" else character for character in composed)
    return "".join(character.lower() for character in re.sub(" +", " ", blanks))


def _kind(character: str) -> str:
    """L a letter, N a number, S a blank, O anything else."""
    if character in "\t\n\v\f\r\x85":
        return "S"
    return {"L": "L", "N": "N", "Z": "S"}.get(unicodedata.category(character)[0], "O")


def _cut(text: str) -> Iterator[tuple[str, str]]:
    """The pieces of a text and the blank before each: English contractions, words, single digits, runs of anything else."""
    kinds = "".join(map(_kind, text))
    at, blank = 0, ""
    while at < len(text):
        found = _CONTRACTION.match(text, at) or _RUN.match(kinds, at)
        if found is None:
            at, blank = at + 1, " "
            continue
        yield blank, text[at : found.end()]
        at, blank = found.end(), ""


def _joined(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """`symbols` with every `pair` as one, from the left."""
    made: list[str] = []
    at = 0
    while at < len(symbols):
        both = tuple(symbols[at : at + 2]) == pair
        made.append("".join(pair) if both else symbols[at])
        at += 2 if both else 1
    return made


def _over(pieces: Sequence[_Piece], room: int) -> str:
    """The words of which not all tokens are among the first `room`."""
    used, first = 0, len(pieces)
    for position, piece in enumerate(pieces):
        used += len(piece.numbers)
        if used > room:
            first = position
            break
    while first > 0 and not pieces[first].shown.startswith(" "):
        first -= 1
    words = "".join(piece.shown for piece in pieces[first:]).strip()
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} ..."


def _alternatives(names: Iterator[str]) -> re.Pattern[str]:
    """What splits a text at these names, the longest first, and keeps them; nothing where there are none."""
    listed = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, listed)) + ")" if listed else r"(?!)")


def _byte_symbols() -> list[str]:
    """A printable character for each byte: the byte itself in Latin-1 where it is one, else the next from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


_BYTES = _byte_symbols()
