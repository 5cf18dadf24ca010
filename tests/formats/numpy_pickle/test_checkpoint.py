"""Pickles of arrays: what is written is what pickle itself writes; every way in which one can lie; memory does not grow."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import DamagedError, UnsupportedError, convert, inspect, verify
from chkpt_channels.formats.numpy_pickle import FORMATS, checkpoint, sniff
from chkpt_channels.storage.source import Source
from tests.formats.numpy_pickle.readings import loaded, theirs
from tests.support.big_files import big, peak
from tests.support.files import FIXTURES

HOME = FIXTURES / "numpy_pickle"
reads_numpy_2 = pytest.mark.skipif(np.__version__.startswith("1."), reason="numpy 1 knows no numpy._core, which numpy 2 wrote")


def network(channels: int, order: str = "C", filters: int = 8) -> dict[str, Any]:
    chance = np.random.default_rng(0)
    shapes = {
        "conv1.weight": (filters, channels, 3, 3),
        "conv1.bias": (filters,),
        "conv2.weight": (16, filters, 3, 3),
        "fc.weight": (5, 16),
    }
    return {k: np.asarray(chance.random(shape).astype(np.float32), order=order) for k, shape in shapes.items()}  # type: ignore[call-overload] # "C" or "F"


def summed(arrays: dict[str, Any]) -> dict[str, Any]:
    """What convert --to gray makes of them, by numpy."""
    kernel = arrays["conv1.weight"].astype(np.float64)
    gray = ((kernel[:, :1] + kernel[:, 1:2]) + kernel[:, 2:]).astype(np.float32)
    order = "F" if arrays["conv1.weight"].flags.f_contiguous else "C"
    return arrays | {"conv1.weight": np.asarray(gray, order=order)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("filters", [8, 150, 900])
@pytest.mark.parametrize("layout", ["plain", "detectron2"])
def test_the_output_is_what_pickle_dumps(
    protocol: int, order: str, filters: int, layout: str, put: Callable[..., Path], tmp_path: Path
):
    """Of kernels within one frame, over several, and too long for any."""
    arrays = network(3, order, filters)
    gray = summed(arrays)
    if layout == "detectron2":
        arrays, gray = ({"model": each, "__author__": "x", "matching_heuristics": True} for each in (arrays, gray))
    path = put(pickle.dumps(arrays, protocol), "a.pkl")
    convert(path, tmp_path / "gray.pkl", to="gray")
    assert (tmp_path / "gray.pkl").read_bytes() == pickle.dumps(gray, protocol)
    assert verify(path, tmp_path / "gray.pkl").ok
    convert(tmp_path / "gray.pkl", tmp_path / "rgb.pkl", to="rgb")
    assert (tmp_path / "rgb.pkl").read_bytes() == pickle.dumps(loaded(tmp_path / "rgb.pkl"), protocol)


TRANSPOSED = pickle.dumps(np.ones((2, 3, 4)).transpose(1, 0, 2), 5)


@pytest.mark.skipif(b"_frombuffer" not in TRANSPOSED, reason="this numpy copies what is transposed")
def test_transposed_arrays_are_what_pickle_dumps(put: Callable[..., Path], tmp_path: Path):
    """As where a network of JAX was made one of PyTorch. numpy orders the strides otherwise around an axis of one element."""
    arrays = network(3)
    gray = summed(arrays)
    arrays["conv1.weight"] = np.ascontiguousarray(arrays["conv1.weight"].transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    path = put(pickle.dumps(arrays, 5), "a.pkl")
    convert(path, tmp_path / "gray.pkl", to="gray")
    assert np.array_equal(loaded(tmp_path / "gray.pkl")["conv1.weight"], gray["conv1.weight"])
    convert(path, tmp_path / "b.pkl", to=4)
    assert (tmp_path / "b.pkl").read_bytes() == pickle.dumps(loaded(tmp_path / "b.pkl"), 5)
    assert verify(path, tmp_path / "b.pkl").ok


@pytest.mark.parametrize("opcode", [b"\x8c", b"\x8d"])
def test_texts_of_every_length_are_written(opcode: bytes, put: Callable[..., Path], tmp_path: Path):
    """Elements as a text, in the opcodes of protocol 4: Python reads them, whoever wrote them."""
    arrays = {"conv1.weight": np.ones((1, 3, 3, 3), np.float32), "conv2.weight": np.ones((8, 1, 3, 3), np.float32)}
    data, width = pickle.dumps(arrays, 2), {b"\x8c": 1, b"\x8d": 8}[opcode]
    for at in [match.start() for match in re.finditer(rb"X(?=[^\0]\0{3}.{4}\?)", data, re.DOTALL)][::-1]:
        size = int.from_bytes(data[at + 1 : at + 5], "little")
        data = data[:at] + opcode + size.to_bytes(width, "little") + data[at + 5 :] if size >> 8 * width == 0 else data
    assert opcode in data
    path = put(data, "a.pkl")
    convert(path, tmp_path / "b.pkl", to=30, layers=["conv1.weight"])
    assert np.array_equal(loaded(tmp_path / "b.pkl")["conv1.weight"], np.full((1, 30, 3, 3), 0.1, np.float32))


def test_a_string_of_python_2_has_a_longest_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "_FAMILIES", (((b"U", 8), (b"T", 13)),))
    with pytest.raises(UnsupportedError, match="a string of Python 2 cannot hold 15680 bytes"):
        convert(HOME / "detectron.pkl", tmp_path / "a.pkl", to=10)


@pytest.mark.parametrize("kind", ["masked", "own"])
def test_a_first_kernel_of_another_class_is_refused_by_name(kind: str, put: Callable[..., Path], tmp_path: Path):
    arrays = network(3)
    kernel = arrays["conv1.weight"]
    arrays["conv1.weight"] = np.ma.array(kernel, mask=kernel > 0.5) if kind == "masked" else kernel.view(np.recarray)
    arrays["depth.weight"] = np.ones((8, 3, 3, 3), np.float32)
    with pytest.raises(UnsupportedError, match=r"conv1\.weight: is an array of the class numpy\.\w"):
        convert(put(pickle.dumps(arrays, 4), "a.pkl"), tmp_path / "b.pkl", to="gray")


def test_a_second_pickle_is_refused_and_no_damage(put: Callable[..., Path]):
    """Python reads one after the other, and says nothing of what it leaves."""
    data = pickle.dumps(network(3), 4)
    with pytest.raises(UnsupportedError, match=f"holds a second pickle behind the first, at byte {len(data)}"):
        inspect(put(data + pickle.dumps({"epoch": 3}, 4), "a.pkl"))


def test_an_array_that_has_two_names_changes_under_both(put: Callable[..., Path], tmp_path: Path):
    arrays = network(3)
    ema = {"model": arrays, "ema": {**arrays}}
    path = put(pickle.dumps(ema, 4), "a.pkl")
    convert(path, tmp_path / "b.pkl", to="gray")
    gray = summed(arrays)
    assert (tmp_path / "b.pkl").read_bytes() == pickle.dumps({"model": gray, "ema": {**gray}}, 4)
    with pytest.raises(UnsupportedError, match=r"shares its elements with ema/conv1\.weight") as caught:
        convert(path, tmp_path / "c.pkl", to="gray", layers=["model/conv1.weight"])
    assert caught.value.hint == "--layer model/conv1.weight --layer ema/conv1.weight"


def test_state_of_adam_is_dropped_and_its_powers_are_not_reset(put: Callable[..., Path], tmp_path: Path):
    """Adam's powers of beta begin with beta, which the file does not say."""
    state = {f"conv.w_0_{slot}_0": np.ones((8, 3, 3, 3), np.float32) for slot in ("moment1", "moment2")}
    state["conv.w_0_beta1_pow_acc_0"] = np.ones(1, np.float32)
    names = {"StructuredToParameterName@@": {"conv1.weight": "conv.w_0"}}
    path = put(pickle.dumps({"model": network(3) | names, "opt": state}, 4), "a.pdparams")
    with pytest.raises(UnsupportedError, match="which cannot be reset") as caught:
        convert(path, tmp_path / "b.pdparams", to="gray")
    assert "--optimizer drop" in caught.value.hint
    with pytest.raises(UnsupportedError):  # the first array of all encodes the dtype of the others
        convert(
            put(pickle.dumps({"opt": state, "model": network(3) | names}, 4), "c.pdparams"),
            tmp_path / "d",
            to="gray",
            optimizer="drop",
        )
    convert(path, tmp_path / "b.pdparams", to="gray", optimizer="drop")
    assert loaded(tmp_path / "b.pdparams")["opt"] == {}


