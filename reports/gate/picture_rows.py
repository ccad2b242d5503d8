"""The rows of single held-out pictures: quality against the truth, and likeness to what the teacher and the float student make of them.

Each row is about the picture that lost most between the two bundles, whichever that is: one that is ruined among a hundred hardly moves their mean,
and need not be the one that was worst before. No picture, and so no mean either, lost more than that row says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mcompress.export.fidelity import HIGHER_IS_BETTER, REFERENCES, value_of
from mcompress.record import PictureRecord
from mcompress.reports.gate.rows import Gated, one_sided
from mcompress.reports.gate.tolerances import Tolerances
from mcompress.reports.gate.verdicts import Row
from mcompress.targets.gate import ALIKE_DB, GatedField

Pictures = Mapping[str, PictureRecord]


@dataclass(frozen=True)
class Measure:
    """One number that pictures have: how it is called and shown, what it may lose, and where it stops to matter."""

    field: str
    name: GatedField
    digits: int
    higher_is_better: bool = True
    enough: float = float("inf")
    """What is better than that is as good as that."""

    def loss(self, old: float, new: float) -> float:
        """By how much it is worse; negative where it is better."""
        return (min(old, self.enough) - min(new, self.enough)) * (1 if self.higher_is_better else -1)

    def allowed(self, tolerance: float) -> str:
        """The tolerance in words."""
        below = f" below {self.enough:g}" if self.enough < float("inf") else ""
        return f"{'-' if self.higher_is_better else '+'}{tolerance:g}{below}"

    def cells(self, old: float, new: float) -> tuple[str, str, str]:
        """Baseline, new and change as they are shown."""
        return f"{old:.{self.digits}f}", f"{new:.{self.digits}f}", f"{new - old:+.{self.digits}f}"


def picture_rows(subject: str, old: Pictures, new: Pictures, tolerances: Tolerances) -> Iterator[Row]:
    """One row per measure that either side has. What the baseline does not state is not comparable, what the new bundle lost is a regression."""
    if not old and not new:
        why = "neither bundle states single pictures: an older mcompress made them, or the file was not executed"
        yield Row(subject, "single pictures", "none", "none", "", "-", "not comparable", why)
        return
    for metric in dict.fromkeys(metric for side in (old, new) for picture in side.values() for metric in picture.quality):
        before, now = ({name: picture.quality[metric] for name, picture in side.items() if metric in picture.quality} for side in (old, new))
        yield _row(subject, Measure(f"worst picture, {metric}", "worst_picture", 3), before, now, tolerances)
    for reference, title in REFERENCES.items():
        for measure, field in _measures(reference, title):
            yield _row(subject, measure, _values(old, reference, field), _values(new, reference, field), tolerances)


def _measures(reference: str, title: str) -> Iterator[tuple[Measure, str]]:
    """With the field of `Likeness` that it is."""
    who = title.removeprefix("the ")
    psnr: GatedField = "teacher_psnr_db" if reference == "teacher" else "float_psnr_db"
    yield Measure(f"PSNR, {who}, dB", psnr, 2, HIGHER_IS_BETTER["psnr_db"], ALIKE_DB), "psnr_db"
    yield Measure(f"SSIM, {who}", "ssim", 4, HIGHER_IS_BETTER["ssim"]), "ssim"
    yield Measure(f"colour shift, {who}", "colour_shift", 2, HIGHER_IS_BETTER["largest_shift"]), "largest_shift"


def _values(pictures: Pictures, reference: str, field: str) -> dict[str, float]:
    found = {name: value_of(picture.against[reference], field) for name, picture in pictures.items() if reference in picture.against}
    return {name: value for name, value in found.items() if value is not None}


def _row(subject: str, measure: Measure, old: Mapping[str, float], new: Mapping[str, float], tolerances: Tolerances) -> Row:
    lost, common = [name for name in old if name not in new], [name for name in old if name in new]
    if lost or not common:
        some = f" for {lost[0]}" if lost else ""
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        worst = min if measure.higher_is_better else max
        values = (old[lost[0]] if lost else None), (None if lost or not new else worst(new.values()))
        whose = "baseline" if lost else "new bundle" if new else ""
        note = f"only the {whose} has it{some}{more}" if whose else "no picture was measured so"
        return one_sided(subject, measure.field, measure.name, tolerances, values, note)
    # Where several lost as much, which is all of them where nothing changed, the one that is worst now is shown.
    name = max(common, key=lambda picture: (measure.loss(old[picture], new[picture]), -new[picture] if measure.higher_is_better else new[picture]))
    gated = Gated(subject, measure.field, measure.name, tolerances, measure.allowed)
    values = old[name], new[name]
    note = f"of {len(common)} {'pictures' if len(common) > 1 else 'picture'}, {name} lost most"
    return gated.judged(measure.cells(*values), measure.loss(*values), values, note)
