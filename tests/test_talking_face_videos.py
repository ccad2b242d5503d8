"""Clips in and out: frame times, what a file says of its pictures, sound, folders, writing, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from encoded_videos import encode, number_of, numbered, tone
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mcompress.compress.tasks.photographs import HELD_OUT_PHOTOS, embedded_photos
from mcompress.compress.tasks.talking_face import frames as frame_limits
from mcompress.compress.tasks.talking_face.frame_times import Pace, Timed, at_25
from mcompress.compress.tasks.talking_face.sound_tracks import read_sound_track
from mcompress.compress.tasks.talking_face.video_writing import write_video
from mcompress.compress.tasks.talking_face.videos import read_frames
from mcompress.errors import MissingBackendError, PlanError, UsageError

PLACE = "data.training"
SECOND = 16000


def numbers(pictures: Tensor) -> list[int]:
    return [number_of(picture.numpy()) for picture in pictures]


def nearest(times: list[Fraction], count: int) -> list[int]:
    """For each of `count` output times the nearest of `times`, the earlier of two."""
    begun = [time - times[0] for time in times]
    return [min(range(len(times)), key=lambda index: (abs(begun[index] - Fraction(k, 25)), index)) for k in range(count)]


def shift(one: NDArray[np.float32], other: NDArray[np.float32]) -> int:
    """Samples by which `other` is later than `one`."""
    size = 1 << (len(one) + len(other)).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(other, size) * np.conj(np.fft.rfft(one, size)), size)
    place = int(likeness.argmax())
    return place - size if place > size // 2 else place


def irregular(count: int, seed: int) -> list[Fraction]:
    """Times with intervals of 8 to 90 ms."""
    return [Fraction(int(time), 1000) for time in np.cumsum(np.random.default_rng(seed).integers(8, 90, count)) - 8]


RATES = [
    (Fraction(25), 40),
    (Fraction(30), 48),
    (Fraction(30000, 1001), 90),
    (Fraction(50), 75),
    (Fraction(24), 50),
    (Fraction(60), 61),
    (Fraction(12), 20),
]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(("rate", "count"), RATES, ids=lambda value: f"{float(value):g}")
def test_frames_of_any_rate_come_out_at_25_a_second_at_the_right_times(tmp_path: Path, rate: Fraction, count: int, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    encode(path, map(numbered, range(count)), rate=rate)
    clip = read_frames(path, PLACE)
    assert clip.fps == 25
    assert clip.pictures.dtype == torch.uint8
    assert clip.pictures.shape == (max(round(count / rate * 25), int((count - 1) / rate * 25) + 1), 3, 64, 96)
    found = numbers(clip.pictures)
    assert found == nearest([number / rate for number in range(count)], len(found))
    used = len(set(found))
    if rate == 25:
        assert clip.notes == ()
    else:
        (note,) = clip.notes
        said = re.fullmatch(rf"clip\.{suffix}: (.+) frames a second, converted to 25 by the nearest time: (.+)", note)
        assert said is not None
        assert float(said[1]) == pytest.approx(float(rate), abs=0.02)  # Matroska's times are rounded to 1 ms
        assert said[2] == f"of {count} frames {used} are used, and make {len(found)}"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_at_irregular_times_come_out_at_the_right_times(tmp_path: Path, suffix: str) -> None:
    times = irregular(60, 3)
    path = tmp_path / f"phone.{suffix}"
    encode(path, map(numbered, range(60)), times)
    clip = read_frames(path, PLACE)
    found = numbers(clip.pictures)
    assert found == nearest(times, len(found))
    assert 0 <= len(found) - float((times[-1] - times[0]) * 25) < 3.3
    (note,) = clip.notes
    assert note.startswith(f"phone.{suffix}: a variable frame rate, {59 / float(times[-1] - times[0]):.2f} a second on average, converted to 25")


def test_a_picture_that_stands_still_is_noted(tmp_path: Path) -> None:
    times = [Fraction(number + 30 * (number > 9), 25) for number in range(20)]
    encode(tmp_path / "still.mp4", map(numbered, range(20)), times)
    clip = read_frames(tmp_path / "still.mp4", PLACE)
    assert numbers(clip.pictures) == nearest(times, 50)
    assert "still.mp4: no frame between 0.36 s and 1.60 s, where the picture stands still" in clip.notes


@pytest.mark.parametrize("seed", range(6))
def test_each_output_frame_is_the_nearest_input_frame(seed: int) -> None:
    times = [time + 5 for time in irregular(80, seed)]
    pace = Pace()
    given = list(at_25([Timed(time, Fraction(1, 50), index) for index, time in enumerate(times)], pace))
    assert given == nearest(times, len(given))
    assert len(given) == max(round((times[-1] - times[0] + Fraction(1, 50)) * 25), int((times[-1] - times[0]) * 25) + 1)
    assert (pace.read, pace.used, pace.given) == (80, len(set(given)), len(given))
    for factor in (2, 3):  # a rate that 25 divides: every second or third, exactly
        dense = [Timed(Fraction(index, 25 * factor), Fraction(1, 25 * factor), index) for index in range(20 * factor)]
        assert list(at_25(dense, Pace())) == list(range(0, 20 * factor, factor))


def test_times_that_do_not_rise_are_left_out_and_noted() -> None:
    pace = Pace()
    times = [0, 1, 2, 2, 1, 3, 4]
    assert list(at_25([Timed(Fraction(time, 25), Fraction(0), index) for index, time in enumerate(times)], pace)) == [0, 1, 2, 5, 6]
    assert pace.notes("x")[0] == "x: 2 frames are not later than those before them; left out"
    assert list(at_25([], Pace())) == []
    assert list(at_25([Timed(Fraction(7), Fraction(0), "one")], Pace())) == ["one"]


def upright_picture() -> NDArray[np.uint8]:
    """A picture (64, 96, 3) that looks different however it is turned or mirrored."""
    picture = np.full((64, 96, 3), 40, np.uint8)
    picture[:32, :32] = (220, 60, 60)
    picture[:32, 48:] = (60, 220, 60)
    picture[48:, :16] = (60, 60, 220)
    return picture


def test_a_phones_portrait_video_is_turned_clockwise(tmp_path: Path) -> None:
    path = tmp_path / "phone.mov"
    encode(path, [upright_picture()] * 3, turned=(-90, False))
    matrix = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()  # what phones write: x' = -y, y' = x
    assert matrix in path.read_bytes()
    clip = read_frames(path, PLACE)
    assert clip.notes == ()
    assert clip.pictures.shape == (3, 3, 96, 64)
    expected = np.rot90(upright_picture(), -1)
    assert np.abs(clip.pictures[0].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 4


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_pictures_are_turned_and_mirrored_as_the_file_says(tmp_path: Path, quarters: int, mirrored: bool) -> None:
    stored = upright_picture()
    encode(tmp_path / "clip.mp4", [stored] * 2, turned=(90 * quarters, mirrored))
    shown = read_frames(tmp_path / "clip.mp4", PLACE).pictures[0].permute(1, 2, 0).numpy().astype(int)
    expected = np.rot90(stored, quarters)[:, :: -1 if mirrored else 1]
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 4


def test_an_angle_between_is_noted(tmp_path: Path) -> None:
    encode(tmp_path / "clip.mp4", [upright_picture()] * 2, turned=(20, False))
    clip = read_frames(tmp_path / "clip.mp4", PLACE)
    assert clip.notes == ("clip.mp4: turned by an angle that is not a multiple of 90 degrees; read at the nearest one",)
    assert np.abs(clip.pictures[0].permute(1, 2, 0).numpy().astype(int) - upright_picture()).mean() < 4


@pytest.mark.parametrize("colours", [(1, 1), (6, 1), (1, 2), (6, 2), None], ids=["709", "601", "709 full", "601 full", "unsaid"])
def test_colours_are_read_by_the_matrix_and_range_that_the_file_names(tmp_path: Path, colours: tuple[int, int] | None) -> None:
    flat = [(200, 60, 40), (40, 180, 90), (230, 170, 140), (0, 0, 0), (255, 255, 255)]
    encode(tmp_path / "clip.mkv", [np.full((48, 64, 3), colour, np.uint8) for colour in flat], colours=colours)
    clip = read_frames(tmp_path / "clip.mkv", PLACE)
    assert (clip.pictures.float().mean(dim=(2, 3)) - torch.tensor(flat)).abs().max() < 4


def test_pixels_become_square_and_grey_and_transparent_pictures_are_noted(tmp_path: Path) -> None:
    encode(tmp_path / "wide.mp4", map(numbered, range(3)), aspect=Fraction(4, 3))
    wide = read_frames(tmp_path / "wide.mp4", PLACE)
    assert wide.pictures.shape == (3, 3, 64, 128)
    assert wide.notes == ("wide.mp4: its pixels are 1.333 times as wide as high; made square",)
    encode(tmp_path / "grey.mkv", map(numbered, range(3)), codec="ffv1", pixels="gray")
    grey = read_frames(tmp_path / "grey.mkv", PLACE)
    assert numbers(grey.pictures) == [0, 1, 2]
    assert torch.equal(grey.pictures[:, 0], grey.pictures[:, 2])
    assert grey.notes == ("grey.mkv: grey; read as RGB with three equal channels",)
    encode(tmp_path / "clear.mkv", map(numbered, range(3)), codec="ffv1", pixels="yuva420p")
    assert read_frames(tmp_path / "clear.mkv", PLACE).notes == ("clear.mkv: its transparency is left out",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds whose index stands first."""
    path = tmp_path_factory.mktemp("whole") / "whole.mp4"
    encode(path, map(numbered, range(50)), sound=tone(2), container_options={"movflags": "faststart"}, options={"bf": "0", "g": "50"})
    return path


