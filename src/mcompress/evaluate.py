"""Quality on held-out data, of networks in PyTorch and of exported files in their runtimes, and the pictures for the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mcompress.compress.tasks.task import Sample, Task
from mcompress.export.tiled import run_tiled

Scores = dict[str, dict[str, float]]
PARITY_INPUTS = 4


def score_network(task: Task, network: nn.Module, pictures: Path | None, name: str) -> Scores:
    """Sample -> {metric: value} for a network in PyTorch; pictures are written as `pictures/<sample>/<name>.png`."""

    def run(sample: Sample) -> Tensor:
        with torch.no_grad():
            return network(sample.input)  # type: ignore[no-any-return]

    return _score(task, run, pictures, name)


def score_baseline(task: Task, pictures: Path) -> Scores:
    """The trivial reference; also writes inputs and truths."""
    for sample in task.held_out():
        save_picture(sample.input, pictures / sample.name / "input.png")
        save_picture(sample.truth, pictures / sample.name / "truth.png")
    return _score(task, task.baseline, pictures, task.baseline_name)


def score_file(
    task: Task,
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    input_shape: tuple[int, ...],
    pictures: Path | None,
    name: str,
) -> Scores:
    """Sample -> {metric: value} for an exported file, run on tiles of its fixed input size."""

    def enlarge(sample: Sample) -> Tensor:
        scale = sample.truth.shape[2] // sample.input.shape[2]
        tile = (input_shape[2], input_shape[3])
        return torch.from_numpy(run_tiled(run, sample.input.numpy(), tile, scale))

    return _score(task, enlarge, pictures, name)


def _score(task: Task, run: Callable[[Sample], Tensor], pictures: Path | None, name: str) -> Scores:
    scores = {}
    for sample in task.held_out():
        output = run(sample)
        scores[sample.name] = {task.metric: round(task.quality(output, sample.truth), 4)}
        if pictures is not None:
            save_picture(output, pictures / sample.name / f"{name}.png")
    return scores


def mean(scores: Scores) -> dict[str, float]:
    """Mean over samples, per metric."""
    metrics = {metric for values in scores.values() for metric in values}
    return {metric: round(float(np.mean([values[metric] for values in scores.values()])), 4) for metric in sorted(metrics)}


def save_picture(image: Tensor, path: Path) -> None:
    """(1, 3, H, W) in [0, 1] as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image[0].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)


def parity_inputs(task: Task, input_shape: tuple[int, ...]) -> list[NDArray[np.float32]]:
    """Held-out inputs in the shape that the exported files take: the middle of each sample, mirrored where it is too small."""
    inputs = []
    for sample in task.held_out()[:PARITY_INPUTS]:
        picture = sample.input.numpy()
        for axis in (2, 3):
            size, wanted = picture.shape[axis], input_shape[axis]
            if size > wanted:
                picture = np.take(picture, range((size - wanted) // 2, (size - wanted) // 2 + wanted), axis=axis)
            elif size < wanted:
                pad = [(0, 0)] * 4
                pad[axis] = (0, wanted - size)
                picture = np.pad(picture, pad, mode="symmetric" if wanted >= 2 * size else "reflect")
        inputs.append(np.ascontiguousarray(np.repeat(picture, input_shape[0], axis=0).astype(np.float32)))
    return inputs
