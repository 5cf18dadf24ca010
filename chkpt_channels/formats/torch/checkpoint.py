"""What the two containers of PyTorch share: the named tensors of a pickled object."""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

from chkpt_channels.core.elements import strided
from chkpt_channels.core.tensors import Edits, OptimizerEntry, Tensor
from chkpt_channels.formats.base import Checkpoint, Loading
from chkpt_channels.formats.torch import loading
from chkpt_channels.formats.torch.entries import is_module
from chkpt_channels.formats.torch.graph import TorchGraph
from chkpt_channels.formats.torch.object_tree import TorchObject
from chkpt_channels.formats.torch.rebuild import Storage, without_values
from chkpt_channels.formats.torch.signs import with_signs

MAIN = "data"
"""The name of the part that is the saved object; TorchScript has another, "constants", where frozen models keep all weights."""


class TorchCheckpoint(Checkpoint):
    """A pickled object over storages. A subclass opens the container, then calls `index`."""

    ordered = True
    takes_out = True
    objects: Mapping[str, TorchObject]
    """The pickles, by the name of their part; `MAIN` is there."""
    scripted = False
    """Whether it is a TorchScript archive, which holds code too."""

    def index(self, objects: Mapping[str, TorchObject]) -> None:
        """Name the tensors of these pickles."""
        self.objects = objects
        for torch_object in objects.values():
            before = len(self.tensors)
            self.opaque += tuple(tensor._replace(follows=before + tensor.follows) for tensor in torch_object.opaque)
            self.tensors |= torch_object.tensors
        self.optimizer_entries = _optimizer_entries(self.main, self.tensors)
        self.globals = loading.foreign((g for o in objects.values() for g in o.tree.globals), scripted=self.scripted)

    @property
    def main(self) -> TorchObject:
        """The object that was saved."""
        return self.objects[MAIN]

    @cached_property
    def graph(self) -> TorchGraph:
        return TorchGraph(self.main, [*self.objects.values()])

    @abstractmethod
    def read_storage(self, part: str, storage: Storage, start: int, stop: int) -> Iterable[bytes]:
        """The bytes [start, stop) of a storage of one part."""

    def _home(self, name: str) -> tuple[str, TorchObject]:
        """The part that holds a tensor."""
        return next((part, o) for part, o in self.objects.items() if name in o.groups)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The tensor's bytes in C order; streamed where its storage has that order (channels_last has not)."""
        part, torch_object = self._home(name)
        if name in torch_object.scales:
            yield struct.pack("<d", torch_object.scales[name].target.value)
            return
        view = torch_object.views[name]
        if view.storage.absent:
            raise without_values(self.location.at(name))
        stored = self.read_storage(part, view.storage, *view.span)
        if view.is_contiguous and not view.signs:
            yield from stored
        else:
            yield strided(with_signs(b"".join(stored), view.signs), view.itemsize, view.shape, view.stride)

    def check_kept(self, edits: Edits) -> None:
        """Raise UnsupportedError for a tensor that is taken out: torch computes offsets from the first storage, which is the
        adapter's as a rule; and a module that a pickle holds is called by code, and would have to be another class."""
        for tensor in (self.tensors[name] for name in edits.removed[:1]):
            alone = f" --state-dict {tensor.group or repr('')}" if self.others(tensor.group) else ""
            what = "is taken out by --fold-adapter, and a pickle's storages and modules stay"
            raise self.location.at(tensor.name).unsupported(what, hint=f"-o NAME.safetensors{alone}")

    def memory(self, name: str) -> Hashable:
        part, torch_object = self._home(name)
        view = torch_object.views.get(name)
        return (part, view.place) if view is not None else name

    def others(self, group: str) -> list[str]:
        return ["code"] if self.scripted else _others(self.main, group)

    def shared(self, names: Sequence[str]) -> tuple[str, str] | None:
        spans: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for name in names:
            view = self.main.views.get(name)
            if view is not None and view.span[0] < view.span[1]:
                spans[view.storage.key].append((*view.span, name))
        for used in spans.values():
            used.sort()
            for (_, stop, name), (start, _, other) in pairwise(used):
                if start < stop:
                    return name, other
        return None

    def loading(self, path: str, group: str | None = None) -> Loading:
        return loading.of_script(self.main, path) if self.scripted else loading.of_object(self.main, path, group, self.globals)


def _optimizer_entries(torch_object: TorchObject, tensors: Mapping[str, Tensor]) -> tuple[OptimizerEntry, ...]:
    """Every optimizer's entries, with their tensors and plain integers by slot; the tensors of a list have a slot each."""
    slots: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    wheres = {node.where for node in torch_object.optimizers}
    for name, tensor in tensors.items() if wheres else ():
        if where := next((name[:at] for at in loading.ends(name) if name[:at] in wheres), ""):
            slots[where][name[len(where) + 1 :]] = tensor
    return tuple(OptimizerEntry(n.where, n.parameter, slots[n.where], n.numbers, n.whole) for n in torch_object.optimizers)


def _others(torch_object: TorchObject, group: str) -> list[str]:
    """The other keys of the object: in the dicts on the way to one state dict, and in it."""
    node, prefix = torch_object.tree.root.target, ""
    others: list[str] = []
    for step in [*group.split("/"), ""] if group else [""]:
        below = None
        if is_module(node):
            return [*others, f"a pickled module{prefix and f' in {prefix[:-1]}'}"]
        for key, value in node.entries():
            name = f"{prefix}{key.value}"
            if step and key.value == step:
                below = value.target
            elif name not in torch_object.views or step:
                others.append(name)
        if step:
            if below is None:
                return [*others, group]
            node, prefix = below, f"{prefix}{step}/"
    return others
