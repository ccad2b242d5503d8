"""mcompress: compress and export mobile generative models with one command.

    import mcompress
    outcome = mcompress.run("targets/snapdragon865.yaml")

Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mcompress.errors import MCompressError
    from mcompress.joining import work
    from mcompress.pipeline import Outcome, run
    from mcompress.planning import plan
    from mcompress.targets.load import load_target
    from mcompress.targets.schema import Measurement, Target

__all__ = ["MCompressError", "Measurement", "Outcome", "Target", "load_target", "plan", "run", "work"]

_HOME = {
    "MCompressError": "mcompress.errors",
    "Measurement": "mcompress.targets.schema",
    "Outcome": "mcompress.pipeline",
    "Target": "mcompress.targets.schema",
    "load_target": "mcompress.targets.load",
    "plan": "mcompress.planning",
    "run": "mcompress.pipeline",
    "work": "mcompress.joining",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'mcompress' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
