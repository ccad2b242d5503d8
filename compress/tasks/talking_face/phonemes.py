"""The sounds that the synthetic speech is made of.

Formants of vowels are the means over men of Peterson and Barney, "Control methods used in a study of the vowels", JASA 24 (1952), table II; those of
gliding vowels and of consonants follow Klatt, "Software for a cascade/parallel formant synthesizer", JASA 67 (1980), tables II and III, and so do
bandwidths, rounded. But m and n have the second and third formants of b and d, so that the vowels beside them tell where the closure is. Levels and
the noise of s and t above 4 kHz are ours: Klatt's synthesizer runs at 10 kHz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["vowel", "nasal", "approximant", "fricative", "aspirate", "stop", "silence"]
Formants = tuple[float, float, float]


@dataclass(frozen=True)
class Noise:
    """Turbulence: `level` next to a vowel's voice of 1; side by side, `resonances` (centre in Hz, bandwidth in Hz, gain) and `direct`, unfiltered."""

    level: float
    resonances: tuple[tuple[float, float, float], ...] = ()
    direct: float = 0.0


@dataclass(frozen=True)
class Sound:
    """One phoneme.

    `formants`: first three resonances of a man's vocal tract in Hz at its beginning, `glide`: at its end where they differ. `bandwidths` in Hz.
    `voice`: level of voicing, 1 for vowels. `duration_s`: shortest and longest. Of stops: `burst` after the closure, and `release_s`, which burst and
    breath take before the next sound; it is part of the duration.
    """

    kind: Kind
    formants: Formants
    bandwidths: Formants
    voice: float
    duration_s: tuple[float, float]
    glide: Formants | None = None
    noise: Noise | None = None
    release_s: float = 0.0


def _vowel(formants: Formants, bandwidths: Formants, glide: Formants | None = None) -> Sound:
    return Sound("vowel", formants, bandwidths, 1.0, (0.11, 0.21) if glide else (0.08, 0.18), glide)


def _stop(formants: Formants, bandwidths: Formants, voice: float, release_s: float, burst: Noise) -> Sound:
    closure = (0.055, 0.085)
    return Sound("stop", formants, bandwidths, voice, (closure[0] + release_s, closure[1] + release_s), noise=burst, release_s=release_s)