def test_a_video_that_is_cut_off_is_read_until_there(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    clip = read_frames(path, PLACE)
    found = numbers(clip.pictures)
    assert found == list(range(len(found)))
    assert 15 < len(found) < 45
    (note,) = clip.notes
    endings = (f"cut.mp4: ends after {len(found) / 25:.2f} s of 2.00 s", f"cut.mp4: damaged after {len(found) / 25:.2f} s")
    assert note.startswith(endings)
    sound = read_sound_track(path, PLACE)
    assert sound is not None
    assert 0.3 * SECOND < len(sound.samples) < 1.9 * SECOND


@pytest.mark.parametrize("seed", range(5))
def test_a_video_that_is_damaged_midway_is_read_until_there(tmp_path: Path, whole: Path, seed: int) -> None:
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    generator = np.random.default_rng(seed)
    struck = int(generator.integers(10, 40))
    start, size = packets[struck]
    assert start is not None
    data[start + 5 : start + size] = generator.bytes(size - 5)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    clip = read_frames(path, PLACE)
    found = numbers(clip.pictures)
    assert found == list(range(len(found)))
    assert struck <= len(found) <= struck + 1
    (note,) = clip.notes
    assert note.startswith(f"damaged.mp4: damaged after {len(found) / 25:.2f} s (")
    assert note.endswith("); what is before that is used")


def test_what_is_no_video_is_refused_with_its_name_and_what_to_do(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "text.mp4").write_text("This is a letter.\n" * 200)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20000))
    (tmp_path / "head.mp4").write_bytes(whole.read_bytes()[:20])
    Image.new("RGB", (64, 64)).save(tmp_path / "face.png")
    (tmp_path / "unknown.mp4").write_bytes(whole.read_bytes().replace(b"avc1", b"zzz1"))
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{whole}\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {whole}\n")
    for name, problem in [
        ("text.mp4", "cannot be read as a video (Invalid data found when processing input); give a whole file of MP4, MOV, Matroska, WebM or AVI"),
        ("empty.mp4", "is empty; give a video file (MP4, MOV, Matroska, WebM or AVI)"),
        ("noise.mp4", "cannot be read as a video (Invalid data"),
        ("head.mp4", "cannot be read as a video (Invalid data"),
        ("face.png", "is one picture; give a video file (MP4, MOV, Matroska, WebM or AVI) or a folder of numbered pictures"),
        ("list.mp4", "cannot be read as a video (Invalid data"),
        ("concat.mp4", "cannot be read as a video (its container is of a kind that is not read)"),
    ]:
        for read in (read_frames, read_sound_track):
            with pytest.raises(PlanError) as refused:
                read(tmp_path / name, PLACE)
            assert str(refused.value).startswith(f"{PLACE}: '{name}' {problem}")
    with pytest.raises(PlanError, match=r"^data\.training: 'unknown\.mp4': no picture of it can be read \(PyAV cannot decode its format\)"):
        read_frames(tmp_path / "unknown.mp4", PLACE)
    with pytest.raises(PlanError, match=r"^data\.training: '.*gone\.mp4' does not exist; give a video file"):
        read_frames(tmp_path / "gone.mp4", PLACE)


