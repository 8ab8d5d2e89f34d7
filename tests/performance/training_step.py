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
FROZEN = ("vgg16", "resnet50")


def step(
    backbone: str,
    layout: torch.memory_format = torch.contiguous_format,
    precision: str = "fp32",
    frozen: bool = True,
    side: int = SIDE,
) -> Callable[[], None]:
    """Return a function that runs forward and backward pass and the optimiser's step."""
    torch.manual_seed(0)
    network = CamNetwork(backbone, CLASSES, 16, 0.0, pretrained=True).train()
    for layers in network.backbone.early if frozen else ():
        layers.requires_grad_(False)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    images = (255 * torch.rand(BATCH, 3, side, side)).contiguous(memory_format=layout)
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
    """Measure the choices for a CPU."""
    chosen = training_layout("cpu", "fp32")
    (other,) = LAYOUTS.keys() - {chosen}
    for backbone in ("squeezenet", "resnet50", "vgg16"):
        least = least_seconds({name: step(backbone, layout) for layout, name in LAYOUTS.items()})
        what = f"Training step, {backbone}, fp32, {LAYOUTS[chosen]}"
        yield Row(what, "s", least[LAYOUTS[chosen]], LAYOUTS[other], least[LAYOUTS[other]])
    for backbone in FROZEN:
        least = least_seconds({"frozen": step(backbone), "trained": step(backbone, frozen=False)})
        what = f"Training step, {backbone}, early layers frozen"
        yield Row(what, "s", least["frozen"], "all layers trained", least["trained"])
    auto = fastest("cpu")
    (slower,) = {"fp32", "bf16"} - {auto}
    precisions = {
        name: step("squeezenet", training_layout("cpu", name), name, side=96) for name in ("fp32", "bf16")
    }
    least = least_seconds(precisions)
    yield Row(f"Training step, squeezenet, 96 pixels, {auto} (auto)", "s", least[auto], slower, least[slower])


if __name__ == "__main__":
    print_table({"training_step": rows})
