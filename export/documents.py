"""The papers of a bundle: model card, licences, and loaders in Kotlin, Swift and Python, generated from the manifest."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from mcompress.export.fallback_lines import fallback_lines
from mcompress.export.fidelity import value_of
from mcompress.export.manifest import Manifest, ModelFile
from mcompress.export.standing_alone import DRAW, TALK, VERIFY, write_scripts
from mcompress.record import HIGHEST_DB, Fidelity, Run
from mcompress.targets.schema import Measurement, Target

OWNERS = "not known, stated by the owner"
# What the packages themselves say about the photographs that they carry: docstrings of scikit-image 0.26.0, README.txt of scikit-learn's images.
PHOTOGRAPHS = (
    ("astronaut", "scikit-image", "NASA; public domain"),
    (
        "motorcycle_left, motorcycle_right",
        "scikit-image",
        "Middlebury 2014 stereo benchmark (Nesic, Westling, Wang, Kitajima, Krathwohl, Scharstein); terms not stated",
    ),
    ("ihc", "scikit-image", "Center for Microscopy and Molecular Imaging; no known copyright restrictions"),
    ("hubble_deep_field", "scikit-image", "NASA; public domain"),
    ("retina", "scikit-image", "Mikael Haggstrom; CC0 1.0"),
    ("chelsea", "scikit-image", "Stefan van der Walt; CC0"),
    ("coffee", "scikit-image", "Rachel Michetti; CC0"),
    ("rocket", "scikit-image", "SpaceX; public domain"),
    ("china", "scikit-learn", "danielbuechele on Flickr; CC BY 2.0"),
    ("flower", "scikit-learn", "vultilion on Flickr; CC BY 2.0"),
)
TALKING_PHOTOGRAPHS = (
    PHOTOGRAPHS[0],
    ("grace_hopper", "matplotlib", "portrait of an officer by the United States Navy, whose works are public domain; matplotlib states no terms"),
)
"""Of whose faces the embedded clips are made."""
PACKAGE_TERMS = {"scikit-image": "BSD 3-Clause", "scikit-learn": "BSD 3-Clause", "matplotlib": "Matplotlib License (based on the PSF License)"}
"""Of the packages that carry them."""


def write_documents(folder: Path, manifest: Manifest, run: Run, target: Target) -> None:
    """Write MODEL_CARD.md, LICENSES, verify.py, talk.py for talking faces and draw.py for text to image with what they import, and the loaders that
    the bundle's files need.
    """
    write_scripts(folder, {**VERIFY, **(TALK if manifest.speech is not None else DRAW if manifest.drawing is not None else {})})
    _render("MODEL_CARD.md.j2", folder / "MODEL_CARD.md", manifest, run, target)
    _render("LICENSES.j2", folder / "LICENSES", manifest, run, target)
    backends = {file.backend for file in manifest.files}
    android = {"LiteRt.kt": "tflite", "ExecuTorch.kt": "executorch"}
    if backends & set(android.values()):
        _render("Vectors.kt.j2", folder / "kotlin" / "Vectors.kt", manifest, run, target)
    for name, backend in android.items():
        if backend in backends:
            _render(f"{name}.j2", folder / "kotlin" / name, manifest, run, target)
    if "coreml" in backends:
        _render("VerifyBundle.swift.j2", folder / "swift" / "VerifyBundle.swift", manifest, run, target)


def weights_licence(target: Target) -> str:
    """The licence of the weights as far as it is known: ours for the embedded teacher, the owner's for everything else."""
    if target.data.training is not None:
        return OWNERS
    student = target.model.student
    ours = target.model.teacher.network == "embedded" and target.model.teacher.checkpoint is None and (student is None or student.checkpoint is None)
    return "Apache-2.0" if ours else OWNERS


def baseline_title(name: str) -> str:
    """A task's trivial reference, as the model card calls it."""
    return {"bicubic": "Bicubic enlargement", "mean colour": "The mean colour of the training targets everywhere"}.get(name, name.capitalize())


def holds_photographs(target: Target) -> bool:
    """Whether embedded photographs went into the bundle: translation has drawn scenes of its own, and photographs where the target asks for them; of
    text to image there are drawn scenes alone.
    """
    if target.model.task == "text_to_image":
        return False
    return target.data.training is None and (target.model.task != "translation" or target.data.embedded == "photographs")


def photographs_of(target: Target) -> tuple[tuple[str, str, str], ...]:
    """The embedded photographs of the target's task: name, the package that carries it, and what is known of its terms."""
    return TALKING_PHOTOGRAPHS if target.model.task == "talking_face" else PHOTOGRAPHS


def _packages(target: Target) -> dict[str, list[str]]:
    """Terms -> the packages that carry these photographs under them."""
    found: dict[str, list[str]] = {}
    for package in dict.fromkeys(package for _, package, _ in photographs_of(target)):
        found.setdefault(PACKAGE_TERMS[package], []).append(package)
    return found


def _render(template: str, path: Path, manifest: Manifest, run: Run, target: Target) -> None:
    loader = PackageLoader("mcompress.export", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters.update(kotlin=_kotlin, swift=_swift, size=_size, latency=_latency, metrics=_metrics, cell=_cell, likeness=_likeness)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = environment.get_template(template).render(
        manifest=manifest,
        run=run,
        target=target,
        photographs=photographs_of(target),
        packages=_packages(target),
        holds_photographs=holds_photographs(target),
        baseline=baseline_title(run.baseline_name),
        embedded_teacher=target.model.teacher.network == "embedded" and target.model.teacher.checkpoint is None,
        of=_of(manifest),
        highest_db=HIGHEST_DB,
        fallback_lines=tuple(fallback_lines(run, manifest)),
    )
    path.write_text(text, encoding="utf-8")


def _of(manifest: Manifest) -> dict[str, list[ModelFile]]:
    grouped: dict[str, list[ModelFile]] = {}
    for file in manifest.files:
        grouped.setdefault(file.backend, []).append(file)
    return grouped


def _kotlin(text: str) -> str:
    """A Kotlin string literal."""
    return json.dumps(text, ensure_ascii=False).replace("$", "\\$")


def _swift(text: str) -> str:
    """A Swift string literal."""
    return json.dumps(text, ensure_ascii=False)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _latency(measurement: Measurement) -> str:
    p90 = f", p90 {measurement.p90:.3g}" if measurement.p90 is not None else ""
    count = f", {measurement.n} runs" if measurement.n is not None else ""
    band = f", {measurement.band}" if measurement.band else ""
    return f"{measurement.value:.3g} {measurement.unit} ({measurement.how}, {measurement.on}{p90}{count}{band})"


def _metrics(values: dict[str, float]) -> str:
    return ", ".join(f"{value:.2f} {name}" for name, value in values.items()) or "not measured"


def _likeness(found: Fidelity, field: str, digits: int) -> str:
    """A field of `Likeness` for a cell: mean, worst case and its picture."""
    mean, worst = value_of(found.mean, field), found.worst.get(field)
    if mean is None or worst is None:
        return "not measured"
    return f"{mean:.{digits}f}, worst {worst.value:.{digits}f} ({_cell(worst.picture)})"


def _cell(text: object) -> str:
    """Text that cannot break a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
