"""Clips, sounds and checkpoints of one's own through the command line: what is converted is said, what cannot be used ends with 2 and what to do."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from encoded_videos import encode
from PIL import Image
from scipy.io import wavfile

from mcompress import cli
from mcompress.checks_data import expert_problems
from mcompress.compress.models.lip_experts import syncnet
from mcompress.compress.models.wav2lip import WITHOUT_BLOCKS, wav2lip
from mcompress.compress.tasks.photographs import embedded_photos
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.talking_face.clips import synthetic_clip
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.targets.schema import DataConfig, Target

GOOD = """\
name: t
device: snapdragon865
unit: cpu
threads: 1
model: {task: talking_face, teacher: {network: wav2lip, checkpoint: wav2lip.pth}}
data: {training: training, held_out: held_out}
stages:
  - {stage: distill, steps: 2, batch_size: 5, crop_size: 96}
exports: [{backend: onnx}]
"""
RATE_HZ, FRAMES = 16000, 6
SIZES: dict[str, object] = {"face_widths": [4] * 6, "audio_widths": [4, 5, 6, 7, 8], "decoder_widths": [4] * 7, "output_width": 4, **WITHOUT_BLOCKS}
NOISE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
Make = Callable[[Path], object]


def speech(seconds: float = 0.8, rate_hz: int = RATE_HZ) -> np.ndarray:
    """(N,) in [-1, 1]."""
    return (0.5 * np.sin(2 * np.pi * 180 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def in_16_bits(samples: np.ndarray) -> np.ndarray:
    return np.rint(samples * 32767).astype(np.int16)


SPEECH = in_16_bits(speech())


@pytest.fixture(scope="module")
def faces() -> list[np.ndarray]:
    """The first frames of a talking face, (96, 96, 3)."""
    return [frame.permute(1, 2, 0).numpy() for frame in synthetic_clip(3000, 0.8).frames[:FRAMES]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, faces: list[np.ndarray]) -> Path:
    """A target with a generator and three clips of a few frames, which can be run; to be read only."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in wav2lip(**SIZES).state_dict().items()}  # type: ignore[arg-type]
    torch.save({"state_dict": state, "global_step": 3}, folder / "wav2lip.pth")
    for name in ("training/a", "training/b", "held_out/c"):
        clip(folder / name, faces)
    (folder / "t.yaml").write_text(GOOD, encoding="utf-8")
    return folder


def clip(folder: Path, frames: list[np.ndarray], sound: np.ndarray | None = SPEECH, rate_hz: int = RATE_HZ) -> Path:
    """Numbered pictures (H, W, 3) and a WAV file."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(frames):
        Image.fromarray(picture).save(folder / f"{number:04d}.png")
    if sound is not None:
        wavfile.write(folder / "speech.wav", rate_hz, sound)
    return folder


def video(path: Path, frames: list[np.ndarray], seconds: float = 1.2, **more: object) -> Path:
    """A film of these pictures four times over, with speech."""
    encode(path, frames * 4, sound=speech(seconds) if seconds else None, options={"g": "50", "bf": "0"}, **more)  # type: ignore[arg-type]
    return path


def damaged(path: Path) -> None:
    """Overwrite a picture in the middle of a film."""
    with av.open(str(path)) as container:
        (_, _), *rest = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    start, size = rest[len(rest) // 2]
    data = bytearray(path.read_bytes())
    data[start + 5 : start + size] = np.random.default_rng(1).bytes(size - 5)
    path.write_bytes(data)


def astronaut() -> np.ndarray:
    """A face with what is around it, (192, 192, 3)."""
    (photo,) = embedded_photos([("skimage", "data/astronaut.png")]).photos
    picture = Image.fromarray(photo.pixels[:, 20:260, 100:340].permute(1, 2, 0).contiguous().numpy())
    return np.asarray(picture.resize((192, 192)))


def mcompress(*arguments: str) -> tuple[int, str]:
    """The exit code of a command line, 0 where it just ends, and what it printed to standard error, on one line."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as shown, tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stderr(shown), contextlib.redirect_stdout(printed):
            patched.setenv("COLUMNS", "1000")
            patched.setattr(sys, "argv", ["mcompress", *arguments])
            with pytest.raises(SystemExit) as caught:
                cli.main()
        shown.seek(0)
        said = shown.read()
    assert "Traceback" not in said
    return int(caught.value.code or 0), " ".join(said.split())


# --- what is handled, and said ---


