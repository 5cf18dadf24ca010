"""Keras models in HDF5: what the graph of the configuration says, and what becomes of it. No Keras is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from chkpt_channels import UnsupportedError, UsageError, convert, inspect, verify
from chkpt_channels.core.errors import DamagedError
from tests.support.files import FIXTURES, opened

RANDOM = np.random.default_rng(0)
FOLDER = FIXTURES / "keras_h5"
Entry = dict[str, Any]


def tensor(name: str, call: int = 0, output: int = 0) -> Entry:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, call, output]}}


def layer(kind: str, name: str, *calls: Sequence[Any] | str, module: str = "", **config: Any) -> Entry:
    """An entry of a functional model; each call is what it takes, names of layers or ready arguments."""
    taken = [[call] if isinstance(call, str) else call for call in calls]
    nodes = [{"args": [tensor(t) if isinstance(t, str) else t for t in args], "kwargs": {}} for args in taken]
    made: Entry = {"class_name": kind, "config": {"name": name, **config}, "name": name, "inbound_nodes": nodes}
    return {"module": module, **made} if module else made


def image(name: str = "image", channels: int = 3) -> Entry:
    return layer("InputLayer", name, batch_shape=[None, 8, 8, channels])


def conv(name: str, *calls: Any, kind: str = "Conv2D", **config: Any) -> Entry:
    return layer(kind, name, *calls, **{"kernel_size": [3, 3], "filters": 4, "use_bias": True, **config})


def model(
    *layers: Entry, inputs: Sequence[str] = ("image",), outputs: Sequence[Any] = (), name: str = "net", calls: Sequence[Any] = ()
) -> Entry:
    config = {"name": name, "layers": list(layers), "input_layers": [[i, 0, 0] for i in inputs]}
    config["output_layers"] = [[o, 0, 0] if isinstance(o, str) else o for o in outputs or [layers[-1]["name"]]]
    return {**layer("Functional", name, *calls), "config": config}


def weights(shape: Sequence[int] = (3, 3, 3, 4)) -> dict[str, np.ndarray]:
    return {"kernel": RANDOM.normal(size=shape).astype("f4"), "bias": RANDOM.normal(size=shape[-1]).astype("f4")}


def write(path: Path, configuration: Any, layers: Mapping[str, Mapping[str, np.ndarray]], **attributes: Any) -> Path:
    """A whole model; `layers` are weights by the path of their group below model_weights."""
    with h5py.File(path, "w") as file:
        if configuration is not None:
            file.attrs["model_config"] = json.dumps(configuration)
        group = file.create_group("model_weights")
        for key, value in attributes.items():
            group.attrs[key] = value
        for name, arrays in layers.items():
            for weight, values in arrays.items():
                group[f"{name}/{weight}"] = values
    return path


def one(path: Path, *layers: Entry, **options: Any) -> Path:
    """A model whose convolutions are called conv…, with kernels over three channels."""
    names = [entry["name"] for entry in layers if entry["name"].startswith("conv")]
    return write(path / "a.h5", model(*layers, **options), {f"{name}/{name}": weights() for name in names})


def found(path: Path) -> list[str]:
    return [conv.tensor.name.partition("/")[0] for conv in inspect(path).first_convs]


def fronts(path: Path) -> list[tuple[str, str, bool]]:
    """(where, kind, whether it can be folded) of all that stands in front."""
    with opened(path) as checkpoint:
        convs = checkpoint.graph.first_convs()
        return [(front.where, front.kind, front.scale is not None) for front in checkpoint.graph.preprocessing(convs)]


def configuration(path: Path) -> Any:
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


KEPT = [
    layer("ZeroPadding2D", "x", "image", data_format="channels_last"),
    layer("Permute", "x", "image", dims=[2, 1, 3]),
    layer("RandomFlip", "x", "image"),
    layer("Resizing", "x", "image", data_format="channels_last"),
    layer("Dropout", "x", "image"),
]
BENT = [
    layer("MaxPooling2D", "x", "image", data_format="channels_last"),
    layer("Activation", "x", "image", activation="relu"),
    layer("TrueDivide", "x", [255.0, "image"], module="keras.src.ops.numpy"),
]
FOLDED = [
    layer("Rescaling", "x", "image", scale=2.0, offset=-1.0),
    layer("Rescaling", "x", "image", scale=[1.0, 2.0, 3.0], offset=0.0),
    layer("Rescaling", "x", "image", scale={"class_name": "__numpy__", "config": {"value": [1.0, 2.0, 3.0]}}, offset=0.0),
    layer("Normalization", "x", "image", axis=[-1], mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0]),
    layer("Normalization", "x", "image", axis=[3], mean=[[[[1.0, 2.0, 3.0]]]], variance=[[[[1.0, 2.0, 3.0]]]], invert=True),
    layer("Normalization", "x", "image", axis=None, mean=2.0, variance=3.0),
    layer("Multiply", "x", ["image", [[1.0, 2.0, 3.0]]], module="keras.src.ops.numpy"),
    layer("Subtract", "x", [[1.0, 2.0, 3.0], "image"], module="keras.src.ops.numpy"),
    layer("TrueDivide", "x", ["image", 255.0], module="keras.src.ops.numpy"),
]
MIXED = [
    layer("Lambda", "x", "image"),
    layer("UpSampling2D", "x", "image", size=[1, 3], data_format="channels_first"),
    layer("Activation", "x", "image", activation="softmax"),
    layer("Normalization", "x", "image", axis=[1, 2, 3], mean=None, variance=None),
    layer("Normalization", "x", "image", axis=[-1], mean=[1.0, 2.0], variance=[1.0, 2.0]),
    layer("Rescaling", "x", "image", scale=[[1.0], [2.0], [3.0]], offset=0.0),
    layer("GetItem", "x", ["image", 2], module="keras.src.ops.numpy"),
    layer("LayerNormalization", "x", "image"),
    layer("SomebodysLayer", "x", "image"),
]


@pytest.mark.parametrize("entry", KEPT, ids=lambda e: e["class_name"])
def test_what_treats_all_channels_alike_is_passed(entry: Entry, tmp_path: Path):
    path = one(tmp_path, image(), entry, conv("conv", "x"))
    assert (found(path), fronts(path)) == (["conv"], [])
    assert inspect(path).first_convs[0].why == "the image reaches it through x"


@pytest.mark.parametrize("entry", BENT, ids=lambda e: e["class_name"])
def test_what_is_not_linear_is_passed_by_whole_channels(entry: Entry, tmp_path: Path):
    path = one(tmp_path, image(), entry, conv("conv", "x"))
    assert (found(path), fronts(path)) == (["conv"], [("x", entry["class_name"], False)])
    for to in ("gray", "bgr"):
        assert {k.method for k in convert(path, tmp_path / f"{to}.h5", to=to).kernels} <= {"sum", "bgr"}
    assert convert(path, tmp_path / "4.h5", to=4).kernels[0].method == "adapter"
    for words in ({"to": 4, "method": "repeat"}, {"to": 1, "method": "mean"}):
        with pytest.raises(UnsupportedError, match=f"x: this {entry['class_name']} precedes the kernel and is not linear"):
            convert(path, tmp_path / "c.h5", **words)


@pytest.mark.parametrize("entry", FOLDED, ids=lambda e: e["class_name"])
def test_constants_in_front_are_fronts(entry: Entry, tmp_path: Path):
    assert fronts(one(tmp_path, image(), entry, conv("conv", "x"))) == [("x", entry["class_name"], True)]


@pytest.mark.parametrize("entry", MIXED, ids=lambda e: e["class_name"])
def test_what_mixes_channels_leaves_what_stands_in_front(entry: Entry, tmp_path: Path):
    path = one(tmp_path, image(), entry, conv("conv", "x"))
    assert fronts(path) == [("x", entry["class_name"], False)]
    assert {k.method for k in convert(path, tmp_path / "b.h5", to="gray").kernels} == {"stack"}
    assert convert(path, tmp_path / "4.h5", to=4).kernels[0].method == "adapter"
    for options in ({"to": "gray", "method": "sum"}, {"to": 4, "method": "repeat"}):
        with pytest.raises(UnsupportedError, match=rf"x: this {entry['class_name']} "):
            convert(path, tmp_path / "c.h5", **options)


def test_a_bend_behind_constants_of_single_channels_cannot_be_folded(tmp_path: Path):
    pool = layer("MaxPooling2D", "pool", "x", data_format="channels_last")
    assert fronts(one(tmp_path, image(), FOLDED[1], pool, conv("conv", "pool"))) == [
        ("pool", "MaxPooling2D", False),
        ("x", "Rescaling", True),
    ]
    assert fronts(one(tmp_path, image(), FOLDED[0], pool, conv("conv", "pool"))) == [("pool", "MaxPooling2D", False)]


ELSEWHERE = {
    "a sum at the end": [conv("conv", "image"), layer("Add", "end", [[tensor("image"), tensor("conv")]])],
    "a Dense layer": [conv("conv", "image"), layer("Flatten", "end", "image")],
    "a layer called on other things too": [
        conv("stem", "image"),
        conv("conv", "image", "stem"),
        layer("Add", "end", [[tensor("conv", 0), tensor("conv", 1)]]),
    ],
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_else_takes_the_image_matters(case: str, tmp_path: Path):
    layers = ELSEWHERE[case]
    path = write(tmp_path / "a.h5", model(image(), *layers), {name: weights() for name in ("conv/conv", "stem/stem")})
    assert any(not folded for _, _, folded in fronts(path))
    with pytest.raises(UnsupportedError):
        convert(path, tmp_path / "b.h5", to=4, method="repeat")
    assert convert(path, tmp_path / "b.h5", to=4).kernels[0].method == "adapter"
    assert convert(path, tmp_path / "c.h5", to="gray").kernels[0].method == "stack"


def test_a_model_that_gives_its_image_back(tmp_path: Path):
    path = one(tmp_path, image(), conv("conv", "image"), outputs=["conv", "image"])
    assert fronts(path) == [("the model's output", "output", False)]


def test_inner_models_called_twice_and_shared(tmp_path: Path):
    inner = model(image("in"), conv("conv", "in"), name="inner", inputs=["in"], calls=["one", "two"])
    outer = model(
        image("one"), image("two"), inner, layer("Add", "add", [[tensor("inner", 0), tensor("inner", 1)]]), inputs=["one", "two"]
    )
    path = write(tmp_path / "a.h5", outer, {"inner/conv": weights()})
    assert (found(path), fronts(path)) == (["inner"], [])
    convert(path, tmp_path / "b.h5", to=4)
    shapes = [e["config"]["batch_shape"][-1] for e in configuration(tmp_path / "b.h5")["config"]["layers"][:2]]
    nested = configuration(tmp_path / "b.h5")["config"]["layers"][2]["config"]["layers"]
    assert (shapes, nested[0]["config"]["batch_shape"][-1]) == ([4, 4], 4)


def test_an_inner_model_that_one_image_and_features_enter(tmp_path: Path):
    inner = model(image("in"), conv("conv", "in"), name="inner", inputs=["in"], calls=["image", "other"])
    outer = model(image(), layer("Lambda", "other", "image"), inner)
    path = write(tmp_path / "a.h5", outer, {"inner/conv": weights()})
    assert {front[:2] for front in fronts(path)} == {
        ("other", "Lambda"),
        ("inner/conv", "Conv2D"),
    }


def test_of_images_with_different_channels_those_with_three_are_converted(tmp_path: Path):
    both = model(image("color"), image("depth", 1), conv("conv_a", "color"), conv("conv_b", "depth"), inputs=["color", "depth"])
    path = write(tmp_path / "a.h5", both, {"conv_a/conv_a": weights(), "conv_b/conv_b": weights((3, 3, 1, 4))})
    assert found(path) == ["conv_a"]
    convert(path, tmp_path / "b.h5", to=4)
    layers = configuration(tmp_path / "b.h5")["config"]["layers"]
    assert [entry["config"]["batch_shape"][-1] for entry in layers[:2]] == [4, 1]


def test_one_of_two_stems_cannot_be_converted_alone(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="sees the image together with") as caught:
        convert(FOLDER / "two_stems.h5", tmp_path / "b.h5", layers=["conv1_wide/conv1_wide/kernel"])
    assert "--layer conv1_narrow/conv1_narrow/kernel" in caught.value.hint


def test_a_kernel_that_no_image_reaches_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="no image reaches this kernel") as caught:
        convert(FOLDER / "two_stems.h5", tmp_path / "b.h5", layers=["conv2/conv2/kernel"])
    layers = caught.value.hint.removeprefix("--layer ").split(" --layer ")
    assert convert(FOLDER / "two_stems.h5", tmp_path / "b.h5", layers=layers).status == "converted"


def test_shapes_that_contradict_the_image_are_refused(tmp_path: Path):
    stale = conv("conv", "image")
    stale["build_config"] = {"input_shape": [None, 8, 8, 5]}
    with pytest.raises(UnsupportedError, match="layers/conv/build_config/input_shape contradicts"):
        convert(one(tmp_path, image(), stale), tmp_path / "b.h5")


def test_a_kernel_that_contradicts_the_image_is_damage(tmp_path: Path):
    path = write(tmp_path / "a.h5", model(image(), conv("conv", "image")), {"conv/conv": weights((3, 3, 5, 4))})
    with pytest.raises(DamagedError, match="does not take the 3 channels"):
        convert(path, tmp_path / "b.h5")


def test_groups_become_one(tmp_path: Path):
    entry = conv("conv", "image", groups=3, filters=6)
    path = write(tmp_path / "a.h5", model(image(), entry), {"conv/conv": weights((3, 3, 1, 6))})
    report = convert(path, tmp_path / "b.h5", to="gray")
    assert report.kernels[0].conv.groups == 3
    assert configuration(tmp_path / "b.h5")["config"]["layers"][1]["config"]["groups"] == 1
    with h5py.File(path) as before, h5py.File(tmp_path / "b.h5") as after:
        name = "model_weights/conv/conv/kernel"
        assert np.array_equal(before[name][()], after[name][()])


@pytest.mark.parametrize("groups", ["three", 2.5, [3]])
def test_groups_that_are_no_integer_are_damage(groups: Any, tmp_path: Path):
    path = write(tmp_path / "a.h5", model(image(), conv("conv", "image", groups=groups)), {"conv/conv": weights()})
    with pytest.raises(DamagedError, match=re.escape(f"its groups is {groups!r}, which is no integer")):
        convert(path, tmp_path / "b.h5", to="gray")


def test_depthwise_filters_are_read_again_for_one_channel(tmp_path: Path):
    source, out = FOLDER / "depthwise.h5", tmp_path / "b.h5"
    convert(source, out, to="gray")
    with h5py.File(source) as before, h5py.File(out) as after:
        old, new = (file["model_weights/conv1/conv1/kernel"] for file in (before, after))
        assert (new.shape, new[()].tobytes()) == ((3, 3, 1, 6), old[()].tobytes())
    assert configuration(out)["config"]["layers"][1]["config"]["depth_multiplier"] == 6
    assert verify(source, out).ok
    with pytest.raises(UnsupportedError, match="in 3 groups"):
        convert(source, tmp_path / "c.h5", to=4, method="repeat")
    with pytest.raises(UnsupportedError, match="DepthwiseConv2D"):
        convert(out, tmp_path / "c.h5", to="rgb", method="repeat")


def of_layer(path: Path, name: str) -> dict[str, np.ndarray]:
    """A layer's weights by their names."""
    with h5py.File(path) as file:
        group = file[f"model_weights/{name}"]
        group = group.get(name, group)
        return {weight.partition(":")[0]: values[()].astype("f8") for weight, values in group.items()}


