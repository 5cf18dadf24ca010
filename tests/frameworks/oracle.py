"""What torch itself makes of a conversion: the same objects, their kernels changed in memory.

Kernels are changed in place, storage and all. So the objects keep the identities that pickles spell (memo entries, and
the pointers that name storages in legacy files), and torch.save of the changed object is what a conversion must equal.
"""

import argparse
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.serialization import config as torch_config

BT709 = (0.2126, 0.7152, 0.0722)


def matrix(old: int, new: int) -> list[list[float]]:
    """The default rule from `old` to `new` channels, [old][new]: sum, luma, or repeat."""
    if new == old:
        return [[float(i == j) for j in range(new)] for i in range(old)]
    if new == 1:
        return [[1.0]] * old
    if (old, new) == (1, 3):
        return [list(BT709)]
    return [[old / new if i == j % old else 0.0 for j in range(new)] for i in range(old)]


def mixed(kernel: Tensor, new: int, axis: int = 1) -> Tensor:
    """The kernel of `new` channels: in float64, channel after channel, then rounded to the kernel's dtype."""
    wide = kernel.detach().to(torch.float64)
    columns = zip(*matrix(kernel.shape[axis], new), strict=True)
    terms = [[w * wide.select(axis, i) for i, w in enumerate(column) if w] for column in columns]
    parts = [reduce(operator.add, column) for column in terms]  # sum() begins with 0, which makes 0 of -0
    return torch.stack(parts, axis).to(kernel.dtype)


def as_old(image: Tensor, old: int) -> Tensor:
    """What the old network must see to answer as the new one does to `image`, [N, new, ...]."""
    return torch.einsum("ij,nj...->ni...", torch.tensor(matrix(old, image.shape[1]), dtype=image.dtype), image)


@torch.no_grad()
def become_(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor that owns its storage another shape and other values; tensor, storage and memory order stay."""
    order = torch.contiguous_format if tensor.is_contiguous() else torch.channels_last
    dense = torch.empty(values.shape, memory_format=order)
    storage = tensor.untyped_storage()
    storage.resize_(values.nbytes)
    tensor.set_(storage, 0, dense.shape, dense.stride())
    tensor.copy_(values)


def leaves(obj: Any, path: str = "", attribute: bool = False) -> Iterator[tuple[str, Any]]:
    """All that is no container, by path: "/" joins the steps of dicts and lists, "." submodules and attributes."""
    if isinstance(obj, torch.jit.ScriptModule):
        constants = obj.code_with_constants[1].const_mapping
        yield from obj.state_dict().items()
        yield from ((f"constants/{name.removeprefix('c')}", value) for name, value in constants.items())
        return
    if isinstance(obj, nn.Module):
        children = {k: v for k, v in vars(obj).items() if k not in ("_parameters", "_buffers", "_modules")}
        children |= obj._parameters | obj._buffers | obj._modules
    elif isinstance(obj, argparse.Namespace):
        children = vars(obj)
    elif isinstance(obj, dict):
        children = obj
    elif isinstance(obj, list | tuple):
        children = dict(enumerate(obj))
    else:
        yield path, obj
        return
    is_object = isinstance(obj, nn.Module | argparse.Namespace)
    for name, child in children.items():
        separator = "." if is_object and attribute else "/"
        yield from leaves(child, f"{path}{separator}{name}" if path else str(name), is_object)


def tensors(obj: Any) -> dict[str, Tensor]:
    return {path: leaf for path, leaf in leaves(obj) if isinstance(leaf, Tensor)}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def stored(tensor: Tensor) -> bytes:
    """All bytes of the storage behind a tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


def assert_same(found: Any, expected: Any) -> None:
    """Equal leaf by leaf, tensors to the last bit, and the same tensors share a storage."""
    a, b = dict(leaves(found)), dict(leaves(expected))
    assert list(a) == list(b)
    for name, value in b.items():
        assert type(a[name]) is type(value), name
        if isinstance(value, Tensor):
            assert (a[name].dtype, a[name].shape) == (value.dtype, value.shape), name
            assert a[name].requires_grad == value.requires_grad, name
            assert torch.equal(bits(a[name]), bits(value)), name
        else:
            assert a[name] == value, name
    assert sharing(found) == sharing(expected)


def sharing(obj: Any) -> list[list[str]]:
    """The names of the tensors, those on one storage together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors(obj).items():
        groups.setdefault(tensor.untyped_storage()._cdata, []).append(name)
    return list(groups.values())


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@dataclass(frozen=True)
class Format:
    """One of the ways torch.save writes."""

    protocol: int = 2
    alignment: int = 64
    zipped: bool = True

    def __str__(self) -> str:
        return f"zip{self.protocol}-{self.alignment}" if self.zipped else f"legacy{self.protocol}"

    def save(self, obj: Any, path: Path) -> Path:
        """torch names the folder inside an archive after the file: a name must stay to compare bytes."""
        path.parent.mkdir(exist_ok=True)
        with torch_config.patch("save.storage_alignment", self.alignment):
            torch.save(obj, path, pickle_protocol=self.protocol, _use_new_zipfile_serialization=self.zipped)
        return path


ZIP, ZIP4, LEGACY = Format(), Format(protocol=4), Format(zipped=False)
FORMATS = (ZIP, ZIP4, Format(alignment=4096), Format(4, 4096), LEGACY, Format(4, zipped=False))


def load(path: Path, **options: Any) -> Any:
    return torch.load(path, **{"weights_only": False, "mmap": False, **options})


@dataclass(frozen=True)
class Sample:
    """An object to save, where its first kernels are, and what an optimizer keeps for them."""

    build: Callable[[], Any]
    kernels: Sequence[str]
    state: Sequence[str] = ()
    declaring: Callable[[Any], Sequence[nn.Module]] = lambda obj: ()

    def convert_(self, obj: Any, new: int) -> Any:
        """Convert the object in memory."""
        every = tensors(obj)
        for name in self.kernels:
            become_(every[name], mixed(every[name], new))
        for name in self.state:
            shape = list(every[name].shape)
            become_(every[name], torch.zeros([shape[0], new, *shape[2:]] if shape else [], dtype=every[name].dtype))
        for module in self.declaring(obj):
            module.in_channels = new
        return obj
