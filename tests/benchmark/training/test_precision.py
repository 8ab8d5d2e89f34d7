"""The precision of networks: what `auto` stands for, and what runs in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from seedbed.benchmark.pipeline.stage import Context, Kind, Precision, Stage
from seedbed.benchmark.training.precision import autocast, chosen, fastest, has_depthwise, training_layout
from seedbed.datasets.base import Split


def context(precision: Precision, device: str = "cpu") -> Context:
    return Context(0, Split.WEAK, Path(), precision, device=device)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": False}, "fp32"),
    ],
)
def test_auto_is_bf16_on_a_cpu_that_computes_bfloat16_itself(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fastest("cpu") == chosen("auto", "cpu") == expected
    assert [chosen(given, "cpu") for given in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_on_a_gpu_that_computes_bfloat16_itself(supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert fastest("cuda:1") == expected


def test_convolutions_run_in_the_precision_of_the_context():
    layer, image = nn.Conv2d(3, 2, 3), torch.randn(1, 3, 8, 8)
    with autocast(context("fp32")):
        exact = layer(image)
    with autocast(context("bf16")):
        rounded = layer(image)
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    # Eight bits of mantissa: relative errors of about 2^-8.
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.03)
    assert not torch.equal(rounded.float(), exact)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_training_is_channels_last_where_that_is_faster(device, precision, groups):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=groups))
    assert has_depthwise(network) == (groups == 8)
    slower = device == "cpu" and precision == "fp32" and groups < 8
    expected = torch.contiguous_format if slower else torch.channels_last
    assert training_layout(network, device, precision) is expected


class Makes(Stage):
    version = 1
    produces = Kind.CHECKPOINT

    def run(self, data, inputs, out, ctx):
        raise NotImplementedError


class Reads(Makes):
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.SCORES


class Neither(Makes):
    consumes = (Kind.SCORES,)
    produces = Kind.MASKS


def test_the_precision_is_part_of_what_identifies_a_networks_result():
    """Results in float32 keep the keys that they had before there was a choice."""
    for stage, differs in ((Makes(), True), (Reads(), True), (Neither(), False)):
        plain = stage.identity(0, "digest", Split.TRAIN, {})
        assert stage.identity(0, "digest", Split.TRAIN, {}, "fp32") == plain
        assert (stage.identity(0, "digest", Split.TRAIN, {}, "bf16") != plain) is differs
        assert "precision" not in plain
