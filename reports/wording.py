"""How numbers, metrics and provenance are worded, in the terminal and in HTML alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcompress.export.stated import computed_in
from mcompress.record import HIGHEST_DB, BudgetRecord, DataRecord, ExportRecord, ModelRecord, ParityRecord, Run
from mcompress.targets.schema import Fallback, How, Measurement

MODEL_ORDER = ("teacher", "student", "distilled", "compressed")
HOW: Mapping[How, str] = {"device": "measured on the device", "host": "measured on this host", "estimated": "estimated", "published": "published"}
METRICS: Mapping[str, tuple[str, str]] = {
    "psnr_db": ("PSNR", "dB"),
    "psnr_y_db": ("PSNR (luma)", "dB"),
    "teacher_psnr_db": ("PSNR to the teacher", "dB"),
    "ssim": ("SSIM", ""),
    "sqnr_db": ("SQNR", "dB"),
    "snr_db": ("SNR", "dB"),
    "attribute_accuracy_percent": ("attribute accuracy", "%"),
    "max absolute difference / output range": ("difference / range", ""),
}
CALL_METRICS: Mapping[str, str] = {"text_to_image": "snr_db"}
"""Task -> what a single call of its network is judged by, where that is not what the whole is judged by."""
SAMPLES: Mapping[str, str] = {"super_resolution": "photographs"}
"""Task -> what its held-out samples are; of others, pictures."""
SAME_SIZE = frozenset({"translation", "talking_face"})
"""Tasks whose outputs are as large as their inputs."""
BUDGET_NAMES: Mapping[str, str] = {
    "latency_ms": "latency, ms",
    "size_mb": "file size, MB",
    "peak_memory_mb": "peak activation memory, MB",
    "macs_g": "multiply-adds, G",
}
KINDS: Mapping[str, tuple[str, str]] = {
    "convolution": ("convolution", "convolutions"),
    "pointwise_convolution": ("1×1 convolution", "1×1 convolutions"),
    "volumetric_convolution": ("3-D convolution", "3-D convolutions"),
    "depthwise_convolution": ("depthwise convolution", "depthwise convolutions"),
    "large_depthwise_convolution": ("large depthwise convolution", "large depthwise convolutions"),
    "grouped_convolution": ("grouped convolution", "grouped convolutions"),
    "transposed_convolution": ("transposed convolution", "transposed convolutions"),
    "matmul": ("matrix product", "matrix products"),
    "batched_matmul": ("batched matrix product", "batched matrix products"),
    "attention": ("attention", "attentions"),
    "normalization": ("normalization", "normalizations"),
    "softmax": ("softmax", "softmaxes"),
    "image_normalization": ("normalization over the image", "normalizations over the image"),
    "elementwise": ("element-wise operator", "element-wise operators"),
    "add": ("addition", "additions"),
    "multiply": ("multiplication", "multiplications"),
    "activation": ("activation", "activations"),
    "clamp": ("clamp", "clamps"),
    "prelu": ("PReLU", "PReLUs"),
    "leaky_relu": ("leaky ReLU", "leaky ReLUs"),
    "sigmoid": ("sigmoid", "sigmoids"),
    "hardswish": ("hard swish", "hard swishes"),
    "pooling": ("pooling", "poolings"),
    "max_pool": ("maximum pooling", "maximum poolings"),
    "average_pool": ("average pooling", "average poolings"),
    "resize": ("resize", "resizes"),
    "bilinear": ("bilinear resize", "bilinear resizes"),
    "nearest": ("nearest resize", "nearest resizes"),
    "shuffle": ("pixel shuffle", "pixel shuffles"),
    "concatenate": ("concatenation", "concatenations"),
    "reduction": ("reduction", "reductions"),
    "copy": ("copy", "copies"),
    "pad": ("padding", "paddings"),
    "other": ("operator of no known kind", "operators of no known kind"),
}
"""Class of operators -> one of them, several of them."""


def number(value: float) -> str:
    """Three significant digits, thousands kept whole, no exponent in the ordinary range."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size == 0 or size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.1 else f"{value:.3g}"


def count(value: float) -> str:
    """12.3 k, 4.56 M, 7.89 G."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{number(value / factor)} {letter}"
    return number(value)


def size(value: float) -> str:
    """Decimal bytes: 3.39 MB, 51.2 kB."""
    return f"{count(value)}B" if abs(value) >= 1000 else f"{value:.0f} B"


def ratio(before: float, after: float) -> str:
    """42.9x: how much smaller; `larger` if it is."""
    if before <= 0 or after <= 0:
        return "not comparable"
    times = before / after
    return f"{number(times)}x" if times >= 1 else f"{number(1 / times)}x larger"


def metric(name: str) -> tuple[str, str]:
    """Name and unit of a metric for people."""
    return METRICS.get(name, (name.replace("_", " "), ""))


def task_metric(run: Run) -> str | None:
    """The metric that quality is told in, by its key: the first that a model of the run has."""
    return next((name for model in run.models.values() for name in model.quality), None)


def call_metric(run: Run) -> str | None:
    """The metric that a single call of the run's network is told in: for precisions, of which each call has its own error."""
    return CALL_METRICS.get(run.target.task) or task_metric(run)


def metric_title(name: str, where: str = "") -> str:
    """For an axis or a column: the metric, `where` it was measured, and its unit."""
    label, unit = metric(name)
    return f"{label}{' ' + where if where else ''}{', ' + unit if unit else ''}"


