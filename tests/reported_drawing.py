"""A run folder of text to image as the pipeline writes it, with invented numbers: what the tests of the reports read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from reported_plan import quantize_details
from reported_run import exported, model, network

from mcompress.breakdown import breakdown_of, ceilings_of
from mcompress.compress.evolving_actions import Action, ScoredBlock, Training
from mcompress.compress.tasks.text_to_image.showing import places_shown, write_grid
from mcompress.record import (
    ATTENTION_BY_HEADS,
    GALLERY,
    BudgetRecord,
    CallsRecord,
    EnvironmentRecord,
    ExportRecord,
    GalleryRecord,
    ModelRecord,
    PainterRecord,
    Run,
    StageRecord,
    TargetRecord,
)
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Measurement

NAME = "iphone14pro-text2image"
CAPTIONS = tuple(
    f"a {colour} {shape} on the {side}" for colour in ("red", "blue") for shape in ("circle", "square", "star") for side in ("left", "right")
)
BY_HEADS = ATTENTION_BY_HEADS
MS = {
    "original": {"text_encoder": 0.41, "unet": 13.7, "decoder": 6.3},
    BY_HEADS: {"text_encoder": 0.41, "unet": 10.96, "decoder": 6.3},
    "compressed": {"text_encoder": 0.29, "unet": 5.9, "decoder": 2.1},
}
CALLS = {
    "original": {"text_encoder": 2, "unet": 64, "decoder": 1},
    BY_HEADS: {"text_encoder": 2, "unet": 64, "decoder": 1},
    "compressed": {"text_encoder": 2, "unet": 16, "decoder": 1},
}
STEPS = {"original": 32, BY_HEADS: 32, "compressed": 8}
SHOWN = (
    "original", "original, 16 steps", "original, 8 steps", "original, 4 steps",
    "compressed, 16 steps", "compressed", "compressed, 4 steps", "onnx mixed"
)  # fmt: skip
"""From left to right; not all of them were judged."""
BACKENDS = {"coreml": ".mlpackage", "onnx": ".onnx"}
OF_DECODER, OF_TEXT = 41.37, 38.62
"""dB that the files of the decoder and of the text encoder are worth."""
ACCURACY = {"original": 97.917, "original, 8 steps": 71.354, "compressed": 95.313, "onnx float": 95.313, "onnx mixed": 94.792}

BLOCKS = [
    {"stage": "Down-1", "side": 8, "channels": 32, "kind": "residual", "before": 2, "after": 2},
    {"stage": "Down-1", "side": 8, "channels": 32, "kind": "attention", "before": 2, "after": 0},
    {"stage": "Mid", "side": 2, "channels": 64, "kind": "residual", "before": 7, "after": 4},
    {"stage": "Mid", "side": 2, "channels": 64, "kind": "attention", "before": 1, "after": 1},
    {"stage": "Up-1", "side": 4, "channels": 48, "kind": "residual", "before": 3, "after": 3},
    {"stage": "Up-1", "side": 4, "channels": 48, "kind": "attention", "before": 3, "after": 5},
    {"stage": "Up-2", "side": 8, "channels": 32, "kind": "residual", "before": 3, "after": 2},
]


def valued(block: str, rise: float, ms: float) -> ScoredBlock:
    return ScoredBlock(block, rise, ms)


ACTIONS = (
    Action("removed", (valued("down_blocks.0.attentions.0", 0.0011, 1.9), valued("down_blocks.0.attentions.1", 0.0014, 1.8)), 0.1013, 13.7, 10.0),
    Action("removed", (valued("mid_block.resnets.1", -0.0003, 0.7), valued("up_blocks.0.resnets.0", 0.0021, 1.1)), 0.1041, 10.0, 8.2),
    Action("removed", (valued("up_blocks.2.resnets.2", 0.0032, 3.3),), 0.1062, 8.2, 4.9),
    Action("doubled", (valued("up_blocks.1.attentions.1", 0.0093, 0.6),), 0.1087, 4.9, 5.5),
    Action("doubled", (valued("up_blocks.1.attentions.2", 0.0071, 0.5),), 0.1079, 5.5, 6.0),
    Action("taken back", (valued("up_blocks.1.attentions.2.1", -0.0001, 0.5),), 0.1081, 6.0, 5.5),
)
SCORES = (*ACTIONS[0].blocks, valued("mid_block.resnets.1", 0.004, 0.7), valued("up_blocks.0.resnets.0", 0.007, 0.0))


def evolve_details() -> dict[str, object]:
    """As the search stage leaves them, method `evolve`."""
    curve: list[tuple[int, dict[str, float]]] = [(step, {"network/squared": 0.2 / step + 0.1}) for step in (10, 20, 30)]
    return {
        "blocks": BLOCKS,
        "repeats": {"down_blocks.0.attentions.0": 0},
        "actions": [action.as_json() for action in ACTIONS],
        "scores": [score.as_json() for score in SCORES],
        "trainings": [Training(phase, 4.0, curve).as_json() for phase in range(len(ACTIONS) + 1)],
        "measure": "guided",
        "before": {"latency_ms": 13.7, "macs": 812_000_000, "size_mb": 5.74, "error": 0.0987},
        "after": {"latency_ms": 5.5, "macs": 402_000_000, "size_mb": 4.61, "error": 0.1078},
    }


def distill_details() -> dict[str, object]:
    """As step distillation leaves them."""
    legs: list[dict[str, object]] = [
        {"name": "original velocity", "what": "from noise to velocity", "train_steps": 1000, "train_seconds": 61.5},
        {"name": "student velocity", "skipped": "it predicts the velocity already"},
        {"name": "original middle", "what": "32 steps to 16", "train_steps": 900, "train_seconds": 88.25},
        {"name": "student", "what": "16 steps to 8", "train_steps": 2000, "train_seconds": 143.0},
    ]
    curve: list[list[object]] = [[step, {"original velocity/squared": 1 / step}] for step in range(10, 101, 10)]
    curve += [[step, {"original middle/vanilla": 2 / step, "original middle/original": 0.4 / step}] for step in range(10, 101, 10)]
    curve += [[step, {"student/vanilla": 3 / step, "student/guided": 9 / step, "student/original": 0.6 / step}] for step in range(10, 101, 10)]
    return {"legs": legs, "curve": curve, "train_seconds": 292.75}


def prune_details() -> dict[str, object]:
    """Of the decoder."""
    layers = [{"module": f"decoder.up_blocks.{index}.resnets.0.conv1", "before": 64, "after": 32} for index in range(3)]
    return {"before": {"params": 1_600_000}, "after": {"params": 402_000}, "layers": layers}


def estimated(ms: float) -> Measurement:
    return Measurement(what="latency", value=ms, unit="ms", how="estimated", on="apple-a16 npu fp16", band="median error 17 %, on 8 networks")


def worth(what: str, value: float, unit: str, on: str) -> Measurement:
    source = "Fréchet distance of the features of a classifier of scenes; no FID" if what == "scene distance" else None
    return Measurement(what=what, value=value, unit=unit, how="host", on=on, n=len(CAPTIONS), source=source)


def painter(
    name: str, kind: str, *, steps: int, files: tuple[str, ...] = (), like: tuple[float, float] | None = None, limit: float | None = None
) -> PainterRecord:
    on, right = ", ".join(files) or "PyTorch fp32", ACCURACY[name]
    numbers = worth("attribute accuracy", right, "%", on), worth("whole captions right", 2 * right - 101.25, "%", on)
    mean, least = like or (None, None)
    facts = {"name": name, "kind": kind, "steps": steps, "guidance": 4.0, "files": files, "psnr_db": mean, "least_psnr_db": least, "limit_db": limit}
    return PainterRecord.model_validate({**facts, "measurements": (*numbers, worth("scene distance", 100 - right, "", on))})


def by_script(name: str, like: float, limit: float | None) -> PainterRecord:
    """What the bundle's script drew."""
    facts = {"name": f"draw.py with {name} files", "kind": "files", "steps": 8, "guidance": 4.0, "measurements": ()}
    return PainterRecord.model_validate({**facts, "psnr_db": like, "least_psnr_db": like, "limit_db": limit})


