"""One network whose latency on phones is published: how to build it, at which input, and by what its layers are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

AI_HUB = "https://github.com/quic/ai-hub-models/tree/main/qai_hub_models/models/"


@dataclass(frozen=True)
class ReferenceNetwork:
    """A published network. `parameters` and `gmacs` are what others published, not what is built here: a test compares."""

    build: Callable[[], nn.Module]
    """The network in its published form; call it under `torch.device("meta")`, as `on_meta` does."""
    input_shape: tuple[int, ...]
    """As published with the latencies, batch first."""
    parameters: int
    """Published parameter count."""
    source: str
    """Where layers and counts come from."""
    gmacs: float | None = None
    """Published multiply-adds at `input_shape`, 10^9; None where nobody published them for this form."""
    normalized: bool = False
    """The published file normalizes its input: one subtraction and one division more."""
    parameters_within: float = 0.005
    """How far the count may be off; more than rounding only where the published count includes layers that the published file has not."""
    input_dtype: torch.dtype = torch.float32

    def on_meta(self) -> nn.Module:
        """The network in evaluation mode, its weights on the meta device."""
        with torch.device("meta"):
            return self.build().eval()
