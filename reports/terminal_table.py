"""The look of tables in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Table

PLAIN = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def plain_table(console: Console) -> Table:
    """Plain ASCII rules where `console` is not a terminal."""
    return Table(box=SIMPLE_HEAD if console.is_terminal else PLAIN, header_style="bold", pad_edge=False, collapse_padding=True)
