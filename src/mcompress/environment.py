"""Where a run happens: versions of what decides results, threads, the commit of mcompress's own checkout."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mcompress.targets.schema import Target

PACKAGES = (
    "mcompress", "torch", "torch-pruning", "torchao", "optuna", "numpy", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert",
    "ai-edge-quantizer", "executorch", "coremltools", "accelerate", "scikit-image", "scikit-learn", "scipy", "pillow", "av",
    "diffusers", "transformers",
)  # fmt: skip


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of what decides results."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def thread_count(target: Target) -> int:
    """Threads to use: the target's, but not more than there are processors."""
    return min(target.threads, os.cpu_count() or 1)


@cache
def cpu_name() -> str:
    """Name of this machine's processor, as the operating system gives it."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of mcompress's own checkout; None when it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def today() -> str:
    """The day of the source of what is measured or fitted now, in UTC: `2026-11-21`."""
    return datetime.now(tz=UTC).date().isoformat()