def responses(path: Path, gray: np.ndarray) -> np.ndarray:
    """What the first convolution of `normalized` and the BatchNormalization behind it make of plain images, [image, filter]."""
    entries = {entry["name"]: entry for entry in configuration(path)["config"]["layers"]}
    function = next((e for e in entries.values() if e["class_name"] == "TFOpLambda"), None)
    listed = function["inbound_nodes"][0][3]["y"][0] if function else entries["rescaling_list"]["config"]["scale"]
    statistics, kernel, norm = (of_layer(path, name) for name in ("normalization", "conv1", "conv1_bn"))
    x = (gray[:, None] / 255 - statistics["mean"]) / np.sqrt(statistics["variance"]) * np.array(listed)
    made = np.einsum("hwio,ni->no", kernel["kernel"], x)
    return norm["gamma"] * (made - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-3) + norm["beta"]


@pytest.mark.parametrize("name", ["normalised.h5", "keras2_normalised.h5"])
def test_folding_is_exact_away_from_the_border(name: str, tmp_path: Path):
    report = convert(FOLDER / name, tmp_path / "b.h5", to="gray", method="sum")
    gray = np.linspace(0, 255, 7)
    before, after = responses(FOLDER / name, gray), responses(tmp_path / "b.h5", gray)
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()
    assert len(report.changed) == 4  # the kernel, mean and variance, the moving mean behind
    with opened(tmp_path / "b.h5") as checkpoint:
        assert [len(front.scale or ()) for front in checkpoint.graph.preprocessing(checkpoint.graph.first_convs())] == [1, 1, 1]


