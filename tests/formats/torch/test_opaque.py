"""Weights that are no dense tensor: each is named with its shape and the reason, and what is no weight is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.formats.torch import opaque as module
from chkpt_channels.formats.torch.object_tree import TorchObject
from chkpt_channels.formats.torch.opaque import OpaqueReader
from tests.support.builders import Call, Global, Raw, conv, pickled, spelled, storage, tensor
from tests.support.files import within

PLACE = Location("a.pth")
SHAPE = (4, 3, 3, 3)
SIZE = Call(Global("torch", "Size"), (SHAPE,))
INDICES, VALUES = tensor(storage("1", 432, "Long"), (4, 108)), tensor(storage("0", 108), (108,))
COO = Call(Global("torch.serialization", "_get_layout"), ("torch.sparse_coo",))
SPARSE = Call(Global("torch._utils", "_rebuild_sparse_tensor"), (COO, (INDICES, VALUES, SIZE, True)))
BARE = Call(Global("torch._utils", "_rebuild_sparse_tensor"), ())


def subclass(module: str, name: str, *, shape: Any = SHAPE) -> Call:
    """A tensor of a class without a storage, as Tensor.__reduce_ex__ saves it."""
    kind = Global(module, name)
    arguments = (kind, Global("torch", "float32"), shape, (27, 9, 3, 1), 0, COO, "cpu", False)
    wrapped = (Global("torch._utils", "_rebuild_wrapper_subclass"), kind, arguments, {"_local_tensor": conv()})
    return Call(Global("torch._tensor", "_rebuild_from_type_v2"), wrapped)


def array(module: str = "numpy.core.multiarray", state: Any = (1, SHAPE, "f4", False, b"\0" * 432)) -> Call:
    return Call(Global(module, "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"), state)


FILE_BUFFER = Call(Global("numpy._core.numeric", "_frombuffer"), (b"\0" * 432, "f4", SHAPE, "C"))
PARAMETER = Call(Global("torch._utils", "_rebuild_parameter"), (SPARSE, True, {}))
OBJECT = Call(Global("jax._src.array", "_reconstruct_array"), (b"\0" * 432,))
ENCODED = Call(Global("_codecs", "encode"), ("abcdefgh", "latin1"))  # bytes below protocol 3
ORDERED = Call(Global("collections", "OrderedDict"), ())
CONTAINER = "is a list, a dict or bytes, and no tensor"
READ: dict[str, tuple[Any, str, tuple[int, ...] | None]] = {
    "sparse": (SPARSE, "is a sparse tensor", SHAPE),
    "sparse without arguments": (BARE, "is a sparse tensor", None),
    "a sparse parameter": (PARAMETER, "is a sparse tensor", SHAPE),
    "DTensor": (subclass("torch.distributed.tensor", "DTensor"), "is a DTensor", SHAPE),
    "a subclass": (subclass("torchao", "Int8Tensor"), "is of the class torchao.Int8Tensor", SHAPE),
    "a subclass of odd sizes": (subclass("torchao", "Int8Tensor", shape=(4, "s0")), "is of the class torchao.Int8Tensor", None),
    "numpy": (array(), "is a numpy array", SHAPE),
    "numpy 2": (array("numpy._core.multiarray"), "is a numpy array", SHAPE),
    "numpy of protocol 5": (FILE_BUFFER, "is a numpy array", SHAPE),
    "numpy without a state": (array(state=None), "is a numpy array", None),
    "a list": (np.zeros(SHAPE).tolist(), "is a nested list of numbers", SHAPE),
    "an object of some library": (OBJECT, "is of the class jax._src.array._reconstruct_array", None),
    "an object of bytes": (Call(Global("jax._src.array", "Array"), (ENCODED,)), "is of the class jax._src.array.Array", None),
    "a dict of its parts": ({"data": conv(), "scale": 0.5}, CONTAINER, None),
    "an ordered dict of its parts": (Raw(spelled(ORDERED) + spelled("data") + spelled(conv()) + b"s"), CONTAINER, None),
    "a list of lists of filters": ([[conv()] * 16] * 16, CONTAINER, None),
    "a list of filters": ([conv(), conv("1")], CONTAINER, None),
    "bytes": (b"\0" * 432, CONTAINER, None),
    "bytes of protocol 2": (ENCODED, CONTAINER, None),
    "not initialized": (Call(Global("torch.nn.parameter", "UninitializedParameter"), (True,)), "is not initialized", None),
}
MODULE = Call(Global("torch.nn", "ParametrizationList"), (), {"_modules": {}, "original": conv()})
PLAIN: dict[str, Any] = {
    "a tensor": conv(),
    "class weights": [1.0, 2.0, 3.0],
    "a table": [[1, 2], [3, 4]],
    "a list of texts": [[["a"]]],
    "a module": MODULE,
    "a dict of settings": {"weight": 0.5},
    "a setting": Call(Global("argparse", "Namespace"), (), {"weight": 0.5}),
    "a number of numpy": Call(Global("numpy._core.multiarray", "scalar"), ("f8", ENCODED)),
    "an ordered dict": ORDERED,
}


@pytest.mark.parametrize(("value", "what", "shape"), READ.values(), ids=READ)
def test_a_weight_that_is_no_dense_tensor_is_named(value: Any, what: str, shape: tuple[int, ...] | None):
    read = TorchObject(Tree(pickled({"model": {"conv1.weight": value}}), PLACE), PLACE)
    (weight,) = read.opaque
    assert (weight.name, weight.group, weight.shape) == ("model/conv1.weight", "model", shape)
    assert weight.what.startswith(what)
    assert weight.hint
    assert "KEY" not in weight.hint
    assert "model/conv1.weight" not in read.views


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_what_is_no_weight_or_a_tensor_is_not(value: Any):
    assert TorchObject(Tree(pickled({"conv1.weight": value}), PLACE), PLACE).opaque == []


def test_a_state_dict_may_be_called_weight():
    read = TorchObject(Tree(pickled({"weight": {"conv1.weight": conv()}}), PLACE), PLACE)
    assert (read.opaque, list(read.views)) == ([], ["weight/conv1.weight"])


def test_tensors_inside_are_its_parts_and_it_stands_where_it_is():
    read = TorchObject(Tree(pickled({"a": conv("7"), "b.weight": SPARSE, "c": conv("8")}), PLACE), PLACE)
    (weight,) = read.opaque
    assert weight.follows == 1
    assert list(weight.parts) == ["b.weight/args/1/0", "b.weight/args/1/1"]
    assert list(read.views) == ["a", *weight.parts, "c"]


def test_wrappers_are_not_followed_endlessly():
    value = SPARSE
    for _ in range(20):
        value = Call(Global("torch._utils", "_rebuild_parameter"), (value, True, {}))
    assert OpaqueReader().read(Tree(pickled(value), PLACE).root, "weight") is None


def test_a_list_that_many_names_share_is_looked_at_once():
    many = 40_000
    shared = b"](" + b"K\1" * many + b"er\1\0\0\0"
    names = b"".join(spelled(f"{i}.weight") + b"](j\1\0\0\0K\1e" for i in range(many // 2))
    tree = Tree(b"\x80\x02}(" + spelled("list") + shared + names + b"u.", PLACE)
    with within(5):
        assert TorchObject(tree, PLACE).opaque == []


def test_where_too_much_would_have_to_be_looked_at_each_is_a_weight(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_NODES", 10)
    named = {f"{name}.weight": {"a": 1, "b": 2, "c": 3} for name in "xyz"}
    assert [weight.key for weight in TorchObject(Tree(pickled(named), PLACE), PLACE).opaque] == ["y.weight", "z.weight"]