def test_sound_alone_is_no_clip_and_a_silent_video_has_no_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=SECOND, layout="mono")
        block = av.AudioFrame.from_ndarray(tone(1)[None], format="fltp", layout="mono")
        block.sample_rate, block.pts = SECOND, 0
        container.mux(track.encode(block))
        container.mux(track.encode())
    with pytest.raises(PlanError, match=r"^data\.training: 'sound\.m4a' has no pictures, only sound; give a video file \(MP4"):
        read_frames(tmp_path / "sound.m4a", PLACE)
    sound = read_sound_track(tmp_path / "sound.m4a", PLACE)
    assert sound is not None
    assert shift(tone(1), sound.samples) == 0
    encode(tmp_path / "silent.mp4", map(numbered, range(3)))
    assert read_sound_track(tmp_path / "silent.mp4", PLACE) is None


def test_the_cover_of_a_song_is_not_taken_for_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        track = container.add_stream("aac", rate=SECOND, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        block = av.AudioFrame.from_ndarray(tone(1)[None], format="fltp", layout="mono")
        block.sample_rate, block.pts = SECOND, 0
        frame = av.VideoFrame.from_ndarray(numbered(1), format="rgb24").reformat(format="yuvj420p")
        frame.pts = 0
        container.mux(cover.encode(frame) + cover.encode() + track.encode(block) + track.encode())
    with pytest.raises(PlanError, match="has no pictures"):
        read_frames(tmp_path / "song.mp4", PLACE)


def test_sizes_and_lengths_that_cannot_be_used_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "small.mp4", [np.zeros((20, 64, 3), np.uint8)] * 3)
    with pytest.raises(PlanError, match=r"^data\.training: 'small\.mp4' is 64x20 pixels; 32 to 4096 on each side are allowed, so scale it to that$"):
        read_frames(tmp_path / "small.mp4", PLACE)
    encode(tmp_path / "slim.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3, aspect=Fraction(1, 3))
    with pytest.raises(PlanError, match=r"'slim\.mp4' is 21x64 pixels"):
        read_frames(tmp_path / "slim.mp4", PLACE)
    encode(tmp_path / "long.mp4", map(numbered, range(60)))
    monkeypatch.setattr(frame_limits, "MOST_BYTES", 50 * 3 * 96 * 64)
    monkeypatch.setattr("mcompress.compress.tasks.talking_face.containers._pictures", None)  # refused without decoding
    with pytest.raises(
        PlanError, match=r"'long\.mp4' has 60 frames of 96x64 pixels at 25 a second, .*, so cut it to 2\.0 s, or scale it to 86x58 or less$"
    ):
        read_frames(tmp_path / "long.mp4", PLACE)


def test_a_file_that_says_nothing_of_its_length_is_refused_once_it_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "raw.h264", map(numbered, range(60)))
    monkeypatch.setattr(frame_limits, "MOST_BYTES", 60 * 3 * 96 * 64)
    clip = read_frames(tmp_path / "raw.h264", PLACE)
    assert numbers(clip.pictures) == list(range(60))
    assert clip.notes == ("raw.h264: 60 frames do not say when they are shown; taken as 25.00 a second",)
    monkeypatch.setattr(frame_limits, "MOST_BYTES", 59 * 3 * 96 * 64)
    with pytest.raises(PlanError, match=r"'raw\.h264' has at least 60 frames .* are allowed, so cut it to 2\.4 s$"):
        read_frames(tmp_path / "raw.h264", PLACE)


