"""WAV files of every kind, written byte by byte here, and what is refused."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.io import wavfile

from mcompress.compress.tasks.talking_face.mel import MelSettings, log_mel, mel_windows
from mcompress.compress.tasks.talking_face.sound import Sound, read_sound, write_wav
from mcompress.errors import PlanError

PCM, IEEE_FLOAT, MU_LAW, EXTENSIBLE = 1, 3, 7, 0xFFFE
SUBTYPE = b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"


def tone(seconds: float = 0.5, rate_hz: int = 16000, hz: float = 1000.0, amplitude: float = 0.5) -> NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def encoded(samples: NDArray[np.float64], tag: int, bits: int, order: str = "<") -> bytes:
    """Samples in [-1, 1] as a WAV file holds them."""
    if tag == IEEE_FLOAT:
        return samples.astype(f"{order}f{bits // 8}").tobytes()
    whole = np.clip(np.rint(samples * 2.0 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64)
    if bits == 8:
        return (whole + 128).astype(np.uint8).tobytes()
    return b"".join(int(value).to_bytes(bits // 8, "little" if order == "<" else "big", signed=True) for value in whole.reshape(-1))


def chunk(name: bytes, content: bytes, order: str = "<", size: int | None = None) -> bytes:
    return name + struct.pack(order + "I", len(content) if size is None else size) + content + b"\x00" * (len(content) % 2)


def wav(
    samples: NDArray[np.float64],
    tag: int = PCM,
    bits: int = 16,
    rate_hz: int = 16000,
    *,
    order: str = "<",
    extensible: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    data_size: int | None = None,
    riff_size: int | None = None,
) -> bytes:
    """The bytes of a WAV file that holds these samples, (n,) or (n, channels)."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    frame = channels * bits // 8
    fields = struct.pack(order + "HHIIHH", EXTENSIBLE if extensible else tag, channels, rate_hz, rate_hz * frame, frame, bits)
    if extensible:
        fields += struct.pack(order + "HHIH", 22, bits, 0, tag) + SUBTYPE
    data = chunk(b"data", encoded(samples, tag, bits, order), order, data_size)
    body = b"WAVE" + chunk(b"fmt ", fields, order) + before + data + after
    return chunk(b"RIFF" if order == "<" else b"RIFX", body, order, riff_size)


def read(folder: Path, content: bytes) -> Sound:
    path = folder / "voice.wav"
    path.write_bytes(content)
    return read_sound(path)


def refusal(folder: Path, content: bytes) -> str:
    """The one problem of a file that cannot be used."""
    with pytest.raises(PlanError) as caught:
        read(folder, content)
    (problem,) = caught.value.problems
    assert f"sound '{folder / 'voice.wav'}'" in problem
    return problem


@pytest.mark.parametrize(
    ("tag", "bits", "error"),
    [(PCM, 16, 2.0**-16), (PCM, 24, 2.0**-24), (PCM, 32, 2.0**-24), (IEEE_FLOAT, 32, 2.0**-24), (IEEE_FLOAT, 64, 2.0**-24)],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_format_holds_the_same_sound(tmp_path: Path, tag: int, bits: int, error: float, order: str) -> None:
    for extensible in (False, True):
        if extensible and order == ">":
            continue  # no program writes it
        sound = read(tmp_path, wav(tone(), tag, bits, order=order, extensible=extensible))
        assert sound.samples.dtype == np.float32
        assert sound.notes == ()
        assert sound.duration_s == 0.5
        np.testing.assert_allclose(sound.samples, tone(), atol=error, rtol=0)


def test_full_scale_is_one(tmp_path: Path) -> None:
    ends = np.tile([-1.0, 1.0], 2000)
    for tag, bits in ((PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (IEEE_FLOAT, 32)):
        sound = read(tmp_path, wav(ends, tag, bits))
        assert sound.samples.min() == -1
        assert sound.samples.max() == np.float32(1 if tag == IEEE_FLOAT else 1 - 2.0 ** (1 - bits))


def test_eight_bits_are_noted_as_noisy(tmp_path: Path) -> None:
    sound = read(tmp_path, wav(tone(), bits=8))
    assert sound.notes == ("voice.wav: 8 bit, which adds rounding noise of -53 dBFS; a recording of 16 bit is better",)
    wrong = sound.samples - tone()
    assert np.abs(wrong).max() <= 2.0**-8
    noise = read(tmp_path, wav(np.random.default_rng(0).uniform(-0.9, 0.9, 20_000), bits=8)).samples
    rounding = noise - np.random.default_rng(0).uniform(-0.9, 0.9, 20_000)
    assert 20 * math.log10(np.sqrt((rounding**2).mean())) == pytest.approx(-53, abs=0.2)


def test_channels_are_mixed_down_to_their_mean(tmp_path: Path) -> None:
    three = np.stack([tone(), tone(hz=300), np.zeros(8000)], axis=1)
    sound = read(tmp_path, wav(three))
    assert sound.notes == ("voice.wav: 3 channels, mixed down to their mean, because the network hears one",)
    np.testing.assert_allclose(sound.samples, three.mean(axis=1), atol=2.0**-15)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000, 192_000])
