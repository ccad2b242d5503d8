"""Source and filter: the sound of a vocal tract whose control tracks are given.

Voicing is the derivative of glottal flow in pulses of the shape t² - t³ (Klatt and Klatt, "Analysis, synthesis, and perception of voice quality
variations among female and male talkers", JASA 87 (1990), the source KLGLOTT88); voice and breath pass a cascade of second-order resonators whose
frequencies are set anew every 5 ms (Klatt 1980, as in `phonemes`), frication passes parallel ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from mcompress.compress.tasks.talking_face.phonemes import Noise

Samples = NDArray[np.float64]
SAMPLE_RATE_HZ = 16000
BLOCK = 80
"""Samples between the places where the tract's shape is given: 5 ms."""
WARM_UP = 640
"""Samples before them that a block's filter hears: what rang earlier has decayed, for the narrowest formant (45 Hz), by 49 dB."""
HIGHER = ((3300.0, 250.0), (3750.0, 200.0), (4900.0, 1000.0))
"""Fourth to sixth formant and their bandwidths in Hz, the same for all sounds (Klatt 1980, table I)."""
NASAL_POLE_HZ, NASAL_BANDWIDTH_HZ = 270.0, 100.0
"""The nose's resonance, which a zero of the same frequency cancels but in nasal sounds."""


@dataclass(frozen=True)
class Voice:
    """A speaker.

    `pitch_hz`: mean fundamental frequency. `formant_scale`: of the table's formants, larger for shorter vocal tracts. `open_quotient`: the share of a
    period in which the glottis is open. `jitter`: relative standard deviation of periods. `breath`: level of breath while voiced. `tempo`: speed.
    `level`: the peak.
    """

    pitch_hz: float
    formant_scale: float
    open_quotient: float = 0.6
    jitter: float = 0.01
    breath: float = 0.03
    tempo: float = 1.0
    level: float = 0.8


def voicing(pitch_hz: Samples, voice: Voice, generator: np.random.Generator) -> Samples:
    """The derivative of glottal flow, one value per value of `pitch_hz` (n); its negative peak is about 1."""
    starts, periods, shimmer = [0.0], [], []
    while starts[-1] < len(pitch_hz):
        period = SAMPLE_RATE_HZ / pitch_hz[int(starts[-1])] * (1 + voice.jitter * float(generator.standard_normal()))
        periods.append(period)
        shimmer.append(1 + 3 * voice.jitter * float(generator.standard_normal()))
        starts.append(starts[-1] + period)
    n = np.arange(len(pitch_hz))
    cycle = np.searchsorted(np.array(starts), n, side="right") - 1
    phase = (n - np.array(starts)[cycle]) / np.array(periods)[cycle] / voice.open_quotient
    pulse = np.where(phase < 1, 2 * phase - 3 * phase**2, 0.0)
    smooth: Samples = signal.lfilter([0.5, 0.5], [1.0], pulse * np.array(shimmer)[cycle])  # the glottis does not close at once
    return smooth


def resonator(frequency_hz: float, bandwidth_hz: float) -> Samples:
    """A second-order section (6) with this resonance and unit gain at 0 Hz (Klatt 1980, equation 2)."""
    radius = np.exp(-np.pi * bandwidth_hz / SAMPLE_RATE_HZ)
    c, b = -(radius**2), 2 * radius * np.cos(2 * np.pi * frequency_hz / SAMPLE_RATE_HZ)
    return np.array([1 - b - c, 0.0, 0.0, 1.0, -b, -c])


def cascade(source: Samples, formants_hz: Samples, bandwidths_hz: Samples, nasal_zero_hz: Samples, voice: Voice) -> Samples:
    """The source (n) through the vocal tract; formants and bandwidths (blocks, 3) and the nose's zero (blocks) of `BLOCK` samples each.

    Each block has its own filter, which has run for `WARM_UP` before, and neighbours are faded into one another: a filter whose coefficients are
    changed while it runs clicks.
    """
    fixed = [resonator(frequency * voice.formant_scale, width * voice.formant_scale) for frequency, width in HIGHER]
    pole = resonator(NASAL_POLE_HZ, NASAL_BANDWIDTH_HZ)
    early = np.concatenate([np.zeros(WARM_UP + BLOCK // 2), source, np.zeros(BLOCK)])
    heard = np.zeros(len(source) + 2 * BLOCK)
    fade = 1 - np.abs(np.arange(2 * BLOCK) + 0.5 - BLOCK) / BLOCK
    for block, zero_hz in enumerate(nasal_zero_hz):
        zero = resonator(float(zero_hz), NASAL_BANDWIDTH_HZ)
        nose = np.concatenate([zero[3:] / zero[0] * pole[0], pole[3:]])
        own = [resonator(float(f), float(b)) for f, b in zip(formants_hz[block], bandwidths_hz[block], strict=True)]
        start = block * BLOCK
        filtered = signal.sosfilt(np.stack([nose, *own, *fixed]), early[start : start + WARM_UP + 2 * BLOCK])
        heard[start : start + 2 * BLOCK] += fade * filtered[WARM_UP:]
    return heard[BLOCK // 2 : BLOCK // 2 + len(source)]


def turbulence(noise: Noise, envelope: Samples, voice: Voice, generator: np.random.Generator) -> Samples:
    """Noise of this colour under an envelope (n); its root mean square where the envelope is 1 is the noise's level."""
    white = generator.standard_normal(len(envelope) + BLOCK)
    coloured = noise.direct * np.diff(white, prepend=0.0) * 0.7  # turbulence at the lips radiates mostly high frequencies
    for frequency, bandwidth, gain in noise.resonances:
        centre = min(frequency * voice.formant_scale, 0.45 * SAMPLE_RATE_HZ)
        section = resonator(centre, bandwidth)
        band = signal.lfilter([1.0, 0.0, -1.0], section[3:], white)
        coloured = coloured + gain * band / max(float(np.sqrt(np.mean(band**2))), 1e-9)
    coloured = coloured[BLOCK:]
    shaped: Samples = coloured / max(float(np.sqrt(np.mean(coloured**2))), 1e-9) * noise.level * envelope
    return shaped
