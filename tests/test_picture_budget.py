"""What whole pictures may lose: mixed files against float ones, offered files against the target's floor."""

from __future__ import annotations

import pytest
from reported_drawing import ACCURACY, gallery, write_drawing_run

from mcompress.budget import MIXED_LOSS, check_pictures
from mcompress.record import BudgetRecord, GalleryRecord, Run
from mcompress.targets.schema import QualityFloor

METRIC = "attribute_accuracy_percent"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_drawing_run(tmp_path_factory.mktemp("run"))


def lines(floor: QualityFloor | None, found: GalleryRecord, run: Run) -> dict[str, BudgetRecord]:
    return {line.what: line for line in check_pictures(floor, found, run.exports)}


def with_accuracy(name: str, value: float) -> GalleryRecord:
    """The gallery in which one painter's attribute accuracy is another one."""
    found = gallery()
    changed = []
    for painter in found.painters:
        first, *others = painter.measurements
        assert first.what == "attribute accuracy"
        changed.append(
            painter.model_copy(update={"measurements": (first.model_copy(update={"value": value}), *others)} if painter.name == name else {})
        )
    return found.model_copy(update={"painters": tuple(changed)})


@pytest.mark.parametrize(("lost", "met"), [(MIXED_LOSS, True), (MIXED_LOSS + 0.01, False), (-3.0, True)])
def test_mixed_files_lose_at_most_a_point_against_float_ones(run: Run, lost: float, met: bool) -> None:
    line = lines(None, with_accuracy("onnx mixed", ACCURACY["onnx float"] - lost), run)["points of attribute accuracy that onnx mixed files lose"]
    assert (line.value, line.limit, line.met) == (pytest.approx(lost), MIXED_LOSS, met)
    assert len(lines(None, gallery(), run)) == 1, "without a floor of the target nothing else"


@pytest.mark.parametrize(("lost", "met"), [(2.0, True), (2.01, False)])
def test_the_floor_holds_for_whole_pictures_of_offered_files_too(run: Run, lost: float, met: bool) -> None:
    found = with_accuracy("onnx mixed", ACCURACY["original"] - lost)
    line = lines(QualityFloor(metric=METRIC, within=2.0), found, run)["points of attribute accuracy that whole pictures lose"]
    assert (line.value, line.met) == (pytest.approx(lost), met)
    assert line.note == "whole pictures of the onnx mixed files, the worst whose U-Net is offered, against the original's"


def test_a_floor_that_is_absolute_holds_as_well(run: Run) -> None:
    found = lines(QualityFloor(metric=METRIC, at_least=99.0), with_accuracy("onnx mixed", 98.9), run)
    line = found["attribute accuracy of whole pictures at least"]
    assert (line.value, line.limit, line.met) == (98.9, 99.0, False)


def test_files_that_are_not_offered_and_floors_of_other_metrics_say_nothing(run: Run) -> None:
    withheld = run.model_copy(update={"exports": tuple(one.model_copy(update={"recommended": False}) for one in run.exports)})
    floor = QualityFloor(metric=METRIC, within=2.0)
    assert set(lines(floor, gallery(), withheld)) == {"points of attribute accuracy that onnx mixed files lose"}
    assert set(lines(QualityFloor(metric="snr_db", at_least=3.0), gallery(), run)) == {"points of attribute accuracy that onnx mixed files lose"}


def test_pictures_that_nobody_judged_have_no_limit(run: Run) -> None:
    unjudged = gallery()
    painters = tuple(painter.model_copy(update={"measurements": ()}) for painter in unjudged.painters)
    assert lines(QualityFloor(metric=METRIC, within=2.0), unjudged.model_copy(update={"painters": painters}), run) == {}
