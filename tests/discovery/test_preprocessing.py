"""Normalizations in front of a stem, in files without a graph: composed where their meaning and place are sure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv
from chkpt_channels.discovery.preprocessing import patch_norm
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.plan import Plan, build_plan
from tests.discovery.test_bias_target import Unordered
from tests.support.memory import Memory, kernel
from tests.transform.mixing.test_normalization import convolved

CHANCE = np.random.default_rng(3)
MEAN, STD = np.array([0.48, 0.45, 0.4]), np.array([0.22, 0.23, 0.25])
BODY = {"conv2.weight": kernel(8, 8, 3, 3), "fc.weight": kernel(5, 8)}
KINDS = pytest.mark.parametrize("kind", [Memory, Unordered])


def stem(name: str = "conv0", channels: int = 3, window: int = 3) -> dict[str, np.ndarray]:
    return {f"{name}.weight": CHANCE.normal(size=(8, channels, window, window)), f"{name}.bias": CHANCE.normal(size=8)}


def norm(name: str, width: int = 3) -> dict[str, np.ndarray]:
    return {f"{name}.{end}": CHANCE.random(width) + 0.2 for end in ("weight", "bias", "running_mean", "running_var")}


def pair(mean: str, std: str, *shape: int) -> dict[str, np.ndarray]:
    return {mean: MEAN.reshape(shape), std: STD.reshape(shape)}


def diagonal(name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": np.diag(1 / STD).reshape(3, 3, 1, 1), f"{name}.bias": -MEAN / STD}


def after(plan: Plan, named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**named, **{name: edit.values() for name, edit in plan.edits.tensors.items()}}


def seen(named: dict[str, np.ndarray], front: str, image: np.ndarray) -> np.ndarray:
    """The image behind the normalization of this name, as the network computes it."""
    get = {k.removeprefix(f"{front}."): v for k, v in named.items() if k.startswith(front) or not front}
    flat = {k: v.reshape(-1, 1, 1) for k, v in get.items() if v.ndim != 4 or v.shape[0] == 1}
    if "running_mean" in flat:
        scaled = (image - flat["running_mean"]) / np.sqrt(flat["running_var"] + 1e-5)
        return scaled * flat.get("weight", 1) + flat.get("bias", 0)
    if "bias" in get:
        return np.einsum("oi,iyx->oyx", get["weight"][..., 0, 0], image) + flat["bias"]
    mean = next(v for k, v in flat.items() if k.endswith(("mean", "shift")))
    std = next(v for k, v in flat.items() if k.endswith(("std", "scale")))
    return (image - mean) / std


CASES: dict[str, tuple[dict[str, np.ndarray], str, str]] = {
    "bn_data": ({**norm("bn_data"), **stem(), **BODY}, "bn_data", "conv0"),
    "bn_data without gamma": (
        {k: v for k, v in norm("bn_data").items() if k != "bn_data.weight"} | stem() | BODY,
        "bn_data",
        "conv0",
    ),
    "RADIO": (
        {**stem("model.patch_embed.proj"), "model.head.weight": kernel(5, 8)}
        | pair("input_conditioner.norm_mean", "input_conditioner.norm_std", 3, 1, 1),
        "input_conditioner",
        "model.patch_embed.proj",
    ),
    "LPIPS": (pair("scaling_layer.shift", "scaling_layer.scale", 1, 3, 1, 1) | stem() | BODY, "scaling_layer", "conv0"),
    "SAM": (pair("pixel_mean", "pixel_std", 3, 1, 1) | stem("stem.proj") | BODY, "pixel", "stem.proj"),
    "EDSR": (diagonal("sub_mean") | diagonal("add_mean") | stem("head.0") | BODY, "sub_mean", "head.0"),
    "numbered": ({**norm("0"), **stem("1"), "3.weight": kernel(8, 8, 3, 3)}, "0", "1"),
}


@KINDS
@pytest.mark.parametrize("to", [1, 2, 4, "bgr"])
@pytest.mark.parametrize("words", [{}, {"norm": "imagenet"}, {"norm": "clip", "input_range": 255}], ids=str)
@pytest.mark.parametrize(("named", "front", "first"), CASES.values(), ids=CASES)
def test_composed(named: Any, front: str, first: str, words: dict[str, Any], to: Any, kind: type[Memory]):
    asked = build_options(to, layers=[first], **words)
    plan = build_plan(kind({"": named}), asked)
    new = after(plan, named)
    matrix = np.array(asked.rule.mixing(3).matrix)
    raw = np.random.default_rng(1).random((matrix.shape[1], 6, 5))
    old_image, image = np.einsum("ij,jyx->iyx", matrix, raw), raw
    if words:
        mean, std = (np.reshape(v, (-1, 1, 1)) for v in asked.norm.old(3, "rgb")[:2])
        old_image = (old_image - mean) / std
        mean, std = (np.reshape(v, (-1, 1, 1)) for v in plan.pipeline[:2])
        image = plan.pipeline.input_range * (raw - mean) / std
    kernel_, bias = f"{first}.weight", f"{first}.bias"
    expected = convolved(named[kernel_], seen(named, front, old_image)) + named[bias].reshape(-1, 1, 1)
    found = convolved(new[kernel_], seen(new, front, image)) + new[bias].reshape(-1, 1, 1)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=0, atol=1e-11 * abs(expected).max())
    assert "front_composed" in {n.code for n in plan.notices}
    untouched = {k for k in named if not k.startswith((first, front))}
    assert not untouched & set(plan.edits.tensors)


def cellpose(between: int) -> dict[str, np.ndarray]:
    block = "downsample.down.res_down_0"
    return {
        **norm(f"{block}.conv.conv_0.0", 2), **stem(f"{block}.conv.conv_0.{between}", 2),
        **norm(f"{block}.proj.0", 2), **stem(f"{block}.proj.1", 2, 1), "output.2.weight": kernel(3, 8, 1, 1),
    }  # fmt: skip


@KINDS
def test_two_stems_each_with_its_own(kind: type[Memory]):
    named = cellpose(1)
    stems = [name.removesuffix(".weight") for name in named if name.endswith(".1.weight")]
    new = after(build_plan(kind({"": named}), build_options(1, layers=stems)), named)
    raw = np.random.default_rng(1).random((1, 6, 5))
    for first in stems:
        front = first.removesuffix("1") + "0"
        expected, found = (
            convolved(net[f"{first}.weight"], seen(net, front, image)) + net[f"{first}.bias"].reshape(-1, 1, 1)
            for net, image in ((named, raw.repeat(2, 0)), (new, raw))
        )
        assert np.allclose(found, expected, rtol=0, atol=1e-12)


FAR = "but not directly: the operation between them is unknown"
REFUSED: dict[str, tuple[dict[str, np.ndarray], str, str]] = {
    "a ReLU may stand between": (cellpose(2), "*.conv_0.2.weight *.proj.1.weight", FAR),
    "colors are mixed": (
        {"sub_mean.weight": kernel(3, 3, 1, 1), "sub_mean.bias": kernel(3), **stem(), **BODY},
        "conv0", "precedes the kernel and mixes",
    ),
    "a mean alone": ({"norm.mean": MEAN, **stem(), **BODY}, "conv0", "its operation is unknown"),
    "other words": ({"affine.scale": STD, "affine.shift": MEAN, **stem(), **BODY}, "conv0", "its operation is unknown"),
    "GroupNorm": ({"norm0.weight": STD, "norm0.bias": MEAN, **stem(), **BODY}, "conv0", "its operation is unknown"),
    "std of zero": ({"norm.mean": MEAN, "norm.std": np.array([1.0, 0, 1]), **stem(), **BODY}, "conv0", "holds a zero"),
    "gamma of zero": ({**norm("bn_data"), "bn_data.weight": np.array([1.0, 0, 1]), **stem(), **BODY}, "conv0", "by zero"),
    "NaN": ({"norm.mean": MEAN * np.nan, "norm.std": STD, **stem(), **BODY}, "conv0", "NaN or infinity"),
    "negative variance": ({**norm("bn_data"), "bn_data.running_var": -STD, **stem(), **BODY}, "conv0", "negative variance"),
    "two": ({**norm("bn_data"), **pair("pixel_mean", "pixel_std", 3), **stem(), **BODY}, "conv0", "in an unknown order"),
}  # fmt: skip


@KINDS
@pytest.mark.parametrize(("named", "first", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(named: Any, first: str, words: str, kind: type[Memory]):
    with pytest.raises(UnsupportedError, match=words):
        build_plan(kind({"": named}), build_options(1, layers=first.split())).edits.tensors[f"{first}.weight"].values()


BEHIND = {
    "scores of three classes": {**stem("conv1"), **BODY, "fc2.weight": kernel(3, 5), **norm("bn2")},
    "a conv to three": {**stem("conv1"), **BODY, "conv9.weight": kernel(3, 8, 3, 3), **norm("bn9")},
    "a stem of three": {"conv1.weight": kernel(3, 3, 7, 7), **norm("bn1"), "conv2.weight": kernel(64, 3, 3, 3)},
    "the target's": {**stem("conv1"), **BODY, **pair("target_mean", "target_std", 3)},
    "the decoder's": {**stem("encoder.conv1"), **BODY, **norm("decoder.bn")},
}


@pytest.mark.parametrize("named", BEHIND.values(), ids=BEHIND)
def test_what_stands_behind_is_left(named: dict[str, np.ndarray]):
    first = next(iter(named))
    plan = build_plan(Memory({"": named}), build_options(1, layers=[first]))
    assert set(plan.edits.tensors) == {first}


@pytest.mark.parametrize("named", BEHIND.values(), ids=BEHIND)
def test_names_say_what_stands_behind(named: dict[str, np.ndarray]):
    first = next(iter(named))
    plan = build_plan(Unordered({"": named}), build_options(1, layers=[first]))
    assert set(plan.edits.tensors) == {first}


def test_without_order_scores_and_colors_look_alike():
    named = {**stem("conv1"), **BODY, "fc2.weight": kernel(3, 5), **norm("last")}
    with pytest.raises(UnsupportedError, match="last: may precede the stem or follow fc2"):
        build_plan(Unordered({"": named}), build_options(1, layers=["conv1"]))


@KINDS
def test_copies_keep_their_own(kind: type[Memory]):
    model = CASES["bn_data"][0]
    changed = set(build_plan(kind({"": model}), build_options(1)).edits.tensors)
    for groups in ({"": {**model, **{f"ema.{k}": v + 1 for k, v in model.items()}}}, {"model": model, "ema": model}):
        plan = build_plan(kind(groups), build_options(1))
        assert len(plan.edits.tensors) == 2 * len(changed)
        assert {n.replace("/", ".").removeprefix("model.").removeprefix("ema.") for n in plan.edits.tensors} == changed


def test_the_output_of_edsr_is_told_of():
    named = CASES["EDSR"][0]
    plan = build_plan(Memory({"": named}), build_options(1))
    assert [n.message for n in plan.notices if n.code == "output_left"] == [
        "add_mean shifts the colors of the output, not of the image: it is left unchanged"
    ]


@KINDS
def test_a_linear_patch_embedding_behind_it(kind: type[Memory]):
    embedder = "model.patch_generator.embedder"
    named = {
        f"{embedder}.weight": CHANCE.normal(size=(64, 768)), f"{embedder}.bias": CHANCE.normal(size=64),
        "model.patch_generator.pos_embed": kernel(1, 196, 64), "model.blocks.0.attn.qkv.weight": kernel(192, 64),
        "model.blocks.0.attn.proj.weight": kernel(64, 64),
        **pair("input_conditioner.norm_mean", "input_conditioner.norm_std", 3, 1, 1),
    }  # fmt: skip
    new = after(build_plan(kind({"": named}), build_options(1, layout="O(IHW)")), named)
    patch = np.random.default_rng(1).random((1, 16, 16))
    expected, found = (
        net[f"{embedder}.weight"] @ seen(net, "input_conditioner", image).reshape(-1) + net[f"{embedder}.bias"]
        for net, image in ((named, patch.repeat(3, 0)), (new, patch))
    )
    assert np.allclose(found, expected, rtol=0, atol=1e-11)


# Norms of whole patches


def patched(before: dict[str, np.ndarray], behind: dict[str, np.ndarray] | None = None, dim: int = 32) -> Any:
    linear = {"embed.2.weight": kernel(dim, 192), "embed.2.bias": kernel(dim)}
    named = {**before, **linear, **(behind or {}), "head.weight": kernel(5, dim)}
    tensor = Memory({"": named}).tensors["embed.2.weight"]
    return named, FirstConv(tensor, Layout("O(HWI)"), 3, "user")


GAMMA = {"embed.1.weight": kernel(192)}
BETA = {"embed.1.bias": kernel(192)}
NORMED: dict[str, tuple[Any, str | None, bool]] = {
    "LayerNorm": (patched({**GAMMA, **BETA}), "embed.1", True),
    "RMSNorm": (patched(GAMMA), "embed.1", False),
    "as wide as its patches": (patched({**GAMMA, **BETA}, {"embed.3.weight": kernel(192)}, dim=192), "embed.1", True),
    "a norm of the output": (patched({}, {"embed.3.weight": kernel(192), "embed.3.bias": kernel(192)}, dim=192), None, False),
    "none": (patched({"other.1.weight": kernel(192)}), None, False),
}


@KINDS
@pytest.mark.parametrize(("named", "module", "biased"), NORMED.values(), ids=NORMED)
def test_a_norm_of_patches(named: Any, module: str | None, biased: bool, kind: type[Memory]):
    arrays, conv = named
    found = patch_norm(kind({"": arrays}), conv)
    assert (found and found.where) == module
    assert bool(found and found.bias) == biased


UNKNOWN = {
    "not directly": patched({"embed.0.weight": kernel(192), "embed.0.bias": kernel(192)}),
    "BatchNorm": patched({**GAMMA, "embed.1.running_mean": kernel(192)}),
    "a bias alone": patched(BETA),
    "two": patched({**GAMMA, "embed.norm.weight": kernel(192)}),
}


@KINDS
@pytest.mark.parametrize("named", UNKNOWN.values(), ids=UNKNOWN)
def test_vectors_of_patches_whose_operation_is_unknown_are_refused(named: Any, kind: type[Memory]):
    arrays, conv = named
    with pytest.raises(UnsupportedError, match=r"embed\.2\.weight takes, and its operation is unknown"):
        patch_norm(kind({"": arrays}), conv)


def test_a_convolution_has_no_norm_of_patches():
    arrays, conv = patched(GAMMA)
    assert patch_norm(Memory({"": arrays}), conv._replace(layout=None)) is None
    assert patch_norm(Memory({"": arrays}), conv._replace(layout=Layout("OI"))) is None
