"""JSON files of a diffusers folder, whose fields are looked at one by one, and the defaults of the classes that they belong to."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue
from torch import nn

from mcompress.compress.models.hugging_face import class_of
from mcompress.errors import PlanError

Config = dict[str, JsonValue]
AGAIN = "download or copy it again"


class Fields:
    """A JSON object in a file. What is wrong with it is collected in `problems`; a field that is wrong is given as something that is allowed."""

    def __init__(self, path: Path) -> None:
        """Raises `PlanError` for a file that is missing or holds no JSON object."""
        self.path, self.problems = path, list[str]()
        try:
            loaded: JsonValue = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise PlanError([f"{path}: there is no such file; download or copy the whole folder"]) from error
        except (OSError, ValueError) as error:
            raise PlanError([f"{path} cannot be read as JSON ({error}); {AGAIN}"]) from error
        if not isinstance(loaded, dict):
            raise PlanError([f"{path} holds a {type(loaded).__name__}; it must be a JSON object; {AGAIN}"])
        self.values: Config = loaded

    def refuse(self, what: str) -> None:
        """Note a problem."""
        self.problems.append(f"{self.path}: {what}")

    def finish(self) -> None:
        """Raises `PlanError` if there were problems."""
        if self.problems:
            raise PlanError(self.problems)

    def complete(self, defaults: Config) -> None:
        """Fields that the file does not have are as `defaults` say."""
        self.values = {**defaults, **self.values}

    def only(self, name: str, allowed: JsonValue, why: str) -> None:
        """The field must be `allowed`, or left out."""
        value = self.values.get(name, allowed)
        if value != allowed:
            self.refuse(f"{name} is {json.dumps(value)}, {why}; it must be {json.dumps(allowed)}: give another network")

    def whole(self, name: str, low: int) -> int:
        """A whole number, at least `low`."""
        value = self.values.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= low:
            return value
        self.refuse(f"{name} is {json.dumps(value)}; it must be a whole number from {low} on")
        return low

    def number(self, name: str) -> float:
        """A number above 0."""
        value = self.values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            return float(value)
        self.refuse(f"{name} is {json.dumps(value)}; it must be a number above 0")
        return 1.0

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """One of `allowed`."""
        value = self.values.get(name)
        if isinstance(value, str) and value in allowed:
            return value
        self.refuse(f"{name} is {json.dumps(value)}; it must be one of {', '.join(allowed)}")
        return allowed[0]

    def is_of(self, name: str) -> bool:
        """Whether this is the configuration of the class `name`, as far as it says; else it is a problem."""
        architectures = self.values.get("architectures")
        told = self.values.get("_class_name") or (architectures[0] if isinstance(architectures, list) and architectures else name)
        if told != name:
            self.refuse(f"this is the configuration of {told}; only {name} is taken here: give another network")
        return told == name

    def differing(self, name: str, always: Sequence[str]) -> tuple[Config, tuple[str, ...]]:
        """Fields that differ from the defaults of diffusers' class, and those of `always`; and a note of what the class does not know."""
        defaults = defaults_of(name)
        own = {key: value for key, value in self.values.items() if not key.startswith("_")}
        unknown = [key for key in own if key not in defaults]
        note = f"{self.path}: left out {', '.join(unknown)}, which the installed diffusers' {name} does not have"
        args = {key: own.get(key, usual) for key, usual in defaults.items() if key in always or own.get(key, usual) != usual}
        return args, (note,) if unknown else ()


def defaults_of(name: str) -> Config:
    """What a class of diffusers takes and has a default for; tuples are lists, as in JSON. Raises `MissingBackendError`."""
    parameters = inspect.signature(class_of("diffusers", name)).parameters.values()
    known = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}


def from_config(name: str, config: Config) -> nn.Module:
    """A network of diffusers. Raises `MissingBackendError`, and what its constructor raises."""
    kind = class_of("diffusers", name)
    return cast("nn.Module", kind.from_config(config))  # type: ignore[attr-defined]  # diffusers' ConfigMixin
