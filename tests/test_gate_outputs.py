"""JUnit XML and Markdown of a comparison: structure, counts, and texts that must not break them."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mcompress.reports.gate.junit import junit_error, junit_xml
from mcompress.reports.gate.markdown import LONGEST, MARKER, markdown, markdown_error
from mcompress.reports.gate.table import render
from mcompress.reports.gate.verdicts import Check, OperatorChange, Row, Verdict

HOSTILE = "a|b <script>alert('x')</script> & \x00\x1b[31m ]]> @everyone\n# `q`"


def a_row(verdict: Verdict, field: str = "size", subject: str = "onnx float", note: str = "") -> Row:
    return Row(subject, field, "1 kB", "2 kB", "+100 %", "+1 %", verdict, note, (1000.0, 2000.0))


def a_check(*rows: Row, changes: tuple[OperatorChange, ...] = (), notes: tuple[str, ...] = ()) -> Check:
    return Check("tiny", "snapdragon865", rows, {"onnx float": changes} if changes else {}, notes)


EVERY = (
    a_row("ok", "parameters", "network"),
    a_row("regression", "estimated latency", note="gpu -> cpu"),
    a_row("re-baseline", "quality, psnr_db"),
    a_row("not comparable", "parity", note="not executed"),
    a_row("better", "size"),
)
CHANGES = tuple(OperatorChange(f"conv{i}", "convolution", "changed", "int8 -> fp32", 1.0, 2.0 + i) for i in range(30, 0, -1))
CASE = {"classname", "name", "time"}
SUITE = {"name", "tests", "failures", "errors", "skipped", "time"}
CHILDREN = {"failure": {"message", "type"}, "error": {"message", "type"}, "skipped": {"message"}, "system-out": set()}


def structure(text: str) -> ElementTree.Element:
    """The document as the readers of JUnit files know it: only elements and attributes that they share, counts that are right."""
    root = ElementTree.fromstring(text)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    assert (root.tag, set(root.attrib)) == ("testsuites", SUITE)
    for suite in root:
        assert (suite.tag, set(suite.attrib)) == ("testsuite", SUITE)
        cases = suite.findall("testcase")
        assert [child.tag for child in suite] == ["testcase"] * len(cases) + ["system-out"] * (len(suite) - len(cases))
        assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
        for case in cases:
            assert set(case.attrib) == CASE
            assert len(case) <= 1
            assert all(set(child.attrib) == CHILDREN[child.tag] for child in case)
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(count, "")) == len(suite.findall(f"testcase/{tag}"))
        assert int(suite.get("tests", "")) == len(cases)
        float(suite.get("time", ""))
    for count in ("tests", "failures", "errors", "skipped"):
        assert int(root.get(count, "")) == sum(int(suite.get(count, "")) for suite in root)
    return root


def test_junit_has_a_suite_per_file_and_a_case_per_field() -> None:
    root = structure(junit_xml(a_check(*EVERY, changes=CHANGES, notes=("a note",)), seconds=1.5))
    assert [suite.get("name") for suite in root] == ["tiny network", "tiny onnx float"]
    assert (root.get("tests"), root.get("failures"), root.get("skipped"), root.get("time")) == ("5", "2", "1", "1.500")
    assert [failure.get("type") for failure in root.iter("failure")] == ["regression", "re-baseline"]
    assert "+31.000 ms  conv30 (convolution): changed, int8 -> fp32" in (root.findtext(".//failure") or "")
    assert root.findtext("testsuite/system-out") == "a note"


def test_junit_of_bundles_that_cannot_be_compared() -> None:
    root = structure(junit_error(f"model: {HOSTILE}"))
    assert root.get("errors") == "1"
    assert (root.find(".//error") or root).tag in ("error", "testsuites")


def test_junit_holds_what_xml_cannot() -> None:
    row = Row(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, "regression", HOSTILE)
    changes = (OperatorChange(HOSTILE, "other", "added", HOSTILE, 0.0, 1.0),)
    root = structure(junit_xml(Check(HOSTILE, HOSTILE, (row,), {HOSTILE: changes}, (HOSTILE,)), seconds=0.0))
    assert "<script>" in (root.findtext(".//failure") or "")
    assert "\x00" not in "".join(root.itertext())


def tables(text: str) -> list[list[str]]:
    return [block.strip().splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_markdown_tells_what_fails_and_folds_the_rest() -> None:
    text = markdown(a_check(*EVERY, changes=CHANGES, notes=("a note",)))
    assert text.startswith(f"{MARKER}\n### :x: mcompress check: regression\n\n")
    assert "tiny on snapdragon865: 1 regression, 1 re-baseline, 1 not comparable, 1 better, 1 ok." in text
    before = text.split("<details>")[0]
    assert "estimated latency" in before
    assert "parameters" not in before
    assert text.count("<details>") == text.count("</details>") == 3
    assert text.count("<summary>") == len(re.findall(r"<summary>[^\n]*</summary>\n\n", text)), "GitHub needs an empty line behind each summary"
    assert "| 18 more |" in text
    assert sum(len(table) - 2 for table in tables(text)) == 3 + 13 + 5


def test_markdown_of_equal_bundles_is_short() -> None:
    text = markdown(a_check(a_row("ok")))
    assert "### mcompress check: ok\n" in text
    assert "re-baseline" not in text
    assert len(tables(text.split("<details>")[0])) == 0


def test_nothing_breaks_out_of_a_markdown_table() -> None:
    row = Row(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, "regression", HOSTILE)
    text = markdown(Check(HOSTILE, HOSTILE, (row,), {HOSTILE: CHANGES[:1]}, (HOSTILE,)))
    assert "<script>" not in text
    assert "@everyone" not in text
    assert tables(text)
    for table in tables(text):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table
    assert "<script>" not in markdown_error(HOSTILE)


def test_markdown_stays_below_what_github_takes() -> None:
    rows = tuple(a_row("regression", f"field {i}", note="x" * 200) for i in range(400))
    assert len(markdown(a_check(*rows))) < 65_536
    assert len(markdown(a_check(*rows))) > LONGEST / 2


@pytest.mark.parametrize("verdict", ["ok", "better", "regression", "re-baseline", "not comparable"])
def test_the_word_stands_only_where_the_verdict_is(verdict: Verdict) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    check = a_check(a_row(verdict, note="why"))
    render(check, console)
    for text in (console.export_text(), markdown(check), junit_xml(check, seconds=0.0)):
        assert ("regression" in text) == (verdict == "regression")
        assert ("re-baseline" in text) == (verdict == "re-baseline")


def test_the_terminal_shows_every_row_and_the_operators(capsys: pytest.CaptureFixture[str]) -> None:
    render(a_check(*EVERY, changes=CHANGES, notes=("a note",)), Console(width=80))
    out = capsys.readouterr().out
    for word in ("estimated latency", "quality, psnr_db", "conv30", "22 more", "a note", "estimated latency of onnx float: gpu -> cpu"):
        assert word in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.isascii()


def test_what_a_bundle_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, "regression", HOSTILE)
    render(Check(HOSTILE, HOSTILE, (row,), {HOSTILE: CHANGES[:1]}, (HOSTILE,)), Console(width=200))
    assert "\x1b" not in capsys.readouterr().out


def test_the_gravest_verdict_wins() -> None:
    assert a_check(*EVERY).verdict == "regression"
    assert a_check(a_row("ok"), a_row("re-baseline", "b")).verdict == "re-baseline"
    assert a_check(a_row("ok"), a_row("better", "b"), a_row("not comparable", "c")).verdict == "better"
    assert a_check(a_row("not comparable")).verdict == "not comparable"
    assert [row.verdict for row in a_check(*EVERY).failing] == ["regression", "re-baseline"]
