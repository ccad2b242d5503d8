"""Recovery as a whole: every step is tried, measured on calibration inputs that no step has seen, and kept only if it helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from mcompress.calibration.observers import Method
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.plan import ActivationRange, PrecisionPlan
from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.recovery.biases import correct_biases
from mcompress.compress.quantize.recovery.centring import centre, centred
from mcompress.compress.quantize.recovery.distilled import DistillSettings, distill
from mcompress.compress.quantize.recovery.equalize import equalize
from mcompress.compress.quantize.recovery.noise import measure_noise
from mcompress.compress.quantize.recovery.rounding import feedback_shares, round_weights
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.tasks.task import Inputs
from mcompress.compress.train import CheckpointStore, Progress
from mcompress.errors import StageError

KEPT_INPUTS = 20  # inputs in memory, however many there are
HELD_BACK_EVERY = 5  # of them, every fifth is only measured on
NOISE_INPUTS = 8
LEAST_GAIN_DB = 0.02  # a step that gives less is not worth changing the network for

InputStream = Callable[[], Iterator[Inputs]]
"""Opens the calibration inputs from the start."""


@dataclass(frozen=True)
class RecoveryOptions:
    """Which steps are tried. `distill` None leaves training out."""

    input_ranges: tuple[tuple[float, float], ...]
    range_method: Method = "mse"
    equalize: bool = True
    round_weights: bool = True
    correct_biases: bool = True
    distill: DistillSettings | None = None


@dataclass(frozen=True)
class RecoveryStep:
    """Output SQNR in dB on held-back inputs before and after one step, and whether it was kept."""

    name: str
    before_db: float
    after_db: float
    kept: bool


@dataclass(frozen=True)
class Recovered:
    """The network for mixed files, its ranges, and what each step gave. The float network is not changed."""

    module: fx.GraphModule
    ranges: dict[str, ActivationRange]
    steps: tuple[RecoveryStep, ...]
    twin: fx.GraphModule
    """The same channel scales without rounding: what operators that are not INT8 compute with."""


def recover(
    options: RecoveryOptions,
    module: fx.GraphModule,
    plan: PrecisionPlan,
    inputs: InputStream,
    seed: int,
    checkpoints: CheckpointStore,
    progress: Progress,
    reference: fx.GraphModule | None = None,
) -> Recovered:
    """Reduce the noise of `module` (from `graph_of(export_program(...))`) under `plan`, whose precisions stay.

    Noise is the difference to the float network `reference`; left out, to `module` in float, which is the same unless it was recovered before.

    Of the inputs `KEPT_INPUTS` are kept in memory; ranges are calibrated on all but the held-back ones. With fewer than `HELD_BACK_EVERY` inputs
    all of them are used and measured on. Raises `StageError` without inputs, `TrainingDiverged` from distillation.
    """
    kept = [value for _, value in zip(range(KEPT_INPUTS), inputs(), strict=False)]
    if not kept:
        raise StageError("no calibration inputs were given; recovery needs at least one")
    seen = [value for index, value in enumerate(kept) if not _held_back(index)]
    measured = [value for index, value in enumerate(kept) if _held_back(index)] or kept
    return _Recovery(options, module, reference or module, plan, inputs, seen, measured, seed, progress).run(checkpoints)


def _held_back(index: int) -> bool:
    return index < KEPT_INPUTS and index % HELD_BACK_EVERY == HELD_BACK_EVERY - 1


class _Recovery:
    """The present state: module, its float twin (equalized or not), plan, and the SQNR on held-back inputs."""

    def __init__(
        self,
        options: RecoveryOptions,
        module: fx.GraphModule,
        reference: fx.GraphModule,
        plan: PrecisionPlan,
        inputs: InputStream,
        seen: Sequence[Inputs],
        measured: Sequence[Inputs],
        seed: int,
        progress: Progress,
    ) -> None:
        self._options, self._original, self._inputs, self._seed, self._progress = options, reference, inputs, seed, progress
        self._seen, self._measured = seen, measured
        self._exact = torch.cat([parameters.float_output(reference, *value) for value in measured])
        self._module, self._twin, self._plan = module, module, plan
        self._steps: list[RecoveryStep] = []
        centres = options.equalize and bool(centred(module))
        self._total = sum((centres, options.equalize, options.round_weights, options.correct_biases, options.distill is not None))
        self._now = self._sqnr_db(module, plan)

    def run(self, checkpoints: CheckpointStore) -> Recovered:
        options, seed = self._options, self._seed
        if options.equalize:
            noise = measure_noise(self._module, self._plan, self._seen[:NOISE_INPUTS], seed)
            if centred(self._module):
                moved, moved_noise = centre(self._module, noise)
                if self._try("centre", moved, replace(self._plan, ranges=self._calibrated(moved))):
                    self._twin, noise = moved, moved_noise
            feedback = feedback_shares(self._module, self._plan, self._seen[:NOISE_INPUTS], seed) if options.round_weights else {}
            equalized, _ = equalize(self._module, self._plan, noise, feedback)
            if self._try("equalize", equalized, replace(self._plan, ranges=self._calibrated(equalized))):
                self._twin = equalized
        if options.round_weights:
            self._try("round weights", round_weights(self._module, self._plan, self._seen, seed), self._plan)
        if options.correct_biases:
            self._try("correct biases", correct_biases(self._module, self._plan, self._twin, self._seen), self._plan)
        if options.distill is not None:
            student, plan = distill(self._module, self._plan, self._original, self._seen, options.distill, seed, checkpoints, _silent)
            self._try("distill", student, plan)
        return Recovered(parameters.copied(self._module), dict(self._plan.ranges), tuple(self._steps), self._twin)

    def _calibrated(self, module: fx.GraphModule) -> dict[str, ActivationRange]:
        stream = (value for index, value in enumerate(self._inputs()) if not _held_back(index))
        options, total = self._options, len(self._seen)
        ranges, _ = calibrate(module, stream, options.range_method, options.input_ranges, total, _silent, self._plan.activations)
        return {name: ranges[name] for name in self._plan.ranges}

    def _try(self, name: str, module: fx.GraphModule, plan: PrecisionPlan) -> bool:
        before, after = self._now, self._sqnr_db(module, plan)
        kept = after >= before + LEAST_GAIN_DB
        self._steps.append(RecoveryStep(name, before, after, kept))
        if kept:
            self._module, self._plan, self._now = module, plan, after
        self._progress(len(self._steps), self._total, f"{name}: {before:.1f} to {after:.1f} dB{'' if kept else ', not kept'}")
        return kept

    def _sqnr_db(self, module: fx.GraphModule, plan: PrecisionPlan) -> float:
        simulated = Simulated(module, plan)
        with torch.no_grad():
            return sqnr_db(self._exact, torch.cat([simulated(*value) for value in self._measured]))


def _silent(done: int, total: int, note: str) -> None:
    """Steps inside a step are not shown."""