def test_other_rates_are_resampled(tmp_path: Path, rate_hz: int) -> None:
    sound = read(tmp_path, wav(tone(rate_hz=rate_hz), rate_hz=rate_hz))
    assert abs(len(sound.samples) - 8000) <= 2
    lacks = f"; it has nothing above {rate_hz // 2} Hz, and the network hears up to 7600 Hz" if rate_hz < 15200 else ""
    assert sound.notes == (f"voice.wav: {rate_hz} Hz, resampled to 16000 Hz{lacks}",)
    middle = slice(500, 7500)
    np.testing.assert_allclose(sound.samples[middle], tone(0.6)[middle], atol=0.002)


def test_what_16_khz_cannot_hold_does_not_come_back_as_something_else(tmp_path: Path) -> None:
    mixed = tone(rate_hz=48000) + tone(rate_hz=48000, hz=13_000, amplitude=0.4)
    sound = read(tmp_path, wav(mixed, rate_hz=48000))
    np.testing.assert_allclose(sound.samples[500:7500], tone()[500:7500], atol=0.002)


def test_everything_that_was_converted_is_noted(tmp_path: Path) -> None:
    sound = read(tmp_path, wav(np.stack([tone(rate_hz=44100)] * 2, axis=1), bits=8, rate_hz=44100))
    assert [note.split(",")[0] for note in sound.notes] == ["voice.wav: 8 bit", "voice.wav: 2 channels", "voice.wav: 44100 Hz"]


def test_floats_above_full_scale_are_scaled_down(tmp_path: Path) -> None:
    sound = read(tmp_path, wav(tone(amplitude=2.5), IEEE_FLOAT, 32))
    assert sound.notes == ("voice.wav: its peak is 2.5 times full scale; scaled down, because samples must be in [-1, 1]",)
    np.testing.assert_allclose(sound.samples, tone(amplitude=1.0), atol=1e-6)


def test_samples_stay_in_range_where_resampling_overshoots(tmp_path: Path) -> None:
    square = np.where(np.arange(22050) // 50 % 2, 1.0, -1.0)
    sound = read(tmp_path, wav(square, rate_hz=44100))
    assert np.abs(sound.samples).max() == 1
    assert len(sound.notes) == 2
    assert "its peak is 1." in sound.notes[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30])
@pytest.mark.parametrize("bits", [32, 64])
def test_floats_that_are_no_sound_are_refused(tmp_path: Path, value: float, bits: int) -> None:
    samples = tone()
    samples[[7, 9]] = value
    problem = refusal(tmp_path, wav(samples, IEEE_FLOAT, bits))
    assert problem.startswith("sample 7 of sound")
    assert "one of 2 that are no sound; floating-point samples must be in [-1, 1]" in problem


