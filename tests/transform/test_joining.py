"""Kernels that take the image joined to features: the image's channels change, those of the features keep their bits."""

from __future__ import annotations

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.discovery.request import ConfigHints
from chkpt_channels.transform.joining import changes, notices
from chkpt_channels.transform.mixing import matrix as mixing
from chkpt_channels.transform.options import build_options
from chkpt_channels.transform.plan import Plan, build_plan
from tests.support.memory import Memory

CHANCE = np.random.default_rng(0)
KERNELS = {
    "stem.weight": CHANCE.standard_normal((8, 3, 3, 3), "f4"),
    "last.conv.weight": CHANCE.standard_normal((4, 3 + 8, 3, 3), "f4"),
    "last.bn.weight": np.ones(4, "f4"),
    "last.bn.bias": np.zeros(4, "f4"),
    "last.bn.running_mean": np.zeros(4, "f4"),
    "last.bn.running_var": np.ones(4, "f4"),
    "stem.bias": np.zeros(8, "f4"),
}


def planned(to: int | str, **options: object) -> Plan:
    asked = build_options(to, **options)
    hints = ConfigHints(("stem",), 3, ("last.conv",))
    return build_plan(Memory({"": KERNELS}), asked._replace(search=asked.search._replace(hints=hints)))


@pytest.mark.parametrize(
    ("to", "options", "image"),
    [
        (1, {}, [[1], [1], [1]]),
        ("bgr", {}, [[0, 0, 1], [0, 1, 0], [1, 0, 0]]),
        (5, {"method": "zero"}, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]),
    ],
)
def test_the_channels_of_the_image_change(to: int | str, options: dict[str, object], image: list[list[float]]):
    plan = planned(to, **options)
    old, new = KERNELS["last.conv.weight"], plan.edits.tensors["last.conv.weight"]
    expected = np.einsum("oihw,ij->ojhw", old[:, :3].astype("f8"), np.array(image, "f8")).astype("f4")
    assert np.array_equal(new.values(), np.concatenate([expected, old[:, 3:]], 1))
    assert new.shape == (4, len(image[0]) + 8, 3, 3)
    assert [kernel.conv.tensor.name for kernel in plan.kernels] == ["stem.weight"]
    assert [notice.code for notice in plan.notices if notice.code == "joined"] == ["joined"]


def test_a_constant_goes_into_what_follows():
    plan = planned(1, norm="imagenet")
    shift = (np.array([0.449]) - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    by_channel = KERNELS["last.conv.weight"][:, :3].astype("f8").sum((2, 3))
    assert plan.edits.tensors["last.bn.running_mean"].values() == pytest.approx(-(by_channel * shift).sum(1), abs=1e-5)


@pytest.mark.parametrize("module", ["nowhere", "last.bn", "stem"])
def test_what_does_not_take_both(module: str):
    with pytest.raises(UnsupportedError, match=f"{module}.weight: should take the image joined to features"):
        changes(Memory({"": KERNELS}), [module], mixing.sum_(3))


def test_nothing_is_joined():
    assert changes(Memory({"": KERNELS}), [], mixing.sum_(3)) == []
    assert not list(notices([], 3))
