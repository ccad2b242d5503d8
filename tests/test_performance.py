"""Whole clips performed and judged: the truth, the reference, speech that is late, files in the cache, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_videos import encode, tone
from PIL import Image
from tiny_bundle import a_run, a_target, export_record
from torch import Tensor, nn

from mcompress import elsewhere, performing
from mcompress.artifact import load_artifact, save_output
from mcompress.cache import Cache, Entry
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.models.wav2lip import WITHOUT_BLOCKS, wav2lip
from mcompress.compress.stage import StageOutput
from mcompress.compress.tasks.performance import Judgement
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.talking_face.footage import Footage, given_footage
from mcompress.compress.tasks.talking_face.judging import correlation
from mcompress.compress.tasks.talking_face.performance import REAL, REFERENCE, SHIFT, SHIFTED, STILL, ClipPerformance
from mcompress.compress.tasks.talking_face.recordings import Recording, read_recordings
from mcompress.compress.tasks.talking_face.showing import BAND, FOOT, GAP, side_by_side
from mcompress.compress.tasks.talking_face.sound import read_sound, write_wav
from mcompress.compress.tasks.talking_face.task import MASKED_FROM, TalkingFace, example
from mcompress.compress.tasks.talking_face.videos import read_frames
from mcompress.compress.tasks.translation.task import Translation
from mcompress.console import Silent
from mcompress.environment import package_versions
from mcompress.errors import ParityError, PlanError
from mcompress.export import backend_named
from mcompress.export.backend import captured
from mcompress.export.bundle import ExportedFile
from mcompress.exporting import ExportResult
from mcompress.planning import Plan
from mcompress.record import HIGHEST_DB, VIDEO, DeviceLatency, Run
from mcompress.targets.device_files import load_device
from mcompress.targets.exports import OnnxConfig
from mcompress.targets.schema import DataConfig

ON = "a test"
WIDTHS = {"face_widths": [4] * 6, "audio_widths": [4] * 5, "decoder_widths": [4] * 7, "output_width": 4}


@pytest.fixture(scope="module")
def task() -> TalkingFace:
    return TalkingFace.from_config(DataConfig())


@pytest.fixture(scope="module")
def clip(task: TalkingFace) -> ClipPerformance:
    made = task.performance()
    assert made is not None
    return made


def told(clip: ClipPerformance, late: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """A performer that knows the clip by heart, and answers with the frame `late` frames before the wanted one.

    It tells by the speech which that is, and by the upper half of the face at the end, where windows go no further and are the same.
    """
    windows, upper = clip.footage.recording.windows.flatten(1).double(), (clip.truth[:, :, :MASKED_FROM].double() / 255.0).flatten(1)

    def run(face: Tensor, audio: Tensor) -> Tensor:
        unlike = torch.cdist(face[:, :3, :MASKED_FROM].flatten(1).double(), upper)
        frames = (1e3 * torch.cdist(audio.flatten(1).double(), windows) + unlike).argmin(1)
        return clip.truth[(frames - late) % len(clip.truth)].float() / 255.0

    return run


def numbers(judged: Judgement) -> dict[str, float]:
    return {one.what: one.value for one in judged.measurements}


def test_who_returns_the_truth_is_as_good_as_the_real_frames(clip: ClipPerformance) -> None:
    frames = clip.perform(told(clip), 7)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, clip.truth)
    judged = clip.judge(frames, ON)
    real = clip.contexts()[REAL]
    assert numbers(judged) == numbers(real)
    assert judged.curves == real.curves
    found = numbers(judged)
    assert found["psnr_db"] == HIGHEST_DB
    assert found["mouth_opening_error"] < 0.005
    assert found["mouth_width_error"] < 0.008
    assert min(found["mouth_opening_correlation"], found["mouth_width_correlation"], found["mouth_explained"]) > 0.98
    for name, truth in clip.curves.items():
        assert len(truth) == len(judged.curves[name]) == len(clip.truth) == 100
        error = np.abs(np.array(truth) - np.array(judged.curves[name])).mean()
        assert error == pytest.approx(found[f"{name}_error"], abs=2e-5), "the numbers are those of the curves"
    assert all(one.how == "host" and one.on == ON and one.source for one in judged.measurements)


def test_networks_get_the_masked_frame_one_reference_and_the_speech_of_each_frame(clip: ClipPerformance) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def run(face: Tensor, audio: Tensor) -> Tensor:
        seen.append((face, audio))
        return face[:, 3:]

    frames = clip.perform(run, 7)
    assert {tuple(face.shape) for face, _ in seen} == {(7, 6, 96, 96)}, "the last batch is filled up"
    face, audio = (torch.cat(parts)[:100] for parts in zip(*seen, strict=True))
    assert torch.equal(audio, clip.footage.recording.windows)
    assert torch.equal((face[:, :3, :MASKED_FROM] * 255).round().to(torch.uint8), clip.truth[:, :, :MASKED_FROM])
    assert not face[:, :3, MASKED_FROM:].any(), "the mouth is not given"
    assert torch.equal(frames, clip.truth[REFERENCE].expand(100, -1, -1, -1))
    still, real = numbers(clip.judge(frames, ON)), numbers(clip.contexts()[REAL])
    assert still["mouth_opening_error"] > 20 * real["mouth_opening_error"]
    assert still["mouth_width_error"] > 10 * real["mouth_width_error"]
    assert still["psnr_db"] < 30
    assert still["lip_sync"] < real["lip_sync"] - 0.2


def test_the_reference_held_still_is_what_doing_nothing_is_worth(clip: ClipPerformance) -> None:
    frames, known = clip.truth[REFERENCE].expand_as(clip.truth), clip.footage.mouth
    assert known is not None
    still, whole = clip.contexts()[STILL], numbers(clip.judge(frames, ON))
    found = numbers(still)
    assert (found["psnr_db"], found["lip_sync"]) == (whole["psnr_db"], whole["lip_sync"])
    real = numbers(clip.contexts()[REAL])
    assert found["lip_sync"] < real["lip_sync"] - 0.2
    for column, name in enumerate(clip.curves):
        (made,) = set(still.curves[name])
        assert made == pytest.approx(known.mouths[REFERENCE, column], abs=0.015), "the mouth of the reference, where its face stands"
        assert found[f"{name}_error"] == pytest.approx(np.abs(known.mouths[:, column] - made).mean(), abs=2e-5)
        assert f"{name}_correlation" not in found, "it stands still"
    assert found["mouth_explained"] > 0.95 * real["mouth_explained"], "there is a mouth, which does not move"


def test_lips_that_are_late_have_the_sync_of_speech_that_does_not_fit(clip: ClipPerformance) -> None:
    contexts = clip.contexts()
    fits, does_not = numbers(contexts[REAL])["lip_sync"], numbers(contexts[SHIFTED])["lip_sync"]
    assert does_not < fits - 0.2, "the expert hears the difference"
    late = numbers(clip.judge(clip.perform(told(clip, SHIFT), 20), ON))
    assert late["lip_sync"] < fits - 0.2
    assert late["mouth_opening_correlation"] < 0.6
    shifted = ClipPerformance(
        replace(clip.footage, recording=replace(clip.footage.recording, windows=clip.footage.recording.windows.roll(SHIFT, 0))),
        example,
        clip._expert,
    )
    assert numbers(shifted.judge(clip.truth, ON))["lip_sync"] == does_not, "the frames stay and the speech moves"


def test_outputs_are_clipped_and_what_is_no_picture_is_refused(clip: ClipPerformance) -> None:
    assert clip.perform(lambda face, _audio: face[:, :3] * 0 + 1.7, 50).unique().tolist() == [255]
    with pytest.raises(
        ParityError, match=r"clip 'astronaut-3000': there are NaN or infinite values in frames from 0 on; the network must not be used"
    ):
        clip.perform(lambda face, _audio: face[:, :3] / 0, 50)
    with pytest.raises(ParityError, match=r"an output has shape \(50, 6, 96, 96\); a face is \(3, 96, 96\)"):
        clip.perform(lambda face, _audio: face, 50)


def test_of_clips_of_ones_own_the_curves_are_left_out_and_without_an_expert_the_score(clip: ClipPerformance) -> None:
    bare = ClipPerformance(replace(clip.footage, mouth=None), example, None)
    judged = bare.judge(bare.truth, ON)
    assert list(numbers(judged)) == ["psnr_db"]
    assert (dict(bare.curves), dict(judged.curves)) == ({}, {})
    assert list(bare.contexts()) == [REAL, STILL]
    assert list(numbers(bare.contexts()[STILL])) == ["psnr_db"]
    mouth, score = bare.missing
    assert mouth.startswith("mouth curves of astronaut-3000: how its mouth really moved is not known")
    assert "give model.expert" in score
    short = Footage(Recording("short", clip.truth[:4], clip.footage.recording.windows[:4]), clip.footage.samples, None)
    few = ClipPerformance(short, example, clip._expert)
    assert few.missing[1] == "lip-sync score of short: it has 4 frames, and the expert judges 5 together"
    assert list(numbers(few.judge(few.truth, ON))) == ["psnr_db"]
    assert clip.missing == ()


def test_a_clip_of_ones_own_comes_with_its_sound(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "anna").mkdir(parents=True)
    for number in range(30):
        Image.fromarray(np.full((96, 96, 3), 8 * number, np.uint8)).save(folder / "anna" / f"{number:04d}.png")
    write_wav(folder / "anna" / "speech.wav", tone(1.2), 16000)
    (found,) = read_recordings(folder, "data.held_out").recordings
    assert found.source == folder / "anna"
    (folder / "anna.json").write_text("{}", encoding="utf-8")
    footage = given_footage(found)
    assert (len(footage.recording.faces), footage.mouth) == (30, None)
    assert np.array_equal(footage.samples, read_sound(folder / "anna" / "speech.wav").samples)
    long = replace(found, faces=found.faces.repeat(4, 1, 1, 1), windows=found.windows.repeat(4, 1, 1, 1))
    assert len(given_footage(long).recording.faces) == len(given_footage(long).recording.windows) == 100, "4 s are enough"
    (folder / "anna" / "speech.wav").unlink()
    with pytest.raises(PlanError, match="'anna' holds no WAV file beside its pictures; it must hold one"):
        given_footage(found)
    (folder / "anna").rename(folder / "bert")
    with pytest.raises(PlanError, match=r"data.held_out: '.*/anna' is gone since the clip 'anna' was read from it; put it back"):
        given_footage(found)


def test_what_lies_beside_a_video_is_not_taken_for_it(tmp_path: Path) -> None:
    """A file of the same stem that comes first."""
    frames = [np.full((96, 96, 3), 8 * number, np.uint8) for number in range(25)]
    encode(tmp_path / "c3.mp4", frames, sound=tone(1.0), options={"g": "50", "bf": "0"})
    (tmp_path / "c3.json").write_text("{}", encoding="utf-8")
    read = read_recordings(tmp_path, "data.held_out")
    (found,) = read.recordings
    assert (found.name, found.source) == ("c3", tmp_path / "c3.mp4")
    assert any(note.startswith("c3.json: neither a video") for note in read.notes)
    footage = given_footage(found)
    assert torch.equal(footage.recording.faces, found.faces)
    assert len(footage.samples) / 16000 == pytest.approx(1.0, abs=0.15)


def test_a_curve_that_stands_still_has_no_correlation() -> None:
    rising = np.arange(9.0)
    assert correlation(rising, 3 * rising + 1) == pytest.approx(1)
    assert correlation(rising, -rising) == pytest.approx(-1)
    assert correlation(rising, np.full(9, 0.3)) is None
    assert correlation(np.full(9, 0.3), rising) is None


def test_faces_stand_side_by_side_enlarged_and_titled() -> None:
    light, dark = torch.full((2, 3, 96, 96), 200, dtype=torch.uint8), torch.full((2, 3, 96, 96), 90, dtype=torch.uint8)
    frames = side_by_side({"truth": light, "file": dark})
    assert frames.shape == (2, 3, BAND + 192 + FOOT, 2 * 192 + 3 * GAP)
    assert frames[:, :, BAND : BAND + 192, GAP : GAP + 192].unique().tolist() == [200]
    assert frames[:, :, BAND : BAND + 192, 2 * GAP + 192 : -GAP].unique().tolist() == [90]
    first, second = frames[0, :, :BAND, : GAP + 192], frames[0, :, :BAND, 2 * GAP + 192 :]
    assert int(first.max()) > 150, "a title is written above"
    assert not torch.equal(first[:, :, -190:], second[:, :, :190]), "each its own"
    with pytest.raises(ValueError, match="must be as many and as large as each other"):
        side_by_side({"truth": light, "file": dark[:1]})


def test_tasks_of_single_pictures_have_no_performance() -> None:
    assert SuperResolution.performance(object()) is None  # type: ignore[arg-type]
    assert Translation.performance(object()) is None  # type: ignore[arg-type]


SPECS = (InputSpec("face", (1, 6, 96, 96), (0.0, 1.0)), InputSpec("audio", (1, 1, 80, 16), (-4.0, 4.0)))


def onnx_file(folder: Path, network: nn.Module) -> ExportedFile:
    with captured(folder / "log.txt"):
        written = backend_named("onnx").write(OnnxConfig(), network, {one.name: torch.rand(one.shape) for one in SPECS}, None, folder / "talk-float")
    return ExportedFile(export_record(written.path), written.path, (), (), ())


class Ran:
    """A plan, a network and its exported file, as the pipeline has them behind its exports."""

    def __init__(self, folder: Path, task: TalkingFace) -> None:
        spec = ModelSpec.taking(SPECS, "wav2lip", {**WIDTHS, **{name: list(values) for name, values in WITHOUT_BLOCKS.items()}})
        torch.manual_seed(1)
        network: nn.Module = wav2lip(**WIDTHS, **WITHOUT_BLOCKS).eval()  # type: ignore[arg-type]
        device = load_device("jetson-xavier-nx")
        target = a_target(device=device.name, model={"task": "talking_face", "input_shape": SPECS[0].shape})
        self.made = Plan(target, device, device.unit(), task, spec, network, spec, network)
        (folder / "stage").mkdir()
        save_output(StageOutput(network, spec), folder / "stage")
        self.final = load_artifact(folder / "stage")
        file = onnx_file(folder, network)
        unseen = file.record.model_copy(
            update={"file": "bundle/x.mlpackage", "parity": file.record.parity.model_copy(update={"passed": None, "runtime": "not executed: no Mac"})}
        )
        entry = Entry(folder, cached=False, seconds=0.0)
        self.exports = [ExportResult(file.record, file, (), entry), ExportResult(unseen, replace(file, record=unseen), (), entry)]
        self.run = a_run(file.record, unseen)
        self.folder, self.cache = folder / "run", Cache(folder / "cache")
        self.folder.mkdir()

    def perform(self, **more: Cache) -> Run:
        cache = more.get("cache", self.cache)
        return performing.with_performance(self.made, self.run, self.final, self.exports, cache, self.folder, Silent(), force=False)


@pytest.fixture(scope="module", autouse=True)
def _few_devices() -> Iterator[None]:
    """Each takes a quarter of a second to read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elsewhere, "list_devices", lambda: ("apple-a14", "host", "jetson-xavier-nx"))
        yield


