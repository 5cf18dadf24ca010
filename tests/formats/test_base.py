"""The contract of a format: where its reader is found, and what every store of tensors does by itself."""

from __future__ import annotations

import numpy as np
import pytest

from chkpt_channels import DamagedError, UnsupportedError
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import OptimizerEntry, Tensor
from chkpt_channels.formats import base, known
from chkpt_channels.formats.base import Checkpoint, FlatWriter, Format
from chkpt_channels.formats.graph import NO_GRAPH
from chkpt_channels.storage.source import Source
from tests.support.files import FIXTURES
from tests.support.memory import Memory

KERNEL = np.arange(24, dtype="f4").reshape(2, 3, 2, 2)
FORMS = pytest.mark.parametrize("form", known(), ids=lambda form: form.name)


@FORMS
def test_a_format_names_its_reader_and_its_writer(form: Format):
    assert issubclass(base._named(form.opener), Checkpoint)
    assert isinstance(form.flat_writer(), FlatWriter if form.writer else type(None))
    assert form.suffixes
    assert all(not suffix or suffix.startswith(".") for suffix in form.suffixes)


@FORMS
def test_a_fixture_is_opened_by_the_format_that_its_folder_is_called_after(form: Format):
    path = sorted(p for p in (FIXTURES / form.name).iterdir() if p.suffix not in (".json", ".data"))[0]
    with Source(path) as source:
        assert form.sniff(source)
        checkpoint = form.open(source)
        assert checkpoint.format is form
        assert checkpoint.tensors


def test_a_tensor_is_loaded_in_its_dtype_and_shape():
    store = Memory({"": {"conv1.weight": KERNEL}})
    assert np.array_equal(store.load("conv1.weight"), KERNEL)
    assert store.load("conv1.weight").dtype == np.float32


def test_numbers_that_numpy_does_not_know_are_not_loaded():
    store = Memory({"": {"conv1.weight": KERNEL}})
    store.tensors["conv1.weight"] = Tensor("conv1.weight", BY_NAME["I4"], KERNEL.shape)
    with pytest.raises(UnsupportedError, match=r"^a\.pth: conv1\.weight: its I4 numbers cannot be computed with$"):
        store.load("conv1.weight")


def test_a_tensor_beyond_the_limit_is_not_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "LIMITS", LIMITS._replace(edited_tensor_bytes=KERNEL.nbytes - 1))
    with pytest.raises(DamagedError, match=r"conv1\.weight: has 96 bytes in one tensor; 95 are the most"):
        Memory({"": {"conv1.weight": KERNEL}}).load("conv1.weight")


@pytest.mark.parametrize(("kept", "times"), [(KERNEL.nbytes, 1), (KERNEL.nbytes - 1, 3)])
def test_a_small_kernel_is_loaded_once(kept: int, times: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "KEPT_KERNEL_BYTES", kept)
    store, loads = Memory({"": {"conv1.weight": KERNEL}}), []
    chunks = store.chunks
    monkeypatch.setattr(store, "chunks", lambda name: loads.append(name) or chunks(name))
    for _ in range(3):
        assert np.array_equal(store.load_kernel("conv1.weight"), KERNEL)
    assert len(loads) == times


def test_tensors_of_optimizers_are_none_of_a_model():
    store = Memory({"model": {"conv1.weight": KERNEL}, "optimizer": {"0": KERNEL}})
    state = store.tensors["optimizer/0"]
    store.optimizer_entries = (OptimizerEntry("optimizer/0", "0", {"exp_avg": state}, {}),)
    assert [tensor.name for tensor in store.model_tensors()] == ["model/conv1.weight"]


def test_a_store_without_a_graph_knows_nothing():
    class Bare(Memory):
        graph = property(base.TensorStore.graph.fget)  # type: ignore[assignment] # as a store has it that overrides nothing

        def __init__(self) -> None:
            base.TensorStore.__init__(self, Memory({}).location)

    assert Bare().graph is NO_GRAPH
    assert Bare().graph.search_view() == {}
    assert Bare().torch is Bare.ordered
