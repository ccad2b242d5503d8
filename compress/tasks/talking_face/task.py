"""The talking face as a task: a face with its lower half masked, another frame of it, and speech in; the face with the mouth of that speech out.

As Wav2Lip (arXiv 2008.10010, section 4) is trained: the masked frame and the reference, a frame of the same clip, are stacked in channels, three and
three, in [0, 1]; the speech is the log-mel window that begins with the frame, as in Wav2Lip's inference (its public training code takes the one that
begins a frame earlier). Pictures are RGB here; Wav2Lip's public checkpoints were trained on BGR, which `colour_order` says.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256

import torch
from torch import Tensor, nn

from mcompress.compress.models.lip_experts import FRAMES
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.models.wav2lip import FACE_SIDE, MEL_BANDS, MEL_FRAMES
from mcompress.compress.tasks.embedded_network import embedded_network
from mcompress.compress.tasks.talking_face.clips import CLIPS
from mcompress.compress.tasks.talking_face.embedded import embedded
from mcompress.compress.tasks.talking_face.expert import ExpertSource, LipSyncExpert, embedded_expert, given_expert
from mcompress.compress.tasks.talking_face.footage import Footage, given_footage, known_footage
from mcompress.compress.tasks.talking_face.performance import ClipPerformance
from mcompress.compress.tasks.talking_face.recordings import Recording, RecordingSet, digest_of, read_recordings
from mcompress.compress.tasks.talking_face.windows import SETTINGS
from mcompress.compress.tasks.task import Inputs, OneCall, Sample
from mcompress.errors import PlanError, Problems
from mcompress.targets.schema import DataConfig, NetworkConfig

MASKED_FROM = FACE_SIDE // 2
"""Row from which on the frame is masked: its lower half."""
MOUTH_COLUMNS, MOUTH_WEIGHT = (20, 76), 6.0
"""Where the mouth is in the lower half, and how much more absolute errors there count in training: all else can be copied, and a mouth that is shut
where it should be wide open is little of the mean over a face. With 15 the embedded original came to 29.95 dB, with 6 to 30.38, with lips alike.
"""
HELD_OUT_PER_CLIP, VALIDATION_FRAMES = 3, 24
LEAST_APART = 10
"""Frames between a frame and its reference, where the clip is long enough: the mouth of a neighbour would give the answer away."""
VALIDATION_SEED = 7_919
VALIDATION_SHARE = 10
"""One of so many clips of a user's own is kept for choosing between candidates."""