@pytest.mark.parametrize(("sound_from", "pictures_from"), [(0, 0), (0, 12), (12, 0), (5, 9)])
def test_sound_begins_with_the_first_picture(tmp_path: Path, sound_from: int, pictures_from: int) -> None:
    path = tmp_path / "late.mkv"
    times = [Fraction(number + pictures_from, 25) for number in range(25)]
    encode(path, map(numbered, range(25)), times, sound=tone(1.5), sound_from=Fraction(sound_from, 25))
    assert numbers(read_frames(path, PLACE).pictures) == list(range(25))
    sound = read_sound_track(path, PLACE)
    assert sound is not None
    later = (sound_from - pictures_from) * SECOND // 25
    assert abs(shift(tone(1.5), sound.samples) - later) <= 16  # Matroska's times are rounded to 1 ms
    expected = np.concatenate([np.zeros(max(0, later), np.float32), tone(1.5)[max(0, -later) :]])
    if later % 16 == 0:
        assert np.corrcoef(expected[:16000], sound.samples[:16000])[0, 1] > 0.99


def test_channels_are_averaged_and_rates_kept(tmp_path: Path) -> None:
    left, right = tone(1, 44100), tone(1, 44100)[::-1]
    encode(tmp_path / "stereo.mp4", map(numbered, range(25)), sound=np.stack([left, right]), sound_rate_hz=44100, layout="stereo")
    sound = read_sound_track(tmp_path / "stereo.mp4", PLACE)
    assert sound is not None
    assert sound.sample_rate_hz == 44100
    assert sound.samples.dtype == np.float32
    assert sound.notes == ("stereo.mp4: sound of 2 channels; their mean is taken",)
    assert np.corrcoef((left + right) / 2, sound.samples[:44100])[0, 1] > 0.99


