"""Where the constants of `targets/devices/*.yaml` come from (but for the host's): fit them, check them on what was left out, write the files.

    python tests/benchmarks/fit_devices.py --csv qualcomm_published_latency.csv [--out targets/devices] [DEVICE ...]

The CSV holds what Qualcomm measured on hosted devices and published in quic/ai-hub-models, `qai_hub_models/models/<model>/perf.yaml`, one row per
release, device, model, component, precision and runtime. All other figures are in `device_fits/figures.py`. About three minutes on one core; the same
input gives the same files. Constants of a unit are fitted to what is published for it, from one network on; the fewer there are, the closer they stay
to those of the most similar unit, and each fit is checked on the networks that it has not seen. Where nothing is published, the constants of the most
similar unit are scaled, and nothing is said to be validated.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from device_fits import apple, jetson, others, snapdragon
from device_fits.measured import Measured
from device_fits.plan import Plan

from mcompress.calibration.device_file import device_text

DEVICES: dict[str, Callable[[Measured], Plan]] = {
    "snapdragon865": snapdragon.snapdragon865,
    "snapdragon888": snapdragon.snapdragon888,
    "snapdragon8gen1": snapdragon.snapdragon8gen1,
    "snapdragon8gen2": snapdragon.snapdragon8gen2,
    "snapdragon8gen3": snapdragon.snapdragon8gen3,
    "snapdragon8elite": snapdragon.snapdragon8elite,
    "apple-a14": apple.apple_a14,
    "apple-a15": apple.apple_a15,
    "apple-a16": apple.apple_a16,
    "apple-a17pro": apple.apple_a17_pro,
    "tensor-g1": others.tensor_g1,
    "jetson-xavier-nx": jetson.xavier_nx,
    "jetson-agx-xavier": jetson.agx_xavier,
    "jetson-tx2": jetson.tx2,
    "jetson-nano": jetson.nano,
    "raspberrypi5": others.raspberry_pi_5,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files; each appears whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "targets" / "devices")
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help=f"all, if none is named: {', '.join(DEVICES)}")
    given = parser.parse_args(arguments)
    strange = [name for name in given.devices if name not in DEVICES]
    if strange:
        parser.error(f"device {strange[0]!r} is not known; known are {', '.join(DEVICES)}")
    data = Measured(given.csv)
    for name in given.devices or DEVICES:
        device = DEVICES[name](data).device()
        text = device_text(device, f"{device.title}. Written by tests/benchmarks/fit_devices.py, which holds the derivation.")
        unfinished = given.out / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(given.out / f"{name}.yaml")
        for unit in device.units.values():
            for precision, found in unit.validation.items():
                rank = found.summary.rank_correlation
                logging.info("%s %s %s: %s, rank correlation %s", name, unit.name, precision, found.band, "none" if rank is None else f"{rank:.3f}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
