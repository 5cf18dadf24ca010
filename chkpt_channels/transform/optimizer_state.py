"""Optimizer state of what changes its shape: moments of that shape and a step, reset to zeros of the new shape or dropped.

With zeros training resumes as if the kernel were new. `step` is reset too: with zero moments and the old step AdamW's bias
correction is missing, and its updates of the kernel are 2.5 to 4.6 times too large.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

from chkpt_channels.core.elements import SmallTensor
from chkpt_channels.core.errors import UnsupportedError
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import OptimizerEntry, Tensor, TensorEdit
from chkpt_channels.formats.base import TensorStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLAT = pattern(r"(?:^|.*?[./])state[./](?P<parameter>.+)[./](?P<slot>[^./]+)$")
"""One slot of one parameter in a single dict of all, as torch.distributed.checkpoint flattens it:
optimizer.state.conv1.weight.exp_avg."""
_OF_OPTIMIZER = pattern(r"(^|[./])(opt|optim|(opt|optim|optimizer)_?states?(_dict)?|optimizers?(_\w+)?)[./]")
"""A step of a path that leads into an optimizer: not its last one."""
_BUFFER = pattern(r"running_(mean|var)$|num_batches_tracked$")
"""Of BatchNorm: no optimizer steps them."""
_NOT_FROM_ZERO = pattern(r"slow|master|param|^(p0|step_size|eta)$")
"""Slots that begin with the weights themselves (Lookahead, Prodigy, Apex) or with the learning rate (Rprop, ASGD)."""
_FROM_ONE = frozenset({"mu", "mu_product"})
"""Scalars that begin with one: ASGD's and NAdam's."""
_DROP = "--optimizer drop leaves the entry out"
_SAVE_WITHOUT = "save the checkpoint without its optimizer"


class OptimizerEdits:
    """The edits for the state of the tensors in `changed` (name → new shape): `tensors` and `numbers` to reset, or entries
    `dropped`. `how` is "reset" or "drop".

    Raises UnsupportedError, which names the state, where an entry cannot be distinguished from others of its shape, holds
    state of another shape, or cannot be left out.
    """

    def __init__(self, checkpoint: TensorStore, changed: Mapping[str, tuple[int, ...]], how: str) -> None:
        self.tensors: dict[str, TensorEdit] = {}
        self.numbers: dict[str, int] = {}
        self.dropped: list[str] = []
        self._checkpoint, self._changed, self._how = checkpoint, changed, how
        self._old = {name: checkpoint.tensors[name] for name in changed}
        if not changed:
            return
        flat = _flat_entries(checkpoint.model_tensors())
        in_entries = {t.name for entry in flat for t in entry.tensors.values()}
        self._model = [t for t in checkpoint.model_tensors() if t.name not in in_entries]
        self._shapes = {t.shape for t in self._model}
        self._flat = {entry.where for entry in flat}
        optimizers: defaultdict[str, list[OptimizerEntry]] = defaultdict(list)
        for entry in (*checkpoint.optimizer_entries, *flat):
            if entry.whole:
                what = "is a whole optimizer, which holds the old parameters themselves"
                self._refuse(entry.where, what, "save optimizer.state_dict() in its place")
            optimizers[_optimizer_of(entry)].append(entry)
        for entries in optimizers.values():
            if all(entry.parameter.isdecimal() for entry in entries):  # they are kept in the order of their first steps
                entries.sort(key=lambda entry: int(entry.parameter))
            for entry, owner in self._owners(entries):
                self._drop(entry) if how == "drop" else self._reset(entry, self._old[owner])
        self._refuse_strays()

    def _refuse(self, where: str, what: str, hint: str) -> NoReturn:
        raise UnsupportedError(what, file=self._checkpoint.location.file, where=where, hint=hint)

    def _refuse_strays(self) -> None:
        """Raise for a tensor of an optimizer that is in no entry, and is or may hold an old kernel: the master weights of mixed
        precision, in its shape or flat."""
        strays = [t for t in self._model if _OF_OPTIMIZER.search(t.name)]
        names = {t.name for t in strays}
        shapes = {t.shape for t in self._model if t.name not in names} if strays else set()
        sizes = [prod(t.shape) for t in self._old.values()]
        for tensor in strays:
            if tensor.name in self._changed:
                continue
            is_flat = len(tensor.shape) == 1 and tensor.shape not in shapes and tensor.shape[0] >= min(sizes)
            if is_flat or any(tensor.shape == t.shape for t in self._old.values()):
                what = f"belongs to an optimizer and may hold the old kernel: its shape is {list(tensor.shape)}"
                self._refuse(tensor.name, what, _SAVE_WITHOUT)

    def _owners(self, entries: Sequence[OptimizerEntry]) -> list[tuple[OptimizerEntry, str]]:
        """Which entry belongs to which tensor: by name, or by shape."""
        names = {entry.parameter for entry in entries}
        meant = {name: _parameters_of(t, names) for name, t in self._old.items()}
        named = [(e, name) for name, parameters in meant.items() for e in entries if e.parameter in parameters]
        if named:
            return named
        shapes = dict.fromkeys(t.shape for t in self._old.values())
        return [owner for shape in shapes for owner in self._owners_of_shape(entries, shape)]

    def _owners_of_shape(self, entries: Sequence[OptimizerEntry], shape: tuple[int, ...]) -> list[tuple[OptimizerEntry, str]]:
        """The entries of the changed tensors of one shape; among several by order."""
        changed = [name for name, t in self._old.items() if t.shape == shape]
        owned = [e for e in entries if _is_of(e, shape)]
        owned = owned or [e for e in entries if _is_factored(e, shape) and not any(_is_of(e, s) for s in self._shapes)]
        if not owned:  # frozen tensors have no entries; but one of no tensor's shape may be that of all, as LBFGS' is
            return [(e, changed[0]) for e in entries if self._is_unexplained(e)]
        everywhere = [t.name for t in self._model if t.shape == shape and not _BUFFER.search(t.name)]
        if set(everywhere) <= set(changed) and len({self._changed[name] for name in changed}) == 1:
            return [(e, changed[0]) for e in owned]  # all tensors of that shape change alike: whose an entry is does not matter
        group = self._old[changed[0]].group
        alike = [t.name for t in self._model if t.group == group and t.name in everywhere]
        if len(owned) == len(alike) and self._are_in_order(entries, group):
            return [(e, name) for e, name in zip(owned, alike, strict=True) if name in changed]
        if self._how == "drop":
            return [(e, changed[0]) for e in owned]
        what = f"{len(owned)} entries have the shape {list(shape)} for {len(alike)} kernels: their order is ambiguous"
        self._refuse(owned[0].where, what, f"--optimizer drop leaves out {'all of them' if len(owned) > 1 else 'it'}")

    def _are_in_order(self, entries: Sequence[OptimizerEntry], group: str) -> bool:
        """Whether the entries follow the order of the model, as far as the shapes of matrices and kernels show: scripts that give
        each layer its own rate may begin with the last one."""
        shapes = [t.shape for t in self._model if t.group == group and len(t.shape) > 1]
        moments = [_shapes(entry).intersection(shapes) for entry in entries]
        following = iter(shapes)
        return all(any(shape in each for shape in following) for each in moments if each)

    def _is_unexplained(self, entry: OptimizerEntry) -> bool:
        """Whether it holds more than scalars, and of no tensor's shape. Entries without an owner are left to their format."""
        return bool(entry.parameter and _shapes(entry)) and not any(
            _is_of(entry, s) or _is_factored(entry, s) for s in self._shapes
        )

    def _drop(self, entry: OptimizerEntry) -> None:
        if entry.where in self._flat:
            what = "torch loads an optimizer that is flattened into one dict with all of its state or not at all"
            self._refuse(entry.where, what, "--optimizer reset")
        if entry.where not in self.dropped:
            self.dropped.append(entry.where)

    def _reset(self, entry: OptimizerEntry, owner: Tensor) -> None:
        hint = _SAVE_WITHOUT if entry.where in self._flat else _DROP
        for slot, tensor in entry.tensors.items():
            if _NOT_FROM_ZERO.search(slot):
                self._refuse(tensor.name, "does not begin with zeros, and cannot be reset", hint)
            if tensor.shape == owner.shape and tensor.dtype.floating:
                shape = self._changed[owner.name]
            elif slot == "step" or tensor.shape == ():  # torch's Adam keeps `step` as a tensor since 1.12
                shape = tensor.shape
            else:
                what = f"holds {tensor.dtype.name} of shape {list(tensor.shape)}, which cannot be reset"
                self._refuse(tensor.name, what, hint)
            first = 1 if slot in _FROM_ONE and not shape else 0
            self.tensors[tensor.name] = TensorEdit(shape, partial(_filled, shape, tensor, first), "optimizer state")
        self.numbers |= {f"{entry.where}/{slot}": 0 for slot in entry.numbers if slot == "step"}


