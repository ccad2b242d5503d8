"""The modules beside a target file: `network: my_network:build` means the `my_network.py` in the folder of the target that says so.

Python keeps one module of a name. When another target is opened, what was imported from the folder of the one before is forgotten, so each gets its
own; so it is when a file beside the target has changed. One target is open at a time.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Folder:
    path: Path
    added: bool
    """Whether the folder is on Python's path because of us; what came from another folder on the path is not ours to forget."""
    files: dict[str, tuple[int, int]]
    """Python file -> time of change and size, when the folder was opened."""


_open: list[_Folder] = []  # the present one, or none


def import_beside(folder: Path | None) -> None:
    """Let modules be imported from `folder`, the one of the present target (None: a target that comes with mcompress), and from no other target's."""
    wanted = None if folder is None else folder.resolve()
    files = {} if wanted is None else {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(wanted.glob("*.py"))}
    if _open and (_open[0].path != wanted or _open[0].files != files):
        _close(_open.pop())
    if wanted is not None and not _open:
        added = str(wanted) not in sys.path
        if added:
            sys.path.append(str(wanted))
        _open.append(_Folder(wanted, added, files))
    importlib.invalidate_caches()


def file_beside(module: str) -> Path | None:
    """The file that `module` is in the present target's folder; None if it has none there, and Python looks where it always does."""
    if not _open:
        return None
    place = _open[0].path.joinpath(*module.split("."))
    candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


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
