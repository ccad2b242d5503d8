"""YAML text to plain data, with the line of every value and every problem at once; nothing in a file can run code or grow without bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Key = str | int
Path = tuple[Key, ...]

MAX_BYTES = 1_000_000
_MAX_VALUES = 20_000  # aliases count each time they are used, so that ten lines cannot become a billion values
_MAX_DEPTH = 50
_MAX_DIGITS = 100
_TAG = "tag:yaml.org,2002:"


@dataclass
class Document:
    """Plain data, and where each value was written, for example `targets/x.yaml:14`."""

    file: str
    what: str = "target"
    """What a file of this kind describes, for messages."""
    data: JsonValue = None
    places: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unread: set[Path] = field(default_factory=set)
    """Values that are in the file and not in `data`, because something is wrong with them that `problems` says."""

    def place(self, path: Path) -> str:
        """Where the value at `path`, or else the closest value around it, was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.file)


def show_path(path: Path, what: str = "target") -> str:
    """`stages[1].ratio`; the whole document is `the target`, or what else it describes."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key if key.isprintable() else ascii(key)}" for key in path)
    return text.removeprefix(".") or f"the {what}"


def parse(text: str, file: str, what: str = "target") -> Document:
    """Read one YAML 1.2 document, which describes a `what`. What is wrong is in `problems`; then `data` holds what could be read."""
    document = Document(file, what)
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(str(part) for part in (error.context, error.problem) if part)
        document.problems.append(f"{file}:{mark.line + 1 if mark else 1}: not valid YAML: {what}")
        return document
    except (YAMLError, ValueError, LookupError, AttributeError, TypeError, NotImplementedError) as error:
        # The parser raises its own bugs on some malformed texts; all of them mean that this is no YAML.
        document.problems.append(f"{file}:1: not valid YAML: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
        return document
    except RecursionError:
        document.problems.append(f"{file}:1: nested too deeply; at most {_MAX_DEPTH} levels are read")
        return document
    if node is not None:
        reader = _Reader(document, yaml)
        document.data = reader.read(node, ())
    return document


class _Reader:
    """Turns nodes into data; counts values, so that aliases cannot blow up."""

    def __init__(self, document: Document, yaml: YAML) -> None:
        self.document, self.yaml, self.count = document, yaml, 0

    def problem(self, node: Node, what: str) -> None:
        text = f"{self.document.file}:{node.start_mark.line + 1}: {what}"
        if text not in self.document.problems:
            self.document.problems.append(text)

    def read(self, node: Node, path: Path) -> JsonValue:
        self.count += 1
        self.document.places[path] = f"{self.document.file}:{node.start_mark.line + 1}"
        if len(path) > _MAX_DEPTH:
            self.problem(node, f"nested too deeply; at most {_MAX_DEPTH} levels are read")
        elif self.count > _MAX_VALUES:
            if self.count == _MAX_VALUES + 1:
                self.problem(node, f"more than {_MAX_VALUES} values, aliases counted each time they are used")
        elif isinstance(node, MappingNode):
            return self.mapping(node, path)
        elif isinstance(node, SequenceNode):
            if self.allowed(node, "seq"):
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            self.document.unread.add(path)
        elif isinstance(node, ScalarNode):
            return self.scalar(node, path)
        return None

    def mapping(self, node: MappingNode, path: Path) -> JsonValue:
        data: dict[str, JsonValue] = {}
        if not self.allowed(node, "map"):
            self.document.unread.add(path)
            return data
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, ScalarNode) else None
            if key is None or str(key_node.tag) == _TAG + "null":
                self.problem(key_node, f"a key of {show_path(path, self.document.what)} is not a name; keys are names")
                continue
            if str(key_node.tag) == _TAG + "merge":
                for merged in value_node.value if isinstance(value_node, SequenceNode) else [value_node]:
                    found = self.read(merged, path)
                    data = {**found, **data} if isinstance(found, dict) else data
                continue
            line = key_node.start_mark.line + 1
            if key in seen:
                self.problem(key_node, f"{show_path((*path, key))} is given twice, first in line {seen[key]}; keep one")
                continue
            seen[key] = line
            data[key] = self.read(value_node, (*path, key))
            self.document.places[(*path, key)] = f"{self.document.file}:{line}"
        return data

    def scalar(self, node: ScalarNode, path: Path) -> JsonValue:
        tag = str(node.tag).removeprefix(_TAG)
        if not self.allowed(node, "str", "int", "float", "bool", "null", "timestamp"):
            self.document.unread.add(path)
            return None
        if tag in ("str", "timestamp"):  # YAML 1.2 has no dates
            return str(node.value)
        if tag == "int" and len(node.value) > _MAX_DIGITS:
            self.document.unread.add(path)
            self.problem(node, f"{show_path(path)} is a number of {len(node.value)} digits; at most {_MAX_DIGITS} are read")
            return None
        try:
            value = self.yaml.constructor.construct_object(node)
        except (ValueError, YAMLError) as error:
            self.document.unread.add(path)
            self.problem(node, f"{show_path(path)} is not a valid {tag}: {str(error).splitlines()[0]}")
            return None
        return value if isinstance(value, (bool, int, float)) else None

    def allowed(self, node: Node, *kinds: str) -> bool:
        tag = str(node.tag)
        if tag.removeprefix(_TAG) in kinds:
            return True
        self.problem(node, f"the tag {tag.replace(_TAG, '!!')} is not allowed; write plain values")
        return False


def walk(data: JsonValue, path: Path = ()) -> Iterator[tuple[Path, JsonValue]]:
    """Every value that is not a mapping or a list, with its path."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from walk(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from walk(value, (*path, index))
    else:
        yield path, data
