"""Configurations as graphs: layers, calls and the tensors they take, as Keras 1 to 3 spell them."""

from __future__ import annotations

from typing import Any

import pytest

from chkpt_channels.formats.keras.config import OUTSIDE, KerasModel, Layer, all_layers, at, is_reference, parse
from tests.formats.keras.test_h5_file import Entry, conv, image, layer, model, tensor


def old(kind: str, name: str, *calls: Any, **config: Any) -> Entry:
    """An entry of a functional model of Keras 2; each call is a list of [layer, node, output, arguments]."""
    return {"class_name": kind, "config": {"name": name, **config}, "name": name, "inbound_nodes": list(calls)}


def old_model(*layers: Entry, name: str = "net", inputs: Any = (), outputs: Any = (), calls: Any = ()) -> Entry:
    config = {"name": name, "layers": list(layers), "input_layers": list(inputs), "output_layers": list(outputs)}
    return {"class_name": "Functional", "config": config, "name": name, "inbound_nodes": list(calls)}


def sequential(*layers: Entry, name: str = "net", bare: bool = False) -> Entry:
    listed = [{"class_name": entry["class_name"], "config": entry["config"]} for entry in layers]
    return {"class_name": "Sequential", "config": listed if bare else {"name": name, "layers": listed}}


def read(entry: Any) -> KerasModel:
    found = parse(entry)
    assert found is not None
    return found


def taken(layer: Layer) -> list[list[tuple[str, int, int]]]:
    """What each call of a layer takes."""
    return [[one.ref for one in node.inbound] for node in layer.nodes]


def test_a_functional_model_lists_its_layers_and_tensors():
    found = read(model(image(), conv("a", "image"), layer("Add", "end", [[tensor("a"), tensor("image")]])))
    assert list(found.layers) == ["image", "a", "end"]
    assert [(one.kind, one.number, one.where) for one in found.layers.values()] == [
        ("InputLayer", 0, "image"),
        ("Conv2D", 1, "a"),
        ("Add", 2, "end"),
    ]
    assert (found.inputs, found.outputs, found.is_sequential) == ([("image", 0, 0)], [("end", 0, 0)], False)
    assert taken(found.layers["end"]) == [[("a", 0, 0), ("image", 0, 0)]]
    assert {ref: [(one.name, call, place) for one, call, place in takers] for ref, takers in found.takers.items()} == {
        ("image", 0, 0): [("a", 0, 0), ("end", 0, 1)],
        ("a", 0, 0): [("end", 0, 0)],
    }
    assert found.produced == {("image", 0): {("image", 0, 0)}, ("a", 0): {("a", 0, 0)}, ("end", 0): {("end", 0, 0)}}


def test_paths_lead_to_what_they_name():
    entry = model(image(), conv("a", "image"))
    found = read(entry)
    one = found.layers["a"]
    assert at(entry, one.path) is entry["config"]["layers"][1]
    assert at(entry, one.nodes[0].path) is entry["config"]["layers"][1]["inbound_nodes"][0]


@pytest.mark.parametrize("path", [("x",), ("config", "layers", 9), ("config", "name", "x"), ("class_name", 0, "x"), (0,)])
def test_a_path_that_leads_nowhere_leads_to_nothing(path: tuple[str | int, ...]):
    assert at(model(image()), path) is None


def test_keywords_of_a_call_are_taken_too():
    entry = layer("Attention", "a", [tensor("image")])
    entry["inbound_nodes"][0]["kwargs"] = {"mask": None, "value": [tensor("b", 1, 2)], "scale": 2.0}
    found = read(model(image(), conv("b", "image"), entry))
    assert taken(found.layers["a"]) == [[("image", 0, 0), ("b", 1, 2)]]


def test_shapes_that_calls_repeat_are_found():
    shaped = {"class_name": "__keras_tensor__", "config": {"shape": [None, 8, 8, 3], "keras_history": ["image", 0, 0]}}
    entry = model(image(), layer("Add", "a", [[shaped, shaped]]))
    (node,) = read(entry).layers["a"].nodes
    assert [at(entry, one.shape) for one in node.inbound] == [[None, 8, 8, 3]] * 2


