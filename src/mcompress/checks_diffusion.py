"""What is wrong with the stages of a target that know of diffusion: they need a network that is called again and again, and a budget in reach."""

from __future__ import annotations

from dataclasses import replace

from mcompress.checks import Network
from mcompress.compress.bk_sdm import bk_sdm_problems
from mcompress.compress.evolving_costs import evolve_problems
from mcompress.compress.feature_distillation import feature_problems
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.stable_diffusion import with_guidance
from mcompress.compress.models.unet_weights import bk_sdm
from mcompress.compress.step_distillation import fewer_steps_problems
from mcompress.compress.tasks.task import Task
from mcompress.targets.device import Device, Unit
from mcompress.targets.reach import ships_as
from mcompress.targets.schema import Target
from mcompress.targets.stages import (
    BkSdmSearchConfig,
    ConsistencyDistillConfig,
    EvolveSearchConfig,
    FeatureDistillConfig,
    PruneConfig,
    StepDistillConfig,
)


def problems(target: Target, task: Task | None, device: Device, unit: Unit, teacher: Network, start: Network) -> list[str]:
    """Of removing blocks, of distilling what is left and of saving steps, each with the network as the stages before leave it."""
    found, present, data = list[str](), start[0], None if task is None else task.diffusion()
    for index, stage in enumerate(target.stages):
        if isinstance(stage, EvolveSearchConfig):
            found += evolve_problems(present, target.budget, device, unit, stage.costed_as or ships_as(target, device, unit))
        if isinstance(stage, BkSdmSearchConfig):
            of_stage = bk_sdm_problems(stage, present)
            found += of_stage
            present = present if of_stage else bk_sdm(present, stage.size)
        if isinstance(stage, FeatureDistillConfig):
            pruned = any(isinstance(before, PruneConfig) for before in target.stages[:index])
            found += feature_problems(stage, data, teacher[0], present, pruned=pruned)
        if isinstance(stage, StepDistillConfig | ConsistencyDistillConfig):
            of_stage = fewer_steps_problems(stage, data, teacher[0], present)
            found += of_stage
            present = present if of_stage else _taught(present, stage)
    return found


def _taught(spec: ModelSpec, stage: StepDistillConfig | ConsistencyDistillConfig) -> ModelSpec:
    """The network as the stage leaves it, as far as later stages ask."""
    if spec.sampling is None:
        return spec
    if isinstance(stage, ConsistencyDistillConfig):
        made = with_guidance(spec, stage.guidance_range)
        return replace(made, sampling=replace(spec.sampling, steps=stage.student_steps, method="lcm", grid_steps=stage.ddim_steps))
    prediction = "v_prediction" if stage.to_velocity else spec.sampling.prediction
    return replace(spec, sampling=replace(spec.sampling, prediction=prediction, steps=stage.student_steps))
