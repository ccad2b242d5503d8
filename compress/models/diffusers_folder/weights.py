"""Weights of a diffusers folder's networks: safetensors alone, in one file or in shards, under the names of any version of diffusers or transformers.

Names and shapes are compared with the network's before a weight is read, and weights are read one after the other into the network, so that they
never lie in memory twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import torch
from torch import nn

from mcompress.compress.models.checkpoint_messages import SHOWN, first_names
from mcompress.compress.models.diffusers_folder.fields import AGAIN, Fields
from mcompress.errors import CheckpointError, PlanError, Problems

Places = dict[Path, frozenset[str] | None]
"""Files -> the names that the index has of each; None where one file holds all."""

DIFFUSERS_STEM, TRANSFORMERS_STEM = "diffusion_pytorch_model", "model"
HALF = "fp16"
"""The variant that is taken where there is no other."""
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types in safetensors files that weights may have."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in autoencoders that old versions of diffusers saved, as Stable Diffusion 1.5's -> those of today."""
_OLD = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.(weight|bias)")
TEXT_PREFIX = "text_model."
"""Before transformers 5, all names in CLIPTextModel's files began so."""
POSITIONS = "embeddings.position_ids"
"""0, 1, 2, ...: a buffer that transformers saved until 2023."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, its name there, its shape and its type."""

    file: Path
    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class StoredWeights:
    """The weights of one network, by the names that it has today."""

    folder: Path
    tensors: Mapping[str, Stored]
    notes: tuple[str, ...] = ()
    """What was chosen or converted, and why."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Where they lie."""
        return tuple(sorted({one.file for one in self.tensors.values()}))

    def only(self, *beginnings: str) -> StoredWeights:
        """Those whose names begin so."""
        return replace(self, tensors={name: one for name, one in self.tensors.items() if name.startswith(beginnings)})

    def within(self, name: str) -> StoredWeights:
        """The same for a network that has this one as its child `name`."""
        return replace(self, tensors={f"{name}.{own}": one for own, one in self.tensors.items()})

    @torch.no_grad()
    def load_into(self, network: nn.Module) -> None:
        """Write every weight into `network`, in the network's precision. Raises `CheckpointError` where the names or shapes differ, a file cannot be
        read any more, or a weight is not finite.
        """
        own = network.state_dict()
        problems = differences({name: tuple(value.shape) for name, value in own.items()}, self.tensors)
        if problems:
            raise CheckpointError(f"{self.folder} does not fit the network:\n" + "\n".join(problems))
        for file in self.files:
            try:
                with safetensors.safe_open(file, framework="pt") as opened:
                    for name, one in self.tensors.items():
                        if one.file == file:
                            value = opened.get_tensor(one.name)
                            _check_finite(file, one.name, value)
                            own[name].copy_(value)
            except (safetensors.SafetensorError, OSError, RuntimeError) as error:
                raise CheckpointError(f"{file} cannot be read any more: {error}. Download or copy it again.") from error


