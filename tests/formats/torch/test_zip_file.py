"""PyTorch's zip archives: hostile pickles and geometries, storages that tensors share, and what torch derives from the bytes."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chkpt_channels import ChkptChannelsError, DamagedError, UnsupportedError, convert, inspect
from tests.support.builders import (
    Call,
    Global,
    Persistent,
    Raw,
    Zipped,
    conv,
    floats,
    one_conv,
    pickled,
    spelled,
    storage,
    tensor,
    torch_zip,
    zipped,
)
from tests.support.files import FIXTURES, contents, snapshot, there_and_back, within

TORCH = FIXTURES / "torch_zip"
RAW = floats(108)
BIG = Raw(b"\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000)  # an integer of more digits than Python prints
ONE = {"0": RAW}


def hostile(value: Any, storages: dict[str, bytes] | None = None, **more: Any) -> bytes:
    return torch_zip({"conv1.weight": value, **more}, storages or ONE)


def shaped(shape: Any, stride: Any = None, offset: Any = 0) -> bytes:
    return hostile(tensor(storage("0", 108), shape, stride=stride, offset=offset))


DAMAGED: dict[str, tuple[bytes, str]] = {
    "beyond its storage": (shaped((4, 3, 3, 4)), "reaches beyond its 108 elements"),
    "offset beyond": (shaped((4, 3, 3, 3), offset=1), "reaches beyond"),
    "stride beyond": (shaped((4, 3, 3, 3), (28, 9, 3, 1)), "reaches beyond"),
    "more elements than there are numbers": (shaped((1 << 32, 1 << 32), (0, 0)), "reaches beyond"),
    "product beyond 2^63": (shaped((1 << 62, 3, 3, 3), (0, 0, 0, 0)), "reaches beyond"),
    "huge size": (shaped((1 << 40, 3, 3, 3)), "reaches beyond"),
    "endless size": (shaped((BIG, 3, 3, 3), (27, 9, 3, 1)), "reaches beyond|size, stride and storage offset must be"),
    "endless offset": (shaped((4, 3, 3, 3), offset=BIG), "reaches beyond|size, stride and storage offset must be"),
    "negative size": (shaped((-4, 3, 3, 3), (27, 9, 3, 1)), "size, stride and storage offset must be"),
    "negative stride": (shaped((4, 3, 3, 3), (27, 9, 3, -1)), "size, stride and storage offset must be"),
    "negative offset": (shaped((4, 3, 3, 3), offset=-1), "size, stride and storage offset must be"),
    "rank mismatch": (shaped((4, 3, 3, 3), (27, 9, 3)), "size, stride and storage offset must be"),
    "size of text": (shaped("4333", (27, 9, 3, 1)), "size, stride and storage offset must be"),
    "size of floats": (shaped((4.0, 3, 3, 3), (27, 9, 3, 1)), "size, stride and storage offset must be"),
    "size of nothing": (shaped(None, (27, 9, 3, 1)), "size, stride and storage offset must be"),
    "no storage": (hostile(tensor("0", (4, 3, 3, 3))), "has no storage"),
    "count is not the record's": (hostile(tensor(storage("0", 107), (4, 3, 3, 2))), "its 107 elements need 428"),
    "record too short": (hostile(conv(), {"0": RAW[:-4]}), "holds 428 bytes"),
    "record too long": (hostile(conv(), {"0": RAW + b"\0"}), "holds 433 bytes"),
    "record missing": (hostile(conv("7")), "data/7: the storage is missing"),
    "record outside": (hostile(conv("../version")), "the storage is missing"),
    "negative count": (hostile(tensor(storage("0", -1), (4, 3, 3, 3))), "element count must be a non-negative integer"),
    "count of text": (hostile(tensor(storage("0", "108"), (4, 3, 3, 3))), "element count must be a non-negative integer"),
    "endless count": (hostile(tensor(storage("0", BIG), (4, 3, 3, 3))), "bytes|element count must be"),
    "two counts": (
        hostile(conv(), other=tensor(storage("0", 100), (4, 3, 3, 2))),
        "element count 108 in one place of the pickle, 100",
    ),
    "two endless counts": (hostile(conv(), other=tensor(storage("0", BIG), (4, 3, 3, 2))), "element count"),
    "number as key": (hostile(tensor(storage(0, 108), (4, 3, 3, 3))), "persistent id is not a storage"),
    "persistent id too short": (hostile(tensor(Persistent(("storage", 1)), (4, 3, 3, 3))), "persistent id is not a storage"),
    "persistent text": (hostile(tensor(Persistent("storage"), (4, 3, 3, 3))), "persistent id|no storage"),
    "persistent number": (hostile(tensor(Persistent(5), (4, 3, 3, 3))), "persistent id|no storage"),
    "persistent dict": (hostile(tensor(Persistent({"storage": 1}), (4, 3, 3, 3))), "persistent id|no storage"),
    "invalid opcode behind a call": (torch_zip(pickled([conv()])[:-1] + b"\xff.", ONE), "0xff is not an opcode"),
    "no STOP": (torch_zip(pickled({"conv1.weight": conv()})[:-1], ONE), "cut off"),
    "empty pickle": (torch_zip(b"", ONE), "cut off"),
    "two data.pkl": (zipped(Zipped("a/data.pkl", b"N."), Zipped("b/data.pkl", b"N.")), "2 members named data.pkl"),
    "data.pkl twice": (zipped(Zipped("a/data.pkl", b"N."), Zipped("a/data.pkl", b"N.")), "occurs twice"),
    "data.pkl too deep": (zipped(Zipped("a/b/data.pkl", b"N.")), "0 members named data.pkl"),
}


@pytest.mark.parametrize(("data", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damage(data: bytes, words: str, put: Callable[..., Path], tmp_path: Path):
    path = put(data)
    with pytest.raises(DamagedError, match=words) as caught:
        convert(path)
    assert len(str(caught.value)) < 5000
    assert snapshot(tmp_path).keys() == {path.name}


def quantized(*arguments: Any) -> Call:
    return Call(Global("torch._utils", "_rebuild_qtensor"), arguments)


def grouped(shape: tuple[int, ...], channels: int, groups: int) -> Call:
    """A pickled convolution in groups."""
    state = {"_parameters": {"weight": conv("0", shape)}, "in_channels": channels, "groups": groups}
    return Call(Global("torch.nn.modules.conv", "Conv2d"), (), state)


TWICE = Raw(b"}(" + (spelled("conv1.weight") + spelled(conv())) * 2 + b"u")
UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "the same key twice": (torch_zip(TWICE, ONE), "conv1.weight: the name occurs twice"),
    "two keys of one name": (torch_zip({1: conv(), "1": conv()}, ONE), "1: the name occurs twice"),
    "unknown storage": (hostile(tensor(storage("0", 108, "Fancy"), (4, 3, 3, 3))), "unknown type torch.FancyStorage"),
    "foreign storage": (
        hostile(tensor(Persistent(("storage", Global("os", "FloatStorage"), "0", "cpu", 108)), (4, 3, 3, 3))),
        "unknown type os.FloatStorage",
    ),
    "overlapping views": (hostile(conv(), other=tensor(storage("0", 108), (2,), offset=5)), "shares its memory with other"),
    "expanded": (hostile(tensor(storage("0", 4), (4, 3, 3, 3), stride=(1, 0, 0, 0)), {"0": RAW[:16]}), "stride 0"),
    "quantized": (
        hostile(quantized(storage("0", 108), 0, (4, 3, 3, 3), (27, 9, 3, 1), (), False, ())),
        "quantized",
    ),
    "protocol 0": (torch_zip(pickle.dumps({"a": 1}, 0), ONE), "protocol 0"),
    "big-endian": (torch_zip({"conv1.weight": conv()}, ONE, {"byteorder": b"big"}), "big-endian"),
}


@pytest.mark.parametrize(("data", "words"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_sound_but_not_converted(data: bytes, words: str, put: Callable[..., Path], tmp_path: Path):
    path = put(data)
    with pytest.raises(UnsupportedError, match=words):
        convert(path)
    assert snapshot(tmp_path).keys() == {path.name}


@pytest.mark.parametrize(
    ("shape", "channels", "groups", "to"),
    [((4, 3, 3, 3), 12, 4, 1), ((4, 3, 3, 3), 12, 4, 3), ((12, 1, 3, 3), 3, 3, 4)],
    ids=["four of three, to gray", "four of three, to RGB", "depthwise, to four"],
)
def test_groups_that_do_not_become_one(shape: tuple[int, ...], channels: int, groups: int, to: int, put: Callable[..., Path]):
    with pytest.raises(UnsupportedError, match="groups"):
        convert(put(torch_zip(grouped(shape, channels, groups), ONE)), to=to, layers=["weight"])


def test_one_group_a_color_becomes_one_group(put: Callable[..., Path], tmp_path: Path):
    """The very same bytes then serve groups=1."""
    report = convert(put(torch_zip(grouped((12, 1, 3, 3), 3, 3), ONE)), tmp_path / "out.pth", layers=["weight"])
    assert contents(tmp_path / "out.pth") == {"weight": RAW}
    assert {(d.where, d.before, d.after) for d in report.declarations} == {("in_channels", 3, 1), ("groups", 3, 1)}


# What carries no tensors is copied inert, whatever it is.

LOOP = Raw(b"}q\x63(" + spelled("self") + b"h\x63u")
LOOPED = Raw(b"]q\x63h\x63a")
BOMB = Raw(b")" + b"".join(b"q%ch%c\x86" % (i + 100, i + 100) for i in range(60)))
HARMLESS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a dict in itself": (LOOP, ()),
    "a list in itself": (LOOPED, ()),
    "a memo bomb": (BOMB, ()),
    "a pickle in bytes": (Raw(pickle.dumps(pickled(Call(Global("os", "mkdir"), ("x",))), 3)[2:-1]), ()),
    "Namespace": (Call(Global("argparse", "Namespace"), (), {"in_chans": 3}), ("argparse.Namespace",)),
    "numpy scalar": (Call(Global("numpy.core.multiarray", "scalar"), ("f8", b"12345678")), ("numpy.core.multiarray.scalar",)),
    "a set": (Raw(pickle.dumps({1, 2}, 4)[2:-1]), ()),
    "an OrderedDict of text": (Call(Global("collections", "OrderedDict"), (["ab", "cd"],)), ()),
    "a call with text": (Call(Global("torch._utils", "_rebuild_tensor_v2"), "abcd"), ()),
    "a call with a number": (Call(Global("torch._utils", "_rebuild_tensor_v2"), 5), ()),
    "a parameter of text": (Call(Global("torch._utils", "_rebuild_parameter"), "abcd"), ()),
    "an object with text for a state": (Call(Global("collections", "OrderedDict"), (), "state"), ()),
    "an optimizer of text": ({"state": "abcd", "param_groups": "ab"}, ()),
    "an optimizer of numbers": ({"state": 5, "param_groups": 5}, ()),
    "an endless number": (BIG, ()),
    "an endless number as key": (Raw(b"}" + BIG.data + b"K\1s"), ()),
    "a memo index of 2^32-1": (Raw(b"K\5\x85r\xff\xff\xff\xff0j\xff\xff\xff\xff"), ()),
    "a version-2 string": (Raw(b"U\3abc"), ()),
}


@pytest.mark.parametrize(("value", "names"), HARMLESS.values(), ids=HARMLESS)
def test_the_rest_is_carried_through(value: Any, names: tuple[str, ...], put: Callable[..., Path], tmp_path: Path):
    path = put(one_conv({"rest": value}))
    report = convert(path, tmp_path / "out.pth", to=4)
    before, after = (zipfile.ZipFile(p).read("archive/data.pkl") for p in (path, tmp_path / "out.pth"))
    assert after[after.index(spelled("rest")) :] == before[before.index(spelled("rest")) :]
    told = {w.code: w.message for w in report.warnings if w.code != "hyper_parameters"}
    assert list(told) == (["foreign_globals"] if names else [])
    assert all(name in message for name in names for message in told.values())


def marker(opcodes: str, folder: Path) -> Raw:
    """A call of os.mkdir in the words of one opcode."""
    path, text = spelled(str(folder)), spelled
    return {
        "REDUCE": Raw(b"cposix\nmkdir\n" + path + b"\x85R"),
        "INST": Raw(b"(" + path + b"iposix\nmkdir\n"),
        "OBJ": Raw(b"(cposix\nmkdir\n" + path + b"o"),
        "NEWOBJ": Raw(b"cposix\nmkdir\n" + path + b"\x85\x81"),
        "STACK_GLOBAL": Raw(text("posix") + text("mkdir") + b"\x93" + path + b"\x85R"),
        "BUILD": Raw(b"cposix\nmkdir\n" + path + b"b"),
    }[opcodes]


@pytest.mark.parametrize("opcodes", ["REDUCE", "INST", "OBJ", "NEWOBJ", "STACK_GLOBAL", "BUILD"])
def test_no_call_is_made(opcodes: str, put: Callable[..., Path], tmp_path: Path):
    """A pickle that makes a folder where it is executed: it is not, the warning names it, strict refuses it."""
    folder = tmp_path / "marker"
    path = put(one_conv({"rest": marker(opcodes, folder)}))
    report = convert(path, tmp_path / "out.pth")
    inspect(path)
    assert ["posix.mkdir" in warning.message for warning in report.warnings] == [True]
    with pytest.raises(UnsupportedError, match=r"posix\.mkdir"):
        convert(path, tmp_path / "strict.pth", strict=True)
    assert snapshot(tmp_path).keys() == {"a.pth", "out.pth"}


def test_the_marker_works():
    """Otherwise the test above could not fail."""
    ran: list[str] = []
    folder = Path("/nowhere/marker")

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return lambda path: ran.append(f"{module}.{name} {path}")

    import io

    Unpickler(io.BytesIO(pickled(marker("REDUCE", folder)))).load()
    assert ran == [f"posix.mkdir {folder}"]


def test_a_call_before_damage_is_not_made_either(put: Callable[..., Path], tmp_path: Path):
    call = marker("REDUCE", tmp_path / "marker")
    with pytest.raises(DamagedError, match="is not an opcode"):
        convert(put(torch_zip(pickled(call)[:-1] + b"\xff.", ONE)))
    assert snapshot(tmp_path).keys() == {"a.pth"}


def test_nothing_is_resolved_or_started(put: Callable[..., Path], tmp_path: Path):
    """The interpreter's own audit events, over a whole conversion of a hostile file and of a TorchScript archive."""
    program = """
import sys
from chkpt_channels import convert, verify
seen = set()
sys.addaudithook(lambda event, _: seen.add(event))
for source in sys.argv[1:]:
    convert(source, source + ".out")
    verify(source, source + ".out")
print(*sorted(seen & {"pickle.find_class", "os.mkdir", "os.system", "os.exec", "subprocess.Popen", "socket.connect"}))
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")))
"""
    hostile_ = put(one_conv({"rest": marker("REDUCE", tmp_path / "marker")}))
    script = put((TORCH / "scripted.pt").read_bytes(), "scripted.pt")
    command = [sys.executable, "-c", program, str(hostile_), str(script)]
    done = subprocess.run(command, cwd=FIXTURES.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "\n\n"
    assert not (tmp_path / "marker").exists()


OPCODES = [None, *b".(0KMJNQRbacdetu)]}\x85\x86\x87h2lo\x81\x93\x94"]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(OPCODES)), min_size=1, max_size=3))
def test_whatever_the_pickle_no_other_error_escapes(put: Callable[..., Path], changes: list[tuple[int, int | None]]):
    """Opcodes replaced or taken out, checksums right: as an attacker would have them."""
    data = bytearray(PICKLE)
    for at, opcode in changes:
        at %= len(data)
        data[at : at + 1] = b"" if opcode is None else bytes([opcode])
    path = put(torch_zip(bytes(data), {"0": RAW, "1": RAW}), "fuzzed.pth")
    with suppress(ChkptChannelsError):
        inspect(path)


