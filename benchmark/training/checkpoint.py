"""Trained networks on disk: `model.pt`, a plain state dict, and `model.json`, which describes how to build it.

A network that is saved needs `arguments`: the keyword arguments, plain JSON values, that build it again.
"""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seedbed.benchmark.errors import StoreError
from seedbed.benchmark.files import atomic
from seedbed.benchmark.pipeline.store import reading
from seedbed.benchmark.plugins import packages_of_plugins
from seedbed.benchmark.training.precision import INFERENCE_LAYOUT, to_device
from seedbed.benchmark.training.reproducibility import make_deterministic

MOVED = {
    "methods.cam": "seedbed.methods.cam",
    "methods.deeplab": "seedbed.methods.segmentation.deeplab",
    "methods.esol": "seedbed.methods.esol",
    "methods.icd": "seedbed.methods.icd",
    "methods.refine.irn_network": "seedbed.methods.refine.irn.network",
    "methods.refine.psa_network": "seedbed.methods.refine.psa.network",
    "methods.rrm_network": "seedbed.methods.rrm.network",
    "methods.sc_cam": "seedbed.methods.sc_cam",
    "methods.splitting_merging": "seedbed.methods.splitting_merging",
}
"""New modules of network classes, by the module that checkpoints of earlier versions name."""


def save_network(folder: Path, network: nn.Module) -> None:
    """Write `network` to `folder`, with its tensors on the CPU."""
    kind = type(network)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_tensors(folder / "model.pt", state)
    description = {"network": f"{kind.__module__}:{kind.__qualname__}", "arguments": network.arguments}
    (folder / "model.json").write_text(json.dumps(description, indent=1))


def load_network(folder: Path, device: str = "cpu") -> nn.Module:
    """Build the network that `folder` describes, in eval mode on `device`, in the layout of inference.

    Raises StoreError if a file is damaged or names a module outside `seedbed.methods` and the plug-ins.
    """
    make_deterministic()
    with reading(folder / "model.json") as path:
        description = json.loads(path.read_text("utf-8"))
        module, _, name = description["network"].partition(":")
        arguments = dict(description["arguments"])
    module = MOVED.get(module, module)
    if not module.startswith("seedbed.methods.") and module.partition(".")[0] not in packages_of_plugins():
        raise StoreError(
            f"{folder / 'model.json'}: {module!r} is not a module of `seedbed.methods` or of a plug-in"
        )
    network: nn.Module = getattr(importlib.import_module(module), name)(**arguments)
    with reading(folder / "model.pt") as path:
        network.load_state_dict(load_tensors(path))
    return to_device(network, device, INFERENCE_LAYOUT).eval()


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a (nested) dictionary of tensors and plain values by one rename."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path, flush=False) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> dict[str, Any]:
    """Read what `save_tensors` wrote, or any state dict. No code in the file is run."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