@pytest.mark.parametrize(("codec", "kind"), [("pcm_s16le", "s16"), ("pcm_u8", "u8"), ("pcm_f32le", "flt"), ("pcm_s32le", "s32")])
def test_samples_of_every_kind_are_read_exactly_and_gaps_are_silent(tmp_path: Path, codec: str, kind: str) -> None:
    steps = {"s16": 2**15, "u8": 2**7, "flt": 2**15, "s32": 2**31}[kind]
    exact = np.round(tone(0.5).astype(np.float64) * steps)
    stored = {
        "s16": exact.astype(np.int16),
        "u8": (exact + 128).astype(np.uint8),
        "flt": (exact / steps).astype(np.float32),
        "s32": exact.astype(np.int32),
    }[kind]
    with av.open(str(tmp_path / "exact.mkv"), "w") as container:
        track = container.add_stream(codec, rate=SECOND, layout="mono")
        assert isinstance(track, av.AudioStream)
        for start in range(0, 8000, 800):
            block = av.AudioFrame.from_ndarray(stored[None, start : start + 800], format=kind, layout="mono")
            block.sample_rate, block.pts, block.time_base = SECOND, start + 4000 * (start >= 4000), Fraction(1, SECOND)
            container.mux(track.encode(block))
        container.mux(track.encode())
    sound = read_sound_track(tmp_path / "exact.mkv", PLACE)
    assert sound is not None
    assert sound.notes == ("exact.mkv: 1 gaps in the sound; silence is put there",)
    expected = (exact / steps).astype(np.float32)
    assert np.array_equal(sound.samples, np.concatenate([expected[:4000], np.zeros(4000, np.float32), expected[4000:]]))


def portrait_frames(count: int, height: int = 200, width: int = 160) -> Tensor:
    """A photograph that moves."""
    (photo,) = embedded_photos(HELD_OUT_PHOTOS[1:2]).photos
    return torch.stack([photo.pixels[:, 40 : 40 + height, 60 + 2 * number : 60 + 2 * number + width] for number in range(count)])


