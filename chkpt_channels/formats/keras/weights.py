"""The datasets of an HDF5 file that hold the weights of each layer.

    whole model, .h5      /model_weights/<layer of the top model>/<its weight_names>; with `layer_names` in order
    weights only, .h5     the same at the root
    Keras 3 weights       /layers/<class>[_n]/vars/<i>, inner models /layers/<class>/layers/…; the weights in order of creation

Source: keras/src/legacy/saving/legacy_h5_format.py and keras/src/saving/saving_lib.py of Keras 3.15.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, takewhile

from chkpt_channels.containers.hdf5.reader import AttributeFilter, Hdf5
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.formats.keras.config import KerasModel, Layer, all_layers
from chkpt_channels.formats.keras.layers import CONVS, UNTRAINED, WEIGHT_NAMES, WRAPPERS, snake_case, weight_names

MOST_WEIGHTS = 8
"""Of one layer: MultiHeadAttention has a kernel and a bias for each of its four projections. A group with more is a nested
model."""
OLD_LAYERS = "_layer_checkpoint_dependencies"
"""The name of `layers` in files of Keras 2.12 and 2.13."""

_STORED = pattern(r"(^|/)vars/\d+$")


def owners(file: Hdf5) -> Iterator[str]:
    """The objects whose attributes are read: the file, the group of all weights, and nested models. The weights of one layer are
    few; those of a nested model are under one layer, in an order that only `weight_names` gives."""
    yield from (path for path in ("", "model_weights", "optimizer_weights") if not path or path in file.groups)
    inside = "model_weights/" if "model_weights" in file.groups else ""
    counts = Counter(path.removeprefix(inside).partition("/")[0] for path in file.datasets if path.startswith(inside))
    yield from (inside + name for name, count in counts.items() if count > MOST_WEIGHTS and inside + name in file.groups)


WANTED = AttributeFilter(frozenset({"model_config", "layer_names", "weight_names", "backend", "keras_version"}), owners)


def is_stored(path: str) -> bool:
    """Whether a dataset is a variable of Keras 3's tree."""
    return bool(_STORED.search(path))


def joined(attributes: Mapping[str, str | list[str]], name: str) -> list[str]:
    """A list attribute, which Keras splits over name0, name1, … where one attribute cannot hold it; empty where it is missing."""
    return [part for each in split_names(attributes, name) for part in _listed(attributes[each])]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def split_names(attributes: Mapping[str, str | list[str]], name: str) -> list[str]:
    """The names of the attributes that hold a text or a list: its own, or name0, name1, …"""
    numbered = takewhile(attributes.__contains__, (f"{name}{i}" for i in count()))
    return [name] if name in attributes else [*numbered]


class Placed(NamedTuple):
    """The datasets of a new layer's weights, or the groups of one that goes, and the lists that name it: attributes by (path of
    the object, name)."""

    paths: Sequence[str]
    lists: Mapping[tuple[str, str], Sequence[str]] = {}


class Weights:
    """The weights of a file. `order` are the model's datasets in the order of its layers, or as near to it as the file shows,
    and `prefix` what their paths begin with and their names do not."""

    order: list[str]
    prefix = ""

    def trained(self, top: KerasModel) -> Iterator[str]:
        """The datasets of the weights that an optimizer trains, in its order, as far as that is known."""
        yield from self.order

    def find(self, layer: Layer) -> dict[str, str]:
        """The datasets of a layer of the configuration by the names of its weights, as far as it has them."""
        return {}

    def place(self, kind: str, name: str, weights: Sequence[str]) -> Placed:
        """Where the weights of a new first layer of the top model go, in the order of its class."""
        raise NotImplementedError

    def without(self, layer: str) -> Placed:
        """What goes with a layer of the top model."""
        raise NotImplementedError


