"""Synthetic speech: random but pronounceable utterances by many voices, all functions of a seed.

Words of one to three syllables make phrases, phrases are parted by pauses. Pitch falls over a phrase and rises on accents. Formants move from sound
to sound; stops shut the tract and burst.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mcompress.compress.tasks.talking_face.phonemes import CLUSTERS, CODAS, CONSONANTS, VOWELS, Sound, Timed
from mcompress.compress.tasks.talking_face.vocal_tract import (
    BLOCK,
    NASAL_POLE_HZ,
    SAMPLE_RATE_HZ,
    Samples,
    Voice,
    cascade,
    turbulence,
    voicing,
)

SHORTEST_S = 0.7
"""The shortest utterance that has room for the slowest vowel between silences."""
NASAL_ZERO_HZ = 450.0
"""The nose's zero in nasal sounds (Klatt 1980, table III)."""
FORMANT_S, LEVEL_S = 0.055, 0.014
"""How long formants and levels take from one sound's to the next one's."""
BURST_S = 0.012
BREATH = 0.15
"""Level of breath in h and after the burst of p, t and k, as white noise next to pulses of 1."""
ONSET, CLUSTER, CODA = 0.85, 0.15, 0.3
"""How often a syllable has a consonant before its vowel, how often that is a cluster, and how often it has one after it."""


@dataclass(frozen=True)
class Utterance:
    """`samples` (n) at 16 kHz, float32 within -0.9 to 0.9; its phonemes, which follow one another from 0 to its end; its speaker."""

    samples: NDArray[np.float32]
    phonemes: tuple[Timed, ...]
    voice: Voice

    @property
    def duration_s(self) -> float:
        """From the first sample to the end of the last."""
        return len(self.samples) / SAMPLE_RATE_HZ


def utterance(seed: int, duration_s: float) -> Utterance:
    """The utterance with this seed, by the voice with this seed. Raises `ValueError` for a duration below `SHORTEST_S`."""
    if duration_s < SHORTEST_S:
        raise ValueError(f"an utterance of {duration_s} s has no room for a vowel; give at least {SHORTEST_S} s")
    voice = voice_of(seed)
    phonemes = random_phonemes(_generator(seed, 1), voice.tempo, round(duration_s * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    return Utterance(synthesize(phonemes, voice, _generator(seed, 2)), phonemes, voice)


def voice_of(seed: int) -> Voice:
    """The speaker with this seed: low voices of long vocal tracts and high ones of short tracts, equally often."""
    generator = _generator(seed, 0)
    high = bool(generator.random() < 0.5)
    pitch, scale = ((165.0, 245.0), (1.07, 1.22)) if high else ((85.0, 145.0), (0.92, 1.04))
    return Voice(
        pitch_hz=float(generator.uniform(*pitch)),
        formant_scale=float(generator.uniform(*scale)),
        open_quotient=float(generator.uniform(0.5, 0.7)),
        jitter=float(generator.uniform(0.005, 0.015)),
        breath=float(generator.uniform(0.01, 0.06)),
        tempo=float(generator.uniform(0.85, 1.15)),
        level=float(generator.uniform(0.5, 0.9)),
    )


def random_phonemes(generator: np.random.Generator, tempo: float, duration_s: float) -> tuple[Timed, ...]:
    """Phonemes from 0 to `duration_s`, with silence at both ends and between phrases."""
    spoken: list[Timed] = []

    def append(symbols: Sequence[str], slower: float = 1.0) -> bool:
        """Add these unless they would leave less than 0.1 s at the end."""
        start = spoken[-1].end_s if spoken else 0.0
        added = []
        for symbol in symbols:
            end = start + float(generator.uniform(*Timed(symbol, 0, 0).sound.duration_s)) / tempo * slower
            added.append(Timed(symbol, start, end))
            start = end
        if start > duration_s - 0.1:
            return False
        spoken.extend(added)
        return True

    append(("sil",), slower=0.5)
    going = True
    while going:
        syllables = int(generator.integers(2, 9))
        for position in range(syllables):
            going = append(_syllable(generator), slower=1.25 if position == syllables - 1 else 1.0)
            if not going and len(spoken) < 2:
                append((VOWELS[generator.integers(len(VOWELS))],))  # so that something is said
            if not going:
                break
        going = going and append(("sil",))
    start = spoken[-1].end_s if spoken else 0.0
    if spoken and spoken[-1].phoneme == "sil":
        start = spoken.pop().start_s
    return (*spoken, Timed("sil", start, duration_s))


def _syllable(generator: np.random.Generator) -> tuple[str, ...]:
    sounds: list[str] = []
    if generator.random() < ONSET:
        cluster = generator.random() < CLUSTER
        sounds.extend(CLUSTERS[generator.integers(len(CLUSTERS))] if cluster else (CONSONANTS[generator.integers(len(CONSONANTS))],))
    sounds.append(VOWELS[generator.integers(len(VOWELS))])
    if generator.random() < CODA:
        sounds.append(CODAS[generator.integers(len(CODAS))])
    return tuple(sounds)


def synthesize(phonemes: tuple[Timed, ...], voice: Voice, generator: np.random.Generator) -> NDArray[np.float32]:
    """The sound of phonemes that follow one another from 0 on, float32 (n); its peak is the voice's level."""
    count = round(phonemes[-1].end_s * SAMPLE_RATE_HZ)
    blocks = -(-count // BLOCK)
    length = blocks * BLOCK
    frequencies, bandwidths, zero = _resonances(phonemes, (np.arange(blocks) + 0.5) * BLOCK / SAMPLE_RATE_HZ)
    voiced = _levels(phonemes, length, lambda sound: (sound.voice, 0.6 if sound.voice else 0.0))
    breath = _levels(phonemes, length, lambda sound: (BREATH if sound.kind == "aspirate" else 0.0, 0.0 if sound.voice else BREATH))
    white = generator.standard_normal(length)
    source = voiced * (voicing(_pitch(phonemes, voice, length, generator), voice, generator) + voice.breath * white) + breath * white
    samples = cascade(source, frequencies * voice.formant_scale, bandwidths, zero, voice)
    for timed in phonemes:
        noise = timed.sound.noise
        if noise is not None:
            start, envelope = _envelope(timed, length)
            samples[start : start + len(envelope)] += turbulence(noise, envelope, voice, generator)
    samples = samples[:count]
    return (samples / max(float(np.abs(samples).max()), 1e-9) * voice.level).astype(np.float32)


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose])))


