"""What pydantic finds wrong with a target, said so that a person can repair it: place, value seen, what is allowed, the likely name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, get_args, get_origin

import annotated_types
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mcompress.targets.document import Document, Key, Path, show_path
from mcompress.targets.names import near
from mcompress.targets.schema import NETWORK_PATTERN, SHORT_FORMS, ModelConfig
from mcompress.targets.speeds import NAME_PATTERN
from mcompress.targets.stages import DEFAULT_METHODS

_DISCRIMINATORS = ("stage", "method", "backend")
_PATTERNS = {
    NETWORK_PATTERN: "a name from `mcompress list models`, or package.module:function",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "letters, digits, '_', '.' and '-', starting with a letter or digit",
    NAME_PATTERN: "small letters, digits, '_', '.' and '-', starting with a letter or digit",
}
_KEY = "[key]"
"""What pydantic puts behind a key of a mapping that is itself wrong."""
_SHOWN = 60


def describe(error: ValidationError, document: Document, root: type[BaseModel]) -> list[str]:
    """One line per problem, each with its place, in the order of the file."""
    lines = []
    for item in error.errors(include_url=False):
        path, seen = _written(tuple(item["loc"]), document.data)
        if item["loc"][-1:] == (_KEY,):  # the name itself is wrong, whatever it names
            path = tuple(key for key in path if key != _KEY)
            lines.append(f"{document.place(path)}: {_say_key(item, path, document.what)}")
            continue
        if item["type"] == "too_short" and isinstance(seen, list) and seen:
            continue  # its items have problems of their own, which are listed
        if any(path[: len(unread)] == unread for unread in document.unread):
            continue  # what is wrong with it is listed already
        said = str(item.get("ctx", {}).get("error", "")) if item["type"] == "value_error" else ""
        named = (*path, *said.split(" ", 1)[0].split("."))
        if named in document.places:  # the message begins with the place that is wrong, inside of the one that was checked
            lines.append(f"{document.places[named]}: {show_path((*path, said.split(' ', 1)[0]))} {said.partition(' ')[2]}")
        else:
            lines.append(f"{document.place(path)}: {_say(item, path, seen, root, document.what)}")
    return lines


def show(value: JsonValue) -> str:
    """A value as it would be written in YAML, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "empty", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return f"{'a' if value else 'an empty'} {'mapping' if isinstance(value, dict) else 'list'}"
    if isinstance(value, str):
        value = value if value.isprintable() else ascii(value)[1:-1]
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _say_key(item: ErrorDetails, path: Path, what: str) -> str:
    context = item.get("ctx", {})
    if item["type"] in ("literal_error", "enum"):
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"{show_path(path, what)} is not known; {show_path(path[:-1], what)} takes {', '.join(known)}{near(str(path[-1]), known)}"
    pattern = str(context.get("pattern", ""))
    return f"{show_path(path, what)}: the name must be {_PATTERNS.get(pattern, item['msg'])}"


def _say(item: ErrorDetails, path: Path, seen: JsonValue, root: type[BaseModel], what: str) -> str:
    kind, context = item["type"], item.get("ctx", {})
    loc = tuple(item["loc"])
    if kind == "missing":
        return f"{show_path(path, what)} is missing; it is required"
    if kind == "extra_forbidden":
        known = _keys(loc[:-1], root)
        where = show_path(path[:-1]) if path[:-1] else f"a {what}"
        return f"{show_path(path, what)} is not known; {where} takes {', '.join(known)}{near(str(loc[-1]), known)}"
    if kind == "value_error":
        return f"{show_path(path, what)}: {context.get('error', item['msg'])}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(context.get("discriminator", "")).strip("'")
        names = re.findall(r"'([^']*)'", str(context.get("expected_tags", ""))) or _tags(loc, root, key)
        tag = context.get("tag")
        if tag is None:
            return f"{show_path(path, what)} has no {key}; give {key}: one of {', '.join(names)}"
        return f"{show_path((*path, key))} is '{tag}'; it must be one of {', '.join(names)}{near(str(tag), names)}"
    if kind in ("literal_error", "enum"):
        names = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        hint = near(seen, names) if isinstance(seen, str) else ""
        return f"{show_path(path, what)} is {show(seen)}; it must be {'one of ' if len(names) > 1 else ''}{', '.join(names)}{hint}"
    if kind == "string_pattern_mismatch":
        pattern = str(context.get("pattern", ""))
        return f"{show_path(path, what)} is {show(seen)}; it must be {_PATTERNS.get(pattern, f'of the form {pattern}')}"
    return f"{show_path(path, what)} is {show(seen)}; {_allowed(kind, context, loc, root, item['msg'])}"


_TYPES: tuple[tuple[str, str], ...] = (
    ("int_", "a whole number"),
    ("float_", "a number"),
    ("finite_number", "a finite number"),
    ("bool_", "true or false"),
    ("string_type", "text"),
    ("string_sub_type", "text"),
    ("string_unicode", "text in Unicode"),
    ("path_", "a path"),
    ("tuple_type", "a list"),
    ("list_type", "a list"),
    ("dict_type", "a mapping"),
    ("mapping_type", "a mapping"),
    ("model_", "a mapping"),
    ("invalid-json-value", "plain data"),
)
_LIMITS = ("greater_than", "less_than", "multiple_of")