PICKLE = pickled(
    {
        "conv1.weight": conv(),
        "net": Call(Global("torch.nn", "Conv2d"), (), {"_parameters": {"weight": conv("1")}, "in_channels": 3}),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": conv("1")}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }
)


# Bounded: a verdict soon, whatever the metadata. A fifth of what may take ten seconds must not take five.

DEEP = 2 * 10**5


def many_optimizers(depth: int) -> bytes:
    level = spelled("state") + b"}" + spelled("param_groups") + b"N" + spelled("x")
    return b"\x80\x02" + (b"}(" + level) * depth + b"N" + b"u" * depth + b"."


SLOW: dict[str, Callable[[], bytes]] = {
    "lists": lambda: torch_zip(b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".", {}),
    "tuples": lambda: torch_zip(b"\x80\x02)" + b"\x85" * DEEP + b".", {}),
    "a tensor at the bottom": lambda: torch_zip(b"\x80\x02" + b"]" * 10**5 + spelled(conv()) + b"a" * 10**5 + b".", ONE),
    "axes": lambda: shaped((Raw(spelled(1 << 62)),) * 60_000, (0,) * 60_000),
    "axes of two": lambda: shaped((2,) * 10**5, (0,) * 10**5),
    "axes of one": lambda: shaped((1,) * 10**5, (0,) * 10**5),
    "nested optimizers": lambda: torch_zip(many_optimizers(8_000), {}),
}


@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW)
def test_a_verdict_comes_soon(make: Callable[[], bytes], put: Callable[..., Path]):
    path = put(make())
    with within(5), suppress(ChkptChannelsError):
        inspect(path)