def test_a_written_video_reads_back_as_what_was_written(tmp_path: Path) -> None:
    frames, samples = portrait_frames(50), tone(2)
    path = tmp_path / "talk.mp4"
    assert write_video(path, frames, samples, SECOND) == ()
    clip, sound = read_frames(path, PLACE), read_sound_track(path, PLACE)
    assert clip.notes == ()
    assert clip.pictures.shape == frames.shape
    error = (clip.pictures.double() - frames.double()).square().mean(dim=(1, 2, 3))
    assert float(10 * torch.log10(255**2 / error).min()) > 36
    assert sound is not None
    assert sound.notes == ()
    assert sound.sample_rate_hz == SECOND
    assert 0 <= len(sound.samples) - len(samples) <= 1024
    assert shift(samples, sound.samples) == 0
    assert np.corrcoef(samples, sound.samples[: len(samples)])[0, 1] > 0.995
    assert [file.name for file in tmp_path.iterdir()] == ["talk.mp4"]


def test_a_written_video_is_what_browsers_play_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, portrait_frames(10), tone(0.4), SECOND)
    data = (tmp_path / "one.mp4").read_bytes()
    assert data == (tmp_path / "two.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # the index comes first
    with av.open(str(tmp_path / "one.mp4")) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.pix_fmt, picture.profile) == ("h264", "yuv420p", "High")
        assert (sound.codec_context.name, sound.profile, sound.rate) == ("aac", "LC", SECOND)
        assert (picture.average_rate, picture.frames, picture.start_time, sound.start_time) == (25, 10, 0, 0)
        assert (picture.colorspace, picture.color_primaries, picture.color_trc, picture.color_range) == (1, 1, 1, 1)


def test_odd_sides_other_rates_and_no_sound_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    (note,) = write_video(path, portrait_frames(9, 97, 81), np.zeros(0, np.float32), SECOND, fps=30000 / 1001)
    assert note == "odd.mp4: 81x97 pixels; the last row or column is shown twice, for the colours of a video need even sides"
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (98, 82, 3)
    assert np.abs(picture[97].astype(int) - picture[96]).mean() < 3
    loud = np.array([0.0, 1.5, -2.0, 0.5] * 100, np.float32)
    assert write_video(path, portrait_frames(2), loud, SECOND) == ("odd.mp4: 200 of 400 samples lie outside -1 to 1; clipped",)


GOOD, QUIET = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), np.zeros(1280, np.float32)