def _allowed(kind: str, context: Mapping[str, object], loc: tuple[Key, ...], root: type[BaseModel], message: str) -> str:
    bounds = _bounds(loc, root)
    for prefix, text in _TYPES:
        if kind.startswith(prefix):
            return f"it must be {text}" + (f", {bounds}" if bounds and "number" in text else "")
    if kind.startswith(_LIMITS):
        return f"it must be {bounds}" if bounds else f"{message[0].lower()}{message[1:]}"
    if kind in ("too_short", "string_too_short"):
        return f"it must have at least {context['min_length']} {'item' if kind == 'too_short' else 'characters'}"
    if kind in ("too_long", "string_too_long"):
        return f"it must have at most {context['max_length']} {'items' if kind == 'too_long' else 'characters'}"
    return f"{message[0].lower()}{message[1:]}"


def _written(loc: tuple[Key, ...], data: JsonValue) -> tuple[Path, JsonValue]:
    """The path as the file has it: pydantic's path also names union members and what short forms stand for."""
    path: list[Key] = []
    value = data
    tags: list[JsonValue] = []  # of the mapping that was reached: pydantic's path names them before the field, which may be called like one of them
    for index, key in enumerate(loc):
        if isinstance(value, dict) and isinstance(key, str):
            if key in tags:
                tags.remove(key)
                continue
            if key not in value:
                later = loc[index + 1] if index + 1 < len(loc) else None
                means_method = DEFAULT_METHODS.get(str(value.get("stage"))) == key
                if means_method or any(value.get(name) == key for name in _DISCRIMINATORS) or (later is not None and later in value):
                    continue
                path.append(key)
                value = None
                break
            value = value[key]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            break  # a short form: the rest of the path is not in the file
        path.append(key)
        tags = [value[name] for name in _DISCRIMINATORS if name in value] if isinstance(value, dict) else []
    return tuple(path), value


def _resolve(loc: tuple[Key, ...], root: type[BaseModel]) -> tuple[list[type[BaseModel]], FieldInfo | None, object]:
    """Models that may stand at `loc`, the field that leads there, and the annotation."""
    models: list[type[BaseModel]] = [root]
    info: FieldInfo | None = None
    annotation: object = object
    for key in loc:
        if isinstance(key, int):
            annotation = next(iter(get_args(annotation)), object)
            models = list(_models(annotation))
            continue
        tagged = [m for m in models if any(n in m.model_fields and m.model_fields[n].default == key for n in _DISCRIMINATORS)]
        if tagged and (len(models) > 1 or key not in models[0].model_fields):
            models = tagged
            continue
        if get_origin(annotation) is dict:  # the key is a name that the file gives
            info, annotation = None, get_args(annotation)[1]
            models = list(_models(annotation))
            continue
        info = next((m.model_fields[key] for m in models if key in m.model_fields), None)
        annotation = info.annotation if info else object
        models = list(_models(annotation))
    return models, info, annotation


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _keys(loc: tuple[Key, ...], root: type[BaseModel]) -> list[str]:
    models, _, _ = _resolve(loc, root)
    keys = [name for model in models for name in model.model_fields]
    return list(dict.fromkeys(keys + list(SHORT_FORMS if ModelConfig in models else ())))


def _tags(loc: tuple[Key, ...], root: type[BaseModel], discriminator: str) -> list[str]:
    models, _, _ = _resolve(loc, root)
    return list(dict.fromkeys(str(m.model_fields[discriminator].default) for m in models if discriminator in m.model_fields))


_COMPARISONS: tuple[tuple[type, Callable[[object], str]], ...] = (
    (annotated_types.Ge, lambda m: f"at least {_number(getattr(m, 'ge', None))}"),
    (annotated_types.Gt, lambda m: f"above {_number(getattr(m, 'gt', None))}"),
    (annotated_types.Le, lambda m: f"at most {_number(getattr(m, 'le', None))}"),
    (annotated_types.Lt, lambda m: f"below {_number(getattr(m, 'lt', None))}"),
)


def _bounds(loc: tuple[Key, ...], root: type[BaseModel]) -> str:
    """`at least 0 and below 1`, from the field's own limits."""
    _, info, annotation = _resolve(loc, root)
    metadata = list(info.metadata) if info is not None and not isinstance(loc[-1], int) else []
    pending = [annotation]
    while pending:
        current = pending.pop()
        if get_origin(current) is Annotated:
            metadata += current.__metadata__  # type: ignore[attr-defined]
        pending += [a for a in get_args(current) if get_origin(a) is Annotated]
    flat = [m for entry in metadata for m in (entry.metadata if isinstance(entry, FieldInfo) else (entry,))]
    return " and ".join(dict.fromkeys(text(m) for kind, text in _COMPARISONS for m in flat if isinstance(m, kind)))


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
