"""The mel input of the talking face: against another library, against what can be computed by hand, and in chunks against the whole."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter

from mcompress.compress.tasks.talking_face import mel as module
from mcompress.compress.tasks.talking_face.mel import (
    MelSettings,
    MelStream,
    hann_window,
    log_mel,
    magnitudes,
    mel_filters,
    mel_windows,
    window_start,
)

DEFAULTS = MelSettings()
OTHERS = MelSettings(
    sample_rate_hz=22050, n_fft=1024, window=900, hop=256, bands=40, lowest_hz=0.0, highest_hz=8000.0, preemphasis=0.5, floor_db=-80.0, largest=1.0
)
FEW_SAMPLES = MelSettings(n_fft=64, window=50, hop=31, bands=5, frames_per_window=3)
RESPONSE = np.abs(1 - 0.97 * np.exp(-2j * np.pi * np.arange(401) / 800))
"""What pre-emphasis makes of each bin."""


def noise(samples: int, seed: int = 0, loudness: float = 0.1) -> NDArray[np.float32]:
    return (loudness * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def chirp(samples: int) -> NDArray[np.float32]:
    """From 0 to 8 kHz, ever quieter."""
    time = np.arange(samples) / 16000
    return (np.sin(2 * np.pi * 4000 * time**2 / time[-1]) * 10.0 ** (-4 * time / time[-1])).astype(np.float32)


def edges_hz(settings: MelSettings) -> NDArray[np.float64]:
    """The edges of the bands, read from a table of Slaney's scale: 200/3 Hz a mel up to 1000 Hz, then a factor of 6.4 every 27 mel."""
    mels = np.concatenate([np.arange(0, 15, 0.01), 15 + np.arange(0, 60, 0.0005)])
    hz = np.concatenate([np.arange(0, 15, 0.01) * 200 / 3, 1000 * np.exp(np.arange(0, 60, 0.0005) * np.log(6.4) / 27)])
    ends = np.interp([settings.lowest_hz, settings.highest_hz], hz, mels)
    return np.interp(np.linspace(ends[0], ends[1], settings.bands + 2), mels, hz)


