"""The modules beside a target file: `network: my_network:build` means the `my_network.py` in the folder of the target that says so.

Python keeps one module of a name. When another target is opened, what was imported from the folder of the one before is forgotten, so each gets its
own; so it is when a file beside the target has changed. One target is open at a time.

What a user's network computes is decided by more files than the one that is named: `sources_of` lists them, for cache keys and a run's receipt.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


@dataclass(frozen=True)
class _Folder:
    path: Path
    added: bool
    """Whether the folder is on Python's path because of us; what came from another folder on the path is not ours to forget."""
    files: dict[str, tuple[int, int]]
    """Source that can be imported from the folder -> time of change and size, when it was opened."""


_open: list[_Folder] = []  # the present one, or none
_read: dict[Path, str] = {}
"""Source file -> SHA-256, as `source_digests` read it; for a file that a module was loaded from, before it was loaded."""


def import_beside(folder: Path | None) -> None:
    """Let modules be imported from `folder`, the one of the present target (None: a target that comes with mcompress), and from no other target's."""
    wanted = None if folder is None else folder.resolve()
    files = {} if wanted is None else {name: _stamp(path) for name, path in _importable_in(wanted).items()}
    if _open and (_open[0].path != wanted or _open[0].files != files or _changed_below(_open[0].path)):
        _close(_open.pop())
    if wanted is not None and not _open:
        added = str(wanted) not in sys.path
        if added:
            sys.path.append(str(wanted))
        _open.append(_Folder(wanted, added, files))
    importlib.invalidate_caches()


def open_folder() -> Path | None:
    """The folder of the present target; None for a target that comes with mcompress."""
    return _open[0].path if _open else None


def file_beside(module: str) -> Path | None:
    """The file that `module` is in the present target's folder; None if it has none there, and Python looks where it always does."""
    if not _open:
        return None
    place = _open[0].path.joinpath(*module.split("."))
    candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def sources_of(module: str) -> dict[str, Path]:
    """Every Python file that what `module` computes may depend on: name from the folder that it is imported from -> file; sorted.

    These are the files below the folder of its top package, and what lies beside that and so can be imported by the same way: `*.py`, and whatever is
    below a folder that holds a `*.py` itself. Beside an installed package (or the standard library) lies what it does not depend on, so of such a
    module only its top package or its single file counts. Folders that no import statement can name are left out, such as `.git` and `site-packages`.

    Not covered: data files that the module reads, packages that are installed, what it takes from elsewhere on Python's path, files inside archives,
    and beside it a folder whose Python files all lie deeper. Nothing is imported. Empty if Python finds no such module, or it has no file.
    """
    top = module.partition(".")[0]
    beside = file_beside(module)
    found: dict[str, Path] = {}
    for place in _places(top) if beside is None else _places_beside(_open[0].path, top):
        if not _is_installed(place.parent):
            found |= _importable_in(place.parent)
        found |= {place.name: place} if place.is_file() else dict(_below(place, top, set()))
    return dict(sorted(found.items()))


def source_digests(module: str) -> dict[str, str]:
    """Name in `sources_of` -> SHA-256 of the file: of what this process computes with, if the file was changed after a module was loaded from it."""
    sources = sources_of(module)
    for name, path in sources.items():
        if path not in _read or not _is_loaded(name, path):
            _read[path] = _digest(path)
    return {name: _read[path] for name, path in sources.items()}


def edited_since_loaded(module: str) -> tuple[str, ...]:
    """The names in `sources_of` whose file is no longer what this process, which imported it, computes with."""
    read = source_digests(module)
    return tuple(name for name, path in sources_of(module).items() if _is_loaded(name, path) and read[name] != _digest(path))


def _places(top: str) -> list[Path]:
    """The folders of a top package, or the file of a top module."""
    loaded = sys.modules.get(top)
    if loaded is not None:
        file, packages = getattr(loaded, "__file__", None), getattr(loaded, "__path__", None)
    else:
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            return []
        file, packages = spec.origin, spec.submodule_search_locations
    if packages is not None:
        return [place for place in (Path(str(entry)) for entry in packages) if place.is_dir()]
    return [Path(file)] if isinstance(file, str) and Path(file).is_file() else []


def _places_beside(folder: Path, top: str) -> list[Path]:
    return [place for place in (folder / top, folder / f"{top}.py") if place.exists()]


def _is_installed(root: Path) -> bool:
    return root.name in ("site-packages", "dist-packages", "lib-dynload") or root.resolve() in _INSTALLED


def _importable_in(root: Path) -> dict[str, Path]:
    """The sources that `root` on Python's path gives."""
    found = {}
    for path in _listed(root):
        if _is_source(path):
            found[path.name] = path
        elif _is_package(path) and any(_is_source(inner) for inner in _listed(path)):
            found |= dict(_below(path, path.name, set()))
    return dict(sorted(found.items()))


def _below(folder: Path, prefix: str, seen: set[Path]) -> Iterator[tuple[str, Path]]:
    if folder.resolve() in seen:  # a link to a folder above it
        return
    seen.add(folder.resolve())
    for path in _listed(folder):
        if _is_source(path):
            yield f"{prefix}/{path.name}", path
        elif _is_package(path):
            yield from _below(path, f"{prefix}/{path.name}", seen)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []  # what cannot be listed cannot be imported from either


def _is_source(path: Path) -> bool:
    return path.suffix == ".py" and path.is_file()


def _is_package(path: Path) -> bool:
    return path.name.isidentifier() and path.name != "__pycache__" and path.is_dir()


def _is_loaded(name: str, path: Path) -> bool:
    module = sys.modules.get(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    return module is not None and getattr(module, "__file__", None) == str(path)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "cannot be read"


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def _changed_below(folder: Path) -> bool:
    """Whether a source that was read is not what it was: also one in a folder that only the network's name leads to."""
    return any(path.is_relative_to(folder) and _digest(path) != digest for path, digest in _read.items())


def _close(folder: _Folder) -> None:
    if not folder.added:
        return
    if str(folder.path) in sys.path:
        sys.path.remove(str(folder.path))
    # Only modules that lie directly in the folder can have come through its line of the path.
    tops = {name for name in sys.modules if "." not in name and _lies_in(name, folder.path)}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]


def _lies_in(name: str, folder: Path) -> bool:
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return Path(file).resolve() in (folder / f"{name}.py", folder / name / "__init__.py")
    return str(folder / name) in [str(entry) for entry in getattr(module, "__path__", ())]  # a package without __init__.py
