"""NumPy's archives: the output is what numpy.savez writes for the converted arrays."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chkpt_channels import UnsupportedError, check, convert, inspect, verify
from tests.support.big_files import big, peak
from tests.support.files import FIXTURES, contents, there_and_back

NPZ = FIXTURES / "npz"
STEM = "params/conv_init/kernel"
Put = Callable[..., Path]
KERNEL = np.random.default_rng(0).standard_normal((7, 7, 3, 8)).astype("f4")
NET = {"conv/kernel": KERNEL, "conv_1/kernel": np.ones((3, 3, 8, 8), "f4"), "head/kernel": np.ones((8, 2), "f4")}


def saved(arrays: dict[str, Any], save: Callable[..., None] = np.savez) -> bytes:
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "save"),
    [("rgb", np.savez), ("packed", np.savez_compressed), ("half", np.savez), ("vit", np.savez), ("bit", np.savez)],
)
@pytest.mark.parametrize("to", [1, 2, 4, 12])
def test_the_output_is_what_numpy_writes_for_the_new_kernel(name: str, save: Callable[..., None], to: int, tmp_path: Path):
    source, out = NPZ / f"{name}.npz", tmp_path / "out.npz"
    (kernel,) = convert(source, out, to=to).kernels
    with np.load(source) as before, np.load(out) as after:
        arrays = {key: before[key] for key in before.files} | {kernel.conv.tensor.name: after[kernel.conv.tensor.name]}
        assert after[kernel.conv.tensor.name].shape == kernel.shape_after
    assert out.read_bytes() == saved(arrays, save)


@pytest.mark.parametrize("channels", [3, 1000])
def test_headers_of_other_lengths_are_numpys_too(channels: int, put: Put, tmp_path: Path):
    """OIHW, whose first side numpy leaves room for; and a count of more digits."""
    net = {"conv.weight": np.ones((8, 3, 7, 7), "f4"), "fc.weight": np.ones((2, 8), "f4")}
    path = put(saved(net), "a.npz")
    convert(path, tmp_path / "b.npz", to=channels if channels != 3 else 1, layers=["conv.weight"], layout="OIHW")
    with np.load(tmp_path / "b.npz") as arrays:
        new = {name: arrays[name] for name in arrays.files}
    assert (tmp_path / "b.npz").read_bytes() == saved(new)


@pytest.mark.parametrize("align", [64, 16])
def test_headers_of_old_numpy_stay_old(align: int, put: Put, tmp_path: Path):
    """Without room for growth, padded to 64 bytes since 1.14 and to 16 before."""
    text = re.sub(r"\s+$", "", str({"descr": "<f4", "fortran_order": False, "shape": KERNEL.shape}))[:-1] + ", }"

    def header(text: str) -> bytes:
        text += " " * (align - (10 + len(text) + 1) % align) + "\n"
        return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()

    def archive(head: bytes, values: np.ndarray) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            file.writestr(zipfile.ZipInfo("conv/kernel.npy"), head + values.tobytes())
        return out.getvalue()

    path = put(archive(header(text), KERNEL), "a.npz")
    convert(path, tmp_path / "b.npz", to="gray")
    with np.load(tmp_path / "b.npz") as arrays:
        new = arrays["conv/kernel"]
    assert (tmp_path / "b.npz").read_bytes() == archive(header(text.replace("7, 7, 3, 8", "7, 7, 1, 8")), new)


@pytest.mark.parametrize(
    "text", ["{'shape': (3,), 'fortran_order': False, 'descr': '<f4'}", '{"descr": "<f4", "fortran_order": False, "shape": (3,)}']
)
def test_a_header_in_other_words_is_refused_and_no_damage(text: str, put: Put):
    """numpy reads whatever Python does; other libraries write it as numpy does."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\1\0" + (len(text) + 1).to_bytes(2, "little") + f"{text}\n".encode() + bytes(12))
    with np.load(io.BytesIO(out.getvalue())) as arrays:
        assert arrays["a"].shape == (3,)
    with pytest.raises(UnsupportedError, match=r"a\.npy: its header is not written as numpy writes it"):
        inspect(put(out.getvalue(), "a.npz"))


def test_the_old_kernel_put_back_is_the_same_file(tmp_path: Path):
    for name in ("rgb", "packed", "fortran", "versions", "streamed", "adam", "oihw"):
        source = NPZ / f"{name}.npz"
        assert there_and_back(source, tmp_path / f"{name}.npz", 1) == source.read_bytes()


