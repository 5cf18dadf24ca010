"""The configuration of a Keras model as a graph: layers, the tensors they take, nested models.

    Sequential       {"class_name", "config": {"layers": [entry, …]}}, in Keras before 2.2.3 "config": [entry, …]
    Functional       the same, each entry with "name" and "inbound_nodes", one node a call; "input_layers", "output_layers"
    a Keras 2 node   [tensor, …], or one tensor alone for a function of TensorFlow; tensor is [layer, node, output, {arguments}]
    a Keras 3 node   {"args": [tensor, …], "kwargs": {…}}; tensor is
                     {"class_name": "__keras_tensor__", "config": {"shape", "keras_history": [layer, node, output]}}

Source: keras/src/models/functional.py, keras/src/saving/serialization_lib.py of Keras 3.15; tf_keras 2.21.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.formats.keras.layers import WRAPPERS

Ref = tuple[str, int, int]
"""A tensor: the name of the layer that produces it, the index of the call, the index of the output."""

Path = tuple[str | int, ...]
"""Steps into the JSON."""

OUTSIDE = ""
"""The name of the input of a Sequential model that begins without an InputLayer."""


class Inbound(NamedTuple):
    """A tensor that a call takes, and the path at which its shape is repeated (Keras 3)."""

    ref: Ref
    shape: Path | None


class LayerCall(NamedTuple):
    """One call of a layer, and the tensors that it takes."""

    path: Path
    inbound: tuple[Inbound, ...]


class Layer:
    """One layer: `kind` is its class, `path` that of its entry, `number` its index in its model, `trail` the names of the models
    around it and its own."""

    def __init__(self, entry: Mapping[str, Any], path: Path, number: int, parent: KerasModel) -> None:
        self.entry, self.path, self.number, self.parent = entry, path, number, parent
        self.kind = str(entry["class_name"])
        self.config: Any = entry["config"]
        named = self.config if isinstance(self.config, dict) else {}
        self.name = str(entry.get("name") or named.get("name") or self.kind)
        self.trail = (*parent.trail, self.name)
        self.nodes: list[LayerCall] = []
        self.inner: KerasModel | None = None

    @property
    def where(self) -> str:
        """Its name in messages and declarations."""
        return "/".join(self.trail)

    @property
    def is_linear(self) -> bool:
        """Whether it has no activation."""
        return self.config.get("activation") in (None, "linear")

    @property
    def only_taker(self) -> Layer | None:
        """The layer that takes every output of this one and nothing else."""
        calls = [(self.name, call, 0) for call in range(len(self.nodes))]
        takers = [taker for ref in calls for taker in self.parent.takers.get(ref, ())]
        taker = takers[0][0] if takers and not set(calls) & set(self.parent.outputs) else None
        is_alone = taker and all(other is taker for other, _, _ in takers) and len(taker.nodes) == len(takers) == len(calls)
        return taker if is_alone else None

    @property
    def is_function(self) -> bool:
        """Whether it is an operation of a model's code, not a layer: Keras 2 wraps these in TFOpLambda."""
        return self.kind in ("TFOpLambda", "TensorFlowOpLayer") or str(self.entry.get("module")).startswith("keras.src.ops")


class KerasModel:
    """A model: its layers by name in the order of the configuration, its input and output tensors. A layer around others is one
    too: each of them takes its input, or with TimeDistributed a part of it; `wrapper` is its class, "" for a model.
    `around` is the layer that it is, None for the top model."""

    def __init__(self, entry: Mapping[str, Any], path: Path, trail: tuple[str, ...], around: Layer | None = None) -> None:
        self.entry, self.path, self.trail, self.around = entry, path, trail, around
        self.wrapper = str(entry["class_name"]) if entry.get("class_name") in WRAPPERS else ""
        self.layers: dict[str, Layer] = {}
        self.inputs: list[Ref] = []
        self.outputs: list[Ref] = []
        self.is_sequential = False

    @cached_property
    def takers(self) -> Mapping[Ref, list[tuple[Layer, int, int]]]:
        """The takers of each tensor: (layer, index of its call, position among the tensors of that call)."""
        takers: defaultdict[Ref, list[tuple[Layer, int, int]]] = defaultdict(list)
        for layer in self.layers.values():
            for number, node in enumerate(layer.nodes):
                for position, inbound in enumerate(node.inbound):
                    takers[inbound.ref].append((layer, number, position))
        return takers

    @cached_property
    def produced(self) -> Mapping[tuple[str, int], set[Ref]]:
        """For each call, by layer and number, the tensors of it that anyone takes."""
        produced: defaultdict[tuple[str, int], set[Ref]] = defaultdict(set)
        for ref in (*self.takers, *self.outputs):
            produced[ref[:2]].add(ref)
        return produced


def at(document: Any, path: Path) -> Any:
    """The value at that path of the JSON; None where there is none."""
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def parse(entry: Mapping[str, Any]) -> KerasModel | None:
    """The model of a configuration; None for a class of the user's own that does not list its layers.

    Raises KeyError, TypeError, ValueError, AttributeError or IndexError where it is not a configuration.
    """
    if _entries(entry) is None:
        return None
    top = KerasModel(entry, (), ())
    waiting = [top]
    while waiting:
        model = waiting.pop()
        entries = _entries(model.entry)
        for number, (steps, inner) in enumerate(entries or ()):
            layer = Layer(inner, (*model.path, *steps), number, model)
            if layer.name in model.layers:
                raise ValueError(f"two layers are named {layer.name}")
            model.layers[layer.name] = layer
            if _entries(inner) is not None:
                layer.inner = KerasModel(inner, layer.path, layer.trail, layer)
                waiting.append(layer.inner)
            elif not isinstance(layer.config, dict):
                raise ValueError(f"the config of layer {layer.name} is not a JSON object")
            elif not all(size is None or type(size) is int for size in _input_shape(layer.config)):
                raise ValueError(f"the shape of {layer.name} holds what is no number")
        _connect(model)
    return top