@pytest.mark.parametrize(
    ("samples", "bits", "says"),
    [
        (np.zeros(8000), 16, "all its samples are equal, and it must reach -60 dBFS"),
        (np.full(8000, 0.3), 16, "all its samples are equal"),
        (0.3 + tone(amplitude=0.0009), 16, "its peak is -61 dBFS"),
        (tone(amplitude=0.0009), 32, "its peak is -61 dBFS, and it must reach -60 dBFS; give a recording in which somebody speaks"),
        (np.zeros(8000), 8, "all its samples are equal, and it must reach -39 dBFS"),
        (np.full(8000, -1 / 128), 8, "all its samples are equal"),
        (np.where(np.arange(8000) % 3, 0, 1 / 128), 8, "its peak is -46 dBFS"),
    ],
    ids=["zeros", "constant", "constant and hum", "hum", "8 bit", "8 bit at 127", "8 bit that flickers"],
)
def test_silence_is_refused(tmp_path: Path, samples: NDArray[np.float64], bits: int, says: str) -> None:
    problem = refusal(tmp_path, wav(samples, bits=bits))
    assert "is silent: " in problem
    assert says in problem


def test_a_quiet_voice_is_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, wav(tone(amplitude=0.0011))).samples) == 8000
    assert len(read(tmp_path, wav(tone(amplitude=0.02), bits=8)).samples) == 8000


def test_channels_that_cancel_each_other_are_told_from_silence(tmp_path: Path) -> None:
    problem = refusal(tmp_path, wav(np.stack([tone(), -tone()], axis=1)))
    assert "is silent when its 2 channels are mixed: all its samples are equal" in problem
    assert "save one of its channels alone" in problem


@pytest.mark.parametrize("rate_hz", [16000, 44100, 8000, 11025, 192_000])
def test_sound_shorter_than_a_mel_window_is_refused(tmp_path: Path, rate_hz: int) -> None:
    enough = math.ceil(0.2 * rate_hz)
    sound = read(tmp_path, wav(tone(rate_hz=rate_hz)[:enough], rate_hz=rate_hz))
    mel = MelSettings()
    assert len(mel_windows(log_mel(sound.samples, mel), mel)) >= 1
    short = refusal(tmp_path, wav(tone(rate_hz=rate_hz)[: enough - 1], rate_hz=rate_hz))
    lasts = re.search(r"lasts ([\d.]+) ms; it must last at least 200 ms", short)
    assert lasts is not None
    assert float(lasts[1]) == pytest.approx(1000 * (enough - 1) / rate_hz, abs=1e-3) != 200
    assert "lasts 100 ms; it must last at least 200 ms, one mel window, so give a longer recording" in refusal(tmp_path, wav(tone(0.1)))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = wav(tone(0.3), before=chunk(b"LIST", b"INFOISFT\x04\x00\x00\x00test"))
    for length in (*range(80), 2000, len(whole) - 1):
        problem = refusal(tmp_path, whole[:length])
        assert "cannot be read (" in problem
        assert "ffmpeg -i voice.wav -ac 1 -ar 16000 -c:a pcm_s16le NEW.wav" in problem
    assert "its header promises 9600 bytes of sound, and there are 1932" in refusal(tmp_path, whole[:2000])


def test_a_file_whose_length_was_never_written_is_refused(tmp_path: Path) -> None:
    """As ffmpeg leaves it in a pipe."""
    piped = wav(tone(), data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF)
    assert "written to a pipe: its header promises 4294967295 bytes of sound, and there are 16000" in refusal(tmp_path, piped)
    assert "hold no sound" in refusal(tmp_path, wav(tone(), riff_size=0))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x23TSSE", "it begins with b'ID3"),
        (b"RIFF\x24\x00\x00\x00AVI LIST", "it begins with b'RIFF$"),
        (wav(tone()).replace(b"fmt ", b"junk"), "told once, and before its one sound"),
        (wav(tone(), after=chunk(b"data", b"\x00" * 640)), "told once, and before its one sound"),
        (wav(np.zeros(0)), "it holds 0 bytes of sound, and that must be a multiple of 2 above 0"),
        (wav(tone(), data_size=15999), "it holds 15999 bytes of sound, and that must be a multiple of 2"),
        (wav(tone(), rate_hz=4000), "its rate is 4000 Hz; 8000 to 192000 Hz are read"),
        (wav(tone(), rate_hz=400_000), "its rate is 400000 Hz"),
        (wav(np.zeros((800, 0))), "its 0 channels of 16 bits take 0 bytes"),
        (wav(tone())[:20] + struct.pack("<H", MU_LAW) + wav(tone())[22:], "its samples are 16-bit of format 0x0007; format 1 (integers) and 3"),
        (wav(tone())[:34] + struct.pack("<H", 12) + wav(tone())[36:], "its samples are 12-bit of format 0x0001"),
        (wav(tone())[:32] + struct.pack("<H", 3) + wav(tone())[34:], "its 1 channels of 16 bits take 3 bytes, and that must be 2"),
    ],
    ids=["empty", "mp3", "avi", "no format", "two sounds", "no sound", "half a sample", "slow", "fast", "no channels", "mu-law", "12 bit", "frames"],
)
def test_damaged_files_and_other_formats_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    problem = refusal(tmp_path, content)
    assert says in problem
    assert "it must be a whole WAV of 8, 16, 24 or 32-bit integers or 32 or 64-bit floats" in problem


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(PlanError, match=r"does not exist or is no file; give a WAV file"):
            read_sound(path)


