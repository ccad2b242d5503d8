"""The comparison as JUnit XML: one test suite per file, one test case per field, as CI systems read it.

A row that fails the gate is a `failure` whose `type` is the verdict; what else is `not decided` or `not comparable` is `skipped`. Attributes
are those that Jenkins' schema, GitLab and GitHub's readers share: name, tests, failures, errors, skipped, time; classname, name, time; message, type.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from mcompress.reports.gate.verdicts import Check, Row

ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, even escaped."""
SKIPPED = ("not decided", "not comparable")


def junit_xml(check: Check, *, seconds: float) -> str:
    """The whole document; `seconds` is how long the comparison took."""
    suites = ElementTree.Element("testsuites", {"name": "mcompress check", **_counts(check, check.rows), "time": f"{seconds:.3f}"})
    for number, subject in enumerate(dict.fromkeys(row.subject for row in check.rows)):
        rows = tuple(row for row in check.rows if row.subject == subject)
        name = _clean(f"{check.target} {subject}")
        suite = ElementTree.SubElement(suites, "testsuite", {"name": name, **_counts(check, rows), "time": f"{0.0 if number else seconds:.3f}"})
        for row in rows:
            _case(suite, check, row)
        if not number and check.notes:
            ElementTree.SubElement(suite, "system-out").text = _clean("\n".join(check.notes))
    return _document(suites)


def junit_error(message: str) -> str:
    """The document for bundles that cannot be compared at all: one test case with an `error`."""
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0", "time": "0.000"}
    suites = ElementTree.Element("testsuites", {"name": "mcompress check", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "mcompress check", **counts})
    case = ElementTree.SubElement(suite, "testcase", {"classname": "mcompress.check", "name": "the bundles can be compared", "time": "0.000"})
    error = ElementTree.SubElement(case, "error", {"message": _clean(message.splitlines()[0]), "type": "not comparable"})
    error.text = _clean(message)
    return _document(suites)


def _document(suites: ElementTree.Element) -> str:
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, check: Check, row: Row) -> None:
    classname = _clean(f"mcompress.{check.target}.{row.subject.replace(' ', '.')}")
    case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": _clean(row.field), "time": "0.000"})
    if row in check.failing:
        message = f"{row.field} {row.baseline} -> {row.new} {row.change}".rstrip()
        failure = ElementTree.SubElement(case, "failure", {"message": _clean(message), "type": row.verdict})
        operators = [
            f"{change.gained_ms:+.3f} ms  {change.name} ({change.kind}): {change.what}, {change.detail}"
            for change in check.operators.get(row.subject, ())
            if "latency" in row.field
        ]
        failure.text = _clean("\n".join((row.said, *operators)))
    elif row.verdict in SKIPPED:
        ElementTree.SubElement(case, "skipped", {"message": _clean(row.note or row.verdict)})
    else:
        ElementTree.SubElement(case, "system-out").text = _clean(row.said)


def _counts(check: Check, rows: tuple[Row, ...]) -> dict[str, str]:
    failures = sum(row in check.failing for row in rows)
    skipped = sum(row.verdict in SKIPPED and row not in check.failing for row in rows)
    return {"tests": str(len(rows)), "failures": str(failures), "errors": "0", "skipped": str(skipped)}


def _clean(text: str) -> str:
    return ILLEGAL.sub("�", text)
