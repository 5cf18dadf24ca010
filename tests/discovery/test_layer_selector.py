"""Which tensors a --layer names: the first rule that finds something decides."""

from __future__ import annotations

import pytest

from chkpt_channels import AmbiguousError, UsageError
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.layer_selector import match
from chkpt_channels.formats.base import TensorStore

PLACE = Location("a.pth")


def tensor(name: str, group: str = "") -> Tensor:
    return Tensor(name, BY_NAME["F32"], (8, 3, 3, 3), group)


FLAT = [tensor(n) for n in ("conv1.weight", "layer1.conv1.weight", "layer2.conv1.weight", "layer2.stem.weight")]
FLAX = [tensor(n) for n in ("params/stem/kernel", "params/Block_0/stem/kernel", "params/Block_0/Conv_0/kernel")]
WRAPPED = [
    tensor("model/module._orig_mod.conv1.weight", "model"),
    tensor("model/module._orig_mod.layer1.conv1.weight", "model"),
    tensor("model/module._orig_mod.body.stem.weight", "model"),
    tensor("ema/conv1.weight", "ema"),
    tensor("ema/body.stem.weight", "ema"),
]


@pytest.mark.parametrize(
    ("tensors", "layer", "names"),
    [
        (FLAT, "conv1.weight", ["conv1.weight"]),
        (FLAT, "conv1", ["conv1.weight"]),
        (FLAT, "layer1.conv1", ["layer1.conv1.weight"]),
        (FLAT, "stem", ["layer2.stem.weight"]),
        (FLAX, "params/stem", ["params/stem/kernel"]),
        (FLAX, "Conv_0", ["params/Block_0/Conv_0/kernel"]),
        (FLAT, "layer?.conv1", ["layer1.conv1.weight", "layer2.conv1.weight"]),
        (FLAT, "*conv1", ["conv1.weight", "layer1.conv1.weight", "layer2.conv1.weight"]),
        (WRAPPED, "ema/conv1.weight", ["ema/conv1.weight"]),
        (WRAPPED, "conv1", ["model/module._orig_mod.conv1.weight", "ema/conv1.weight"]),
        (WRAPPED, "conv1.weight", ["model/module._orig_mod.conv1.weight", "ema/conv1.weight"]),
        (WRAPPED, "stem", ["model/module._orig_mod.body.stem.weight", "ema/body.stem.weight"]),
        (WRAPPED, "model/*stem*", ["model/module._orig_mod.body.stem.weight"]),
    ],
)
def test_names(tensors: list[Tensor], layer: str, names: list[str]):
    assert [found.name for found in match(PLACE, tensors, layer, "")] == names


def test_a_suffix_that_stands_twice_in_a_model():
    with pytest.raises(AmbiguousError, match=r"a.pth: --layer conv1 fits 2 tensors") as caught:
        match(PLACE, FLAT[1:], "conv1", TensorStore.like_hint)
    assert [candidate.key for candidate in caught.value.candidates] == ["layer1.conv1.weight", "layer2.conv1.weight"]
    assert caught.value.hint == f"--layer layer1.conv1.weight   or   {TensorStore.like_hint}"


@pytest.mark.parametrize(
    ("layer", "hint"), [("layer1.cnov1", "--layer layer1.conv1"), ("zzz", "chkpt-channels inspect --all lists them")]
)
def test_a_name_that_is_not_there(layer: str, hint: str):
    with pytest.raises(UsageError, match=f"no tensor is called '{layer}'") as caught:
        match(PLACE, FLAT, layer, "")
    assert caught.value.hint == hint
