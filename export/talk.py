"""Makes the face in a picture say what a WAV file says, with a file of this bundle, and writes the video.

    python BUNDLE/talk.py --speech speech.wav --face face.png --out talking.mp4

The sound is given to the network chunk by chunk, as a microphone would give it. Needs numpy, Pillow, scipy, av and the file's runtime (onnxruntime or
ai-edge-litert), and scikit-image where the face is to be found in a larger picture. Exit code 0: the video was written; 2: something cannot be used,
and the message says what to do.

This file is part of mcompress (`mcompress.export.talk`) and is copied into the bundles of talking faces, so in them it imports what lies beside it.
"""

from __future__ import annotations

import argparse
import platform
import sys
from fractions import Fraction
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # a bundle holds what its manifest lists, and nothing else
    if not __package__ and str(Path(__file__).resolve().parent) not in sys.path:
        sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I and PYTHONSAFEPATH leave the script's folder out
    if find_spec("numpy") is None:  # what is imported below needs it
        sys.stderr.write("numpy is needed and not installed; pip install numpy\n")
        sys.exit(2)

from mcompress.compress.tasks.talking_face.mp4 import missing_codecs, writing
from mcompress.compress.tasks.talking_face.wav import SoundError, read_wav
from mcompress.export.bundle_files import Refused
from mcompress.export.talk_bundle import Generator, Talking, TalkingFile, choose, read_bundle
from mcompress.export.talk_stream import Clock, FaceStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcompress.compress.tasks.talking_face.mel import MelSettings
    from mcompress.compress.tasks.talking_face.wav import Sound
    from mcompress.export.talk_picture import Canvas, Rules

PACKAGES = {"PIL": "Pillow", "scipy": "scipy", "av": "av"}
"""Modules and what pip calls them."""
CHUNK_MS = 40
"""One video frame."""


class Options(NamedTuple):
    """The command line."""

    speech: Path
    face: Path
    out: Path
    file: str | None
    box: str | None
    reference: Path | None
    reference_box: str | None
    chunk_ms: int
    threads: int