def test_five_thousand_layers(put: Callable[..., Path], tmp_path: Path):
    """A state dict and its optimizer, as large models have them."""
    store = storage("1", 1)
    named = {f"blocks.{i}.bn.weight": tensor(store, (1,)) for i in range(5_000)}
    entries = {i: {"step": 1, "exp_avg": tensor(store, (1,))} for i in range(5_000)}
    root = {"model": {"conv1.weight": conv(), **named}, "optimizer": {"state": entries, "param_groups": []}}
    path = put(torch_zip(root, {"0": RAW, "1": RAW[:4]}))
    with within(5):
        assert convert(path, tmp_path / "out.pth").tensors_total == 10_001


ODD = ["\x1b[31m", "nul\0", "\u202eevil", "lone \udc80", "a\nb", "a/b", "", " ", "x" * 10**6]


@pytest.mark.parametrize("name", ODD, ids=lambda name: ascii(name[:9]))
def test_odd_names(name: str, put: Callable[..., Path], tmp_path: Path):
    """They are carried through; where a message names one, it is escaped and cut."""
    path = put(torch_zip({"conv1.weight": conv(), name: conv("1", (2, 2))}, {"0": RAW, "1": RAW[:16]}))
    convert(path, tmp_path / "out.pth")
    assert contents(tmp_path / "out.pth")[name] == RAW[:16]
    put(torch_zip({name: conv("7")}, ONE), "bad.pth")
    with pytest.raises(DamagedError) as caught:
        inspect(tmp_path / "bad.pth")
    assert str(caught.value).isprintable()


