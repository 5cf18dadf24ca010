"""The tensor that can take a constant added to a first conv's output: its bias, or the BatchNorm that follows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.formats.base import TensorStore

_NORM = pattern(r"batch_?norm(alization)?|normalization|norm|bn")
_MEAN = ".running_mean"
_WRAPPED = pattern(r"(.+)\.(bn|norm|batch_?norm|conv|conv2d)$")
"""A module that holds one layer and is named after its role, as `bn1.bn` and `conv1.conv` are."""


def find(store: TensorStore, conv: FirstConv) -> tuple[str, int] | None:
    """(name, sign) of the tensor that takes the constant: from the graph, or from names and shapes where the graph does not know
    its outputs, in PyTorch's words where it shows these. None where there is none, or where it is ambiguous."""
    if store.graph.knows_outputs:
        return store.graph.bias_target(conv)
    view = store.graph.search_view()
    if shown := next((tensor for tensor, name in view.items() if name == conv.tensor.name), None):
        named = {tensor.name: tensor for tensor in view}
        target = by_names(named, conv._replace(tensor=shown, layout=shown.layout), ordered=store.ordered)
        return (view[named[target[0]]], target[1]) if target else None
    return by_names(store.tensors, conv, ordered=store.ordered)


def by_names(tensors: Mapping[str, Tensor], conv: FirstConv, *, ordered: bool) -> tuple[str, int] | None:
    """(name, sign) of the conv's bias (+1), or of the running mean of the BatchNorm that directly follows (-1); None where there
    is neither, or where it is ambiguous. `tensors` are in module order where `ordered`."""
    key, group = conv.tensor.key, [t for t in tensors.values() if t.group == conv.tensor.group]
    filters = conv.tensor.shape[conv.layout.axes.index("O")] if conv.layout else 0
    module = key.partition(".parametrizations.")[0] if ".parametrizations." in key else key.rpartition(".")[0]
    vectors = {t.key: t for t in group if module and t.dtype.floating and t.shape == (filters,)}
    flat = f"{key.removesuffix('weight')}bias"  # of a copy whose names have lost their dots
    if bias := vectors.get(f"{module}.bias") or vectors.get(flat):
        return bias.name, 1
    norms = [key.removesuffix(_MEAN) for key in vectors if key.endswith(_MEAN)]
    if inside := [norm for norm in norms if norm.rpartition(".")[0] == module and _NORM.search(norm.rpartition(".")[2])]:
        norms = inside  # detectron2's convolution holds the norm of its output
    elif ordered:
        # position alone is not enough: in a pre-activation network the next BatchNorm belongs to the next block
        following = _next_module(group, module)
        norms = [norm for norm in norms if norm == following and _follows(*_unwrapped(group, norm, module))]
    else:
        norms = [norm for norm in norms if names_say(group, module, norm)]
    return (vectors[norms[0] + _MEAN].name, -1) if len(norms) == 1 else None


def _next_module(group: Sequence[Tensor], module: str) -> str:
    """The module whose tensors directly follow those of `module`."""
    start = f"{group[0].group}/{module}." if group[0].group else f"{module}."
    indices = [i for i, tensor in enumerate(group) if tensor.name.startswith(start)]
    return group[indices[-1] + 1].key.rpartition(".")[0] if indices and indices[-1] + 1 < len(group) else ""


def names_say(group: Sequence[Tensor], conv: str, norm: str) -> bool:
    """Whether names alone say that a norm follows this conv, and is not the last of the network: both have the same number; the
    conv has none and the norm the first (timm: `conv_stem`, `bn1`); or their module holds nothing else."""
    norm, conv = _unwrapped(group, norm, conv)
    if not _follows(norm, conv):
        return False
    parent, _, own = norm.rpartition(".")
    numbers, inside = _numbers(own), f"{parent}." if parent else ""
    if numbers and (own.isdecimal() or numbers in (_numbers(conv[len(inside) :]), ["0"], ["1"])):
        return True
    return {t.key[len(inside) :].partition(".")[0] for t in group if t.key.startswith(inside)} == {own, conv[len(inside) :]}


def _follows(norm: str, conv: str) -> bool:
    """Whether a norm may follow a conv by its name: `bn1` after `conv1`, `b1` after `c1`, `1` after `0`, `bn` after `conv`, in
    one module. Between `0` and `2` of a Sequential is a module without tensors, which may be nonlinear."""
    (parent, _, norm), (beside, _, conv) = norm.rpartition("."), conv.rpartition(".")
    if parent != beside:
        return False
    if norm.isdecimal() or conv.isdecimal():
        return norm.isdecimal() and conv.isdecimal() and int(norm) == int(conv) + 1
    if _numbers(norm) == _numbers(conv) != []:  # only a BatchNorm has a running mean
        return True
    return bool(_NORM.search(norm)) and not (_numbers(norm) and _numbers(conv))


def _unwrapped(group: Sequence[Tensor], norm: str, conv: str) -> tuple[str, str]:
    """The names of both, or of the modules that hold one of them alone, whichever stand side by side: `bn1` for `bn1.bn`."""
    outer = [m[1] if (m := _WRAPPED.match(name)) and _holds_alone(group, m[1], name) else name for name in (norm, conv)]
    pairs = ((norm, conv), (outer[0], conv), (norm, outer[1]), (outer[0], outer[1]))
    return next(((a, b) for a, b in pairs if a.rpartition(".")[0] == b.rpartition(".")[0]), (norm, conv))


def _holds_alone(group: Sequence[Tensor], module: str, layer: str) -> bool:
    inside = [t.key for t in group if t.key.startswith(f"{module}.")]
    return not module.rpartition(".")[2].isdecimal() and all(key.startswith(f"{layer}.") for key in inside)


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)
