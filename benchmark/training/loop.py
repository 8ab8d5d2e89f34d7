"""The training loop of all methods: schedule, mixed precision, checkpoints, resume, progress."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from seedbed.benchmark.errors import NonFiniteLossError
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Stage
from seedbed.benchmark.progress import progress_bar
from seedbed.benchmark.training.checkpoint import load_tensors, save_tensors
from seedbed.benchmark.training.precision import autocast, to_device, training_layout
from seedbed.benchmark.training.reproducibility import derive_seed, make_deterministic

Batch = Mapping[str, Tensor]
Losses = Callable[[Batch, float], Mapping[str, Tensor]]
"""Maps a batch and the time in epochs (fractional) to named scalar losses, whose sum is minimised."""

REPORT_FILE = "training.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingStage(Stage):
    """The hyper-parameters of every training stage. Subclasses set their own defaults."""

    epochs: int = hp(15, low=1, high=10_000, source="PSA code")
    batch: int = hp(16, low=1, high=4096, source="PSA code")
    measured: ClassVar[tuple[str, ...]] = ()
    """Names of losses that are recorded but not minimised."""

    optimiser: Literal["sgd", "adam", "adamw"] = hp("sgd", source="PSA code")
    lr: float = hp(0.1, FloatDistribution(1e-5, 1.0, log=True), low=0, high=100, source="PSA code")
    momentum: float = hp(0.0, low=0, high=0.9999, source="docs/methods.md, CAM: the momentum trap (A1)")
    weight_decay: float = hp(5e-4, FloatDistribution(1e-6, 1e-2, log=True), low=0, high=1, source="PSA code")
    power: float = hp(0.9, low=0, high=10, source="PSA code: lr · (1 − step/steps)^power")
    decay_every: Literal["step", "epoch"] = hp("step", source="PSA code; ICD lowers the rate once an epoch")
    head_multiplier: float = hp(10.0, low=0, high=1000, source="PSA code: new layers learn ten times faster")
    biases: Literal["as_weights", "no_decay", "psa"] = hp(
        "as_weights", source="PSA code: 2 × lr, no weight decay; ICD code: no weight decay"
    )

    @property
    def stop_after(self) -> int:
        """Number of epochs to run; the learning rate falls as if there were `epochs`."""
        return self.epochs

    def totals(self, history: Sequence[Mapping[str, float]]) -> list[float]:
        """Return the minimised sum of each epoch, from the mean losses by epoch."""
        return [sum(v for name, v in epoch.items() if name not in self.measured) for epoch in history]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    multiplier: float = 1.0
    decay: bool = True


def parameter_groups(
    pretrained: nn.Module, new: Iterable[nn.Module], settings: TrainingStage
) -> list[ParameterGroup]:
    """Return the groups of pretrained and of new layers, without frozen parameters.

    `new` layers may be part of `pretrained`. With `biases="no_decay"` biases have no weight decay; with `"psa"`
    they also have twice the learning rate of their layer.
    """
    groups = []
    added = [p for m in new for p in m.named_parameters()]
    taken = {id(p) for _, p in added}
    old = [p for p in pretrained.named_parameters() if id(p[1]) not in taken]
    for parameters, multiplier in ((old, 1.0), (added, settings.head_multiplier)):
        named = [p for p in parameters if p[1].requires_grad]
        if settings.biases == "as_weights":
            groups.append(ParameterGroup([p for _, p in named], multiplier))
        else:
            weights = [p for name, p in named if not name.endswith("bias")]
            biases = [p for name, p in named if name.endswith("bias")]
            faster = 2 if settings.biases == "psa" else 1
            groups += [
                ParameterGroup(weights, multiplier),
                ParameterGroup(biases, faster * multiplier, decay=False),
            ]
    return [group for group in groups if group.parameters]


def fit(
    network: nn.Module,
    losses: Losses,
    examples: torch.utils.data.Dataset[Any],
    groups: Sequence[ParameterGroup],
    settings: TrainingStage,
    out: Path,
    ctx: Context,
) -> None:
    """Train `network` in place; afterwards it is in eval mode on `ctx.device`.

    After each epoch the state of network, optimiser and random number generators is saved to `ctx.scratch`. A call
    that finds such a state continues from it to the same weights, bit for bit. The last batch of an epoch is
    dropped if it is not full.

    Args:
        network: The network.
        losses: Maps a batch and the time in epochs to named scalar losses, whose sum is minimised.
        examples: The training examples, indexed by (epoch, index) (augmentation.py: Examples).
        groups: The parameters to train, with their learning rates (`parameter_groups`).
        settings: The stage.
        out: Gets `training.json`: the optimiser's groups and, per epoch, the mean of each loss and measured value.
        ctx: How to run. `ctx.on_epoch` is called after each epoch and can raise.

    Raises:
        NonFiniteLossError: A loss is NaN or infinite; epoch, step and loss are named.
    """
    make_deterministic()
    torch.manual_seed(derive_seed(ctx.seed, type(settings).__name__, "training"))
    layout = training_layout(network, ctx.device, ctx.precision)
    to_device(network, ctx.device, layout)
    optimiser = _optimiser(groups, settings)
    rates = [group["lr"] for group in optimiser.param_groups]
    sampler = EpochSampler(len(examples), settings.batch, ctx.seed)  # type: ignore[arg-type]
    steps = len(sampler)
    total = steps * settings.epochs  # of the schedule, which a training that stops before its end has too
    checkpoint = ctx.scratch / "training.pt"
    history, first = _resume(checkpoint, network, optimiser, ctx)
    loader = torch.utils.data.DataLoader(
        examples,
        batch_sampler=sampler,
        num_workers=ctx.workers,
        pin_memory=ctx.device != "cpu",
        persistent_workers=ctx.workers > 0,
    )
    name = type(settings).__name__
    with progress_bar(name, steps * settings.stop_after) as bar:
        bar.start_at(first * steps)
        if history:
            ctx.on_epoch(name, history)
        for epoch in range(first, settings.stop_after):
            network.train()
            sampler.epoch = epoch
            meter = _Meter(name, epoch, settings.batch, every=1 if ctx.device == "cpu" else 20)
            for step, batch in enumerate(loader):
                done = epoch * steps + step
                decayed = done if settings.decay_every == "step" else epoch * steps
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - decayed / total) ** settings.power
                moved = _moved(batch, ctx.device, layout)
                with autocast(ctx):
                    named = losses(moved, epoch + step / steps)
                minimised = [value.float() for name, value in named.items() if name not in settings.measured]
                loss = torch.stack(minimised).sum()
                meter.add(named, loss)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                bar.show(done + 1, meter.note)
            history.append(meter.means())
            save_tensors(checkpoint, _state(epoch + 1, network, optimiser, history, ctx.device))
            ctx.on_epoch(name, history)
    report = {"groups": _describe(optimiser, rates), "history": history}
    (out / REPORT_FILE).write_text(json.dumps(report, indent=1))
    network.eval()


class EpochSampler(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in an order that depends only on the seed and the epoch."""

    def __init__(self, length: int, batch: int, seed: int) -> None:
        self.length, self.batch, self.seed = length, min(batch, length), seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        for start in range(0, len(self) * self.batch, self.batch):
            yield [(self.epoch, index) for index in order[start : start + self.batch]]


