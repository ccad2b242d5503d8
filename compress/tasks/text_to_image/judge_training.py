"""How the judge of scenes was made, and how to make it again:

    python -m mcompress.compress.tasks.text_to_image.judge_training --steps 3000 --seed 0 --out FOLDER

teaches it on drawn scenes of all combinations, blurred and with noise by chance, so that small faults of a picture do not count as something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.tasks.making_teachers import lines_on_stderr, parsed, parser_of, rounded, write_teacher
from mcompress.compress.tasks.text_to_image.captions import every_scene
from mcompress.compress.tasks.text_to_image.drawing import draw
from mcompress.compress.tasks.text_to_image.judge import Judge, attribute_loss, attributes_right
from mcompress.compress.train import Objective, TrainSettings, train

STEPS, BATCH, LEARNING_RATE = 3_000, 48, 2e-3
MOST_NOISE = 0.15
BLURRED = 0.5
"""Share of the batches that are made half as large and large again."""
CHECKED = 1_440


class Judging(Objective):
    """Cross entropy of the attributes of drawn scenes."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.scenes = judge, every_scene()

    def players(self) -> Mapping[str, nn.Module]:
        """The judge."""
        return {"judge": self.judge}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw scenes, and spoil their pictures a little."""
        self.shown = [self.scenes[one] for one in torch.randint(len(self.scenes), (BATCH,), generator=generator).tolist()]
        pictures = draw(self.shown, generator)
        if float(torch.rand((), generator=generator)) < BLURRED:
            small = functional.avg_pool2d(pictures, 2)
            pictures = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        noise = torch.rand((BATCH, 1, 1, 1), generator=generator) * MOST_NOISE
        self.pictures = (pictures + noise * torch.randn(pictures.shape, generator=generator)).clamp(-1.0, 1.0).to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        """`attributes`."""
        return {"attributes": attribute_loss(self.judge, self.pictures, self.shown)}


def make(steps: int, seed: int, folder: Path) -> None:
    """Train, round to fp16, check, write."""
    torch.manual_seed(seed)
    judge = Judge()
    train(Judging(judge), TrainSettings(steps, LEARNING_RATE, seed), FileCheckpoints(folder / "judge.pt"), lines_on_stderr())
    half = rounded(judge)
    scenes = [scene for scene in every_scene() for _ in range(CHECKED // len(every_scene()))]
    right = attributes_right(judge, draw(scenes, torch.Generator().manual_seed(seed + 1)), scenes)
    write_teacher(
        folder,
        half,
        {
            "command": f"python -m mcompress.compress.tasks.text_to_image.judge_training --steps {steps} --seed {seed}",
            "torch": torch.__version__,
            "accuracy_on_drawn_scenes": round(float(right.mean()), 5),
        },
        "judge",
    )


if __name__ == "__main__":
    options = parsed(parser_of(__doc__, STEPS))
    make(options.steps, options.seed, options.out)
