"""Every kernel as [O, I, depth, height, width], and the conversion that made one of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from chkpt_channels import AmbiguousError, UnsupportedError, UsageError, convert
from chkpt_channels.api.display.filters import Filters, canonical, conversion_between, load_filters
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.request import SearchRequest
from tests.support.files import FIXTURES
from tests.support.memory import NET, kernel

RGB = FIXTURES / "torch_zip" / "state_dict.pth"


@pytest.mark.parametrize("spelling", ["OIHW", "HWIO", "OHWI", "IOHW", "HWOI", "O(HWI)", "O(IHW)", "(HWI)O", "(IHW)O"])
def test_every_layout_is_drawn_alike(spelling: str):
    sizes = {"O": 5, "I": 3, "H": 4, "W": 4}
    plain = np.random.default_rng(0).normal(size=[sizes[x] for x in "OIHW"])
    layout = Layout(spelling)
    letters = "".join(layout.axes)
    stored = plain.transpose(["OIHW".index(x) for x in letters]).reshape(
        [int(np.prod([sizes[x] for x in g])) for g in layout.axes]
    )
    conv = FirstConv(Tensor("w", BY_NAME["F64"], stored.shape), layout, 3, "user")
    assert np.array_equal(canonical(stored, conv), plain[:, :, None])


@pytest.mark.parametrize(
    ("spelling", "shape", "drawn"),
    [
        ("OIW", (4, 2, 5), (4, 2, 1, 1, 5)),
        ("OIDHW", (4, 2, 3, 5, 6), (4, 2, 3, 5, 6)),
        ("DHWIO", (3, 5, 6, 2, 4), (4, 2, 3, 5, 6)),
        ("O(GI)HW", (4, 8, 3, 3), (4, 2, 4, 3, 3)),
        ("O(IHW)", (4, 14), (4, 2, 1, 1, 7)),
        ("OI", (4, 2), (4, 2, 1, 1, 1)),
    ],
)
def test_other_ranks(spelling: str, shape: tuple[int, ...], drawn: tuple[int, ...]):
    conv = FirstConv(Tensor("w", BY_NAME["F64"], shape), Layout(spelling), 2, "user")
    assert canonical(np.ones(shape), conv).shape == drawn


def test_the_slices_of_a_volume_keep_their_order():
    stored = np.arange(3.0).reshape(1, 1, 3, 1, 1)
    conv = FirstConv(Tensor("w", BY_NAME["F64"], stored.shape), Layout("OIDHW"), 1, "user")
    assert canonical(stored, conv)[0, 0, :, 0, 0].tolist() == [0, 1, 2]
    assert Filters("a", conv, stored).depth == "slice"
    assert Filters("a", conv._replace(layout=Layout("O(IG)HW")), stored).depth == "pixel"


def test_the_filters_of_a_file():
    found = load_filters(RGB)
    assert (Path(found.file).name, found.conv.tensor.name, found.channels) == ("state_dict.pth", "conv1.weight", 3)
    assert found.weights.shape == (8, 3, 1, 7, 7)


def test_a_depthwise_kernel_is_drawn_over_all_channels():
    found = load_filters(FIXTURES / "onnx" / "depthwise.onnx")
    assert found.weights.shape[:2] == (6, 3)
    assert (found.weights != 0).any(axis=(2, 3, 4)).sum(axis=1).tolist() == [1] * 6


def saved(path: Path, tensors: dict[str, Any]) -> Path:
    safetensors.numpy.save_file(tensors, path)
    return path


def test_one_of_many_kernels_is_named(tmp_path: Path):
    several = saved(tmp_path / "a.safetensors", {"a.weight": kernel(8, 3, 5, 5), "b.weight": kernel(9, 3, 5, 5)})
    assert load_filters(several, layer="b").conv.tensor.name == "b.weight"
    with pytest.raises(UsageError, match="no tensor is called 'nothing'"):
        load_filters(several, layer="nothing")
    two = FIXTURES / "onnx" / "two_stems.onnx"
    names = [load_filters(two).conv.tensor.name, load_filters(two, beside="stem_b.weight").conv.tensor.name]
    assert len({*names, load_filters(two, layer=names[0]).conv.tensor.name}) in (1, 2)


def test_what_is_ambiguous_names_an_option_that_works(tmp_path: Path):
    kernels = {"a.weight": kernel(8, 300, 3, 3), "b.weight": kernel(8, 3, 3, 3), "c.weight": kernel(9, 3, 5, 5)}
    path = saved(tmp_path / "a.safetensors", kernels)
    with pytest.raises(AmbiguousError) as caught:
        load_filters(path)
    flag, key = caught.value.hint.split(" ")
    assert flag == "--layer"
    assert load_filters(path, layer=key).conv.tensor.name == key
    # beside another file whose kernel is known it is that one
    assert load_filters(path, beside="c.weight").conv.tensor.name == "c.weight"


def test_a_file_without_convolutions():
    with pytest.raises(UnsupportedError, match="holds no convolution that could see an image"):
        load_filters(FIXTURES / "torch_zip" / "no_conv.pth")


def test_an_axis_order_that_the_file_does_not_show():
    path = FIXTURES / "onnx" / "flipped.onnx"
    with pytest.raises(UnsupportedError, match="its axis order is ambiguous") as caught:
        load_filters(path)
    assert caught.value.hint.startswith("--layout OIHW or ")
    assert load_filters(path, SearchRequest(layout=Layout("OIHW"))).weights.shape == (8, 3, 1, 3, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e120])
def test_numbers_that_no_chart_has_room_for(value: float, tmp_path: Path):
    weights = kernel(8, 3, 7, 7, dtype=np.float64)
    weights[0, 0, 0, 0] = value
    with pytest.raises(UnsupportedError, match="not only finite ones"):
        load_filters(saved(tmp_path / "a.safetensors", {**NET, "conv1.weight": weights}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("options", "method"),
    [
        ({"to": "gray"}, "sum"),
        ({"to": "gray", "method": "luma"}, "luma (bt709)"),
        ({"to": "gray", "luma": "bt601", "method": "luma"}, "luma (bt601)"),
        ({"to": "gray", "method": "mean"}, "mean"),
        ({"to": "bgr"}, "bgr"),
        ({"to": 4}, "repeat"),
        ({"to": 4, "method": "zero"}, "zero"),
        ({"to": "rgb"}, "identity"),
    ],
)
def test_rules_are_known_by_their_kernels(options: dict[str, Any], method: str, dtype: type, tmp_path: Path):
    source = saved(tmp_path / "a.safetensors", {**NET, "conv1.weight": kernel(8, 3, 7, 7, dtype=dtype)})
    convert(source, tmp_path / "b.safetensors", **options)
    found = conversion_between(load_filters(source), load_filters(tmp_path / "b.safetensors"))
    assert found is not None
    assert found.method == method


def test_any_matrix_is_found_again(tmp_path: Path):
    source = saved(tmp_path / "a.safetensors", NET)
    convert(source, tmp_path / "b.safetensors", bands="B,G,R,NIR=R")
    found = conversion_between(load_filters(source), load_filters(tmp_path / "b.safetensors"))
    assert found is not None
    assert found.matrix == ((0, 0, 0.5, 0.5), (0, 1, 0, 0), (1, 0, 0, 0))


def test_kernels_of_two_models_are_no_conversion(tmp_path: Path):
    first = load_filters(saved(tmp_path / "a.safetensors", NET))
    others = [kernel(8, 1, 7, 7, seed=9), kernel(8, 1, 5, 5), kernel(16, 1, 7, 7)]
    for i, weights in enumerate(others):
        other = load_filters(saved(tmp_path / f"{i}.safetensors", {**NET, "conv1.weight": weights}), layer="conv1")
        assert conversion_between(first, other) is None