# Storages that several tensors look into.


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: np.frombuffer(data, "<f4") for name, data in contents(path).items()}


def summed(data: bytes, shape: tuple[int, ...] = (4, 3, 3, 3)) -> np.ndarray:
    return np.frombuffer(data, "<f4").reshape(shape).astype("<f8").sum(1).astype("<f4").ravel()


SHARED = storage("0", 200)
TWO_HUNDRED = floats(200)


@pytest.mark.parametrize(
    ("offset", "other"),
    [
        (0, tensor(SHARED, (92,), offset=108)),
        (92, tensor(SHARED, (92,))),
        (50, tensor(SHARED, (50,))),
        (50, tensor(SHARED, (42,), offset=158)),
    ],
    ids=["first", "last", "behind", "before"],
)
def test_a_view_into_a_larger_storage(offset: int, other: Call, put: Callable[..., Path], tmp_path: Path):
    path = put(torch_zip({"conv1.weight": tensor(SHARED, (4, 3, 3, 3), offset=offset), "other": other}, {"0": TWO_HUNDRED}))
    convert(path, tmp_path / "out.pth")
    before, after = arrays(path), arrays(tmp_path / "out.pth")
    np.testing.assert_array_equal(after["conv1.weight"], summed(TWO_HUNDRED[offset * 4 : offset * 4 + 432]))
    np.testing.assert_array_equal(after["other"], before["other"])
    convert(tmp_path / "out.pth", tmp_path / "back.pth", to=3)
    np.testing.assert_array_equal(arrays(tmp_path / "back.pth")["other"], before["other"])


