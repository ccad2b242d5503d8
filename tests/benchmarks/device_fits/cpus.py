"""CPUs: the Snapdragon 865's is fitted, the others start at it."""

from __future__ import annotations

from collections.abc import Mapping

from device_fits.constants import ASSUMED, Precisions, few, in_fp32, scaled
from device_fits.figures import NCNN, PADDLE, PADDLE_TEXT, Figures, Publication
from device_fits.measured import Measured
from mcompress.targets.speeds import PrecisionName

NCNN_PRECISIONS: tuple[PrecisionName, ...] = ("int8", "fp16")


def cpu_865(data: Measured) -> Precisions:
    """INT8 and W8A16 as fitted; FP16 and FP32 from INT8, by ResNet50's published ratio."""
    int8, widths = data.cpu865.speeds, {"fp16": 2.0, "fp32": 4.0}
    found: Precisions = {"int8": data.cpu865, "w8a16": data.cpu865_w8a16}
    floats: tuple[PrecisionName, ...] = ("fp16", "fp32")
    for name in floats:
        ratio = PADDLE["int8"] / PADDLE[name]
        text = (
            f"{ASSUMED}INT8 constants times {ratio:.3g}, the ratio of INT8 to {name.upper()} in {PADDLE_TEXT}; as many elements a second as in INT8"
        )
        found[name] = scaled(f"cpu-{name}", int8, text, rate=ratio, memory=widths[name], overhead=1.0)
    return found


def from_ncnn(data: Measured, figures: Mapping[str, Figures], where: str) -> Precisions:
    """A CPU by ncnn's few figures. INT8 and FP16 have kernels of their own for 1x1 and for larger filters, so that these move apart."""
    donor = cpu_865(data)
    published = Publication(f"{NCNN.text}, {where}", NCNN.runtime)
    like = "the Snapdragon 865's constants of this precision"
    found: Precisions = {
        name: few(f"cpu-{name}", donor[name].speeds, name, figures[name], published, like=like, apart=("pointwise_convolution",))
        for name in NCNN_PRECISIONS
    }
    found["fp32"] = in_fp32(found["fp16"].speeds)
    own, other = found["fp16"].speeds.speed("convolution"), donor["fp16"].speeds.speed("convolution")
    if own is None or other is None or not own.gmacs or not other.gmacs:
        raise ValueError("a CPU without convolutions")
    factor = own.gmacs / other.gmacs
    text = f"{ASSUMED}the Snapdragon 865's constants of this precision times {factor:.3g}, as its convolutions are in FP16"
    found["w8a16"] = scaled("cpu-w8a16", donor["w8a16"].speeds, text, rate=factor)
    return found
