"""The section of a manifest that text to image has: how a prompt and noise become a picture, by which files, called how often."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mcompress.export.manifest_part import Part
from mcompress.export.manifest_speech import Component

UNET, TEXT_ENCODER, DECODER = "unet", "text_encoder", "decoder"
PROMPT_INPUTS = 3
"""Of a U-Net: latents, timestep, text states; one that was taught guidance takes its scale as a fourth."""


class CalledComponent(Component):
    """A network of the pipeline; inputs are given in this order: of the U-Net latents, timestep, text states and, where it takes it, guidance."""

    name: Literal["text_encoder", "unet", "decoder"]
    per: Literal["text", "step", "step and text", "picture"]
    """`text`: the prompt, and with guidance by two calls the empty prompt as well."""
    calls: int = Field(ge=1)
    """Of one picture, as `sampling` says."""


class TokenizerFiles(Part):
    """What turns a prompt into tokens: byte-level byte-pair encoding, as CLIP's."""

    folder: str
    files: tuple[str, ...] = Field(min_length=2)
    longest: int = Field(ge=2)
    """Tokens of a text with its start and end; shorter ones are filled up to it, longer ones are refused."""


class NoiseSettings(Part):
    """What the noise at each timestep follows from; the names are those of diffusers' schedulers."""

    num_train_timesteps: int = Field(ge=1)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


class SamplingSettings(Part):
    """How the U-Net is called again and again."""

    method: Literal["ddim", "lcm"]
    """`ddim` goes from each timestep to the next one and from the last one to no noise; `lcm` gives clean latents and adds fresh noise in between."""
    prediction: Literal["epsilon", "v_prediction"]
    steps: int = Field(ge=1)
    timesteps: tuple[int, ...] = Field(min_length=1)
    """At which the U-Net is called, the noisiest first."""
    guidance: float = Field(ge=1)
    """Scale of classifier-free guidance; 1 is none."""
    guidance_by: Literal["two calls", "input", "none"]
    """w f(prompt) - (w - 1) f(empty prompt) by two calls of the U-Net in each step, or the scale w is an input of it."""
    grid_steps: int | None = Field(default=None, ge=1)
    """Of `lcm`: steps of the grid that the network was distilled on, of which `timesteps` are some."""
    timestep_scaling: float | None = Field(default=None, gt=0)
    """Of `lcm`: of the boundary condition."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if len(self.timesteps) != self.steps or list(self.timesteps) != sorted(set(self.timesteps), reverse=True) or min(self.timesteps) < 0:
            raise ValueError(f"timesteps are {list(self.timesteps)}; they must be {self.steps}, as many as steps, falling, from 0 on")
        is_lcm = self.method == "lcm"
        if is_lcm != (self.grid_steps is not None) or is_lcm != (self.timestep_scaling is not None):
            raise ValueError(f"grid_steps is {self.grid_steps} and timestep_scaling {self.timestep_scaling}; lcm needs both, ddim has neither")
        by = "input" if is_lcm else "none" if self.guidance == 1 else "two calls"
        if self.guidance_by != by:
            raise ValueError(f"guidance_by is '{self.guidance_by}'; with {self.method} and guidance {self.guidance:g} it is '{by}'")
        return self


class PictureFacts(Part):
    """What the decoder makes: RGB; `low` becomes 0 and `high` 255."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    low: float
    high: float


class References(Part):
    """Files of the bundle that do it with numpy alone, for a version of one's own."""

    tokens: str
    steps: str
    pictures: str
    check: str


class DrawnPicture(Part):
    """What the files of a backend drew of `WholePicture` where the bundle was made."""

    backend: str
    variant: Literal["float", "mixed"]
    picture: str | None
    """.npy, uint8 (H, W, 3); None where it was not drawn."""
    psnr_db: float | None
    """To PyTorch's picture, 200 for the same; None where it was not drawn."""
    least_db: float | None
    """What another machine must reach; None where nothing is known to hold it against."""
    basis: str
    """Where `least_db` comes from, or why there is none."""


class WholePicture(Part):
    """A prompt with its noise, and the picture that the compressed networks draw of it in PyTorch, before quantization."""

    prompt: str
    noise: str
    """.npy, float32 (1 + further, C, h, w): what the picture begins with, and of `lcm` what is added between the steps."""
    picture: str
    """.npy, uint8 (H, W, 3)."""
    drawn: tuple[DrawnPicture, ...]


class Drawing(Part):
    """How a prompt becomes a picture.

    The text encoder turns tokens (1, `longest`) into text states; the U-Net turns standard normal noise of the shape `latents` into latents, step
    by step; the decoder takes them clipped to `latent_range` and divided by `scaling_factor`.
    """

    components: tuple[CalledComponent, ...] = Field(min_length=3, max_length=3)
    """In the order in which they are executed."""
    tokenizer: TokenizerFiles
    schedule: NoiseSettings
    sampling: SamplingSettings
    latents: tuple[int, ...] = Field(min_length=4, max_length=4)
    """(1, C, h, w)."""
    latent_range: tuple[float, float]
    """Lowest and highest value that the decoder's files were written for, not yet divided."""
    scaling_factor: float = Field(gt=0)
    picture: PictureFacts
    references: References
    check: WholePicture

    @model_validator(mode="after")
    def _components_fit(self) -> Self:
        names = [component.name for component in self.components]
        if names != [TEXT_ENCODER, UNET, DECODER]:
            raise ValueError(f"components are {', '.join(names)}; they must be {TEXT_ENCODER}, {UNET} and {DECODER}, in this order")
        twice = 2 if self.sampling.guidance_by == "two calls" else 1
        needed = {TEXT_ENCODER: (1, twice), UNET: (PROMPT_INPUTS + (self.sampling.method == "lcm"), twice * self.sampling.steps), DECODER: (1, 1)}
        for component in self.components:
            if (len(component.inputs), component.calls) != needed[component.name]:
                inputs, calls = needed[component.name]
                seen = f"takes {', '.join(component.inputs)} and is called {component.calls} times"
                raise ValueError(f"the component {component.name} {seen}; with this sampling it has {inputs} inputs and {calls} calls")
        if self.sampling.timesteps[0] >= self.schedule.num_train_timesteps:
            raise ValueError(f"the first timestep is {self.sampling.timesteps[0]}; the schedule has {self.schedule.num_train_timesteps}, from 0 on")
        return self

    def file_problem(self, path: str, component: str | None, taken: tuple[str, ...], given: tuple[str, ...]) -> str | None:
        """What is wrong with a file of the bundle that takes and gives these tensors, if anything."""
        stated = next((one for one in self.components if one.name == component), None)
        if stated is None:
            return f"{path} is of the component {component}; those that draw are {', '.join(one.name for one in self.components)}"
        if (stated.inputs, stated.outputs) != (taken, given):
            made = f"{', '.join(stated.outputs)} from {', '.join(stated.inputs)}"
            return f"the component {stated.name} makes {made}; {path} makes {', '.join(given)} from {', '.join(taken)}"
        return None
