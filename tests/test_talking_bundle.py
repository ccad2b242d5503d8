"""Bundles of talking faces: what they state of their speech, the scripts that they carry, and videos that those make without torch."""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import floor
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy.io import wavfile
from talking_bundle import Louder, astronaut, bundle, exported, louder, small_wav2lip, speech, talk, target
from tiny_bundle import a_run, an_export, make_bundle
from torch import from_numpy

from mcompress.compress.tasks.talking_face import finding, mel
from mcompress.compress.tasks.talking_face.face_search import Box, cut_face
from mcompress.compress.tasks.talking_face.mel import MelSettings, log_mel, mel_windows, window_start
from mcompress.compress.tasks.talking_face.mp4 import Mp4, writing
from mcompress.compress.tasks.talking_face.recordings import Recording
from mcompress.compress.tasks.talking_face.task import example
from mcompress.compress.tasks.talking_face.windows import windows_of
from mcompress.errors import ExportError
from mcompress.export import replay
from mcompress.export import talk as script
from mcompress.export.bundle import ExportedFile, read_manifest, verify_bundle, write_bundle
from mcompress.export.bundle_files import Latency, Refused
from mcompress.export.interface import TensorFacts
from mcompress.export.manifest import Manifest
from mcompress.export.standing_alone import TALK, write_scripts
from mcompress.export.talk_bundle import TalkingFile, choose, read_bundle
from mcompress.export.talk_picture import Canvas, Rules, as_pixels, face_box, network_input, rules_of
from mcompress.export.talk_stream import Clock, FaceStream
from mcompress.targets.schema import DataConfig

MEL = MelSettings()
BOX = Box(68, 65, 120)
TIMES = ("frames a second were made", "real-time factor", "greatest delay", "These are times of this machine")
RULES = Rules(96, 48.0, 65.0, 1 / 255, 0.0, 0.0, 48, 0.0, 1.0, 6, is_bgr=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedFile, ...]:
    """A float ONNX file of Wav2Lip and an INT8 TFLite file of `Louder`."""
    folder = tmp_path_factory.mktemp("files")
    return exported(folder, "onnx", "float", small_wav2lip()), exported(folder, "tflite", "mixed", Louder())


