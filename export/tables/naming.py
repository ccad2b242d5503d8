"""Names of a file's operators as people read them: the path of modules, without the classes and numbers that converters write between."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mcompress.compress.counting.rows import numbered
from mcompress.targets.operators import Operator

LONGEST = 48
_MODULE = re.compile(r"(?:\w+\.)+_*[A-Z][A-Za-z0-9]*(?:_(?P<attribute>\w+))?$")
"""`torch.nn.modules.conv.Conv2d_head`: a class with the attribute that holds it, as litert-torch writes it; the outermost has none."""


def short_names(operators: Sequence[Operator]) -> dict[str, str]:
    """Name -> a short one, unique among `operators`; a name that is short already stays as it is."""
    wanted = {operator.name: _short(operator) for operator in operators}
    long = [name for name, short in wanted.items() if short != name]
    return wanted | dict(zip(long, numbered([wanted[name] for name in long], wanted.keys() - set(long)), strict=True))


def _short(operator: Operator) -> str:
    first = operator.name.split(";")[0]
    modules = [_MODULE.match(part) for part in first.split("/")]
    if all(modules):
        path = [found["attribute"] for found in modules if found and found["attribute"]]
        return ".".join(path) if path else operator.operation
    if len(operator.name) <= LONGEST:
        return operator.name
    parts = first.split("/")
    while len("/".join(parts)) > LONGEST and len(parts) > 1:
        parts = parts[1:]
    return "/".join(parts)[-LONGEST:]
