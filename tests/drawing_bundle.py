"""A bundle of three tiny networks that draw together and have learned nothing, and how its script is run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from int8_plans import quiet
from tiny_bundle import a_run, a_target, export_record
from tiny_pipeline import LENGTH, WIDTH, tokenizer
from torch import Tensor, nn

from mcompress.compress.diffusion import NoiseSchedule
from mcompress.compress.models.spec import InputSpec, Sampling
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.compress.tasks.text_to_image.original import Original, Part
from mcompress.export import backend_named
from mcompress.export.backend import captured
from mcompress.export.bundle import ExportedFile, TestVector, write_bundle
from mcompress.export.drawing import DrawingFacts
from mcompress.exporting import stated, stated_inputs
from mcompress.targets.exports import ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.schema import Target
from mcompress.whole_picture import facts_of

LATENTS = (1, 4, 6, 5)
"""Neither square nor of even sides, so that axes cannot be confused unseen."""
ENLARGED, SCALING = 2, 0.25
PROMPT = "a red ring"
DDIM = Sampling("epsilon", 4, 3.0)
LCM = Sampling("v_prediction", 3, 2.5, "lcm", 7)
"""Of a grid that does not divide the timesteps."""
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig()}
TOKENS = InputSpec("tokens", (1, LENGTH), (0.0, 519.0))
NOISY = (
    InputSpec("latents", LATENTS, (-4.5, 4.5)),
    InputSpec("timestep", (1,), (0.0, 999.0)),
    InputSpec("text", (1, LENGTH, WIDTH), (-1.0, 1.0)),
)
SCALE = InputSpec("guidance", (1,), (1.0, 14.0))
CLEAN = InputSpec("latents", LATENTS, (-18.0, 18.0))


class Reader(nn.Module):
    """Tokens to states: each token and each place in the text tell."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("frequencies", torch.linspace(0.05, 1.7, WIDTH))
        self.register_buffer("places", torch.linspace(0, 3, LENGTH)[:, None])

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = torch.tanh(self.mixed(torch.sin(tokens[:, :, None] * self.frequencies + self.places)))
        return states


class Remover(nn.Module):
    """Noisy latents to something that all inputs tell in, of about their size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 12, 3, padding=1), nn.Conv2d(12, 4, 3, padding=1)
        self.text, self.time = nn.Linear(WIDTH, 12), nn.Linear(1, 12)

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        told = 4 * self.text(text.mean(1)) + self.time(timestep[:, None] / 1000)
        made: Tensor = latents + self.last(torch.tanh(self.first(latents) + told[:, :, None, None]))
        return made


class Guided(nn.Module):
    """The same with the scale of guidance as an input."""

    def __init__(self) -> None:
        super().__init__()
        self.remover = Remover()

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, guidance: Tensor) -> Tensor:
        made: Tensor = self.remover(latents, timestep, text * (guidance / 2)[:, None, None])
        return made


class Shower(nn.Module):
    """Latents to a picture of twice their sides."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(4, 12, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        picture: Tensor = nn.functional.pixel_shuffle(self.colours(latents / 4), ENLARGED)
        return picture


def networks(sampling: Sampling) -> dict[str, nn.Module]:
    torch.manual_seed(3)
    unet = Guided() if sampling.method == "lcm" else Remover()
    return {"text_encoder": Reader().eval(), "unet": unet.eval(), "decoder": Shower().eval()}


def inputs_of(sampling: Sampling) -> dict[str, tuple[InputSpec, ...]]:
    return {"text_encoder": (TOKENS,), "unet": (*NOISY, SCALE) if sampling.method == "lcm" else NOISY, "decoder": (CLEAN,)}


def original(folder: Path, sampling: Sampling) -> Original:
    made, told = networks(sampling), tokenizer()
    told.save_pretrained(folder)
    parts = {name: Part(name, {}, module) for name, module in made.items()}
    return Original(
        **parts,
        autoencoder=nn.Identity(),
        tokenizer=told,
        tokenizer_folder=folder,
        schedule=NoiseSchedule(),
        prediction=sampling.prediction,
        scaling=SCALING,
        longest=LENGTH,
        latents=LATENTS,
        enlarged=ENLARGED,
        digest="",
    )


def facts(folder: Path, sampling: Sampling = DDIM, prompt: str = PROMPT) -> DrawingFacts:
    return facts_of(original(folder, sampling), networks(sampling), LATENTS, sampling, prompt)


def drawn_from(specs: Sequence[InputSpec], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(one.shape, generator=generator) * (one.value_range[1] - one.value_range[0]) + one.value_range[0] for one in specs)


def exported(folder: Path, backend: str, component: str, variant: str = "float", sampling: Sampling = DDIM, **more: object) -> ExportedFile:
    """A network as a file, with a vector."""
    network, specs = networks(sampling)[component], inputs_of(sampling)[component]
    examples, plan = drawn_from(specs, 0), None
    with captured(folder / "log.txt"):
        if variant == "mixed":
            program = graph_of(export_program(network, *examples))
            samples = (drawn_from(specs, seed) for seed in range(4))
            plan = uniform_plan(program, calibrate(program, samples, "mse", tuple(one.value_range for one in specs), 4, quiet)[0])
        module = backend_named(backend)
        named = dict(zip((one.name for one in specs), examples, strict=True))
        written = module.write(CONFIGS[backend], network, named, plan, folder / f"tiny-{component}-{variant}")
        values = tuple(one.numpy() for one in examples)
        output = module.load(written.path, 1).run(*values)
    gave = tuple(stated(port, (-1.0, 1.0)) for port in written.outputs)
    of = {"component": None if component == "unet" else component, "recommended": False, **more}
    record = export_record(written.path, backend=backend, variant=variant, precision_counts=written.precision_counts, **of)
    return ExportedFile(record, written.path, stated_inputs(written.inputs, specs), gave, (TestVector("noise", values, output, output),))


def target(**more: object) -> Target:
    return a_target(model={"task": "text_to_image"}, **more)


def bundle(folder: Path, drawing: DrawingFacts, *files: ExportedFile, **more: object) -> Path:
    run = a_run(*(file.record for file in files))
    return write_bundle(folder / "bundle", run=run, target=target(**more), files=files, plan=None, drawing=drawing)


def draw(folder: Path, *arguments: object, without: Sequence[str] = (), script: str = "draw.py") -> subprocess.CompletedProcess[str]:
    """Run a script of the bundle in an interpreter that cannot import torch, mcompress, Pillow, or what is named."""
    names = ["torch", "mcompress", "PIL", "transformers", "diffusers", *without]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({names!r})); import runpy; sys.path.insert(0, {str(folder)!r}); del sys.argv[0]; "
    command = [sys.executable, "-B", "-c", blocked + "runpy.run_path(sys.argv[0], run_name='__main__')", str(folder / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
