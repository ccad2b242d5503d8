"""Who says what is in a picture of a scene: a small classifier that has seen nothing but drawn scenes, and no generator's pictures.

It gives the accuracy of attributes, and the features between whose distributions the Fréchet distance is taken. That distance is built like the FID
(Heusel et al. 2017, arXiv 1706.08500) on other features, so its values are not FIDs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.tasks.text_to_image.captions import ATTRIBUTES, Scene

WIDTHS = (24, 48, 96)
FEATURES = 32
WEIGHTS = "judge.safetensors"
AT_ONCE = 64


class Judge(nn.Module):
    """Pictures (N, 3, 32, 32) in [-1, 1] -> logits of every attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for taken, given in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(taken, given, 3, stride=2, padding=1), nn.BatchNorm2d(given), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 16, FEATURES), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, pictures: Tensor) -> Tensor:
        """(N, 32)."""
        found: Tensor = self.layers(pictures)
        return found

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Attribute -> logits (N, number of values)."""
        seen = self.features(pictures)
        return {name: head(seen) for name, head in self.heads.items()}


@cache
def embedded_judge() -> Judge:
    """The one that ships."""
    judge = Judge()
    weights = safetensors.torch.load(files(__package__).joinpath("embedded", WEIGHTS).read_bytes())
    judge.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in weights.items()})
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def attributes_right(judge: Judge, pictures: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Pictures (N, 3, 32, 32) in [-1, 1] of N scenes -> (N, 4), 1 where the judge sees what the caption says, in the order of `ATTRIBUTES`."""
    said = torch.tensor([scene.values for scene in scenes])
    logits = [judge(batch) for batch in torch.split(pictures.clamp(-1.0, 1.0), AT_ONCE)]
    seen = torch.stack([torch.cat([one[name] for one in logits]).argmax(1) for name in ATTRIBUTES], 1)
    return (seen == said).float()


@torch.no_grad()
def scene_distance(judge: Judge, pictures: Tensor, others: Tensor) -> float:
    """Fréchet distance of the judge's features of two sets of pictures: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); 0 for equal sets."""
    one, other = (torch.cat([judge.features(batch) for batch in torch.split(some.clamp(-1.0, 1.0), AT_ONCE)]).double() for some in (pictures, others))
    first, second = torch.cov(one.T), torch.cov(other.T)
    # The trace of the root of C1 C2 is the sum of the roots of its eigenvalues, which are those of the symmetric C1^(1/2) C2 C1^(1/2).
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ torch.diag(values.clamp(min=0.0).sqrt()) @ vectors.T
    roots = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0.0).sqrt()
    distance = (one.mean(0) - other.mean(0)).square().sum() + torch.trace(first) + torch.trace(second) - 2.0 * roots.sum()
    return max(0.0, float(distance))


def attribute_loss(judge: Judge, pictures: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Mean cross entropy over the attributes."""
    logits = judge(pictures)
    said = torch.tensor([scene.values for scene in scenes])
    return torch.stack([functional.cross_entropy(logits[name], said[:, place]) for place, name in enumerate(ATTRIBUTES)]).mean()
