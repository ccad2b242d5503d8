"""PrecisionPlan: the precision of every operator, made once and translated by every exporter.

Operators are the call nodes of `torch.export.export(model, inputs)`; they are named as the nodes are, because every backend starts from that
program. Activations are INT8 per tensor, with zero points of their own or all of them 0 as the plan says; weights INT8 per output channel, symmetric,
with scales that follow from the weights.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mcompress.errors import UsageError
from mcompress.targets.activations import Activations

Precision = Literal["int8", "fp16", "fp32"]
INT8_MIN, INT8_MAX = -128, 127
SMALLEST_SCALE = 1e-9  # a tensor that is always zero still needs a scale that integer kernels can divide by
LARGEST_FLOAT32 = 3e38
_MOST_PROBLEMS = 5
_EXACT_KEYS = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class ActivationRange:
    """Affine INT8 parameters of one tensor: real = scale * (q - zero_point), q in [-128, 127]."""

    __pydantic_config__ = _EXACT_KEYS

    scale: Annotated[float, Field(gt=0, lt=LARGEST_FLOAT32, allow_inf_nan=False)]
    zero_point: Annotated[int, Field(ge=INT8_MIN, le=INT8_MAX)]

    @classmethod
    def from_bounds(cls, low: float, high: float) -> ActivationRange:
        """The parameters for [low, high] and zero, to within half a step at the ends; the scale is a float32, as in every file format."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32(max((high - low) / (INT8_MAX - INT8_MIN), SMALLEST_SCALE)))
        zero_point = round(INT8_MIN - low / scale)
        return cls(scale, min(max(zero_point, INT8_MIN), INT8_MAX))

    @classmethod
    def from_magnitude(cls, magnitude: float) -> ActivationRange:
        """Symmetric parameters for [-magnitude, magnitude], which are -127 and 127; zero is 0. The scale is a float32.

        No value v of an 8-bit picture from 0 to 1, or -1 to 1, lies half way between two steps: in 254 v = 255 (2n + 1) one side is even, one odd.
        """
        return cls(float(np.float32(max(magnitude / INT8_MAX, SMALLEST_SCALE))), 0)

    @classmethod
    def of_pictures(cls, low: float, high: float) -> ActivationRange:
        """The parameters for 8-bit pictures whose 0 and 255 stand for `low` and `high`; both ends are inside.

        With 255 steps from -1 to 1, zero would lie between two of them, and each of the 256 values of a picture half way between two others: what
        they are rounded to would hang on the last bit of a division, which runtimes compute in different ways. One step less has no such ties.
        """
        nearest = cls.from_bounds(low, high)
        below, above = nearest.zero_point - INT8_MIN, INT8_MAX - nearest.zero_point
        needed = max(*([-low / below] if below else []), *([high / above] if above else []), nearest.scale)
        return cls(float(np.float32(needed)), nearest.zero_point)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value that INT8 represents with these parameters."""
        return self.scale * (INT8_MIN - self.zero_point), self.scale * (INT8_MAX - self.zero_point)


@dataclass(frozen=True)
class PlannedOperator:
    """One operator: node name, module path, kind (`conv2d`, `add`, ...), precision, and why it has it."""

    __pydantic_config__ = _EXACT_KEYS

    name: Annotated[str, Field(min_length=1)]
    module: str
    kind: str
    precision: Precision
    reason: str
    sqnr_db: float | None = None
    """Output SQNR when this operator alone is INT8; None where it was not measured on its own."""
    row: str = ""
    """The row of the network's operator table that it is computed in; empty where it has none of its own."""


@dataclass(frozen=True)
class PrecisionPlan:
    """Operators in execution order, and the range of every tensor that an INT8 operator reads or writes, by node name."""

    __pydantic_config__ = _EXACT_KEYS

    operators: tuple[PlannedOperator, ...]
    ranges: dict[str, ActivationRange]
    activations: Activations = "asymmetric"
    """`symmetric` where every zero point is 0. Plans from before there was a choice do not say it, and are asymmetric."""

    def precision_of(self, name: str) -> Precision:
        """The precision of the operator `name`; fp32 for nodes that the plan does not know (shape arithmetic)."""
        return next((operator.precision for operator in self.operators if operator.name == name), "fp32")

    def int8_names(self) -> frozenset[str]:
        """Names of the INT8 operators."""
        return frozenset(operator.name for operator in self.operators if operator.precision == "int8")

    def counts(self) -> dict[str, int]:
        """Operators per precision, always with the keys int8, fp16 and fp32."""
        return {p: sum(operator.precision == p for operator in self.operators) for p in ("int8", "fp16", "fp32")}

    def to_json(self) -> str:
        """JSON with sorted keys; equal plans give equal text."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PrecisionPlan:
        """Inverse of `to_json`. Raises `UsageError`, naming what is wrong, for a text that is no plan."""
        try:
            plan = _plans().validate_json(text, strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False)
            if found[0]["type"] == "json_invalid":
                raise UsageError(f"it is not JSON: {found[0]['ctx']['error']}") from error
            said = [f"{_path(one['loc'])} {_what(one['type'], one['msg'], one['input'])}" for one in found[:_MOST_PROBLEMS]]
            more = f"; and {len(found) - _MOST_PROBLEMS} more" if len(found) > _MOST_PROBLEMS else ""
            raise UsageError(f"it is not a precision plan: {'; '.join(said)}{more}") from error
        twice = [name for name, times in Counter(operator.name for operator in plan.operators).items() if times > 1]
        if twice:
            raise UsageError(f"it is not a precision plan: the operator '{twice[0]}' is in it more than once")
        moved = next((name for name, found in plan.ranges.items() if found.zero_point), None) if plan.activations == "symmetric" else None
        if moved is not None:
            raise UsageError(
                f"it is not a precision plan: its activations are symmetric, and the zero point of '{moved}' is {plan.ranges[moved].zero_point}; "
                "symmetric ones are 0"
            )
        return plan


@cache
def _plans() -> TypeAdapter[PrecisionPlan]:
    return TypeAdapter(PrecisionPlan)


def _path(place: tuple[int | str, ...]) -> str:
    """`operators[3].precision`; the whole for an empty place."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    return text or "the whole"


def _what(kind: str, message: str, seen: object) -> str:
    if kind == "missing":
        return "is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return "is not known"
    if isinstance(seen, dict | list):
        seen = "a mapping" if isinstance(seen, dict) else "a list"
        return f"is {seen}: {message[0].lower()}{message[1:]}"
    return f"is {ascii(seen)[:40]}: {message[0].lower()}{message[1:]}"