@pytest.fixture(scope="module")
def converted(good: Path, tmp_path_factory: pytest.TempPathFactory, faces: list[np.ndarray]) -> str:
    """What planning says of a folder in which every clip has something that must be converted."""
    own = tmp_path_factory.mktemp("converted") / "own"
    shutil.copytree(good, own)
    training = own / "training"
    clip(training / "stereo", faces, np.stack([SPEECH, SPEECH], 1))
    clip(training / "rate44", faces, in_16_bits(speech(rate_hz=44100)), 44100)
    clip(training / "rate8", faces, in_16_bits(speech(rate_hz=8000)), 8000)
    clip(training / "bits8", faces, np.rint(speech() * 127 + 128).astype(np.uint8))
    clip(training / "loud", faces, speech() * 4)
    clip(training / "brief", faces, in_16_bits(speech(0.2)))
    (clip(training / "gap", faces) / "0003.png").unlink()
    clip(training / "around", [astronaut()] * 3)
    video(training / "fast.mp4", faces, rate=30)
    video(training / "slow.mp4", faces, rate=12)
    video(training / "hissing.mp4", faces, sound_rate_hz=44100)
    damaged(video(training / "damaged.mp4", faces))
    (training / "film.ts").write_bytes(b"")
    (training / ".hidden").mkdir()
    code, said = mcompress("plan", str(own / "t.yaml"), "--out", str(own / "runs"))
    assert code == 0, said
    return said


@pytest.mark.parametrize(
    "note",
    [
        "stereo/speech.wav: 2 channels, mixed down to their mean, because the network hears one",
        "rate44/speech.wav: 44100 Hz, resampled to 16000 Hz",
        "rate8/speech.wav: 8000 Hz, resampled to 16000 Hz; it has nothing above 4000 Hz, and the network hears up to 7600 Hz",
        "bits8/speech.wav: 8 bit, which adds rounding noise of -53 dBFS; a recording of 16 bit is better",
        "loud/speech.wav: its peak is 2 times full scale; scaled down, because samples must be in [-1, 1]",
        "brief: its sound ends after 0.20 s; the 1 frames behind are left out",
        "gap: 1 numbers are missing (the first is 3); frames are taken to follow each other all the same",
        "bits8: its frames are 96x96 pixels and are taken as faces that have been cut out already",
        "fast.mp4: 30.00 frames a second, converted to 25 by the nearest time: of 24 frames 20 are used, and make 20",
        "slow.mp4: 12.00 frames a second, converted to 25 by the nearest time: of 24 frames 24 are used, and make 50",
        "slow.mp4: its sound ends after 1.2",
        "hissing.mp4: 44100 Hz, resampled to 16000 Hz",
        "damaged.mp4: damaged after 0.48 s (Invalid data found when processing input); what is before that is used",
        "film.ts: neither a video (.mp4, .mov, .mkv, .webm, .avi, .m4v) nor a folder of pictures; left out",
    ],
)
def test_what_is_converted_is_said(note: str, converted: str) -> None:
    assert f"data: {note}" in converted


def test_what_needs_no_conversion_is_not_said(converted: str) -> None:
    assert "data: around" not in converted, "its face was found on every frame"
    assert ".hidden" not in converted
    assert len(re.findall(r"data: stereo", converted)) == 2


# --- what cannot be used ---


def empty(path: Path) -> Path:
    path.mkdir()
    return path


