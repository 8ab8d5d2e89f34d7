"""Memory layout, precision and frozen layers in training: `python -m tests.performance.training_step`

Each row compares a step of CAM's training as Seedbed does it here with the other choice. Images are noise, at
ImageNet's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch

from seedbed.benchmark.training.precision import fastest, training_layout
from seedbed.methods.cam import CamNetwork, multi_label_soft_margin
from tests.helpers.measurement import Row, least_seconds, print_table

BATCH, SIDE, CLASSES = 4, 224, 20
LAYOUTS = {torch.contiguous_format: "channels first", torch.channels_last: "channels last"}
BACKBONES = ("squeezenet", "resnet18", "resnet50", "vgg16", "efficientnet_lite0")
FROZEN = ("vgg16", "resnet50")


def step(
    backbone: str,
    layout: torch.memory_format = torch.contiguous_format,
    precision: str = "fp32",
    frozen: bool = True,
) -> Callable[[], None]:
    """Return a function that runs forward and backward pass and the optimiser's step."""
    torch.manual_seed(0)
    network = CamNetwork(backbone, CLASSES, 16, 0.0, pretrained=True).train()
    for layers in network.backbone.early if frozen else ():
        layers.requires_grad_(False)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    images = (255 * torch.rand(BATCH, 3, SIDE, SIDE)).contiguous(memory_format=layout)
    tags = torch.zeros(BATCH, CLASSES)
    context = partial(torch.autocast, "cpu", torch.bfloat16) if precision == "bf16" else nullcontext

    def run() -> None:
        with context():
            loss = multi_label_soft_margin(network(images), tags)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return run


def rows() -> Iterator[Row]:
    """Measure what is chosen for a CPU against float32 with channels first, and frozen early layers."""
    for backbone in BACKBONES:
        precision = fastest("cpu")
        layout = training_layout(CamNetwork(backbone, CLASSES, 16, 0.0, pretrained=True), "cpu", precision)
        tasks = {"chosen": step(backbone, layout, precision), "plain": step(backbone)}
        least = least_seconds(tasks)
        what = f"Training step, {backbone}, {precision} and {LAYOUTS[layout]} (auto)"
        yield Row(what, "s", least["chosen"], "fp32 and channels first", least["plain"])
    for backbone in FROZEN:
        least = least_seconds({"frozen": step(backbone), "trained": step(backbone, frozen=False)})
        what = f"Training step, {backbone}, early layers frozen"
        yield Row(what, "s", least["frozen"], "all layers trained", least["trained"])


if __name__ == "__main__":
    print_table({"training_step": rows})
