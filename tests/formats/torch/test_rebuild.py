"""Calls of torch's rebuild functions as views of storages: spans, orders, and which calls are tensors at all."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Location
from chkpt_channels.formats.torch.rebuild import Storage, Tensors, View
from tests.support.builders import Call, Global, Raw, pickled, spelled, storage, tensor

PLACE = Location("a.pth")
F32 = BY_NAME["F32"]


def view(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> View:
    nodes: Any = (None, None, None)
    return View(Storage("0", F32, 4, 1000), F32, offset, shape, stride, nodes)


def read(value: Any) -> tuple[Tensors, View | None]:
    """The one value of a pickle."""
    tree = Tree(pickled(value), PLACE)
    tensors = Tensors(tree, PLACE)
    return tensors, tensors.view(tree.root.target)


@pytest.mark.parametrize(
    ("shape", "stride", "offset", "span", "is_contiguous", "order"),
    [
        ((4, 3, 3, 3), (27, 9, 3, 1), 0, (0, 432), True, (0, 1, 2, 3)),
        ((4, 3, 3, 3), (27, 1, 9, 3), 2, (8, 440), False, (0, 2, 3, 1)),  # channels_last
        ((4, 1, 3, 3), (9, 999, 3, 1), 0, (0, 144), True, (0, 1, 2, 3)),  # the stride of an axis of one step says nothing
        ((2, 3), (1, 2), 0, (0, 24), False, (1, 0)),
        ((2, 3), (4, 1), 0, (0, 28), False, (0, 1)),  # gaps
        ((2, 3), (0, 1), 0, (0, 12), False, (1, 0)),  # expanded
        ((), (), 3, (12, 16), True, ()),
        ((0, 3), (3, 1), 5, (20, 20), True, (0, 1)),
    ],
)
def test_geometry(shape: Any, stride: Any, offset: int, span: Any, is_contiguous: bool, order: Any):
    found = view(shape, stride, offset)
    assert (found.span, found.is_contiguous, found.memory_order) == (span, is_contiguous, order)


def test_a_tensor_is_a_view_of_its_storage():
    tensors, found = read(tensor(storage("0", 108), (4, 3, 3, 3)))
    assert found is not None
    assert (found.shape, found.stride, found.offset, found.dtype) == ((4, 3, 3, 3), (27, 9, 3, 1), 0, F32)
    assert found.storage is tensors.storages["0"]
    assert (found.storage.size, len(found.storage.counts)) == (432, 1)


def meta(dtype: Any, shape: Any, stride: Any) -> Call:
    """A tensor on the meta device."""
    return Call(Global("torch._utils", "_rebuild_meta_tensor_no_storage"), (dtype, shape, stride, False))


def test_a_meta_tensor_has_a_shape_and_no_storage():
    tensors, found = read(meta(Global("torch", "bfloat16"), (4, 3, 3, 3), (27, 9, 3, 1)))
    assert found is not None
    assert (found.shape, found.dtype.name, found.storage.absent, tensors.storages) == ((4, 3, 3, 3), "BF16", True, {})
    with pytest.raises(UnsupportedError, match="a tensor has an unknown element type"):
        read(meta(Global("torch", "float5"), (4,), (1,)))
    with pytest.raises(DamagedError, match="with one stride per axis"):
        read(meta(Global("torch", "float32"), (4,), ()))


@pytest.mark.parametrize("depth", [1, 7, 8, 20])
def test_a_parameter_wraps_a_tensor_and_not_endlessly(depth: int):
    value = tensor(storage("0", 108), (4, 3, 3, 3))
    for _ in range(depth):
        value = Call(Global("torch._utils", "_rebuild_parameter"), (value, True, {}))
    _, found = read(value)
    assert (found is not None) == (depth < 8)


@pytest.mark.parametrize("value", [Call(Global("collections", "OrderedDict"), ()), Call(Global("torch", "Size"), ((4, 3),))])
def test_other_calls_are_no_tensors(value: Any):
    assert read(value)[1] is None


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (tensor(storage("0", -1), (4, 3)), DamagedError, "storage 0: element count must be a non-negative integer"),
        (tensor(storage("0", 11), (4, 3)), DamagedError, r"storage 0: a tensor of shape \[4, 3\] reaches beyond its 11 elements"),
        (tensor("0", (4, 3)), DamagedError, "a tensor has no storage"),
        (Call(Global("torch._utils", "_rebuild_tensor_v2"), (1, 2)), DamagedError, "a tensor is rebuilt from 2 arguments"),
        (tensor(storage("0", 12, "OddStorage"), (4, 3)), UnsupportedError, "unknown type torch.OddStorage"),
    ],
)
def test_what_is_refused(value: Any, kind: type[Exception], words: str):
    with pytest.raises(kind, match=words):
        read(value)


KERNEL = tensor(storage("0", 108), (4, 3, 3, 3))
PARAMETER = Global("torch.nn.parameter", "Parameter")


def in_state(state: Any) -> Call:
    return Call(Global("torch._utils", "_rebuild_parameter_with_state"), (KERNEL, True, {}, state))


def typed(kind: Any, state: Any) -> Call:
    return Call(Global("torch._tensor", "_rebuild_from_type_v2"), (KERNEL.function, kind, KERNEL.arguments, state))


@pytest.mark.parametrize("state", [None, {}, {"note": 1, "_is_hf_initialized": True}, ({"note": 1}, None), (None, {})])
def test_attributes_leave_a_tensor_as_it_is(state: Any):
    for value in (in_state(state), typed(PARAMETER, state), typed(Global("my.module", "Image"), state)):
        tensors, found = read(value)
        assert found is not None
        assert not tensors.refused


def test_the_class_of_storages_is_no_class_of_tensors():
    tensors, found = read(typed(Global("torch", "FloatStorage"), None))
    assert found is None
    assert list(tensors.refused.values()) == ["is made a tensor of the class of storages"]


@pytest.mark.parametrize("state", [{"data": 1}, {"real": 1}, {"grad": 1}, (None, {"data": 1}), {1: 2}])
def test_what_changes_a_tensor_is_refused(state: Any):
    for value in (in_state(state), typed(PARAMETER, state), typed(Global("my.module", "Image"), state)):
        tensors, found = read(value)
        assert found is None
        assert [*tensors.refused.values()] == ["is changed by a state, which is not read"]


def test_the_same_data_once_more_leaves_a_tensor_as_it_is():
    """As bitsandbytes pickles its parameters; what torch sets is then no other tensor."""
    for value in (in_state({"data": KERNEL, "blocksize": 64}), typed(PARAMETER, (None, {"data": KERNEL}))):
        tensors, found = read(value)
        assert (found and found.repeated, tensors.refused) == (True, {})
    for data in (
        tensor(storage("0", 108), (4, 3, 3, 3), stride=(27, 1, 9, 3)),
        in_state({"data": KERNEL}),
        tensor(storage("1", 108), (4, 3, 3, 3)),
    ):
        assert read(in_state({"data": data}))[0].refused


def test_only_a_class_of_another_library_may_keep_another_state():
    assert read(typed(Global("my.module", "Image"), "text"))[1] is not None
    assert read(typed(PARAMETER, "text"))[1] is None
    assert read(typed(("no", "class"), {"data": 1}))[1] is None


@pytest.mark.parametrize("made", [KERNEL, Call(PARAMETER, (KERNEL, True)), Call(Global("torch", "FloatTensor"), ())])
def test_nothing_may_be_built_on_a_tensor(made: Any):
    for done in (spelled({}) + b"b", spelled(0) + spelled(1) + b"s"):
        tensors, found = read(Raw(spelled(made) + done))
        assert (found, list(tensors.refused.values())) == (None, ["is changed by a state, which is not read"])


@pytest.mark.parametrize(
    ("kind", "metadata", "signs"),
    [
        ("Float", None, b""),
        ("Float", {}, b""),
        ("Float", {"other": True}, b""),
        ("Float", {"neg": False}, b"\0\0\0\x80"),
        ("Half", {"neg": True}, b"\0\x80"),
        ("ComplexFloat", {"neg": True}, b"\0\0\0\x80" * 2),
        ("ComplexFloat", {"conj": True}, bytes(7) + b"\x80"),
        ("ComplexFloat", {"neg": True, "conj": True}, b"\0\0\0\x80" + bytes(4)),
        ("Int", {"neg": True}, None),
        ("Float", {"conj": True}, None),
        ("Float", [("neg", True)], None),
    ],
)
def test_bits_turn_signs(kind: str, metadata: Any, signs: bytes | None):
    """torch sets a bit for its key, whatever the value is."""
    given = tensor(storage("0", 4, kind), (4,)).arguments
    tensors, found = read(Call(Global("torch._utils", "_rebuild_tensor_v2"), (*given, metadata)))
    assert (found.signs if found else None) == signs
    assert len(tensors.refused) == (signs is None)


def test_arguments_that_are_no_tuple():
    for arguments in ([*KERNEL.arguments], {"a": 1}):
        tensors, _ = read(Raw(spelled(KERNEL.function) + spelled(arguments) + b"R"))
        assert list(tensors.refused.values()) == ["is rebuilt from arguments that are no tuple"]
    assert read(Raw(spelled(PARAMETER) + b")}\x92"))[0].refused


def test_every_use_of_a_storage_is_counted():
    store = Raw(spelled(storage("0", 108)) + b"q\x07")
    raw = pickled([tensor(store, (4,)), tensor(Raw(b"h\x07"), (4,)), tensor(storage("0", 108), (4,))])
    tensors = Tensors(Tree(raw, PLACE), PLACE)
    assert len(tensors.storages["0"].uses) == 3
    with pytest.raises(UnsupportedError, match="storage 0: is given a state"):
        read(tensor(Raw(spelled(storage("0", 108)) + b"}b"), (4,)))
