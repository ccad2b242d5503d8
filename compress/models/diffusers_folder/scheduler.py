"""The noise that a diffusers folder's networks were trained with, from its scheduler's settings; how the scheduler samples is not taken over."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from mcompress.compress.diffusion import NoiseSchedule, ScheduleSettings
from mcompress.compress.models.diffusers_folder.fields import Fields, defaults_of
from mcompress.compress.models.spec import Prediction

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
FAMILIES = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)  # fmt: skip
"""Schedulers of diffusers whose noise follows from betas."""
DDIM = FAMILIES[:2]
SAMPLING = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "thresholding": False}
"""How pictures are sampled here, in the terms of diffusers' DDIM."""
LITTLE_SIGNAL = 1e-6
"""alpha^2 of the last timestep. Stable Diffusion's is 5e-3, that of linear betas to 0.02 is 4e-5, that of squaredcos_cap_v2 2e-9."""


@dataclass(frozen=True)
class SchedulerFacts:
    """The class, the schedule of the noise, what the U-Net predicts, and how pictures are sampled here."""

    scheduler: str
    settings: ScheduleSettings
    prediction: Prediction
    rescale_betas_zero_snr: bool
    """The last timestep had no signal left in training; `settings` cannot say it, so it is noted."""
    notes: tuple[str, ...]


def scheduler_facts(config: Fields) -> SchedulerFacts:
    """Raises `PlanError` for a scheduler, or settings of one, that tell no noise which is known here."""
    name = config.values.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        config.refuse(
            f"the scheduler is {json.dumps(name)}; it must be one whose noise follows from betas: {', '.join(FAMILIES)}. Give the settings of the "
            "one that the network was trained with, most often DDPMScheduler"
        )
        config.finish()
    config.complete({"prediction_type": "epsilon", **defaults_of(str(name))})
    start, end = config.number("beta_start"), config.number("beta_end")
    if not config.problems and not start <= end < 1:
        config.refuse(f"beta_start is {start} and beta_end {end}; they must be below 1, and beta_start not above beta_end")
    betas = config.choice("beta_schedule", get_args(BetaSchedule))
    predicted = config.choice("prediction_type", get_args(Prediction))
    rescaled = config.values.get("rescale_betas_zero_snr") is True
    if rescaled and predicted == "epsilon":
        config.refuse(
            "rescale_betas_zero_snr leaves nothing but noise at the last timestep, where prediction_type epsilon says nothing of the picture; "
            "it must be v_prediction"
        )
    if config.values.get("trained_betas") is not None:
        config.refuse("trained_betas are given; only betas that follow from beta_schedule are known here: give a network that was trained on these")
    if config.values.get("use_flow_sigmas"):
        config.refuse("use_flow_sigmas is set, so the network follows flows; give one that was trained on betas")
    schedule = ScheduleSettings(config.whole("num_train_timesteps", 1), start, end, _beta_schedule(betas))
    facts = SchedulerFacts(
        scheduler=str(name),
        settings=schedule,
        prediction="v_prediction" if predicted == "v_prediction" else "epsilon",
        rescale_betas_zero_snr=rescaled,
        notes=(*_notes(config, str(name)), *(_enlarged_errors(config, schedule) if predicted == "epsilon" and not config.problems else ())),
    )
    config.finish()
    return facts


def _beta_schedule(name: str) -> BetaSchedule:
    return next(one for one in get_args(BetaSchedule) if one == name)


def _notes(config: Fields, name: str) -> tuple[str, ...]:
    """How sampling differs from what the file asks for."""
    notes = []
    if config.values.get("rescale_betas_zero_snr") is True:
        notes.append(f"{config.path}: rescale_betas_zero_snr is not taken over; the schedule here keeps a little signal at the last timestep")
    if name not in DDIM:
        notes.append(f"{config.path}: {name} is taken for its noise schedule alone; sampling is DDIM, its timesteps spaced trailing")
    unlike = [f"{key} {json.dumps(value)}" for key, value in config.values.items() if key in SAMPLING and value != SAMPLING[key]]
    if name in DDIM and unlike:
        here = ", ".join(f"{key} {json.dumps(value)}" for key, value in SAMPLING.items())
        notes.append(f"{config.path}: {', '.join(unlike)} is not taken over; sampling is DDIM with {here}")
    return tuple(notes)


def _enlarged_errors(config: Fields, settings: ScheduleSettings) -> tuple[str, ...]:
    """Of a network that predicts the noise: x = (z - sigma eps) / alpha, and sampling starts at the last timestep."""
    alpha = float(NoiseSchedule(settings).alphas[-1])
    if alpha**2 >= LITTLE_SIGNAL:
        return ()
    return (
        f"{config.path}: beta_schedule {settings.beta_schedule} leaves alpha^2 = {alpha**2:.1e} of the signal at timestep "
        f"{settings.num_train_timesteps - 1}, where sampling starts, and prediction_type is epsilon: the clean latents are off there by "
        f"{1 / alpha:,.0f} times the error of the predicted noise; networks of v_prediction have no such error",
    )