def file_of(backend: str, variant: str, component: str | None) -> str:
    return f"bundle/{NAME}{f'-{component}' if component else ''}-{variant}{BACKENDS[backend]}"


def set_of(backend: str, variant: str) -> tuple[str, ...]:
    """The decoder's mixed file is slower, so the float file stands in."""
    return (file_of(backend, variant, "text_encoder"), file_of(backend, variant, None), file_of(backend, "float", "decoder"))


def gallery() -> GalleryRecord:
    return GalleryRecord(
        captions=CAPTIONS,
        painters=(
            painter("original", "original", steps=32),
            painter("original, 8 steps", "original", steps=8),
            painter("compressed", "compressed", steps=8),
            painter("onnx float", "files", steps=8, files=set_of("onnx", "float"), like=(58.234, 52.117), limit=35.0),
            painter("onnx mixed", "files", steps=8, files=set_of("onnx", "mixed"), like=(27.406, 21.772)),
        ),
        shown=SHOWN,
        latency={
            which: tuple(CallsRecord(component=name, calls=CALLS[which][name], each=estimated(MS[which][name])) for name in MS[which]) for which in MS
        },
        by_script=(by_script("onnx float", 51.42, 35.0), by_script("onnx mixed", 27.41, None)),
        missing=("pictures of the coreml float files: not executed: Core ML runs on Apple systems only",),
    )


def record_of(params: int, macs: int, metric: str, value: float, ms: float) -> ModelRecord:
    """A network whose quality is one number."""
    plain = model(params, macs, 6 * params, 4 * params, {"a": {"psnr_db": value}}, ms, 3 * ms, "fp16")
    return plain.model_copy(update={"quality": {metric: value}, "quality_per_sample": {"a": {metric: value}}, "latency": (estimated(ms),)})


