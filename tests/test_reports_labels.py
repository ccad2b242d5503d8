"""Quality over the share of labels: which runs belong together, what is shown of them, and how to get the next."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported_translation import LABELS, NAME, write_target, write_translation_run

from mcompress.record import Run
from mcompress.reports.html import write_report
from mcompress.reports.labels import LabelPart, label_part
from mcompress.targets.load import digest, load_target, resolved_yaml


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one target with three shares of labels; to be read only."""
    made = tmp_path_factory.mktemp("runs")
    for fraction in (0.1, 0.25, 1.0):
        write_translation_run(made / f"{NAME}-{fraction:g}", fraction=fraction)
    return made


def beside(runs: Path, other: Path) -> LabelPart:
    """Of the run with a quarter of the labels, in a folder with one other run."""
    own = other.parent / "own"
    own.mkdir(parents=True)
    for name in ("run.json", "target.yaml"):
        (own / name).write_bytes((runs / f"{NAME}-0.25" / name).read_bytes())
    part = label_part(Run.load(own), own)
    assert part is not None
    return part


def copied(runs: Path, other: Path, **data: object) -> None:
    other.mkdir(parents=True)
    (other / "run.json").write_bytes((runs / f"{NAME}-1" / "run.json").read_bytes())
    write_target(other, **{"labelled_fraction": 1.0, **data})


def test_the_points_are_the_runs_of_the_target(runs: Path) -> None:
    folder = runs / f"{NAME}-0.25"
    part = label_part(Run.load(folder), folder)
    assert part is not None
    assert (part.networks, part.metric) == (("teacher", "float student", "compressed"), "psnr_db")
    assert [(p.run, p.data.labelled_fraction, p.data.labelled_pairs, p.here) for p in part.points] == [
        (f"{NAME}-{fraction:g}", fraction, LABELS[fraction], fraction == 0.25) for fraction in (0.1, 0.25, 1.0)
    ]
    for point in part.points:
        models = Run.load(runs / point.run).models
        assert point.quality == {
            "teacher": models["teacher"].quality["psnr_db"],
            "float student": models["distilled"].quality["psnr_db"],
            "compressed": models["compressed"].quality["psnr_db"],
        }
    assert part.points[0].quality["float student"] < part.points[2].quality["float student"]
    assert part.plot is not None
    assert "Line plot of PSNR of teacher, float student, compressed over the share of labelled pairs, 3 runs." in part.plot
    assert part.command == f"mcompress run {NAME}-0.25/target.yaml --set data.labelled_fraction=0.5 --out ."


def test_the_page_shows_the_curve_and_marks_its_run(runs: Path, tmp_path: Path) -> None:
    page = write_report(runs / f"{NAME}-0.25").read_text(encoding="utf-8")
    assert "24 labelled pairs and 72 unlabelled images were there to learn from: 25 % of the training pairs" in page
    assert "Line plot of PSNR" in page
    assert page.count("(this run)") == 1
    assert f'<tr class="picked"><th scope="row">{NAME}-0.25 (this run)</th><td class="n">25 %</td><td class="n">24</td>' in page
    assert (
        f"<pre><code>mcompress run {NAME}-0.25/target.yaml --set data.labelled_fraction=0.5 --out .\nmcompress report {NAME}-0.25</code></pre>"
        in page
    )
    assert str(tmp_path.parent) not in page


def test_with_all_labels_there_are_no_others(runs: Path) -> None:
    page = write_report(runs / f"{NAME}-1").read_text(encoding="utf-8")
    assert "every training pair kept its target." in page
    assert "inputs alone" not in page


def test_a_run_alone_has_no_curve_but_says_how_to_get_one(runs: Path, tmp_path: Path) -> None:
    part = beside(runs, tmp_path / "runs" / "none")
    assert (len(part.points), part.plot) == (1, None)
    assert part.command == "mcompress run own/target.yaml --set data.labelled_fraction=0.1 --out ."
    page = write_report(tmp_path / "runs" / "own").read_text(encoding="utf-8")
    assert "Line plot" not in page
    assert "No run with another share of labels lies beside this one" in page
    assert part.command in page