def quality(name: str, value: float) -> str:
    """A quality with its unit; two digits behind the point, as papers give decibels. Pictures that are equal have no decibels."""
    unit = metric(name)[1]
    if unit == "dB" and value >= HIGHEST_DB:
        return "equal"
    if unit == "%":
        return f"{value:.1f} %"
    return f"{value:.2f} {unit}" if unit == "dB" else f"{value:.4f}{' ' + unit if unit else ''}"


def against_teacher(name: str) -> bool:
    """Whether a metric compares with the teacher, which then has no quality of its own."""
    return name.startswith("teacher_")


def gain(value: float, base: float) -> str:
    """How much better than the trivial reference; nothing for a picture that is equal to the truth."""
    return "" if value >= HIGHEST_DB else f"{value - base:+.2f}"


def samples(run: Run) -> str:
    """What held-out samples are called, several of them."""
    return SAMPLES.get(run.target.task, "pictures")


def truth_title(run: Run) -> str:
    """What the picture is called that an output should be like; empty without pairs, where it is the teacher's own."""
    if run.data is not None and run.data.pairing == "unpaired":
        return ""
    return "target" if run.target.task in SAME_SIZE else "truth"


def labels(data: DataRecord) -> str:
    """How many targets there were to learn from."""
    if data.pairing == "unpaired":
        return f"{data.unlabelled_images} inputs without a target, and pictures of the target domain"
    pairs = f"{data.labelled_pairs} labelled pair{'s' if data.labelled_pairs != 1 else ''} ({100 * data.labelled_fraction:g} % of the training pairs)"
    return f"{pairs}, {data.unlabelled_images} unlabelled image{'s' if data.unlabelled_images != 1 else ''}"


def kind(name: str, count: int = 1) -> str:
    """A class of operators for people: `pixel shuffle`, or `pixel shuffles` where there are several."""
    plain = name.replace("_", " ")
    return KINDS.get(name, (plain, plain))[count != 1]


def share(part: float, whole: float) -> str:
    """41 %; `below 1 %` instead of a zero that is none."""
    if whole <= 0 or part <= 0:
        return "0 %"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 0.95 else "below 1 %"


def latency(measurement: Measurement) -> str:
    """12.3 ms."""
    return f"{number(measurement.value)} {measurement.unit}"


def provenance(measurement: Measurement) -> str:
    """How a number was obtained, in full."""
    parts = [HOW[measurement.how], measurement.on]
    parts += [f"{measurement.n} runs"] if measurement.n is not None else []
    parts += [measurement.band] if measurement.band else []
    return ", ".join(parts)


def parity(record: ParityRecord, *, short: bool = False) -> tuple[str, str]:
    """(value against limit, verdict); `short` leaves out the metric's name where the unit tells it."""
    name, unit = metric(record.metric)
    sign = "≥" if unit == "dB" else "≤"
    limit = f"{sign} {record.limit:g} {unit}".strip()
    start = "" if short else f"{name} "
    if record.passed is None or record.value is None:
        return start + limit, "not executed"
    seen = f"{record.value:.1f}" if unit == "dB" else f"{record.value:.2g}"
    return f"{start}{seen} {limit}", "passed" if record.passed else "FAILED"


def budget_name(what: str) -> str:
    """The budget line's name for people."""
    return BUDGET_NAMES.get(what, what.replace("_", " "))


def obtained(line: BudgetRecord) -> str:
    """How a budget line's value was obtained. What was counted was not measured, wherever it was counted."""
    if line.how is None or line.note.startswith("counted"):
        return line.note or "not obtained"
    return HOW[line.how] + (f": {line.note}" if line.note else "")


def models_of(run: Run) -> dict[str, ModelRecord]:
    """What became of the run's own network, in the order in which compression made it; those that go along are `components` of the run."""
    known = [name for name in MODEL_ORDER if name in run.models]
    along = {name for one in run.components for name in (one, f"{one}_teacher")}
    return {name: run.models[name] for name in (*known, *(n for n in run.models if n not in MODEL_ORDER and n not in along))}


def measured(measurements: Sequence[Measurement], how: How) -> Measurement | None:
    """The first latency that was obtained so; other things that were measured are passed over."""
    return next((m for m in measurements if m.what == "latency" and m.how == how), None)


def file_name(export: ExportRecord) -> str:
    """The file's name without its folder."""
    return export.file.rsplit("/", 1)[-1]


def all_fallbacks(run: Run) -> list[Fallback]:
    """Those of the run, and those of each file's coverage; what was recorded twice is listed once."""
    found = list(run.fallbacks)
    seen = {(f.where, f.what, f.reason) for f in found}
    for export in run.exports:
        where = f"export {file_name(export)}"
        for item in export.coverage.fallbacks:
            if (where, item.operator, item.reason) not in seen:
                seen.add((where, item.operator, item.reason))
                found.append(Fallback(where=where, what=item.operator, reason=item.reason))
    return found


def quality_source(run: Run, model: str) -> str:
    """What computed a model's quality: the exported file for the compressed one, narrower widths and networks that go along, where there is such a
    file; PyTorch otherwise.
    """
    record = run.models[model]
    if model not in ("teacher", "student", "distilled") and record.quality:
        for export in run.exports:
            if export.quality == record.quality and (export.beside or "compressed") == model:
                return f"{file_name(export)} {computed_in(export)}"
    return "PyTorch"
