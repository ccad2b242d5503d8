"""At which sizes a file is counted: by the rule by which it is measured (`mcompress.export.agent.sizes`), with errors that name the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mcompress.errors import UsageError
from mcompress.export.agent.protocol import Unusable
from mcompress.export.agent.sizes import Asked, Sizes, sizes_of
from mcompress.export.tables.graph import Shape


def sizes_asked(path: Path, stated: Sequence[tuple[str, Sequence[object]]], given: Shape | Mapping[str, Shape] | None) -> Sizes:
    """The sizes of all inputs. `stated` is as `sizes_of` takes it; `given` is the shape of the first input, or name -> shape.

    Raises `UsageError` for what the file does not take, and for sizes that stay open; an open batch alone is 1, and said.
    """
    shapes = given if isinstance(given, Mapping) else {} if given is None else {"": given}
    try:
        return sizes_of(stated, Asked((), {name: list(shape) for name, shape in shapes.items()}))
    except Unusable as error:
        raise UsageError(f"{path}: {error}") from error