def _flat_entries(tensors: Sequence[Tensor]) -> list[OptimizerEntry]:
    """The entries of optimizers whose slots stand in one dict, by name; their parameters are tensors of the model."""
    matches = [(t, m) for t in tensors if (m := _FLAT.match(t.name))]
    keys = {key for t in tensors for key in _endings(t.key)} if matches else set()
    slots: defaultdict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    for tensor, match in matches:
        parameter = match["parameter"]
        if any(ending in keys for ending in _endings(parameter)):
            slots[tensor.name[: match.end("parameter")], parameter][match["slot"]] = tensor
    return [OptimizerEntry(where, parameter, each, {}) for (where, parameter), each in slots.items()]


def _optimizer_of(entry: OptimizerEntry) -> str:
    """The part of its place that all entries of one optimizer begin with."""
    is_named = entry.parameter and entry.where.endswith(entry.parameter)
    return entry.where.removesuffix(entry.parameter)[:-1] if is_named else entry.where.rpartition("/")[0]


def _endings(name: str) -> Iterator[str]:
    """A dotted name, and it without its first words, down to two: `conv1.weight` of `module.conv1.weight`."""
    words = name.split(".")
    yield from (".".join(words[i:]) for i in range(max(1, len(words) - 1)))


def _parameters_of(tensor: Tensor, names: set[str]) -> set[str]:
    """Those of an optimizer's parameter names that mean this tensor: its name or key, or else one that ends like it (a wrapper
    puts `module.` before one of the two)."""
    if exact := {tensor.name} & names or {tensor.key} & names:
        return exact
    return {n for n in names if n and not n.isdecimal() and (tensor.key.endswith(f".{n}") or n.endswith(f".{tensor.key}"))}