def _resonances(phonemes: tuple[Timed, ...], times_s: Samples) -> tuple[Samples, Samples, Samples]:
    """A man's formants (blocks, 3), their bandwidths (blocks, 3) and the nose's zero (blocks) in Hz, gliding from sound to sound."""
    owners = np.searchsorted([timed.start_s for timed in phonemes], times_s, side="right") - 1
    heard_as = [_heard_as(phonemes, place) for place in range(len(phonemes))]
    frequencies, bandwidths, zero = np.empty((len(times_s), 3)), np.empty((len(times_s), 3)), np.empty(len(times_s))
    for block, (owner, time) in enumerate(zip(owners, times_s, strict=True)):
        timed, sound = phonemes[owner], heard_as[owner]
        start, end = np.array(sound.formants), np.array(sound.glide or sound.formants)
        frequencies[block] = start + (end - start) * (time - timed.start_s) / (timed.end_s - timed.start_s)
        bandwidths[block] = sound.bandwidths
        zero[block] = NASAL_ZERO_HZ if sound.kind == "nasal" else NASAL_POLE_HZ
    window = np.hanning(round(FORMANT_S * SAMPLE_RATE_HZ / BLOCK) + 2)
    smooth = [_smoothed(track, window) for track in (*frequencies.T, *bandwidths.T, zero)]
    return np.stack(smooth[:3], axis=1), np.stack(smooth[3:6], axis=1), smooth[6]


def _heard_as(phonemes: tuple[Timed, ...], place: int) -> Sound:
    """The sound whose resonances the tract has: of breath, the vowel's after it; of silence, its neighbour's, for there is nothing to move for."""
    sound = phonemes[place].sound
    if sound.kind not in ("aspirate", "silence"):
        return sound
    after = phonemes[place + 1].sound if place + 1 < len(phonemes) else None
    if sound.kind == "aspirate":
        return replace(after, glide=None, bandwidths=sound.bandwidths) if after is not None and after.kind == "vowel" else sound
    before = phonemes[place - 1].sound if place else None
    return replace(before, formants=before.glide or before.formants, glide=None) if before is not None else after or sound


def _smoothed(track: Samples, window: Samples) -> Samples:
    half = len(window) // 2
    padded = np.pad(track, (half, len(window) - 1 - half), mode="edge")
    smooth: Samples = np.convolve(padded, window / window.sum(), mode="valid")
    return smooth


def _levels(phonemes: tuple[Timed, ...], length: int, level: Callable[[Sound], tuple[float, float]]) -> Samples:
    """A track (length) of the level that a sound has before and after its release."""
    track = np.zeros(length)
    for timed in phonemes:
        edges = [round(time * SAMPLE_RATE_HZ) for time in (*timed.closure_s, timed.end_s)]
        track[edges[0] : edges[1]], track[edges[1] : edges[2]] = level(timed.sound)
    return _smoothed(track, np.hanning(round(LEVEL_S * SAMPLE_RATE_HZ) + 2))


def _pitch(phonemes: tuple[Timed, ...], voice: Voice, length: int, generator: np.random.Generator) -> Samples:
    """Hz for each sample: it falls over each phrase, rises by some accent on each vowel, and ends low, or high as in a question."""
    points = [(0.0, 1.0)]
    phrase: list[Timed] = []
    for timed in (*phonemes, Timed("sil", phonemes[-1].end_s, phonemes[-1].end_s)):  # so that the last phrase ends as well
        if timed.phoneme != "sil":
            phrase.append(timed)
            continue
        vowels = [spoken for spoken in phrase if spoken.sound.kind == "vowel"]
        for place, vowel in enumerate(vowels):
            fall = 1.12 - 0.24 * place / max(1, len(vowels) - 1)
            points.append(((vowel.start_s + vowel.end_s) / 2, fall * (1 + float(generator.uniform(-0.03, 0.14)))))
        if phrase:
            points.append((phrase[-1].end_s, float(generator.choice([0.8, 0.85, 1.25], p=[0.5, 0.3, 0.2]))))
        phrase = []
    times, factors = zip(*points, strict=True)
    track: Samples = np.interp(np.arange(length) / SAMPLE_RATE_HZ, times, factors)
    return _smoothed(track, np.hanning(round(0.06 * SAMPLE_RATE_HZ))) * voice.pitch_hz


def _envelope(timed: Timed, length: int) -> tuple[int, Samples]:
    """(first sample, envelope) of a sound's noise: a burst at a stop's release, or as long as a fricative lasts."""
    closed, released, end = (min(length, round(time * SAMPLE_RATE_HZ)) for time in (*timed.closure_s, timed.end_s))
    if timed.sound.kind == "stop":
        burst = np.arange(end - released) / SAMPLE_RATE_HZ
        return released, np.exp(-burst / (BURST_S / 3))
    rise = np.arange(end - closed) / SAMPLE_RATE_HZ
    return closed, np.minimum(1, np.minimum(rise, rise[::-1]) / 0.02)