def _check_finite(file: Path, name: str, value: torch.Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{file}: '{name}' holds NaN or infinity; these weights come from a training that diverged. Use other ones.")


def today(name: str) -> str:
    """The name that a weight of an autoencoder has today."""
    old = _OLD.fullmatch(name)
    return name if old is None else f"{old[1]}.{OLD_ATTENTION[old[2]]}.{old[3]}"


def text_name(name: str) -> str:
    """The name that a weight of CLIPTextModel has without the prefix of older versions."""
    return name.removeprefix(TEXT_PREFIX)


def stored_weights(folder: Path, stem: str, renamed: Callable[[str], str]) -> StoredWeights:
    """What lies in `folder`, under the names that `renamed` gives. Raises `PlanError`, which lists what cannot be used."""
    chosen, notes = _chosen(folder, stem)
    places: Places = _shards(chosen) if chosen.suffix == ".json" else {chosen: None}
    problems = Problems()
    tensors: dict[str, Stored] = {}
    for file, listed in places.items():
        for one in problems.of(lambda file=file, listed=listed: _headers(file, listed)) or ():  # type: ignore[misc]  # bound in this round
            name = renamed(one.name)
            if name == POSITIONS:
                continue
            if one.type not in TYPES:
                problems.add(f"{file}: '{one.name}' is stored as {one.type}; it must be one of {', '.join(TYPES)}: save the float network")
            if name in tensors:
                problems.add(f"{file}: '{one.name}' is there twice, also as '{tensors[name].name}'; save the network again")
            tensors[name] = one
    if problems.found:
        raise PlanError(problems.found)
    types = sorted({TYPES[one.type] for one in tensors.values()} - {"float32"})
    if types:
        notes = (*notes, f"{chosen}: stored as {', '.join(types)}, loaded as float32")
    return StoredWeights(folder, tensors, notes)


def differences(own: Mapping[str, tuple[int, ...]], given: Mapping[str, Stored]) -> list[str]:
    """What is missing, too much, or of another shape than the network's `own`; one line each."""
    missing, unexpected = [name for name in own if name not in given], [one.name for name, one in given.items() if name not in own]
    shapes = [f"'{one.name}' is {one.shape}, the network's is {own[name]}" for name, one in given.items() if name in own and one.shape != own[name]]
    return [
        *([f"  {len(missing)} of {len(own)} missing in the files: {first_names(missing)}"] if missing else []),
        *([f"  {len(unexpected)} not in the network: {first_names(unexpected)}"] if unexpected else []),
        *([f"  {len(shapes)} of another shape: {'; '.join(shapes[:SHOWN])}{' ...' if len(shapes) > SHOWN else ''}"] if shapes else []),
    ]


def _chosen(folder: Path, stem: str) -> tuple[Path, tuple[str, ...]]:
    """The weights file or the index of its shards; float32 first, whole first."""
    names = [
        f"{stem}.safetensors", f"{stem}.safetensors.index.json",
        f"{stem}.{HALF}.safetensors", f"{stem}.safetensors.index.{HALF}.json", f"{stem}.{HALF}.safetensors.index.json",
    ]  # fmt: skip
    found = [name for name in names if (folder / name).is_file()]
    if found:
        return folder / found[0], (f"{folder}: took {found[0]}, not {', '.join(found[1:])}",) if len(found) > 1 else ()
    seen = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".json") if folder.is_dir() else []
    pickles = [name for name in seen if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles and not any(name.endswith(".safetensors") for name in seen):
        raise PlanError(
            [
                f"{folder} has its weights as {first_names(pickles)} alone: pickles, which can run code and are not read. It must have {names[0]}: "
                "load the folder with diffusers where you trust it, and save it again with save_pretrained(..., safe_serialization=True)"
            ]
        )
    there = first_names(seen) or "no weights"
    raise PlanError([f"{folder} has no {names[0]}, whole, in shards, or as its {HALF} variant; there are {there}. {AGAIN.capitalize()}."])


def _shards(path: Path) -> Places:
    listed = Fields(path).values.get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise PlanError([f"{path}: weight_map is {json.dumps(listed)[:100]}; it must name a file for each weight. {AGAIN.capitalize()}."])
    files = sorted({str(file) for file in listed.values()})
    outside = [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]
    if outside:
        raise PlanError([f"{path} names {first_names(outside)}; shards must be .safetensors files beside it. Do not use this folder."])
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        count = f"{len(missing)} of {len(files)} shards"
        raise PlanError([f"{path.parent} lacks {count} that {path.name} names: {first_names(missing)}. Download or copy them again."])
    return {path.parent / file: frozenset(name for name, its in listed.items() if its == file) for file in files}


def _headers(file: Path, listed: frozenset[str] | None) -> list[Stored]:
    """The tensors in a file, which must be those that the index lists."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (this is no dictionary)
            found = [Stored(file, name, tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()]
    except (safetensors.SafetensorError, OSError) as error:
        size = f"{file.stat().st_size} bytes"
        raise PlanError([f"{file} ({size}) cannot be read as safetensors: {error}. It is cut off or damaged; {AGAIN}."]) from error
    if listed is not None and slices.keys() != listed:
        other = first_names(sorted(listed.symmetric_difference(slices)))
        raise PlanError([f"{file} does not hold what the index says of it; they differ in {other}. Download or copy both again."])
    return found