BAD_CLIPS: dict[str, tuple[Callable[[Path, list[np.ndarray]], object], str]] = {
    "silent": (
        lambda at, faces: clip(at, faces, SPEECH * 0),
        "sound '{at}/speech.wav' is silent: all its samples are equal, and it must reach -60 dBFS; give a recording in which somebody speaks",
    ),
    "hum": (
        lambda at, faces: clip(at, faces, SPEECH // 4000),
        "sound '{at}/speech.wav' is silent: its peak is -77 dBFS, and it must reach -60 dBFS; give a recording",
    ),
    "cancelling": (
        lambda at, faces: clip(at, faces, np.stack([SPEECH, -SPEECH], 1)),
        "sound '{at}/speech.wav' is silent when its 2 channels are mixed: ",
    ),
    "window": (
        lambda at, faces: clip(at, faces, in_16_bits(speech(0.19))),
        "sound '{at}/speech.wav' lasts 190 ms; it must last at least 200 ms, one mel window, so give a longer recording",
    ),
    "rate4": (
        lambda at, faces: clip(at, faces, in_16_bits(speech(rate_hz=4000)), 4000),
        "sound '{at}/speech.wav' cannot be read (its rate is 4000 Hz; 8000 to 192000 Hz are read); it must be a whole WAV",
    ),
    "nan": (
        lambda at, faces: clip(at, faces, np.where(np.arange(12800) == 77, np.float32(np.nan), speech())),
        "sample 77 of sound '{at}/speech.wav' is nan, one of 1 that are no sound; floating-point samples must be in [-1, 1], so repair",
    ),
    "letter": (
        lambda at, faces: (clip(at, faces) / "speech.wav").write_text("speech"),
        "sound '{at}/speech.wav' cannot be read (it begins with b'speech', and a WAV file with RIFF and WAVE)",
    ),
    "cut": (
        lambda at, faces: (clip(at, faces) / "speech.wav").write_bytes((at / "speech.wav").read_bytes()[:900]),
        "cannot be read (truncated, or written to a pipe: its header promises 25600 bytes of sound, and there are 856); it must be a whole WAV",
    ),
    "mute": (lambda at, faces: clip(at, faces, None), "'mute' holds no WAV file beside its pictures; it must hold one, the speech of these frames"),
    "twice": (
        lambda at, faces: shutil.copy(clip(at, faces) / "speech.wav", at / "other.wav"),
        "'twice' holds 2 WAV files beside its pictures; it must hold one",
    ),
    "noise": (
        lambda at, faces: clip(at, [NOISE] * 2),
        "noise: no face found; one must be upright, look at the camera and span at least a sixth of the shorter side: crop to one face",
    ),
    "couple": (
        lambda at, faces: clip(at, [np.concatenate([astronaut()] * 2, 1)] * 2),
        "couple: several faces (2), and one is needed: crop to one face",
    ),
    "growing": (
        lambda at, faces: clip(at, [faces[0], NOISE]),
        "frame '0001.png' of 'growing' is 128x128 pixels and '0000.png' 96x96; frames must have one size, so scale or crop them alike",
    ),
    "tiny": (lambda at, faces: clip(at, [NOISE[:24, :24]]), "frame '0000.png' of 'tiny' is 24x24 pixels; 32 to 4096 on each side are allowed"),
    "torn": (
        lambda at, faces: (clip(at, faces) / "0002.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        "frame '0002.png' of 'torn' cannot be read (cannot identify image file '0002.png'); restore it, or remove it and those after it",
    ),
    "named": (
        lambda at, faces: (clip(at, faces) / "0002.png").rename(at / "last.png"),
        "'last.png' of 'named' has no number; frames must be named alike and by number, as 0001.png, so rename or remove it",
    ),
    "nothing": (lambda at, faces: empty(at), "folder '{at}' holds no frame; it must hold pictures (.png, .jpg, .jpeg) named by number, as 0001.png"),
    "half.mp4": (
        lambda at, faces: at.write_bytes(video(at, faces).read_bytes()[: at.stat().st_size // 2]),
        "'half.mp4' cannot be read as a video (Invalid data found when processing input); give a whole file of MP4, MOV, Matroska, WebM or AVI",
    ),
    "text.mp4": (lambda at, faces: at.write_text("a film"), "'text.mp4' cannot be read as a video (Invalid data found when processing input)"),
    "empty.mkv": (lambda at, faces: at.write_bytes(b""), "'empty.mkv' is empty; give a video file (MP4, MOV, Matroska, WebM or AVI)"),
    "film.mp4": (
        lambda at, faces: video(at, faces, 0),
        "'film.mp4' has no sound; lips can only be learned from speech, so give a video with its sound",
    ),
    "clap.mp4": (lambda at, faces: video(at, faces, 0.1), "sound 'clap.mp4' lasts 1"),
}


@pytest.fixture(scope="module")
def refused(good: Path, tmp_path_factory: pytest.TempPathFactory, faces: list[np.ndarray]) -> tuple[Path, list[str]]:
    """The folder of all bad clips, and the problems that planning lists."""
    own = tmp_path_factory.mktemp("refused") / "own"
    shutil.copytree(good, own)
    for name, (make, _) in BAD_CLIPS.items():
        make(own / "training" / name, faces)
    code, said = mcompress("plan", str(own / "t.yaml"))
    assert code == 2, said
    return own / "training", said.removeprefix("error: ").split("target 't': ")[1:]


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_clip_that_cannot_be_used_is_refused(name: str, refused: tuple[Path, list[str]]) -> None:
    folder, problems = refused
    wanted = BAD_CLIPS[name][1].format(at=folder / name)
    (found,) = [problem for problem in problems if wanted in problem]
    assert found.startswith("data.training: ")


def test_every_bad_clip_is_listed_once_and_nothing_else(refused: tuple[Path, list[str]]) -> None:
    _, problems = refused
    assert len(problems) == len(BAD_CLIPS), problems


def removed(*names: str) -> Make:
    return lambda folder: [shutil.rmtree(folder / name) for name in names]


def replaced(old: str, new: str) -> Make:
    return lambda folder: (folder / "t.yaml").write_text(GOOD.replace(old, new), encoding="utf-8")


FILE = "checkpoint: wav2lip.pth"
KEY = "'face_encoder_blocks.0.0.conv_block.0.weight'"
REFUSED: dict[str, tuple[Make, tuple[str, ...]]] = {
    "no folder": (removed("training"), ("t.yaml:6: data.training is 'training'; there is no such folder (relative paths start at the folder",)),
    "an empty folder": (
        removed("training/a", "training/b"),
        ("data.training: folder '{at}/training' holds no clip; it must hold videos with sound (.mp4, ", "or sub-folders of numbered pictures"),
    ),
    "pictures without a folder": (
        lambda folder: (
            (folder / "training" / "a").rename(folder / "x"),
            shutil.rmtree(folder / "training"),
            (folder / "x").rename(folder / "training"),
        ),
        ("data.training: folder '{at}/training' holds '0000.png' and 6 other files, and no clip; it must hold videos with sound",),
    ),
    "one clip": (removed("training/b"), ("data.training: folder '{at}/training' holds 1 clip; at least 2 are needed, one of them for validation",)),
    "one name twice": (
        lambda folder: [(folder / "training" / name).write_bytes(b"") for name in ("a.mp4", "a.mkv")],
        (
            "data.training: 'a' and 'a.mkv' have one name, 'a', and results are filed by name; rename or remove one",
            "data.training: 'a' and 'a.mp4' have one name, 'a', and results are filed by name; rename or remove one",
        ),
    ),
    "one folder for all": (
        lambda folder: (shutil.rmtree(folder / "held_out"), (folder / "held_out").symlink_to("training")),
        (
            "data.held_out is the folder of data.training, '{at}/training': quality is only honest on what was not trained on. Move some of it to a "
            "folder of its own, and give that as data.held_out",
        ),
    ),
    "a checkpoint of another size": (
        replaced(FILE, f"{FILE}, args: {{output_width: 8}}"),
        (
            "model.teacher: {at}/wav2lip.pth does not fit the network 'wav2lip': ",
            f"{KEY} is (4, 6, 7, 7), the network's is (16, 6, 7, 7)",
            "The file is Wav2Lip's generator with {{'face_widths': [4, 4, 4, 4, 4, 4]",
            "give these as args, or leave args out",
        ),
    ),
    "arguments out of range": (
        replaced(FILE, f"{FILE}, args: {{face_widths: [4, 4]}}"),
        ("model.teacher: wav2lip: face_widths is [4, 4], which is 2 numbers; it must be a list of 6 whole numbers: channels per stage",),
    ),
    "a checkpoint of the expert": (
        lambda folder: torch.save({"state_dict": syncnet(width=16).state_dict()}, folder / "wav2lip.pth"),
        (f"model.teacher: {{at}}/wav2lip.pth: these are not the weights of Wav2Lip's generator: {KEY} is missing or of no convolution",),
    ),
    "a checkpoint that is cut off": (
        lambda folder: (folder / "wav2lip.pth").write_bytes((folder / "wav2lip.pth").read_bytes()[:2000]),
        ("model.teacher: {at}/wav2lip.pth (2000 bytes) cannot be read as a PyTorch file", "It is cut off or damaged; download or copy it again."),
    ),
    "no checkpoint": (
        replaced(FILE, f"args: {json.dumps(SIZES)}"),
        ("model.teacher.network is 'wav2lip' without a checkpoint: random weights teach nothing; give model.teacher.checkpoint",),
    ),
    "colours that are none": (
        replaced(FILE, f"{FILE}, colour_order: BRG"),
        ("t.yaml:5: model.teacher.colour_order is 'BRG'; it must be one of RGB, BGR",),
    ),
    "a network that hears nothing": (
        replaced(f"wav2lip, {FILE}", "'torch.nn:LazyConv2d', args: {out_channels: 3, kernel_size: 1}"),
        ("the teacher, network 'torch.nn:LazyConv2d', does not run on an input of [1, 6, 96, 96]: ", "positional argument"),
    ),
    "an expert that is no SyncNet": (
        replaced("wav2lip.pth}", "wav2lip.pth}, expert: {network: wav2lip, checkpoint: wav2lip.pth}"),
        ("model.expert is network 'wav2lip'; it must be a trained SyncNet: {{network: syncnet, checkpoint: FILE}}",),
    ),
    "an expert of another size": (
        replaced("wav2lip.pth}", "wav2lip.pth}, expert: {network: syncnet, checkpoint: wav2lip.pth}"),
        ("{at}/wav2lip.pth: these are not the weights of SyncNet: 'face_encoder.16.conv_block.0.weight' is missing",),
    ),
    "faces of another size": (
        replaced("talking_face,", "talking_face, input_shape: [1, 6, 128, 128],"),
        ("does not run on an input of [1, 6, 128, 128]: wav2lip: face is (1, 6, 128, 128); it must be (N, 6, 96, 96)",),
    ),
    "faces without a reference": (
        replaced("talking_face,", "talking_face, input_shape: [1, 3, 96, 96],"),
        ("model.input_shape is [1, 3, 96, 96], 3 channels; the data of talking_face has 6: write [1, 6, 96, 96]",),
    ),
    "crops of faces, and another metric": (
        lambda folder: (folder / "t.yaml").write_text(
            GOOD.replace("crop_size: 96", "crop_size: 64").replace("stages:", "budget: {quality: {metric: lse_d, at_least: 1}}\nstages:")
        ),
        (
            "stage distill: crop_size is 64; talking_face needs at least 96",
            "budget.quality.metric is 'lse_d'; talking_face measures psnr_db; write metric: psnr_db",
        ),
    ),
    "labels": (
        replaced("held_out: held_out", "held_out: held_out, labelled_fraction: 0.5"),
        ("t.yaml:6: data.labelled_fraction belongs to the task translation, and model.task is talking_face; remove one of the two",),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_target_that_cannot_be_run_is_refused(what: str, good: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(good, own)
    make, parts = REFUSED[what]
    make(own)
    code, said = mcompress("plan", str(own / "t.yaml"))
    assert code == 2
    for part in parts:
        assert part.format(at=own) in said
    assert "missing 1 required positional argument" not in said, "what networks hear is known"


# --- what is handled, in a run ---


@pytest.mark.export
def test_a_run_keeps_the_notes_and_states_what_the_file_takes(good: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(good, own)
    wavfile.write(own / "training" / "a" / "speech.wav", 44100, np.stack([in_16_bits(speech(rate_hz=44100))] * 2, 1))
    (own / "t.yaml").write_text(GOOD.replace("network: wav2lip, ", ""), encoding="utf-8")
    code, said = mcompress("run", str(own / "t.yaml"), "--out", str(tmp_path / "runs"))
    assert code == 0, said
    (folder,) = (tmp_path / "runs").glob("t-*")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    reasons = [fallback["reason"] for fallback in record["fallbacks"] if fallback["where"] == "data"]
    assert sum("a/speech.wav: 2 channels" in reason or "a/speech.wav: 44100 Hz" in reason for reason in reasons) == 2
    assert record["models"]["teacher"]["spec"]["network"] == "wav2lip"
    (file,) = json.loads((folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))["files"]
    stated = [(one["name"], one["picture"], one["colour_order"], one["value_range"]) for one in file["inputs"]]
    assert stated == [("face", True, "RGB", [0.0, 1.0]), ("audio", False, None, [-4.0, 4.0])]
    sample = min((folder / "samples").iterdir())
    with Image.open(sample / "input.png") as shown:
        assert shown.size == (96, 96)
        assert not np.asarray(shown)[48:].any(), "the face as the network gets it, its lower half masked"


def test_the_expert_needs_five_frames_and_a_task_that_has_one() -> None:
    """Said before anything is computed."""
    document = {"name": "t", "device": "jetson-xavier-nx", "stages": [{"stage": "distill", "batch_size": 4, "crop_size": 96, "expert": 0.01}]}
    exports = [{"backend": "onnx"}]
    faces = Target.model_validate({**document, "model": {"task": "talking_face"}, "exports": exports})
    assert expert_problems(faces, TalkingFace.from_config(DataConfig())) == [
        "stages[0] (distill): batch_size is 4; the expert judges 5 samples together: give at least as many, or set expert to 0"
    ]
    pictures = Target.model_validate({**document, "exports": exports})
    (problem,) = expert_problems(pictures, SuperResolution.from_config(DataConfig()))
    assert problem == "stages[0] (distill): expert has a weight, and super_resolution has no expert that could judge; set expert to 0"
