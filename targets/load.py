"""YAML file -> `Target`. Every problem of a file is reported at once, with file, line, value and what is allowed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import JsonValue, ValidationError
from ruamel.yaml import YAML

from mcompress.errors import TargetError
from mcompress.targets import document as yaml_document
from mcompress.targets.device_files import DEVICE_SUFFIXES, load_device
from mcompress.targets.document import Document, Key, show_path, walk
from mcompress.targets.names import near, unknown_name
from mcompress.targets.problems import describe, show
from mcompress.targets.schema import Target

_FOLDERS: tuple[yaml_document.Path, ...] = (("data", "training"), ("data", "held_out"), ("data", "unlabelled"))
_FILES: tuple[yaml_document.Path, ...] = (("model", "checkpoint"), *(("model", who, "checkpoint") for who in ("teacher", "student", "expert")))
_OVERRIDE = re.compile(r"(?P<key>[A-Za-z_][\w-]*(?:\[\d+\])*(?:\.[A-Za-z_][\w-]*(?:\[\d+\])*)*)\s*=(?P<value>.*)", re.DOTALL)


def load_target(path_or_name: Path | str, overrides: Sequence[str] = ()) -> Target:
    """Read a target file, or a shipped target by its bare name (`snapdragon865`), and apply `KEY=VALUE` overrides.

    Keys are dotted with list indices (`stages[1].ratio`, `model.teacher.checkpoint`), values are YAML 1.2. Relative paths in the file start at the
    file's folder, relative paths in overrides at the working directory; both are absolute in the result. Raises `TargetError` with every problem.
    """
    label, text, folder = _read(Path(path_or_name))
    document = yaml_document.parse(text, label)
    if document.data is None and not document.problems:
        document.problems.append(f"{label}:1: the file is empty; a target needs at least name, device and exports (examples: mcompress list targets)")
    elif not isinstance(document.data, dict) and not document.problems:
        document.problems.append(f"{label}:1: the file holds {show(document.data)}; it must be a mapping with name, device and exports")
    for override in overrides:
        _apply(override, document)
    if not isinstance(document.data, dict):
        raise TargetError(_in_order(document))
    _resolve_paths(document, folder)
    try:
        target = Target.model_validate(document.data)
    except ValidationError as error:
        document.problems += describe(error, document, Target)
        document.problems += _device_problems(document)
        raise TargetError(_in_order(document)) from None
    document.problems += _coercions(document, target) + _device_problems(document)
    if document.problems:
        raise TargetError(_in_order(document))
    return target


def shipped_targets() -> tuple[str, ...]:
    """Names of the targets that come with mcompress, sorted."""
    return tuple(sorted(_shipped()))


def resolved_yaml(target: Target) -> str:
    """The target with every default written out; loading it gives an equal target."""
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(target.model_dump(mode="json", exclude_none=True), text)
    return text.getvalue()


def digest(target: Target) -> str:
    """SHA-256 of the target's canonical JSON: equal targets, however written, have equal digests."""
    return hashlib.sha256(json.dumps(target.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def _shipped() -> dict[str, str]:
    """Name -> text."""
    files = [entry for entry in resources.files("mcompress.targets").iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in files}


def _read(path: Path) -> tuple[str, str, Path]:
    """(label for messages, text, folder that relative paths start at)."""
    label = str(path)
    try:
        if not path.exists() and label in _shipped():
            return f"targets/{label}.yaml", _shipped()[label], Path.cwd()
        if path.is_dir():
            raise TargetError([f"{label}: this is a folder; give a target file, for example {path / 'snapdragon865.yaml'}"])
        size = path.stat().st_size
        if size > yaml_document.MAX_BYTES:
            raise TargetError([f"{label}: the file has {size} bytes; a target has at most {yaml_document.MAX_BYTES}"])
        return label, path.read_bytes().decode("utf-8-sig"), path.resolve().parent
    except FileNotFoundError:
        known = shipped_targets()
        what = f"; shipped targets are {', '.join(known)}{near(path.stem, known)}" if known else ""
        raise TargetError([f"{label}: there is no such file, and no shipped target of that name{what}"]) from None
    except UnicodeDecodeError as error:
        raise TargetError([f"{label}: not a text file: byte {error.start} is not UTF-8; a target is YAML text in UTF-8"]) from error
    except (OSError, ValueError) as error:
        raise TargetError([f"{label}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error


def _apply(override: str, document: Document) -> None:
    """Set one value in the document; what is wrong is added to its problems."""
    place = f"--set {override}" if len(override) <= 80 else f"--set {override[:77]}..."
    match = _OVERRIDE.fullmatch(override.strip())
    if match is None:
        document.problems.append(f"{document.file}: {place}: an override is KEY=VALUE, for example stages[1].ratio=0.3")
        return
    parsed = yaml_document.parse(match["value"], place)
    if parsed.problems:
        document.problems += [f"{document.file}: {problem}" for problem in parsed.problems]
        return
    keys: list[Key] = [int(part[1:-1]) if part.startswith("[") else part for part in re.findall(r"\[\d+\]|[^.\[\]]+", match["key"])]
    holder: JsonValue = document.data
    for depth, key in enumerate(keys):
        last, where = depth == len(keys) - 1, show_path(tuple(keys[:depth]))
        if isinstance(key, int) and isinstance(holder, list):
            if key >= len(holder):
                document.problems.append(f"{document.file}: {place}: {where} has {len(holder)} entries, the first is [0]; [{key}] does not exist")
                return
            if last:
                holder[key] = parsed.data
            holder = holder[key]
        elif isinstance(key, str) and isinstance(holder, dict):
            if last or holder.get(key) is None:
                holder[key] = parsed.data if last else {}
            holder = holder[key]
        else:
            document.problems.append(f"{document.file}: {place}: {where} is {show(holder)}; {show_path((key,))} cannot be set inside it")
            return
    path = tuple(keys)
    for old in [p for p in document.places if p[: len(path)] == path]:
        del document.places[old]
    document.places[path] = f"{document.file}: {place}"


def _resolve_paths(document: Document, folder: Path) -> None:
    """Make paths absolute and check that they exist."""
    device = document.data.get("device") if isinstance(document.data, dict) else None
    device_file = (("device",),) if isinstance(device, str) and device.endswith(DEVICE_SUFFIXES) else ()
    for path in (*_FOLDERS, *_FILES, *_plan_files(document), *device_file):
        holder: JsonValue = document.data
        for key in path[:-1]:
            if isinstance(key, int):
                holder = holder[key] if isinstance(holder, list) else None
            else:
                holder = holder.get(key) if isinstance(holder, dict) else None
        name = str(path[-1])
        if not isinstance(holder, dict) or not isinstance(holder.get(name), str):
            continue
        written, place = str(holder[name]), document.place(path)
        overridden = place.startswith(f"{document.file}: --set ")
        base = Path.cwd() if overridden else folder
        try:
            found = Path(os.path.normpath(base / Path(written).expanduser()))
            exists = found.is_dir() if path in _FOLDERS else found.exists()
        except (OSError, ValueError, RuntimeError) as error:
            document.problems.append(f"{place}: {show_path(path)} is {show(written)}, which is no path: {getattr(error, 'strerror', None) or error}")
            continue
        holder[name] = str(found)
        if not exists:
            what = "folder" if path in _FOLDERS else "file"
            start = "the working directory" if overridden else "the folder of the target file"
            document.problems.append(f"{place}: {show_path(path)} is {show(written)}; there is no such {what} (relative paths start at {start})")


def _plan_files(document: Document) -> list[yaml_document.Path]:
    """Where stages, also those of components, name a precision plan."""
    holders: list[tuple[yaml_document.Path, JsonValue]] = [((), document.data)]
    components = document.data.get("components") if isinstance(document.data, dict) else None
    holders += [(("components", name), config) for name, config in (components.items() if isinstance(components, dict) else ())]
    listed = ((path, holder.get("stages")) for path, holder in holders if isinstance(holder, dict))
    return [
        (*path, "stages", place, "plan")
        for path, stages in listed
        for place, stage in enumerate(stages if isinstance(stages, list) else [])
        if isinstance(stage, dict)
    ]


def _coercions(document: Document, target: Target) -> list[str]:
    """Values of another type than the field's that pydantic would take all the same: `threads: true`, `steps: "100"`."""
    taken = dict(walk(target.model_dump(mode="json")))
    problems = []
    for path, value in walk(document.data):
        read = taken.get(path, value)
        if isinstance(read, (int, float)) and not isinstance(read, bool) and isinstance(value, (bool, str)):
            problems.append(f"{document.place(path)}: {show_path(path)} is {show(value)}; it must be a number, without quotes")
    return problems


def _device_problems(document: Document) -> list[str]:
    """Unknown device or unit."""
    if not isinstance(document.data, dict) or not isinstance(document.data.get("device"), str):
        return []
    try:
        device = load_device(str(document.data["device"]))
    except TargetError as error:
        return [f"{document.place(('device',))}: {problem}" for problem in error.problems]
    unit = document.data.get("unit")
    if isinstance(unit, str) and unit not in device.units:
        return [f"{document.place(('unit',))}: {unknown_name('unit', unit, tuple(device.units), f'of {device.name}')}"]
    return []


def _in_order(document: Document) -> list[str]:
    """Problems by line; those without a line last."""

    def line(problem: str) -> float:
        match = re.match(rf"{re.escape(document.file)}:(\d+):", problem)
        return float(match[1]) if match else float("inf")

    # One problem is one line, whatever the file had in it.
    return sorted(dict.fromkeys(" ".join(problem.splitlines()) for problem in document.problems), key=line)