@pytest.fixture(scope="module")
def ran(task: TalkingFace, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("ran"), task)


@pytest.fixture(scope="module")
def performed(ran: Ran) -> Run:
    return ran.perform()


def test_the_original_and_every_executed_file_perform_once(ran: Ran, performed: Run, clip: ClipPerformance, monkeypatch: pytest.MonkeyPatch) -> None:
    run = performed
    (found,) = run.performances
    file = ran.exports[0].record.file
    assert [(one.kind, one.name) for one in found.performers] == [
        ("context", REAL),
        ("context", STILL),
        ("context", SHIFTED),
        ("teacher", "teacher"),
        ("file", file),
    ]
    assert (found.clip, found.fps, found.frames, found.shown_file) == (clip.name, 25.0, 100, file)
    assert found.shown == ("truth", "original", "onnx float")
    assert found.curves == dict(clip.curves)
    expected = clip.judge(clip.perform(ran.made.teacher, 10), "PyTorch fp32")
    teacher = found.named("teacher")
    assert teacher is not None
    assert teacher.measurements == expected.measurements
    runtime = next(iter(found.named(file).measurements)).on  # type: ignore[union-attr]
    assert runtime.startswith("onnxruntime")
    assert "performance of bundle/x.mlpackage: not executed: no Mac" in found.missing
    assert run.not_measured[-1] == found.missing[-1]
    assert run.fallbacks == ran.run.fallbacks
    shown = read_frames(ran.folder / VIDEO, "video")
    assert shown.pictures.shape == (100, 3, BAND + 192 + FOOT, 3 * 192 + 4 * GAP)
    face = shown.pictures[:, :, BAND : BAND + 192, GAP : GAP + 192].float()
    assert float((face - side_by_side({"truth": clip.truth})[:, :, BAND : BAND + 192, GAP : GAP + 192].float()).abs().mean()) < 6

    ran.run.model_copy(update={"performances": run.performances, "devices": run.devices}).save(ran.folder)
    assert Run.load(ran.folder).performances == run.performances
    assert Run.load(ran.folder).devices == run.devices

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was performed before")

    monkeypatch.setattr(performing, "backend_named", never)
    monkeypatch.setattr(ClipPerformance, "perform", never)
    monkeypatch.setattr(ClipPerformance, "judge", never)
    monkeypatch.setattr(ClipPerformance, "write_video", never)
    before = (ran.folder / VIDEO).read_bytes()
    assert ran.perform() == run
    assert (ran.folder / VIDEO).read_bytes() == before


