"""Whether ExecuTorch's runtime can load a file at all, found out in another process.

The runtime checks the structure of a program, not the graphs of its delegates: a few changed bytes inside one can end the process that loads it.
So a file from elsewhere is loaded elsewhere first. It costs the import of torch once per file; files that this process wrote are known to be whole.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from mcompress.errors import ExportError

TIMEOUT_S = 300
ADVICE = "The file is damaged or was changed by hand; export it again."
PROGRAM = """
import sys
import torch
from executorch.extension.pybindings import _portable_lib as runtime
program = runtime._load_program(sys.argv[1], program_verification=runtime.Verification.InternalConsistency)
method = program.load_method("forward")
meta = method.method_meta()
types = {6: torch.float32}
given = [torch.zeros(*meta.input_tensor_meta(i).sizes(), dtype=types[meta.input_tensor_meta(i).dtype()]) for i in range(meta.num_inputs())]
method(given)
"""
_whole: set[str] = set()


def trust(path: Path) -> None:
    """Remember the file's content as one that this process wrote."""
    _whole.add(_digest(path))


def check_loadable(path: Path) -> None:
    """Load and execute the file once in another process, unless this very content is known. Raises `ExportError` with what the runtime said."""
    if not path.is_file():
        raise ExportError(f"there is no file {path.name}; export it again")
    if path.stat().st_size == 0:
        raise ExportError(f"{path.name} is empty. {ADVICE}")
    digest = _digest(path)
    if digest in _whole:
        return
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as problem:
        raise ExportError(f"{path.name} did not load and run once within {TIMEOUT_S} s. {ADVICE}") from problem
    if done.returncode != 0:
        raise ExportError(f"ExecuTorch cannot load {path.name}: {_said(done)}. {ADVICE}")
    _whole.add(digest)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that tells something, or by which signal the process ended."""
    lines = [line.strip() for line in done.stderr.splitlines() if "rror" in line or "heck" in line]
    told = lines[-1][:300] if lines else "it said nothing"
    return f"the process ended by signal {-done.returncode}; {told}" if done.returncode < 0 else told


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
