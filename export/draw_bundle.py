"""The bundle as its `draw.py` uses it: what the manifest says of drawing, and which files draw together.

Needs numpy. This file is part of mcompress and is copied into the bundles of text to image.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast

from mcompress.export.bundle_files import INSTALL, RUNTIMES, BundleFile, Refused, host_ms, is_installed, read_manifest
from mcompress.export.diffusion_steps import Schedule
from mcompress.export.replay import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ABLE = {**RUNTIMES, "executorch": ("executorch",)}
"""Packages, by backend, of which one is needed."""
INSTALL_ABLE = {**INSTALL, "executorch": "pip install executorch, which brings torch along"}
VARIANTS = ("float", "mixed")


class DrawFile(BundleFile):
    """One entry of `files`; only the keys that are used here."""

    variant: str
    component: str


class _Ranged(TypedDict):
    """An input of a file; only the keys that are used here."""

    name: str
    value_range: tuple[float, float]


class _Component(TypedDict):
    name: str
    inputs: list[str]
    calls: int


class _Tokenizer(TypedDict):
    folder: str
    files: list[str]
    longest: int


class _Schedule(TypedDict):
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str


class Sampling(TypedDict):
    """How the U-Net is called again and again."""

    method: str
    prediction: str
    steps: int
    timesteps: list[int]
    guidance: float
    grid_steps: int | None
    timestep_scaling: float | None


class _Picture(TypedDict):
    height: int
    width: int
    low: float
    high: float


class Drawn(TypedDict):
    """What the files of a backend drew where the bundle was made."""

    backend: str
    variant: str
    picture: str | None
    psnr_db: float | None
    least_db: float | None
    basis: str


class Check(TypedDict):
    """A prompt with its noise, the picture that PyTorch draws, and those of the files."""

    prompt: str
    noise: str
    picture: str
    drawn: list[Drawn]


class DrawingData(TypedDict):
    """`drawing` of the manifest; only the keys that are used here."""

    components: list[_Component]
    tokenizer: _Tokenizer
    schedule: _Schedule
    sampling: Sampling
    latents: list[int]
    latent_range: tuple[float, float]
    scaling_factor: float
    picture: _Picture
    check: Check


class _Content(TypedDict):
    path: str
    sha256: str


class _ManifestData(TypedDict):
    files: list[DrawFile]
    contents: list[_Content]
    drawing: DrawingData | None


class Drawing(NamedTuple):
    """What the manifest says of the files and of how they draw together."""

    folder: Path
    files: Sequence[DrawFile]
    data: DrawingData

    @property
    def names(self) -> list[str]:
        """Components in the order in which they are executed: text encoder, U-Net, decoder."""
        return [one["name"] for one in self.data["components"]]

    @property
    def sampling(self) -> Sampling:
        """How the U-Net is called."""
        return self.data["sampling"]

    @property
    def schedule(self) -> Schedule:
        """The noise that the U-Net was trained with, and what it predicts."""
        return Schedule(**self.data["schedule"], prediction_type=self.sampling["prediction"])

    @property
    def most_steps(self) -> int:
        """The most that can be asked for."""
        grid = self.sampling["grid_steps"]
        return self.data["schedule"]["num_train_timesteps"] if grid is None else grid

    @property
    def takes_guidance(self) -> bool:
        """Whether its scale is an input of the U-Net, which is then called once a step."""
        return self.sampling["method"] == "lcm"

    @property
    def guidance_range(self) -> tuple[float, float]:
        """Scales that can be asked for: of a U-Net that takes the scale as an input those that it was taught, of every other one any from 1 on."""
        if not self.takes_guidance:
            return 1.0, float("inf")
        scale = next(one["inputs"][-1] for one in self.data["components"] if one["name"] == self.names[1])
        inputs = (facts for file in self.files for facts in cast("list[_Ranged]", file["inputs"]))
        low, high = next(facts["value_range"] for facts in inputs if facts["name"] == scale)
        return low, high


class FileSet(NamedTuple):
    """The files of a backend that draw together, by component; of a mixed set those that have no mixed file are float."""

    backend: str
    variant: str
    files: Mapping[str, DrawFile]

    @property
    def name(self) -> str:
        """Backend and variant."""
        return f"{self.backend} {self.variant}"

    @property
    def shown(self) -> str:
        """The names of the files."""
        return ", ".join(file["path"] for file in self.files.values())


def read_bundle(folder: Path) -> Drawing:
    """The manifest of a text-to-image bundle in `folder`. Raises `Refused` for anything else, and for one that was changed."""
    manifest = cast("_ManifestData", read_manifest(folder))
    drawing = manifest.get("drawing")
    if drawing is None:
        raise Refused(f"the bundle {folder.name} does not draw; its manifest has no `drawing`")
    digests = {one["path"]: one["sha256"] for one in manifest["contents"]}
    for name in drawing["tokenizer"]["files"]:
        if not (folder / name).is_file() or digest_of(folder / name) != digests.get(name):
            raise Refused(f"{name} is not the file that the manifest states; take the bundle again from where it was made")
    return Drawing(folder, manifest["files"], drawing)


def file_sets(drawing: Drawing) -> list[FileSet]:
    """Of each backend the float set, and the mixed one where there is a mixed file of any component."""
    found = []
    for backend in dict.fromkeys(file["backend"] for file in drawing.files):
        own = {(file["component"], file["variant"]): file for file in drawing.files if file["backend"] == backend}
        for variant in VARIANTS:
            files = {name: own.get((name, variant), own[name, "float"]) for name in drawing.names}
            if variant == "float" or any(file["variant"] == "mixed" for file in files.values()):
                found.append(FileSet(backend, variant, files))
    return found


def is_ready(backend: str) -> bool:
    """Whether files of a backend in `ABLE` can be run here."""
    return is_installed(ABLE[backend]) and (backend != "executorch" or is_installed(("torch",)))


def choose(drawing: Drawing, backend: str | None, variant: str | None) -> tuple[FileSet, tuple[str, ...]]:
    """The set to draw with, and why it is that where it was not said: of the sets that were asked for, and whose U-Net is recommended where one is,
    that which took the least time for a picture where the bundle was made. Raises `Refused`.
    """
    found = file_sets(drawing)
    held = ", ".join(one.name for one in found)
    asked = [one for one in found if backend in (None, one.backend) and variant in (None, one.variant)]
    options = " ".join(f"--{name} {value}" for name, value in (("backend", backend), ("variant", variant)) if value is not None)
    if not asked:
        raise Refused(f"{options}: the bundle has no such files; it holds {held}")
    able = [one for one in asked if one.backend in ABLE]
    if not able:
        kinds = ", ".join(sorted({one.backend for one in asked}))
        raise Refused(f"{options or 'the bundle'}: files for {kinds} cannot be run by this script; it runs {', '.join(sorted(ABLE))}, of {held}")
    ready = [one for one in able if is_ready(one.backend)]
    if not ready:
        lines = " or ".join(INSTALL_ABLE[name] for name in sorted({one.backend for one in able}))
        raise Refused(f"no runtime is installed for {', '.join(one.name for one in able)}; {lines}")
    if len(asked) == 1:
        return asked[0], _stand_ins(asked[0])
    taken, why = _fastest(drawing, ready)
    return taken, (*why, *_stand_ins(taken))


def _fastest(drawing: Drawing, ready: Sequence[FileSet]) -> tuple[FileSet, tuple[str, ...]]:
    unet = drawing.names[1]
    recommended = [one for one in ready if one.files[unet]["recommended"]]
    among = recommended or ready
    times = {one.name: _picture_ms(drawing, one) for one in among}
    taken = min(among, key=lambda one: times[one.name])  # the first, where none was timed
    kind = f"{'recommended ' if recommended else ''}files whose runtime is installed"
    if len(among) == 1:
        why = f"the only {kind}"
    elif times[taken.name] == inf:
        why = f"the first {kind}, none of which were timed where the bundle was made"
    else:
        others = ", ".join(f"{name} {'not timed' if ms == inf else f'{ms:.3g} ms'}" for name, ms in times.items() if name != taken.name)
        why = f"of the {kind} the fastest where the bundle was made, {times[taken.name]:.3g} ms a picture ({others})"
    return taken, (f"{taken.name} files draw: {why}; --backend and --variant take others",)


def _picture_ms(drawing: Drawing, files: FileSet) -> float:
    """All calls of a picture together; infinite where a file was not timed."""
    return sum(one["calls"] * host_ms(files.files[one["name"]]) for one in drawing.data["components"])


def _stand_ins(files: FileSet) -> tuple[str, ...]:
    floats = [file["path"] for file in files.files.values() if file["variant"] != files.variant]
    return (f"of {', '.join(floats)} the bundle has no {files.variant} file, so the float one draws",) if floats else ()