class TalkingFace(OneCall):
    """Recordings of faces that speak, one person in each."""

    name = "talking_face"
    metric = "psnr_db"
    metric_title = "PSNR of the lower halves of held-out faces, RGB"
    baseline_name = "the reference frame"
    input_range = output_range = (0.0, 1.0)
    input_channels = 6
    scale = 1
    validation_side = FACE_SIDE
    paired = True

    def __init__(
        self,
        training: RecordingSet,
        validation: RecordingSet,
        held_out: RecordingSet,
        expert: ExpertSource | None = None,
        footage: Callable[[], Footage] | None = None,
    ) -> None:
        """`footage`: a held-out clip whole, with its sound, for networks to perform."""
        self.training, self.validation, self.held_out_recordings = training.recordings, validation.recordings, held_out.recordings
        self.skipped = training.notes + validation.notes + held_out.notes
        self._expert, self._footage, self._neighbours = expert, footage, 1
        digests = [one.digest for one in (training, validation, held_out)] + ([] if expert is None else [expert.digest])
        self.data_digest = sha256(":".join(digests).encode()).hexdigest()

    @classmethod
    def from_config(cls, data: DataConfig, expert: NetworkConfig | None = None) -> TalkingFace:
        """The user's folders of clips, or the embedded clips, and the lip-sync expert for them: the given one, or for the embedded clips theirs.

        Raises `PlanError` for data or an expert that cannot be used.
        """
        given = None if expert is None else given_expert(expert)
        if data.training is None or data.held_out is None:
            footage = partial(known_footage, CLIPS["held_out"][0])
            return cls(embedded("training"), embedded("validation"), embedded("held_out"), given or embedded_expert(), footage)
        problems = Problems()
        training = problems.of(partial(read_recordings, data.training, "data.training"))
        held_out = problems.of(partial(read_recordings, data.held_out, "data.held_out"))
        if training is None or held_out is None:
            raise PlanError(problems.found)
        clips = training.recordings
        if len(clips) < 2:
            raise PlanError([f"data.training: folder '{data.training}' holds {len(clips)} clip; at least 2 are needed, one of them for validation"])
        apart = max(2, min(VALIDATION_SHARE, len(clips)))
        kept = clips[::apart]
        rest = tuple(one for number, one in enumerate(clips) if number % apart)
        footage = partial(given_footage, held_out.recordings[0])
        return cls(RecordingSet(rest, digest_of(rest), training.notes), RecordingSet(kept, digest_of(kept)), held_out, given, footage)

    def input_specs(self, input_shape: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """The faces, and the speech of each."""
        audio = (input_shape[0], 1, MEL_BANDS, MEL_FRAMES)
        return (InputSpec("face", input_shape, self.input_range), InputSpec("audio", audio, (-SETTINGS.largest, SETTINGS.largest)))

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """The small generator that ships."""
        return embedded_network(self.name, self.input_specs(input_shape))

    def expert(self) -> LipSyncExpert:
        """Raises `PlanError` for clips of one's own beside which no expert is given: the embedded one knows the embedded faces alone."""
        if self._expert is None:
            raise PlanError(
                [
                    "model.expert is not given, and the lip-sync expert that ships was made from the embedded clips alone; for clips of your own "
                    "give model.expert: {network: syncnet, checkpoint: FILE, colour_order: BGR}, or set expert to 0"
                ]
            )
        return self._expert.load()

    def for_expert(self) -> TalkingFace:
        """Training batches begin with five neighbours of one clip; else no two frames have to do with one another, which teaches more."""
        made = copy.copy(self)
        made._neighbours = FRAMES
        return made

    def performance(self) -> ClipPerformance | None:
        """The first held-out clip, 4 s of it; None for a task that was made without its sound. Raises `PlanError` where that is gone."""
        if self._footage is None:
            return None
        return ClipPerformance(self._footage(), example, None if self._expert is None else self._expert.load())

    def held_out(self) -> tuple[Sample, ...]:
        """Some frames of each held-out clip."""
        return self._held_out

    @cached_property
    def _held_out(self) -> tuple[Sample, ...]:
        found = []
        for one in self.held_out_recordings:
            count = len(one.faces)
            for number in range(HELD_OUT_PER_CLIP):
                frame = (2 * number + 1) * count // (2 * HELD_OUT_PER_CLIP)
                inputs, truth = example(one, frame, (frame + count // 2) % count)
                found.append(Sample(f"{one.name}-{frame:04d}", inputs, truth))
        return tuple(found)

    @property
    def held_out_sizes(self) -> Mapping[str, tuple[int, int]]:
        """One size stands for all of them: 96, 96."""
        return {"faces": (FACE_SIDE, FACE_SIDE)}

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """Frames of clips that are not trained on, always the same."""
        return self._drawn(self.validation, VALIDATION_FRAMES, torch.Generator().manual_seed(VALIDATION_SEED))

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:  # noqa: ARG002  (whole faces)
        """Frames of any clips, each with a random reference of its clip, mirrored or not.

        Faces (N, 6, 96, 96), speech (N, 1, 80, 16), truths (N, 3, 96, 96).
        """
        (faces, speech), truth = self._drawn(self.training, batch_size, generator, self._neighbours)
        faces, truth = self.reorient((faces, truth), generator)
        return (faces, speech), truth

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Inputs:
        """Inputs as in training: of recordings the truth is always known."""
        return self.training_batch(batch_size, crop_size, generator)[0]

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Faces as in training."""
        return self.training_batch(batch_size, crop_size, generator)[1]

    def reorient(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Each frame mirrored left to right or not, alike in all of `images`; neighbours alike."""
        count = len(images[0])
        mirror = torch.rand(len(_runs(count, self._neighbours)), generator=generator) < 0.5
        mirror = mirror.repeat_interleave(torch.tensor(_runs(count, self._neighbours)))
        return tuple(torch.where(mirror.to(image.device)[:, None, None, None], image.flip(3), image) for image in images)

    def weighted(self, pictures: Tensor) -> Tensor:
        """The middle of the lower half, where the mouth is, counts `MOUTH_WEIGHT` times as much as the rest."""
        weights = torch.ones(FACE_SIDE, FACE_SIDE)
        weights[MASKED_FROM:, slice(*MOUTH_COLUMNS)] = MOUTH_WEIGHT
        return pictures * (weights / weights.mean()).to(pictures.device)

    def smallest_crop(self) -> int:
        """Faces are never cut."""
        return FACE_SIDE

    def largest_crop(self) -> int:
        """Faces are never cut."""
        return FACE_SIDE

    def count_fitting(self, crop_size: int) -> tuple[int, int]:
        """Clips whose faces are large enough for crops of this size, and all of them."""
        return len(self.training) if crop_size <= FACE_SIDE else 0, len(self.training)

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Frames of the training clips, `input_shape[0]` in each sample."""
        generator = torch.Generator().manual_seed(seed)
        for index in range(count):
            yield Sample(f"frames #{index}", *self._drawn(self.training, input_shape[0], generator))

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """Peak signal-to-noise ratio of the lower half, RGB, dB, after clipping to [0, 1] and rounding to 8 bits: the upper half is given."""
        lower = (output[:, :, MASKED_FROM:].clamp(0.0, 1.0) * 255.0).round() / 255.0
        return float(-10.0 * torch.log10(torch.mean((lower - truth[:, :, MASKED_FROM:]) ** 2)))

    def baseline(self, sample: Sample) -> Tensor:
        """The reference frame as it is."""
        return sample.picture[:, 3:]

    def _drawn(self, recordings: Sequence[Recording], count: int, generator: torch.Generator, neighbours: int = 1) -> tuple[Inputs, Tensor]:
        """`count` frames, the first `neighbours` of which follow one another; of a clip shorter than that its last frame again."""
        found, runs = [], _runs(count, neighbours)
        for which, run in zip(torch.randint(len(recordings), (len(runs),), generator=generator).tolist(), runs, strict=True):
            one = recordings[which]
            length = len(one.faces)
            first = int(torch.randint(max(1, length - run + 1), (1,), generator=generator))
            apart = min(LEAST_APART, length // 2)
            nearest = apart + run - 1  # from the first frame: so it is far enough from the last one
            away = int(torch.randint(nearest, max(nearest + 1, length - apart + 1), (1,), generator=generator))
            found += [example(one, min(first + step, length - 1), (first + away) % length) for step in range(run)]
        faces, speech = (torch.cat(parts) for parts in zip(*(inputs for inputs, _ in found), strict=True))
        return (faces, speech), torch.cat([truth for _, truth in found])


def _runs(count: int, neighbours: int) -> list[int]:
    """Lengths of the runs of a batch: one of neighbours, and frames alone."""
    first = min(count, neighbours)
    return [first, *[1] * (count - first)]


def example(recording: Recording, frame: int, reference: int) -> tuple[Inputs, Tensor]:
    """One frame as a network gets it, another one as its reference: face (1, 6, 96, 96) and speech (1, 1, 80, 16); and the frame itself."""
    truth = recording.faces[frame : frame + 1].float() / 255.0
    masked = truth.clone()
    masked[:, :, MASKED_FROM:] = 0.0
    face = torch.cat([masked, recording.faces[reference : reference + 1].float() / 255.0], 1)
    return (face, recording.windows[frame : frame + 1]), truth
