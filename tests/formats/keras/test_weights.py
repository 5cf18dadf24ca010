"""Which datasets hold which weights of which layer, in files that h5py writes as Keras's versions do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from chkpt_channels import UnsupportedError
from chkpt_channels.containers.hdf5.reader import Hdf5
from chkpt_channels.formats.keras.config import KerasModel, all_layers, parse
from chkpt_channels.formats.keras.weights import (
    MOST_WEIGHTS,
    OLD_LAYERS,
    WANTED,
    Legacy,
    Numbered,
    Placed,
    Stored,
    is_stored,
    joined,
    natural,
    split_names,
)
from chkpt_channels.storage.source import Source
from tests.formats.keras.test_config import sequential
from tests.formats.keras.test_h5_file import conv, image, layer, model

Attributes = Mapping[str, Mapping[str, Any]]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[..., Hdf5]]:
    """An HDF5 file with scalars at these paths, made in this order, and attributes by path."""
    sources = []

    def open_(paths: Sequence[str], attributes: Attributes | None = None, **values: np.ndarray) -> Hdf5:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for path in paths:
                file[path] = values.get(path, np.float32(0))
            for path, texts in (attributes or {}).items():
                for name, text in texts.items():
                    file.require_group(path or "/").attrs[name] = text
        sources.append(Source(tmp_path / "a.h5"))
        return Hdf5(sources[-1], sources[-1].location, wanted=WANTED)

    yield open_
    for source in sources:
        source.close()


Read = Callable[..., Hdf5]


def read_model(*layers: Any, **options: Any) -> KerasModel:
    return parse(model(image(), *layers, **options))


def of(top: KerasModel, where: str) -> Any:
    return next(found for found in all_layers(top) if found.where == where)


# Names


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers/conv2d/vars/0", True),
        ("vars/12", True),
        ("vars/kernel", False),
        ("layers/vars0", False),
        ("layers/x/myvars/0", False),
    ],
)
def test_variables_of_keras_3_are_numbered(path: str, expected: bool):
    assert is_stored(path) == expected


@pytest.mark.parametrize(
    ("attributes", "whole", "parts"),
    [
        ({"names": ["a", "b"]}, ["a", "b"], ["names"]),
        ({"names": "a"}, ["a"], ["names"]),
        ({"names0": ["a"], "names1": ["b", "c"]}, ["a", "b", "c"], ["names0", "names1"]),
        ({"names0": ["a"], "names2": ["c"]}, ["a"], ["names0"]),
        ({"names0": ["a", "b"], "names1": ["c"]}, ["a", "b", "c"], ["names0", "names1"]),
        ({"names0": [], "names1": ["c"]}, ["c"], ["names0", "names1"]),
        ({"other": ["a"]}, [], []),
        ({}, [], []),
    ],
    ids=str,
)
def test_lists_that_keras_splits_are_put_together(attributes: dict[str, Any], whole: list[str], parts: list[str]):
    assert joined(attributes, "names") == whole
    assert split_names(attributes, "names") == parts


def test_numbers_in_names_are_sorted_as_numbers():
    named = ["conv2d_10/vars/0", "conv2d/vars/10", "conv2d/vars/9", "conv2d_2/vars/0", "batch/vars/0"]
    assert natural(named) == ["batch/vars/0", "conv2d/vars/9", "conv2d/vars/10", "conv2d_2/vars/0", "conv2d_10/vars/0"]


def test_attributes_are_wanted_where_an_order_is_not_told_otherwise(read: Read):
    few = [f"model_weights/few/w{k}" for k in range(MOST_WEIGHTS)]
    many = [f"model_weights/many/w{k}" for k in range(MOST_WEIGHTS + 1)]
    attributes = {path: {"weight_names": ["x"], "other": "y"} for path in ("model_weights/few", "model_weights/many")}
    found = read([*few, *many], {**attributes, "": {"keras_version": "3"}})
    assert {path: dict(texts) for path, texts in found.texts.items() if texts} == {
        "": {"keras_version": "3"},
        "model_weights/many": {"weight_names": ["x"]},
    }


# .h5


def test_weights_of_a_layer_are_found_by_its_names(read: Read):
    file = read(["model_weights/stem/stem/bias", "model_weights/stem/stem/kernel", "model_weights/norm/norm/gamma"])
    top = read_model(conv("stem", "image"), layer("BatchNormalization", "norm", "stem"))
    found = Legacy(file, "model_weights")
    assert found.find(of(top, "stem")) == {
        "kernel": "model_weights/stem/stem/kernel",
        "bias": "model_weights/stem/stem/bias",
    }
    assert found.find(of(top, "norm")) == {"gamma": "model_weights/norm/norm/gamma"}
    assert found.find(of(top, "image")) == {}


def test_layers_are_in_the_order_that_the_file_gives(read: Read):
    paths = ["a/a/bias:0", "a/a/kernel:0", "b/b/kernel:0", "z/z/kernel:0"]
    assert Legacy(read(paths, {"": {"layer_names": ["z", "gone", "a"]}}), "").order == [
        "z/z/kernel:0",
        "a/a/kernel:0",
        "a/a/bias:0",
        "b/b/kernel:0",
    ]
    assert Legacy(read(paths), "").order == ["a/a/kernel:0", "a/a/bias:0", "b/b/kernel:0", "z/z/kernel:0"]


def test_weights_of_an_inner_model_are_in_the_order_that_the_file_gives(read: Read):
    names = [f"c{k}/kernel:0" for k in range(MOST_WEIGHTS + 1)][::-1]
    file = read([f"inner/{name}" for name in sorted(names)], {"inner": {"weight_names": names}})
    assert Legacy(file, "").order == [f"inner/{name}" for name in names]


INSIDE = [
    *("inner/block/conv/kernel:0", "inner/block/conv/bias:0", "inner/conv/kernel:0"),
    *("inner/inner/deep/kernel:0", "old/old_W", "old/old_b"),
]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("inner/conv", {"kernel": "inner/conv/kernel:0"}),
        ("inner/deep", {"kernel": "inner/inner/deep/kernel:0"}),
        ("inner/lost", {}),
        ("old", {"kernel": "old/old_W", "bias": "old/old_b"}),
    ],
)
def test_weights_in_an_inner_model_are_those_whose_path_names_it_best(where: str, expected: dict[str, str], read: Read):
    inner = model(
        image("in"),
        conv("conv", "in", use_bias=False),
        conv("deep", "in"),
        conv("lost", "in"),
        name="inner",
        inputs=["in"],
        calls=["image"],
    )
    top = read_model(inner, conv("old", "image", kind="Convolution2D"))
    file = read([path for path in INSIDE if path != "inner/block/conv/kernel:0"])
    assert Legacy(file, "").find(of(top, where)) == expected


def test_weights_that_two_paths_name_as_well_are_not_found(read: Read):
    top = read_model(conv("stem", "image"))
    assert Legacy(read(["stem/a/stem/kernel:0", "stem/b/stem/kernel:0"]), "").find(of(top, "stem")) == {}


def test_a_depthwise_kernel_has_several_names(read: Read):
    top = read_model(conv("dw", "image", kind="DepthwiseConv2D"))
    for name in ("depthwise_kernel:0", "kernel:0"):
        assert Legacy(read([f"dw/dw/{name}"]), "").find(of(top, "dw")) == {"depthwise_kernel": f"dw/dw/{name}"}


# Keras 3


def test_variables_are_found_by_class_and_number(read: Read):
    paths = [f"layers/{name}/vars/{i}" for name in ("conv2d", "conv2d_1", "batch_normalization", "dense") for i in range(2)]
    top = read_model(conv("stem", "image"), conv("next", "stem"), layer("BatchNormalization", "norm", "next"))
    found = Stored(read(paths), top)
    assert found.find(of(top, "stem")) == {"kernel": "layers/conv2d/vars/0", "bias": "layers/conv2d/vars/1"}
    assert found.find(of(top, "next")) == {"kernel": "layers/conv2d_1/vars/0", "bias": "layers/conv2d_1/vars/1"}
    assert found.find(of(top, "norm")) == {
        f"{n}": f"layers/batch_normalization/vars/{i}" for i, n in enumerate(("gamma", "beta"))
    }
    assert found.find(of(top, "image")) == {}


def test_variables_are_in_the_order_of_the_layers(read: Read):
    paths = [
        "layers/batch_normalization/vars/0",
        "layers/conv2d/vars/10",
        "layers/conv2d/vars/9",
        "layers/dense/vars/0",
        "seed/vars/0",
    ]
    top = read_model(conv("stem", "image"), layer("BatchNormalization", "norm", "stem"))
    assert Stored(read(paths), top).order == [
        "layers/conv2d/vars/9",
        "layers/conv2d/vars/10",
        "layers/batch_normalization/vars/0",
    ]


def test_layers_of_an_inner_model_stand_below_it(read: Read):
    inner = model(image("in"), conv("conv", "in"), name="inner", inputs=["in"], calls=["image"])
    top = read_model(inner, conv("stem", "image"))
    paths = ["layers/functional/layers/conv2d/vars/0", "layers/conv2d/vars/0"]
    found = Stored(read(paths), top)
    assert found.find(of(top, "inner/conv")) == {"kernel": paths[0]}
    assert found.find(of(top, "stem")) == {"kernel": paths[1]}


def test_layers_had_another_name_once(read: Read):
    path = f"{OLD_LAYERS}/conv2d/vars/0"
    top = read_model(conv("stem", "image"))
    assert Stored(read([path]), top).find(of(top, "stem")) == {"kernel": path}


@pytest.mark.parametrize("first", ["InputLayer", "Conv2D"])
def test_the_input_of_a_sequential_is_not_counted(first: str, read: Read):
    entries = [image("a"), image("b")] if first == "InputLayer" else []
    top = parse(sequential(*entries, conv("stem"), conv("next")))
    found = Stored(read(["layers/conv2d/vars/0", "layers/conv2d_1/vars/0"]), top)
    assert found.find(of(top, "next")) == {"kernel": "layers/conv2d_1/vars/0"}


def test_functions_are_not_counted(read: Read):
    add = layer("Add", "f", ["image", 1.0], module="keras.src.ops.numpy")
    top = read_model(add, layer("Add", "real", "f"))
    assert Stored(read(["layers/add/vars/0"]), top).order == ["layers/add/vars/0"]


def test_an_optimizer_trains_what_is_neither_frozen_nor_a_statistic(read: Read):
    inner = model(image("in"), conv("conv", "in"), name="inner", inputs=["in"], calls=["image"])
    inner["config"]["trainable"] = False
    layers = (conv("stem", "image"), layer("BatchNormalization", "norm", "stem"), conv("still", "norm", trainable=False), inner)
    top = read_model(*layers, layer("Dense", "dense", "still"), outputs=["dense"])
    counts = {"conv2d": 2, "batch_normalization": 4, "conv2d_1": 2, "functional/layers/conv2d": 2, "dense": 3}
    paths = [f"layers/{name}/vars/{i}" for name, count in counts.items() for i in range(count)]
    file = read(paths, None, **{"layers/dense/vars/2": np.int32(7)})
    assert list(Stored(file, top).trained(top)) == [
        *("layers/conv2d/vars/0", "layers/conv2d/vars/1"),
        *("layers/batch_normalization/vars/0", "layers/batch_normalization/vars/1"),
        *("layers/dense/vars/0", "layers/dense/vars/1"),
    ]


# Keras 3 without a configuration


def test_without_a_configuration_layers_are_in_the_order_in_which_they_were_written(read: Read):
    paths = ["layers/conv2d/vars/0", "layers/conv2d/vars/1", "layers/batch/vars/0", "layers/conv2d_1/vars/0", "optimizer/vars/0"]
    found = Numbered(read(paths))
    assert (found.order, found.is_ordered) == (paths[:-1], True)


def test_numbers_of_a_class_tell_where_its_places_do_not(read: Read):
    paths = ["layers/conv2d_1/vars/0", "layers/conv2d/vars/0", "layers/conv2d_2/vars/0"]
    found = Numbered(read(paths))
    assert found.order == ["layers/conv2d/vars/0", "layers/conv2d_1/vars/0", "layers/conv2d_2/vars/0"]
    assert not found.is_ordered


def test_variables_of_a_layer_are_sorted_as_numbers(read: Read):
    paths = [f"vars/{i}" for i in range(12)]
    assert Numbered(read(paths)).order == paths


def test_what_goes_with_a_layer(read: Read):
    top = "model_weights"
    paths = [f"{top}/{name}/{name}/kernel" for name in "abc"]
    whole = Legacy(read(paths, {top: {"layer_names": ["a", "b", "c"]}}), top)
    assert whole.without("b") == Placed([f"{top}/b"], {(top, "layer_names"): ["a", "c"]})
    split = Legacy(read(paths, {top: {"layer_names0": ["a"], "layer_names1": ["b", "c"]}}), top)
    assert split.without("b") == Placed([f"{top}/b"], {(top, "layer_names1"): ["c"]})
    with pytest.raises(UnsupportedError, match="layer_names0: names a alone"):
        split.without("a")