def test_one_tensor_under_two_names(put: Callable[..., Path], tmp_path: Path):
    """Tied by two calls over one storage: a kernel that both see, or an edit that would tear them apart."""
    path = put(torch_zip({"conv1.weight": conv(), "copy.weight": conv()}, ONE))
    convert(path, tmp_path / "out.pth", layers=["conv1", "copy"])
    after = arrays(tmp_path / "out.pth")
    np.testing.assert_array_equal(after["conv1.weight"], summed(RAW))
    np.testing.assert_array_equal(after["copy.weight"], summed(RAW))
    with pytest.raises(UnsupportedError, match=r"conv1\.weight: shares its memory with copy\.weight"):
        convert(path, tmp_path / "torn.pth", layers=["conv1"])


def test_two_kernels_in_one_storage(put: Callable[..., Path], tmp_path: Path):
    store = storage("0", 216)
    halves = {"a.weight": tensor(store, (4, 3, 3, 3)), "b.weight": tensor(store, (4, 3, 3, 3), offset=108)}
    path = put(torch_zip(halves, {"0": floats(216)}))
    convert(path, tmp_path / "out.pth", layers=["a", "b"])
    after = arrays(tmp_path / "out.pth")
    np.testing.assert_array_equal(after["a.weight"], summed(floats(216)[:432]))
    np.testing.assert_array_equal(after["b.weight"], summed(floats(216)[432:]))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)], ids=["contiguous", "channels_last", "reversed"])
