"""Two files: every difference that is not the conversion is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from chkpt_channels import convert, verify
from chkpt_channels.api.left_out import equal_streams
from chkpt_channels.api.output import check as output_check
from chkpt_channels.api.verify import is_current
from chkpt_channels.folders.planning import plan_model
from chkpt_channels.formats.torch.zip_file import TorchZip
from tests.discovery.test_bias_target import TAKEN
from tests.support.builders import conv, entry, floats, safetensors, storage, tensor, torch_zip
from tests.support.files import FIXTURES

KERNEL = np.frombuffer(floats(108), "<f4").reshape(4, 3, 3, 3)
NET = {"conv1.weight": KERNEL, "fc.weight": np.frombuffer(floats(20, 1), "<f4").reshape(5, 4)}
GRAY = {**NET, "conv1.weight": KERNEL.astype(np.float64).sum(1, keepdims=True).astype(np.float32)}
NAMES = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16"}


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in arrays.items():
        header[name] = entry(array.shape, at, NAMES[array.dtype], array.itemsize)
        at += array.nbytes
    path.write_bytes(safetensors(header, b"".join(array.tobytes() for array in arrays.values())))
    return path


def mixed(*weights: float) -> np.ndarray:
    """The gray kernel by other weights, the terms added in order."""
    return sum(w * KERNEL[:, i : i + 1].astype("<f8") for i, w in enumerate(weights)).astype("<f4")


SUM = "is not the sum of the original: largest difference 1"
CASES: dict[str, tuple[dict[str, np.ndarray], dict[str, str]]] = {
    "right": (GRAY, {}),
    "another order": (dict(reversed(GRAY.items())), {}),
    "not converted": (NET, {}),
    "another tensor changed": (
        {**GRAY, "fc.weight": NET["fc.weight"] + 1},
        {"fc.weight": "differs, though the conversion does not change it"},
    ),
    "missing": ({"conv1.weight": GRAY["conv1.weight"]}, {"fc.weight": "is missing"}),
    "new": ({**GRAY, "x": NET["fc.weight"]}, {"x": "is not in the original"}),
    "shape": ({**GRAY, "fc.weight": NET["fc.weight"].T}, {"fc.weight": "is F32 [4, 5], not F32 [5, 4]"}),
    "dtype": ({**GRAY, "fc.weight": NET["fc.weight"].astype("<f2")}, {"fc.weight": "is F16 [5, 4], not F32 [5, 4]"}),
    "mean": ({**GRAY, "conv1.weight": mixed(1 / 3, 1 / 3, 1 / 3)}, {"conv1.weight": "this is mean, not sum"}),
    "one channel": ({**GRAY, "conv1.weight": mixed(0, 1, 0)}, {"conv1.weight": "this is channel 1 alone, not sum"}),
    "luma": ({**GRAY, "conv1.weight": mixed(0.299, 0.587, 0.114)}, {"conv1.weight": "this is luma (bt601), not sum"}),
    "sum in float32": (
        {**GRAY, "conv1.weight": np.nextafter(GRAY["conv1.weight"], np.float32(9))},
        {"conv1.weight": "is the sum of the original, rounded otherwise: largest difference 2.38e-07"},
    ),
    "mean in float32": (
        {**GRAY, "conv1.weight": np.nextafter(mixed(1 / 3, 1 / 3, 1 / 3), np.float32(9))},
        {"conv1.weight": "this is mean, not sum"},
    ),
    "no rule": ({**GRAY, "conv1.weight": GRAY["conv1.weight"] + 1}, {"conv1.weight": SUM}),
    "three at once": (
        {"conv1.weight": GRAY["conv1.weight"] + 1, "x": NET["fc.weight"]},
        {"conv1.weight": SUM, "fc.weight": "is missing", "x": "is not in the original"},
    ),
}


@pytest.mark.parametrize(("arrays", "differences"), CASES.values(), ids=CASES)
def test_differences(arrays: dict[str, np.ndarray], differences: dict[str, str], tmp_path: Path):
    found = verify(write(tmp_path / "a.safetensors", NET), write(tmp_path / "b.safetensors", arrays), layers=["conv1"])
    assert {d.key: d.message for d in found.differences} == differences
    assert found.ok == (not differences)
    assert found.tensors_total == 2
    assert found.identical == sum(np.array_equal(NET[n], arrays[n]) for n in NET if n in arrays)


def network() -> dict[str, np.ndarray]:
    return TAKEN["conv1, bn1"][0]


KNOWN: dict[str, dict[str, Any]] = {
    "--norm imagenet": {"norm": "imagenet"},
    "--norm imagenet --input-range 255": {"norm": "torch", "input_range": 255},
    "--norm imagenet --channel-order bgr": {"norm": "imagenet", "channel_order": "bgr"},
    "--norm half --input-range 255": {"norm": "tf", "input_range": 255},
    "--norm clip": {"norm": "clip"},
    "--norm caffe": {"norm": "caffe"},
    "--norm caffe --channel-order rgb": {"norm": "caffe", "channel_order": "rgb"},
    "--norm none --input-range 255": {"norm": "none", "input_range": 255},
    "--to bgr": {"to": "bgr"},
    "": {"norm": "half"},
}


@pytest.mark.parametrize(("under", "words"), KNOWN.items(), ids=KNOWN)
def test_without_options_it_says_which_they_were(under: str, words: dict[str, Any], tmp_path: Path):
    source = write(tmp_path / "a.safetensors", network())
    convert(source, tmp_path / "b.safetensors", **{"to": 1} | words)
    found = verify(source, tmp_path / "b.safetensors")
    assert (found.ok, found.under, found.hint) == (True, under, "")
    assert verify(source, tmp_path / "b.safetensors", **{"to": None} | found.options).ok
    strict = is_current(source, tmp_path / "b.safetensors", found.in_channels[1])
    assert strict.ok == (under == "")
    assert found.result()["options"] == found.options


def test_a_changed_tensor_is_no_known_conversion(tmp_path: Path):
    source = write(tmp_path / "a.safetensors", network())
    convert(source, tmp_path / "b.safetensors", to=1, norm="imagenet")
    arrays = load_file(tmp_path / "b.safetensors")
    for name in ("bn1.running_var", "bn1.running_mean", "conv1.weight"):
        found = verify(source, write(tmp_path / "c.safetensors", {**arrays, name: arrays[name] + 1}))
        assert name in {d.key for d in found.differences}
        assert (found.ok, found.under, found.hint) == (False, "", "")


def test_another_rule_is_asked_for(tmp_path: Path):
    source = write(tmp_path / "a.safetensors", NET)
    for name, hint in {"mean": "--method mean", "one channel": "--select 1", "luma": "--luma bt601", "no rule": ""}.items():
        found = verify(source, write(tmp_path / "b.safetensors", CASES[name][0]), layers=["conv1"])
        assert (found.ok, found.hint) == (False, hint)


def test_bands_are_asked_for_and_files_the_other_way_round(tmp_path: Path):
    source = write(tmp_path / "a.safetensors", network())
    gray, four = tmp_path / "gray.safetensors", tmp_path / "4 ch.safetensors"
    convert(source, gray, to=1)
    convert(source, four, bands="R,G,B,NIR=zero,X=G")
    assert verify(source, four).hint == "--bands R,G,B,band3=zero,band4=G"
    assert verify(gray, source).hint == f"chkpt-channels verify {source} {gray}"
    assert verify(four, source).hint == f"chkpt-channels verify {source} '{four}' --bands R,G,B,band3=zero,band4=G"
    assert verify(gray, source, "rgb", layers=["conv1"]).hint == ""
    assert verify(source, source, "gray").hint == ""  # neither is the other's conversion


def test_a_conversion_without_the_normalization_that_is_asked_for(tmp_path: Path):
    source = write(tmp_path / "a.safetensors", network())
    convert(source, tmp_path / "b.safetensors", to=1)
    found = verify(source, tmp_path / "b.safetensors", norm="imagenet")
    assert "this is what --method sum gives alone" in {d.message for d in found.differences}
    convert(source, tmp_path / "c.safetensors", select="1,0")
    (difference,) = verify(source, tmp_path / "c.safetensors", 2, select="0,1").differences
    assert difference.message == "this is what --select 1,0 gives alone"


def test_most_known_conversions_are_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Their kernels differ, which is seen at once."""
    source = write(tmp_path / "a.safetensors", network())
    convert(source, tmp_path / "b.safetensors", to=1, norm="clip", channel_order="bgr", input_range=255)
    calls: list[Any] = []
    monkeypatch.setattr(
        sys.modules[is_current.__module__], "plan_model", lambda *given: calls.append(given) or plan_model(*given)
    )
    assert verify(source, tmp_path / "b.safetensors").under == "--norm clip --input-range 255 --channel-order bgr"
    assert len(calls) == 2