def test_a_pickle_of_optimizer_state_alone_is_no_network(tmp_path: Path):
    assert len(inspect(HOME / "net.pdopt").optimizer) > 0
    with pytest.raises(UnsupportedError, match="holds no convolution"):
        convert(HOME / "net.pdopt", tmp_path / "out.pdopt", to="gray")


def test_beside_its_weights_such_a_file_is_copied_with_a_warning(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for name in ("net.pdparams", "net.pdopt"):
        (tmp_path / "a" / name).write_bytes((HOME / name).read_bytes())
    report = convert(tmp_path / "a", tmp_path / "b", to="gray")
    assert "stale_optimizer" in {warning.code for warning in report.warnings}
    assert (tmp_path / "b" / "net.pdopt").read_bytes() == (HOME / "net.pdopt").read_bytes()


GOOD = pickle.dumps(network(3), 4)
LIES = {
    "one more side": (
        b"K\x08K\x03K\x03K\x03t",
        b"K\x08K\x03K\x03K\x04t",
        "its elements have 864 bytes; [8, 3, 3, 4] of F32 need 1152",
    ),
    "10^18 elements": (b"(K\x08K\x03K\x03K\x03t", b"(\x8a\x08" + b"\1" * 8 + b"K\x03K\x03K\x03t", "its elements have 864 bytes"),
    "a longer dtype": (b"\x8c\2f4", b"\x8c\2f8", "its elements have 864 bytes"),
}


@pytest.mark.parametrize(("old", "new", "message"), LIES.values(), ids=LIES)
def test_a_lie_is_damage(old: bytes, new: bytes, message: str, put: Callable[..., Path]):
    assert old in GOOD
    data = GOOD[:2] + GOOD[11:]  # without its frame, whose length would be another
    with pytest.raises(DamagedError, match=re.escape(message)):
        inspect(put(data.replace(old, new, 1), "a.pkl"))


def test_a_payload_of_protocol_2_is_checked_while_it_is_copied(put: Callable[..., Path], tmp_path: Path):
    data = pickle.dumps(network(3), 2)
    at = data.index(b"X", data.index(b"conv2.weight") + 300)
    at = next(i for i in range(at, len(data)) if data[i] == 0xC2)
    path = put(data[: at + 1] + b"a" + data[at + 2 :], "a.pkl")
    with pytest.raises(DamagedError, match="its elements are no text of latin-1"):
        convert(path, tmp_path / "out.pkl", to="gray")


@pytest.mark.parametrize(
    ("data", "claimed"),
    [
        (pickle.dumps({"a": np.ones(2)}, 5), True),
        (pickle.dumps([np.ones(2)], 2), True),
        (pickle.dumps({"a": [1, 2]}, 4), False),
        (pickle.dumps({"a": np.ones(2)}, 0), False),
        (b"", False),
    ],
)
def test_what_is_claimed(data: bytes, claimed: bool, put: Callable[..., Path]):
    with Source(put(data)) as source:
        assert sniff(source) is claimed


def test_no_name_is_resolved(put: Callable[..., Path], tmp_path: Path):
    marker = tmp_path / "marker"
    call = b"cos\nmkdir\nX" + len(str(marker)).to_bytes(4, "little") + str(marker).encode() + b"\x85R"
    data = pickle.dumps(network(3), 2)[:-2] + b"X\4\0\0\0evil" + call + b"u."
    path = put(data, "a.pkl")
    report = convert(path, tmp_path / "out.pkl", to="gray")
    assert not marker.exists()
    assert "foreign_globals" in {warning.code for warning in report.warnings}


@reads_numpy_2
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("detectron2.pkl", "import pickle\narrays = pickle.load(open('{}', 'rb'))['model']"),
        ("detectron.pkl", "import pickle\narrays = pickle.load(open('{}', 'rb'), encoding='latin1')['blobs']"),
        ("net.pdparams", "model.set_state_dict(paddle.load('{}'))"),
    ],
)
def test_the_lines_that_load_it(name: str, lines: str, tmp_path: Path):
    out = tmp_path / name
    report = convert(HOME / name, out, to="gray")
    text = "\n".join(report.load_lines)
    assert lines.format(out) in text
    if "paddle" not in text:
        done = subprocess.run([sys.executable, "-c", text + "\nassert len(arrays) > 3"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_memory_does_not_grow_with_the_file(protocol: int, tmp_path: Path):
    assert peak(big(tmp_path / "a.pkl", 512, protocol)) <= 80


@reads_numpy_2
@pytest.mark.parametrize("name", sorted(path.name for path in HOME.glob("*.p*")))
def test_python_reads_what_is_read_here(name: str, tmp_path: Path):
    with Source(HOME / name) as source:
        store = FORMATS[0].open(source)
        ours = {key: (t.dtype.name, t.shape, b"".join(store.chunks(key))) for key, t in store.tensors.items()}
    assert ours == theirs(HOME / name)


SHAPES = {
    "HWIO": {"Dense_0/kernel": (8, 4), "block/conv/kernel": (3, 3, 8, 8), "conv_init/kernel": (3, 3, 3, 8)},
    "HWIO, patches": {"embedding/kernel": (16, 16, 3, 192), "encoder/query/kernel": (192, 192), "head/kernel": (192, 10)},
    "OIHW": {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 3, 3), "fc.weight": (10, 64)},
}


@pytest.mark.parametrize("layout", SHAPES)
def test_an_unknown_framework_is_one_whose_order_says_nothing(layout: str, put: Callable[..., Path]):
    """As JAX pickles its trees, sorted by name."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES[layout].items()}
    (conv,) = inspect(put(pickle.dumps(arrays, 4), "a.pkl")).first_convs
    assert (conv.in_channels, str(conv.layout)) == (3, layout[:4])


TREE = {"Conv_0": (3, 3, 3, 8), "Conv_1": (3, 3, 8, 8), "Conv_2": (3, 3, 8, 16)}


@pytest.mark.parametrize("word", ["kernel", "w"])
@pytest.mark.parametrize("home", ["", "params"])
def test_a_tree_of_modules_is_one_network(word: str, home: str, put: Callable[..., Path], tmp_path: Path):
    """As Flax and Haiku have them: each module's dict is no state dict of its own."""
    tree: dict[str, Any] = {name: {word: np.ones(shape, np.float32)} for name, shape in TREE.items()}
    path = put(pickle.dumps({home: tree} if home else tree, 4), "a.pkl")
    report = convert(path, tmp_path / "b.pkl", to="gray")
    (kernel,) = report.kernels
    assert (kernel.conv.tensor.name.split("/")[-2:], str(kernel.conv.layout)) == (["Conv_0", word], "HWIO")
    assert verify(path, tmp_path / "b.pkl").ok


def test_moments_in_a_tree_are_reset(put: Callable[..., Path], tmp_path: Path):
    def tree() -> dict[str, Any]:
        return {name: {"kernel": np.ones(shape, np.float32)} for name, shape in TREE.items()}

    path = put(pickle.dumps({"params": tree(), "opt_state": {"mu": tree(), "nu": tree()}}, 4), "a.pkl")
    convert(path, tmp_path / "b.pkl", to="gray")
    for slot in loaded(tmp_path / "b.pkl")["opt_state"].values():
        assert slot["Conv_0"]["kernel"].shape == (3, 3, 1, 8)
        assert not slot["Conv_0"]["kernel"].any()
        assert slot["Conv_1"]["kernel"].all()


@pytest.mark.parametrize("option", ["reset", "drop"])
def test_state_of_a_kernel_that_is_called_alike_stays(option: str, put: Callable[..., Path], tmp_path: Path):
    """As Paddle's ResNet-18 has them: each block has a conv1."""
    shapes = {"conv1.weight": (8, 3, 7, 7), "layer1.0.conv1.weight": (16, 8, 3, 3), "fc.weight": (5, 16)}
    model = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    called = {name: f"conv2d_{i}.w_0" for i, name in enumerate(shapes)}
    velocities = {f"{called[name]}_velocity_0": np.ones(shape, np.float32) for name, shape in shapes.items()}
    state = {"model": model | {"StructuredToParameterName@@": called}, "optimizer": velocities}
    convert(put(pickle.dumps(state, 4), "a.pdparams"), tmp_path / "b.pdparams", to="gray", optimizer=option)
    after = loaded(tmp_path / "b.pdparams")["optimizer"]
    first = after.pop("conv2d_0.w_0_velocity_0", None)
    assert (first is None) if option == "drop" else (first.shape == (8, 1, 7, 7) and not first.any())
    assert len(after) == 2
    assert all(velocity.all() for velocity in after.values())
