"""Do 8 distilled steps draw what 32 do? Is the guidance-aware loss worth it? Is removing blocks by quality per millisecond better than without it?

    python tests/benchmarks/text_to_image.py --only steps --steps 500 --seeds 3 --jobs 2
    python tests/benchmarks/text_to_image.py --only evolving --steps 100 --seeds 3 --jobs 2
    python tests/benchmarks/text_to_image.py --only consistency --steps 1000 --seeds 3 --jobs 1

On the embedded scenes, guidance 7.5. Every picture is of a caption that no U-Net was trained on, three sets of noise; attributes are seen by the
embedded judge, a classifier that was trained apart, on drawn scenes of all captions. Each training runs in one thread; those that are finished are in
the result file, so that a benchmark that was stopped goes on where it was. The last results lie in `results/` beside this file.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from comparing_trainings import Results, facts, mean_and_spread
from text_to_image_trainings import (
    CONSISTENT,
    PARTS,
    STUDENT_STEPS,
    Trained,
    Training,
    Worth,
    original_ms,
    read,
    recipe,
    run,
    task,
    worth,
)

logger = logging.getLogger("benchmark")
FIGURES = {"attribute_accuracy": "percent", "whole_captions": "percent", "scene_distance": "distance", "psnr_db": "db"}


def row_of(found: Sequence[Worth]) -> dict[str, object]:
    """Mean over seeds of the mean over sets of noise, with the spread over seeds; of one network the spread is over its sets of noise."""
    if len(found) == 1:
        return {name: mean_and_spread(getattr(found[0], name), unit) for name, unit in FIGURES.items()}
    return {name: mean_and_spread([statistics.mean(getattr(one, name)) for one in found], unit) for name, unit in FIGURES.items()}


def references(part: str) -> dict[str, object]:
    """The original with all its steps, and with as few as are distilled."""
    unet, sampling = task().original.unet.module, task().sampling
    few = [replace(sampling, steps=steps) for steps in (CONSISTENT.values() if part == "consistency" else (STUDENT_STEPS,))]
    rows: dict[str, object] = {f"original, {one.steps} step{'s' if one.steps > 1 else ''}": row_of([worth(unet, one)]) for one in (sampling, *few)}
    return {**rows, "original_latency_ms": round(original_ms(), 5)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS), required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: Results[Trained] = Results(
        given.out / f"text_to_image_{given.only}.json", read, {}, again=given.again, depends_on={**facts(), **recipe(given.only)}
    )
    ways = PARTS[given.only][1]
    wanted = [Training(given.only, way, seed, given.steps) for seed in range(given.seeds) for way in ways]
    for found in results.complete(wanted, run, given.jobs):
        logger.info("%s: %s", found.training, asdict(found.worth))
    own = {way: [results.done[one] for one in wanted if one.way == way] for way in ways}
    results.document |= {
        "steps": given.steps,
        "seeds": given.seeds,
        "references": references(given.only),
        "ways": {
            way: {
                **row_of([one.worth for one in found]),
                "seconds": round(statistics.mean(one.seconds for one in found), 1),
                "latency_ms": [one.latency_ms for one in found],
            }
            for way, found in own.items()
        },
    }
    results.save()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