def test_the_same_tensors_in_another_format(put: Callable[..., Path], tmp_path: Path):
    """A conversion between containers is checked the same way."""
    tensors = {"conv1.weight": conv("0", (4, 1, 3, 3)), "fc.weight": tensor(storage("1", 20), (5, 4))}
    other = put(torch_zip(tensors, {"0": GRAY["conv1.weight"].tobytes(), "1": NET["fc.weight"].tobytes()}))
    assert verify(write(tmp_path / "a.safetensors", NET), other, layers=["conv1"]).ok


@pytest.mark.parametrize("how", ["reset", "drop"])
def test_the_optimizers_state_is_part_of_it(how: str, tmp_path: Path):
    source = FIXTURES / "torch_zip" / "training.ckpt"
    for name in ("reset", "drop"):
        report = convert(source, tmp_path / f"{name}.ckpt", optimizer=name)
        assert {key.rpartition("/")[2] for key in report.removed} == (
            {"step", "exp_avg", "exp_avg_sq"} if name == "drop" else set()
        )
        assert set(report.removed) <= set(report.changed)
    assert verify(source, tmp_path / f"{how}.ckpt", optimizer=how).ok
    other = "drop" if how == "reset" else "reset"
    found = verify(source, tmp_path / f"{other}.ckpt", optimizer=how)
    assert {d.key.rpartition("/")[2] for d in found.differences} == {"step", "exp_avg", "exp_avg_sq"}
    assert {d.message for d in found.differences} == {
        "is missing" if how == "reset" else "is still there, though the conversion drops it"
    }