def test_keras_2_spells_tensors_as_lists():
    nodes = [[["image", 0, 0, {}], ["a", 0, 1, {"mask": ["b", 0, 0]}]]]
    found = read(
        old_model(
            old("InputLayer", "image"),
            old("Dense", "a", [["image", 0, 0, {}]]),
            old("Dense", "b", [["image", 0, 0]]),
            old("Add", "end", *nodes),
            inputs=[["image", 0, 0]],
            outputs=["end", 0, 0],
        )
    )
    assert taken(found.layers["end"]) == [[("image", 0, 0), ("a", 0, 1), ("b", 0, 0)]]
    assert (found.inputs, found.outputs) == ([("image", 0, 0)], [("end", 0, 0)])


def test_a_function_of_keras_2_takes_one_tensor_alone():
    entry = old("TFOpLambda", "f", ["image", 0, 0, {"y": 2.0}], function="math.multiply")
    found = read(old_model(old("InputLayer", "image"), entry, inputs=[["image", 0, 0]], outputs=[["f", 0, 0]]))
    assert taken(found.layers["f"]) == [[("image", 0, 0)]]
    assert found.layers["f"].is_function
    assert not found.layers["image"].is_function


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", 0, 0], True),
        (["a", 0, 1, {}], True),
        (["a", 0], False),
        (["a", 0, 0, {}, 1], False),
        (["a", -1, 0], False),
        (["a", 0.0, 0], False),
        (["a", True, 0], False),
        (["_CONSTANT_VALUE", 0, 2.0], False),
        (["_CONSTANT_VALUE", 0, 0], False),
        ([0, 0, 0], False),
        ("a00", False),
    ],
    ids=str,
)
def test_references_of_keras_2(value: Any, expected: bool):
    assert is_reference(value) == expected


@pytest.mark.parametrize("bare", [False, True], ids=["Keras 2 and 3", "before 2.2.3"])
def test_the_layers_of_a_sequential_follow_each_other(bare: bool):
    entry = sequential(conv("a"), layer("ReLU", "b"), conv("c"), bare=bare)
    found = read(entry)
    assert [taken(one) for one in found.layers.values()] == [[[(OUTSIDE, 0, 0)]], [[("a", 0, 0)]], [[("b", 0, 0)]]]
    assert (found.inputs, found.outputs, found.is_sequential) == ([(OUTSIDE, 0, 0)], [("c", 0, 0)], True)
    assert at(entry, found.layers["c"].path)["config"]["name"] == "c"


def test_an_input_layer_of_a_sequential_feeds_it():
    found = read(sequential(image(), conv("a")))
    assert (found.inputs, taken(found.layers["a"])) == ([("image", 0, 0)], [[("image", 0, 0)]])
    assert found.layers["image"].nodes == []


def test_a_sequential_of_nothing_gives_what_it_takes():
    found = read(sequential())
    assert found.inputs == found.outputs == [(OUTSIDE, 0, 0)]


def test_models_inside_of_models_have_trails():
    inner = model(image("in"), conv("a", "in"), name="inner", inputs=["in"], calls=["image"])
    entry = model(
        image(),
        model(
            image("m"),
            inner | {"inbound_nodes": layer("x", "x", "m")["inbound_nodes"]},
            name="middle",
            inputs=["m"],
            calls=["image"],
        ),
    )
    found = read(entry)
    assert [one.where for one in all_layers(found)] == [
        "image",
        "middle",
        "middle/m",
        "middle/inner",
        "middle/inner/in",
        "middle/inner/a",
    ]
    deepest = [*all_layers(found)][-1]
    assert deepest.trail == ("middle", "inner", "a")
    assert at(entry, deepest.path)["name"] == "a"