class Legacy(Weights):
    """Groups of the top model's layers in the group `owner`, "" for the root, each with the names of its weights."""

    def __init__(self, file: Hdf5, owner: str = "") -> None:
        self._file, self._owner = file, owner
        self.prefix = inside = f"{owner}/" if owner else ""
        self._by_layer: defaultdict[str, list[str]] = defaultdict(list)
        for path in file.datasets:
            if path.startswith(inside):
                self._by_layer[path.removeprefix(inside).partition("/")[0]].append(path)
        names = joined(file.texts.get(owner, {}), "layer_names")
        layers = list(dict.fromkeys([*(name for name in names if name in self._by_layer), *self._by_layer]))
        for name in layers:
            listed = joined(file.texts.get(inside + name, {}), "weight_names")
            self._sort(name, [file.aliases.get(path, path) for path in (f"{inside}{name}/{weight}" for weight in listed)])
        self.order = [path for name in layers for path in self._by_layer[name]]

    def _sort(self, layer: str, listed: Sequence[str]) -> None:
        """Sort a layer's datasets in the order that the file gives, else the kernel first: Keras creates it before the bias."""
        rank = {path: i for i, path in enumerate(listed)}
        self._by_layer[layer].sort(key=lambda path: (rank.get(path, len(rank)), "kernel" not in path.rpartition("/")[2]))

    def find(self, layer: Layer) -> dict[str, str]:
        datasets = {}
        for name in weight_names(layer.kind, layer.config):
            fitting = [(_likeness(path, layer, name), path) for path in self._by_layer.get(layer.trail[0], ())]
            best = max((likeness for likeness, _ in fitting), default=0)
            named = [path for likeness, path in fitting if likeness == best]
            if best and len(named) == 1:
                datasets[name] = named[0]
        return datasets

    def place(self, kind: str, name: str, weights: Sequence[str]) -> Placed:
        """In a group of its name, which is the first of those that the file lists."""
        group = f"{self.prefix}{name}"
        colon = ":0" if any(path.endswith(":0") for path in self.order) else ""  # as Keras 2 names its variables
        names = [f"{name}/{weight}{colon}" for weight in weights]
        attributes = self._file.texts[self._owner]
        lists: dict[tuple[str, str], Sequence[str]] = {(group, "weight_names"): names}
        for listed in [each for each in ("layer_names", "layer_names0") if each in attributes]:
            lists[self._owner, listed] = [name, *_listed(attributes[listed])]
        return Placed([f"{group}/{weight}" for weight in names], lists)

    def without(self, layer: str) -> Placed:
        """Its group; the lists name the others."""
        attributes = self._file.texts[self._owner]
        named = {key: _listed(value) for key, value in attributes.items() if key.startswith("layer_names")}
        lists = {(self._owner, key): [each for each in names if each != layer] for key, names in named.items() if layer in names}
        if empty := next((key for (_, key), names in lists.items() if not names), None):
            raise self._file.location.at(empty).unsupported(f"names {layer} alone: it is not taken out")
        return Placed([f"{self.prefix}{layer}"], lists)


def _likeness(path: str, layer: Layer, weight: str) -> int:
    """How well a dataset's path names a weight of a layer: how many names of `trail` it ends in, plus 1; 0 for not at all."""
    parts = [part.partition(":")[0] for part in path.split("/")]
    names = WEIGHT_NAMES.get(weight, (weight,))
    if parts[-1] not in names:  # Keras 1: conv_W, conv_b
        old = re.fullmatch(r"(.+)_([A-Za-z]+?)(_\d+)?", parts[-1])
        return len(layer.trail) + 1 if old and old[1] == layer.name and old[2] in names else 0
    if layer.kind in CONVS and CONVS[layer.kind].recurrent and parts[-2:-1] and parts[-2].startswith("conv_lstm_cell"):
        del parts[-2]
    ends = 0
    for part, name in zip(reversed(parts[:-1]), reversed(layer.trail), strict=False):
        if part != name:
            break
        ends += 1
    return ends + 1 if ends or len(layer.trail) == 1 else 0


