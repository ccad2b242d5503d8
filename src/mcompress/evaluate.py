"""Quality on held-out data, of networks in PyTorch and of exported files in their runtimes, and the pictures for the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mcompress.compress.models.spec import holds_pictures
from mcompress.compress.stage import CompanionNetwork
from mcompress.compress.tasks.task import Sample, Task
from mcompress.errors import ParityError
from mcompress.export.fidelity import FLOAT_STUDENT, TEACHER, likeness
from mcompress.export.tiled import run_tiled
from mcompress.record import HIGHEST_DB, PictureRecord

Array = NDArray[np.float32]
Scores = dict[str, dict[str, float]]
PARITY_INPUTS = 4


def score_network(task: Task, network: nn.Module, pictures: Path | None, name: str) -> Scores:
    """Sample -> {metric: value} for a network in PyTorch, which `task` is for; pictures are written as `pictures/<sample>/<name>.png`."""

    def run(sample: Sample) -> Tensor:
        with torch.no_grad():
            return task.answer(network, sample)

    return _score(task, run, pictures, name)


def score_baseline(task: Task, pictures: Path) -> Scores:
    """The trivial reference; also writes truths and inputs, of those of six channels the face that is to be made, without its reference."""
    for sample in task.held_out():
        if holds_pictures(sample.picture.shape):
            save_picture(sample.picture[:, :3], task.input_range, pictures / sample.name / "input.png")
        _save(task, sample.truth, pictures / sample.name / "truth.png")
    return _score(task, task.baseline, pictures, task.baseline_name)


class References:
    """What the teacher and the float student make of the held-out samples, computed when it is first asked for and then kept.

    The teacher computes whole pictures, as users of the original see them; the student the same tiles as the files, so that nothing but writing the
    file is between them. The pictures lie in a nameless file below `folder`, not in memory; it is gone when the process ends, however that ends.
    """

    def __init__(self, task: Task, teacher: CompanionNetwork, student: CompanionNetwork, folder: Path) -> None:
        of_teacher, of_student = task.for_network(teacher.spec), task.for_network(student.spec)
        self._makers: Mapping[str, Callable[[Sample], Array]] = {
            TEACHER: lambda sample: _without_gradients(of_teacher, teacher.network, sample),
            FLOAT_STUDENT: lambda sample: _of_file(of_student, partial(_call, student.network), sample, student.spec.input_shape),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by __exit__)
        self._places: dict[tuple[str, int], tuple[int, tuple[int, ...]]] = {}

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        """Give the disk space back."""
        self._file.close()

    def of(self, index: int, sample: Sample) -> dict[str, Array]:
        """Reference -> its picture (1, C, H, W) of the held-out sample with that index."""
        return {reference: self._kept(reference, index, sample) for reference in self._makers}

    def _kept(self, reference: str, index: int, sample: Sample) -> Array:
        if (reference, index) not in self._places:
            made = np.ascontiguousarray(self._makers[reference](sample), dtype=np.float32)
            start = self._file.seek(0, 2)
            self._file.write(made.tobytes())
            self._places[reference, index] = start, made.shape
        start, shape = self._places[reference, index]
        self._file.seek(start)
        return np.frombuffer(self._file.read(4 * int(np.prod(shape))), dtype=np.float32).reshape(shape)


def score_file(
    task: Task, run: Callable[..., Array], input_shape: tuple[int, ...], references: References, pictures: Path | None, name: str
) -> dict[str, PictureRecord]:
    """Sample -> quality and likeness to the references, for an exported file, run on tiles of its fixed input size.

    `task` is as it is for the network of the file. Raises `ParityError` for a file that computes NaN or infinity on a sample.
    """
    found = {}
    for index, sample in enumerate(task.held_out()):
        output = _of_file(task, run, sample, input_shape)
        as_tensor = torch.from_numpy(output)
        try:
            looked_at = task.shown(as_tensor) is not None
            against = (
                {who: likeness(output, picture, task.output_range) for who, picture in references.of(index, sample).items()} if looked_at else {}
            )
        except ParityError as error:
            raise ParityError(f"held-out sample '{sample.name}': {error}") from error
        found[sample.name] = PictureRecord(quality=_quality(task, as_tensor, sample), against=against)
        if pictures is not None:
            _save(task, as_tensor, pictures / sample.name / f"{name}.png")
    return found


def _of_file(task: Task, run: Callable[..., Array], sample: Sample, input_shape: tuple[int, ...]) -> Array:
    """What a file of this input size makes of a whole sample: at once where it fits, else tile by tile of its picture; what else the file takes is
    the same for all tiles.
    """
    if sample.picture.shape == input_shape:
        return np.ascontiguousarray(task.answer(lambda *inputs: torch.from_numpy(run(*(one.numpy() for one in inputs))), sample).numpy())
    scale, further = sample.truth.shape[2] // sample.picture.shape[2], [one.numpy() for one in sample.inputs[1:]]
    return run_tiled(lambda tile: run(tile, *further), sample.picture.numpy(), (input_shape[2], input_shape[3]), scale)


@torch.no_grad()
def _without_gradients(task: Task, network: nn.Module, sample: Sample) -> Array:
    return task.answer(network, sample).numpy()


@torch.no_grad()
def _call(network: nn.Module, *inputs: Array) -> Array:
    return network(*map(torch.from_numpy, inputs)).numpy()  # type: ignore[no-any-return]


def _score(task: Task, run: Callable[[Sample], Tensor], pictures: Path | None, name: str) -> Scores:
    scores = {}
    for sample in task.held_out():
        output = run(sample)
        scores[sample.name] = _quality(task, output, sample)
        if pictures is not None:
            _save(task, output, pictures / sample.name / f"{name}.png")
    return scores


def _quality(task: Task, output: Tensor, sample: Sample) -> dict[str, float]:
    """A metric without an upper end, as PSNR, has `HIGHEST_DB` for a picture that is exactly right."""
    return {task.metric: round(min(task.quality(output, sample.truth), HIGHEST_DB), 4)}


def scores_of(pictures: Mapping[str, PictureRecord]) -> Scores:
    """Sample -> {metric: value} of what `score_file` gave."""
    return {name: picture.quality for name, picture in pictures.items()}


def mean(scores: Scores) -> dict[str, float]:
    """Mean over samples, per metric."""
    metrics = {metric for values in scores.values() for metric in values}
    return {metric: round(float(np.mean([values[metric] for values in scores.values()])), 4) for metric in sorted(metrics)}


def _save(task: Task, answer: Tensor, path: Path) -> None:
    """The answer as a picture, if it is one."""
    picture = task.shown(answer)
    if picture is not None:
        save_picture(picture, task.output_range, path)


def save_picture(image: Tensor, value_range: tuple[float, float], path: Path) -> None:
    """(1, 3, H, W) with values in `value_range` as PNG."""
    low, high = value_range
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ((image[0] - low) / (high - low)).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)


def parity_inputs(task: Task, input_shape: tuple[int, ...]) -> list[tuple[NDArray[np.float32], ...]]:
    """Held-out inputs in the shapes that the exported files take: the middle of each picture, mirrored where it is too small, and the rest."""
    found = []
    for sample in task.held_out()[:PARITY_INPUTS]:
        picture = sample.picture.numpy()
        for axis in range(2, picture.ndim):
            size, wanted = picture.shape[axis], input_shape[axis]
            if size > wanted:
                picture = np.take(picture, range((size - wanted) // 2, (size - wanted) // 2 + wanted), axis=axis)
            elif size < wanted:
                pad = [(0, 0)] * 4
                pad[axis] = (0, wanted - size)
                picture = np.pad(picture, pad, mode="symmetric" if wanted >= 2 * size else "reflect")
        inputs = (picture, *(one.numpy() for one in sample.inputs[1:]))
        found.append(tuple(np.ascontiguousarray(np.repeat(one, input_shape[0], axis=0).astype(np.float32)) for one in inputs))
    return found
