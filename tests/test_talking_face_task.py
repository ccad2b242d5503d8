"""The talking face as a task: what networks get, that nothing of the answer is in it, the user's folders, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcompress.compress.tasks.talking_face import recordings
from mcompress.compress.tasks.talking_face.clips import CLIPS, synthetic_clip
from mcompress.compress.tasks.talking_face.embedded import DRAWN_BY, embedded, recording
from mcompress.compress.tasks.talking_face.recordings import Recording, RecordingSet, digest_of, read_recordings
from mcompress.compress.tasks.talking_face.sound import write_wav
from mcompress.compress.tasks.talking_face.task import HELD_OUT_PER_CLIP, LEAST_APART, MASKED_FROM, TalkingFace
from mcompress.compress.tasks.talking_face.windows import SETTINGS, windows_of
from mcompress.errors import PlanError
from mcompress.targets.schema import DataConfig

FRAMES = 50


def made(name: str, start: int, frames: int = FRAMES) -> Recording:
    """A recording in which every picture and every window has one value, from which its frame is told: frame k has k + start."""
    numbers = torch.arange(start, start + frames)
    faces = numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 96, 96).contiguous()
    return Recording(name, faces, (numbers / 100.0)[:, None, None, None].expand(-1, 1, 80, 16).contiguous())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def task() -> TalkingFace:
    return TalkingFace(*(RecordingSet((made("a", start), made("b", start + FRAMES)), "") for start in (0, 100, 150)))


def test_inputs_are_the_masked_frame_its_reference_and_its_speech(task: TalkingFace) -> None:
    (faces, speech), truth = task.training_batch(64, 96, generator())
    assert (faces.shape, speech.shape, truth.shape) == ((64, 6, 96, 96), (64, 1, 80, 16), (64, 3, 96, 96))
    frames, references = (truth * 255).round()[:, 0, 0, 0], (faces * 255).round()[:, 3, 0, 0]
    assert torch.equal(faces[:, :3, :MASKED_FROM], truth[:, :, :MASKED_FROM])
    assert not faces[:, :3, MASKED_FROM:].any(), "the mouth is not given"
    torch.testing.assert_close(speech[:, 0, 0, 0] * 100, frames)
    assert torch.equal(frames // FRAMES, references // FRAMES), "the reference is of the same clip"
    apart = (references - frames).abs()
    assert int(torch.minimum(apart, FRAMES - apart).min()) >= LEAST_APART
    assert set(frames.int().tolist()) <= set(range(2 * FRAMES))
    assert len(set(frames.int().tolist())) > 20
    assert (frames[1:] - frames[:-1] != 1).sum() > 50, "any frames"


def test_the_expert_judges_neighbours_of_one_clip(task: TalkingFace) -> None:
    _, truth = task.for_expert().training_batch(64, 96, generator())
    frames = (truth * 255).round()[:, 0, 0, 0]
    assert torch.equal(frames[:5] - frames[0], torch.arange(5.0))
    assert (frames[6:] - frames[5:-1] != 1).sum() > 50, "and then any frames"


def test_batches_are_functions_of_their_generator_and_parts_do_not_mix(task: TalkingFace) -> None:
    one, again, other = (task.training_batch(8, 96, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0][0], again[0][0])
    assert not torch.equal(one[1], other[1])
    (_, speech), truth = task.validation_batch()
    assert torch.equal(truth, task.validation_batch()[1])
    assert 1.0 <= float(speech.min()) < float(speech.max()) < 2.0
    assert all(float(sample.inputs[1].min()) >= 1.5 for sample in task.held_out())
    assert len(task.held_out()) == len({sample.name for sample in task.held_out()}) == 2 * HELD_OUT_PER_CLIP


def test_quality_is_that_of_the_lower_half_and_the_baseline_is_the_reference(task: TalkingFace) -> None:
    sample = task.held_out()[0]
    upper = sample.truth.clone()
    upper[:, :, :MASKED_FROM] = 0.0
    assert task.quality(upper, sample.truth) == float("inf")
    lower = sample.truth.clone()
    lower[:, :, MASKED_FROM:] += 0.1
    assert task.quality(lower, sample.truth) == pytest.approx(20.0, abs=0.2)
    assert torch.equal(task.baseline(sample), sample.inputs[0][:, 3:])


def test_mirroring_leaves_pictures_together(task: TalkingFace) -> None:
    ramp = torch.linspace(0, 1, 96).expand(48, 3, 96, 96)
    one, other = task.reorient((ramp, 1 - ramp), generator(3))
    assert torch.allclose(one, 1 - other)
    mirrored = one[:, 0, 0, 0] > 0.5
    assert 0 < int(mirrored.sum()) < 48
    first = torch.stack([task.for_expert().reorient((ramp,), generator(seed))[0][:5, 0, 0, 0] > 0.5 for seed in range(12)])
    assert (first == first[:, :1]).all(), "frames that are judged together are mirrored together"
    assert len(set(first[:, 0].tolist())) == 2


def test_networks_are_told_what_they_take(task: TalkingFace) -> None:
    face, audio = task.input_specs((2, 6, 96, 96))
    assert (face.name, face.shape, face.value_range) == ("face", (2, 6, 96, 96), (0.0, 1.0))
    assert (audio.name, audio.shape, audio.value_range) == ("audio", (2, 1, 80, 16), (-4.0, 4.0))
    (sample,) = task.calibration_samples(1, (2, 6, 96, 96), 0)
    assert [tuple(one.shape) for one in sample.inputs] == [face.shape, audio.shape]


def test_embedded_clips_are_drawn_when_they_are_looked_at_and_their_digest_is_that_of_what_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr("mcompress.compress.tasks.talking_face.embedded.synthetic_clip", lambda seed: drawn.append(seed) or synthetic_clip(seed, 0.8))
    recording.cache_clear()
    task = TalkingFace.from_config(DataConfig())
    assert task.data_digest == TalkingFace.from_config(DataConfig()).data_digest
    assert not drawn
    first = task.held_out_recordings[0]
    assert drawn == [CLIPS["held_out"][0]]
    assert first is task.held_out_recordings[0]
    assert len(first.faces) == len(first.windows) == 20
    recording.cache_clear()
    folder = Path(recordings.__file__).parent
    assert {*DRAWN_BY} <= {path.stem for path in folder.glob("*.py")}
    assert len({embedded(part).digest for part in CLIPS}) == 3


# --- the user's own clips ---


def clip_folder(folder: Path, seed: int, *, sound_s: float = 1.0, canvas: int = 96) -> None:
    """One second of an embedded clip as numbered pictures with a WAV; on a canvas that is larger than the face, it lies in the middle."""
    clip = synthetic_clip(seed, 1.0)
    folder.mkdir(parents=True)
    for number, frame in enumerate(clip.frames):
        face, picture = Image.fromarray(frame.permute(1, 2, 0).numpy()), Image.new("RGB", (canvas, canvas), (90, 110, 130))
        picture.paste(face, ((canvas - 96) // 2, (canvas - 96) // 2))
        picture.save(folder / f"{number:04d}.png")
    write_wav(folder / "speech.wav", clip.samples[: int(sound_s * SETTINGS.sample_rate_hz)], SETTINGS.sample_rate_hz)


def test_folders_of_pictures_and_sound_are_read(tmp_path: Path) -> None:
    clip_folder(tmp_path / "training" / "one", 3000)
    clip_folder(tmp_path / "training" / "two", 3001, sound_s=0.6)
    clip_folder(tmp_path / "held_out" / "three", 3002)
    task = TalkingFace.from_config(DataConfig(training=tmp_path / "training", held_out=tmp_path / "held_out"))
    assert [len(part) for part in (task.training, task.validation, task.held_out_recordings)] == [1, 1, 1]
    lengths = {one.name: len(one.faces) for one in (*task.training, *task.validation, *task.held_out_recordings)}
    assert lengths == {"one": 25, "two": 15, "three": 25}
    assert any(note.startswith("two: its sound ends after 0.60 s; the 10 frames behind are left out") for note in task.skipped)
    own = synthetic_clip(3000, 1.0)
    found = next(one for one in (*task.training, *task.validation) if one.name == "one")
    in_16_bits = np.minimum(np.rint(own.samples * 32768.0), 32767).astype(np.float32) / 32768
    assert torch.equal(found.windows, windows_of(in_16_bits, 25)), "exactly the sound of the file"
    assert digest_of([found]) != digest_of(list(task.held_out_recordings))
    assert torch.equal(found.faces, own.frames), "frames of 96x96 pixels are faces already"
    assert any(note.startswith("one: its frames are 96x96 pixels and are taken as faces that have been cut out already") for note in task.skipped)


def test_what_stands_behind_a_point_in_a_folders_name_is_no_suffix(tmp_path: Path) -> None:
    for number, name in enumerate(("s.001", "s.002")):
        clip_folder(tmp_path / name, 3000 + number)
    found = read_recordings(tmp_path, "data.training").recordings
    assert [(one.name, one.source) for one in found] == [(name, tmp_path / name) for name in ("s.001", "s.002")]


def test_the_face_is_cut_out_of_larger_frames(tmp_path: Path) -> None:
    clip_folder(tmp_path / "one", 3000, canvas=200)
    (found,) = read_recordings(tmp_path, "data.training").recordings
    own = synthetic_clip(3000, 1.0).frames
    inside = (slice(None), slice(None), slice(24, 72), slice(24, 72))
    difference = (found.faces[inside].float() - own[inside].float()).abs().mean()
    assert difference < 20, "the face itself, within a few pixels"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "data.training: folder '.*' does not exist; give a folder of videos with sound"),
        (lambda folder: folder.mkdir(), "data.training: folder '.*' holds no clip; it must hold videos with sound"),
        (lambda folder: (clip_folder(folder / "a", 3000), (folder / "a" / "speech.wav").unlink()), "'a' holds no WAV file beside its pictures"),
        (lambda folder: (clip_folder(folder / "a", 3000), (folder / "a" / "b.wav").write_bytes(b"")), "'a' holds 2 WAV files beside its pictures"),
        (lambda folder: clip_folder(folder / "a", 3000), "holds 1 clip; at least 2 are needed, one of them for validation"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "training")
    clip_folder(tmp_path / "held_out" / "x", 3001)
    with pytest.raises(PlanError, match=said):
        TalkingFace.from_config(DataConfig(training=tmp_path / "training", held_out=tmp_path / "held_out"))


def test_every_bad_clip_is_named_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(PlanError) as refused:
        read_recordings(tmp_path, "data.training")
    assert [problem.endswith("named by number, as 0001.png") for problem in refused.value.problems] == [True, True]