def test_without_pyav_there_is_no_video_and_it_is_said(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    versions = {**package_versions(), "av": "not installed"}
    monkeypatch.setattr(performing, "package_versions", lambda: versions)
    (ran.folder / VIDEO).write_bytes(b"of another run")
    run = ran.perform()
    (found,) = run.performances
    assert "pip install 'mcompress[video]'" in found.no_video
    assert found.shown == ()
    assert found.shown_file == ran.exports[0].record.file, "its curves are drawn all the same"
    fallback = run.fallbacks[-1]
    assert (fallback.where, fallback.what, fallback.reason) == ("performance", VIDEO, found.no_video)
    assert not (ran.folder / VIDEO).exists()


def test_estimates_say_why_there_is_none(performed: Run) -> None:
    lines = performed.devices
    assert {one.device for one in lines} == {"apple-a14", "jetson-xavier-nx"}, "this machine is left out"

    def of(device: str, model: str, files: str) -> DeviceLatency:
        return next(one for one in lines if (one.device, one.model, one.files) == (device, model, files))

    none = of("apple-a14", "compressed", "fp32")
    assert (none.latency, none.why) == (None, "its npu takes no fp32 files")
    known = of("jetson-xavier-nx", "compressed", "fp16")
    assert known.latency is not None
    assert (known.latency.how, known.latency.on, known.computed_in) == ("estimated", "jetson-xavier-nx gpu fp16", "fp16")
    assert {one.files for one in lines} == {"fp32", "fp16"}, "without a plan no file is mixed"