def test_a_declaration_that_did_not_follow(put: Callable[..., Path]):
    """The kernel was converted by someone, the module's in_channels was forgotten."""
    before, after = (FIXTURES / "torch_zip" / "module.pth", put(b""))
    real = TorchZip.splices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchZip, "splices", lambda self, edits: real(self, edits._replace(numbers={})))
        with pytest.raises(RuntimeError, match=r"conv1.in_channels does not declare 1"):  # our own check would have seen it
            convert(before, after, force=True)
        patch.setattr(output_check, "misread", lambda before, after, plan: iter(()))
        convert(before, after, force=True)
    found = verify(before, after)
    assert {d.key: d.message for d in found.differences} == {"conv1.in_channels": "does not declare 1"}


@given(st.binary(max_size=40), st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)), st.booleans())
def test_streams_are_equal_however_they_are_cut(data: bytes, cuts: list[int], others: list[int], changed: bool):
    def cut(content: bytes, at: list[int]) -> list[bytes]:
        edges = [0, *sorted(min(one, len(content)) for one in at), len(content)]
        return [content[a:b] for a, b in pairwise(edges) if a < b]

    second = bytes([*data[:-1], data[-1] ^ 1]) if changed and data else data
    assert equal_streams(cut(data, cuts), cut(second, others)) == (second == data)
    assert not equal_streams(cut(data, cuts), cut(data + b"x", others))
