"""ResNet-38: shapes, a literal transcription of its forward pass, what is frozen; its weights from MXNet's file.

Networks are narrow, so that they are small and fast; the real one is built without memory ("meta").
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.pipeline.stage import Context
from seedbed.benchmark.training.mxnet_params import read_params
from seedbed.datasets.base import Split
from seedbed.methods.backbones.base import build_backbone, initialise
from seedbed.methods.backbones.resnet38 import ResNet38, from_mxnet, torch_name

NARROW = (4, 6, 8, 12, 16, 24, 32)
BLOCKS = {2: 3, 3: 3, 4: 6, 5: 3, 6: 1, 7: 1}


def narrow(seed: int) -> ResNet38:
    """Return a narrow network whose every tensor is random, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    network = ResNet38(8, NARROW).eval()
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            low, high = (0.5, 1.5) if "bn" in name and name.endswith(("weight", "var")) else (-0.3, 0.3)
            tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))
    return network


def transcribed(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return the features in float64, written out from the description of the network (docs/methods.md)."""
    state = {name: tensor.double() for name, tensor in state.items()}

    def conv(x: torch.Tensor, name: str, stride: int = 1, dilation: int = 1) -> torch.Tensor:
        kernel = state[f"{name}.weight"]
        padding = dilation if kernel.shape[-1] == 3 else 0
        return F.conv2d(x, kernel, None, stride, padding, dilation)

    def bn_relu(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, gamma, beta = (
            state[f"{name}.{t}"][:, None, None] for t in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.clamp((x - mean) / torch.sqrt(var + 1e-5) * gamma + beta, min=0)

    x = conv(images.double(), "conv1a")
    for number in (2, 3, 4, 5):
        for repeat in range(BLOCKS[number]):
            name = f"b{number}_{repeat}" if repeat else f"b{number}"
            stride = 2 if number < 5 and repeat == 0 else 1
            first = 2 if number == 5 and repeat > 0 else 1
            second = 2 if number == 5 else 1
            activated = bn_relu(x, f"{name}.bn_branch2a")
            y = conv(activated, f"{name}.conv_branch2a", stride, first)
            y = conv(bn_relu(y, f"{name}.bn_branch2b1"), f"{name}.conv_branch2b1", 1, second)
            x = y + (conv(activated, f"{name}.conv_branch1", stride) if repeat == 0 else x)
    for name in ("b6", "b7"):
        activated = bn_relu(x, f"{name}.bn_branch2a")
        y = conv(activated, f"{name}.conv_branch2a")
        y = conv(bn_relu(y, f"{name}.bn_branch2b1"), f"{name}.conv_branch2b1", 1, 4)
        y = conv(bn_relu(y, f"{name}.bn_branch2b2"), f"{name}.conv_branch2b2")
        x = y + conv(activated, f"{name}.conv_branch1")
    return bn_relu(x, "bn7")


def test_the_forward_pass_is_the_one_described():
    network, images = narrow(0).double(), 255 * torch.rand(2, 3, 67, 90, dtype=torch.float64)
    expected = transcribed(network.state_dict(), network.normalise(images))
    assert expected.shape == (2, 32, 9, 12)
    assert expected.std() > 0.1
    with torch.inference_mode():
        torch.testing.assert_close(network(images), expected)


def test_the_real_network_has_the_published_widths():
    with torch.device("meta"):
        state = ResNet38(8).state_dict()
    shapes = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["conv1a"] == (64, 3, 3, 3)
    assert shapes["b2.conv_branch1"] == (128, 64, 1, 1)
    assert shapes["b3_2.conv_branch2b1"] == (256, 256, 3, 3)
    assert shapes["b4_5.conv_branch2a"] == (512, 512, 3, 3)
    assert shapes["b5_1.conv_branch2a"] == (512, 1024, 3, 3)
    assert shapes["b6.conv_branch2b1"] == (1024, 512, 3, 3)
    assert shapes["b6.conv_branch2b2"] == (2048, 1024, 1, 1)
    assert shapes["b7.conv_branch2b1"] == (2048, 1024, 3, 3)
    assert shapes["b7.conv_branch1"] == (4096, 2048, 1, 1)
    assert shapes["bn7"] == (4096,)
    assert "b5_1.conv_branch1" not in shapes
    blocks = {name.partition(".")[0] for name in shapes} - {"conv1a", "bn7"}
    assert blocks == {f"b{n}_{i}" if i else f"b{n}" for n, count in BLOCKS.items() for i in range(count)}


@pytest.mark.parametrize("pretrained", [True, False])
def test_pretrained_batch_norm_keeps_statistics_scale_and_shift(pretrained):
    with torch.device("meta"):
        network = build_backbone("resnet38", 8, pretrained).train()
    norms = {name: p for name, p in network.named_parameters() if "bn" in name}
    rest = [p for name, p in network.named_parameters() if "bn" not in name]
    assert len(norms) == 2 * (2 * 15 + 3 * 2 + 1)
    assert all(p.requires_grad is not pretrained for p in norms.values())
    assert all(p.requires_grad for p in rest)
    modes = {m.training for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert modes == {not pretrained}


def test_channels_are_dropped_in_training_alone():
    network, images = narrow(0), 255 * torch.rand(1, 3, 32, 32)
    network.frozen_norm = True
    dropped = [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout2d)]
    assert dropped == [0.3, 0.5]
    with torch.inference_mode():
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))


# --- the published file ---


def mxnet_name(name: str) -> str:
    """Return what the published file calls a tensor of the network."""
    place, tensor = name.rsplit(".", 1)
    words = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    if tensor == "weight":
        words["weight"] = "gamma" if "bn" in place else "weight"
    prefix = "aux" if "running" in tensor else "arg"
    if found := re.fullmatch(r"b(\d)(_(\d))?\.(conv|bn)_(branch\w+)", place):
        number, _, repeat, kind, branch = found.groups()
        repeated = f"b{repeat}" if repeat else "a"
        place = f"{'res' if kind == 'conv' else 'bn'}{number}{repeated}_{branch}"
    return f"{prefix}:{place}_{words[tensor]}"


def array_bytes(array: np.ndarray, version: int) -> bytes:
    """Return an array as MXNet writes it; version 0 is that of 2016."""
    sizes = array.shape
    header = {
        0: struct.pack(f"<I{len(sizes)}I", len(sizes), *sizes),
        1: struct.pack(f"<Ii{len(sizes)}q", 0xF993FAC8, len(sizes), *sizes),
        2: struct.pack(f"<Iii{len(sizes)}q", 0xF993FAC9, 0, len(sizes), *sizes),
        3: struct.pack(f"<Iii{len(sizes)}q", 0xF993FACA, 0, len(sizes), *sizes),
    }[version]
    codes = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
    return header + struct.pack("<3i", 2, 0, codes[array.dtype.name]) + array.tobytes()


def write_params(path: Path, arrays: dict[str, np.ndarray], version: int = 0) -> Path:
    """Write an MXNet `.params` file."""
    content = struct.pack("<3Q", 0x112, 0, len(arrays))
    content += b"".join(array_bytes(array, version) for array in arrays.values())
    content += struct.pack("<Q", len(arrays))
    content += b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    path.write_bytes(content)
    return path


def published(network: ResNet38) -> dict[str, np.ndarray]:
    """Return the arrays of a network under their published names, with a classifier."""
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    arrays = {mxnet_name(name): tensor.numpy() for name, tensor in state.items()}
    linear = np.ones((1000, NARROW[-1]), np.float32)
    return arrays | {"arg:linear1000_weight": linear, "arg:linear1000_bias": linear[:, 0]}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("arg:conv1a_weight", "conv1a.weight"),
        ("arg:res2a_branch1_weight", "b2.conv_branch1.weight"),
        ("arg:res4b5_branch2b1_weight", "b4_5.conv_branch2b1.weight"),
        ("arg:bn2b1_branch2a_gamma", "b2_1.bn_branch2a.weight"),
        ("arg:bn6a_branch2b2_beta", "b6.bn_branch2b2.bias"),
        ("aux:bn7a_branch2b1_moving_var", "b7.bn_branch2b1.running_var"),
        ("aux:bn7_moving_mean", "bn7.running_mean"),
        ("arg:data", "arg:data"),
    ],
)
def test_the_names_of_the_published_file(theirs, ours):
    assert torch_name(theirs) == ours
    assert ours == theirs or mxnet_name(ours) == theirs


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_a_converted_file_gives_the_same_network(tmp_path, version):
    donor = narrow(1)
    params = write_params(tmp_path / "published.params", published(donor), version)
    out = tmp_path / "resnet38.pth"
    done = CliRunner().invoke(app, ["weights", "convert", str(params), "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"{43 + 4 * 37} tensors" in done.output, "43 convolutions, four tensors of each of 37 batch norms"
    network = narrow(2)
    context = Context(seed=0, split=Split.WEAK, scratch=tmp_path, weights_files={"sha256:x": out})
    initialise(network, "resnet38", "sha256:x", context)
    for name, tensor in donor.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    images = 255 * torch.rand(1, 3, 40, 48)
    with torch.inference_mode():
        assert torch.equal(network(images), donor(images))


def test_arrays_keep_type_shape_and_order_and_there_may_be_none(tmp_path):
    kinds = ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")
    arrays = {f"arg:{kind}": np.arange(6).reshape(1, 2, 3).astype(kind) for kind in kinds}
    for version in range(4):
        found = read_params(write_params(tmp_path / "a.params", arrays, version))
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    assert read_params(write_params(tmp_path / "none.params", {})) == {}
    scalar = read_params(write_params(tmp_path / "scalar.params", {"arg:s": np.array(7.0)}, 3))
    assert (scalar["arg:s"].shape, float(scalar["arg:s"])) == ((), 7.0)
    nothing = struct.pack("<3Q", 0x112, 0, 1) + struct.pack("<Iii", 0xF993FAC9, 0, 0)
    (tmp_path / "nothing.params").write_bytes(nothing + struct.pack("<QQ", 1, 5) + b"arg:n")
    assert read_params(tmp_path / "nothing.params")["arg:n"].size == 0


@pytest.mark.parametrize("version", [0, 2])
def test_a_file_cut_anywhere_is_refused_with_its_name(tmp_path, version):
    arrays = {"arg:a": np.ones((2, 3), np.float32), "aux:b": np.ones(4, np.float64)}
    whole = write_params(tmp_path / "whole.params", arrays, version).read_bytes()
    path = tmp_path / "cut.params"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.params: (broken or truncated|not an MXNet)"):
            read_params(path)


def test_a_foreign_or_broken_file_is_refused_with_its_name(tmp_path):
    path = write_params(tmp_path / "x.params", {"arg:a": np.ones(3, np.float32)})
    whole = path.read_bytes()
    faults = {
        b"PK\x03\x04" + bytes(60): "not an MXNet .params file",
        whole[:24] + struct.pack("<I", 77) + whole[28:]: "an array has 77 dimensions",
        whole[:24] + struct.pack("<Ii", 0xF993FAC9, 1) + whole[28:]: "sparse",
        whole[:24] + struct.pack("<Iiq", 0xF993FAC8, 1, -1) + whole[32:]: "broken or truncated",
        whole[:40] + struct.pack("<i", 99) + whole[44:]: "unknown type 99",
        whole[:56] + struct.pack("<Q", 0): "1 arrays have 0 names",
        whole[:16] + struct.pack("<Q", 1 << 60) + whole[24:]: "x.params: ",
    }
    for content, message in faults.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            read_params(path)
        assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=r"absent\.params: no such file"):
        read_params(tmp_path / "absent.params")


def test_missing_and_unknown_tensors_are_named():
    arrays = published(narrow(1))
    del arrays["aux:bn4b5_branch2a_moving_var"]
    with pytest.raises(ConfigError, match=r"f\.params: .*\(missing: b4_5\.bn_branch2a\.running_var\)"):
        from_mxnet(arrays, "f.params")
    arrays = {**published(narrow(1)), "arg:linear_score_weight": np.ones(2)}
    with pytest.raises(ConfigError, match=r"unknown: linear_score\.weight"):
        from_mxnet(arrays, "f.params")


def test_a_folder_that_is_not_there_is_said_before_the_file_is_read(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        CliRunner().invoke(
            app,
            ["weights", "convert", "x.params", "--out", str(tmp_path / "nowhere/o.pth")],
            catch_exceptions=False,
        )
