"""Sets up the emulation: `python -m mcompress.export.arm64`."""

from __future__ import annotations

import sys

from mcompress.errors import MCompressError
from mcompress.export.arm64.emulation import default_folder
from mcompress.export.arm64.set_up import set_up


def main() -> int:
    """Set it up where `verify --arm64` looks for it; an entry point of its own, so it ends as `mcompress` does."""
    try:
        ready = set_up(default_folder())
    except MCompressError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{ready.runtime} runs on emulated Arm64: {ready.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
