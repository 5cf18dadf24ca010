"""What stands behind a first conv in a file without a graph, and can take a constant added to its output."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .model import FirstConv, Tensor

_CONV = re.compile(r"convolution|conv|proj(ection)?")
_NORM = re.compile(r"batch_?norm(alization)?|normalization|norm|bn")


def shift_taker(tensors: Mapping[str, Tensor], conv: FirstConv, *, ordered: bool) -> tuple[str, int] | None:
    """(name, sign) of the conv's bias (+1), or of the running mean of the BatchNorm right behind it (-1); None where there is
    neither, or it is not certain which. `tensors` are in module order where `ordered`."""
    name = conv.tensor.name
    filters = conv.tensor.shape[conv.layout.axes.index("O")] if conv.layout else 0
    module, _, end = name.rpartition(".parametrizations.") if ".parametrizations." in name else name.rpartition(".")
    bias = tensors.get(f"{module}.bias")
    if bias is not None and bias.dtype.floating and bias.shape == (filters,) and end:
        return bias.name, 1
    parent = module.rpartition(".")[0]
    inside = f"{parent}." if parent else conv.tensor.group + "/" * bool(conv.tensor.group)
    means = [
        t
        for t in tensors.values()
        if t.name.startswith(inside) and t.name.endswith(".running_mean") and t.group == conv.tensor.group
    ]
    near = [t for t in means if t.shape == (filters,) and "." not in t.name[len(inside) :].removesuffix(".running_mean")]
    if ordered:
        behind = _next_module(tensors, module, conv.tensor.group)
        near = [t for t in near if t.name.removesuffix(".running_mean") == behind]
    near = [t for t in near if _follows(t.name.removesuffix(".running_mean")[len(inside) :], module[len(inside) :])]
    return (near[0].name, -1) if len(near) == 1 else None


def _next_module(tensors: Mapping[str, Tensor], module: str, group: str) -> str:
    """The module whose tensors stand right behind those of `module`."""
    names = [name for name, tensor in tensors.items() if tensor.group == group]
    own = [i for i, name in enumerate(names) if name.startswith(f"{module}.")]
    return names[own[-1] + 1].rpartition(".")[0] if own and own[-1] + 1 < len(names) else ""


def _follows(norm: str, conv: str) -> bool:
    """Whether one module may be the norm of the other by its name: `bn1` of `conv1`, `1` of `0`, `bn` of `conv`. Between `0` and
    `2` stands something without tensors, which may be no linear thing."""
    if norm.isdecimal() or conv.isdecimal():
        return norm.isdecimal() and conv.isdecimal() and int(norm) == int(conv) + 1
    return bool(_NORM.search(norm)) and (_numbers(norm) == _numbers(conv) or not _numbers(norm) or not _numbers(conv))


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)
