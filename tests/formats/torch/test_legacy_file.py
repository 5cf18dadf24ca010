"""PyTorch's format before 1.6: what the five pickles and the storages behind them say about each other."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import ChkptChannelsError, DamagedError, UnknownFormatError, UnsupportedError, convert, inspect
from tests.support.builders import (
    LEGACY_MAGIC,
    Call,
    Global,
    Persistent,
    Raw,
    conv,
    floats,
    pickled,
    storage,
    tensor,
    torch_legacy,
)
from tests.support.files import FIXTURES, contents, snapshot, there_and_back

LEGACY = FIXTURES / "torch_legacy"
RAW = floats(108)
ROOT = {"conv1.weight": conv()}
ONE = {"0": RAW}
GOOD = torch_legacy(ROOT, ONE)
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}


def five(magic: Any = LEGACY_MAGIC, version: Any = 1001, system: Any = SYSTEM, root: Any = None, keys: Any = ("0",)) -> bytes:
    """The pickles, and one storage."""
    first = Raw(pickle.dumps(magic, 2)[2:-1])
    parts = (first, version, system, ROOT if root is None else root, list(keys) if isinstance(keys, tuple) else keys)
    return b"".join(map(pickled, parts)) + struct.pack("<q", 108) + RAW


DAMAGED: dict[str, tuple[bytes, str]] = {
    "version": (five(version=1002), "is not a torch file of protocol 1001"),
    "version of text": (five(version="1001"), "is not a torch file of protocol 1001"),
    "keys too few": (five(keys=()), "list of storages does not match its tensors"),
    "keys too many": (five(keys=("0", "1")), "list of storages does not match its tensors"),
    "key twice": (torch_legacy(ROOT, ONE, keys=["0", "0"]) + struct.pack("<q", 108) + RAW, "is listed twice among the storages"),
    "keys of numbers": (five(keys=[0]), "list of storages does not match its tensors"),
    "keys of text": (five(keys="0"), "list of storages does not match its tensors"),
    "keys of a number": (five(keys=5), "list of storages does not match its tensors"),
    "keys of nothing": (five(keys=Raw(b"N")), "list of storages does not match its tensors"),
    "count is not the pickle's": (torch_legacy(ROOT, ONE, counts={"0": 107}), "element count 107 in the file, 108 in the pickle"),
    "count of 2^40": (torch_legacy(ROOT, ONE, counts={"0": 1 << 40}), "element count 1099511627776 in the file"),
    "negative count": (torch_legacy(ROOT, ONE, counts={"0": -1}), "element count -1 in the file"),
    "junk behind": (GOOD + b"\0", "1 bytes follow the last storage"),
    "element missing": (GOOD[:-4], "is cut off"),
    "pickle of 2^40 elements": (torch_legacy({"conv1.weight": tensor(storage("0", 1 << 40), (4, 3, 3, 3))}, ONE), "is cut off"),
    "invalid opcode": (five(root=Raw(b"\xff")), "0xff is not an opcode"),
    "persistent text": (torch_legacy({"conv1.weight": tensor(Persistent("module"), (4, 3))}, {}), "no storage"),
}


@pytest.mark.parametrize(("data", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damage(data: bytes, words: str, put: Callable[..., Path], tmp_path: Path):
    with pytest.raises(DamagedError, match=words):
        convert(put(data))
    assert snapshot(tmp_path).keys() == {"a.pth"}


def test_every_cut_is_damage(put: Callable[..., Path]):
    small = torch_legacy({"w": tensor(storage("0", 4), (1, 1, 2, 2))}, {"0": RAW[:16]})
    inspect(put(small))
    for cut in range(len(small)):
        with pytest.raises(DamagedError):
            inspect(put(small[:cut]))


@pytest.mark.parametrize("system", [{"little_endian": False}, {}, 5, "x"], ids=["big", "silent", "number", "text"])
def test_the_order_of_bytes(system: Any, put: Callable[..., Path]):
    """Big-endian elements are not converted; what does not say is taken as written here."""
    path = put(five(system=system))
    if system == {"little_endian": False}:
        with pytest.raises(ChkptChannelsError):
            convert(path)
    else:
        assert convert(path).status == "converted"


def test_a_storage_that_is_a_view_is_refused(put: Callable[..., Path]):
    """torch before 0.2 wrote (root key, offset, size) as the sixth part of a persistent id; None is what the others write."""
    parts = ("storage", Global("torch", "FloatStorage"), "0", "cpu", 108)
    for view, refused in ((None, False), (("9", 0, 108), True)):
        path = put(torch_legacy({"conv1.weight": tensor(Persistent((*parts, view)), (4, 3, 3, 3))}, ONE))
        if refused:
            with pytest.raises(UnsupportedError, match="view into another one"):
                convert(path, force=True)
        else:
            assert convert(path, force=True).status == "converted"


def test_sources_of_modules_are_carried_through(put: Callable[..., Path], tmp_path: Path):
    """Persistent ids ('module', class, file, source) mark the classes of pickled modules."""
    kind = Persistent(("module", Global("nets", "Conv2d"), "conv.py", "class Conv2d: ..."))
    net = Call(kind, (), {"_parameters": {"weight": conv()}, "in_channels": 3, "groups": 1})
    report = convert(put(torch_legacy(net, ONE)), tmp_path / "out.pth")
    assert [(d.where, d.after) for d in report.declarations] == [("in_channels", 1)]
    assert b"class Conv2d: ..." in (tmp_path / "out.pth").read_bytes()
    assert "nets.Conv2d" in report.warnings[0].message


def test_a_view_into_a_larger_storage(put: Callable[..., Path], tmp_path: Path):
    store = storage("0", 200)
    data = floats(200)
    path = put(torch_legacy({"conv1.weight": tensor(store, (4, 3, 3, 3), offset=92), "other": tensor(store, (92,))}, {"0": data}))
    convert(path, tmp_path / "out.pth")
    after = contents(tmp_path / "out.pth")
    expected = np.frombuffer(data[92 * 4 :], "<f4").reshape(4, 3, 3, 3).astype("<f8").sum(1).astype("<f4")
    assert after == {"conv1.weight": expected.tobytes(), "other": data[: 92 * 4]}


REVERSIBLE = ("state_dict.pth", "state_dict_gray.pth", "module.pth", "training.pth", "protocol4.pth", "bfloat16.pth")


@pytest.mark.parametrize("name", REVERSIBLE)
def test_there_and_back_is_the_same_file(name: str, tmp_path: Path):
    assert there_and_back(LEGACY / name, tmp_path / name, 4) == (LEGACY / name).read_bytes()


def test_dropped_state_is_gone(tmp_path: Path):
    """The entry, its key in the list of storages, and its elements."""
    source = LEGACY / "training.pth"
    report = convert(source, tmp_path / "out.pth", optimizer="drop")
    before, after = contents(source), contents(tmp_path / "out.pth")
    assert before.keys() - after.keys() == {"optimizer/state/0/momentum_buffer"}
    assert all(after[name] == before[name] for name in after if name not in report.changed)
    gone = len(before["optimizer/state/0/momentum_buffer"])
    assert source.stat().st_size - (tmp_path / "out.pth").stat().st_size > gone * 5 // 3


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5])
def test_it_is_told_by_its_magic_number(number: int, put: Callable[..., Path]):
    """However it is spelled; a pickle of something else is not claimed."""
    rest = GOOD[len(pickle.dumps(LEGACY_MAGIC, 2)) :]
    assert inspect(put(pickle.dumps(LEGACY_MAGIC, number) + rest)).input.format == "torch_legacy"
    with pytest.raises((UnsupportedError, UnknownFormatError)):
        inspect(put(pickle.dumps(LEGACY_MAGIC + 1, number) + rest))