def main(arguments: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Make the video and say what was done. Left out, `arguments` are those of the command line, and `folder` is the bundle that holds this file."""
    options = _options(arguments)
    try:
        for line in _talk(options, Path(__file__).resolve().parent if folder is None else folder):
            sys.stdout.write(f"{line}\n")
    except (Refused, SoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f"a package cannot be imported ({error}); install it again\n")
        return 2
    return 0


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Makes the face in a picture say what a WAV file says.")
    parser.add_argument("--speech", type=Path, required=True, help="a WAV file")
    parser.add_argument("--face", type=Path, required=True, help="a picture with one upright face that looks at the camera; or a 96x96 cut-out of it")
    parser.add_argument("--out", type=Path, required=True, help="the video to write, .mp4")
    parser.add_argument("--file", help="which file of the bundle to run; left out, the fastest recommended one whose runtime is installed")
    parser.add_argument("--box", help="X,Y,SIDE in pixels: the square that holds the face (--box=X,Y,SIDE below 0); left out, it is looked for")
    parser.add_argument("--reference", type=Path, help="another picture of the same person, with its mouth as it is at rest; left out, --face itself")
    parser.add_argument("--reference-box", help="the square in --reference")
    parser.add_argument("--chunk-ms", type=int, default=CHUNK_MS, help=f"milliseconds of sound that arrive at once; {CHUNK_MS} if left out")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime; 1 if left out")
    given = parser.parse_args(arguments)
    for name in ("chunk_ms", "threads"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(given, name)}; it must be at least 1")
    return Options(**vars(given))


def _talk(options: Options, folder: Path) -> list[str]:
    """Write the video; the lines that say what was done. Raises `Refused`, `SoundError` and `ImportError`."""
    missing = [pip for module, pip in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise Refused(f"{', '.join(missing)} is needed and not installed; pip install {' '.join(missing)}")
    _check_out(options.out, folder)
    talking = read_bundle(folder)
    file, why = choose(talking, options.file)
    sound = read_wav(options.speech)
    generator, canvas, rules, notes = _prepared(options, talking, file)
    stream, clock = FaceStream(generator, talking.mel), Clock(talking.mel)
    _write(options, sound, stream, clock, canvas, rules, talking.mel)
    return [
        *(f"note: {note}" for note in (*why, *sound.notes, *notes)),
        f"{options.out}: {stream.frames} frames, {talking.mel.video_fps:g} a second, of {sound.duration_s:.2f} s of speech, by {file['path']}",
        *_times(options, sound, stream, clock, talking),
    ]


def _check_out(out: Path, folder: Path) -> None:
    import av

    if out.suffix.lower() != ".mp4":
        raise Refused(f"--out is '{out}'; the video is an MP4, so its name must end in .mp4")
    if not out.parent.is_dir() or out.is_dir():
        raise Refused(f"--out is '{out}', which is a folder or in one that does not exist; give a file in a folder that does")
    if folder in out.resolve().parents:
        raise Refused(f"--out is '{out}', inside the bundle, which holds what its manifest lists and nothing else; write elsewhere")
    if missing_codecs():
        raise Refused(f"this av {av.__version__} cannot write {' and '.join(missing_codecs())}; pip install --force-reinstall av")


def _prepared(options: Options, talking: Talking, file: TalkingFile) -> tuple[Generator, Canvas, Rules, list[str]]:
    """The network with the face before it, where its faces go, and how the faces were found."""
    from mcompress.compress.tasks.talking_face.face_search import cut_face
    from mcompress.export.talk_picture import Canvas, face_box, network_input, read_picture, rules_of

    rules = rules_of(file, talking.speech_input)
    picture = read_picture(options.face)
    box, note = face_box(picture, options.box, rules, options.face.name, "--box")
    face, notes = cut_face(picture, box, rules.side), [note]
    if options.reference is None:
        if options.reference_box is not None:
            raise Refused("--reference-box is given without --reference; give the picture that it is in")
        reference = face
    else:
        other = read_picture(options.reference)
        other_box, note = face_box(other, options.reference_box, rules, options.reference.name, "--reference-box")
        reference = cut_face(other, other_box, rules.side)
        notes.append(note)
    if any(side % 2 for side in picture.shape[:2]):
        notes.append(f"{options.face.name}: its last row or column is shown twice, for the colours of a video need even sides")
    generator = Generator(talking, file, options.threads)
    generator.look_at(network_input(face, reference, rules))
    return generator, Canvas(picture, box, rules), rules, notes


def _write(options: Options, sound: Sound, stream: FaceStream, clock: Clock, canvas: Canvas, rules: Rules, mel: MelSettings) -> None:
    """The stream's frames and the sound to the video, while the sound arrives."""
    import av

    from mcompress.export.talk_picture import as_pixels

    height, width = canvas.picture.shape[:2]
    samples, chunk, heard = sound.samples, options.chunk_ms * mel.sample_rate_hz // 1000, 0
    try:
        with writing(options.out, width, height, Fraction(mel.video_fps).limit_denominator(1001), mel.sample_rate_hz) as video:
            for start in range(0, len(samples), chunk):
                begun = perf_counter()
                faces = stream.feed(samples[start : start + chunk])
                if stream.samples == len(samples):
                    faces += stream.finish()
                pictures = [canvas.paste(as_pixels(face, rules)) for face in faces]
                clock.passed(stream.samples, perf_counter() - begun, len(pictures))
                for number, picture in enumerate(pictures, stream.frames - len(pictures) + 1):
                    video.show(picture)
                    until = ceil(number * mel.sample_rate_hz / mel.video_fps)  # what a player plays in that time: the tracks advance together
                    video.hear(samples[heard:until])
                    heard = until
            video.hear(samples[heard:])
    except (OSError, av.FFmpegError) as error:
        raise Refused(f"'{options.out}' cannot be written ({error}); look at the space and the permissions of its folder") from error


def _times(options: Options, sound: Sound, stream: FaceStream, clock: Clock, talking: Talking) -> list[str]:
    """How fast it was, and what that is worth."""
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    rate, factor = stream.frames / clock.worked_s, clock.worked_s / sound.duration_s
    return [
        f"{rate:.0f} frames a second were made (mel, network and pasting, without writing the video; {threads}); {talking.mel.video_fps:g} are shown",
        f"real-time factor {factor:.3f}: seconds of work for a second of speech; below 1 it keeps up with the speaker",
        f"greatest delay {clock.greatest_delay_s:.3f} s from a sound to its frame, had the speech come in chunks of {options.chunk_ms} ms; "
        f"{talking.look_ahead_s:.4f} s of it are speech that the network hears ahead",
        f"These are times of this machine ({platform.machine()}, {platform.system()}); they say nothing of another one.",
    ]


if __name__ == "__main__":
    sys.exit(main())
