"""A state dict as a new archive: what this package reads back, and where the elements are put."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.formats.torch.writer import ALIGN_BYTES, WRITER
from tests.support.files import opened

VALUES = {
    "conv1.weight": np.arange(108, dtype="f4").reshape(4, 3, 3, 3),
    "größe": np.arange(300, dtype="i8"),
    "empty": np.zeros((0, 3), "f4"),
    "hollow": np.zeros((2, 0, 3), "f4"),
    "step": np.array(7, "i8"),
}
DTYPES = {"float32": "F32", "int64": "I64"}
TENSORS = [Tensor(name, BY_NAME[DTYPES[str(value.dtype)]], value.shape) for name, value in VALUES.items()]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "a.pth"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    WRITER.write(TENSORS, lambda name: iter([VALUES[name].tobytes()]), descriptor)
    os.close(descriptor)
    return path


def test_it_is_read_back(written: Path):
    with opened(written) as checkpoint:
        assert list(checkpoint.tensors) == list(VALUES)
        for name, value in VALUES.items():
            assert np.array_equal(checkpoint.load(name), value)
            assert checkpoint.load(name).shape == value.shape
        assert checkpoint.globals == ()
        strides = {name: checkpoint.main.views[name].stride for name in ("empty", "hollow")}
        assert strides == {"empty": (3, 1), "hollow": (3, 3, 1)}  # torch.empty(2, 0, 3).stride()


def test_every_member_is_stored_and_aligned(written: Path):
    data = written.read_bytes()
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            lengths = data[info.header_offset + 26 : info.header_offset + 30]
            start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            assert start % ALIGN_BYTES == 0
            assert info.compress_type == zipfile.ZIP_STORED
        assert archive.namelist()[0] == "archive/data.pkl"


@pytest.mark.parametrize(("dtype", "keeps"), [("F32", True), ("BF16", True), ("F8_E4M3", True), ("U4", False)])
def test_what_a_state_dict_can_hold(dtype: str, keeps: bool):
    assert WRITER.keeps(Tensor("a", BY_NAME[dtype], (2,))) is keeps