def their_filters(chosen: MelSettings) -> NDArray[np.float64]:
    """The same of the library transformers: (bins, bands)."""
    other = pytest.importorskip("transformers.audio_utils")
    sizes = (chosen.n_fft // 2 + 1, chosen.bands, chosen.lowest_hz, chosen.highest_hz, chosen.sample_rate_hz)
    made: NDArray[np.float64] = other.mel_filter_bank(*sizes, norm="slaney", mel_scale="slaney")
    return made


def normalised(level: NDArray[np.float64], settings: MelSettings = DEFAULTS) -> NDArray[np.float64]:
    """What a mel magnitude becomes."""
    level_db = 20 * np.log10(np.maximum(level, 10 ** (settings.floor_db / 20))) - settings.reference_db
    return np.clip(np.interp(level_db, [settings.floor_db, 0], [-settings.largest, settings.largest]), -settings.largest, settings.largest)


@pytest.mark.parametrize("chosen", [DEFAULTS, OTHERS], ids=["defaults", "others"])
def test_filters_are_those_of_another_library(chosen: MelSettings) -> None:
    np.testing.assert_allclose(mel_filters(chosen), their_filters(chosen).T, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("chosen", [DEFAULTS, OTHERS], ids=["defaults", "others"])
@pytest.mark.parametrize("sound", [noise(16123), noise(800, 1), noise(9000, 2, 0.003), chirp(32000)], ids=["noise", "short", "quiet", "chirp"])
def test_the_spectrogram_is_that_of_another_library(chosen: MelSettings, sound: NDArray[np.float32]) -> None:
    other = pytest.importorskip("transformers.audio_utils")
    sound = np.tile(sound, 2)[: max(len(sound), chosen.n_fft)]
    theirs = other.spectrogram(
        lfilter([1, -chosen.preemphasis], [1], sound),
        other.window_function(chosen.window, "hann", frame_length=chosen.n_fft),
        frame_length=chosen.n_fft,
        hop_length=chosen.hop,
        power=1.0,
        center=True,
        pad_mode="reflect",
        mel_filters=their_filters(chosen),
        mel_floor=10 ** (chosen.floor_db / 20),
        log_mel="dB",
        min_value=10 ** (chosen.floor_db / 20),
    )
    expected = np.clip(
        2 * chosen.largest * (theirs - chosen.reference_db - chosen.floor_db) / -chosen.floor_db - chosen.largest, -chosen.largest, chosen.largest
    )
    ours = log_mel(sound, chosen)
    assert ours.shape == (chosen.bands, 1 + len(sound) // chosen.hop)
    assert ours.dtype == np.float32
    assert np.ptp(ours) > 0.2 * chosen.largest
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_the_ends_are_reflected_not_filled_with_zeros() -> None:
    """A sound whose ends are mirrored by hand has the same columns in the middle; column 2 is the first without padding."""
    sound = lfilter([1, -0.97], [1], noise(4000)).astype(np.float64)
    mirrored = np.concatenate([sound[400:0:-1], sound, sound[-2:-402:-1]])
    plain = replace(DEFAULTS, preemphasis=0.0)
    np.testing.assert_allclose(log_mel(mirrored, plain)[:, 2:-2], log_mel(sound, plain), atol=1e-6)
    zeros = np.concatenate([np.zeros(400), sound, np.zeros(400)])
    assert np.abs(log_mel(zeros, plain)[:, 2] - log_mel(sound, plain)[:, 0]).max() > 0.05


def test_filters_are_triangles_of_area_one_that_share_their_sides() -> None:
    filters, edges = mel_filters(DEFAULTS), edges_hz(DEFAULTS)
    bins = np.arange(401) * 20.0
    assert filters.shape == (80, 401)
    assert (filters[:, (bins <= 55) | (bins >= 7600)] == 0).all()
    inside = (bins[None] > edges[:-2, None] + 0.1) & (bins[None] < edges[2:, None] - 0.1)
    outside = (bins[None] < edges[:-2, None] - 0.1) | (bins[None] > edges[2:, None] + 0.1)
    assert (filters[inside] > 0).all()
    assert (filters[outside] == 0).all()
    heights = filters * (edges[2:] - edges[:-2])[:, None] / 2
    between = (bins >= edges[1]) & (bins <= edges[-2])
    np.testing.assert_allclose(heights.sum(axis=0)[between], 1, atol=1e-4)
    wide = edges[2:] - edges[:-2] > 200
    assert wide.sum() > 20
    np.testing.assert_allclose(filters[wide].sum(axis=1) * 20, 1, atol=0.02)


@pytest.mark.parametrize("hz", [100, 440, 1000, 2500, 5000, 7400])
def test_a_sine_on_a_bin_has_the_level_that_its_amplitude_gives(hz: int) -> None:
    """Under a periodic Hann window of 800 samples, a sine of amplitude a has 200 a in its bin, half of it in both neighbours, nothing elsewhere."""
    amplitude, k = 0.25, hz // 20
    columns = log_mel(amplitude * np.sin(2 * np.pi * hz * np.arange(8000) / 16000), DEFAULTS)[:, 3:-3]
    spectrum = np.zeros(401)
    spectrum[k - 1 : k + 2] = np.array([0.5, 1, 0.5]) * 200 * amplitude * RESPONSE[k]
    expected = normalised(mel_filters(DEFAULTS) @ spectrum)
    np.testing.assert_allclose(columns, np.repeat(expected[:, None], columns.shape[1], axis=1), atol=1e-5)
    loudest = int(columns[:, 0].argmax())
    assert edges_hz(DEFAULTS)[loudest] < hz < edges_hz(DEFAULTS)[loudest + 2]


def test_a_click_is_heard_in_the_column_that_it_stands_in() -> None:
    """Pre-emphasis makes two samples of it, the second under a window that is a little lower."""
    sound = np.zeros(8000)
    sound[20 * 200] = 1.0
    columns = log_mel(sound, DEFAULTS)
    second = 0.97 * hann_window(DEFAULTS)[401] * np.exp(-2j * np.pi * np.arange(401) / 800)
    np.testing.assert_allclose(columns[:, 20], normalised(mel_filters(DEFAULTS) @ np.abs(1 - second)), atol=1e-6)
    heard = columns.max(axis=0) > -4
    assert heard.nonzero()[0].tolist() == [19, 20, 21]


def test_magnitudes_keep_the_energy() -> None:
    """Parseval: the energy of the windowed samples is the mean energy of all bins, of which the inner ones stand for two."""
    frames, window = np.random.default_rng(3).standard_normal((7, 800)), hann_window(DEFAULTS)
    power = magnitudes(frames, window) ** 2
    np.testing.assert_allclose((power[:, 0] + 2 * power[:, 1:-1].sum(axis=1) + power[:, -1]) / 800, ((frames * window) ** 2).sum(axis=1), rtol=1e-12)


def test_the_window_is_periodic_and_stands_in_the_middle() -> None:
    window = hann_window(DEFAULTS)
    assert (window[0], window[400]) == (0, 1)
    np.testing.assert_allclose(window[:400] + window[400:], 1, atol=1e-15)  # a symmetric window does not add up to 1
    short = hann_window(replace(DEFAULTS, window=300))
    assert (short.nonzero()[0][[0, -1]] == [251, 549]).all()
    assert short[400] == 1


def test_ten_times_the_amplitude_is_a_fifth_of_the_range_more() -> None:
    """20 dB of 100 are 1.6 of 8."""
    quiet = log_mel(noise(8000, loudness=0.03), DEFAULTS)
    assert -3.9 < quiet.min() < quiet.max() < 2.3
    np.testing.assert_allclose(log_mel(10 * noise(8000, loudness=0.03), DEFAULTS), quiet + 1.6, atol=1e-5)


def test_values_are_clipped_at_both_ends() -> None:
    assert (log_mel(np.zeros(4000), DEFAULTS) == -4).all()
    assert (log_mel(1e6 * noise(4000), DEFAULTS) == 4).all()


def test_long_sounds_are_the_same_as_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = noise(30_000)
    whole = log_mel(sound, DEFAULTS)
    monkeypatch.setattr(module, "COLUMNS_AT_ONCE", 7)
    np.testing.assert_allclose(log_mel(sound, DEFAULTS), whole, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.sampled_from([DEFAULTS, OTHERS, FEW_SAMPLES]),
    more=st.integers(0, 6000),
    cuts=st.lists(st.integers(0, 7024), max_size=30),
    seed=st.integers(0, 100),
)
def test_a_stream_gives_the_columns_of_the_whole_as_soon_as_they_are_known(chosen: MelSettings, more: int, cuts: list[int], seed: int) -> None:
    sound = noise(chosen.n_fft + more, seed)
    stream, given_ = MelStream(chosen), []
    half = chosen.n_fft // 2
    for chunk in np.split(sound, sorted(min(cut, len(sound)) for cut in cuts)):
        given_.append(stream.feed(chunk))
        known = 0 if stream.samples <= half else 1 + (stream.samples - half) // chosen.hop
        assert stream.columns == sum(part.shape[1] for part in given_) == known
        assert len(stream._held) < chosen.n_fft
        assert stream._held.base is None  # a view would keep everything
    assert stream.samples == len(sound)
    given_.append(stream.finish())
    assert all(part.dtype == np.float32 for part in given_)
    np.testing.assert_allclose(np.concatenate(given_, axis=1), log_mel(sound, chosen), atol=1e-6)


def test_a_stream_takes_single_samples() -> None:
    sound = noise(200)
    stream = MelStream(FEW_SAMPLES)
    parts = [stream.feed(sound[i : i + 1]) for i in range(200)] + [stream.finish()]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), log_mel(sound, FEW_SAMPLES), atol=1e-6)


def test_a_stream_refuses_without_losing_its_state() -> None:
    sound, stream = noise(4000), MelStream(DEFAULTS)
    with pytest.raises(ValueError, match="the sound has 0 samples; it must have at least 800"):
        stream.finish()
    parts = [stream.feed(sound[:799])]
    with pytest.raises(ValueError, match="the sound has 799 samples"):
        stream.finish()
    with pytest.raises(ValueError, match="sample 1 is nan, one of 1 that are not finite"):
        stream.feed(np.array([0.0, np.nan]))
    parts += [stream.feed(sound[799:]), stream.finish()]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), log_mel(sound, DEFAULTS), atol=1e-6)
    for again in (stream.finish, lambda: stream.feed(sound)):
        with pytest.raises(ValueError, match=r"this stream is finished; .* make a new MelStream"):
            again()


