"""Edits of one pickle: bytes in place for a storage of one tensor, appended for one that several use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.core.tensors import Edits, TensorEdit
from chkpt_channels.formats.torch.edits import TorchEdits
from chkpt_channels.formats.torch.object_tree import TorchObject
from tests.support.builders import Call, Global, pickled, spelled, storage, tensor

PLACE = Location("a.pth")
GRAY = np.arange(36, dtype="f4").reshape(4, 1, 3, 3)
EDITS = Edits({"conv1.weight": TensorEdit(GRAY.shape, lambda: GRAY)})


def read(value: Any) -> TorchObject:
    return TorchObject(Tree(pickled(value) if not isinstance(value, bytes) else value, PLACE), PLACE)


def kernel(count: int = 108, offset: int = 0, stride: Any = None) -> Any:
    return tensor(storage("0", count), (4, 3, 3, 3), stride=stride, offset=offset)


def after(edits: TorchEdits) -> TorchObject:
    assert edits.pickle is not None
    return read(edits.pickle)


def test_without_edits_nothing_changes():
    edits = TorchEdits(read({"conv1.weight": kernel()}), Edits())
    assert (edits.pickle, edits.changes, edits.removed) == (None, {}, frozenset())


def test_a_storage_of_its_own_gets_new_bytes():
    edits = TorchEdits(read({"conv1.weight": kernel()}), EDITS)
    change = edits.changes["0"]
    assert (change.keep, change.size, change.data()) == (0, 144, GRAY.tobytes())
    view = after(edits).views["conv1.weight"]
    assert (view.shape, view.offset, view.storage.count) == ((4, 1, 3, 3), 0, 36)


def test_to_a_shared_storage_the_kernel_is_appended():
    other = tensor(storage("0", 110), (2,), offset=108)
    edits = TorchEdits(read({"conv1.weight": kernel(110), "bias": other}), EDITS)
    change = edits.changes["0"]
    assert (change.keep, change.size) == (440, 144)
    new = after(edits)
    assert (new.views["conv1.weight"].offset, new.views["bias"].offset) == (110, 108)
    assert {view.storage.count for view in new.views.values()} == {146}


def test_channels_last_stays_channels_last():
    edits = TorchEdits(read({"conv1.weight": kernel(stride=(27, 1, 9, 3))}), EDITS)
    assert edits.changes["0"].data() == GRAY.transpose(0, 2, 3, 1).tobytes()
    assert after(edits).views["conv1.weight"].stride == (9, 1, 3, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"conv1.weight": kernel(stride=(0, 9, 3, 1))}, "expanded tensor"),
        ({"conv1.weight": kernel(), "view": tensor(storage("0", 108), (27,))}, "shares its memory with view"),
    ],
)
def test_a_tensor_that_others_overlap_is_refused(value: Any, words: str):
    with pytest.raises(UnsupportedError, match=f"conv1.weight: .*{words}"):
        TorchEdits(read(value), EDITS)


def test_a_dropped_entry_takes_its_storages_along():
    state = {0: {"exp_avg": tensor(storage("1", 4), (4,))}, 1: {"exp_avg": tensor(storage("2", 4), (4,))}}
    found = read({"conv1.weight": kernel(), "optimizer": {"state": state, "param_groups": []}})
    edits = TorchEdits(found, Edits(dropped=("optimizer/state/0",)))
    assert edits.removed == {"1"}
    assert [entry.where for entry in after(edits).optimizers] == ["optimizer/state/1"]


DROPPED = Edits(EDITS.tensors, dropped=("optimizer/state/0",))


def trained(exp_avg: Any, **more: Any) -> TorchObject:
    state = {0: {"exp_avg": exp_avg}, 1: {"exp_avg": tensor(storage("2", 4), (4,))}}
    return read({"conv1.weight": kernel(), **more, "optimizer": {"state": state, "param_groups": []}})


def test_a_dropped_view_of_the_kernel_is_no_sharer():
    edits = TorchEdits(trained(tensor(storage("0", 108), (27,))), DROPPED)
    assert (edits.changes["0"].keep, edits.changes["0"].size, edits.removed) == (0, 144, frozenset())
    assert list(after(edits).views) == ["conv1.weight", "optimizer/state/1/exp_avg"]


@pytest.mark.parametrize(
    ("more", "removed"), [({"copy": tensor(storage("1", 108), (4,))}, set()), ({}, {"1"})], ids=["a kept tensor", "nothing"]
)
def test_a_storage_goes_with_a_dropped_entry_that_alone_uses_it(more: dict[str, Any], removed: set[str]):
    edits = TorchEdits(trained(tensor(storage("1", 108), (4, 3, 3, 3)), **more), DROPPED)
    assert edits.removed == removed
    assert list(after(edits).views) == ["conv1.weight", *more, "optimizer/state/1/exp_avg"]


def test_of_two_names_for_one_tensor_both_must_be_edited():
    tied = read(b"\x80\x02}(X\x0c\0\0\0conv1.weight" + spelled(kernel()) + b"q\x01X\x05\0\0\0againh\x01u.")
    assert tied.views["again"] is tied.views["conv1.weight"]
    with pytest.raises(UnsupportedError, match=r"conv1\.weight: shares its memory with again") as refused:
        TorchEdits(tied, EDITS)
    assert refused.value.hint.endswith("--layer conv1.weight --layer again")
    both = TorchEdits(tied, Edits({**EDITS.tensors, "again": EDITS.tensors["conv1.weight"]}))
    assert both.changes["0"].size == GRAY.nbytes


def test_a_tensor_without_a_name_keeps_its_storage():
    """Of an attribute of a parameter: it has no name here, and torch rebuilds it."""
    alias = Call(Global("torch._utils", "_rebuild_parameter_with_state"), (kernel(), True, {}, {"alias": kernel()}))
    edits = TorchEdits(read({"conv1.weight": alias}), EDITS)
    assert (edits.changes["0"].keep, edits.changes["0"].size) == (432, 144)


def test_a_negated_kernel_stays_negated():
    negated = Call(kernel().function, (*kernel().arguments, {"neg": True}))
    edits = TorchEdits(read({"conv1.weight": negated}), EDITS)
    assert edits.changes["0"].data() == (-GRAY).tobytes()
    assert after(edits).views["conv1.weight"].signs == b"\0\0\0\x80"


def test_a_kernel_and_its_negative_share_memory():
    negated = Call(kernel().function, (*kernel().arguments, {"neg": True}))
    both = Edits({**EDITS.tensors, "other": EDITS.tensors["conv1.weight"]})
    with pytest.raises(UnsupportedError, match="shares its memory with"):
        TorchEdits(read({"conv1.weight": kernel(), "other": negated}), both)


def test_a_kernel_that_a_state_gives_its_elements_once_more():
    state = {"data": kernel()}
    repeated = Call(Global("torch._utils", "_rebuild_parameter_with_state"), (kernel(), True, {}, state))
    with pytest.raises(UnsupportedError, match=r"conv1\.weight: is given its elements once more by a state"):
        TorchEdits(read({"conv1.weight": repeated}), EDITS)
