"""Which calls of a pickle are arrays: those of numpy, of every protocol and version; and what is refused of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chkpt_channels import DamagedError
from chkpt_channels.containers.pickle.reader import Tree
from chkpt_channels.core.errors import Location
from chkpt_channels.formats.numpy_pickle.arrays import Array, LatinText, NoNumbers, array_of

HERE = Location("a.pkl")


def read(data: bytes) -> Array | NoNumbers | None:
    return array_of(Tree.whole(data, HERE).root, HERE)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy._core.", b"numpy.core."])
@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16", "int64", "int8", "uint16", "bool", "complex64"])
def test_every_dtype(protocol: int, core: bytes, name: str):
    dtype = getattr(ml_dtypes, name, name)
    data = pickle.dumps(np.ones((2, 3), dtype), protocol)
    if core not in data:
        data = data.replace(b"\x16numpy._core", b"\x15numpy.core").replace(b"\x13numpy._core", b"\x12numpy.core")
        data = data.replace(b"numpy._core.", core) if protocol < 4 else data[:2] + data[11:]
    array = read(data)
    assert isinstance(array, Array)
    assert (array.dtype.numpy, array.shape, array.latin1, array.axes) == (name, (2, 3), protocol == 2, (0, 1))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_fortran_order(protocol: int):
    array = read(pickle.dumps(np.asfortranarray(np.ones((2, 3))), protocol))
    assert isinstance(array, Array)
    assert (array.axes, array.shape) == ((1, 0), (2, 3))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([{}, None], object), "has elements of the dtype O8"),
        (np.ones(3, ">f4"), "is big-endian"),
        (np.zeros(3, "V2"), "has elements of the dtype V2"),
        (np.zeros(3, [("a", "f4")]), "has elements of the dtype V4"),
        (np.array(["a"]), ""),
        (np.zeros(3, "M8[s]"), ""),
    ],
)
def test_arrays_of_no_numbers(value: Any, words: str):
    found = read(pickle.dumps(value, 4))
    assert isinstance(found, NoNumbers)
    assert found.what.startswith(words)
    assert bool(words) == bool(found.what)
    assert found.shape == value.shape


class Called:
    """A call of one of numpy's functions: pickled by every version of numpy alike."""

    def __init__(self, *arguments: Any) -> None:
        self.made = np.ones(1).__reduce_ex__(5)[0], arguments

    def __reduce__(self) -> Any:
        return self.made


def test_an_array_that_is_transposed():
    """Order K of numpy 2.4: the buffer's shape, and which of its axes each axis is."""
    kernel = np.ones((7, 5, 3, 8), "f4").transpose(3, 2, 0, 1)
    array = read(pickle.dumps(Called(bytearray(kernel.nbytes), kernel.dtype, (7, 5, 3, 8), "K", (3, 2, 0, 1)), 5))
    assert isinstance(array, Array)
    assert (array.shape, array.axes, array.listed((8, 1, 7, 5))) == (kernel.shape, (2, 3, 1, 0), (7, 5, 1, 8))


@pytest.mark.parametrize("order", [("K", (0, 0)), ("K", (0,)), ("K", None), ("C", (0, 1)), ("A",), (7,)])
def test_an_order_that_is_none(order: tuple[Any, ...]):
    with pytest.raises(DamagedError, match="in no order that numpy has"):
        read(pickle.dumps(Called(bytearray(24), np.dtype("f4"), (2, 3), *order), 5))


class Own(np.ndarray):
    """An array of a class of its own, which numpy pickles as it pickles others."""


class Stateful(Own):
    def __reduce__(self) -> Any:
        return *super().__reduce__()[:2], (1, "mine")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("value", [np.ma.array(np.ones((2, 3)), mask=False), np.ones((2, 3)).view(Own)])
def test_arrays_of_other_classes(protocol: int, value: Any):
    """Seen, so that a first convolution is not taken for one that is not there; and not read."""
    found = read(pickle.dumps(value, protocol))
    assert isinstance(found, NoNumbers)
    assert found.shape == (2, 3)
    assert found.what.startswith("is an array of the class ")
    assert found.what.endswith(f".{type(value).__name__}")


def test_a_class_with_a_state_of_its_own_is_none():
    assert read(pickle.dumps(np.ones(2).view(Stateful), 4)) is None


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_in_memory_is_an_array(protocol: int, tmp_path: Path):
    mapped = np.memmap(tmp_path / "a", "f4", "w+", shape=(2, 3))
    assert isinstance(read(pickle.dumps(mapped, protocol)), Array)


def test_a_dtype_with_metadata():
    assert isinstance(read(pickle.dumps(np.ones(3, np.dtype("f4", metadata={"a": 1})), 4)), Array)


@pytest.mark.skipif(not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="numpy 1 has no such texts")
def test_texts_of_any_length_are_no_weights():
    found = read(pickle.dumps(np.array(["a", "b"], np.dtypes.StringDType()), 4))
    assert found == NoNumbers((2,))


def test_elements_out_of_band():
    data = pickle.dumps(np.ones(3), 5, buffer_callback=[].append)
    found = read(data)
    assert isinstance(found, NoNumbers)
    assert "outside of the file" in found.what


@pytest.mark.parametrize("value", [np.float32(1), np.dtype("f4"), {"a": 1}, slice(1)])
def test_what_is_no_array(value: Any):
    assert read(pickle.dumps(value, 4)) is None


@pytest.mark.parametrize(("old", "new"), [(b"K\x02K\x03\x86", b"K\x02J\xff\xff\xff\xff\x86"), (b"K\x02K\x03\x86", b"K\x02N\x86")])
def test_shapes_that_are_none(old: bytes, new: bytes):
    data = pickle.dumps(np.ones((2, 3)), 2)
    with pytest.raises(DamagedError, match="non-negative integers"):
        read(data.replace(old, new))


def test_a_shape_of_too_many_axes():
    with pytest.raises(DamagedError, match="has 65 axes; 64 are the most"):
        read(pickle.dumps(np.ones((2, 3)), 2).replace(b"K\x02K\x03\x86", b"(" + b"K\1" * 65 + b"t"))


@pytest.mark.parametrize(
    ("data", "words"), [(b"a\xc4\x80", "no text of latin-1"), (b"a\xff", "no text"), (b"abc", "have 3 bytes")]
)
def test_a_text_that_is_none(data: bytes, words: str):
    text = LatinText(HERE, (0, 9), 2)
    with pytest.raises(DamagedError, match=words):
        list(map(text.update, [memoryview(data)])) and text.finish()


def test_a_text_in_pieces():
    text = LatinText(HERE, (0, 9), 3)
    assert [text.taken(piece) for piece in (b"a\xc3", b"\xbf", b"b")] == [b"a", b"\xff", b"b"]
    text.finish()


def of_jax(array: Any) -> bytes:
    """As jax.Array.__reduce__ makes it, by opcodes. Source: jax/_src/array.py of jax 0.10."""
    function, arguments, state = array.__reduce__()
    parts = b"".join(pickle.dumps(part, 4)[11:-1] for part in (function, arguments, state, {"weak_type": False}))
    return b"\x80\4cjax._src.array\n_reconstruct_array\n(" + parts + b"tR."


def test_an_array_of_jax():
    array = read(of_jax(np.ones((2, 3), np.float32)))
    assert isinstance(array, Array)
    assert (array.dtype.name, array.shape) == ("F32", (2, 3))
