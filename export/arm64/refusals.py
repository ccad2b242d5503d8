"""Why the old runtime does not take a file: which operator in which version it lacks, read from what it says and checked against the file."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_TOO_NEW = re.compile(r"Didn't find op for builtin opcode '(?P<kind>\w+)' version '(?P<version>\d+)'")
_UNKNOWN = re.compile(r"builtin_code out of range: (?P<kind>\d+)")
_CUSTOM = re.compile(r"unresolved custom op: (?P<kind>[^.\n]+)")


def operator_versions(path: Path) -> Counter[tuple[str, int]]:
    """How many operators of each kind and version the file has, in all of its graphs; a custom operator by its own name.

    A kind that is newer than the schema is `BUILTIN_` and its number. `path` is a file that LiteRT has read.
    """
    from ai_edge_litert import schema_py_generated as schema

    from mcompress.export.tflite_edit import named

    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    kinds = []
    for code in (model.OperatorCodes(index) for index in range(model.OperatorCodesLength())):
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        custom = number == schema.BuiltinOperator.CUSTOM
        name = (code.CustomCode() or b"").decode("utf-8", errors="replace") if custom else named("BuiltinOperator").get(number, f"BUILTIN_{number}")
        kinds.append((name, code.Version()))
    graphs = (model.Subgraphs(index) for index in range(model.SubgraphsLength()))
    return Counter(kinds[graph.Operators(index).OpcodeIndex()] for graph in graphs for index in range(graph.OperatorsLength()))


def refusal(runtime: str, said: str, versions: Counter[tuple[str, int]]) -> str:
    """What `said`, the runtime's message on loading, means; `versions` are the file's, from `operator_versions`."""
    from mcompress.export.tflite_edit import named

    total = sum(versions.values())
    if found := _TOO_NEW.search(said):
        kind, version = found["kind"], int(found["version"])
        what, count = f"{kind} in version {version}", versions[kind, version]
    elif found := _UNKNOWN.search(said) or _CUSTOM.search(said):
        kind = named("BuiltinOperator").get(int(found["kind"]), f"BUILTIN_{found['kind']}") if found["kind"].isdecimal() else found["kind"].strip()
        what, count = kind, sum(number for (one, _), number in versions.items() if one == kind)
    else:
        return f"{runtime} does not load it: {' '.join(said.split())}"
    if not count:  # the message is not about this file, or was misread
        return f"{runtime} does not load it, and says what the file does not show: {' '.join(said.split())}"
    advice = "Apps that carry a runtime of that age cannot use the file; write the operator in an older version or without what is new in it"
    return f"{runtime} does not load it: it has no {what}, which {count} of the file's {total} operators are. {advice}"
