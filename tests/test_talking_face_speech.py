"""Synthetic speech: formants where the table says, closures silent, voices that differ, and nothing but the seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, signal

from mcompress.compress.tasks.talking_face.phonemes import BILABIALS, CLUSTERS, CODAS, CONSONANTS, SOUNDS, VOWELS, Timed
from mcompress.compress.tasks.talking_face.speech import SHORTEST_S, Utterance, synthesize, utterance, voice_of
from mcompress.compress.tasks.talking_face.vocal_tract import SAMPLE_RATE_HZ, Voice

MAN = Voice(100, 1.0, jitter=0.0, breath=0.01)
STEADY = [symbol for symbol in VOWELS if SOUNDS[symbol].glide is None]


def spoken(*symbols: str, voice: Voice = MAN, each_s: float = 0.3, seed: int = 0) -> tuple[np.ndarray, tuple[Timed, ...]]:
    phonemes = tuple(Timed(symbol, k * each_s, (k + 1) * each_s) for k, symbol in enumerate(symbols))
    return synthesize(phonemes, voice, np.random.default_rng(seed)).astype(np.float64), phonemes


def part(samples: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    return samples[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def formants(samples: np.ndarray) -> np.ndarray:
    """Resonances in Hz by linear prediction (autocorrelation method, order 18), pre-emphasized as usual."""
    sound = signal.lfilter([1, -0.97], [1], samples) * np.hamming(len(samples))
    correlation = np.correlate(sound, sound, "full")[len(sound) - 1 :][:19]
    roots = np.roots(np.r_[1, -linalg.solve_toeplitz(correlation[:-1], correlation[1:])])
    frequency, bandwidth = np.angle(roots) * SAMPLE_RATE_HZ / 2 / np.pi, -np.log(np.abs(roots)) * SAMPLE_RATE_HZ / np.pi
    return np.sort(frequency[(frequency > 150) & (bandwidth < 500)])


def centroid(samples: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    return float((power * np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)).sum() / power.sum())


@pytest.mark.parametrize("scale", [0.93, 1.0, 1.18])
@pytest.mark.parametrize("vowel", STEADY)
def test_formants_of_a_held_vowel_are_those_of_the_table_and_the_voice(vowel: str, scale: float) -> None:
    # a low pitch, because linear prediction takes the strongest harmonic for the formant
    samples, _ = spoken(vowel, voice=Voice(55, scale, jitter=0.0, breath=0.01), each_s=0.8)
    found = formants(part(samples, 0.2, 0.6))[:3]
    assert found == pytest.approx(np.array(SOUNDS[vowel].formants) * scale, rel=0.04)


def test_a_glide_starts_and_ends_at_its_formants() -> None:
    samples, _ = spoken("ai", each_s=1.0)
    for time, wanted in ((0.06, SOUNDS["ai"].formants), (0.94, SOUNDS["ai"].glide)):
        assert wanted is not None
        assert formants(part(samples, time - 0.04, time + 0.04))[:2] == pytest.approx(wanted[:2], rel=0.15)


@pytest.mark.parametrize("stop", ["p", "t", "k"])
def test_a_voiceless_closure_is_silent_and_ends_in_a_burst(stop: str) -> None:
    samples, phonemes = spoken("a", stop, "a", each_s=0.15)
    shut, released = phonemes[1].closure_s
    vowel = rms(part(samples, 0.03, 0.1))
    assert rms(part(samples, shut + 0.03, released - 0.01)) < 1e-3 * vowel
    assert rms(part(samples, released, released + 0.008)) > 0.05 * vowel


def test_in_closures_voice_is_weak_for_stops_and_strong_for_nasals() -> None:
    samples, phonemes = spoken("a", "b", "a", "m", "a", each_s=0.15)
    vowel = rms(part(samples, 0.03, 0.1))
    murmur = {timed.phoneme: rms(part(samples, timed.start_s + 0.03, timed.closure_s[1] - 0.02)) / vowel for timed in phonemes}
    assert 0.005 < murmur["b"] < 0.1
    assert 0.15 < murmur["m"] < 0.7


@pytest.mark.parametrize(("symbol", "low", "high"), [("sh", 2300, 4300), ("s", 4700, 7000), ("f", 4000, 7000)])
def test_hisses_have_their_place_in_the_spectrum(symbol: str, low: float, high: float) -> None:
    samples, phonemes = spoken("a", symbol, "a", each_s=0.2)
    assert low < centroid(part(samples, phonemes[1].start_s + 0.05, phonemes[1].end_s - 0.05)) < high
    assert centroid(part(samples, 0.05, 0.15)) < 1200


def test_s_is_louder_than_f_and_vowels_louder_than_both() -> None:
    samples, phonemes = spoken("a", "s", "a", "f", "a", each_s=0.2)
    a, s, _, f, _ = (rms(part(samples, timed.start_s + 0.05, timed.end_s - 0.05)) for timed in phonemes)
    assert a > 2 * s > 4 * f > 0


def test_nothing_clicks_where_formants_move() -> None:
    """Fast movement between vowels must not put energy above the fourth formant that neither vowel has."""
    samples, phonemes = spoken("i", "r", "ae", "l", "i", voice=Voice(110, 1.0, jitter=0.0, breath=0.0), each_s=0.12)
    high = signal.sosfilt(signal.butter(6, 4200, "high", fs=SAMPLE_RATE_HZ, output="sos"), samples)
    level = np.sqrt(signal.convolve(high**2, np.ones(320) / 320, "same"))
    centres = [round((timed.start_s + timed.end_s) / 2 * SAMPLE_RATE_HZ) for timed in phonemes]
    assert level.max() < 1.3 * max(level[centre] for centre in centres)


def test_phonemes_follow_one_another_and_are_quiet_only_in_pauses() -> None:
    for seed in range(6):
        said = utterance(seed, 3.0)
        assert said.phonemes[0].start_s == 0
        assert said.phonemes[-1].end_s == said.duration_s == 3.0
        assert all(one.end_s == other.start_s for one, other in zip(said.phonemes, said.phonemes[1:], strict=False))
        assert said.phonemes[0].phoneme == said.phonemes[-1].phoneme == "sil"
        loudest = float(np.abs(said.samples).max())
        for timed in said.phonemes:
            heard = part(said.samples, timed.start_s, timed.end_s)
            assert len(heard) > 0
            if timed.phoneme == "sil":
                assert np.abs(part(said.samples, timed.start_s + 0.06, timed.end_s - 0.02)).max(initial=0) < 1e-3 * loudest
            else:
                assert rms(heard) > 2e-3 * loudest, (seed, timed)
            shortest, longest = timed.sound.duration_s
            if timed.phoneme != "sil":
                assert shortest / said.voice.tempo * 0.99 <= timed.end_s - timed.start_s <= longest / said.voice.tempo * 1.26


def test_samples_are_floats_within_nine_tenths() -> None:
    for seed in range(6):
        said = utterance(seed, 2.0)
        assert said.samples.dtype == np.float32
        assert len(said.samples) == 2 * SAMPLE_RATE_HZ
        assert float(np.abs(said.samples).max()) == pytest.approx(said.voice.level, rel=1e-6)
        assert 0.5 <= said.voice.level <= 0.9


def test_an_utterance_is_a_function_of_its_seed() -> None:
    def same(one: Utterance, other: Utterance) -> bool:
        return np.array_equal(one.samples, other.samples) and one.phonemes == other.phonemes and one.voice == other.voice

    assert same(utterance(5, 1.5), utterance(5, 1.5))
    assert not same(utterance(5, 1.5), utterance(6, 1.5))


def test_voices_are_low_or_high_and_their_pitch_is_heard() -> None:
    voices = [voice_of(seed) for seed in range(200)]
    assert len({voice.pitch_hz for voice in voices}) == 200
    low, high = [v for v in voices if v.pitch_hz < 150], [v for v in voices if v.pitch_hz > 150]
    assert len(low) + len(high) == 200
    assert min(len(low), len(high)) > 70
    assert max(v.formant_scale for v in low) < min(v.formant_scale for v in high)
    for voice in (low[0], high[0]):
        samples, _ = spoken("a", voice=voice, each_s=0.6)
        heard = part(samples, 0.25, 0.35)
        correlation = np.correlate(heard, heard, "full")[len(heard) - 1 :]
        lags = slice(round(SAMPLE_RATE_HZ / 320), round(SAMPLE_RATE_HZ / 75))
        pitch = SAMPLE_RATE_HZ / (lags.start + int(correlation[lags].argmax()))
        assert 1.02 < pitch / voice.pitch_hz < 1.35  # an accented vowel at the beginning of a phrase


def test_every_sound_is_said_and_what_stands_where_is_in_the_table() -> None:
    said = {timed.phoneme for seed in range(30) for timed in utterance(seed, 2.0).phonemes}
    assert said == set(SOUNDS)
    assert {symbol for cluster in CLUSTERS for symbol in cluster} | set(CODAS) | set(BILABIALS) <= set(CONSONANTS)


def test_the_shortest_utterance_says_something_and_a_shorter_one_is_refused() -> None:
    for seed in range(40):
        assert any(timed.sound.kind == "vowel" for timed in utterance(seed, SHORTEST_S).phonemes)
    with pytest.raises(ValueError, match=r"0\.3 s has no room for a vowel; give at least 0\.7 s"):
        utterance(0, 0.3)
