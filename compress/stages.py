"""`STAGES`, the whole registry of stages: configuration type -> function."""

from __future__ import annotations

from collections.abc import Callable

from mcompress.compress.distill import distill
from mcompress.compress.prune import prune
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.search import search
from mcompress.compress.stage import StageOutput
from mcompress.targets.stages import DistillConfig, PruneConfig, QuantizeConfig, SearchConfig, Stage

STAGES: dict[type[Stage], Callable[..., StageOutput]] = {SearchConfig: search, PruneConfig: prune, DistillConfig: distill, QuantizeConfig: quantize}