def test_windows_begin_at_80_columns_a_second_and_the_last_is_at_the_end() -> None:
    mel = log_mel(noise(16000), DEFAULTS)
    windows = mel_windows(mel, DEFAULTS)
    assert mel.shape == (80, 81)
    assert windows.shape == (22, 80, 16)
    assert [window_start(i, DEFAULTS) for i in range(1000)] == [i * 80 // 25 for i in range(1000)]
    for i in range(21):
        assert np.array_equal(windows[i], mel[:, i * 80 // 25 :][:, :16])
    assert np.array_equal(windows[-1], mel[:, -16:])


@given(samples=st.integers(3200, 400_000))
def test_the_video_ends_shortly_before_the_sound(samples: int) -> None:
    windows = mel_windows(np.zeros((80, 1 + samples // 200), np.float32), DEFAULTS)
    assert 0.095 <= samples / 16000 - len(windows) / 25 <= 0.1475 + 1e-9


def test_as_many_windows_as_a_video_has_frames() -> None:
    mel = log_mel(noise(16000), DEFAULTS)
    windows = mel_windows(mel, DEFAULTS, video_frames=26)
    assert np.array_equal(windows[:22], mel_windows(mel, DEFAULTS))
    assert all(np.array_equal(window, mel[:, -16:]) for window in windows[21:])
    assert len(mel_windows(mel, DEFAULTS, video_frames=3)) == 3
    for wrong in (0, -1, 27):
        with pytest.raises(ValueError, match=rf"video_frames is {wrong}; for 81 mel columns it must be 1 to 26"):
            mel_windows(mel, DEFAULTS, video_frames=wrong)


def test_other_frame_rates_have_other_windows() -> None:
    mel = log_mel(noise(16000), DEFAULTS)
    windows = mel_windows(mel, replace(DEFAULTS, video_fps=30.0))
    assert len(windows) == 26
    assert np.array_equal(windows[10], mel[:, 26:42])


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        (np.zeros((80, 15), np.float32), "has 15 columns; one window needs 16"),
        (np.zeros((40, 20), np.float32), r"has shape \(40, 20\); it must have two axes, 80 bands and columns"),
        (np.zeros(80, np.float32), r"has shape \(80,\)"),
    ],
)
def test_a_spectrogram_of_another_shape_is_refused(mel: NDArray[np.float32], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mel_windows(mel, DEFAULTS)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (noise(799), "the sound has 799 samples; it must have at least 800"),
        (np.zeros(0), "the sound has 0 samples"),
        (np.zeros((2, 4000)), r"samples have shape \(2, 4000\); they must have one axis, so mix channels down first"),
        (np.float64(0.5), r"samples have shape \(\)"),
        (np.zeros(4000, np.int16), "samples are int16; they must be floating point in .*, so divide 16-bit integers by 32768"),
        (np.full(4000, np.inf), "sample 0 is inf, one of 4000 that are not finite"),
    ],
)
def test_samples_that_are_no_sound_are_refused(samples: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(samples, DEFAULTS)


def test_settings_travel_as_json() -> None:
    for chosen in (DEFAULTS, OTHERS, FEW_SAMPLES):
        assert MelSettings.from_dict(json.loads(json.dumps(chosen.as_dict()))) == chosen
    assert DEFAULTS.as_dict() == {
        "sample_rate_hz": 16000,
        "n_fft": 800,
        "window": 800,
        "window_shape": "hann_periodic",
        "padding": "reflect",
        "hop": 200,
        "bands": 80,
        "mel_scale": "slaney",
        "mel_norm": "area",
        "lowest_hz": 55.0,
        "highest_hz": 7600.0,
        "preemphasis": 0.97,
        "reference_db": 20.0,
        "floor_db": -100.0,
        "largest": 4.0,
        "frames_per_window": 16,
        "video_fps": 25.0,
    }
    whole = MelSettings.from_dict({**DEFAULTS.as_dict(), "video_fps": 25})
    assert isinstance(whole.video_fps, float)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_fft": 801}, "n_fft is 801; it must be even"),
        ({"n_fft": 400}, "window is 800; it must be at most n_fft, 400"),
        ({"hop": 400}, "hop is 400; it must be less than half of n_fft, 400"),
        ({"hop": 0}, "hop is 0; it must be at least 1"),
        ({"bands": True}, "bands is True; it must be a whole number"),
        ({"bands": 80.0}, "bands is 80.0; it must be a whole number"),
        ({"preemphasis": "0.97"}, "preemphasis is '0.97'; it must be a number"),
        ({"preemphasis": 1.0}, "preemphasis is 1.0; it must be at least 0 and below 1"),
        ({"lowest_hz": -1.0}, "lowest_hz is -1.0; it must be at least 0"),
        ({"lowest_hz": 7600.0}, "highest_hz is 7600.0; it must be above lowest_hz, 7600.0, and at most half of sample_rate_hz, 8000.0"),
        ({"highest_hz": 8001.0}, "highest_hz is 8001.0; it must be above"),
        ({"reference_db": float("nan")}, "reference_db is nan; it must be finite"),
        ({"floor_db": 0.0}, "floor_db is 0.0; it must be below 0"),
        ({"largest": 0}, "largest is 0.0; it must be above 0"),
        ({"video_fps": 0.0}, "video_fps is 0.0; it must be above 0"),
        ({"padding": "constant"}, "padding is 'constant'; it must be 'reflect', the only one that is implemented"),
        ({"padding": 3}, "padding is 3; it must be text"),
        ({"hops": 1}, r"unknown are \['hops'\], missing are \[\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelSettings.from_dict({**DEFAULTS.as_dict(), **changed})


def test_every_setting_must_be_there() -> None:
    with pytest.raises(ValueError, match=r"unknown are \[\], missing are \['bands', .*'window_shape'\]"):
        MelSettings.from_dict({"hop": 200})


def test_a_band_without_a_bin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mel band \d+ of 400 contains none of the bins of n_fft 800; .* so take fewer bands or a larger n_fft"):
        mel_filters(replace(DEFAULTS, bands=400))


def test_the_reference_needs_nothing_but_numpy_and_python_3_8(tmp_path: Path) -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    imported = set()
    for statement in ast.walk(ast.parse(source, feature_version=(3, 8))):
        if isinstance(statement, ast.ImportFrom):
            assert statement.level == 0
            imported.add((statement.module or "").split(".")[0])
        elif isinstance(statement, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in statement.names}
    assert "numpy" in imported
    assert imported - {"numpy"} <= sys.stdlib_module_names
    (tmp_path / "mel.py").write_text(source, encoding="utf-8")
    sound = noise(4000)
    np.save(tmp_path / "sound.npy", sound)
    program = (
        "import sys; sys.path.insert(0, '.'); import numpy as np; from mel import *\n"
        "np.save('mel.npy', log_mel(np.load('sound.npy'), MelSettings())); assert not any('mcompress' in name for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "mel.npy"), log_mel(sound, DEFAULTS))
