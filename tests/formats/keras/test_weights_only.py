"""Weights without a configuration: what their names, shapes and order tell of the first convolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import PreprocessingOp, Tensor
from chkpt_channels.discovery.find import find_first_convs, select_first_convs
from chkpt_channels.discovery.request import SearchRequest
from chkpt_channels.formats.base import Checkpoint
from chkpt_channels.formats.keras.weights_only import layout_of, looks_like_theano, trained
from tests.support.files import opened

Shapes = Mapping[str, tuple[int, ...]]
RANDOM = np.random.default_rng(0)


@contextmanager
def bare(folder: Path, shapes: Shapes, **values: np.ndarray) -> Iterator[Checkpoint]:
    """Weights as Keras saves them alone: by the names of layers, or as numbered variables."""
    numbered = any("/vars/" in name for name in shapes)
    path = folder / ("a.weights.h5" if numbered else "a.h5")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = list(dict.fromkeys(name.partition("/")[0] for name in shapes)) if not numbered else []
        for name, shape in shapes.items():
            file[name] = values.get(name, RANDOM.random(shape).astype("f4") + 0.5)
    with opened(path) as checkpoint:
        yield checkpoint


def stems(checkpoint: Checkpoint) -> list[tuple[str, str | None, int, int]]:
    return [(c.tensor.name, c.layout, c.in_channels, c.groups) for c in find_first_convs(checkpoint).first_convs]


def named(*layers: tuple[str, Shapes]) -> Shapes:
    """Keras 2: layer/layer/weight:0."""
    return {f"{layer}/{layer}/{weight}:0": shape for layer, weights in layers for weight, shape in weights.items()}


def numbered(*layers: tuple[str, list[tuple[int, ...]]]) -> Shapes:
    """Keras 3: layers/class/vars/i."""
    return {f"layers/{layer}/vars/{i}": shape for layer, shapes in layers for i, shape in enumerate(shapes)}


STEM = ("conv1", {"kernel": (7, 7, 3, 16), "bias": (16,)})
BODY = [("conv2", {"kernel": (3, 3, 16, 16)}), ("conv3", {"kernel": (3, 3, 16, 32)})]
FOUND: dict[str, tuple[Shapes, list[tuple[str, str | None, int, int]]]] = {
    "named": (named(STEM, *BODY), [("conv1/conv1/kernel:0", "HWIO", 3, 1)]),
    "numbered": (
        numbered(("conv2d", [(7, 7, 3, 16), (16,)]), ("conv2d_1", [(3, 3, 16, 16)]), ("conv2d_2", [(3, 3, 16, 32)])),
        [("layers/conv2d/vars/0", "HWIO", 3, 1)],
    ),
    "as Theano had it": (
        named(("conv1", {"kernel": (16, 3, 7, 7)}), ("conv2", {"kernel": (16, 16, 3, 3)}), ("conv3", {"kernel": (32, 16, 3, 3)})),
        [("conv1/conv1/kernel:0", "OIHW", 3, 1)],
    ),
    "depthwise first": (
        named(
            ("dw", {"depthwise_kernel": (3, 3, 3, 2)}), ("pw", {"kernel": (1, 1, 6, 16)}), ("conv", {"kernel": (3, 3, 16, 32)})
        ),
        [("dw/dw/depthwise_kernel:0", "HWIO", 3, 3)],
    ),
    "depthwise later": (
        named(STEM, ("dw", {"depthwise_kernel": (3, 3, 16, 1)}), ("pw", {"kernel": (1, 1, 16, 32)})),
        [("conv1/conv1/kernel:0", "HWIO", 3, 1)],
    ),
    "depthwise first over features": (
        named(("dw", {"depthwise_kernel": (3, 3, 8, 1)}), ("pw", {"kernel": (1, 1, 8, 16)})),
        [],
    ),
    "products alone": (named(("dense", {"kernel": (12, 16)}), ("head", {"kernel": (16, 5)})), []),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_first_kernel_is_told_by_names_shapes_and_order(name: str, tmp_path: Path):
    shapes, expected = FOUND[name]
    with bare(tmp_path, shapes) as checkpoint:
        assert stems(checkpoint) == expected


def test_a_normalization_in_front_is_what_its_numbers_say(tmp_path: Path):
    mean, variance = np.array([0.5, 1.0, 2.0], "f4"), np.array([4.0, 0.25, 1.0], "f4")
    shapes = named(("normalization", {"mean": (3,), "variance": (3,), "count": ()}), STEM, *BODY)
    known = {"normalization/normalization/mean:0": mean, "normalization/normalization/variance:0": variance}
    with bare(tmp_path, shapes, **known) as checkpoint:
        convs = find_first_convs(checkpoint).first_convs
        (front,) = checkpoint.graph.preprocessing(convs)
        told = [notice.code for notice in checkpoint.graph.notices(convs)]
    x = RANDOM.normal(size=(4, 3))
    assert np.allclose(x * front.scale + front.shift, (x - mean) / np.sqrt(variance))
    assert front.tensors == tuple((name, 0) for name in known)
    assert told == ["code_constants"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (
            [("bn", {"gamma": (3,), "beta": (3,), "moving_mean": (3,), "moving_variance": (3,)}), STEM],
            [PreprocessingOp("bn/bn", "normalization", why="precedes the kernel, and its configuration is not in the file")],
        ),
        ([("bn", {"gamma": (4,), "beta": (4,)}), STEM], []),
        ([STEM, ("bn", {"gamma": (3,), "beta": (3,)})], []),
    ],
    ids=["without its epsilon", "of other channels", "behind"],
)
def test_constants_whose_configuration_is_missing_are_no_numbers(
    layers: list[tuple[str, Shapes]], expected: list[PreprocessingOp], tmp_path: Path
):
    with bare(tmp_path, named(*layers, *BODY)) as checkpoint:
        assert list(checkpoint.graph.preprocessing(find_first_convs(checkpoint).first_convs)) == expected


STATISTICS = {"gamma": (16,), "beta": (16,), "moving_mean": (16,), "moving_variance": (16,)}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([STEM], ("conv1/conv1/bias:0", 1)),
        ([("conv1", {"kernel": (7, 7, 3, 16)}), ("bn", STATISTICS)], ("bn/bn/moving_mean:0", -1)),
        ([("conv1", {"kernel": (7, 7, 3, 16)})], None),
        ([("conv1", {"kernel": (7, 7, 3, 16)}), ("bn", dict.fromkeys(STATISTICS, (8,)))], None),
    ],
    ids=["a bias", "the next layer's mean", "neither", "a mean of another size"],
)
def test_who_takes_a_constant(layers: list[tuple[str, Shapes]], expected: tuple[str, int] | None, tmp_path: Path):
    with bare(tmp_path, named(*layers, *BODY)) as checkpoint:
        (conv,) = find_first_convs(checkpoint).first_convs
        assert checkpoint.graph.bias_target(conv) == expected
        assert (list(checkpoint.graph.graph_methods([conv])), list(checkpoint.graph.declarations([conv]))) == ([], [])


def test_an_optimizer_trains_what_is_no_statistic():
    shapes = numbered(
        ("conv2d", [(1,)] * 2), ("batch_normalization", [(1,)] * 4), ("normalization", [(1,)] * 3), ("dense", [(1,)] * 2)
    )
    assert trained(shapes) == [
        *("layers/conv2d/vars/0", "layers/conv2d/vars/1"),
        *("layers/batch_normalization/vars/0", "layers/batch_normalization/vars/1"),
        *("layers/dense/vars/0", "layers/dense/vars/1"),
    ]


def test_a_batch_normalization_may_keep_fewer():
    """Of two variables they are the statistics, of three the shift too."""
    assert trained(numbered(("batch_normalization", [(1,)] * 2))) == []
    assert trained(numbered(("batch_normalization_3", [(1,)] * 3))) == ["layers/batch_normalization_3/vars/0"]


@pytest.mark.parametrize(
    ("layer", "shape", "theano", "expected"),
    [
        ("layers/conv2d", (3, 3, 3, 8), False, "HWIO"),
        ("layers/conv2d_12", (3, 3, 3, 8), True, "HWIO"),
        ("layers/conv2d_transpose", (3, 3, 8, 3), False, "HWOI"),
        ("layers/conv1d", (3, 3, 8), False, "WIO"),
        ("layers/conv2d", (3, 3, 8), False, None),
        ("layers/mine", (3, 3, 3, 8), False, "HWIO"),
        ("layers/mine", (8, 3, 3, 3), True, "OIHW"),
        ("layers/mine", (3, 8), False, None),
    ],
)
def test_layouts_by_class_and_by_rank(layer: str, shape: tuple[int, ...], theano: bool, expected: str | None):
    assert layout_of(layer, Tensor("k", BY_NAME["F32"], shape), theano=theano) == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(16, 3, 7, 7), (32, 16, 3, 3)], True),
        ([(16, 4, 3, 3), (32, 16, 3, 3)], True),
        ([(3, 3, 4, 16), (3, 3, 16, 32)], False),
        ([(3, 3, 3, 3)], False),
        ([(16, 4, 3, 3), (3, 3, 16, 32)], False),
        ([], False),
    ],
    ids=["one that tells", "behind", "in front", "cubes", "both", "none"],
)
def test_windows_behind_are_theanos(shapes: list[tuple[int, ...]], expected: bool):
    assert looks_like_theano(shapes) == expected


REFUSED = {
    "a layer of single pixels makes the channels": (
        numbered(("einsum_dense", [(3, 6)]), ("conv2d", [(3, 3, 6, 8), (8,)]), ("conv2d_1", [(3, 3, 8, 8)])),
        "makes the kernel's channels",
    ),
    "a copy that SpectralNormalization keeps": (
        numbered(
            ("spectral_normalization", [(3, 3, 3, 8), (1, 8)]),
            ("spectral_normalization/layer", [(3, 3, 3, 8), (8,)]),
            ("conv2d", [(3, 3, 8, 8)]),
        ),
        "keeps a copy of the kernel",
    ),
    "a Normalization of other channels": (
        numbered(
            ("normalization", [(3,), (3,), ()]), ("lstm/lstm_cell", [(90, 24), (6, 24), (24,)]), ("conv2d", [(3, 3, 6, 8), (8,)])
        ),
        "has channels that no kernel takes",
    ),
    "filters of one channel": (
        numbered(("depthwise_conv2d", [(3, 3, 1, 2), (2,)]), ("conv2d", [(3, 3, 2, 8)])),
        "precedes the kernel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_names_and_shapes_do_not_show_is_no_guess(case: str, tmp_path: Path):
    shapes, why = REFUSED[case]
    with bare(tmp_path, shapes) as checkpoint:
        operations = checkpoint.graph.preprocessing(find_first_convs(checkpoint).first_convs)
        assert [op.why for op in operations if op.scale is None and why in op.why]


def test_a_normalization_that_another_layer_takes_is_no_matter(tmp_path: Path):
    dense = ("dense", [(5, 8), (8,)])
    layers = numbered(("normalization", [(5,), (5,), ()]), ("conv2d", [(3, 3, 3, 8), (8,)]), ("conv2d_1", [(3, 3, 8, 8)]), dense)
    with bare(tmp_path, layers) as checkpoint:
        assert not checkpoint.graph.preprocessing(find_first_convs(checkpoint).first_convs)


def test_a_number_of_the_whole_model_is_no_normalization_of_one_channel(tmp_path: Path):
    """TFCLIPModel's logit_scale stands before its gray patch embedding."""
    path, vision = "clip/tfclip_model/clip", "clip/tfclip_model/clip/vision"
    shapes = {f"{path}/logit_scale:0": (1,), f"{vision}/patch/kernel:0": (8, 8, 1, 24), f"{vision}/fc/kernel:0": (24, 48)}
    with bare(tmp_path, shapes) as checkpoint:
        assert not checkpoint.graph.preprocessing(find_first_convs(checkpoint).first_convs)
    with bare(tmp_path, {"scale/scale/a:0": (1,), **shapes}) as checkpoint:
        assert len(checkpoint.graph.preprocessing(find_first_convs(checkpoint).first_convs)) == 1