def _shapes(entry: OptimizerEntry) -> set[tuple[int, ...]]:
    """The shapes of its tensors of more than one element."""
    return {t.shape for t in entry.tensors.values() if prod(t.shape) > 1}


def _is_of(entry: OptimizerEntry, shape: tuple[int, ...]) -> bool:
    """Whether it holds moments of that shape. A vector's may be the rows or columns of a matrix, beside the others."""
    shapes = _shapes(entry) if prod(shape) > 1 else {t.shape for t in entry.tensors.values()} - {()}
    return shape in shapes and (len(shape) > 1 or len(shapes) == 1)


def _is_factored(entry: OptimizerEntry, shape: tuple[int, ...]) -> bool:
    """Whether it holds rows and columns of that shape, as Adafactor does: [O, I, H, 1] and [O, I, 1, W] in torch, [O, I, H] and
    [O, I, W] in transformers."""
    rows, columns = shape[:-1], (*shape[:-2], *shape[-1:])
    shapes = {t.shape for t in entry.tensors.values()}
    return len(shape) > 1 and ({rows, columns} <= shapes or {(*rows, 1), (*shape[:-2], 1, shape[-1])} <= shapes)


def _filled(shape: tuple[int, ...], tensor: Tensor, value: int) -> NDArray[Any] | SmallTensor:
    if not value:
        return SmallTensor(bytes(tensor._replace(shape=shape).size), tensor.dtype, shape)
    import numpy as np

    from chkpt_channels.core.dtypes import numpy_dtype

    return np.full(shape, value, numpy_dtype(tensor.dtype))
