"""Who takes the constant: only what certainly stands right behind the first conv."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.plan import build_plan
from tests.support.memory import Memory, kernel


class Unordered(Memory):
    """Tensors sorted by name, as safetensors files keep them."""

    ordered = False
    torch = True

    def __init__(self, groups: Any) -> None:
        super().__init__({group: dict(sorted(named.items())) for group, named in groups.items()})


def conv(name: str, filters: int = 8, channels: int = 3, window: int = 3) -> dict[str, np.ndarray]:
    return {f"{name}.weight": kernel(filters, channels, window, window)}


def norm(name: str, width: int = 8) -> dict[str, np.ndarray]:
    return {f"{name}.{end}": kernel(width) ** 2 for end in ("weight", "bias", "running_mean", "running_var")}


BODY = {**conv("layer1.0.conv1", 8, 8), **norm("layer1.0.bn1"), **conv("layer2.0.conv1", 16, 8), **norm("layer2.0.bn1", 16)}
BLOCKS = {**norm("layer1.0.bn1"), **conv("layer1.0.conv1", 8, 8), **norm("layer2.0.bn1"), **conv("layer2.0.conv1", 8, 8)}
HEAD = {"fc.weight": kernel(5, 16)}

TAKEN = {
    "conv1, bn1": ({**conv("conv1"), **norm("bn1"), **BODY, **HEAD}, "bn1"),
    "conv_stem, bn1": ({**conv("conv_stem"), **norm("bn1"), **BODY, **conv("conv_head", 8, 16), **norm("bn2")}, "bn1"),
    "_conv_stem, _bn0": (
        {**conv("_conv_stem"), **norm("_bn0"), **BODY, **conv("_conv_head", 32, 16), **norm("_bn1", 32)},
        "_bn0",
    ),
    "0, 1": ({**conv("features.0"), **norm("features.1"), **conv("features.3", 8, 8), **norm("features.4")}, "features.1"),
    "0.0, 0.1": ({**conv("features.0.0"), **norm("features.0.1"), **conv("features.1.0", 8, 8)}, "features.0.1"),
    "alone": (
        {**conv("embedder.convolution"), **norm("embedder.normalization"), **BODY, **norm("normalization")},
        "embedder.normalization",
    ),
    "c1, b1": ({**conv("c1"), **norm("b1"), **BODY, **HEAD}, "b1"),
    "a norm inside": (
        {**conv("backbone.stem.conv1"), **norm("backbone.stem.conv1.norm"), **BODY, **HEAD},
        "backbone.stem.conv1.norm",
    ),
    "a norm inside, numbered": ({**conv("net.0"), **norm("net.0.bn"), **conv("net.2", 16, 8), **norm("net.3", 16)}, "net.0.bn"),
    "in a module of its own": ({**conv("stem.conv1"), **norm("stem.bn1.bn"), **BODY, **HEAD}, "stem.bn1.bn"),
    "each in a module of its own": ({**conv("stem.conv1.conv"), **norm("stem.bn1.bn"), **BODY, **HEAD}, "stem.bn1.bn"),
    "conv0, norm0": ({**conv("features.conv0"), **norm("features.norm0"), **BODY, **norm("features.norm5")}, "features.norm0"),
}
REFUSED = {
    "0, 2: what is between?": {**conv("features.0"), **norm("features.2"), **conv("features.3", 8, 8)},
    "pre-activation": {**conv("conv1"), **BLOCKS, **norm("bn"), **HEAD},
    "pre-activation, in a module": {**conv("net.stem"), **{f"net.{k}": v for k, v in BLOCKS.items()}, **norm("net.norm"), **HEAD},
    "the last norm": {**conv("stem", window=4), **conv("blocks.0.conv", 8, 8), **norm("norm"), **HEAD},
    "a norm of the next block": {**conv("net.0.conv"), **norm("net.1.bn"), **conv("net.1.conv", 8, 8), **norm("net.2.bn")},
    "a norm alone in the next block": {**conv("net.0.conv"), **norm("net.1.bn"), **conv("net.2.conv", 8, 8)},
    "a norm inside of another width": {**conv("stem.conv1"), **norm("stem.conv1.norm", 16), **conv("conv2", 16, 8)},
    "another width": {**conv("conv1"), **norm("bn1", 16), **conv("conv2", 16, 8)},
    "another number": {**conv("conv1"), **norm("bn2"), **conv("conv2", 8, 8)},
    "LayerNorm": {**conv("stem", window=4), "norm.weight": kernel(8), "norm.bias": kernel(8), **conv("conv2", 8, 8), **HEAD},
}


@pytest.mark.parametrize("kind", [Memory, Unordered])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("named", "module"), TAKEN.values(), ids=TAKEN)
def test_taken(named: dict[str, np.ndarray], module: str, bias: bool, kind: type[Memory]):
    stem = next(iter(named))
    if bias:
        named = {stem: named[stem], stem.replace("weight", "bias"): kernel(8), **named}
    plan = build_plan(kind({"": named}), build_options(1, norm="imagenet", layers=[stem]))
    taker = stem.replace("weight", "bias") if bias else f"{module}.running_mean"
    assert set(plan.edits.tensors) == {stem, taker}
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    constant = (named[stem].astype("f8") * (mean.mean() - mean) / std).sum(axis=(1, 2, 3))
    change = plan.edits.tensors[taker].values().astype("f8") - named[taker]
    assert np.allclose(change, constant if bias else -constant, atol=1e-6)


@pytest.mark.parametrize("kind", [Memory, Unordered])
@pytest.mark.parametrize("named", REFUSED.values(), ids=REFUSED)
def test_refused(named: dict[str, np.ndarray], kind: type[Memory]):
    with pytest.raises(UnsupportedError, match="has no bias, and no BatchNorm is known to follow it"):
        build_plan(kind({"": named}), build_options(1, norm="imagenet", layers=[next(iter(named))]))


@pytest.mark.parametrize("kind", [Memory, Unordered])
def test_every_copy_has_its_own(kind: type[Memory]):
    model = TAKEN["conv1, bn1"][0]
    for groups in ({"": {**model, **{f"ema.{k}": v for k, v in model.items()}}}, {"model": model, "ema": model}):
        plan = build_plan(kind(groups), build_options(1, norm="imagenet"))
        ends = {name.replace("/", ".").removeprefix("model.").removeprefix("ema.") for name in plan.edits.tensors}
        assert len(plan.edits.tensors) == 4
        assert ends == {"conv1.weight", "bn1.running_mean"}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_running_mean_is_rounded_once(dtype: type):
    named = {k: v.astype(dtype) for k, v in TAKEN["conv1, bn1"][0].items()}
    plan = build_plan(Memory({"": named}), build_options(1, norm="imagenet"))
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    constant = (named["conv1.weight"].astype("f8") * (mean.mean() - mean) / std).sum(axis=(1, 2, 3))
    found = plan.edits.tensors["bn1.running_mean"].values()
    assert found.dtype == dtype
    assert np.allclose(found.astype("f8"), named["bn1.running_mean"] - constant, rtol=float(np.finfo(dtype).eps), atol=1e-12)


def test_a_kernel_without_a_module():
    named = {"kernel": kernel(8, 3, 3, 3), "bias": kernel(8), **norm("bn")}
    with pytest.raises(UnsupportedError, match="has no bias"):
        build_plan(Memory({"": named}), build_options(1, norm="imagenet", layers=["kernel"]))
