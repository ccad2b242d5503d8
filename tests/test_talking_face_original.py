"""The embedded original of talking faces: its audio encoder learns to hear first, mouths count more in its training, and its lips follow speech."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from mcompress.compress.checkpoints import NoCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.wav2lip import Wav2Lip
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.objectives.likeness import picture_l1, truth_terms
from mcompress.compress.tasks.talking_face import hearing
from mcompress.compress.tasks.talking_face.clips import CLIPS, synthetic_clip
from mcompress.compress.tasks.talking_face.hearing import UTTERANCES, moments, teach_hearing
from mcompress.compress.tasks.talking_face.lips import measure_mouths
from mcompress.compress.tasks.talking_face.recordings import Recording, RecordingSet
from mcompress.compress.tasks.talking_face.task import MASKED_FROM, MOUTH_COLUMNS, MOUTH_WEIGHT, TalkingFace, example
from mcompress.compress.tasks.talking_face.teacher import HEARING
from mcompress.compress.train import TrainSettings, train
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

NARROW = {"face_widths": [4] * 6, "audio_widths": [8] * 5, "decoder_widths": [4] * 7, "output_width": 4}


def network() -> Wav2Lip:
    torch.manual_seed(0)
    made = build(ModelSpec("wav2lip", NARROW))
    assert isinstance(made, Wav2Lip)
    return made


def random_clips(count: int) -> RecordingSet:
    generator = torch.Generator().manual_seed(0)
    ones = (
        Recording(
            f"clip {index}",
            torch.randint(0, 256, (40, 3, 96, 96), generator=generator, dtype=torch.uint8),
            torch.rand((40, 1, 80, 16), generator=generator),
        )
        for index in range(count)
    )
    return RecordingSet(tuple(ones), "")


@pytest.fixture
def task() -> TalkingFace:
    return TalkingFace(random_clips(12), random_clips(1), random_clips(1))


def test_hearing_is_learnt_from_speech_of_no_clip_that_is_judged() -> None:
    assert set(CLIPS["training"]) <= set(UTTERANCES)
    assert not set(UTTERANCES) & {*CLIPS["validation"], *CLIPS["held_out"]}
    windows, mouths = moments((1000, 1001))
    assert (windows.shape, mouths.shape) == ((200, 1, 80, 16), (200, 2))
    torch.testing.assert_close(mouths[:100], torch.from_numpy(synthetic_clip(1000).mouths).float())


def test_an_encoder_that_was_taught_tells_the_mouth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hearing, "UTTERANCES", tuple(range(1000, 1012)))
    made = network()
    teach_hearing(made, 150, 0, tmp_path / "hearing.pt")
    windows, mouths = moments((1000, 1003, 1007))
    with torch.no_grad():
        heard = made.encode_audio(windows).flatten(1)
    heard = torch.cat((heard, torch.ones(len(heard), 1)), 1)
    told = heard @ torch.linalg.lstsq(heard, mouths).solution
    for what in range(2):
        assert np.corrcoef(told[:, what], mouths[:, what])[0, 1] > 0.75
    again = network()
    teach_hearing(again, 150, 0, tmp_path / "hearing.pt")  # it is done already
    torch.testing.assert_close(again.encode_audio(windows[:4]), made.encode_audio(windows[:4]))


def test_a_part_that_is_fixed_stays_and_the_rest_learns(task: TalkingFace) -> None:
    made = network()
    before = copy.deepcopy(made.state_dict())
    config = TrainingConfig(steps=3, batch_size=4, crop_size=96)
    objective = FitTruth(task, config, made, fixed=HEARING)
    train(objective, TrainSettings(3, 1e-2, 0, warmup_steps=1), NoCheckpoints(), lambda done, total, note: None)
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if name.startswith(f"{HEARING}.")]
    assert {name.split(".")[0] for name in changed} == {"face_encoder_blocks", "face_decoder_blocks", "output_block"}


@pytest.mark.parametrize("part", ["audio_encoder.0", "ears"])
def test_only_a_child_of_the_network_can_be_fixed(task: TalkingFace, part: str) -> None:
    with pytest.raises(ValueError, match=f"'{part}' cannot be fixed: the network's children are face_encoder_blocks, audio_encoder, "):
        FitTruth(task, TrainingConfig(batch_size=2, crop_size=96), network(), fixed=part)


def test_a_parameter_of_no_child_is_not_forgotten_beside_a_fixed_part(task: TalkingFace) -> None:
    (made := network()).register_parameter("gain", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match="the parameter 'gain' belongs to no child"):
        FitTruth(task, TrainingConfig(batch_size=2, crop_size=96), made, fixed=HEARING)


def test_errors_at_the_mouth_count_more(task: TalkingFace) -> None:
    truth = torch.full((1, 3, 96, 96), 0.5)
    wrong = {"mouth": truth.clone(), "cheek": truth.clone(), "brow": truth.clone(), "all": truth + 0.1}
    wrong["mouth"][:, :, MASKED_FROM, MOUTH_COLUMNS[0]] += 0.1
    wrong["cheek"][:, :, MASKED_FROM, MOUTH_COLUMNS[0] - 1] += 0.1
    wrong["brow"][:, :, MASKED_FROM - 1, MOUTH_COLUMNS[0]] += 0.1
    errors = {name: truth_terms(task, made, truth, 1.0, 1.0) for name, made in wrong.items()}
    absolute, squared = ({name: float(terms[term]) for name, terms in errors.items()} for term in ("truth", "squared"))
    assert absolute["mouth"] == pytest.approx(MOUTH_WEIGHT * absolute["cheek"])
    assert absolute["brow"] == pytest.approx(absolute["cheek"])
    assert absolute["all"] == pytest.approx(0.1), "the weights are 1 on average"
    assert squared == pytest.approx({name: float((made - truth).square().mean()) for name, made in wrong.items()}), "what PSNR is of has no weights"


def test_fitting_the_truth_minimises_these_errors(task: TalkingFace) -> None:
    config, shown = TrainingConfig(batch_size=2, crop_size=96), torch.Generator().manual_seed(0)
    (objective := FitTruth(task, config, network(), truth=0.5, squared=2.0)).begin_step(shown, torch.device("cpu"))
    made = objective.network(*objective.inputs)
    assert objective.terms("generator") == truth_terms(task, made, objective.truth, 0.5, 2.0)
    (alone := FitTruth(task, config, objective.network)).begin_step(shown.manual_seed(0), torch.device("cpu"))
    torch.testing.assert_close(alone.terms("generator"), {"truth": picture_l1(task, made, objective.truth)})


def test_frames_are_of_many_clips(task: TalkingFace) -> None:
    (_, speech), _ = task.training_batch(24, 96, torch.Generator().manual_seed(0))
    of_clip = [next(i for i, clip in enumerate(task.training) if (clip.windows == one).flatten(1).all(1).any()) for one in speech]
    assert len(set(of_clip)) > 5


def test_the_originals_lips_follow_speech_that_it_never_heard() -> None:
    """Opening and width; a mouth that only opens and shuts would have the second correlation near 0."""
    task = TalkingFace.from_config(DataConfig())
    _, original = task.embedded_teacher((1, 6, 96, 96))
    clip, recording = synthetic_clip(CLIPS["held_out"][1]), task.held_out_recordings[1]
    inputs = [example(recording, frame, 0)[0] for frame in range(len(clip.mouths))]
    with torch.no_grad():
        drawn = original.eval()(*(torch.cat(parts) for parts in zip(*inputs, strict=True)))
    found = measure_mouths((drawn.clamp(0, 1) * 255).round(), clip.poses, clip.face).mouths
    assert np.corrcoef(found[:, 0], clip.mouths[:, 0])[0, 1] > 0.9
    assert np.corrcoef(found[:, 1], clip.mouths[:, 1])[0, 1] > 0.85