def test_the_order_in_memory_stays(order: tuple[int, ...], put: Callable[..., Path], tmp_path: Path):
    shape = (4, 3, 5, 6)
    values = np.frombuffer(floats(360), "<f4").reshape(shape)
    stored = np.ascontiguousarray(values.transpose(order))
    strides = [0] * 4
    for axis, stride in zip(order, stored.strides, strict=True):
        strides[axis] = stride // 4
    path = put(torch_zip({"conv1.weight": tensor(storage("0", 360), shape, stride=tuple(strides))}, {"0": stored.tobytes()}))
    convert(path, tmp_path / "out.pth", to=4)
    expected = values[:, [0, 1, 2, 0]].astype("<f8") * 0.75
    np.testing.assert_array_equal(arrays(tmp_path / "out.pth")["conv1.weight"], expected.astype("<f4").ravel())
    with zipfile.ZipFile(tmp_path / "out.pth") as archive:
        assert archive.read("archive/data/0") == expected.astype("<f4").transpose(order).tobytes()


def test_an_untyped_storage_counts_bytes(put: Callable[..., Path], tmp_path: Path):
    """_rebuild_tensor_v3: the element type stands beside the storage."""
    store = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 432))
    arguments = (store, 0, (4, 3, 3, 3), (27, 9, 3, 1), False, None, Global("torch", "float32"))
    path = put(torch_zip({"conv1.weight": Call(Global("torch._utils", "_rebuild_tensor_v3"), arguments)}, ONE))
    convert(path, tmp_path / "out.pth")
    np.testing.assert_array_equal(arrays(tmp_path / "out.pth")["conv1.weight"], summed(RAW))


def subclass(value: Call) -> Call:
    return Call(
        Global("torch._tensor", "_rebuild_from_type_v2"), (value.function, Global("torch", "Tensor"), value.arguments, {})
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: Call(Global("torch._utils", "_rebuild_parameter"), (value, True, None)),
        lambda value: Call(Global("torch._utils", "_rebuild_parameter_with_state"), (value, True, None, {})),
        subclass,
    ],
    ids=["parameter", "parameter with state", "subclass"],
)
def test_wrapped_tensors(wrap: Callable[[Call], Call], put: Callable[..., Path], tmp_path: Path):
    path = put(torch_zip({"conv1.weight": wrap(conv())}, ONE))
    assert convert(path, tmp_path / "out.pth").warnings == ()
    np.testing.assert_array_equal(arrays(tmp_path / "out.pth")["conv1.weight"], summed(RAW))


def test_empty_tensors_and_nan_elsewhere(put: Callable[..., Path], tmp_path: Path):
    more = {"empty": tensor(storage("1", 0), (0, 3)), "nan": tensor(storage("2", 2), (2,))}
    path = put(one_conv(more, **{"1": b"", "2": b"\x01\x00\xc0\x7f\xff\xff\xff\xff"}))
    convert(path, tmp_path / "out.pth")
    assert contents(tmp_path / "out.pth")["nan"] == b"\x01\x00\xc0\x7f\xff\xff\xff\xff"


# What torch derives from the bytes.


REVERSIBLE = ("state_dict", "module", "training", "protocol4", "rezipped_stored", "channels_last", "double")


@pytest.mark.parametrize("name", [path.name for path in sorted(TORCH.iterdir()) if path.stem in REVERSIBLE])
def test_there_and_back_is_the_same_file(name: str, tmp_path: Path):
    assert there_and_back(TORCH / name, tmp_path / name, 4) == (TORCH / name).read_bytes()


def identity(path: Path) -> tuple[bytes, bytes]:
    """The serialization id in the file, and the half of it that boost's hash_combine makes of the checksums."""
    digest = 0
    with zipfile.ZipFile(path) as archive:
        members = sorted(archive.infolist(), key=lambda info: info.header_offset)
        (name,) = (info.filename for info in members if info.filename.endswith("/.data/serialization_id"))
        for info in members:
            if info.filename != name and info.file_size:
                digest ^= (info.CRC + 0x9E3779B9 + (digest << 6) + (digest >> 2)) % (1 << 64)
        return archive.read(name), b"%020d" % digest


