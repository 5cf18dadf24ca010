"""Edits of a configuration: numbers set, constants chosen, and a layer after the input that makes the old channels.

Keras cannot broadcast a channel: a one-channel input before a Normalization of three fails to load, in every format of Keras 2
and 3. So `stack` puts a layer without weights after the input. In a functional model that is Concatenate of the same tensor
several times; in a Sequential, where a layer takes one tensor, an UpSampling with the other `data_format`, which then repeats
exactly the channel axis.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chkpt_channels.core.errors import Location
from chkpt_channels.formats.keras.config import Layer, Path, at, is_reference
from chkpt_channels.formats.keras.dataflow.constants import select_channels
from chkpt_channels.formats.keras.dataflow.effects import Image
from chkpt_channels.formats.keras.layers import CONVS

Entry = Callable[[str, Image, Mapping[str, Any]], dict[str, Any]]
# how json.dumps was called: Keras itself uses its defaults, other writers these
_STYLES: tuple[Mapping[str, Any], ...] = (
    {},
    {"ensure_ascii": False},
    {"separators": (",", ":")},
    {"separators": (",", ":"), "ensure_ascii": False},
    *({"indent": indent} for indent in (1, 2, 4)),
)


def encoder(text: str, document: Any, location: Location) -> Callable[[Any], str]:
    """The function that encodes an edited `document` in the style of `text`. Raises UnsupportedError for an unknown style."""
    for style in _STYLES:
        if json.dumps(document, **style) == text:
            return lambda edited: json.dumps(edited, **style)
    raise location.unsupported(
        "its configuration is encoded in a JSON style that an edit would not keep", hint="save it again with Keras"
    )


def set_at(document: Any, path: Path, value: Any) -> None:
    """Put `value` at `path`."""
    at(document, path[:-1])[path[-1]] = value


def choose(document: Any, path: Path, channels: Sequence[int]) -> None:
    """Keep the constants of these channels."""
    set_at(document, path, select_channels(document, path, channels))


def ungroup(document: Any, layer: Layer, shape: tuple[int, ...]) -> None:
    """Make a grouped convolution one over its only channel. A depthwise kernel [h, w, 3, m] has the same bytes as [h, w, 1, 3m],
    with depth_multiplier 3m."""
    settings = at(document, (*layer.path, "config"))
    if CONVS[layer.kind].depthwise:
        settings["depth_multiplier"] = shape[-1]
    elif "groups" in settings:
        settings["groups"] = 1


def can_stack(image: Image) -> bool:
    """Whether a layer can repeat this image's channel: in a Sequential none does for (batch, steps, channels), as UpSampling1D
    has no data_format."""
    return not image.layer.parent.is_sequential or image.rank > 3 or image.axis == 1


def stack(document: Any, image: Image) -> None:
    """Give the image one channel, and insert a layer after its input that repeats it as the old ones."""
    insert(document, image, 1, "stack", _repeating if image.layer.parent.is_sequential else _joining)


def insert(document: Any, image: Image, channels: int, suffix: str, entry: Entry) -> str:
    """Give the image so many channels, and insert a layer after its input of which all of its takers take what they took; the
    name of that layer, the input's with a suffix. `entry` makes it of its name, the image, and the entry of the input."""
    set_at(document, (*image.path, image.axis), channels)
    home, layers = image.layer.parent, at(document, image.layer.path[:-1])
    names = {layer.name for layer in home.layers.values()}
    name = next(n for i in range(len(names) + 1) if (n := f"{image.layer.name}_{suffix}{i or ''}") not in names)
    if not home.is_sequential:
        _redirect(at(document, home.path)["config"], image.layer.name, [name, 0, 0])
    is_behind = image.layer.kind == "InputLayer" or not home.is_sequential
    layers.insert(image.layer.number + is_behind, entry(name, image, layers[image.layer.number]))
    return name


def take_out(document: Any, layer: Layer) -> None:
    """Leave out a layer that takes one tensor, which all of its takers take from then on."""
    layers = at(document, layer.path[:-1])
    entry = layers.pop(layer.number)
    if not layer.parent.is_sequential:
        _redirect(at(document, layer.parent.path)["config"], layer.name, next(_references(entry["inbound_nodes"]))[:3])