@pytest.mark.parametrize(
    ("source", "name", "better"),
    [("plain.weights.h5", "gray.h5", "gray.weights.h5"), ("sequential.h5", "gray.weights.h5", "gray.h5")],
)
def test_keras_goes_by_the_name(source: str, name: str, better: str, tmp_path: Path):
    with pytest.raises(UsageError, match="another kind of Keras") as caught:
        convert(FOLDER / source, tmp_path / name, to="gray")
    assert caught.value.hint == f"name it {better}"
    assert convert(FOLDER / source, tmp_path / better, to="gray").load_lines[-1].endswith(f"{better}')")


def test_a_normalization_in_weights_alone_is_folded_and_said(tmp_path: Path):
    report = convert(FOLDER / "normalised.weights.h5", tmp_path / "b.weights.h5", to="gray")
    assert {notice.code for notice in report.warnings} == {"code_constants", "border_error"}
    stems = {
        "layers/normalization/vars/0",
        "layers/normalization/vars/1",
        "layers/conv2d/vars/0",
        "layers/batch_normalization/vars/2",
    }
    assert set(report.changed) == stems


@pytest.mark.parametrize("name", ["normalised.h5", "keras2_normalised.h5"])
def test_stack_changes_nothing_but_the_configuration(name: str, tmp_path: Path):
    report = convert(FOLDER / name, tmp_path / "b.h5", to="gray")
    assert (report.changed, report.kernels[0].method) == ((), "stack")
    before, after = (configuration(path)["config"] for path in (FOLDER / name, tmp_path / "b.h5"))
    first, added, *rest = after["layers"]
    shape = "batch_shape" if "batch_shape" in first["config"] else "batch_input_shape"
    assert first["config"][shape] == [None, 16, 16, 1]
    assert (added["class_name"], added["config"]["axis"], added["name"]) == ("Concatenate", -1, "image_stack")
    assert json.dumps(rest) == json.dumps(before["layers"][1:]).replace('"image"', '"image_stack"')
    assert inspect(tmp_path / "b.h5").first_convs[0].in_channels == 1
    with pytest.raises(UnsupportedError, match="image_stack: this Concatenate"):
        convert(tmp_path / "b.h5", tmp_path / "c.h5", to="rgb", method="repeat")