@pytest.mark.parametrize(
    ("frames", "samples", "rate_hz", "fps", "message"),
    [
        (GOOD[:0], QUIET, SECOND, 25, r"frames are uint8 \(0, 3, 64, 64\); a video needs at least one, as uint8 \(T, 3, H, W\)"),
        (GOOD.float(), QUIET, SECOND, 25, r"frames are float32 \(2, 3, 64, 64\)"),
        (GOOD[:, :1], QUIET, SECOND, 25, r"frames are uint8 \(2, 1, 64, 64\)"),
        (GOOD[:, :, :8], QUIET, SECOND, 25, "frames have 64x8 pixels; 16 to 4096 on each side can be written"),
        (GOOD, QUIET, 15000, 25, "sound of 15000 Hz cannot be written as AAC; resample it to one of 8000, 11025, 12000, 16000"),
        (GOOD, QUIET.astype(np.float64), SECOND, 25, r"samples are float64 \(1280,\); they must be float32 \(N,\), one channel"),
        (GOOD, QUIET[None], SECOND, 25, r"samples are float32 \(1, 1280\)"),
        (GOOD, np.full(1280, np.nan, np.float32), SECOND, 25, "samples hold NaN or infinity; they must be numbers from -1 to 1"),
        (GOOD, QUIET, SECOND, 0.0, "0 frames a second cannot be written; 1 to 120 can"),
    ],
)
def test_what_cannot_be_written_is_refused_and_the_old_file_stays(
    tmp_path: Path, frames: Tensor, samples: NDArray[np.float32], rate_hz: int, fps: float, message: str
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match=message):
        write_video(path, frames, samples, rate_hz, fps)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_without_pyav_the_install_line_is_printed(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_numbered(tmp_path / "frames", ["1.png", "2.png"])
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (
        lambda: read_frames(whole, PLACE),
        lambda: read_sound_track(whole, PLACE),
        lambda: write_video(tmp_path / "out.mp4", GOOD, QUIET, SECOND),
    ):
        with pytest.raises(MissingBackendError, match=r"video files need PyAV, .* pip install 'mcompress\[video\]'") as missing:
            call()
        assert missing.value.exit_code == 4
    assert len(read_frames(tmp_path / "frames", PLACE).pictures) == 2


def save_numbered(folder: Path, names: list[str], mode: str = "RGB") -> None:
    """Pictures that carry their place in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(numbered(number)).convert(mode).save(folder / name)


def test_a_folder_is_read_by_number(tmp_path: Path) -> None:
    names = [f"take2_frame{number}.png" for number in (1, 2, 3, 9, 10, 11, 100)]
    save_numbered(tmp_path / "take", names)
    (tmp_path / "take" / "readme.txt").write_text("not a picture")
    clip = read_frames(tmp_path / "take", PLACE)
    assert clip.fps == 25
    assert numbers(clip.pictures) == list(range(7))
    assert torch.equal(clip.pictures[5], torch.from_numpy(numbered(5)).permute(2, 0, 1))
    assert clip.notes == ("take: 93 numbers are missing (the first is 4); frames are taken to follow each other all the same",)
    save_numbered(tmp_path / "grey", ["01.jpg", "02.jpg"], "L")
    grey = read_frames(tmp_path / "grey", PLACE)
    assert numbers(grey.pictures) == [0, 1]
    assert grey.notes == ("grey: '01.jpg' is grey, as 2 of 2 frames are; read as RGB with three equal channels",)
    save_numbered(tmp_path / "dated", ["12-01-07.png", "12-02-01.png"])
    assert read_frames(tmp_path / "dated", PLACE).notes == ()


def one_of_another_size(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "3.png")


def one_torn(folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])


def one_clear(folder: Path) -> None:
    Image.new("RGBA", (96, 64), (0, 0, 0, 0)).save(folder / "3.png")


def one_deep(folder: Path) -> None:
    Image.fromarray(np.zeros((64, 96), np.uint16)).save(folder / "3.png")


def one_twice(folder: Path) -> None:
    Image.new("RGB", (96, 64)).save(folder / "02.png")


def one_of_another_name(folder: Path) -> None:
    Image.new("RGB", (96, 64)).save(folder / "x3.png")


def none_numbered(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.rename(folder / f"{'ab'[int(path.stem) - 1]}.png")


def all_small(folder: Path) -> None:
    for path in list(folder.iterdir()):
        Image.new("RGB", (96, 16)).save(path)


def none_there(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_of_another_size, r"frame '3\.png' of 'take' is 64x64 pixels and '1\.png' 96x64; frames must have one size, so scale or crop them alike"),
        (one_torn, r"frame '2\.png' of 'take' cannot be read \(.*\); restore it, or remove it and those after it"),
        (one_clear, r"frame '3\.png' of 'take' is transparent in places, which have no colour; put it on a background and save it as 8-bit RGB"),
        (one_deep, r"frame '3\.png' of 'take' is I;16, more than 8 bits; save it as 8-bit RGB"),
        (one_twice, r"'02\.png' and '2\.png' of 'take' have one number; remove one of them"),
        (one_of_another_name, r"'x3\.png' of 'take' is not named like '1\.png'; frames must be named alike and by number, as 0001\.png"),
        (none_numbered, r"'a\.png' of 'take' has no number; frames must be named alike and by number"),
        (all_small, r"frame '1\.png' of 'take' is 96x16 pixels; 32 to 4096 on each side are allowed"),
        (none_there, r"folder '.*take' holds no frame; it must hold pictures \(\.png, \.jpg, \.jpeg\) named by number, as 0001\.png"),
    ],
)
def test_a_folder_that_is_no_clip_is_refused(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    save_numbered(tmp_path / "take", ["1.png", "2.png"])
    spoil(tmp_path / "take")
    with pytest.raises(PlanError, match=rf"^data\.training: {message}"):
        read_frames(tmp_path / "take", PLACE)
