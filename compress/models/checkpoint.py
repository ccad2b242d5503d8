"""Weights files: safetensors, or PyTorch's `.pth` read with `weights_only=True`. Nothing in a file is ever executed.

ESRGAN's generator has been published under three sets of names; all load:

- the original of 2018: `model.0`, `model.1.sub.0.RDB1.conv1.0`, `model.1.sub.23` (behind 23 blocks), `model.3`, `model.6`, `model.8`,
  `model.10`
- the ESRGAN repository since 2019: `conv_first`, `RRDB_trunk.0.RDB1.conv1`, `trunk_conv`, `upconv1`, `upconv2`, `HRconv`, `conv_last`
- BasicSR and Real-ESRGAN, inside `params` or `params_ema`: `conv_first`, `body.0.rdb1.conv1`,
  `conv_body`, `conv_up1`, `conv_up2`, `conv_hr`, `conv_last`
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mcompress.errors import CheckpointError

WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "generator", "model", "net")
"""Keys under which training programs put the weights, the preferred one first: an averaged generator is the better one."""
SHOWN = 5
"""Keys that a message names."""
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


def load_weights(model: nn.Module, path: Path, network: str) -> LoadReport:
    """Load the weights in `path` into `model`, the network that is called `network`; precision follows the model.

    Raises `CheckpointError` when the file cannot be read safely or belongs to another architecture; the message names the first keys that differ.
    """
    contents = _read(path)
    naming, tensors = "as the network's own", contents.tensors
    if network == "rrdb":
        naming, tensors = _rrdb_names(tensors)
    own = model.state_dict()
    # Files of before 2017 have no batch counters; nothing is computed with them.
    tensors = {**{name: value for name, value in own.items() if name.endswith("num_batches_tracked")}, **tensors}
    problems = _differences(own, tensors)
    if problems:
        advice = _size_advice(tensors, network)
        raise CheckpointError(f"{path} does not fit the network '{network}':\n" + "\n".join(problems) + f"\n{advice}")
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: '{name}' holds NaN or infinity; these weights come from a training that diverged. Use an earlier checkpoint."
            )
    model.load_state_dict(tensors)
    notes = contents.notes
    stored = {str(value.dtype).removeprefix("torch.") for name, value in tensors.items() if value.dtype != own[name].dtype}
    if stored:
        notes = (*notes, f"stored as {', '.join(sorted(stored))}, converted to the network's precision")
    return LoadReport(path, contents.format, contents.wrapper, naming, len(tensors), sum(p.numel() for p in model.parameters()), notes)


def rrdb_args_of(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """The arguments of `rrdb` (features, blocks, growth) with which these weights fit, from the shapes; any of the three namings.

    Raises `CheckpointError` when these are not the weights of an RRDBNet x4.
    """
    _, tensors = _rrdb_names(dict(state_dict))
    missing = [name for name in ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_last.weight") if name not in tensors]
    if missing:
        raise CheckpointError(
            f"these are not the weights of ESRGAN's generator x4 (RRDBNet): '{missing[0]}' is missing; the first keys are {_first(state_dict)}"
        )
    first, inner, last = tensors["conv_first.weight"], tensors["body.0.rdb1.conv1.weight"], tensors["conv_last.weight"]
    if first.dim() != 4 or inner.dim() != 4 or first.shape[1] != 3 or last.shape[0] != 3:
        raise CheckpointError(
            f"conv_first.weight is {tuple(first.shape)} and conv_last.weight is {tuple(last.shape)}; the generator x4 takes and gives 3 channels. "
            "(Real-ESRGAN's x2 and x1 models take 12 and 48.)"
        )
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("body."))
    return {"features": int(first.shape[0]), "blocks": blocks, "growth": int(inner.shape[0])}


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
                f"{path} holds no tensors; its keys are {_first(loaded)}. Save the weights: torch.save(model.state_dict(), 'weights.pth')"
            )
        chosen = loaded[choices[0]]
        wrapper, inner = str(choices[0]), chosen if isinstance(chosen, Mapping) else {}
        if len(choices) > 1:
            notes.append(f"took '{choices[0]}', not {', '.join(repr(key) for key in choices[1:])}")
    tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    left = [key for key, value in inner.items() if not isinstance(value, Tensor)]
    if left:
        notes.append(f"left out what is no tensor: {_first(left)}")
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


_BLOCK = r"(\d+)\.(?:RDB|rdb)([123])\.conv([1-5])"
_LAYERS_2018 = {"0": "conv_first", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
_LAYERS_2019 = {"trunk_conv": "conv_body", "upconv1": "conv_up1", "upconv2": "conv_up2", "HRconv": "conv_hr"}


def _rrdb_names(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Which naming it is, and the tensors under BasicSR's names. Names that belong to none stay, and are then said to be unexpected."""
    if any(name.startswith("model.1.sub.") for name in tensors):
        return "ESRGAN 2018", {_from_2018(name): value for name, value in tensors.items()}
    if any(name.startswith("RRDB_trunk.") for name in tensors):
        return "ESRGAN 2019", {_from_2019(name): value for name, value in tensors.items()}
    return "BasicSR", tensors


def _from_2018(name: str) -> str:
    if block := re.fullmatch(rf"model\.1\.sub\.{_BLOCK}\.0\.(weight|bias)", name):
        return "body.{}.rdb{}.conv{}.{}".format(*block.groups())
    if trunk := re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", name):
        return f"conv_body.{trunk[1]}"
    layer = re.fullmatch(r"model\.(\d+)\.(weight|bias)", name)
    return f"{_LAYERS_2018[layer[1]]}.{layer[2]}" if layer and layer[1] in _LAYERS_2018 else name


def _from_2019(name: str) -> str:
    if block := re.fullmatch(rf"RRDB_trunk\.{_BLOCK}\.(weight|bias)", name):
        return "body.{}.rdb{}.conv{}.{}".format(*block.groups())
    layer, _, kind = name.rpartition(".")
    return f"{_LAYERS_2019.get(layer, layer)}.{kind}"


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
        *(f"  {len(names)} of {len(own)} {what}: {_first(names)}" for names, what in lines if names),
        *([f"  {len(shapes)} of another shape: {'; '.join(shapes[:SHOWN])}{' ...' if len(shapes) > SHOWN else ''}"] if shapes else []),
    ]


def _size_advice(tensors: Mapping[str, Tensor], network: str) -> str:
    if network == "rrdb":
        try:
            args = rrdb_args_of(tensors)
        except CheckpointError as error:
            return f"Seen: {error}"
        return f"The file is an RRDBNet with {args}: give these as args, or leave args out."
    return "Give the arguments with which it was trained, or the checkpoint of this network."


def _first(names: Iterable[object]) -> str:
    shown = list(islice(names, SHOWN + 1))
    return ", ".join(f"'{name}'" for name in shown[:SHOWN]) + (", ..." if len(shown) > SHOWN else "")