def test_a_sequential_model_is_stacked_by_an_upsampling(tmp_path: Path):
    convert(FOLDER / "sequential.h5", tmp_path / "b.h5", to="gray", method="stack")
    first, added, conv1, *_ = configuration(tmp_path / "b.h5")["config"]["layers"]
    assert first["config"]["batch_shape"] == [None, 16, 16, 1]
    assert (added["class_name"], added["config"]["size"], added["config"]["data_format"]) == (
        "UpSampling2D",
        [1, 3],
        "channels_first",
    )
    assert conv1["config"]["name"] == "conv1"


def test_a_signal_in_a_sequential_model_has_no_stack(tmp_path: Path):
    layers = [
        layer("InputLayer", "image", batch_shape=[None, 8, 3]),
        layer("Lambda", "x"),
        conv("conv", kind="Conv1D", kernel_size=[3]),
    ]
    sequential = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    path = write(tmp_path / "a.h5", sequential, {"conv/conv": weights((3, 3, 4))})
    with pytest.raises(UnsupportedError, match="x: this Lambda"):
        convert(path, tmp_path / "b.h5", to="gray", method="sum")
    assert convert(path, tmp_path / "b.h5", to="gray").kernels[0].method == "adapter"


def test_a_sequential_model_without_an_input_layer(tmp_path: Path):
    """As Keras before 2.2.3 wrote it: a bare list, the first layer says the shape."""
    layers = [conv("conv", batch_input_shape=[None, 8, 8, 3]), layer("Flatten", "flat")]
    path = write(tmp_path / "a.h5", {"class_name": "Sequential", "config": layers}, {"conv/conv": weights()})
    convert(path, tmp_path / "b.h5", to=4)
    assert configuration(tmp_path / "b.h5")["config"][0]["config"]["batch_input_shape"] == [None, 8, 8, 4]
    convert(path, tmp_path / "c.h5", to="gray", method="stack")
    added, first, _ = configuration(tmp_path / "c.h5")["config"]
    assert (added["class_name"], added["config"]["batch_input_shape"]) == ("UpSampling2D", [None, 8, 8, 1])
    assert "batch_input_shape" not in first["config"]


