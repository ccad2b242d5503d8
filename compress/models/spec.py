"""ModelSpec: everything needed to build a network again, as JSON; the weights lie beside it as safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import cast

from pydantic import JsonValue


@dataclass(frozen=True)
class PruningEdit:
    """One structural edit of torch-pruning's history: channels removed from a module; coupled layers follow from the dependency graph."""

    module: str
    is_output: bool
    channels: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A network: a name in `MODELS` or `package.module:function`, its arguments, and the structural edits since.

    `input_shape` is (N, C, H, W); `input_range` the range of values that the network expects.
    """

    network: str
    args: dict[str, JsonValue] = field(default_factory=dict)
    edits: tuple[PruningEdit, ...] = ()
    input_shape: tuple[int, ...] = (1, 3, 128, 128)
    input_range: tuple[float, float] = (0.0, 1.0)

    def with_edits(self, edits: tuple[PruningEdit, ...]) -> ModelSpec:
        """The same network with more edits behind those that it has."""
        return replace(self, edits=self.edits + edits)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; equal specs give equal text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of `to_json`."""
        data = json.loads(text)
        edits = tuple(PruningEdit(e["module"], e["is_output"], tuple(e["channels"])) for e in data["edits"])
        low, high = data["input_range"]
        return cls(data["network"], cast("dict[str, JsonValue]", data["args"]), edits, tuple(data["input_shape"]), (low, high))
