"""What changes the model. `STAGES` is the whole registry: configuration type -> function."""

from __future__ import annotations

from collections.abc import Callable

from mcompress.compress.distill import distill
from mcompress.compress.prune import prune
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.search import search
from mcompress.targets.stages import DistillConfig, PruneConfig, QuantizeConfig, SearchConfig

STAGES: dict[type, Callable[..., object]] = {SearchConfig: search, PruneConfig: prune, DistillConfig: distill, QuantizeConfig: quantize}