@pytest.mark.parametrize("spelling", ["several attributes", "fixed length", "compact"])
def test_the_configuration_is_written_as_it_was(spelling: str, tmp_path: Path):
    path = one(tmp_path, image(), conv("conv", "image"))
    with h5py.File(path, "a") as file:
        text = file.attrs["model_config"]
        del file.attrs["model_config"]
        if spelling == "several attributes":
            third = len(text) // 3
            for i in range(3):
                file.attrs[f"model_config{i}"] = text[i * third : (i + 1) * third if i < 2 else None]
        elif spelling == "fixed length":
            file.attrs["model_config"] = np.bytes_(text.encode())
        else:
            file.attrs["model_config"] = json.dumps(json.loads(text), separators=(",", ":"))
    assert convert(path, tmp_path / "b.h5", to=4).status == "converted"
    with h5py.File(tmp_path / "b.h5") as file:
        keys = sorted(key for key in file.attrs if key.startswith("model_config"))
        pieces = [file.attrs[key] for key in keys]
        assert len(keys) == (3 if spelling == "several attributes" else 1)
        whole = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces).decode()
        assert isinstance(pieces[0], bytes) == (spelling == "fixed length")
    assert (", " in whole) == (spelling != "compact")
    assert json.loads(whole)["config"]["layers"][0]["config"]["batch_shape"][-1] == 4


