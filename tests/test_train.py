"""The training loop: exact resumption, averaging, divergence."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from conftest import MemoryCheckpoints, silent
from torch import Tensor, nn

from mcompress.compress.train import Objective, TrainSettings, learning_rate_at, train
from mcompress.errors import TrainingDiverged


class Line(Objective):
    """Fits y = 3x; optionally returns NaN at one step, or drops half of its inputs."""

    def __init__(self, bad_step: int | None = None, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.network, self.bad_step, self.step = nn.Linear(1, 1), bad_step, -1
        self.dropout = nn.Dropout(dropout)

    def players(self) -> Mapping[str, nn.Module]:
        return {"line": self.network}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        self.step += 1
        self.x = torch.rand(8, 1, generator=generator)

    def terms(self, player: str) -> Mapping[str, Tensor]:
        loss = ((self.network(self.dropout(self.x)) - 3 * self.x) ** 2).mean()
        return {"mse": loss * float("nan") if self.step == self.bad_step else loss}


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{"steps": 40, "learning_rate": 0.05, "seed": 1, "checkpoint_every_s": 0.0, **changes})


def test_it_learns() -> None:
    line = Line()
    result = train(line, settings(steps=400), MemoryCheckpoints(), silent)
    assert line.network.weight.item() == pytest.approx(3.0, abs=0.05)
    assert result.curve[-1][1]["line/mse"] < 1e-3 < result.curve[0][1]["line/mse"]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("killed_after", [1, 7, 39])
def test_a_killed_run_continues_to_the_same_weights(killed_after: int, dropout: float) -> None:
    undisturbed = Line(dropout=dropout)
    train(undisturbed, settings(), MemoryCheckpoints(), silent)
    store = MemoryCheckpoints(kill_after=killed_after)
    with pytest.raises(KeyboardInterrupt):
        train(Line(dropout=dropout), settings(), store, silent)
    store.kill_after = None
    resumed = Line(dropout=dropout)
    resumed.step = killed_after - 1
    result = train(resumed, settings(), store, silent)
    assert torch.equal(resumed.network.weight, undisturbed.network.weight)
    assert torch.equal(resumed.network.bias, undisturbed.network.bias)
    assert len(result.curve) == 40


def test_training_leaves_the_global_random_state_as_it_was() -> None:
    line = Line(dropout=0.5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(line, settings(steps=2), MemoryCheckpoints(), silent)
    assert torch.equal(torch.rand(3), expected)


def test_nan_stops_names_the_place_and_keeps_the_checkpoint() -> None:
    store = MemoryCheckpoints()
    with pytest.raises(TrainingDiverged, match=r"training of the line diverged at step 12: loss term 'mse' is nan.*step 12 is kept"):
        train(Line(bad_step=12), settings(), store, silent)
    assert store.state["step"] == 12
    assert all(bool(torch.isfinite(v).all()) for v in store.state["players"]["line"].values())


def test_learning_rate_warms_up_and_ends_at_one_percent() -> None:
    s = settings(steps=100, warmup_steps=10)
    assert learning_rate_at(0, s) == pytest.approx(0.005)
    assert learning_rate_at(9, s) == pytest.approx(0.05)
    assert learning_rate_at(99, s) == pytest.approx(0.05 * 0.01, rel=0.1)
    rates = [learning_rate_at(i, s) for i in range(10, 100)]
    assert rates == sorted(rates, reverse=True)
