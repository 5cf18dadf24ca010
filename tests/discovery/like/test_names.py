"""Which tensor is which of LIKE: by name, in each copy, whatever precedes the names on either side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pytest

from chkpt_channels.discovery.like.names import OtherNetworkError, match
from chkpt_channels.discovery.request import Like, LikeGroup, LikeTensor
from tests.support.memory import NET, Memory, kernel

Arrays = Mapping[str, np.ndarray]


def like(*groups: Arrays, tied: Mapping[str, str] | None = None) -> Like:
    """A LIKE of these state dicts; `tied` maps a name to the one whose memory it shares."""
    same = tied or {}
    return Like(
        "like.pth",
        tuple(
            LikeGroup("", str(i), tuple(LikeTensor(key, array.shape, same.get(key, key)) for key, array in arrays.items()))
            for i, arrays in enumerate(groups)
        ),
    )


def prefixed(prefix: str, arrays: Arrays = NET) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in arrays.items()}


class Tied(Memory):
    """A checkpoint in which the second of two names has the memory of the first."""

    names: tuple[str, str] = ("", "")

    def memory(self, name: str) -> Hashable:
        return self.names[0] if name == self.names[1] else name


@pytest.mark.parametrize(
    ("groups", "other", "copies"),
    [
        ({"": NET}, NET, 1),
        ({"": prefixed("module.")}, NET, 1),
        ({"": NET}, prefixed("module."), 1),
        ({"": prefixed("_orig_mod.module.")}, prefixed("model."), 1),
        ({"": prefixed("model.backbone.")}, NET, 1),
        ({"state_dict": NET}, NET, 1),
        ({"state_dict": NET, "state_dict_ema": prefixed("module.")}, NET, 2),
        ({"": {**NET, **prefixed("ema.module."), "ema.decay": kernel(1)}}, NET, 2),
        ({"": {**prefixed("module."), "n_averaged": kernel(1)}}, NET, 1),
        ({"": {**NET, **prefixed("module.")}}, NET, 2),
        ({"": {"weight": kernel(3), "bias": kernel(3)}}, {"weight": kernel(3), "bias": kernel(3)}, 1),
        ({"": {**prefixed("teacher."), **prefixed("student.")}}, NET, 2),
        ({"": {**prefixed("teacher."), **prefixed("student.")}}, {**prefixed("teacher."), **prefixed("student.")}, 1),
        ({"": {**prefixed("model."), "loss.weight": kernel(7)}}, NET, 1),
        ({"": NET}, {**prefixed("model."), "loss.weight": kernel(7)}, 1),
        ({"": {"a/conv1/kernel": kernel(3), "a/fc/kernel": kernel(4)}}, {"conv1.kernel": kernel(3), "fc.kernel": kernel(4)}, 1),
    ],
)
def test_what_precedes_the_names_is_taken_off(groups: Mapping[str, Arrays], other: Arrays, copies: int):
    found = match(Memory(groups), like(other))
    assert len(found.copies) == copies
    for copy in found.copies:
        assert not copy.extra
        assert not copy.missing
        assert all(tensor.shape == pair.shape for tensor, pair in copy.pairs)
        assert all(tensor.key.replace("/", ".").split(".")[-2:] == pair.key.split(".")[-2:] for tensor, pair in copy.pairs)


def test_wrappers_inside_names_are_taken_off():
    inner = {"body._orig_mod.conv.weight": kernel(8, 3, 3, 3), "head.module.fc.weight": kernel(5, 8)}
    plain = {"body.conv.weight": kernel(8, 3, 3, 3), "head.fc.weight": kernel(5, 8)}
    (copy,) = match(Memory({"": inner}), like(plain)).copies
    assert [(tensor.key, other.key) for tensor, other in copy.pairs] == list(zip(inner, plain, strict=True))


def test_the_pairs_are_in_the_order_of_the_file():
    (copy,) = match(Memory({"": NET}), like(dict(reversed(NET.items())))).copies
    assert [tensor.name for tensor, _ in copy.pairs] == list(NET)


@pytest.mark.parametrize(
    ("source", "other", "extra", "missing"),
    [
        ({**NET, "more.weight": kernel(3)}, NET, ["more.weight"], []),
        (NET, {**NET, "more.weight": kernel(3)}, [], ["more.weight"]),
        ({**NET, "bn1.num_batches_tracked": kernel(1)}, NET, [], []),
        (NET, {**NET, "bn1.num_batches_tracked": kernel(1)}, [], []),
    ],
)
def test_what_only_one_has(source: Arrays, other: Arrays, extra: Sequence[str], missing: Sequence[str]):
    (copy,) = match(Memory({"": source}), like(other)).copies
    assert [tensor.name for tensor in copy.extra] == extra
    assert [tensor.key for tensor in copy.missing] == missing


def test_a_second_name_may_be_missing():
    other = {**NET, "decoder.weight": NET["fc.weight"]}
    (copy,) = match(Memory({"": NET}), like(other, tied={"decoder.weight": "fc.weight"})).copies
    assert copy.missing == ()
    (copy,) = match(Memory({"": NET}), like(other)).copies
    assert [tensor.key for tensor in copy.missing] == ["decoder.weight"]


def test_a_second_name_here_is_the_first_one():
    store = Tied({"": {**NET, "decoder.weight": NET["fc.weight"]}})
    store.names = ("fc.weight", "decoder.weight")
    (copy,) = match(store, like(NET)).copies
    assert copy.extra == ()
    assert {tensor.name: other.key for tensor, other in copy.pairs}["decoder.weight"] == "fc.weight"


def test_what_is_beside_the_model_is_outside():
    store = Memory({"": {**prefixed("model."), "loss.weight": kernel(8, 3, 3, 3)}, "rng": {"state": kernel(5)}})
    assert [tensor.name for tensor in match(store, like(NET)).outside] == ["loss.weight", "rng/state"]


def test_of_several_state_dicts_that_of_the_same_place_counts():
    other = {name: kernel(*array.shape, 1) for name, array in NET.items()}
    found = match(Memory({"0": NET, "1": NET}), like(NET, other))
    ranks = [{len(pair.shape) - len(tensor.shape) for tensor, pair in copy.pairs} for copy in found.copies]
    assert ranks == [{0}, {1}]


@pytest.mark.parametrize(
    "other",
    [{"x.y.z": kernel(3), "u.v": kernel(3)}, {"weight": kernel(3)}, {}, {f"{name}x": array for name, array in NET.items()}],
    ids=["others", "no module", "nothing", "nearly"],
)
def test_another_network_is_refused(other: Arrays):
    with pytest.raises(OtherNetworkError, match=r"^a\.pth: its tensors have other names than those of like\.pth"):
        match(Memory({"": NET}), like(other))


def test_what_like_keeps_beside_its_state_dict_is_not_missing():
    for beside, missing in ((True, []), (False, ["attn.mask"])):
        mask = LikeTensor("attn.mask", (0,), "attn.mask", beside)
        whole = Like("like.pt", (LikeGroup("", "", (*like(NET).groups[0].tensors, mask)),))
        (copy,) = match(Memory({"": NET}), whole).copies
        assert [other.key for other in copy.missing] == missing