def test_a_configuration_in_an_unknown_hand_is_refused(tmp_path: Path):
    path = one(tmp_path, image(), conv("conv", "image"))
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = "  " + file.attrs["model_config"]
    with pytest.raises(UnsupportedError, match="an edit would not keep"):
        convert(path, tmp_path / "b.h5")


DAMAGED_TEXTS = {
    "no JSON": "{",
    "nested too deeply": '{"a":' * 100_000,
    "no model": '{"class_name": 3}',
    "an unknown tensor": json.dumps(model(image(), layer("Add", "a", [{"class_name": "__keras_tensor__", "config": {}}]))),
    "a name twice": json.dumps(model(image(), conv("conv", "image"), conv("conv", "image"))),
    "a list": "[1, 2]",
}


@pytest.mark.parametrize("case", DAMAGED_TEXTS)
def test_a_damaged_configuration_is_damage(case: str, tmp_path: Path):
    path = one(tmp_path, image(), conv("conv", "image"))
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = DAMAGED_TEXTS[case]
    with pytest.raises(DamagedError, match="model_config: "):
        convert(path, tmp_path / "b.h5")


def test_models_called_in_each_other_without_end_are_damage(tmp_path: Path):
    inner = model(image("in"), conv("conv", "in"), name="m0", inputs=["in"])
    for depth in range(1, 20):
        called = {**inner, "inbound_nodes": layer("M", "m", "in", "in")["inbound_nodes"]}
        name = called["name"]
        inner = model(
            image("in"), called, layer("Add", "add", [[tensor(name, 0), tensor(name, 1)]]), name=f"m{depth}", inputs=["in"]
        )
    path = write(tmp_path / "a.h5", inner, {"m18/conv": weights()})
    with pytest.raises(DamagedError, match="its nested models takes more than 200000 steps"):
        convert(path, tmp_path / "b.h5")


def test_a_model_of_the_users_own_class_is_refused(tmp_path: Path):
    path = write(tmp_path / "a.h5", {"class_name": "MyModel", "config": {"depth": 3}}, {"conv/conv": weights()})
    with pytest.raises(UnsupportedError, match="a custom class that does not list its layers"):
        convert(path, tmp_path / "b.h5")


def test_a_lambda_is_said_and_copied(tmp_path: Path):
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAA"}}
    path = one(tmp_path, image(), layer("Lambda", "x", "image", function=code), conv("conv", "x"))
    report = convert(path, tmp_path / "b.h5", to="gray")
    assert [notice.code for notice in report.warnings] == ["lambda"]
    assert configuration(tmp_path / "b.h5")["config"]["layers"][2]["config"]["function"] == code


