"""The training loop: schedule, groups, resume to the same bits, and a clear stop where a loss is not finite."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from seedbed.benchmark.errors import NonFiniteLossError
from seedbed.benchmark.pipeline.stage import Context, Kind
from seedbed.benchmark.training.loop import (
    EpochSampler,
    ParameterGroup,
    TrainingStage,
    fit,
    parameter_groups,
)
from seedbed.datasets.base import Split


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainToy(TrainingStage):
    version = 1
    produces = Kind.CHECKPOINT

    def run(self, data, inputs, out, ctx):
        raise AssertionError("never run")


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.head(self.body(images)).mean((2, 3))


class Examples(torch.utils.data.Dataset):
    """Twelve fixed images, with noise that depends on epoch and index."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, place):
        epoch, index = place
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        return {"image": torch.randn(3, 8, 8, generator=generator), "tags": torch.eye(2)[index % 2]}


def context(tmp_path: Path, seed: int = 0) -> Context:
    scratch = tmp_path / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return Context(seed=seed, split=Split.WEAK, scratch=scratch)


def train(tmp_path: Path, stage: TrainToy, *, stop_in_epoch: int | None = None, seed: int = 0) -> dict:
    torch.manual_seed(5)
    network = Toy()

    def losses(batch, epoch):
        if stop_in_epoch is not None and epoch >= stop_in_epoch + 0.5:
            raise KeyboardInterrupt
        logits = network(batch["image"])
        return {"bce": nn.functional.binary_cross_entropy_with_logits(logits, batch["tags"])}

    groups = parameter_groups(network.body, [network.head], stage)
    fit(network, losses, Examples(), groups, stage, tmp_path, context(tmp_path, seed))
    assert not network.training
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, optimiser):
    stage = TrainToy(epochs=4, batch=4, optimiser=optimiser, momentum=0.9, lr=0.05)
    whole = train(tmp_path / "whole", stage)
    torch.manual_seed(999)  # the interrupted run must not lean on the state of this process
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stage, stop_in_epoch=2)
    assert torch.load(tmp_path / "killed/scratch/training.pt", weights_only=True)["epoch"] == 2
    resumed = train(tmp_path / "killed", stage)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole/training.json").read_text() == (tmp_path / "killed/training.json").read_text()


def test_another_seed_gives_other_weights(tmp_path):
    stage = TrainToy(epochs=1, batch=4, lr=0.05)
    first, second = train(tmp_path / "a", stage, seed=0), train(tmp_path / "b", stage, seed=1)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_name(tmp_path):
    network = nn.Linear(1, 1)

    def losses(batch, epoch):
        value = network.weight.sum()
        return {"fine": value, "broken": value * (float("nan") if epoch > 1 else 1.0)}

    stage = TrainToy(epochs=3, batch=4, lr=0.01)
    with pytest.raises(NonFiniteLossError, match=r"TrainToy: the loss 'broken' is nan in epoch 2, step 2"):
        fit(
            network,
            losses,
            Examples(),
            [ParameterGroup(list(network.parameters()))],
            stage,
            tmp_path,
            context(tmp_path),
        )


def test_the_learning_rate_falls_as_a_polynomial_and_groups_have_their_multiplier(tmp_path):
    network = Toy()
    stage = TrainToy(epochs=2, batch=4, lr=0.4, power=0.9, head_multiplier=10, biases="psa", weight_decay=0.01)
    groups = parameter_groups(network.body, [network.head], stage)
    seen = []
    original = torch.optim.SGD.step

    def spy(self, *args, **kwargs):
        seen.append([group["lr"] for group in self.param_groups])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        fit(
            network,
            lambda batch, _: {"loss": network(batch["image"]).square().mean()},
            Examples(),
            groups,
            stage,
            tmp_path,
            context(tmp_path),
        )
    factors = [(1 - step / 6) ** 0.9 for step in range(6)]
    for rates, factor in zip(seen, factors, strict=True):
        assert rates == pytest.approx([0.4 * factor, 0.8 * factor, 4.0 * factor, 8.0 * factor])
    report = json.loads((tmp_path / "training.json").read_text())
    assert [group["momentum"] for group in report["groups"]] == [0.0] * 4
    assert [group["weight_decay"] for group in report["groups"]] == [0.01, 0.0, 0.01, 0.0]
    assert len(report["history"]) == 2


def test_the_psa_family_trains_without_momentum():
    """docs/methods.md, CAM, the momentum trap (A1): the default must stay 0."""
    assert TrainToy().momentum == 0.0


def test_frozen_parameters_are_in_no_group():
    network = Toy()
    network.body.requires_grad_(False)
    groups = parameter_groups(network.body, [network.head], TrainToy())
    assert [len(group.parameters) for group in groups] == [2]