def test_fortran_order_stays(tmp_path: Path):
    convert(NPZ / "fortran.npz", tmp_path / "a.npz", to=4)
    convert(NPZ / "rgb.npz", tmp_path / "b.npz", to=4)
    with np.load(tmp_path / "a.npz") as one, np.load(tmp_path / "b.npz") as other:
        assert one[STEM].flags.f_contiguous
        assert all(np.array_equal(one[name], other[name]) for name in other.files)
    assert (tmp_path / "a.npz").read_bytes() == saved(dict(np.load(tmp_path / "a.npz")))


def test_bfloat16_is_edited_where_the_user_says_so(put: Put, tmp_path: Path):
    net = {name: array.astype(ml_dtypes.bfloat16) for name, array in NET.items()}
    path, out = put(saved(net), "a.npz"), tmp_path / "b.npz"
    with pytest.raises(UnsupportedError, match="has two bytes an element and no type") as refused:
        convert(path, out, to="gray")
    assert refused.value.hint == "--bfloat16"
    assert convert(path, out, to="gray", bfloat16=True).status == "converted"
    with pytest.raises(UnsupportedError, match="no type"):
        verify(path, out)
    assert verify(path, out, bfloat16=True).ok
    assert check(out, "gray").ok
    summed = sum(net["conv/kernel"].astype("f8")[:, :, i] for i in range(3)).astype("f4").astype(ml_dtypes.bfloat16)[:, :, None]
    assert out.read_bytes() == saved(net | {"conv/kernel": summed})


def test_bfloat16_behind_the_stem_is_copied(tmp_path: Path):
    assert convert(NPZ / "bfloat16.npz", tmp_path / "a.npz", to="gray").changed == (STEM,)


def test_objects_are_copied_unread_with_a_notice(tmp_path: Path):
    report = convert(NPZ / "objects.npz", tmp_path / "a.npz", to="gray")
    assert [notice.message for notice in report.warnings if notice.code == "object_array"] == [
        "labels: holds Python objects, copied unread"
    ]
    with zipfile.ZipFile(NPZ / "objects.npz") as before, zipfile.ZipFile(tmp_path / "a.npz") as after:
        assert before.read("labels.npy") == after.read("labels.npy")


@pytest.mark.parametrize("kind", ["V1", "V7", [("a", "f4"), ("b", "i4", (2,))]])
def test_structures_are_copied_and_refused_as_the_stem(kind: Any, put: Put, tmp_path: Path):
    path = put(saved({**NET, "rows": np.zeros(5, kind)}), "a.npz")
    convert(path, tmp_path / "b.npz", to="gray")
    with np.load(path) as before, np.load(tmp_path / "b.npz") as after:
        assert before["rows"].tobytes() == after["rows"].tobytes()
    with pytest.raises(UnsupportedError, match=r"conv/kernel: is of the type .*, whose elements are not read"):
        convert(put(saved({**NET, "conv/kernel": np.zeros(KERNEL.shape, kind)}), "c.npz"), tmp_path / "d.npz", to="gray")


@pytest.mark.parametrize("kind", ["U3", "S3", "M8[s]", "m8[ns]"])
def test_text_and_times_are_no_weights(kind: str, put: Put, tmp_path: Path):
    path = put(saved({**NET, "labels": np.zeros(5, kind)}), "a.npz")
    assert [t.name for t in inspect(path).tensors] == list(NET)
    convert(path, tmp_path / "b.npz", to="gray")
    with np.load(tmp_path / "b.npz") as arrays:
        assert arrays["labels"].dtype == kind


def test_every_type_of_numbers(put: Put):
    kinds = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u8": "U64"}
    kinds |= {"u4": "U32", "u2": "U16", "u1": "U8", "?": "BOOL", "c8": "C64", "c16": "C128"}
    path = put(saved({name: np.zeros((2, 3), kind) for kind in kinds for name in [f"a{kind}"]}), "a.npz")
    assert {t.name: t.dtype.name for t in inspect(path).tensors} == {f"a{kind}": name for kind, name in kinds.items()}
    assert set(map(len, contents(path).values())) == {6 << i for i in range(5)}


def test_the_lines_that_load_it(tmp_path: Path):
    lines = convert(NPZ / "rgb.npz", tmp_path / "a.npz", to="gray").load_lines
    assert (lines[0], lines[-1]) == ("import numpy", f"arrays = numpy.load({str(tmp_path / 'a.npz')!r})")


@pytest.mark.parametrize("packed", [False, True])
def test_memory_does_not_grow_with_the_file(packed: bool, tmp_path: Path):
    path = tmp_path / "a.npz"
    if packed:
        np.savez_compressed(path, **NET, big=np.zeros(512 << 18, "f4"))
    assert peak(path if packed else big(path, 512)) <= 80