def test_chunks_without_sound_are_passed_over(tmp_path: Path) -> None:
    """Names, markers and cover pictures; an odd one is followed by a byte that does not count. Warnings are errors in tests."""
    extra = chunk(b"LIST", b"INFO") + chunk(b"bext", b"x" * 603) + chunk(b"cue ", b"y" * 28)
    sound = read(tmp_path, wav(tone(), before=extra, after=chunk(b"id3 ", b"z" * 11)))
    assert sound.notes == ()
    np.testing.assert_allclose(sound.samples, tone(), atol=2.0**-16)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 75), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_damaged_header_is_refused_or_read_and_never_a_surprise(tmp_path: Path, changes: list[tuple[int, int]], extensible: bool) -> None:
    content = bytearray(wav(tone(), extensible=extensible, after=chunk(b"LIST", b"INFO")))
    for position, value in changes:
        content[position] = value
    (tmp_path / "voice.wav").write_bytes(content)
    try:
        sound = read_sound(tmp_path / "voice.wav")
    except PlanError:
        return
    assert len(sound.samples) >= 3200
    assert np.abs(sound.samples).max() <= 1


def test_what_was_read_from_16_bits_is_written_back_bit_for_bit(tmp_path: Path) -> None:
    every = np.random.default_rng(0).permutation(np.arange(-32768, 32768)).astype(np.int16)
    wavfile.write(tmp_path / "one.wav", 16000, every)
    write_wav(tmp_path / "two.wav", read_sound(tmp_path / "one.wav").samples, 16000)
    assert (tmp_path / "two.wav").read_bytes() == (tmp_path / "one.wav").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.wav", "two.wav"]


def test_floats_are_written_to_the_nearest_step(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.9999, 0.9999, 8000)
    samples[:2] = 1, -1
    write_wav(tmp_path / "s.wav", samples, 22050)
    rate_hz, written = wavfile.read(tmp_path / "s.wav")
    assert (rate_hz, written.dtype, written[0], written[1]) == (22050, np.int16, 32767, -32768)
    np.testing.assert_allclose(written[1:] / 32768, samples[1:], atol=2.0**-16 + 1e-12)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "s.wav", tone(), 16000)

    def full_disk(path: Path, _rate_hz: int, _samples: NDArray[np.int16]) -> None:
        path.write_bytes(b"RIFF")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wavfile, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_wav(tmp_path / "s.wav", tone(hz=300), 16000)
    np.testing.assert_allclose(read_sound(tmp_path / "s.wav").samples, tone(), atol=2.0**-16)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "message"),
    [
        (np.zeros((2, 8)), 16000, r"samples have shape \(2, 8\)"),
        (np.zeros(0), 16000, r"samples have shape \(0,\); they must have one axis that is not empty"),
        (np.array([0.0, 1.5]), 16000, r"samples are float64, from 0.0 to 1.5; they must be floating point in \[-1, 1\]"),
        (np.array([0.0, np.nan]), 16000, r"from nan to nan"),
        (np.zeros(8, np.int16), 16000, r"samples are int16"),
        (np.zeros(8), 0, r"the rate is 0 Hz"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, samples: NDArray[np.float64], rate_hz: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_wav(tmp_path / "s.wav", samples, rate_hz)
    assert list(tmp_path.iterdir()) == []