class _Meter:
    """Sums the losses of an epoch; reads them, which waits for the GPU, only every `every` steps."""

    def __init__(self, name: str, epoch: int, batch: int, every: int) -> None:
        self.name, self.epoch, self.batch, self.every = name, epoch, batch, every
        self.steps, self.note = 0, ""
        self._names: list[str] = []
        self._sum: Tensor | None = None
        self._start = time.monotonic()

    def add(self, named: Mapping[str, Tensor], loss: Tensor) -> None:
        self._names = list(named)
        values = torch.stack([value.detach().double() for value in named.values()])
        self._sum = values if self._sum is None else self._sum + values
        self.steps += 1
        if self.steps % self.every == 0:
            self._check()
            rate = self.steps * self.batch / (time.monotonic() - self._start)
            self.note = f"epoch {self.epoch + 1}  loss {float(loss.detach()):.4f}  {rate:.1f} images/s"

    def means(self) -> dict[str, float]:
        if self._sum is None:
            return {}
        self._check()
        return dict(zip(self._names, (self._sum / self.steps).tolist(), strict=True))

    def _check(self) -> None:
        # A NaN stays in the running sum, so an occasional check finds it.
        assert self._sum is not None
        for loss, value in zip(self._names, self._sum.tolist(), strict=True):
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"{self.name}: the loss {loss!r} is {value} in epoch {self.epoch + 1}, "
                    f"step {self.steps}; try a lower learning rate, for example --set {self.name}.lr=…"
                )


def _moved(batch: Mapping[str, Tensor], device: str, layout: torch.memory_format) -> dict[str, Tensor]:
    """Return a batch on a device, images in a memory format."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return {
        name: value.contiguous(memory_format=layout) if value.dim() == 4 else value
        for name, value in moved.items()
    }


def _optimiser(groups: Sequence[ParameterGroup], settings: TrainingStage) -> torch.optim.Optimizer:
    described = [
        {
            "params": list(group.parameters),
            "lr": settings.lr * group.multiplier,
            "weight_decay": settings.weight_decay if group.decay else 0.0,
        }
        for group in groups
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(described, lr=settings.lr, momentum=settings.momentum)
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(described, lr=settings.lr)


def _describe(optimiser: torch.optim.Optimizer, rates: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "optimiser": type(optimiser).__name__,
            "lr": rate,
            "momentum": group.get("momentum", group.get("betas", (0.0,))[0]),
            "weight_decay": group["weight_decay"],
            "parameters": sum(p.numel() for p in group["params"]),
        }
        for group, rate in zip(optimiser.param_groups, rates, strict=True)
    ]


def _state(
    epoch: int, network: nn.Module, optimiser: torch.optim.Optimizer, history: list[dict[str, float]], device: str
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "random_gpu": [torch.cuda.get_rng_state(device)] if device != "cpu" else [],
        "history": history,
    }


def _resume(
    checkpoint: Path, network: nn.Module, optimiser: torch.optim.Optimizer, ctx: Context
) -> tuple[list[dict[str, float]], int]:
    """Restore what `_state` saved; a file that cannot be read, or is of another network, is removed."""
    if not checkpoint.exists():
        return [], 0
    fresh = copy.deepcopy({"network": network.state_dict(), "optimiser": optimiser.state_dict()})
    random = torch.get_rng_state()
    try:
        state = load_tensors(checkpoint)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        _restore_gpu(state["random_gpu"], ctx.device)
        return list(state["history"]), int(state["epoch"])
    except OSError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        logger.warning(f"{checkpoint}: damaged ({reason}); it is dropped, and the training starts anew")
        checkpoint.unlink(missing_ok=True)
        network.load_state_dict(fresh["network"])
        optimiser.load_state_dict(fresh["optimiser"])
        torch.set_rng_state(random)
        return [], 0


def _restore_gpu(states: Sequence[Tensor], device: str) -> None:
    """Set the random state of the GPU in use; older checkpoints have one state per GPU that was in sight."""
    if device == "cpu" or not states:
        return
    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    torch.cuda.set_rng_state(states[index] if index < len(states) else states[0], device)