def test_the_sampler_gives_each_image_once_an_epoch_in_an_order_of_the_seed():
    sampler = EpochSampler(10, 3, seed=4)
    first = list(sampler)
    assert [len(batch) for batch in first] == [3, 3, 3]
    assert len({index for batch in first for _, index in batch}) == 9
    assert first == list(EpochSampler(10, 3, seed=4))
    assert first != list(EpochSampler(10, 3, seed=5))
    sampler.epoch = 1
    assert [index for batch in sampler for _, index in batch] != [index for batch in first for _, index in batch]
    assert len(EpochSampler(2, 16, seed=0)) == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPart(TrainToy):
    """Stops before the end of its schedule, and watches a number that it does not minimise."""

    measured = ("watched",)

    @property
    def stop_after(self) -> int:
        return 2


TrainPart.__name__ = TrainToy.__name__  # Random numbers depend on the stage's name.


def history_of(tmp_path: Path, stage: TrainToy) -> tuple[list[dict[str, float]], list[float], dict]:
    torch.manual_seed(5)
    network = Toy()
    rates = []

    def losses(batch, _):
        value = nn.functional.binary_cross_entropy_with_logits(network(batch["image"]), batch["tags"])
        return {"bce": value, "watched": 100 * value.detach()} if stage.measured else {"bce": value}

    original = torch.optim.SGD.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        groups = parameter_groups(network.body, [network.head], stage)
        fit(network, losses, Examples(), groups, stage, tmp_path, context(tmp_path))
    return json.loads((tmp_path / "training.json").read_text())["history"], rates, network.state_dict()


def test_what_is_watched_is_recorded_and_changes_nothing(tmp_path):
    plain, _, weights = history_of(tmp_path / "a", TrainToy(epochs=2, batch=4, lr=0.05, power=0.0))
    stage = TrainPart(epochs=2, batch=4, lr=0.05, power=0.0)
    watched, _, same = history_of(tmp_path / "b", stage)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert [epoch["bce"] for epoch in watched] == [epoch["bce"] for epoch in plain]
    assert [epoch["watched"] for epoch in watched] == pytest.approx([100 * epoch["bce"] for epoch in plain])
    assert stage.totals(watched) == [epoch["bce"] for epoch in plain]


def test_a_training_that_stops_early_has_the_schedule_of_the_whole(tmp_path):
    whole, rates, _ = history_of(tmp_path / "a", TrainToy(epochs=4, batch=4, lr=0.05))
    part, rates_of_part, _ = history_of(tmp_path / "b", TrainPart(epochs=4, batch=4, lr=0.05))
    assert len(part) == 2
    assert rates_of_part == rates[:6]
    assert [epoch["bce"] for epoch in part] == [epoch["bce"] for epoch in whole[:2]]


def test_the_rate_can_fall_once_an_epoch(tmp_path):
    _, rates, _ = history_of(tmp_path, TrainToy(epochs=2, batch=4, lr=0.4, power=1.0, decay_every="epoch"))
    assert rates == pytest.approx([0.4] * 3 + [0.2] * 3)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "text": lambda path: path.write_text("lost"),
    "another network": lambda path: torch.save(
        {"network": {"w": torch.zeros(1)}, "optimiser": {}, "random": 0, "random_gpu": []}, path
    ),
    "keys are missing": lambda path: torch.save({}, path),
    "no table": lambda path: torch.save([1], path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_dropped_and_the_training_starts_anew(tmp_path, caplog, damage):
    stage = TrainToy(epochs=3, batch=4, lr=0.05, momentum=0.9)
    whole = train(tmp_path / "whole", stage)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stage, stop_in_epoch=2)
    checkpoint = tmp_path / "killed/scratch/training.pt"
    DAMAGES[damage](checkpoint)
    again = train(tmp_path / "killed", stage)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert warning.getMessage().startswith(f"{checkpoint}: damaged (")
    assert warning.getMessage().endswith("it is dropped, and the training starts anew")
    assert len(json.loads((tmp_path / "killed/training.json").read_text())["history"]) == 3


def test_a_checkpoint_made_with_more_gpus_in_sight_restores_the_state_of_the_one_in_use(monkeypatch):
    from seedbed.benchmark.training.loop import _restore_gpu

    restored: list[tuple[int, str]] = []
    states = [torch.tensor([n], dtype=torch.uint8) for n in range(3)]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((int(state), device)))
    _restore_gpu(states, "cuda")
    _restore_gpu(states, "cuda:2")
    _restore_gpu(states[:1], "cuda:2")  # One state is kept, of the device in use.
    _restore_gpu(states, "cpu")
    _restore_gpu([], "cuda")
    assert restored == [(0, "cuda"), (2, "cuda:2"), (0, "cuda:2")]