@pytest.fixture(scope="module")
def made(files: tuple[ExportedFile, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of both."""
    return bundle(tmp_path_factory.mktemp("talking"), *files)


@pytest.fixture(scope="module")
def given_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `face.png`, `cut.png` (the face alone) and `speech.wav`."""
    folder = tmp_path_factory.mktemp("given")
    astronaut(folder / "face.png")
    Image.fromarray(cut_face(picture(folder / "face.png"), BOX)).save(folder / "cut.png")
    write(folder / "speech.wav", speech())
    return folder


def picture(path: Path) -> NDArray[np.uint8]:
    return np.array(Image.open(path).convert("RGB"))


def write(path: Path, samples: NDArray[np.floating], rate_hz: int = 16000, kind: str = "int16") -> Path:
    scaled = np.rint(samples * 127 + 128) if kind == "uint8" else np.rint(samples * 32767)
    wavfile.write(path, rate_hz, scaled.astype(kind))
    return path


def decoded(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Frames (T, H, W, 3) and samples of a video, as a player gets them."""
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 25
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        samples = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.stack(frames), np.concatenate(samples, axis=1)[0]


def facts(name: str, **more: object) -> TensorFacts:
    shape = (1, 6, 96, 96) if name == "face" else (1, 1, 80, 16)
    return TensorFacts.model_validate({"name": name, "shape": shape, "dtype": "float32", **more})


@pytest.mark.export
def test_the_manifest_says_how_sound_becomes_frames(made: Path) -> None:
    manifest = read_manifest(made)
    assert Manifest.model_validate_json(manifest.model_dump_json(by_alias=True)) == manifest
    spoken, streaming = manifest.speech, manifest.streaming
    assert spoken is not None
    assert streaming is not None
    assert spoken.mel.model_dump() == MEL.as_dict(), "every parameter, by its name"
    assert MelSettings.from_dict(json.loads((made / "manifest.json").read_text())["speech"]["mel"]) == MEL
    assert [floor(frame * spoken.columns_per_frame) for frame in range(100_000)] == [window_start(frame, MEL) for frame in range(100_000)]
    assert (spoken.columns_per_s, spoken.input) == (80, "audio")
    assert (streaming.state, streaming.frames_per_chunk) == ("none", 1)
    (component,) = streaming.components
    assert (component.inputs, component.outputs) == (("face", "audio"), ("output",))
    needed = [streaming.samples_before_first_frame + streaming.samples_per_column * window_start(frame, MEL) for frame in range(500)]
    assert max(samples / 16000 - frame / 25 for frame, samples in enumerate(needed)) == pytest.approx(streaming.look_ahead_s) == 0.2125
    sound, stream = speech(), FaceStream(lambda window: window.copy(), MEL)
    arrived = []
    for sample in range(len(sound)):
        arrived += [sample + 1] * len(stream.feed(sound[sample : sample + 1]))
    assert arrived == needed[: len(arrived)]
    assert len(arrived) > 20


@pytest.mark.export
def test_the_steps_of_the_manifest_are_those_of_training(made: Path, given_files: Path) -> None:
    (_, mixed) = read_manifest(made).files
    face, audio = mixed.preprocessing["face"], mixed.preprocessing["audio"]
    assert [step.operation for step in face] == ["crop_face", "colour_order", "scale", "mask_rows", "stack", "layout", "quantize"]
    assert [step.operation for step in audio] == ["log_mel", "layout", "quantize"]
    assert [step.operation for step in mixed.postprocessing][-1] == "paste_rows"
    rules = rules_of(read_bundle(made).files[1], "audio")
    assert rules == RULES
    cut = picture(given_files / "cut.png")
    other = np.ascontiguousarray(cut[:, ::-1])
    faces = from_numpy(np.stack([cut, other])).permute(0, 3, 1, 2)
    (expected, _), truth = example(Recording("two", faces, windows_of(speech(), 2)), 0, 1)
    np.testing.assert_allclose(network_input(cut, other, rules), expected.numpy(), atol=1e-7)
    assert np.array_equal(as_pixels(truth[0].numpy(), rules), cut)
    assert np.array_equal(network_input(cut, other, rules._replace(is_bgr=True))[0, ::-1][:3], network_input(cut, other, rules)[0, 3:])


def test_other_tasks_have_no_speech(pristine_bundle: Path) -> None:
    manifest = read_manifest(pristine_bundle)
    assert (manifest.speech, manifest.streaming) == (None, None)
    assert not {"talk.py", "mel.py"} & {path.name for path in pristine_bundle.iterdir()}
    assert "talk.py" not in (pristine_bundle / "LICENSES").read_text() + (pristine_bundle / "MODEL_CARD.md").read_text()


@pytest.mark.export
def test_a_manifest_that_contradicts_its_files_is_refused(made: Path) -> None:
    data = read_manifest(made).model_dump(mode="json", by_alias=True)
    for path, value, said in (
        (("speech", "input"), "sound", "speech goes into 'sound'; talking-onnx-float.onnx takes face, audio"),
        (("streaming", "components", 0, "inputs"), ["audio", "face"], "the component generator makes output from audio, face"),
        (("streaming", "state"), "hidden", "Input should be 'none'"),
        (("speech", "mel", "window_shape"), "hamming", "Input should be 'hann_periodic'"),
    ):
        changed = json.loads(json.dumps(data))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValidationError, match=said):
            Manifest.model_validate(changed)


def test_files_that_are_no_talking_face_are_refused(tmp_path: Path) -> None:
    export = an_export(tmp_path / "made")
    for inputs, said in (
        (export.inputs, "the network takes input; a talking face's takes its speech as 'audio'"),
        ((facts("face"), facts("audio")), "'audio' is stated as a picture"),
        ((facts("face", picture=False, colour_order=None), facts("audio", picture=False, colour_order=None)), "'face' is stated as no picture"),
    ):
        file = replace(export, inputs=inputs)
        with pytest.raises(ExportError, match=said):
            write_bundle(tmp_path / "bundle", run=a_run(file.record), target=target(), files=(file,), plan=None)


@pytest.mark.export
def test_the_papers_say_how_to_run_it_and_whose_faces_are_in_it(made: Path, files: tuple[ExportedFile, ...], tmp_path: Path) -> None:
    card, licences = (made / "MODEL_CARD.md").read_text(), (made / "LICENSES").read_text()
    assert card.splitlines()[2].startswith("Talking face for snapdragon865")
    for said in (
        "python BUNDLE/talk.py --speech",
        "at least 212.5 ms late",
        "16000 Hz, mono; 80 mel bands",
        "two photographs of faces",
    ):
        assert said in card
    assert "photographs inside the wheels" not in card
    named = [line.split(" (")[0].strip() for line in licences.splitlines() if "): " in line and line.startswith("    ")]
    assert named == ["astronaut", "grace_hopper"]
    assert "matplotlib: Matplotlib License" in licences
    assert "scikit-learn" not in licences
    own = target(data=DataConfig(training=tmp_path / "a", held_out=tmp_path / "b"))
    folder = write_bundle(tmp_path / "own", run=a_run(files[0].record), target=own, files=files[:1], plan=None)
    licences = (folder / "LICENSES").read_text()
    assert "derived from the owner's clips" in licences
    assert "The embedded teacher was trained on clips that mcompress makes of photographs inside scikit-image and matplotlib" in licences
    assert "A folder of clips that the owner of this run supplied" in (folder / "MODEL_CARD.md").read_text()


@pytest.mark.export
def test_scripts_import_what_lies_beside_them(made: Path) -> None:
    beside = {path.stem for path in made.glob("*.py")}
    assert beside == {Path(name).stem for name in TALK} | {"verify"}
    allowed = beside | {"numpy", "PIL", "scipy", "av", "skimage", "onnxruntime", "ai_edge_litert", "tflite_runtime", *sys.stdlib_module_names}
    for name in TALK:
        tree = ast.parse((made / name).read_text())
        roots = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        roots |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert {root.split(".")[0] for root in roots} <= allowed, name
    alone = runpy.run_path(str(made / "mel.py"))
    sound = speech()
    assert np.array_equal(alone["log_mel"](sound, alone["MelSettings"]()), log_mel(sound, MEL))
    assert (made / "mel.py").read_text() == Path(mel.__file__).read_text()


def test_a_script_that_a_bundle_cannot_carry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"talk_stream\.py imports mcompress\.compress\.tasks\.talking_face\.mel, which bundles do not carry"):
        write_scripts(tmp_path, {"talk_stream.py": TALK["talk_stream.py"]})


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(3200, 20_000), cuts=st.lists(st.integers(0, 20_000), max_size=12))
def test_faces_are_the_same_however_the_sound_is_cut(samples: int, cuts: list[int]) -> None:
    sound = speech()[:samples]
    whole, parts = (FaceStream(lambda window: window.copy(), MEL) for _ in range(2))
    expected = whole.feed(sound) + whole.finish()
    found = [face for part in np.split(sound, sorted(min(cut, len(sound)) for cut in cuts)) for face in parts.feed(part)] + parts.finish()
    assert len(found) == len(sound) * 25 // 16000 == parts.frames
    assert np.array_equal(np.stack(found), np.stack(expected))
    np.testing.assert_allclose(np.stack(found), mel_windows(log_mel(sound, MEL), MEL, len(found)), atol=1e-6)
    assert parts._columns.shape[1] <= 32


def test_a_stream_refuses_sound_shorter_than_a_window() -> None:
    stream = FaceStream(lambda window: window, MEL)
    stream.feed(speech()[:2000])
    with pytest.raises(ValueError, match="the sound has 11 mel columns; one window needs 16"):
        stream.finish()


def test_delays_are_those_of_sound_that_arrives() -> None:
    clock = Clock(MEL)
    clock.passed(1600, 0.01, 0)
    assert (clock.worked_s, clock.greatest_delay_s) == (0.01, 0.0)
    clock.passed(3200, 0.05, 1)  # at 0.2 s, for frame 0
    assert clock.greatest_delay_s == pytest.approx(0.25)
    clock.passed(3840, 0.3, 2)  # there since 0.24 s, and worked on from 0.25 s; frame 1 is due at 0.04 s
    assert clock.greatest_delay_s == pytest.approx(0.55 - 0.04)
    clock.passed(16000, 0.01, 1)
    assert clock.greatest_delay_s == pytest.approx(1.01 - 0.12)
    assert clock.worked_s == pytest.approx(0.37)


@pytest.mark.parametrize("box", [BOX, Box(-30, -20, 301), Box(180, 150, 131), Box(100, 100, 33)])
def test_a_face_goes_back_below_its_eyes_alone(box: Box, given_files: Path) -> None:
    shown = picture(given_files / "face.png")
    green = np.zeros((96, 96, 3), np.uint8)
    green[..., 1] = 255
    canvas = Canvas(shown, box, RULES)
    pasted = canvas.paste(green)
    changed = (pasted != shown).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert rows.min() >= box.y + box.side / 2 - 1
    assert rows.max() < min(256, box.y + box.side)
    assert max(0, box.x) <= columns.min()
    assert columns.max() < min(256, box.x + box.side)
    middle = (int(box.y + box.side * 0.75), int(box.x + box.side * 0.5))
    if middle[0] < 256 and middle[1] < 256:
        assert tuple(pasted[middle]) == (0, 255, 0)
    same = cut_face(shown, box)
    back = canvas.paste(same).astype(int)
    assert np.abs(back - shown).mean() < (1.5 if box.side < 200 else 4), "but for what 96 pixels cannot show"


def test_faces_are_found_and_cut_as_in_training(given_files: Path) -> None:
    shown = picture(given_files / "face.png")
    frames = from_numpy(shown).permute(2, 0, 1)
    found, note = face_box(shown, None, RULES, "face.png", "--box")
    exact = finding.find_face(frames, "face.png")
    assert found == Box(round(exact.x), round(exact.y), round(exact.side))
    assert note.startswith("face.png: the face was found by scikit-image's cascade, at ")
    beyond, _ = face_box(shown, "-30,-20,301", RULES, "face.png", "--box")
    assert beyond == Box(-30, -20, 301)
    with pytest.raises(Refused, match=r"--box -160,-160,520 does not fit face\.png, .* and its side 32 to 512"):
        face_box(shown, "-160,-160,520", RULES, "face.png", "--box")
    boxes = (BOX, Box(-30.5, -20, 301), exact)
    for box in boxes:
        (expected,) = finding.crop_faces(frames[None], [finding.Box(box.x, box.y, box.side)])
        assert np.array_equal(cut_face(shown, box), expected.permute(1, 2, 0).numpy())


@pytest.mark.export
def test_a_face_talks_without_torch(made: Path, given_files: Path, tmp_path: Path) -> None:
    files = ("--speech", given_files / "speech.wav", "--face", given_files / "face.png", "--box", f"{BOX.x},{BOX.y},{BOX.side}")
    done = talk(made, *files, "--out", tmp_path / "a.mp4")
    assert done.returncode == 0, done.stdout + done.stderr
    taken, note, wrote, *times = done.stdout.splitlines()
    assert taken == "note: talking-tflite-mixed.tflite is run: the only recommended file whose runtime is installed; --file takes another"
    assert note == "note: face.png: the face is where --box says, at 68,65 with a side of 120 pixels"
    sound = speech()
    count = int(len(sound) / 16000 * 25)
    assert wrote == f"{tmp_path / 'a.mp4'}: {count} frames, 25 a second, of {len(sound) / 16000:.2f} s of speech, by talking-tflite-mixed.tflite"
    assert all(said in line for said, line in zip(TIMES, times, strict=True))
    delay_s = float(times[2].split()[2])
    assert delay_s > 0.2125
    frames, samples = decoded(tmp_path / "a.mp4")
    shown = picture(given_files / "face.png")
    assert frames.shape == (count, *shown.shape)
    assert abs(len(samples) / 16000 - len(sound) / 16000) < 0.13, "AAC fills its last packet"
    assert np.corrcoef(samples[: len(sound)], sound[: len(samples)])[0, 1] > 0.95
    kept = np.ones(shown.shape[:2], bool)
    kept[BOX.y + BOX.side // 2 - 2 :, BOX.x - 2 : BOX.x + BOX.side + 2] = False
    assert np.abs(frames[:, kept].astype(int) - shown[kept]).mean() < 3, "the codec's error, above the mouth and around the face"
    expected = expected_faces(sound, cut_face(shown, BOX))
    inside = frames[:, BOX.y + 75 : BOX.y + 105, BOX.x + 20 : BOX.x + 100].mean(axis=(1, 2, 3))
    assert np.ptp(expected) > 15, "the mouth follows the sound"
    np.testing.assert_allclose(inside, expected, atol=4)
    again = script.main([*map(str, files), "--out", str(tmp_path / "b.mp4"), "--chunk-ms", "5000"], made)
    assert again == 0
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes(), "the whole sound at once gives the same video"
    assert verify_bundle(made), "nothing was left in the bundle"


def expected_faces(sound: NDArray[np.float32], cut: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What `Louder` makes of rows 60 to 84 and columns 16 to 80 of the face, from 0 to 255, computed without streams and files."""
    face = network_input(cut, cut, RULES)
    windows = mel_windows(log_mel(sound, MEL), MEL, len(sound) * 25 // 16000)
    return np.array([255 * louder(face, window)[:, 60:84, 16:80].mean() for window in windows])


def run(made: Path, given_files: Path, out: Path, *more: object) -> int:
    """The script in this process, with the cut-out face and the speech unless others are given."""
    words = [str(word) for word in more]
    for option, name in (("--speech", "speech.wav"), ("--face", "cut.png")):
        if option not in words:
            words += [option, str(given_files / name)]
    return script.main([*words, *(() if "--out" in words else ("--out", str(out / "out.mp4")))], made)


@pytest.mark.export
def test_wav2lip_talks_in_a_face_that_is_cut_out_already(made: Path, given_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stereo = write(tmp_path / "stereo.wav", np.stack([np.repeat(speech(), 3)[: 48000 // 2]] * 2, axis=1), 48000, "uint8")
    odd = cut_face(picture(given_files / "face.png"), Box(44, 40, 171), 171)
    Image.fromarray(odd).save(tmp_path / "odd.png")
    words = ("--file", "talking-onnx-float.onnx", "--speech", stereo, "--reference", tmp_path / "odd.png", "--reference-box", "20,20,130")
    assert run(made, given_files, tmp_path, *words) == 0
    said = capsys.readouterr().out
    for note in (
        "note: stereo.wav: 8 bit",
        "note: stereo.wav: 2 channels",
        "note: stereo.wav: 48000 Hz, resampled to 16000 Hz",
        "note: cut.png: 96x96 pixels, taken as a face that has been cut out already",
        "note: odd.png: the face is where --reference-box says, at 20,20",
        "12 frames, 25 a second, of 0.50 s of speech, by talking-onnx-float.onnx",
    ):
        assert note in said
    frames, _ = decoded(tmp_path / "out.mp4")
    cut = picture(given_files / "cut.png")
    assert frames.shape == (12, 96, 96, 3)
    assert np.abs(frames[:, :46].astype(int) - cut[:46]).mean() < 4
    assert np.abs(frames[:, 60:84, 16:80].astype(int) - cut[60:84, 16:80]).mean() > 10, "it has learned nothing"
    assert run(made, given_files, tmp_path, "--face", tmp_path / "odd.png", "--box", "20,20,130") == 0
    assert "note: odd.png: its last row or column is shown twice" in capsys.readouterr().out
    assert decoded(tmp_path / "out.mp4")[0].shape[1:] == (172, 172, 3)


def bad_sounds(folder: Path) -> dict[str, Path]:
    return {
        "silent": write(folder / "silent.wav", np.zeros(16000)),
        "short": write(folder / "short.wav", speech()[:3000]),
        "slow": write(folder / "slow.wav", speech(), 4000),
        "none": folder / "none.wav",
        "picture": folder / "grey.png",
    }


@pytest.mark.export
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--speech", "silent"), "is silent: all its samples are equal"),
        (("--speech", "short"), "lasts 187.5 ms; it must last at least 200 ms, one mel window"),
        (("--speech", "slow"), "its rate is 4000 Hz; 8000 to 192000 Hz are read"),
        (("--speech", "none"), "none.wav' does not exist or is no file; give a WAV file"),
        (("--speech", "picture"), "and a WAV file with RIFF and WAVE"),
        (("--face", "none"), "none.wav' does not exist or is no file; give a PNG or JPEG file"),
        (("--face", "short"), "short.wav' cannot be read"),
        (("--face", "picture"), "grey.png: no face found; one must be upright"),
        (("--face", "tiny"), "has 20x20 pixels; 32 to 4096 on each side are allowed"),
        (("--face", "deep"), "more than 8 bits; save it as 8-bit RGB"),
        (("--face", "two"), "two.png: several faces (2), and one is needed"),
        (("--box", "1,2"), "--box is '1,2'; it must be three whole numbers of pixels, X,Y,SIDE"),
        (("--box", "28,70,40"), "--box 28,70,40 does not fit cut.png"),
        (
            ("--box", "90,90,40"),
            "--box 90,90,40 does not fit cut.png, which has 96x96 pixels; its middle and its mouth, at 0.5 of its width and 0.68 of its height",
        ),
        (("--reference-box", "0,0,96"), "--reference-box is given without --reference"),
        (("--out", "talking.avi"), "the video is an MP4, so its name must end in .mp4"),
        (("--out", "missing/talking.mp4"), "in one that does not exist"),
        (("--out", "BUNDLE/talking.mp4"), "inside the bundle, which holds what its manifest lists"),
        (("--file", "other.onnx"), "--file other.onnx is not in the bundle; it holds talking-onnx-float.onnx, talking-tflite-mixed.tflite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_used_is_refused(
    words: tuple[str, str], said: str, made: Path, given_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option, value = words
    Image.new("RGB", (160, 120), (120, 120, 120)).save(tmp_path / "grey.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "tiny.png")
    Image.fromarray(np.zeros((96, 96), np.uint16)).save(tmp_path / "deep.png")
    if value == "two":
        one = picture(given_files / "face.png")
        Image.fromarray(np.concatenate([one, one], axis=1)).save(tmp_path / "two.png")
    paths = {**bad_sounds(tmp_path), **{name: tmp_path / f"{name}.png" for name in ("tiny", "deep", "two")}}
    given = {"BUNDLE/talking.mp4": made / "talking.mp4", "talking.avi": tmp_path / "talking.avi", "missing/talking.mp4": tmp_path / value}
    assert run(made, given_files, tmp_path, option, {**paths, **given}.get(value, value)) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert not list(tmp_path.glob("*.mp4*"))
    assert not (made / "talking.mp4").exists()


@pytest.mark.export
def test_numbers_under_one_are_refused(made: Path, given_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--threads", "--chunk-ms"):
        with pytest.raises(SystemExit, match="2"):
            run(made, given_files, tmp_path, option, 0)
        assert f"{option} is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.export
def test_a_video_that_cannot_be_written_is_refused(
    made: Path, given_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(_video: Mp4, _picture: NDArray[np.uint8]) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out.mp4").write_bytes(b"an older one")
    monkeypatch.setattr(Mp4, "show", full_disk)
    assert run(made, given_files, tmp_path) == 2
    assert "out.mp4' cannot be written ([Errno 28] No space left on device); look at the space" in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.mp4", b"an older one")]


@pytest.mark.export
@pytest.mark.parametrize(
    ("without", "words", "said"),
    [
        (("numpy",), (), "numpy is needed and not installed; pip install numpy"),
        (("av",), (), "av is needed and not installed; pip install av"),
        (("PIL", "scipy"), (), "Pillow, scipy is needed and not installed; pip install Pillow scipy"),
        (
            ("ai_edge_litert", "tflite_runtime", "onnxruntime"),
            (),
            "no runtime is installed for it; pip install onnxruntime or pip install ai-edge-litert",
        ),
        (("onnxruntime",), ("--file", "talking-onnx-float.onnx"), "needs onnxruntime, which is not installed; pip install onnxruntime"),
        (
            ("skimage",),
            (),
            "face.png: to look for the face, scikit-image is needed; pip install scikit-image, or say where it is with --box X,Y,SIDE",
        ),
    ],
)
def test_packages_that_are_missing_are_named(
    without: Sequence[str], words: Sequence[str], said: str, made: Path, given_files: Path, tmp_path: Path
) -> None:
    files = ("--speech", given_files / "speech.wav", "--face", given_files / "face.png", "--out", tmp_path / "a.mp4")
    done = talk(made, *files, *words, without=without)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.export
def test_the_file_whose_runtime_is_here_is_taken(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talking = read_bundle(made)
    assert choose(talking, None)[0]["path"] == "talking-tflite-mixed.tflite", "the recommended one"
    assert choose(talking, "talking-onnx-float.onnx") == (talking.files[0], ())
    for package in ("ai_edge_litert", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, package, None)
    assert choose(talking, None)[0]["path"] == "talking-onnx-float.onnx"
    elsewhere: list[TalkingFile] = [{**talking.files[0], "path": "a.pte", "backend": "executorch"}]
    with pytest.raises(Refused, match="the bundle holds files for executorch; this script runs ONNX and TFLite"):
        choose(talking._replace(files=elsewhere), None)
    with pytest.raises(Refused, match=r"--file a\.pte cannot be run here: ExecuTorch's Python runtime needs torch"):
        choose(talking._replace(files=talking.files + elsewhere), "a.pte")


@pytest.mark.export
def test_the_fastest_of_the_recommended_files_is_taken(made: Path) -> None:
    talking = read_bundle(made)

    def file(path: str, ms: float | None, *, recommended: bool = True, **more: object) -> TalkingFile:
        host: Latency = {"what": "latency", "value": 9.9 if ms is None else ms, "unit": "ms", "how": "device" if ms is None else "host"}
        estimated: Latency = {"what": "latency", "value": 0.001, "unit": "ms", "how": "estimated"}
        memory: Latency = {"what": "peak memory", "value": 0.002, "unit": "MB", "how": "host"}
        return {**talking.files[0], "path": path, "latency": [estimated, memory, host], "recommended": recommended, **more}  # type: ignore[typeddict-item]

    def taken(*files: TalkingFile) -> tuple[str, str]:
        found, (note,) = choose(talking._replace(files=list(files)), None)
        return found["path"], note

    slow, fast = file("mixed.onnx", 2.06), file("mixed.tflite", 0.71, backend="tflite")
    fastest, untimed = file("float.onnx", 0.1, recommended=False), file("other.onnx", None)
    kind = "recommended files whose runtime is installed"
    where = "the fastest where the bundle was made"
    assert taken(fastest, slow, fast) == (
        "mixed.tflite",
        f"mixed.tflite is run: of the {kind} {where}, 0.71 ms (mixed.onnx 2.06 ms); --file takes another",
    )
    assert taken(untimed, slow) == (
        "mixed.onnx",
        f"mixed.onnx is run: of the {kind} {where}, 2.06 ms (other.onnx was not timed); --file takes another",
    )
    assert taken(untimed, {**untimed, "path": "second.onnx"}) == (
        "other.onnx",
        f"other.onnx is run: the first of the {kind}, none of which was timed where the bundle was made; --file takes another",
    )
    assert taken(fastest, {**slow, "recommended": False})[1].startswith("float.onnx is run: of the files whose runtime is installed the fastest")
    assert taken(fastest, {**slow, "backend": "executorch"})[1] == "float.onnx is run: the only file whose runtime is installed; --file takes another"


@pytest.mark.export
def test_the_mouth_is_where_the_manifest_says(made: Path, given_files: Path) -> None:
    file = read_bundle(made).files[1]
    shown = picture(given_files / "cut.png")
    for place, fits in (((48.0, 65.0), True), ((48.0, 90.0), False), ((95.0, 65.0), False)):
        steps = [
            {**step, "arguments": {**step["arguments"], "mouth_x": place[0], "mouth_y": place[1]}} if step["operation"] == "crop_face" else step
            for step in file["preprocessing"]["face"]
        ]
        changed: TalkingFile = {**file, "preprocessing": {**file["preprocessing"], "face": steps}}  # type: ignore[list-item, misc]
        rules = rules_of(changed, "audio")
        assert (rules.mouth_x, rules.mouth_y) == place
        if fits:
            assert face_box(shown, "30,30,80", rules, "cut.png", "--box")[0] == Box(30, 30, 80)
            continue
        with pytest.raises(Refused, match=rf"its mouth, at {place[0] / 96:.2g} of its width and {place[1] / 96:.2g} of its height, must be inside"):
            face_box(shown, "30,30,80", rules, "cut.png", "--box")


@pytest.mark.export
@pytest.mark.parametrize(("flags", "environment"), [(("-I",), {}), ((), {"PYTHONSAFEPATH": "1"})], ids=["isolated", "safe path"])
def test_it_runs_where_python_leaves_its_folder_out(
    flags: tuple[str, ...], environment: dict[str, str], made: Path, given_files: Path, tmp_path: Path
) -> None:
    paths = ("--speech", given_files / "speech.wav", "--face", given_files / "cut.png", "--out", tmp_path / "a.mp4")
    command = [sys.executable, *flags, str(made / "talk.py"), *map(str, paths)]
    without = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=without | environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(decoded(tmp_path / "a.mp4")[0]) == len(speech()) * 25 // 16000
    assert verify_bundle(made), "nothing was left in the bundle"


@pytest.mark.export
def test_files_and_manifests_that_were_changed_are_not_run(made: Path, given_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(folder: Path) -> str:
        assert run(folder, given_files, tmp_path) == 2
        return capsys.readouterr().err

    other = tmp_path / "bundle"
    other.mkdir()
    for path in made.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    model = other / "talking-tflite-mixed.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert "talking-tflite-mixed.tflite is not the file that the manifest states" in refusal(other)
    data = json.loads((other / "manifest.json").read_text())
    data["quick"] = not data["quick"]
    (other / "manifest.json").write_text(json.dumps(data))
    assert "was changed after it was written" in refusal(other)
    (other / "manifest.json").write_text("{}")
    assert "is no manifest of a bundle" in refusal(other)
    data["streaming"]["frames_per_chunk"] = 5
    data["manifest_sha256"] = replay.manifest_digest(data)
    (other / "manifest.json").write_text(json.dumps(data))
    assert "the bundle's files take 5 frames at once" in refusal(other)
    plain = make_bundle(tmp_path / "plain")
    assert "the bundle bundle does not hold a talking face" in refusal(plain)


def test_a_video_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    frame = np.full((32, 48, 3), 90, np.uint8)
    path = tmp_path / "a.mp4"

    def interrupted() -> None:
        with writing(path, 48, 32, script.Fraction(25)) as video:
            video.show(frame)
            video.hear(np.zeros(2000, np.float32))

    with pytest.raises(ValueError, match="opened without a sound track; give it a sample rate"):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with writing(path, 48, 32, script.Fraction(25)) as video:
        video.show(frame)
    with av.open(str(path)) as container:
        assert not container.streams.audio
        assert len(list(container.decode(video=0))) == 1
