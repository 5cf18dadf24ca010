"""What a Keras model's graph answers: its first convs, what precedes them, what takes a constant, and the edited text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Edits, FirstConv, Tensor
from chkpt_channels.discovery.find import select_first_convs
from chkpt_channels.discovery.request import SearchRequest
from tests.formats.keras.test_h5_file import conv, image, layer, model, tensor, weights, write
from tests.support.files import FIXTURES, opened

F32 = BY_NAME["F32"]
ENDS = ((0, 2), (0, 3), (1, 3))
ALL = ((0, 0), (0, 1), *ENDS, (2, 3), (3, 3))
"""The taps of a window of three that are on pixels."""


@pytest.mark.parametrize("name", ["keras_h5/functional.h5", "keras_zip/functional.keras", "keras_h5/keras2.h5"])
def test_a_plain_stem(name: str):
    with opened(FIXTURES / name) as checkpoint:
        (conv,) = checkpoint.graph.first_convs()
        assert (conv.layout, conv.in_channels, conv.found_by, conv.groups) == ("HWIO", 3, "graph", 1)
        assert conv.why.startswith("the image reaches it")
        assert checkpoint.graph.graph_methods([conv]) == ("stack",)
        assert {d.channels for d in checkpoint.graph.declarations([conv])} == {3}
        assert not checkpoint.graph.contradiction


@pytest.mark.parametrize("name", ["keras_h5/normalised.h5", "keras_zip/normalised.keras"])
def test_a_normalization_precedes_the_stem(name: str):
    with opened(FIXTURES / name) as checkpoint:
        (conv,) = checkpoint.graph.first_convs()
        operations = checkpoint.graph.preprocessing([conv])
        assert "Normalization" in {op.kind for op in operations}
        assert all(op.scale is not None and len(op.scale) == 3 for op in operations)


def test_a_depthwise_stem_has_a_group_for_each_channel():
    with opened(FIXTURES / "keras_zip" / "depthwise.keras") as checkpoint:
        (conv,) = checkpoint.graph.first_convs()
        assert conv.groups == conv.in_channels == 3
        assert checkpoint.graph.is_depthwise(conv.tensor.name)
        assert checkpoint.graph.dense_shape(conv, 4) is None


def test_no_edit_leaves_the_text_as_it_is():
    with opened(FIXTURES / "keras_zip" / "functional.keras") as checkpoint:
        assert checkpoint.graph.edited(Edits()) == (None, None)


def test_stack_puts_one_layer_after_the_input():
    with opened(FIXTURES / "keras_zip" / "functional.keras") as checkpoint:
        graph = checkpoint.graph
        numbers = {d.where: 1 for d in graph.declarations(graph.first_convs())}
        text, _ = graph.edited(Edits(numbers=numbers, channels=1, method="stack"))
        assert text is not None
        before = json.loads(checkpoint._text)["config"]["layers"]
        after = json.loads(text)["config"]["layers"]
        assert [layer["class_name"] for layer in after[:2]] == ["InputLayer", "Concatenate"]
        assert len(after) == len(before) + 1


def test_no_image_reaches_a_convolution():
    """No option makes its graph another."""
    reason = pytest.raises(UnsupportedError, match="no image reaches a convolution in its graph")
    with opened(FIXTURES / "keras_zip" / "no_conv.keras") as checkpoint, reason as refused:
        select_first_convs(checkpoint, SearchRequest())
    assert not refused.value.hint


def test_a_kernel_that_no_image_reaches_is_refused():
    with opened(FIXTURES / "keras_zip" / "functional.keras") as checkpoint:
        other = FirstConv(Tensor("elsewhere/kernel", F32, (3, 3, 3, 4)), Layout("HWIO"), 3, "user")
        with pytest.raises(UnsupportedError, match="elsewhere/kernel: no image reaches this kernel in the model's graph"):
            checkpoint.graph.preprocessing([other])


def padded(kind: str = "Conv2D", *before: Any, **config: Any) -> Any:
    last = conv("conv", "pad" if before else "image", kind=kind, **config)
    return model(image(), *before, last)


PAD = layer("ZeroPadding2D", "pad", "image", data_format="channels_last")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (padded(padding="valid"), {((0, 3), (0, 3))}),
        (padded(padding="same"), {((i, j), (k, m)) for i, j in ENDS for k, m in ENDS}),
        (padded("Conv2D", PAD, padding="valid"), {((i, j), (k, m)) for i, j in ALL for k, m in ALL}),
        (padded("Dense", units=4), {((0, 1),)}),
        (padded("Dense", PAD, units=4), {((0, 0),), ((0, 1),), ((1, 1),)}),
    ],
    ids=["valid", "same", "by a layer in front", "single pixels", "single pixels by a layer in front"],
)
def test_taps_lie_on_zeros_as_the_configuration_pads(entry: Any, expected: set[Any], tmp_path: Path):
    shape = (3, 4) if entry["config"]["layers"][-1]["class_name"] == "Dense" else (3, 3, 3, 4)
    with opened(write(tmp_path / "a.h5", entry, {"conv/conv": weights(shape)})) as checkpoint:
        (stem,) = checkpoint.graph.first_convs()
        assert set(checkpoint.graph.padding(stem)) == expected


def test_a_constant_passes_no_separable_convolution(tmp_path: Path):
    shapes = {"depthwise_kernel": (3, 3, 3, 1), "pointwise_kernel": (1, 1, 3, 3), "bias": (3,)}
    stored = {name: np.ones(shape, "float32") for name, shape in shapes.items()}
    with opened(write(tmp_path / "a.h5", padded("SeparableConv2D"), {"conv/conv": stored})) as checkpoint:
        (stem,) = checkpoint.graph.first_convs()
        assert checkpoint.graph.bias_target(stem) is None


def test_of_images_of_several_counts_at_one_kernel_the_colors_are_meant(tmp_path: Path):
    both = layer("Concatenate", "both", [[tensor("depth"), tensor("image")]], axis=-1)
    entry = model(image("depth", 1), image(), both, conv("conv", "both"), inputs=["depth", "image"])
    with opened(write(tmp_path / "a.h5", entry, {"conv/conv": weights((3, 3, 4, 4))})) as checkpoint:
        (stem,) = checkpoint.graph.first_convs()
        assert (stem.in_channels, stem.inputs) == (3, ("image",))
