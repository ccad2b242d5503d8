"""The narrower forms of a network: the same network with a share of its channels, whose weights are leading slices of its own (slimmable networks).

Only families that are elastic in this way have them (`mcompress.compress.models.space.cut`). Their base numbers are taken times the share and rounded
to a multiple of 2, so that neighbouring shares differ even in small networks and SIMD lanes are used in pairs; further in, where the generators have
2, 4 or 8 times the base number, that makes multiples of 4 and more. At least 4 are left, because GPUs hold channels in groups of four: fewer would
cost the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from pydantic import JsonValue

from mcompress.compress.models import MODELS
from mcompress.compress.models.space import Args
from mcompress.compress.models.spec import ModelSpec
from mcompress.errors import PlanError
from mcompress.targets.stages import PruneConfig, QuantizeConfig, SearchConfig, SlimConfig, Stage

STEP, LEAST = 2, 4


def narrower_number(base: int, share: float) -> int:
    """`base` channels times `share`, to the nearest multiple of 2, at least 4, never more than `base`."""
    return min(base, max(LEAST, STEP * math.floor(base * share / STEP + 0.5)))


def specs_of(spec: ModelSpec, shares: Sequence[float]) -> dict[float, ModelSpec]:
    """Share -> the network of this width; `shares` fall from 1, which is `spec` itself.

    Raises `PlanError` for a network that cannot be sliced, and for shares that give the same network twice.
    """
    if spec.edits:
        raise PlanError(
            [
                "stage slim: the network was pruned, so its layers no longer have leading channels in common; remove the prune stage, the widths do "
                "its work"
            ]
        )
    narrow = NARROWED.get(spec.network)
    if narrow is None:
        raise PlanError(
            [
                f"stage slim: the network '{spec.network}' has no narrower form whose weights are leading slices of its own; networks that have: "
                f"{', '.join(NARROWED)}. Put a search stage first, whose students are of these, give one as model.student, or remove the slim stage"
            ]
        )
    found = {share: spec if share == 1.0 else replace(spec, args=narrow(spec.args, share)) for share in shares}
    for wide, narrower in pairwise(found):
        if found[wide].args == found[narrower].args:
            raise PlanError(
                [
                    f"stage slim: the widths {wide:g} and {narrower:g} give the same network, because channels go in steps of {STEP} and at least "
                    f"{LEAST} are left. Take shares that are further apart, or a wider network"
                ]
            )
    return found


def _generator(network: str) -> Callable[[Args, float], Args]:
    """ResNet and U-Net generators: `widths`, or without them `features`."""

    def narrow(args: Args, share: float) -> Args:
        if args.get("widths") is not None:
            return {**args, "widths": [narrower_number(width, share) for width in _numbers(args["widths"])]}
        return {**args, "features": narrower_number(int(str(_argument(network, args, "features"))), share)}

    return narrow


def _mfagan(args: Args, share: float) -> Args:
    channels, blocks = int(str(_argument("mfagan", args, "channels"))), _argument("mfagan", args, "blocks")
    pairs = [_numbers(pair) for pair in blocks] if isinstance(blocks, Sequence) and not isinstance(blocks, str) else []
    narrowed: list[JsonValue] = [[branches, narrower_number(width, share)] for branches, width in pairs]
    return {**args, "channels": narrower_number(channels, share), "blocks": narrowed}


def _argument(network: str, args: Args, name: str) -> JsonValue:
    """As given, or the builder's default."""
    found: JsonValue = args[name] if name in args else inspect.signature(MODELS[network]).parameters[name].default
    return found


def _numbers(value: JsonValue) -> list[int]:
    """A list of whole numbers, or the same written `24_16_16`; the network was built from it, so it is one of the two."""
    parts: Sequence[JsonValue] = value.split("_") if isinstance(value, str) else value if isinstance(value, Sequence) else ()
    return [int(str(part)) for part in parts]


NARROWED: Mapping[str, Callable[[Args, float], Args]] = {
    "resnet_generator": _generator("resnet_generator"),
    "unet_generator": _generator("unet_generator"),
    "mfagan": _mfagan,
}
"""Network -> its arguments with a share of the channels."""


def slim_problems(stages: Sequence[Stage], start: ModelSpec | None) -> list[str]:
    """What makes a slim stage among these impossible; `start` is the network that the first stage gets, where it is known."""
    slims = [stage for stage in stages if isinstance(stage, SlimConfig)]
    if not slims:
        return []
    problems = []
    if any(isinstance(stage, PruneConfig) for stage in stages):
        problems.append(
            "stages: 'prune' and 'slim' exclude each other: pruned layers no longer have leading channels in common; remove one of the two. "
            "The narrower widths do what pruning would"
        )
    if any(isinstance(stage, QuantizeConfig) and stage.plan is not None for stage in stages):
        problems.append("stage quantize: plan is for one network, and slim makes several; remove plan, so that each width gets its own")
    if start is not None and not problems and not any(isinstance(stage, SearchConfig) for stage in stages):
        try:  # what a search picks is of a family that can be sliced
            specs_of(start, slims[0].widths)
        except PlanError as error:
            problems.extend(error.problems)
    return problems