_HISS = ((5200.0, 1100.0, 1.0), (6800.0, 1400.0, 0.8))
_HUSH = ((2750.0, 350.0, 1.0), (3600.0, 500.0, 0.7), (4900.0, 1000.0, 0.5))
SOUNDS: dict[str, Sound] = {
    "i": _vowel((270, 2290, 3010), (45, 100, 170)),  # heed
    "ih": _vowel((390, 1990, 2550), (50, 100, 140)),  # hid
    "eh": _vowel((530, 1840, 2480), (60, 90, 150)),  # head
    "ae": _vowel((660, 1720, 2410), (70, 130, 200)),  # had
    "a": _vowel((730, 1090, 2440), (90, 80, 160)),  # hod
    "aw": _vowel((570, 840, 2410), (80, 80, 120)),  # hawed
    "oo": _vowel((440, 1020, 2240), (70, 90, 100)),  # hood
    "u": _vowel((300, 870, 2240), (60, 90, 120)),  # who'd
    "uh": _vowel((640, 1190, 2390), (80, 70, 140)),  # hud
    "e": _vowel((480, 1720, 2520), (70, 100, 180), glide=(330, 2020, 2600)),  # hayed
    "o": _vowel((540, 1100, 2300), (80, 80, 100), glide=(450, 900, 2300)),  # hoed
    "ai": _vowel((660, 1200, 2550), (90, 80, 180), glide=(400, 1880, 2500)),  # hide
    "au": _vowel((640, 1230, 2550), (80, 80, 150), glide=(420, 940, 2350)),  # how
    "m": Sound("nasal", (480, 1100, 2150), (60, 200, 200), 0.7, (0.065, 0.105)),
    "n": Sound("nasal", (480, 1600, 2600), (60, 300, 300), 0.7, (0.055, 0.095)),
    "w": Sound("approximant", (290, 610, 2150), (50, 80, 100), 0.65, (0.06, 0.1)),
    "r": Sound("approximant", (310, 1060, 1380), (70, 100, 120), 0.65, (0.06, 0.1)),
    "l": Sound("approximant", (310, 1050, 2880), (60, 100, 280), 0.62, (0.055, 0.095)),
    "f": Sound("fricative", (340, 1100, 2080), (200, 120, 150), 0.0, (0.085, 0.13), noise=Noise(0.09, direct=1.0)),
    "v": Sound("fricative", (220, 1100, 2080), (60, 90, 120), 0.35, (0.06, 0.09), noise=Noise(0.045, direct=1.0)),
    "s": Sound("fricative", (320, 1390, 2530), (200, 80, 200), 0.0, (0.09, 0.14), noise=Noise(0.3, _HISS)),
    "sh": Sound("fricative", (300, 1840, 2750), (200, 100, 300), 0.0, (0.09, 0.14), noise=Noise(0.34, _HUSH)),
    "h": Sound("aspirate", (500, 1500, 2500), (200, 120, 150), 0.0, (0.05, 0.08)),
    "p": _stop((400, 1100, 2150), (150, 110, 150), 0.0, 0.045, Noise(0.16, ((900.0, 800.0, 0.6),), direct=0.5)),
    "b": _stop((200, 1100, 2150), (60, 110, 130), 0.06, 0.016, Noise(0.1, ((900.0, 800.0, 0.6),), direct=0.4)),
    "t": _stop((400, 1600, 2600), (150, 120, 200), 0.0, 0.055, Noise(0.3, ((4200.0, 1200.0, 1.0),), direct=0.3)),
    "d": _stop((200, 1600, 2600), (60, 100, 170), 0.06, 0.018, Noise(0.2, ((4000.0, 1200.0, 1.0),), direct=0.2)),
    "k": _stop((300, 1990, 2850), (150, 160, 250), 0.0, 0.06, Noise(0.3, ((1900.0, 350.0, 1.0), (3000.0, 600.0, 0.3)))),
    "sil": Sound("silence", (500, 1500, 2500), (100, 120, 150), 0.0, (0.15, 0.45)),
}
"""Every phoneme by its symbol. `h` is breath through the formants of the vowel after it; those that it has here serve where none follows."""

VOWELS = tuple(symbol for symbol, sound in SOUNDS.items() if sound.kind == "vowel")
CONSONANTS = tuple(symbol for symbol, sound in SOUNDS.items() if sound.kind not in ("vowel", "silence"))
BILABIALS = ("m", "b", "p")
CLUSTERS = (
    ("p", "l"), ("p", "r"), ("b", "l"), ("b", "r"), ("t", "r"), ("d", "r"), ("k", "l"), ("k", "r"), ("k", "w"),
    ("f", "l"), ("f", "r"), ("s", "t"), ("s", "p"), ("s", "m"), ("s", "n"), ("s", "l"), ("s", "w"), ("sh", "r"),
)  # fmt: skip
"""What may stand before a vowel besides single consonants."""
CODAS = ("n", "m", "s", "l", "t", "k", "d", "p", "f", "v", "sh", "r")
"""What may stand after one."""


@dataclass(frozen=True)
class Timed:
    """A phoneme and when it is spoken, in seconds."""

    phoneme: str
    start_s: float
    end_s: float

    @property
    def sound(self) -> Sound:
        """The phoneme's entry in `SOUNDS`."""
        return SOUNDS[self.phoneme]

    @property
    def closure_s(self) -> tuple[float, float]:
        """When the mouth's passage is shut, of stops and nasals; of others, the whole phoneme."""
        return self.start_s, max(self.start_s, self.end_s - self.sound.release_s)
