"""Checkpoints: what is saved is loaded again, also under the module names of earlier versions."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from seedbed.benchmark.errors import StoreError
from seedbed.benchmark.training.checkpoint import MOVED, load_network, save_network
from seedbed.methods.cam import CamNetwork

SAVED = {
    "methods.cam": ["CamNetwork"],
    "methods.deeplab": ["DeepLab", "LargeFov"],
    "methods.esol": ["EsolNetwork"],
    "methods.icd": ["IcdNetwork"],
    "methods.refine.irn_network": ["EdgeNetwork"],
    "methods.refine.psa_network": ["AffinityNetwork"],
    "methods.rrm_network": ["RrmNetwork"],
    "methods.sc_cam": ["SubcategoryNetwork"],
    "methods.splitting_merging": ["SplittingMergingNetwork"],
}
"""The networks in checkpoints from before the packages were imported as `seedbed.…`."""


@pytest.fixture
def saved(tmp_path):
    """Return a folder with a saved network, and the network."""
    network = CamNetwork("tiny", 2, stride=8, dropout=0.0, pretrained=False)
    save_network(tmp_path, network)
    return tmp_path, network


def rename(folder, module):
    """Let a checkpoint name another module."""
    path = folder / "model.json"
    description = json.loads(path.read_text())
    class_name = description["network"].partition(":")[2]
    path.write_text(json.dumps(description | {"network": f"{module}:{class_name}"}))


def test_every_module_that_earlier_checkpoints_name_is_found():
    assert SAVED.keys() == MOVED.keys()
    for old, names in SAVED.items():
        module = importlib.import_module(MOVED[old])
        assert all(getattr(module, name).__module__ == MOVED[old] for name in names), old


def test_a_checkpoint_of_an_earlier_version_loads(saved):
    folder, network = saved
    rename(folder, "methods.cam")
    loaded = load_network(folder)
    assert type(loaded) is CamNetwork
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("module", ["os", "methods.mine", "seedbed.benchmark.pipeline.store"])
def test_a_checkpoint_that_names_other_code_is_refused(module, saved):
    folder, _ = saved
    rename(folder, module)
    with pytest.raises(StoreError, match=f"'{module}' is not a module of"):
        load_network(folder)
