"""Run in emulation of a processor without VNNI: is the experiment right there, and what does an ONNX file compute in each mode?

`qemu-x86_64-static -cpu Haswell PYTHON tests/onnx_on_old_x86.py FILE.onnx INPUT.npy FOLDER` writes `loaded.npy` and `default.npy`, the file's outputs
as `load` runs it and as onnxruntime comes, and prints what the experiment found and which runtime `load` names, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from mcompress.export import onnx as backend
from mcompress.export.onnx_host import exact_here
from mcompress.export.onnx_session import OnnxRunner


def main(file: Path, given: Path, folder: Path) -> None:
    """Write both outputs, print the findings."""
    value = np.load(given)
    loaded = backend.load(file, 1)
    np.save(folder / "loaded.npy", loaded.run(value))
    np.save(folder / "default.npy", OnnxRunner(file, 1, "default").run(value))
    sys.stdout.write(json.dumps({"exact": dict(exact_here()), "runtime": loaded.runtime}) + "\n")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