FOREIGN = {
    "a netCDF file": lambda f: f.attrs.__setitem__("_NCProperties", "x"),
    "a PyTables or pandas file": lambda f: f.attrs.__setitem__("PYTABLES_FORMAT_VERSION", "2.1"),
    "an AnnData file": lambda f: f.attrs.__setitem__("encoding-type", "anndata"),
    "an HDF5 file": lambda f: f.__setitem__("x", np.arange(3)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_hdf5_files_are_named_and_refused(name: str, tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        FOREIGN[name](file)
    with pytest.raises(UnsupportedError, match=f"is {name}, not one that Keras wrote"):
        inspect(tmp_path / "a.h5")


def test_theano_kernels_stay_in_their_order(tmp_path: Path):
    source, out = FOLDER / "theano_weights.h5", tmp_path / "b.h5"
    convert(source, out, to="gray")
    with h5py.File(source) as before, h5py.File(out) as after:
        old, new = before["conv1/conv1_W"][()], after["conv1/conv1_W"][()]
    assert np.array_equal(new, old.astype("f8").sum(1, keepdims=True).astype("f4"))


def test_theano_kernels_of_whole_models_are_told_by_their_window(tmp_path: Path):
    entry = conv("conv", "image", kernel_size=[3, 5])
    path = write(tmp_path / "a.h5", model(image(), entry), {"conv/conv": {"kernel": weights((4, 3, 3, 5))["kernel"]}})
    assert inspect(path).first_convs[0].layout == "OIHW"
    square = model(image(), conv("conv", "image", filters=3))
    for backend, layout in (("theano", "OIHW"), ("tensorflow", "HWIO")):
        path = write(tmp_path / "b.h5", square, {"conv/conv": {"kernel": weights((3, 3, 3, 3))["kernel"]}}, backend=backend)
        assert inspect(path).first_convs[0].layout == layout


def test_an_optimizer_that_keeps_its_state_in_parts_is_refused(tmp_path: Path):
    path = one(tmp_path, image(), conv("conv", "image"))
    with h5py.File(path, "a") as file:
        group = file.create_group("optimizer_weights")
        for name, shape in (("r", (3, 3, 3)), ("c", (3, 3, 4))):
            group[f"adafactor/conv_kernel_{name}"] = np.zeros(shape, "f4")
    with pytest.raises(UnsupportedError, match="a factored part of the optimizer's state"):
        convert(path, tmp_path / "b.h5")
    assert convert(path, tmp_path / "b.h5", to="gray", method="stack").status == "converted"


def test_an_optimizer_cannot_lose_single_entries(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="with all of its state or not at all"):
        convert(FOLDER / "functional.h5", tmp_path / "b.h5", optimizer="drop")


def test_names_with_colons_and_numbers_belong_to_their_weights():
    from chkpt_channels.formats.keras import optimizer

    weights = optimizer.own_names(["stem/stem/kernel:0", "a/b/stem/kernel", "x/stem_1/kernel"])
    slots = [
        "Adam/m/stem/kernel:0",
        "Adam/stem/kernel/v:0",
        "training/Adam/stem/kernel/m:0",
        "adam/stem_1_kernel_momentum",
        "iter:0",
    ]
    owners = optimizer.by_name(slots, weights)
    stem = "stem/stem/kernel:0"
    assert owners == {slots[0]: stem, slots[1]: stem, slots[2]: stem, slots[3]: "x/stem_1/kernel"}


@pytest.mark.parametrize("order", ["by weight", "by slot"])
def test_numbered_slots_belong_to_weights_by_their_shapes(order: str):
    from chkpt_channels.formats.keras import optimizer

    shapes = {"a": (3, 3), "b": (3,), "c": (3, 3), "d": (5,)}
    listed = [s for s in shapes.values() for _ in "mv"] if order == "by weight" else [*shapes.values(), *shapes.values()]
    slots = {f"{i}": shape for i, shape in enumerate([(), (), *listed])}
    names = [n for n in shapes for _ in "mv"] if order == "by weight" else [*shapes, *shapes]
    assert optimizer.by_order(slots, shapes) == {f"{i + 2}": name for i, name in enumerate(names)}
    slots["9"] = (7, 7)  # one that fits nowhere: only shapes that no second weight has tell
    assert set(optimizer.by_order(slots, shapes).values()) == {"b", "d"}


@pytest.mark.parametrize(
    ("name", "ending"), [("functional.h5", ", compile=False)"), ("keras2.h5", ", compile=False)"), ("sequential.h5", "new.h5')")]
)
def test_a_compiled_model_is_loaded_without_its_losses(name: str, ending: str, tmp_path: Path):
    lines = convert(FOLDER / name, tmp_path / "new.h5", "gray").load_lines
    assert lines[-1].startswith("model = keras.models.load_model(")
    assert lines[-1].endswith(ending)