def test_a_run_that_differs_in_labels_alone_is_a_point(runs: Path, tmp_path: Path) -> None:
    copied(runs, tmp_path / "runs" / "other")
    assert [p.run for p in beside(runs, tmp_path / "runs" / "other").points] == ["own", "other"]


@pytest.mark.parametrize("changed", [{"embedded": "photographs"}, {"pairing": "unpaired"}, {"more": 1}])
def test_a_run_that_differs_in_more_is_none(runs: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    copied(runs, tmp_path / "runs" / "other", **changed)
    assert len(beside(runs, tmp_path / "runs" / "other").points) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"target": {"name": NAME, "digest": "cafe" * 16, "task": "translation", "quick": True}},
        {"baseline": {"another": {"psnr_db": 1.0}}},
        {"data": None},
        {"models": {}},
    ],
)
def test_a_run_that_was_judged_otherwise_is_none(runs: Path, tmp_path: Path, change: dict[str, object]) -> None:
    other = tmp_path / "runs" / "other"
    copied(runs, other)
    Run.model_validate({**Run.load(other).model_dump(mode="json", by_alias=True), **change}).save(other)
    assert len(beside(runs, other).points) == 1


@pytest.mark.parametrize(
    ("name", "text"), [("run.json", "{"), ("run.json", None), ("target.yaml", "{"), ("target.yaml", "[1]"), ("target.yaml", None)]
)
def test_what_cannot_be_read_is_passed_over(runs: Path, tmp_path: Path, name: str, text: str | None) -> None:
    other = tmp_path / "runs" / "other"
    copied(runs, other)
    (other / name).unlink()
    if text is not None:
        (other / name).write_text(text)
    assert len(beside(runs, other).points) == 1


def test_another_commit_is_said(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    copied(runs, other)
    run = Run.load(other)
    run.model_copy(update={"environment": run.environment.model_copy(update={"commit": "beef123"})}).save(other)
    assert [p.note for p in beside(runs, other).points] == ["", "made by commit beef123"]


def test_shares_that_leave_no_pair_are_not_proposed(runs: Path) -> None:
    folder = runs / f"{NAME}-0.25"
    run = Run.load(folder)
    assert run.data is not None
    few = run.model_copy(update={"data": run.data.model_copy(update={"labelled_fraction": 0.25, "labelled_pairs": 2})})
    part = label_part(few, folder.parent / "elsewhere")
    assert part is not None
    assert part.command == "mcompress run elsewhere/target.yaml --set data.labelled_fraction=0.5 --out ."


@pytest.mark.parametrize("quick", [True, False])
def test_a_shipped_target_is_named(runs: Path, *, quick: bool) -> None:
    """Only where the run's is the shipped one but for its labels: with other settings, a run of the shipped one would be no point of the curve."""
    run = Run.load(runs / f"{NAME}-0.25")
    shipped = load_target(NAME, ["data.labelled_fraction=0.25"])
    given = digest(shipped.quick() if quick else shipped)
    part = label_part(run.model_copy(update={"target": run.target.model_copy(update={"digest": given, "quick": quick})}), runs / "elsewhere")
    assert part is not None
    assert part.command == f"mcompress run {NAME} --set data.labelled_fraction=0.1{' --quick' if quick else ''} --out ."


@pytest.mark.parametrize("quick", [True, False])
def test_the_command_makes_a_run_that_belongs_to_these(tmp_path: Path, *, quick: bool) -> None:
    """The run folder's target, run again with another share, resolves to the same but for that share."""
    shipped = load_target(NAME, ["exports=[{backend: onnx}]"])
    (tmp_path / "target.yaml").write_text(resolved_yaml(shipped.quick() if quick else shipped), encoding="utf-8")
    again = load_target(tmp_path / "target.yaml", ["data.labelled_fraction=0.1"])
    wanted = load_target(NAME, ["exports=[{backend: onnx}]", "data.labelled_fraction=0.1"])
    assert again.quick() == wanted.quick()
    assert quick or again == wanted


def test_a_task_with_a_truth_for_everything_has_no_such_part(run_folder: Path) -> None:
    assert label_part(Run.load(run_folder), run_folder) is None
    assert 'id="labels"' not in (run_folder / "report.html").read_text(encoding="utf-8")
