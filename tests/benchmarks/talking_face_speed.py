"""Wav2Lip and its compressed form in files of the same backends, executed in turns on one core; and whether the compressed one keeps up with speech.

The published original has random weights, on which time does not depend. The compressed one was trained shortly (`quantizer_networks`), so that the
planner has something to choose by: its mixed files are what the quantize stage makes for this machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from comparing_trainings import stage_context
from quantizer_networks import RECIPES, trained
from side_by_side import times_ms
from talking_face_cuts import cut_args, spec_of, task_of_clips
from torch import nn

from mcompress.compress.models.build import build, example_inputs
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import with_parameters
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.tasks.talking_face.clips import CLIPS
from mcompress.compress.tasks.talking_face.footage import known_footage
from mcompress.compress.tasks.talking_face.task import example
from mcompress.compress.tasks.talking_face.windows import windows_of
from mcompress.environment import cpu_name
from mcompress.export import backend_named
from mcompress.export.backend import Runner
from mcompress.targets.exports import ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.schema import Budget
from mcompress.targets.stages import QuantizeConfig

CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig()}
ORIGINAL, COMPRESSED = "original", "compressed"
PASSES = 5  # over a clip, for frames per second


@dataclass(frozen=True)
class File:
    """A network in a file; `precision` is `float` or `mixed`."""

    network: str
    backend: str
    precision: str
    path: Path
    runner: Runner


def compare_speed(networks: Path, rounds: int) -> dict[str, object]:
    """On one core; `networks` keeps the trained one."""
    torch.set_num_threads(1)
    core = one_core()
    with tempfile.TemporaryDirectory() as folder:
        files = written(networks, Path(folder))
        inputs = [one.numpy() for one in example_inputs(spec_of(cut_args()))]
        calls = [partial(file.runner.execute, *(port.encode(one) for port, one in zip(file.runner.inputs, inputs, strict=True))) for file in files]
        times = times_ms(calls, rounds)
        rows = [
            {
                "network": file.network,
                "backend": file.backend,
                "precision": file.precision,
                "runtime": file.runner.runtime,
                "bytes": file.path.stat().st_size,
                "median_ms": round(statistics.median(each), 4),
                "each_ms": [round(one, 4) for one in each],
            }
            for file, each in zip(files, times, strict=True)
        ]
        frames = [frames_per_second(file) for file in files if file.network == COMPRESSED]
    return {"cpu": cpu_name(), "core": core, "rounds": rounds, "files": rows, "ratios": ratios(files, times), "streams": frames}


def one_core() -> int | None:
    """Keep this process on one of the cores that it may use; None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def written(networks: Path, folder: Path) -> list[File]:
    """The files: of each backend original and compressed in float, and compressed in mixed precisions."""
    cut = trained("wav2lip-cut", networks)
    mixed, plan = quantized(cut)
    torch.manual_seed(0)
    original = build(spec_of({})).eval()
    made: tuple[tuple[str, str, nn.Module, PrecisionPlan | None], ...] = (
        (ORIGINAL, "float", original, None), (COMPRESSED, "float", cut, None), (COMPRESSED, "mixed", mixed, plan),
    )  # fmt: skip
    examples = {one.name: torch.zeros(one.shape) for one in spec_of({}).inputs}
    found = []
    for backend, config in CONFIGS.items():
        for network, precision, module, of in made:
            path = backend_named(backend).write(config, module, examples, of, folder / f"{network}-{precision}").path
            found.append(File(network, backend, precision, path, backend_named(backend).load(path, 1)))
    return found


def quantized(network: nn.Module) -> tuple[nn.Module, PrecisionPlan]:
    """As the quantize stage plans it for this machine: the network with recovered parameters, and the plan."""
    task, spec = task_of_clips(), spec_of(RECIPES["wav2lip-cut"].args)
    with tempfile.TemporaryDirectory() as work:
        context = stage_context(task, "host", Budget(), (spec, network), 0, Path(work))
        found = quantize(QuantizeConfig(), context)
    assert found.plan is not None
    return with_parameters(found.model, example_inputs(spec), found.recovered or {}), found.plan


def ratios(files: Sequence[File], times: Sequence[Sequence[float]]) -> list[dict[str, object]]:
    """How many times as long the original takes, round by round, in the same backend."""
    found: list[dict[str, object]] = []
    for file, own in zip(files, times, strict=True):
        if file.network == COMPRESSED:
            (slow,) = [each for other, each in zip(files, times, strict=True) if (other.network, other.backend) == (ORIGINAL, file.backend)]
            each = [theirs / ours for theirs, ours in zip(slow, own, strict=True)]
            low, median, high = statistics.quantiles(each, n=4)
            facts = {"median": median, "lower_quartile": low, "upper_quartile": high, "least": min(each), "greatest": max(each)}
            found.append({"backend": file.backend, "precision": file.precision, **{name: round(value, 3) for name, value in facts.items()}})
    return found


def frames_per_second(file: File) -> dict[str, object]:
    """Sound to mel windows and every frame of a held-out clip through the file, one at a time; faces are there."""
    clip = known_footage(CLIPS["held_out"][0])
    count = len(clip.recording.faces)
    faces = [example(clip.recording, frame, 0)[0][0].numpy() for frame in range(count)]
    rates = []
    for _ in range(PASSES):
        started = time.perf_counter()
        windows = windows_of(clip.samples, count).numpy()
        for face, window in zip(faces, windows, strict=True):
            file.runner.run(face, np.ascontiguousarray(window[None]))
        rates.append(count / (time.perf_counter() - started))
    return {"backend": file.backend, "precision": file.precision, "frames_per_s": round(statistics.median(rates), 1), "least": round(min(rates), 1)}
