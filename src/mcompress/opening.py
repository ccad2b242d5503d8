"""A model by its name, its import path or its file, opened as an operator table: what `count` and `estimate` start from."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcompress.errors import StageError, UsageError
from mcompress.export.profile_jobs import InputShape
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import MOST_VALUES
from mcompress.targets.speeds import PrecisionName

if TYPE_CHECKING:
    from torch import nn

DEFAULT_INPUT = "1,3,128,128"
MOST_MIXED = 4
"""Inputs of which every mixture of whole numbers and others is tried; of more, each alone, all short ones, and all."""
SHORT = 2
"""Axes that an input of whole numbers has at most, as a rule: token ids are (batch, tokens), time steps (batch)."""


@dataclass(frozen=True)
class Opened:
    """A model as an operator table, and the precisions of a file (None for a network, which has none yet)."""

    name: str
    table: OperatorTable
    precisions: dict[str, PrecisionName] | None
    facts: str
    """What a file says about itself, and what was assumed to read the model; empty where there is nothing to say."""


def open_model(model: str, inputs: Sequence[str] | None, args: str) -> Opened:
    """The operator table of a network or a file; each of `inputs` is `SHAPE` or `NAME=SHAPE`.

    Raises `UsageError` for a name, a shape, arguments or a file that cannot be read.
    """
    from mcompress.export.tables import READERS, is_file, table_of_file

    given = given_inputs(inputs)
    if is_file(model):
        if args != "{}":
            raise UsageError(f"--args is {args}, but {model} is a file, which takes no arguments; leave it out")
        check_named(given)
        shape = None if not given else {one.name: one.shape for one in given} if given[0].name else given[0].shape
        read = table_of_file(Path(model), shape)
        facts = ", ".join(part for part in (read.facts.format, read.facts.version, read.facts.producer, read.facts.assumed) if part)
        return Opened(model, read.table, read.precisions, facts)
    if ":" not in model and (Path(model).suffix or Path(model).exists()):
        ends = " or ".join(READERS)
        raise UsageError(f"'{model}' is neither a network (mcompress list models, or package.module:function) nor a file that ends in {ends}")
    table, assumed = _table_of_network(model, given, args)
    return Opened(model, table, None, assumed)


def given_inputs(texts: Sequence[str] | None) -> list[InputShape]:
    """What `--input` gives, each `SHAPE` or `NAME=SHAPE`. Raises `UsageError` for another text, and for a name that is there twice."""
    given = [_given(text) for text in texts or ()]
    twice = next((one.name for i, one in enumerate(given) if one.name and one.name in {other.name for other in given[:i]}), None)
    if twice is not None:
        raise UsageError(f"--input gives '{twice}' twice; give each input once")
    return given


def check_named(given: Sequence[InputShape]) -> None:
    """Raise `UsageError` where several inputs of a file are given and one of them has no name."""
    if len(given) > 1 and not all(one.name for one in given):
        raise UsageError(
            f"--input is given {len(given)} times; for a file each needs the name of its input, for example --input NAME={given[0].option}"
        )


def _given(text: str) -> InputShape:
    name, equals, sizes = text.rpartition("=")
    if equals and not name.strip():
        raise UsageError(f"--input is '{text}'; write NAME=SHAPE, or the shape alone")
    return InputShape(name.strip(), _shape(text, sizes))


def _shape(text: str, sizes_: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in sizes_.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        what = "positive whole numbers with commas between them, the batch first"
        raise UsageError(f"--input is '{text}'; it must be {what}, for example {DEFAULT_INPUT} (batch, channels, height, width)")
    return sizes


def _table_of_network(model: str, given: Sequence[InputShape], args: str) -> tuple[OperatorTable, str]:
    """The table of a network on inputs of these shapes, and which of them were taken to be whole numbers."""
    try:
        arguments = json.loads(args)
    except ValueError as error:
        raise UsageError(f"--args is not JSON: {error}; for example --args '{{\"blocks\": 6}}'") from error
    if not isinstance(arguments, dict):
        raise UsageError(f"--args is {args}; it must be a JSON object, for example '{{\"blocks\": 6}}'")
    from mcompress.compress.models import ONE_SIZE
    from mcompress.compress.models.build import build, build_meta
    from mcompress.compress.models.spec import ModelSpec

    given = given or [InputShape(name, shape) for name, shape in ONE_SIZE.get(model, {}).items()]
    inputs = given or (_given(DEFAULT_INPUT),)
    spec = ModelSpec(model, arguments, (), inputs[0].shape)
    network = build_meta(spec, weightless=True)
    named = _names(model, network, given)
    try:
        return _table(model, network, inputs, ()), ""
    except StageError as error:
        if sum(math.prod(one.shape) for one in inputs) > MOST_VALUES:
            raise _refused(model, inputs, error) from error
    network = build(spec, weightless=True)
    try:  # the network may need numbers to find its way, and if it does not, the message is about the inputs alone
        return _table(model, network, inputs, ()), ""
    except StageError as error:
        for whole in mixtures(inputs):  # a network that looks its input up, words for example, takes whole numbers only
            try:
                table = _table(model, network, inputs, whole)
            except StageError:
                continue
            if len(inputs) == 1:
                return table, "input of whole numbers"
            return table, f"{', '.join(inputs[i].name or named[i] for i in sorted(whole))} of whole numbers"
        raise _refused(model, inputs, error) from error


def _table(model: str, network: nn.Module, inputs: Sequence[InputShape], whole: Sequence[int]) -> OperatorTable:
    import torch

    from mcompress.compress.cost import Input, number_type, table_on

    numbers = number_type(network)
    try:
        return table_on(network, [Input(one.shape, torch.int64 if i in whole else numbers, one.name) for i, one in enumerate(inputs)])
    except UsageError as error:  # the network's own words about its input
        raise _refused(model, inputs, error) from error


def _names(model: str, network: nn.Module, given: Sequence[InputShape]) -> list[str]:
    """The names of the inputs in their order. Raises `UsageError`, naming them, where some are missing or not known."""
    from mcompress.compress.counting.running import tensors_of

    needed, others = tensors_of(network)
    if not needed and not others:
        return [one.name or f"input {i + 1}" for i, one in enumerate(given)] or ["input"]
    optional = f" (and, if given, {', '.join(others)})" if others else ""
    takes = f"{model} takes {' and '.join(needed)}{optional}"
    strange = next((one.name for one in given if one.name and one.name not in (*needed, *others)), None)
    places = sum(not one.name for one in given) or (0 if given else 1)
    missing = [name for name in needed[places:] if name not in {one.name for one in given}]
    if strange is not None:
        raise UsageError(f"--input names '{strange}', but {takes}")
    if missing or places > len(needed) + len(others):
        how = " ".join(f"--input {name}=SHAPE" for name in needed)
        wrong = f"{' and '.join(missing)} missing" if missing else f"{places} given"
        raise UsageError(f"{takes}; give the shape of each: {how} ({wrong})")
    return [*needed, *others]


def mixtures(inputs: Sequence[InputShape]) -> Iterator[tuple[int, ...]]:
    """Which inputs to try as whole numbers: as few as will do, because a network without data takes them where it should not; short ones first."""
    everything = sorted(range(len(inputs)), key=lambda i: len(inputs[i].shape) > SHORT)
    most = len(inputs) if len(inputs) <= MOST_MIXED else 1
    for count in range(1, most + 1):
        yield from itertools.combinations(everything, count)
    if most < len(inputs):
        yield tuple(i for i in everything if len(inputs[i].shape) <= SHORT)
        yield tuple(everything)


def _refused(model: str, inputs: Sequence[InputShape], error: StageError | UsageError) -> UsageError:
    shown = "' and '".join(one.option for one in inputs)
    return UsageError(f"--input is '{shown}', which {model} does not take: {str(error).removeprefix(f'{model}: ')}")
