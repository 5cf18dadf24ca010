"""What a pickled module says about its convolutions: their channels, groups and quantization, and the counts that must follow.

A state dict says none of it, and then every answer is empty. In a module the kernel is `_parameters.weight`, and in_channels and
groups are plain integers of the same BUILD state; wrappers keep more (smp `_in_channels`, timm `in_chans`, transformers
`config.num_channels`). To edit these and the tensor is enough: torch recomputes nothing from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from chkpt_channels.containers.pickle.reader import Kind, PickleNode, plain
from chkpt_channels.core.tensors import Declaration, FirstConv, Notice, Quantization
from chkpt_channels.formats.graph import ModelGraph
from chkpt_channels.formats.torch.entries import attributes, is_module, pairs_of
from chkpt_channels.formats.torch.object_tree import CHANNEL_NAMES, Link, TorchObject


class TorchGraph(ModelGraph):
    """The module tree of `main`, the object that was saved; `parts` are all pickles that hold tensors, `main` among them."""

    def __init__(self, main: TorchObject, parts: Sequence[TorchObject]) -> None:
        self._main, self._parts = main, parts

    def with_groups(self, conv: FirstConv) -> FirstConv:
        """A convolution module says how many channels and groups its kernel is for."""
        link = self._main.links.get(conv.tensor.name)
        numbers = _conv_numbers(link.parent) if link and link.parent else {}
        if not numbers:
            return conv
        channels, groups = plain(numbers["in_channels"]), plain(numbers["groups"])
        if groups == 1 or channels != conv.in_channels * groups:
            return conv
        return conv._replace(in_channels=channels, groups=groups, why=f"{conv.why}; in {groups} groups")

    def declarations(self, first_convs: Sequence[FirstConv]) -> Sequence[Declaration]:
        """The integers in the modules around each kernel that count its channels. The object remembers their nodes for edits."""
        declarations: dict[str, Declaration] = {}
        for conv in first_convs:
            for link in self._around(conv):
                where, _ = link.path()
                counts = [*_channel_counts(link, where), *self._own_dict(link)]
                if conv.groups > 1 and (module := _conv_numbers(link)):
                    counts.append((f"{where}.groups".removeprefix("."), module["groups"]))
                for name, node in counts:
                    if plain(node) == conv.in_channels:
                        declarations[name] = Declaration(name, conv.in_channels)
                        self._main.numbers[name] = node
        return list(declarations.values())

    def _around(self, conv: FirstConv) -> Iterator[Link]:
        """The modules around a kernel, its own first."""
        link = self._main.links.get(conv.tensor.name)
        while link and (link := link.parent):
            yield link

    def contradictions(self, first_convs: Sequence[FirstConv]) -> Sequence[tuple[Declaration, int]]:
        """The in_channels of the modules that own these kernels, and those that a YOLO was built with, where the kernels take
        others."""
        contradictions = []
        for conv in first_convs:
            owners = [(link, numbers["in_channels"]) for link in self._around(conv) if (numbers := _conv_numbers(link))]
            stated = [(f"{link.path()[0]}.in_channels".removeprefix("."), node) for link, node in owners[:1]]
            stated += [count for link in self._around(conv) for count in self._own_dict(link)]
            found = [Declaration(where, plain(node)) for where, node in stated if isinstance(plain(node), int)]
            contradictions += [(d, conv.in_channels) for d in found if d.channels != conv.in_channels]
        return contradictions

    def _own_dict(self, module: Link) -> list[tuple[str, PickleNode]]:
        """The counts in the dict that a module was built from and keeps. Source: ultralytics/nn/tasks.py, BaseModel.yaml."""
        return [
            (where, count.node)
            for where, count in self._main.counts.items()
            if (home := count.parent) and home.segment == "yaml" and home.parent and home.parent.node.target is module.node.target
        ]

    def is_in_module(self, name: str) -> bool:
        """A module has attributes, and is no dict; a state dict is one, and may have attributes too."""
        link = self._main.links.get(name)
        owner = link.parent.node.target if link and link.parent else None
        return owner is not None and owner.state is not None and owner.items is None

    def is_beside_state_dict(self, name: str) -> bool:
        link = self._main.links.get(name)
        module = dict(attributes(link.parent.node.target)) if link and link.parent else {}
        if link is None or not {"_parameters", "_buffers"} <= module.keys():
            return False
        registered = {key.value for kept in ("_parameters", "_buffers") for key, _ in pairs_of(module[kept].target)}
        return link.segment not in registered or link.segment in _texts_of_set(module.get("_non_persistent_buffers_set"))

    def hyper_parameters(self, channels: int) -> Sequence[Declaration]:
        """The integers outside of modules that are named like a number of input channels, and equal it."""
        declarations = []
        for where, link in self._main.counts.items():
            in_module = link.parent is not None and is_module(link.parent.node.target)
            if plain(link.node) == channels and not in_module:
                self._main.numbers[where] = link.node
                declarations.append(Declaration(where, channels))
        return declarations

    def notices(self, first_convs: Sequence[FirstConv]) -> Sequence[Notice]:
        """What the configuration says that mmengine keeps as a text, meta.cfg, and builds the network from."""
        meta = self._main.tree.root.target.lookup("meta")
        text = meta.target.lookup("cfg") if meta else None
        if text is None or text.target.kind is not Kind.TEXT:
            return ()
        counts = "|".join(sorted({str(conv.in_channels) for conv in first_convs})) or "0"
        stated = re.search(rf"\b(in_channels|in_chans|input_channels)\s*=\s*({counts})\b", text.target.value)
        message = "meta/cfg is the text that the network is built from: {}={} is copied as it stands there"
        return [Notice("config_text", message.format(*stated.groups()))] if stated else ()

    def quantization(self, conv: FirstConv) -> Quantization | None:
        name = conv.tensor.name
        return next((quantization_of(part, name) for part in self._parts if name in part.groups), None)


def quantization_of(torch_object: TorchObject, name: str) -> Quantization | None:
    """What a quantized tensor's numbers mean. Source: torch/_tensor.py, Tensor._reduce_ex_internal, of torch 2.13."""
    view = torch_object.views[name]
    parts = view.quantizer.children if view.quantizer is not None else []
    if view.dtype.name not in ("QI8", "QU8") or not parts:
        return None
    if parts[0].target.is_global("torch", "per_tensor_affine") and f"{name}/scale" in torch_object.scales:
        zero = plain(parts[2])
        return Quantization(f"{name}/scale", zero) if isinstance(zero, int) else None
    if parts[0].target.is_global("torch", "per_channel_affine") and len(parts) == 4:
        axis = plain(parts[3])
        scales, zeros = (torch_object.views.get(f"{name}/{part}") for part in ("scales", "zero_points"))
        if not (isinstance(axis, int) and 0 <= axis < len(view.shape) and scales and zeros):
            return None
        if scales.shape == zeros.shape == (view.shape[axis],) and scales.dtype.floating and not zeros.dtype.floating:
            return Quantization(f"{name}/scales", f"{name}/zero_points", axis)
    return None


def _texts_of_set(node: PickleNode | None) -> set[str]:
    """The texts in a set, which pickles of protocol 2 encode as a call with a list."""
    target = node.target if node is not None else None
    if target is not None and target.kind is Kind.CALL:
        target = next((child.target for child in target.value[1].target.children), None)
    texts = [child.target for child in target.children] if target is not None else []
    return {text.value for text in texts if text.kind is Kind.TEXT}


def _conv_numbers(link: Link) -> dict[str, PickleNode]:
    """in_channels and groups of a convolution module, by name; empty for other objects."""
    numbers = {name: node for name, node in attributes(link.node.target) if name in ("in_channels", "groups")}
    return numbers if len(numbers) == 2 and all(isinstance(plain(node), int) for node in numbers.values()) else {}


def _channel_counts(link: Link, where: str) -> Iterable[tuple[str, PickleNode]]:
    for name, value in attributes(link.node.target):
        if name in CHANNEL_NAMES and value.target.kind is Kind.INT:
            yield ".".join(filter(None, [where, name])), value
        if name == "config":
            for inner, count in attributes(value.target):
                if inner in CHANNEL_NAMES and count.target.kind is Kind.INT:
                    yield ".".join(filter(None, [where, "config", inner])), count