class Stored(Weights):
    """Keras 3's tree of numbered variables, for the layers of a configuration."""

    def __init__(self, file: Hdf5, top: KerasModel) -> None:
        self._file = file
        self._layers = OLD_LAYERS if OLD_LAYERS in file.groups else "layers"
        self._prefixes = self._paths(top)
        by_group = _variables(file)
        self._by_trail = {trail: by_group.pop(f"{prefix}/", []) for trail, prefix in self._prefixes.items()}
        self.order = [path for paths in self._by_trail.values() for path in paths]

    def _paths(self, top: KerasModel) -> dict[tuple[str, ...], str]:
        """The group of every layer: its class in snake case, numbered among the layers beside it."""
        prefixes: dict[tuple[str, ...], str] = {}
        waiting = [(top, "")]
        while waiting:
            model, prefix = waiting.pop()
            used: dict[str, int] = {}
            attributes = iter(WRAPPERS.get(model.wrapper, ()))
            for layer in model.layers.values():
                if (layer.kind == "InputLayer" and model.is_sequential) or layer.is_function:
                    continue
                name = snake_case(layer.kind)
                used[name] = used.get(name, -1) + 1
                numbered = f"{self._layers}/{name}" + (f"_{used[name]}" if used[name] else "")
                path = prefix + (next(attributes)[1] if model.wrapper else numbered)
                prefixes[layer.trail] = path + "/cell" * (layer.kind in CONVS and CONVS[layer.kind].recurrent)
                if layer.inner:
                    waiting.append((layer.inner, f"{path}/"))
        return {layer.trail: prefixes[layer.trail] for layer in all_layers(top) if layer.trail in prefixes}

    def find(self, layer: Layer) -> dict[str, str]:
        prefix = self._prefixes.get(layer.trail)
        names = weight_names(layer.kind, layer.config)
        paths = {name: f"{prefix}/vars/{i}" for i, name in enumerate(names)}
        paths = {name: self._file.aliases.get(path, path) for name, path in paths.items()}  # hard links
        return {name: path for name, path in paths.items() if path in self._file.datasets}

    def place(self, kind: str, name: str, weights: Sequence[str]) -> Placed:
        """In the group of its class, of which it is the only layer."""
        return Placed([f"{self._layers}/{snake_case(kind)}/vars/{i}" for i in range(len(weights))])

    def trained(self, top: KerasModel) -> Iterator[str]:
        """The datasets of the weights that an optimizer trains, in its order."""
        frozen: set[tuple[str, ...]] = set()
        for layer in all_layers(top):
            if layer.trail[:-1] in frozen or (isinstance(layer.config, dict) and layer.config.get("trainable") is False):
                frozen.add(layer.trail)
                continue
            if layer.inner is not None:  # what is its own, as vector_u of SpectralNormalization, is not trained
                continue
            names = weight_names(layer.kind, layer.config)
            for i, path in enumerate(self._by_trail.get(layer.trail, ())):
                if not (i < len(names) and names[i] in UNTRAINED) and "int" not in self._file.datasets[path].dtype:
                    yield path


class Numbered(Weights):
    """The same tree without a configuration: the layers in the order in which they were written, by their groups' addresses.

    HDF5 may reuse a hole for a group: its address is then too low, and it is moved up after the one before it of its class, by
    their numbers. `is_ordered` says that none had to be.
    """

    def __init__(self, file: Hdf5) -> None:
        held = {layer: paths for layer, paths in _variables(file).items() if not layer.startswith("optimizer")}
        self.is_ordered = True
        places: dict[str, tuple[int, int]] = {}
        last: dict[str, int] = {}
        for rank, layer in enumerate(natural(held)):
            kind = re.sub(r"(_\d+)?/$", "", layer)
            address = max(file.groups.get(path, 0) for path in (layer.rstrip("/"), f"{layer}vars"))
            self.is_ordered &= address >= last.get(kind, 0)
            last[kind] = max(address, last.get(kind, 0))
            places[layer] = last[kind], rank
        self.order = [path for layer in sorted(held, key=places.__getitem__) for path in held[layer]]


def _variables(file: Hdf5) -> dict[str, list[str]]:
    """The variables of Keras 3's tree in their order, by what stands before `vars`."""
    variables: defaultdict[str, list[str]] = defaultdict(list)
    for path in file.datasets:
        if is_stored(path):
            variables[path.rpartition("vars/")[0]].append(path)
    return {layer: sorted(paths, key=_number) for layer, paths in variables.items()}


def _number(path: str) -> int:
    return int(path.rpartition("/")[2])


def natural(paths: Iterable[str]) -> list[str]:
    """Sorted so that conv2d_10 follows conv2d_2, and both follow conv2d."""
    return sorted(paths, key=lambda path: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", path)])
