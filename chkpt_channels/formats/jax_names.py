"""What names and shapes say in JAX's libraries, seen as PyTorch's: `Conv_0/kernel` HWIO is `Conv_0.weight` OIHW.

A `kernel` of rank 2 is [I, O]; one of rank 3 to 5 is a convolution's, with the filters last. Two kinds look like one and are not:
those of attention, [E, heads, dim] for `query`, `key` and `value` and [heads, dim, E] for `out` (a ViT-Ti has three heads); and
the layers of `nn.scan`, stacked along a first axis. Their biases and their names tell.

The arrays of an optimizer are named by the parameters that they are kept for:

    opt_state/0/mu/<parameter>                      optax: a tree of the parameters for each slot; counters stand alone
    optimizer/state/param_states/<parameter>/mu     flax.optim, before 0.6, whose optimizer/target is the model
    opt/…                                           big_vision

Source: flax/linen/linear.py, attention.py and transforms.py, flax/training/train_state.py of flax 0.12; optax/_src/transform.py;
big_vision, vision_transformer and BiT name alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import OpaqueTensor, OptimizerEntry, Tensor
from chkpt_channels.formats.base import Checkpoint, TensorStore
from chkpt_channels.formats.graph import ModelGraph

HWIO = {3: Layout("WIO"), 4: Layout("HWIO"), 5: Layout("DHWIO")}
_OIHW = {2: Layout("OI"), 3: Layout("OIW"), 4: Layout("OIHW"), 5: Layout("OIDHW")}
_WORDS = {
    "scale": "weight",
    "gamma": "weight",
    "embedding": "weight",
    "beta": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COLLECTIONS = ("params", "batch_stats", "target")
"""What holds the variables of a module, whose names are the same in each."""
_ROOT = pattern(r"(?:.*/)?(?:opt|optimizer|opt_states?|optimizer_states?)/(?!target/)")
"""The path into an optimizer."""
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def layout_of(name: str, shapes: Shapes) -> Layout | None:
    """The layout of a tensor by its name and the shapes of those beside it; None where it is no convolution's kernel."""
    seen = _kernel(name, shapes)
    return HWIO.get(len(shapes[name])) if seen and len(seen) > 2 else None


class NamedArrays(ModelGraph):
    """The arrays of a file as a state dict of PyTorch, where some are kernels by JAX's names."""

    shows_all = True

    def __init__(self, store: TensorStore) -> None:
        self._store = store

    def search_view(self) -> Mapping[Tensor, str]:
        """Every array of the models, an opaque one by its shape."""
        arrays: list[Tensor | OpaqueTensor] = [*self._store.model_tensors(), *self._store.opaque]
        shapes = {array.name: array.shape for array in arrays if array.shape is not None}
        if not any(layout_of(name, shapes) for name in shapes):
            return {}
        views: dict[str, Tensor] = {}
        named: dict[Tensor, str] = {}
        for name, shape in shapes.items():
            tensor = self._store.tensors.get(name) or Tensor(name, BY_NAME["F32"], shape)
            view = _view(tensor, shapes)
            view = view._replace(name=name.replace("/", ".")) if view.name in views else view
            views[view.name] = view
            named[view] = name
        return named


class NamedCheckpoint(Checkpoint):
    """An open file whose graph is that."""

    @property
    def graph(self) -> ModelGraph:
        return NamedArrays(self)


def _view(tensor: Tensor, shapes: Shapes) -> Tensor:
    words = tensor.name.split("/")
    while len(words) > 1 and words[0] in _COLLECTIONS:
        words = words[1:]
    shape, layout, last = tensor.shape, None, _WORDS.get(words[-1], words[-1])
    if (seen := _kernel(tensor.name, shapes)) is not None:
        shape, layout, last = seen, _OIHW.get(len(seen)), "weight"
    return tensor._replace(name=".".join([*words[:-1], last]), shape=shape, group="", layout=layout)


def _kernel(name: str, shapes: Shapes) -> Shape | None:
    """The shape of a kernel as PyTorch has it, of more than two axes where it is a convolution's; None for another tensor."""
    module, _, last = name.rpartition("/")
    if last != "kernel":
        return None
    shape = shapes[name]
    bias = shapes.get(f"{module}/bias")
    if bias and len(bias) > 1 and bias[:1] == shape[:1] and bias[1:] == shape[-len(bias) + 1 :]:
        shape, bias = shape[1:], bias[1:]  # nn.scan's layers are alike: one stands for all
    parent, _, role = module.rpartition("/")
    query = shapes.get(f"{parent}/query/kernel", ())
    if bias and len(bias) > 1 and bias == shape[-len(bias) :]:
        return prod(bias), prod(shape[: -len(bias)])
    if len(query) > 2 and len(shape) > 2 and role in ("query", "key", "value"):
        return prod(shape[-2:]), shape[-3]
    if len(query) > 2 and len(shape) > 2 and role == "out":
        return shape[-1], prod(shape[-3:-1])
    if not 2 <= len(shape) <= 5 or (bias and bias != shape[-1:]):
        return (shape[-1], prod(shape[:-1])) if shape else shape
    *window, channels, filters = shape
    return filters, channels, *window


def optimizer_entries(tensors: Mapping[str, Tensor]) -> tuple[OptimizerEntry, ...]:
    """What the optimizers keep for each tensor, and what they keep for none: counters, rates, and placeholders of one number."""
    kept = {name: match.end() for name in tensors if (match := _ROOT.match(name))}
    parameters: dict[str, str] = {}
    for name in sorted(tensors.keys() - kept.keys(), key=lambda name: not name.startswith("params/")):
        words = name.split("/")
        for i in range(len(words)):
            if not i or words[i - 1] in ("params", "target") or (i == 1 and "params" not in words):
                parameters.setdefault("/".join(words[i:]), name)
    slots: defaultdict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    alone = []
    for name, begin in kept.items():
        if owner := _owner(name[begin:].split("/"), parameters):
            path, slot, parameter = owner
            if len(tensors[name].shape) or tensors[name].shape == tensors[parameter].shape:
                slots[name[:begin] + path, parameter][slot] = tensors[name]
                continue
        alone.append(OptimizerEntry(name.replace("/", "."), "", {name: tensors[name]}, {}))
    owned = (OptimizerEntry(f"{where}/{p}", p, each, {}) for (where, p), each in slots.items())
    return (*owned, *alone)


def _owner(words: list[str], parameters: Mapping[str, str]) -> tuple[str, str, str] | None:
    """(the path before the slot, the slot, the parameter's name) of one array: the parameter stands last, or the slot does."""
    for last in (len(words), len(words) - 1):
        for first in range(1 if last == len(words) else 0, last):
            if parameter := parameters.get("/".join(words[first:last])):
                slot, path = (words[first - 1], words[: first - 1]) if last == len(words) else (words[-1], words[:first])
                return "/".join(path), slot, parameter
    return None
