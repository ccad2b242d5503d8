"""A bundle of a tiny talking face, which has learned nothing, and the sound and pictures to try it with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from int8_plans import quiet
from numpy.typing import NDArray
from PIL import Image
from tiny_bundle import a_run, a_target, export_record
from torch import Tensor, nn

from mcompress.compress.models.wav2lip import WITHOUT_BLOCKS, wav2lip
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.compress.tasks.photographs import embedded_photos
from mcompress.compress.tasks.talking_face.speech import utterance
from mcompress.export import backend_named
from mcompress.export.backend import captured
from mcompress.export.bundle import ExportedFile, TestVector, write_bundle
from mcompress.export.interface import facts_of
from mcompress.targets.exports import ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.schema import Target

LOUDNESS, BRIGHTNESS = 0.7, 1.5
SHAPES = {"face": (1, 6, 96, 96), "audio": (1, 1, 80, 16)}
RANGES = ((0.0, 1.0), (-4.0, 4.0))
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig()}


def inputs(seed: int) -> tuple[NDArray[np.float32], ...]:
    """Noise; the sound of the first ones is as quiet, and as loud, as it can be."""
    source = np.random.default_rng(seed)
    face = source.uniform(0, 1, SHAPES["face"]).astype(np.float32)
    audio = {1: np.full(SHAPES["audio"], -4), 2: np.full(SHAPES["audio"], 4)}.get(seed, source.uniform(-4, 4, SHAPES["audio"]))
    return face, audio.astype(np.float32)


class Louder(nn.Module):
    """The reference in its own colours, the brighter the louder the window is: what it makes can be told without it."""

    def __init__(self) -> None:
        super().__init__()
        self.sound = nn.Conv2d(1, 3, (80, 16))
        self.picture = nn.Conv2d(6, 3, 1, bias=False)
        with torch.no_grad():
            self.sound.weight.fill_(LOUDNESS / 1280)
            self.sound.bias.fill_(BRIGHTNESS)  # type: ignore[union-attr]
            self.picture.weight.copy_(torch.cat([torch.zeros(3, 3), torch.eye(3) / 2], 1)[:, :, None, None])

    def forward(self, face: Tensor, audio: Tensor) -> Tensor:
        made: Tensor = torch.sigmoid(self.picture(face) + self.sound(audio))
        return made


def louder(face: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float64]:
    """The same in numpy: (1, 6, 96, 96) and (80, 16) to (3, 96, 96)."""
    level = face[0, 3:].astype(np.float64) / 2 + LOUDNESS * window.mean(dtype=np.float64) + BRIGHTNESS
    return 1 / (1 + np.exp(-level))


def small_wav2lip() -> nn.Module:
    torch.manual_seed(0)
    return wav2lip(face_widths=(4,) * 6, audio_widths=(4,) * 5, decoder_widths=(4,) * 7, output_width=4, **WITHOUT_BLOCKS)


def exported(folder: Path, backend: str, variant: str, network: nn.Module) -> ExportedFile:
    """A network as a file, with a vector."""
    network.eval()
    examples = {name: torch.from_numpy(value) for name, value in zip(SHAPES, inputs(0), strict=True)}
    plan = None
    with captured(folder / "log.txt"):
        if variant == "mixed":
            program = graph_of(export_program(network, *examples.values()))
            samples = (tuple(map(torch.from_numpy, inputs(seed))) for seed in range(3))
            plan = uniform_plan(program, calibrate(program, samples, "mse", RANGES, 3, quiet)[0])
        module = backend_named(backend)
        written = module.write(CONFIGS[backend], network, examples, plan, folder / f"talking-{backend}-{variant}")
        output = module.load(written.path, 1).run(*inputs(0))
    took = tuple(
        facts_of(port, value_range=span, picture=port.name == "face", colour_order="RGB" if port.name == "face" else None)
        for port, span in zip(written.inputs, RANGES, strict=True)
    )
    gave = tuple(facts_of(port) for port in written.outputs)
    record = export_record(written.path, backend=backend, variant=variant, precision_counts=written.precision_counts, recommended=variant == "mixed")
    return ExportedFile(record, written.path, took, gave, (TestVector("noise", inputs(0), output, output),))


def target(**more: object) -> Target:
    return a_target(model={"task": "talking_face"}, **more)


def bundle(folder: Path, *files: ExportedFile) -> Path:
    return write_bundle(folder / "bundle", run=a_run(*(file.record for file in files)), target=target(), files=files, plan=None)


def speech(seconds: float = 1.3) -> NDArray[np.float32]:
    return utterance(7, seconds).samples


def astronaut(path: Path) -> Path:
    """256x256 pixels of the photograph, with the face in them, as a file."""
    (photo,) = embedded_photos((("skimage", "data/astronaut.png"),)).photos
    Image.fromarray(photo.pixels[:, :256, 96:352].permute(1, 2, 0).numpy()).save(path)
    return path


def talk(folder: Path, *arguments: object, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the bundle's talk.py in an interpreter that cannot import torch, mcompress, or what is named."""
    names = ["torch", "mcompress", *without]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({names!r})); import runpy; sys.path.insert(0, {str(folder)!r}); del sys.argv[0]; "
    command = [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[0], run_name='__main__')", str(folder / "talk.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