def _input_shape(config: Mapping[str, Any]) -> Sequence[Any]:
    """The shape that an InputLayer declares, none where there is none; of other layers too, which say it in a Sequential."""
    shape = config.get("batch_shape", config.get("batch_input_shape"))
    return shape if isinstance(shape, list) else ()


def all_layers(top: KerasModel) -> Iterator[Layer]:
    """Every layer, those of a nested model after its own entry."""
    waiting = list(reversed(top.layers.values()))
    while waiting:
        layer = waiting.pop()
        yield layer
        if layer.inner:
            waiting += reversed(layer.inner.layers.values())


def _entries(entry: Mapping[str, Any]) -> list[tuple[Path, Mapping[str, Any]]] | None:
    """The entries of a model's layers, or of those in a wrapper, and the steps to each; None for what is neither."""
    config, kind = entry["config"], str(entry.get("class_name"))
    if kind in WRAPPERS and isinstance(config, dict):
        found: list[tuple[Path, Any]] = [(("config", key), config.get(key)) for key, _ in WRAPPERS[kind]]
    else:
        listed = config.get("layers") if isinstance(config, dict) else config if kind == "Sequential" else None
        if not isinstance(listed, list):
            return None
        steps: Path = ("config", "layers") if isinstance(config, dict) else ("config",)
        found = [((*steps, number), inner) for number, inner in enumerate(listed)]
    return found if all(isinstance(inner, dict) and "class_name" in inner for _, inner in found) else None


def _connect(model: KerasModel) -> None:
    config = model.entry["config"]
    if isinstance(config, dict) and "input_layers" in config:
        for layer in model.layers.values():
            for i, node in enumerate(layer.entry.get("inbound_nodes") or ()):
                path = (*layer.path, "inbound_nodes", i)
                layer.nodes.append(LayerCall(path, tuple(_inbound(node, path))))
        model.inputs, model.outputs = ([t.ref for t in _inbound(config[key], ())] for key in ("input_layers", "output_layers"))
        if len({*model.inputs}) < len(model.inputs):
            raise ValueError("it takes one input twice")
        _renumber(model)
        return
    before = OUTSIDE
    if model.wrapper:
        for layer in model.layers.values():
            layer.nodes = [LayerCall(layer.path, (Inbound((before, 0, 0), None),))]
        model.inputs, model.outputs = [(before, 0, 0)], [(name, 0, 0) for name in model.layers]
        return
    model.is_sequential = True
    for layer in model.layers.values():
        if layer.kind != "InputLayer":
            layer.nodes = [LayerCall(layer.path, (Inbound((before, 0, 0), None),))]
        before = layer.name
    first = next(iter(model.layers.values()), None)
    model.inputs = [(first.name if first and first.kind == "InputLayer" else OUTSIDE, 0, 0)]
    model.outputs = [(before, 0, 0)]


def _inbound(value: Any, path: Path) -> Iterator[Inbound]:
    """Every reference to a tensor in `value`, in order."""
    waiting = [(value, path)]
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, dict):
            if value.get("class_name") == "__keras_tensor__":
                history = value["config"]["keras_history"]
                if not is_reference(history):
                    raise ValueError(f"{history!r} is not a tensor reference")
                yield Inbound((history[0], history[1], history[2]), (*path, "config", "shape"))
                continue
            waiting += reversed([(inner, (*path, key)) for key, inner in value.items()])
        elif isinstance(value, list):
            if is_reference(value):
                yield Inbound((value[0], value[1], value[2]), None)
                waiting += [(inner, (*path, 3)) for inner in value[3:4]]
                continue
            waiting += reversed([(inner, (*path, i)) for i, inner in enumerate(value)])


def is_reference(value: Any) -> bool:
    """Whether a list is Keras 2's [layer, node, output, …]."""
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and value[0] != "_CONSTANT_VALUE"
        and all(type(number) is int and number >= 0 for number in value[1:3])
    )


def _renumber(model: KerasModel) -> None:
    """Keras 2 counts the calls of a nested model from 1, as its construction was call 0: count them from 0."""
    calls: defaultdict[str, set[int]] = defaultdict(set)
    refs = [t.ref for layer in model.layers.values() for node in layer.nodes for t in node.inbound] + model.outputs
    for name, node, _ in refs:
        calls[name].add(node)
    shifted = {
        name
        for name, layer in model.layers.items()
        if layer.inner and calls[name] and (max(calls[name]) >= len(layer.nodes) or (_is_old(layer) and min(calls[name]) >= 1))
    }

    def ref(old: Ref) -> Ref:
        return (old[0], old[1] - 1, old[2]) if old[0] in shifted else old

    for layer in model.layers.values():
        layer.nodes = [node._replace(inbound=tuple(t._replace(ref=ref(t.ref)) for t in node.inbound)) for node in layer.nodes]
    model.outputs = [ref(old) for old in model.outputs]


def _is_old(layer: Layer) -> bool:
    """Whether its calls are encoded as in Keras 2."""
    return any(isinstance(node, list) for node in layer.entry.get("inbound_nodes") or ())
