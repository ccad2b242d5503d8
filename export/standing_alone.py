"""Modules of mcompress as files of a bundle, which import what lies beside them there and nothing of mcompress."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

VERIFY = {"verify.py": "export/replay.py"}
TALK = {
    "bundle_files.py": "export/bundle_files.py",
    "talk.py": "export/talk.py",
    "talk_bundle.py": "export/talk_bundle.py",
    "talk_picture.py": "export/talk_picture.py",
    "talk_stream.py": "export/talk_stream.py",
    "face_search.py": "compress/tasks/talking_face/face_search.py",
    "mel.py": "compress/tasks/talking_face/mel.py",
    "mp4.py": "compress/tasks/talking_face/mp4.py",
    "wav.py": "compress/tasks/talking_face/wav.py",
}
"""Name in the bundle -> source in the package: what a picture is made to talk with, beside `VERIFY`."""
DRAW = {
    f"{name}.py": f"export/{name}.py"
    for name in (
        "bundle_files",
        "diffusion_steps",
        "draw",
        "draw_bundle",
        "draw_check",
        "draw_executorch",
        "draw_picture",
        "draw_png",
        "prompt_files",
        "prompt_tokens",
    )
}
"""What a prompt is drawn with."""
_IMPORT = re.compile(r"^( *)from mcompress\.([\w.]+) import ", re.MULTILINE)


def write_scripts(folder: Path, scripts: dict[str, str]) -> None:
    """Write the sources of `scripts` into a bundle. Raises `ValueError` for one that imports what is not among them or `VERIFY`."""
    known = {source.removesuffix(".py").replace("/", "."): Path(name).stem for name, source in {**VERIFY, **scripts}.items()}
    for name, source in scripts.items():
        text = files("mcompress").joinpath(*source.split("/")).read_text(encoding="utf-8")

        def beside(found: re.Match[str], name: str = name) -> str:
            if found[2] not in known:
                raise ValueError(f"{name} imports mcompress.{found[2]}, which bundles do not carry; they carry {', '.join(sorted(known))}")
            return f"{found[1]}from {known[found[2]]} import "

        (folder / name).write_text(_IMPORT.sub(beside, text), encoding="utf-8")
