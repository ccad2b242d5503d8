"""What every stage's configuration has, and the type of a loss term's weight."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, le=1e6)]


class Stage(BaseModel):
    """What every stage has: immutability, no unknown keys, and a quick form of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def quick(self) -> Self:
        """The same stage with a tiny budget, for `--quick`."""
        return self
