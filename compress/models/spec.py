"""ModelSpec: everything needed to build a network again, as JSON; the weights lie beside it as safetensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, cast

from pydantic import JsonValue

Prediction = Literal["epsilon", "v_prediction"]
"""What a diffusion network predicts, in diffusers' names: the noise, or the velocity."""


@dataclass(frozen=True)
class PruningEdit:
    """One structural edit of torch-pruning's history: channels removed from a module; coupled layers follow from the dependency graph."""

    module: str
    is_output: bool
    channels: tuple[int, ...]


@dataclass(frozen=True)
class InputSpec:
    """One input of a network: its name, its shape, batch first, and the range of its values."""

    name: str
    shape: tuple[int, ...]
    value_range: tuple[float, float]


@dataclass(frozen=True)
class Sampling:
    """How a diffusion network makes a latent: what it predicts, and how it is called again and again."""

    prediction: Prediction
    steps: int
    """Calls, or with guidance pairs of calls, with the caption and without."""
    guidance: float
    """Scale of classifier-free guidance; 1 is none, and needs no call without the caption."""
    method: Literal["ddim", "lcm"] = "ddim"
    grid_steps: int = 50
    """Of `lcm`: steps of the grid that the network was distilled on, from which its own are taken."""


@dataclass(frozen=True)
class ModelSpec:
    """A network: a name in `MODELS` or `package.module:function`, its arguments, and the structural edits since.

    `input_shape` is (N, C, H, W), that of the picture that it takes, and `input_range` the range of its values; `further_inputs` follow it, in the
    order of the arguments of the network's `forward`.
    """

    network: str
    args: dict[str, JsonValue] = field(default_factory=dict)
    edits: tuple[PruningEdit, ...] = ()
    input_shape: tuple[int, ...] = (1, 3, 128, 128)
    input_range: tuple[float, float] = (0.0, 1.0)
    input_name: str = "input"
    further_inputs: tuple[InputSpec, ...] = ()
    sampling: Sampling | None = None
    """Of diffusion networks."""

    @classmethod
    def taking(cls, inputs: tuple[InputSpec, ...], network: str, args: dict[str, JsonValue]) -> ModelSpec:
        """A network that takes these inputs, the picture first."""
        picture, *further = inputs
        return cls(network, args, (), picture.shape, picture.value_range, picture.name, tuple(further))

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """All inputs, the picture first."""
        return (InputSpec(self.input_name, self.input_shape, self.input_range), *self.further_inputs)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all inputs."""
        return tuple(one.shape for one in self.inputs)

    def with_edits(self, edits: tuple[PruningEdit, ...]) -> ModelSpec:
        """The same network with more edits behind those that it has."""
        return replace(self, edits=self.edits + edits)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; equal specs give equal text."""
        facts = asdict(self)
        if self.sampling is None:
            del facts["sampling"]
        return json.dumps(facts, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Inverse of `to_json`."""
        data = json.loads(text)
        edits = tuple(PruningEdit(e["module"], e["is_output"], tuple(e["channels"])) for e in data["edits"])
        further = tuple(InputSpec(one["name"], tuple(one["shape"]), _range(one["value_range"])) for one in data["further_inputs"])
        args = cast("dict[str, JsonValue]", data["args"])
        sampling = Sampling(**data["sampling"]) if "sampling" in data else None
        return cls(data["network"], args, edits, tuple(data["input_shape"]), _range(data["input_range"]), data["input_name"], further, sampling)


def holds_pictures(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape, (N, C, H, W), holds pictures: one RGB picture, or two behind one another. Latents and tokens are none."""
    return len(shape) == 4 and shape[1] in (3, 6)


def _range(pair: Sequence[float]) -> tuple[float, float]:
    low, high = pair
    return low, high
