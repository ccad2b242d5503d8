"""Weights files: safetensors, or PyTorch's `.pth` read with `weights_only=True`. Nothing in a file is ever executed.

Under which names published weights load says `mcompress.compress.models.checkpoint_names`.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mcompress.compress.models.checkpoint_messages import SHOWN, first_names
from mcompress.compress.models.checkpoint_names import CALLED, args_of, own_names
from mcompress.compress.models.lip_checkpoints import for_rgb
from mcompress.errors import CheckpointError
from mcompress.targets.schema import ColourOrder

WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "generator", "model", "net")
"""Keys under which training programs put the weights, the preferred one first: an averaged generator is the better one."""
PREFIX = "module."
OVERHEAD_BYTES = 2**20
"""What a zip file may hold more than its own size: headers and padding; PyTorch never compresses."""


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: file format, the key that held the weights (None: the file itself), naming, counts, and what was not taken over and why."""

    path: Path
    format: str
    wrapper: str | None
    naming: str
    tensors: int
    parameters: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Contents:
    tensors: dict[str, Tensor]
    format: str
    wrapper: str | None
    notes: tuple[str, ...]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Name -> tensor (CPU) as the file has them; the wrapper (`params_ema`, ...) and the prefix `module.` are taken off.

    Raises `CheckpointError` for a file that is missing, empty, cut off, corrupt, larger unpacked than it is, or that holds code.
    """
    return _read(path).tensors


def load_weights(model: nn.Module, path: Path, network: str, *, colour_order: ColourOrder = "RGB") -> LoadReport:
    """Load the weights in `path` into `model`, the network that is called `network`; precision follows the model.

    Weights that were trained on BGR pictures, as `colour_order` says, become ones that take and give RGB, as everything here does. Raises
    `CheckpointError` when the file cannot be read safely or belongs to another architecture; the message names the first keys that differ.
    """
    contents = _read(path)
    own = model.state_dict()
    renamed = own_names(network, contents.tensors, own)
    tensors = renamed.tensors
    # Files of before 2017 have no batch counters; nothing is computed with them.
    tensors = {**{name: value for name, value in own.items() if name.endswith("num_batches_tracked")}, **tensors}
    problems = _differences(own, tensors)
    if problems:
        advice = _size_advice(contents.tensors, network)
        raise CheckpointError(f"{path} does not fit the network '{network}':\n" + "\n".join(problems) + f"\n{advice}")
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: '{name}' holds NaN or infinity; these weights come from a training that diverged. Use an earlier checkpoint."
            )
    notes = (*contents.notes, *renamed.notes)
    if colour_order == "BGR":
        tensors = for_rgb(network, tensors)
        notes = (*notes, "trained on BGR; the weights of its colours changed places, so that it takes and gives RGB")
    model.load_state_dict(tensors)
    stored = {str(value.dtype).removeprefix("torch.") for name, value in tensors.items() if value.dtype != own[name].dtype}
    if stored:
        notes = (*notes, f"stored as {', '.join(sorted(stored))}, converted to the network's precision")
    return LoadReport(path, contents.format, contents.wrapper, renamed.naming, len(tensors), sum(p.numel() for p in model.parameters()), notes)


def _read(path: Path) -> _Contents:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: {'this is a folder, not a weights file' if path.is_dir() else 'there is no such file'}. Give a .safetensors or .pth file."
        )
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Download or copy it again.")
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:9] == b"{":
        return _unwrapped(path, _read_safetensors(path, size), "safetensors")
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} does not begin as a safetensors file does ({start!r}). Download or copy it again.")
    return _unwrapped(path, _read_pth(path, size), "pth")


def _read_safetensors(path: Path, size: int) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(
            f"{path} ({size} bytes) cannot be read as safetensors: {error}. It is cut off or damaged; download or copy it again."
        ) from error


def _read_pth(path: Path, size: int) -> object:
    if zipfile.is_zipfile(path):
        _check_zip(path, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old storage classes; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        first = str(error).partition("\n")[0]
        found = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand|type)|unsupported).*", str(error))
        seen = found.group(0).strip() if found else first
        raise CheckpointError(
            f"{path} ({size} bytes) holds something other than weights, and was not executed: {seen[:300]}. "
            "If it is a whole model or an optimiser, save the weights alone where you trained it: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, MemoryError, OverflowError) as error:
        first = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} ({size} bytes) cannot be read as a PyTorch file: {first}. It is cut off or damaged; download or copy it again."
        ) from error


def _check_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path} ({size} bytes) is a damaged zip file: {error}. Download or copy it again.") from error
    if unpacked > size + OVERHEAD_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes and would unpack to {unpacked}; PyTorch never compresses, so it was not opened. Do not use this file."
        )


def _unwrapped(path: Path, loaded: object, file_format: str) -> _Contents:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__}; a dictionary of tensors is needed: torch.save(model.state_dict(), 'weights.pth')"
        )
    wrapper: str | None = None
    inner: Mapping[object, object] = loaded
    notes: list[str] = []
    if not _holds_tensors(loaded):
        choices = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping) and _holds_tensors(loaded[key])]
        choices = choices or [key for key, value in loaded.items() if isinstance(value, Mapping) and _holds_tensors(value)]
        if not choices:
            raise CheckpointError(
                f"{path} holds no tensors; its keys are {first_names(loaded)}. Save the weights: torch.save(model.state_dict(), 'weights.pth')"
            )
        chosen = loaded[choices[0]]
        wrapper, inner = str(choices[0]), chosen if isinstance(chosen, Mapping) else {}
        if len(choices) > 1:
            notes.append(f"took '{choices[0]}', not {', '.join(repr(key) for key in choices[1:])}")
    tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    left = [key for key, value in inner.items() if not isinstance(value, Tensor)]
    if left:
        notes.append(f"left out what is no tensor: {first_names(left)}")
    _check_tensors(path, tensors)
    if all(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    return _Contents(tensors, file_format, wrapper, tuple(notes))


def _holds_tensors(value: Mapping[object, object]) -> bool:
    return any(isinstance(entry, Tensor) for entry in value.values())


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            kind = "quantized" if value.is_quantized else f"{value.layout} on {value.device}"
            raise CheckpointError(f"{path}: '{name}' is {kind}; only plain dense tensors are weights here. Save the float network.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: '{name}' claims the shape {tuple(value.shape)}, but the file holds {value.untyped_storage().nbytes()} bytes of it. "
                "Do not use this file."
            )


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    shapes = [
        f"'{name}' is {tuple(given[name].shape)}, the network's is {tuple(own[name].shape)}"
        for name in own
        if name in given and own[name].shape != given[name].shape
    ]
    lines = ((missing, "missing in the file"), (unexpected, "not in the network"))
    return [
        *(f"  {len(names)} of {len(own)} {what}: {first_names(names)}" for names, what in lines if names),
        *([f"  {len(shapes)} of another shape: {'; '.join(shapes[:SHOWN])}{' ...' if len(shapes) > SHOWN else ''}"] if shapes else []),
    ]


def _size_advice(given: Mapping[str, Tensor], network: str) -> str:
    try:
        args = args_of(network, given)
    except CheckpointError as error:
        return f"Seen: {error}"
    if args is None:
        return "Give the arguments with which it was trained, or the checkpoint of this network."
    return f"The file is {CALLED[network]} with {args}: give these as args, or leave args out."