def file_record(backend: str, variant: str, component: str | None) -> ExportRecord:
    """One of the files, with the quality of its own network."""
    executed = backend == "onnx"
    quality = {
        None: {"attribute_accuracy_percent": 94.79 if variant == "mixed" else 95.31},
        "decoder": {"psnr_db": OF_DECODER},
        "text_encoder": {"snr_db": OF_TEXT},
    }[component]
    size = {None: 1_410_000, "decoder": 423_000, "text_encoder": 214_000}[component] * (1 if variant == "mixed" else 3)
    shipped = (variant, component) != ("mixed", "decoder")
    made = exported(
        backend,
        variant,
        BACKENDS[backend],
        size,
        value=None if not executed else 44.5 if variant == "mixed" else 2e-6,
        host=11.0 if executed else None,
        units={"cpu fp32": 32} if executed else {},
        recommended=shipped and (variant == "mixed" or component == "decoder"),
        shipped=shipped,
        quality=quality if executed else None,
    )
    worst = {
        metric: one.model_copy(update={"value": value - 1.5})
        for (metric, value), one in zip(quality.items(), made.quality_worst.values(), strict=False)
    }
    likeness = {"fidelity": {}, "pictures": {}} if component == "text_encoder" else {}
    return made.model_copy(update={"file": file_of(backend, variant, component), "component": component, "quality_worst": worst, **likeness})


def write_drawing_run(folder: Path, found: GalleryRecord | None = None) -> Run:
    """A whole run folder; another `gallery` than the usual one may be given. No report."""
    found = found or gallery()
    places = places_shown(len(CAPTIONS), 10)
    shades = {name: torch.linspace(-1, 1, len(places))[:, None, None, None].expand(-1, 3, 16, 16) for name in ("true picture", *found.shown)}
    folder.mkdir(parents=True, exist_ok=True)
    write_grid(folder / GALLERY, [CAPTIONS[place] for place in places], shades)
    own = {"search": evolve_details(), "distill": distill_details(), "quantize": quantize_details()}
    for stage, details in own.items():
        _write(folder / "stages" / stage, details)
    _write(folder / "components" / "decoder" / "stages" / "prune", prune_details())
    methods = {
        "search": "evolve",
        "distill": "steps",
        "quantize": "sensitivity",
        "prune-decoder": "structured",
        "quantize-text_encoder": "sensitivity",
    }
    models = {
        "teacher": record_of(1_435_000, 812_000_000, "attribute_accuracy_percent", 97.92, MS["original"]["unet"]),
        "student": record_of(1_152_000, 402_000_000, "attribute_accuracy_percent", 88.54, MS["compressed"]["unet"]),
        "distilled": record_of(1_152_000, 402_000_000, "attribute_accuracy_percent", 95.31, MS["compressed"]["unet"]),
        "compressed": record_of(1_152_000, 402_000_000, "attribute_accuracy_percent", 94.79, MS["compressed"]["unet"]),
        "text_encoder_teacher": record_of(53_000, 2_100_000, "snr_db", 200.0, MS["original"]["text_encoder"]),
        "text_encoder": record_of(53_000, 2_100_000, "snr_db", OF_TEXT, MS["compressed"]["text_encoder"]),
        "decoder_teacher": record_of(1_600_000, 640_000_000, "psnr_db", 200.0, MS["original"]["decoder"]),
        "decoder": record_of(402_000, 163_000_000, "psnr_db", OF_DECODER, MS["compressed"]["decoder"]),
    }
    device = load_device("apple-a16")
    broken = {
        "teacher": breakdown_of(network(64, 4), device, "npu", "fp16", floats="fp16"),
        "compressed": breakdown_of(network(24, 4), device, "npu", "fp16", floats="fp16"),
    }
    models |= {name: models[name].model_copy(update={"breakdown": breakdown}) for name, breakdown in broken.items()}
    run = Run(
        target=TargetRecord(name=NAME, digest="beef" * 16, title="Apple A16 Bionic", task="text_to_image"),
        environment=EnvironmentRecord(python="3.11.9", platform="Linux x86_64", packages={"torch": "2.13.0"}, commit="50aabac", seed=0),
        stages=tuple(
            StageRecord(name=name, method=method, digest="a" * 64, parent="b" * 64, cached=False, seconds=41.0) for name, method in methods.items()
        ),
        models=models,
        baseline={"mean": {"attribute_accuracy_percent": 21.35}},
        baseline_name="an empty latent",
        exports=tuple(
            file_record(backend, variant, component)
            for component in (None, "text_encoder", "decoder")
            for backend in BACKENDS
            for variant in ("float", "mixed")
        ),
        budget=(
            BudgetRecord(what="latency_ms", limit=6.0, value=5.9, how="estimated", met=True, note="apple-a16 npu fp16"),
            BudgetRecord(what="decoder latency_ms", limit=2.0, value=2.1, how="estimated", met=False, note="apple-a16 npu fp16"),
        ),
        roofline=ceilings_of(device, tuple(broken.values())),
        gallery=found,
        fallbacks=(),
        not_measured=found.missing,
    )
    run.save(folder)
    (folder / "target.yaml").write_text(f"name: {NAME}\ndevice: apple-a16\n", encoding="utf-8")
    return run


def _write(folder: Path, details: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    (folder / "details.json").write_text(json.dumps(details), encoding="utf-8")
