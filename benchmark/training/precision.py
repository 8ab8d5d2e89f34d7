"""The precision of networks: float32, or bfloat16 by autocast, which is faster on devices built for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from seedbed.benchmark.pipeline.stage import Context, Precision

CPU_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
"""Instructions for bfloat16. A CPU without them emulates it, and a training step takes 8 to 14 times longer."""


def fastest(device: str) -> Precision:
    """Return the precision that `auto` stands for: bf16 on a device with instructions for it, else fp32.

    It depends only on the type of the machine, so that the same machines choose the same.
    """
    if torch.device(device).type == "cuda":
        # From compute capability 8.0 (Ampere) on.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if any(torch.cpu.get_capabilities().get(name) for name in CPU_INSTRUCTIONS) else "fp32"


def chosen(precision: Literal["fp32", "bf16", "auto"], device: str) -> Precision:
    """Return the option `--precision` with `auto` replaced by what it stands for on a device."""
    return fastest(device) if precision == "auto" else precision


def autocast(ctx: Context) -> torch.autocast:
    """Return the context of a forward pass. Weights, gradients of weights and losses stay float32."""
    return torch.autocast(torch.device(ctx.device).type, torch.bfloat16, enabled=ctx.precision == "bf16")


INFERENCE_LAYOUT = torch.channels_last
"""The layout of images and networks in inference, which is faster with it in every precision on every device."""


def training_layout(network: nn.Module, device: str, precision: Precision) -> torch.memory_format:
    """Return the layout of images and a network in training: channels last where a step is faster with it.

    In float32 on a CPU it is so only with depthwise convolutions: a step took 0.81 (EfficientNet-Lite0), 1.1
    (ResNets), 1.5 (VGG-16) and 0.85 (SqueezeNet) of its time.
    """
    slower = (device, precision) == ("cpu", "fp32") and not has_depthwise(network)
    return torch.contiguous_format if slower else torch.channels_last


def has_depthwise(network: nn.Module) -> bool:
    """Return whether a network has convolutions that filter each channel by itself."""
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return any(layer.groups == layer.in_channels > 1 for layer in layers)


def to_device(network: nn.Module, device: str, layout: torch.memory_format) -> nn.Module:
    """Move a network to a device, in a memory layout."""
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
