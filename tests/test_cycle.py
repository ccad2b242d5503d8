"""CycleGAN: its terms are the paper's, its players move one at a time, and a training that was killed takes the same steps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import pytest
import torch
from conftest import MemoryCheckpoints, silent
from torch import Tensor, nn

from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.cycle import CycleGAN, CycleSettings, PicturePool
from mcompress.compress.train import TrainResult, TrainSettings, train

SIDE = 16
SMALL = CycleSettings(batch_size=2, crop_size=SIDE, discriminator_features=4, pool=3)
CPU = torch.device("cpu")


class Apart:
    """Dark pictures, and bright ones."""

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.rand((batch_size, 3, crop_size, crop_size), generator=generator) - 1.0,)

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        return torch.rand((batch_size, 3, crop_size, crop_size), generator=generator)


class Times(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.gain


def generator() -> nn.Module:
    return build(ModelSpec("resnet_generator", {"features": 4, "depths": [0, 1, 0]}))


def begun(settings: CycleSettings, a_to_b: nn.Module, b_to_a: nn.Module) -> CycleGAN:
    made = CycleGAN(Apart(), settings, a_to_b, b_to_a)
    made.begin_step(torch.Generator().manual_seed(0), CPU)
    return made


def numbers(terms: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in terms.items()}


def test_generators_that_undo_each_other_have_no_cycle_loss() -> None:
    terms = numbers(begun(SMALL, Times(-2.0), Times(-0.5)).terms("generators"))
    assert terms["cycle a"] == terms["cycle b"] == 0.0
    assert min(terms["identity a"], terms["identity b"]) > 0.0
    same = numbers(begun(SMALL, Times(1.0), Times(1.0)).terms("generators"))
    assert {name: value for name, value in same.items() if not name.startswith("adversarial")} == {
        f"{term} {side}": 0.0 for term, side in itertools.product(("cycle", "identity"), "ab")
    }


def test_terms_are_the_papers() -> None:
    made = begun(SMALL, Times(0.5), Times(0.5))
    a, b, judge_a, judge_b = made.real["a"], made.real["b"], made.discriminators["a"], made.discriminators["b"]
    terms, judged = numbers(made.terms("generators")), numbers(made.terms("discriminators"))
    expected = {
        "adversarial b": ((judge_b(0.5 * a) - 1) ** 2).mean(),
        "adversarial a": ((judge_a(0.5 * b) - 1) ** 2).mean(),
        "cycle a": 10 * (0.75 * a).abs().mean(),
        "cycle b": 10 * (0.75 * b).abs().mean(),
        "identity a": 5 * (0.5 * a).abs().mean(),
        "identity b": 5 * (0.5 * b).abs().mean(),
    }
    assert terms == pytest.approx(numbers(expected), rel=1e-5)
    for side, real, fake, judge in (("a", a, 0.5 * b, judge_a), ("b", b, 0.5 * a, judge_b)):
        by_hand = ((judge(real) - 1) ** 2).mean() / 2 + (judge(fake) ** 2).mean() / 2
        assert judged[f"gan {side}"] == pytest.approx(float(by_hand.detach()), rel=1e-5)
    without = begun(CycleSettings(2, SIDE, cycle=0.0, discriminator_features=4), Times(0.5), Times(0.5))
    assert set(without.terms("generators")) == {"adversarial a", "adversarial b"}


def test_each_player_moves_alone_and_the_first_before_the_second() -> None:
    class Watched(CycleGAN):
        def terms(self, player: str):
            moving.append(player)
            needs = {name: {p.requires_grad for p in module.parameters()} for name, module in self.players().items()}
            assert needs == {name: {name == player} for name in needs}
            return super().terms(player)

    moving: list[str] = []
    made = Watched(Apart(), SMALL, generator(), generator())
    before = copy.deepcopy({name: module.state_dict() for name, module in made.players().items()})
    train(made, TrainSettings(2, 1e-2, 0, warmup_steps=0), MemoryCheckpoints(), silent)
    assert moving == ["generators", "discriminators"] * 2
    for name, module in made.players().items():
        changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[name][key])}
        assert {key.partition(".")[0] for key in changed} == {key.partition(".")[0] for key in before[name]}


def test_a_pool_shows_earlier_pictures_in_half_of_the_cases() -> None:
    pool = PicturePool(2, 1)
    images = torch.linspace(-1.0, 1.0, 256)[[0, 50, 100, 150, 200]].view(5, 1, 1, 1).expand(5, 3, 1, 1)
    shown = pool.exchange(images, torch.tensor([[0.1, 0.9], [0.1, 0.9], [0.1, 0.9], [0.7, 0.0], [0.4, 0.9]]))
    order = [0, 1, 1, 3, 2]  # the third takes the place of the second, the fourth is shown itself and not kept, the fifth finds the third
    assert torch.allclose(shown, images[order], atol=1e-6)
    assert pool.pictures[:, 0, 0, 0].tolist() == [0, 200]
    assert torch.equal(PicturePool(0, 1).exchange(images, torch.zeros(5, 2)), images)


def trained(store: MemoryCheckpoints, steps: int = 7) -> tuple[CycleGAN, TrainResult]:
    torch.manual_seed(0)
    made = CycleGAN(Apart(), SMALL, generator(), generator())
    settings = TrainSettings(steps, 1e-2, 3, warmup_steps=2, checkpoint_every_s=0.0)
    return made, train(made, settings, store, silent)


@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_killed_training_takes_the_same_steps(killed_after: int) -> None:
    _, undisturbed = trained(MemoryCheckpoints())
    store = MemoryCheckpoints(kill_after=killed_after)
    with pytest.raises(KeyboardInterrupt):
        trained(store)
    store.kill_after = None
    _, resumed = trained(store)
    for player, state in undisturbed.averaged.items():
        assert all(torch.equal(value, resumed.averaged[player][name]) for name, value in state.items()), player
    assert resumed.curve == undisturbed.curve
    pool = undisturbed.averaged["discriminators"]["pool_a.pictures"]
    assert int(undisturbed.averaged["discriminators"]["pool_a.filled"]) == SMALL.pool
    assert bool((pool.float().std((1, 2, 3)) > 0).all())
