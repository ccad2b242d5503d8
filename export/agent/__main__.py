"""Runs the program: `python agent REQUEST`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    package = __package__
    if not package:  # run as a folder, which Python then puts on its path, even when isolated; the folder around it is what belongs there
        folder = Path(__file__).absolute().parent
        sys.path[0], package = str(folder.parent), folder.name
    sys.exit(import_module(".supervisor", package).main(sys.argv[1:]))