def test_the_serialization_id_follows(tmp_path: Path):
    convert(TORCH / "state_dict.pth", tmp_path / "out.pth")
    (before, half), (after, new_half) = identity(TORCH / "state_dict.pth"), identity(tmp_path / "out.pth")
    assert (before[20:], after[20:]) == (half, new_half)
    assert before[:20] == after[:20]
    assert half != new_half


def test_a_serialization_id_that_was_stale_stays(put: Callable[..., Path], tmp_path: Path):
    path = put(torch_zip({"conv1.weight": conv()}, ONE, {".data/serialization_id": b"1" * 40}))
    convert(path, tmp_path / "out.pth")
    assert identity(tmp_path / "out.pth")[0] == b"1" * 40


def test_without_checksums_it_is_said_and_kept(tmp_path: Path):
    with zipfile.ZipFile(TORCH / "rezipped_stored.pth") as archive:
        members = [Zipped(info.filename, archive.read(info), crc=0) for info in archive.infolist()]
    (tmp_path / "in.pth").write_bytes(zipped(*members))
    report = convert(tmp_path / "in.pth", tmp_path / "out.pth")
    assert [warning.code for warning in report.warnings] == ["no_checksums"]
    with zipfile.ZipFile(tmp_path / "out.pth") as archive:
        assert {info.CRC for info in archive.infolist()} == {0}
    np.testing.assert_array_equal(arrays(tmp_path / "out.pth")["conv1.weight"].shape, (8 * 49,))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("state_dict.pth", "model.load_state_dict(torch.load('out', weights_only=True))"),
        ("training.ckpt", "state = torch.load('out', weights_only=False)['model']"),
        ("lightning.ckpt", "model.load_state_dict(torch.load('out', weights_only=True)['state_dict'])"),
        ("module.pth", "model = torch.load('out', weights_only=False)"),
        ("scripted.pt", "model = torch.jit.load('out')"),
    ],
)
def test_the_line_that_loads_it(name: str, line: str, tmp_path: Path):
    report = convert(TORCH / name, tmp_path / "out", dry_run=True)
    assert line in [each.replace(str(tmp_path / "out"), "out") for each in report.load_lines]


@pytest.mark.parametrize("name", ["training.ckpt", "lightning.ckpt"])
def test_dropped_state_is_gone(name: str, tmp_path: Path):
    """Its entry and its storages; everything else is there as it was."""
    report = convert(TORCH / name, tmp_path / "out", optimizer="drop")
    before, after = contents(TORCH / name), contents(tmp_path / "out")
    gone = before.keys() - after.keys()
    assert gone
    assert all("/state/0/" in tensor_ for tensor_ in gone)
    assert {n: d for n, d in after.items() if n not in report.changed} == {
        n: d for n, d in before.items() if n not in gone and n not in report.changed
    }
    sizes = [len(zipfile.ZipFile(path).namelist()) for path in (TORCH / name, tmp_path / "out")]
    assert sizes[0] - sizes[1] == len(gone)


def test_files_of_one_network_keep_their_own_weights_and_names(tmp_path: Path):
    """What is remembered of a pickle is nothing of the file that it came in."""
    value = tensor(storage("0", 108), (4, 3, 3, 3))
    raws = [floats(108, seed) for seed in range(3)]
    for seed, raw in enumerate(raws):
        (tmp_path / f"{seed}.pth").write_bytes(hostile(value, {"0": raw}))
    for seed, raw in enumerate(raws):
        convert(tmp_path / f"{seed}.pth", tmp_path / f"{seed}_gray.pth", to="gray")
        (kernel,) = contents(tmp_path / f"{seed}_gray.pth").values()
        summed = np.frombuffer(raw, "<f4").reshape(4, 3, 3, 3).astype(np.float64).sum(1, keepdims=True)
        assert np.array_equal(np.frombuffer(kernel, "<f4").reshape(summed.shape), summed.astype(np.float32))
    (tmp_path / "short.pth").write_bytes(hostile(value, {"0": raws[0][:-4]}))
    with pytest.raises(DamagedError, match=r"short\.pth: .*data/0: the storage holds 428 bytes"):
        inspect(tmp_path / "short.pth")
