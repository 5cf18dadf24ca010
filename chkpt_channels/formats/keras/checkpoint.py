"""What the two Keras formats share: named datasets, the graph of the configuration, and edits of both."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from chkpt_channels.containers.hdf5.editor import Datasets, NewDataset, Texts
from chkpt_channels.containers.hdf5.reader import Hdf5
from chkpt_channels.containers.json import reader as json_reader
from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import DamagedError
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.tensors import Edits, Notice, OptimizerEntry, Tensor
from chkpt_channels.formats.base import Checkpoint, Format, Joined, Loading, TensorStore
from chkpt_channels.formats.keras import optimizer, weights_only
from chkpt_channels.formats.keras import weights as keras_weights
from chkpt_channels.formats.keras.config import KerasModel, Layer, all_layers, parse
from chkpt_channels.formats.keras.graph import KerasGraph
from chkpt_channels.formats.keras.layers import CONVS, kernel_size
from chkpt_channels.formats.keras.weights import Weights
from chkpt_channels.formats.keras.weights_only import WeightsOnlyGraph
from chkpt_channels.storage.source import Source
from chkpt_channels.storage.splice import Splice

_BY_NUMPY = {row.numpy: row for row in BY_NAME.values() if row.numpy and not row.name.startswith("Q")}
_CONFIG_ERRORS = (KeyError, TypeError, ValueError, AttributeError, IndexError)


class KerasCheckpoint(Checkpoint):
    """A configuration, or none, and an HDF5 file of weights. A subclass opens them, then calls `index`."""

    ordered = True
    like_hint = '--like LIKE.weights.h5, made by net(channels=1).save_weights("LIKE.weights.h5")'
    document: str
    """The name of the configuration; declarations begin with it."""
    load_arguments = ""
    """What load_model takes beside the file."""

    def __init__(self, source: Source, form: Format) -> None:
        super().__init__(source, form)
        self.file: Hdf5
        self.weights: Weights
        self.model: KerasModel | None = None
        self.is_theano = False
        self._text = ""
        self._paths: dict[str, str] = {}

    # The index.

    def configure(self, text: str) -> None:
        """Read the configuration. Raises DamagedError where it is not one."""
        location = self.location.at(self.document)
        try:
            self.model, self._text = parse(json_reader.document(text.encode("utf-8", "surrogatepass"), location)), text
        except _CONFIG_ERRORS as error:
            raise self._config_error(error) from error
        if '"Lambda"' in text or '"__lambda__"' in text:
            message = "its configuration holds a Lambda layer: copied as text, but loading the model may run its code"
            self.warnings.append(Notice("lambda", message))

    def _config_error(self, error: Exception) -> DamagedError:
        return self.location.at(self.document).damaged(f"is not a Keras model configuration: {error}")

    def index(self, weights: Weights) -> None:
        """Name every dataset, those of the model first; names of those below the group of all weights omit it."""
        self.weights = weights
        layouts = self._layouts()
        for path in dict.fromkeys([*weights.order, *self.file.datasets]):
            dataset = self.file.datasets[path]
            name = path.removeprefix(weights.prefix)
            name = name if name not in self._paths else f"/{path}"  # the same path at the root and below the prefix
            group = path.partition("/")[0]
            self._paths[name] = path
            dtype, group = _BY_NUMPY[dataset.dtype], group if group.startswith("optimizer") else ""
            self.tensors[name] = Tensor(name, dtype, dataset.shape, group, layouts.get(path))
        self._names = {path: name for name, path in self._paths.items()}
        if self.model is None:
            self._lay_out_by_names()
        self._find_slots()

    def _lay_out_by_names(self) -> None:
        """The layouts of kernels without a configuration, from names and shapes."""
        kernels = {n: t for n, t in self.tensors.items() if len(t.shape) >= 3 and not t.group}
        old = [t.shape for n, t in kernels.items() if len(t.shape) == 4 and not keras_weights.is_stored(n)]
        theano = weights_only.looks_like_theano(old)
        for name, tensor in kernels.items():
            layer = re.sub(r"(^|/)vars/\d+$", "", name)
            self.tensors[name] = tensor._replace(layout=weights_only.layout_of(layer, tensor, theano=theano))

    def _find_slots(self) -> None:
        """Assign the optimizer's slots to weights: by order in Keras 3's tree, else by name, and by order where no name fits."""
        slots = {name: tensor for name, tensor in self.tensors.items() if tensor.group}
        weights = {name: tensor.shape for name, tensor in self.tensors.items() if not tensor.group}
        if not slots:
            return
        group = next(iter(slots.values())).group
        if group == "optimizer":
            trained = [self._names[path] for path in self.weights.trained(self.model)] if self.model else None
            self.optimizer_entries = _entries_by_number(self.tensors, trained)
            return
        keys = {tensor.key: name for name, tensor in slots.items()}
        named = optimizer.by_name(keys, optimizer.own_names(weights))
        owners = {keys[k]: owner for k, owner in named.items() if slots[keys[k]].shape == weights[owner]}
        owners = owners or optimizer.by_order({name: tensor.shape for name, tensor in slots.items()}, weights)
        self.optimizer_entries = optimizer.entries(group, owners, slots)

    def loading(self, path: str, group: str | None = None) -> Loading:
        if not path.endswith(self.endings):
            endings = " or ".join(self.endings)
            return Loading(remark=f"Keras 3 loads such a file only under a name that ends in {endings}: rename it")
        if not self._text:
            return Loading((), f"model.load_weights({path!r})", needs_model=True, model="the network of these weights")
        runs_code = any(warning.code == "lambda" for warning in self.warnings)
        remark = "Keras wants safe_mode=False for its Lambda layers, and runs the code in them then" if runs_code else ""
        return Loading(("import keras",), f"model = keras.models.load_model({path!r}{self.load_arguments})", remark=remark)

    def weights_of(self, layer: Layer) -> Mapping[str, str]:
        """The tensors of a layer, by the names of its weights."""
        return {weight: self._names[path] for weight, path in self.weights.find(layer).items()}

    def _layouts(self) -> dict[str, Layout]:
        """The layout of every kernel of the configuration's convolutions, by dataset."""
        layouts: dict[str, Layout] = {}
        for layer in all_layers(self.model) if self.model else ():
            around = layer.parent.around if layer.parent.wrapper else None  # SpectralNormalization has a copy
            for holder in (layer, around or layer) if layer.kind in CONVS else ():
                for weight, path in self.weights.find(holder).items():
                    if weight.endswith("kernel") and (layout := self._layout(layer, self.file.datasets[path].shape)):
                        layouts[path] = layout
        return layouts

    def _layout(self, layer: Layer, shape: tuple[int, ...]) -> Layout | None:
        """The class's layout, or OIHW for the kernels of Keras 1 with the Theano backend. `data_format` does not change it:
        kernels are HWIO for channels_first too. Where the window is a square like the other axes only the backend's name
        shows it."""
        kind = CONVS[layer.kind]
        rank = len(kind.layout.axes)
        if len(shape) != rank:
            return None
        size = kernel_size(layer.config, rank - 2)
        first, last = (size is None or part == size for part in (shape[: rank - 2], shape[2:]))
        plain = kind.layout.endswith("IO") and not kind.depthwise
        return weights_only.OIHW[rank] if plain and last and (not first or self.is_theano) else kind.layout

    def chunks(self, name: str) -> Iterator[bytes]:
        yield from self.file.chunks(self._paths[name])

    # The graph: the configuration's, or that of names and shapes.

    @cached_property
    def graph(self) -> KerasGraph | WeightsOnlyGraph:
        if self.model is None:
            return WeightsOnlyGraph(self, ordered=self.ordered, custom=self.document if self._text else "")
        try:
            return KerasGraph(self, self.weights_of, self.model, self.document, self._text)
        except _CONFIG_ERRORS as error:
            raise self._config_error(error) from error

    def validate(self, path: str) -> None:
        """Keras loads a file with a contradiction and fails, or builds another model."""
        if isinstance(self.graph, KerasGraph) and (stale := self.graph.contradiction):
            raise RuntimeError(f"{self.document}: {stale}")

    def source_fails_validation(self) -> bool:
        return isinstance(self.graph, KerasGraph) and bool(self.graph.contradiction)

    def joined(self, shards: TensorStore, *, ordered: bool) -> Joined | None:
        """Weights without a configuration, whose layers shards cut through; the slots of the optimizer come after all of them."""
        if self.model is not None:
            return None
        return Joined(WeightsOnlyGraph(shards, ordered=ordered), _entries_by_number(shards.tensors))

    # Edits.

    def splices(self, edits: Edits) -> list[Splice]:
        if edits.dropped:
            raise self.location.at(edits.dropped[0]).unsupported(
                "Keras loads an optimizer with all of its state or not at all", hint="--optimizer reset"
            )
        for name in edits.biases:
            raise self.location.at(name).unsupported(
                "has neither a bias nor a following BatchNormalization to take the constant of its preprocessing"
            )
        self._check_factored(edits)
        datasets: dict[str, NewDataset | None] = {}
        datasets |= {self._paths[name]: NewDataset(edit.shape, edit.values()) for name, edit in edits.tensors.items()}
        self.file.check_copied(datasets)
        text, layer = self.graph.edited(edits) if edits and isinstance(self.graph, KerasGraph) else (None, None)
        lists: Texts = {}
        if layer:
            placed = self.weights.place(layer.kind, layer.name, list(layer.weights))
            lists = placed.lists
            datasets |= {p: NewDataset(v.shape, v) for p, v in zip(placed.paths, layer.weights.values(), strict=True)}
        if edits.folded:
            gone = self.weights.without(edits.folded)
            datasets, lists = datasets | dict.fromkeys(gone.paths), gone.lists
        return self.composed(datasets, text, lists)

    @abstractmethod
    def composed(self, datasets: Datasets, text: str | None, lists: Texts) -> list[Splice]:
        """The splices that give datasets new content, add them or leave them out, put `text` as the configuration, and the lists
        of names."""

    def _check_factored(self, edits: Edits) -> None:
        """Raise UnsupportedError for an optimizer that keeps its state for a kernel in parts, as Adafactor does: rows and columns
        that have the kernel's leading axes."""
        kernels = {self.tensors[name].shape[:-1] for name in edits.tensors if len(self.tensors[name].shape) > 3}
        for tensor in (t for entry in self.optimizer_entries for t in entry.tensors.values()):
            if len(tensor.shape) > 2 and tensor.shape in kernels:
                raise self.location.at(tensor.name).unsupported(
                    "is a factored part of the optimizer's state for the kernel, which is not reset",
                    hint="save the model without its optimizer: include_optimizer=False",
                )


def _entries_by_number(tensors: Mapping[str, Tensor], trained: Iterable[str] | None = None) -> tuple[OptimizerEntry, ...]:
    """The optimizer of Keras 3's tree: the numbers of its slots follow the order of the `trained` weights, which without a
    configuration their names give."""
    slots = {name: tensor for name, tensor in tensors.items() if tensor.group}
    if trained is None:
        trained = weights_only.trained(name for name in tensors if name not in slots)
    weights = {name: tensors[name].shape for name in trained}
    owners = optimizer.by_order({name: slots[name].shape for name in keras_weights.natural(slots)}, weights)
    return optimizer.entries("optimizer", owners, slots)
