"""The networks of a run that has several: how each is called, and its original and what became of it, apart from the others'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mcompress.record import ExportRecord, ModelRecord, Run
from mcompress.reports import wording

OWN = "unet"
"""The run's own network among several, as `CallsRecord.component` has it."""
TITLES: Mapping[str, str] = {OWN: "U-Net", "text_encoder": "text encoder", "decoder": "decoder"}
ORIGINAL, COMPRESSED = "original", "compressed"
FOLDER = "components"
"""In the run's folder: a folder for each network that goes along, with its stages and samples."""


def title(component: str) -> str:
    """`text encoder`."""
    return TITLES.get(component, component.replace("_", " "))


def network_of(run: Run, component: str | None) -> str:
    """Which network something is of, None being the run's own; empty in a run of one network, where there is nothing to tell apart."""
    return title(component or OWN) if run.components else ""


def named(run: Run, component: str | None, name: str) -> str:
    """A model or file with its network in front, `decoder, original`, where there are several."""
    return ", ".join(filter(None, (network_of(run, component), name)))


def label(run: Run, export: ExportRecord, joint: str = " ") -> str:
    """Which of a run's files it is: `tflite mixed decoder`, among several networks also `tflite mixed U-Net`; the network stands behind `joint`."""
    network = network_of(run, export.component) or export.beside
    return f"{export.backend} {export.variant}{joint + network if network else ''}"


def budget_name(run: Run, what: str) -> str:
    """A line of the budget for people, with the network that it is about where there are several: `decoder: latency, ms`."""
    component = next((name for name in run.components if what.startswith(f"{name} ")), None)
    return ": ".join(filter(None, (network_of(run, component), wording.budget_name(what.removeprefix(f"{component} ")))))


def along(run: Run) -> dict[str, dict[str, ModelRecord]]:
    """Network that goes along -> its original and what became of it."""
    return {name: {ORIGINAL: run.models[f"{name}_teacher"], COMPRESSED: run.models[name]} for name in run.components}


def networks(run: Run) -> dict[str, tuple[ModelRecord, ModelRecord]]:
    """Every network, the run's own first -> its original and what became of it; without the run's own where one of the two is missing."""
    own = {OWN: (run.models["teacher"], run.models["compressed"])} if {"teacher", "compressed"} <= run.models.keys() else {}
    return own | {name: (models[ORIGINAL], models[COMPRESSED]) for name, models in along(run).items()}


def model_key(component: str, which: str) -> str:
    """The key in `Run.models` of the original of a network that goes along, or of what became of it."""
    return f"{component}_teacher" if which == ORIGINAL else component


def stage_folder(run: Run, folder: Path, stage: str) -> Path | None:
    """Where a stage of a network that goes along, `prune-decoder`, left its details; None for one of the run's own network."""
    for name in run.components:
        if stage.endswith(f"-{name}"):
            return folder / FOLDER / name / "stages" / stage.removesuffix(f"-{name}")
    return None


def exports_of(run: Run, component: str | None) -> list[ExportRecord]:
    """The files of one network."""
    return [export for export in run.exports if export.component == component]
