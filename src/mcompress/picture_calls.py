"""What a whole picture takes: how often each network is called, and what one call is estimated to take on the target's device."""

from __future__ import annotations

from mcompress.compress.models.spec import Sampling
from mcompress.record import ATTENTION_BY_HEADS, CallsRecord, Run
from mcompress.targets.schema import Measurement

COMPONENTS = ("text_encoder", "unet", "decoder")
UNET = "unet"
ORIGINAL, COMPRESSED = "original", "compressed"


def calls_of(run: Run, own: Sampling, sampling: Sampling) -> dict[str, tuple[CallsRecord, ...]]:
    """Of a picture of the original, which is sampled as `own` says, of the original in the layout of attention in which its compression begins, where
    that is another one, and of the compressed networks, which are sampled as `sampling` says.
    """
    original = {name: f"{name}_teacher" for name in COMPONENTS if name != UNET}
    each = {name: run.models[model].latency[0] for name, model in original.items()}
    found = {ORIGINAL: _calls({**each, UNET: run.models["teacher"].latency[0]}, own)}
    for laid_out in (one for one in run.models["teacher"].latency if one.what == ATTENTION_BY_HEADS):
        found[ATTENTION_BY_HEADS] = _calls({**each, UNET: laid_out.model_copy(update={"what": "latency"})}, own)
    compressed = {name: run.models["compressed" if name == UNET else name].latency[0] for name in COMPONENTS}
    return {**found, COMPRESSED: _calls(compressed, sampling)}


def _calls(each: dict[str, Measurement], sampling: Sampling) -> tuple[CallsRecord, ...]:
    """With guidance the text encoder also reads the empty caption, and the U-Net is called with and without."""
    twice = 2 if sampling.guidance != 1 and sampling.method == "ddim" else 1
    counts = {"text_encoder": twice, UNET: twice * sampling.steps, "decoder": 1}
    return tuple(CallsRecord(component=name, calls=counts[name], each=each[name]) for name in COMPONENTS)