def _redirect(model: Any, old: str, new: Sequence[Any]) -> None:
    """Make everything that takes the tensor of the layer `old` take the tensor `new`."""
    for value in (*(layer.get("inbound_nodes") for layer in model["layers"]), model.get("output_layers")):
        for reference in _references(value):
            if reference[0] == old:
                reference[:3] = new


def _references(value: Any) -> Iterator[list[Any]]:
    """The references to tensors in a value."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if is_reference(value):
            yield value
            value = value[3:]
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _joining(name: str, image: Image, input_: Mapping[str, Any]) -> dict[str, Any]:
    """Concatenate(axis)([image] * channels), as this file encodes layers."""
    axis = -1 if image.axis == image.rank - 1 else image.axis
    config = {"name": name, "trainable": True, "dtype": _dtype(input_), "axis": axis}
    return following("Concatenate", config, image, input_, image.channels)


def following(kind: str, config: dict[str, Any], image: Image, input_: Mapping[str, Any], times: int = 1) -> dict[str, Any]:
    """The entry of a layer that takes the image as it is; in a functional model so many times in a list, or alone."""
    if image.layer.parent.is_sequential:
        return _entry(kind, config, input_, _entered(config, image, input_))
    shapes = [list(input_["config"][image.path[-1]]) for _ in range(times)]
    entry = _entry(kind, config, input_, shapes[0] if times == 1 else shapes)
    return entry | {"name": config["name"], **_node(image, input_, times)}


def _node(image: Image, input_: Mapping[str, Any], times: int) -> dict[str, Any]:
    """The call of a layer with the image, so many times in a list, or alone."""
    if image.path[-1] != "batch_shape":
        return {"inbound_nodes": [[[image.layer.name, 0, 0, {}] for _ in range(times)]]}
    shape, dtype = input_["config"]["batch_shape"], input_["config"].get("dtype", "float32")
    history = [image.layer.name, 0, 0]
    tensor = {"class_name": "__keras_tensor__", "config": {"shape": shape, "dtype": dtype, "keras_history": history}}
    tensors = [json.loads(json.dumps(tensor)) for _ in range(times)]
    return {"inbound_nodes": [{"args": tensors if times == 1 else [tensors], "kwargs": {}}]}


def _entered(config: dict[str, Any], image: Image, first: Mapping[str, Any]) -> list[Any]:
    """The shape of the image, which a layer states that comes first in a Sequential without an InputLayer."""
    if image.layer.kind != "InputLayer":
        config[str(image.path[-1])] = first["config"].pop(image.path[-1])
    return list(at(first, ("config", image.path[-1])) or config[str(image.path[-1])])


def _repeating(name: str, image: Image, first: Mapping[str, Any]) -> dict[str, Any]:
    """The UpSampling that takes the axis of the channels for pixels: its own channels are those before, or the last."""
    spatial, is_behind = image.rank - 2, image.axis > 1
    size = [1] * spatial
    size[image.axis - 1 - is_behind] = image.channels
    config: dict[str, Any] = {"name": name, "trainable": True, "dtype": _dtype(first)}
    shape = _entered(config, image, first)
    if spatial == 1:
        config["size"] = image.channels
    else:
        config |= {"size": size, "data_format": "channels_first" if is_behind else "channels_last"}
    if spatial == 2:
        config["interpolation"] = "nearest"
    return _entry(f"UpSampling{spatial}D", config, first, shape)


def _dtype(input_: Mapping[str, Any]) -> str:
    """The dtype in which the layer passes its input on."""
    dtype = input_["config"].get("dtype")
    return dtype if isinstance(dtype, str) and dtype.startswith(("float", "bfloat")) else "float32"


def _entry(kind: str, config: Mapping[str, Any], like: Mapping[str, Any], shape: Any) -> dict[str, Any]:
    """A layer's entry with the fields that this file's entries have."""
    entry: dict[str, Any] = {"class_name": kind, "config": dict(config)}
    if "module" in like:
        entry = {"module": "keras.layers", **entry, "registered_name": None, "build_config": {"input_shape": shape}}
    return entry