def test_one_mean_of_all_channels_is_folded_and_stays(tmp_path: Path):
    layers = numbered(("normalization", [(), (), ()]), ("conv2d", [(3, 3, 3, 8), (8,)]), ("conv2d_1", [(3, 3, 8, 8)]))
    with bare(tmp_path, layers) as checkpoint:
        (front,) = checkpoint.graph.preprocessing(find_first_convs(checkpoint).first_convs)
    assert (front.uniform, len(front.scale or ()), front.tensors) == (True, 1, ())


def test_the_file_that_settles_it_is_one_that_keras_writes(tmp_path: Path):
    reason = pytest.raises(UnsupportedError, match="holds no convolution that could see an image")
    with bare(tmp_path, numbered(("dense", [(5, 8), (8,)]))) as checkpoint, reason as caught:
        select_first_convs(checkpoint, SearchRequest())
    assert caught.value.hint.endswith('--like LIKE.weights.h5, made by net(channels=1).save_weights("LIKE.weights.h5")')


def test_kernels_in_wrappers_and_cells_are_kernels(tmp_path: Path):
    wrapped = numbered(("time_distributed/layer", [(3, 3, 3, 8), (8,)]), ("conv3d", [(1, 1, 1, 8, 5), (5,)]))
    cell = numbered(("conv_lstm2d/cell", [(3, 3, 3, 16), (3, 3, 4, 16), (16,)]), ("conv3d", [(1, 1, 1, 4, 5)]))
    for name, shapes in {"layers/time_distributed/layer": wrapped, "layers/conv_lstm2d/cell": cell}.items():
        with bare(tmp_path, shapes) as checkpoint:
            assert stems(checkpoint) == [(f"{name}/vars/0", "HWIO", 3, 1)]


def test_the_bias_of_a_separable_convolution_takes_no_constant(tmp_path: Path):
    layers = numbered(("separable_conv2d", [(3, 3, 3, 1), (1, 1, 3, 3), (3,)]), ("conv2d", [(3, 3, 3, 8)]))
    with bare(tmp_path, layers) as checkpoint:
        (conv,) = find_first_convs(checkpoint).first_convs
        assert checkpoint.graph.bias_target(conv) is None