@pytest.mark.parametrize(
    ("calls", "used"),
    [
        ([[["image", 0, 0, {}]]], [["inner", 1, 0, {}]]),
        ([[["image", 0, 0, {}]], [["image", 0, 0, {}]]], [["inner", 1, 0, {}], ["inner", 2, 0, {}]]),
    ],
    ids=["one", "two"],
)
def test_calls_of_an_inner_model_of_keras_2_are_counted_from_nought(calls: Any, used: Any):
    """Its own making is call 0 there."""
    inner = old_model(
        old("InputLayer", "in"),
        old("Dense", "d", [["in", 0, 0, {}]]),
        name="inner",
        inputs=[["in", 0, 0]],
        outputs=[["d", 0, 0]],
        calls=calls,
    )
    end = old("Add", "end", used)
    found = read(old_model(old("InputLayer", "image"), inner, end, inputs=[["image", 0, 0]], outputs=[["end", 0, 0]]))
    assert taken(found.layers["end"]) == [[("inner", k, 0) for k in range(len(calls))]]


def test_calls_of_an_inner_model_of_keras_3_are_counted_so_already():
    inner = model(image("in"), conv("a", "in"), name="inner", inputs=["in"], calls=["image", "image"])
    found = read(model(image(), inner, layer("Add", "end", [[tensor("inner", 0), tensor("inner", 1)]])))
    assert taken(found.layers["end"]) == [[("inner", 0, 0), ("inner", 1, 0)]]


def test_a_layer_is_named_by_its_entry_its_configuration_or_its_class():
    entries = [
        {"class_name": "ReLU", "config": {}, "name": "n"},
        {"class_name": "ReLU", "config": {"name": "c"}},
        {"class_name": "ELU", "config": {}},
    ]
    assert list(read({"class_name": "Sequential", "config": {"layers": entries}}).layers) == ["n", "c", "ELU"]


@pytest.mark.parametrize(("module", "expected"), [("keras.src.ops.numpy", True), ("keras.layers", False), (None, False)])
def test_functions_of_keras_3_are_known_by_their_module(module: str | None, expected: bool):
    entry = {"class_name": "Add", "config": {}, "module": module}
    assert read({"class_name": "Sequential", "config": {"layers": [entry]}}).layers["Add"].is_function == expected


def test_a_class_of_the_users_own_lists_no_layers():
    assert parse({"class_name": "Mine", "config": {"units": 3}}) is None
    assert parse({"class_name": "Mine", "config": {"layers": ["conv", "dense"]}}) is None
    assert parse({"class_name": "Mine", "config": [{"class_name": "Dense", "config": {}}]}) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (model(image(), conv("a", "image"), conv("a", "image")), "two layers are named a"),
        (model(image(), {"class_name": "Dense", "config": 3, "name": "d"}), "the config of layer d is not a JSON object"),
        (
            model(image(), layer("Add", "a", [{"class_name": "__keras_tensor__", "config": {"keras_history": ["image", 0]}}])),
            "is not a tensor reference",
        ),
        ({"class_name": "Functional"}, "config"),
        ({"class_name": "Functional", "config": {"layers": [{"class_name": "Dense"}]}}, "config"),
        ({"class_name": "Functional", "config": {"layers": [], "input_layers": []}}, "output_layers"),
    ],
    ids=["twice", "no object", "no tensor", "no configuration", "an entry without", "no outputs"],
)
def test_what_is_no_configuration_is_refused(entry: Any, message: str):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError, IndexError), match=message):
        parse(entry)


def test_the_layer_that_alone_takes_another():
    branches = read(model(image(), conv("a", "image"), conv("b", "a"), layer("Add", "end", [[tensor("b"), tensor("b")]])))
    assert [one.only_taker and one.only_taker.name for one in branches.layers.values()] == [None, "b", None, None]
    assert read(model(image(), conv("a", "image"), conv("b", "a"), conv("c", "a"))).layers["a"].only_taker is None


def test_what_has_an_activation_is_not_linear():
    found = read(model(image(), conv("a", "image", activation="linear"), conv("b", "a", activation="relu")))
    assert [found.layers[name].is_linear for name in ("image", "a", "b")] == [True, True, False]
