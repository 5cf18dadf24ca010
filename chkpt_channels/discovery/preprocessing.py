"""Normalizations between the image and the stems in a file without a graph: modules with one value per channel.

BatchNorm          y = γ · (x - μ) / √(σ² + eps) + β     eps is in the code: 1e-5 here
mean and std       y = (x - mean) / std                  RADIO's input_conditioner, SAM's pixel_mean
shift and scale    y = (x - shift) / scale               LPIPS' scaling_layer only: elsewhere these words are learned
MeanShift          y = W · x + b, W a diagonal 1×1 convolution; EDSR has its inverse at the output, which is not touched

Each is an affine map per channel, composed into the first kernel; its tensors then keep the values of the chosen channels. To
mix their statistics instead would be wrong: a sum of means is not a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite, prod, sqrt

from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.core.tensors import FirstConv, Notice, PreprocessingOp, Tensor
from chkpt_channels.discovery import bias_target
from chkpt_channels.formats.base import TensorStore

EPS = 1e-5
"""Of a BatchNorm, PyTorch's default; eps is not in a state dict. qubvel's bn_data has 2e-5."""
_PAIRS = ((pattern(""), "mean", "std"), (pattern(r"(^|\.)scaling_layer$"), "shift", "scale"))
_OF_THE_IMAGE = pattern(r"data|input|image|pixel")

Numbers = tuple[float, ...]


def find(checkpoint: TensorStore, conv: FirstConv, input_vectors: Iterable[Tensor]) -> tuple[PreprocessingOp, ...]:
    """The normalizations that the image passes before this conv. Raises UnsupportedError for vectors whose operation, or whose
    position, is unknown."""
    vectors = [t for t in input_vectors if t.group == conv.tensor.group]
    modules = [m for m in dict.fromkeys(t.key.rpartition(".")[0] for t in vectors) if _leads_to(m, conv)]
    nearest = {m.rpartition(".")[2]: m for m in sorted(modules, key=len)}  # of `bn_data` and `ema.bn_data` the second
    operations = [op for module in nearest.values() if (op := _ChannelModule(checkpoint, conv, module).operation())]
    if len(operations) > 1:
        names = " and ".join(op.where for op in operations)
        raise checkpoint.location.unsupported(f"{names} precede {conv.tensor.name} in an unknown order")
    return tuple(operations)


class PatchNorm(NamedTuple):
    """A norm over whole patches in front of a patch embedding, by its module `where`: γ, and β where it has one."""

    where: str
    weight: Tensor
    bias: Tensor | None


def patch_norm(checkpoint: TensorStore, conv: FirstConv) -> PatchNorm | None:
    """The norm of the patches that a Linear patch embedding takes, with one number for each color of each pixel. Raises
    UnsupportedError for such vectors whose operation, or whose position, is unknown."""
    layout = conv.layout
    if layout is None or not layout.folded or len(layout.axes) != 2:
        return None
    width, filters = (conv.tensor.shape[i] for i in (layout.channel_axis, 1 - layout.channel_axis))
    module = conv.tensor.key.rpartition(".")[0]
    group = [t for t in checkpoint.tensors.values() if t.group == conv.tensor.group and t.shape in ((width,), conv.tensor.shape)]
    at = next(i for i, t in enumerate(group) if t.name == conv.tensor.name)
    parts: dict[str, dict[str, Tensor]] = {}
    for i, tensor in enumerate(group):
        norm, _, end = tensor.key.rpartition(".")
        if tensor.shape != (width,) or norm == module or norm.rpartition(".")[0] != module.rpartition(".")[0]:
            continue
        # a norm of the output has that length too where the embedding is as wide as its patches
        if width != filters or _is_next(norm, module) or (checkpoint.ordered and i < at and not _is_next(module, norm)):
            parts.setdefault(tensor.name.removesuffix(f".{end}"), {})[end] = tensor
    for where, tensors in parts.items():
        own = where.rpartition(".")[2]
        is_known = _is_next(where, module) or ("norm" in own and not own.isdecimal())
        if len(parts) > 1 or not is_known or "weight" not in tensors or tensors.keys() - {"weight", "bias"}:
            raise checkpoint.location.at(where).unsupported(
                f"has one value for each number that {conv.tensor.name} takes, and its operation is unknown"
            )
        return PatchNorm(where, tensors["weight"], tensors.get("bias"))
    return None


def _is_next(first: str, second: str) -> bool:
    """Whether the second module of a Sequential directly follows the first."""
    a, b = first.rpartition(".")[2], second.rpartition(".")[2]
    return a.isdecimal() and b.isdecimal() and int(a) + 1 == int(b)


def _leads_to(module: str, conv: FirstConv) -> bool:
    """Whether a module's parent holds the conv too: the first part of a Sequential, or of the whole network."""
    parent = module.rpartition(".")[0]
    return not parent or conv.tensor.key.startswith(f"{parent}.")


class _ChannelModule:
    """A module with one value per channel, and the conv that it may precede."""

    def __init__(self, checkpoint: TensorStore, conv: FirstConv, module: str) -> None:
        self._checkpoint, self._conv, self._module, self._channels = checkpoint, conv, module, conv.in_channels
        self._where = f"{conv.tensor.group}/{module}" if conv.tensor.group and module else module or conv.tensor.group
        self._group = [t for t in checkpoint.tensors.values() if t.group == conv.tensor.group]
        self._parts = {
            t.key.rpartition(".")[2]: t for t in self._group if t.key.rpartition(".")[0] == module and self._is_part(t)
        }

    def _is_part(self, tensor: Tensor) -> bool:
        n = self._channels
        return tensor.dtype.floating and (max(tensor.shape, default=0) == n == prod(tensor.shape) or tensor.shape == (n, n, 1, 1))

    def operation(self) -> PreprocessingOp | None:
        """The module as an affine map of each channel; None where it follows the conv."""
        parts = self._parts
        if "running_mean" in parts and "running_var" in parts:
            return self._batch_norm() if self._precedes() else None
        if "weight" in parts and parts["weight"].shape == (self._channels, self._channels, 1, 1):
            return self._mean_shift() if not self._checkpoint.ordered or self._at() < self._index(self._conv.tensor) else None
        for named, mean, std in _PAIRS:
            pair = [t for end, t in parts.items() if end.endswith(mean)] + [t for end, t in parts.items() if end.endswith(std)]
            if len(pair) == 2 == len(parts) and named.search(self._module):
                return self._normalization(*pair)
        names = ", ".join(t.name for t in parts.values())
        raise self._checkpoint.location.at(names).unsupported(
            "precedes the stem with one value per channel, and its operation is unknown"
        )

    def _precedes(self) -> bool:
        """Whether a BatchNorm directly precedes the conv. With as many channels as the image it may also normalize the output of
        another layer, such as the scores of three classes."""
        parent, _, own = self._module.rpartition(".")
        beside = self._conv.tensor.key.removeprefix(f"{parent}." if parent else "").partition(".")[0]
        if own.isdecimal() and beside.isdecimal():
            if int(own) >= int(beside) or int(own) + 1 == int(beside):
                return int(own) < int(beside)
            raise self._unsupported(f"precedes {self._conv.tensor.name}, but not directly: the operation between them is unknown")
        makers = [t for t in self._group if len(t.shape) > 1 and t.shape[0] == self._channels and not self._is_part(t)]
        if not self._checkpoint.ordered:
            if not makers or _OF_THE_IMAGE.search(own):
                return True
            if any(bias_target.names_say(self._group, t.key.rpartition(".")[0], self._module) for t in makers):
                return False
            raise self._unsupported(f"may precede the stem or follow {makers[0].name}")
        before = [t for t in self._group[: self._at()] if len(t.shape) > 1]
        if before and before[-1] in makers:
            return False
        if self._at() > self._index(self._conv.tensor) and not _OF_THE_IMAGE.search(own):
            raise self._unsupported("has one value per channel of the image, but follows the stem")
        return True

    def _at(self) -> int:
        return min(self._index(part) for part in self._parts.values())

    def _index(self, tensor: Tensor) -> int:
        return next(i for i, t in enumerate(self._group) if t.name == tensor.name)

    def _batch_norm(self) -> PreprocessingOp:
        n, parts = self._channels, self._parts
        mean, variance = (self._numbers(parts[end]) for end in ("running_mean", "running_var"))
        gamma = self._numbers(parts["weight"]) if "weight" in parts else (1.0,) * n
        beta = self._numbers(parts["bias"]) if "bias" in parts else (0.0,) * n
        if min(variance) < 0:
            raise self._unsupported("has a negative variance")
        scale = tuple(g / sqrt(v + EPS) for g, v in zip(gamma, variance, strict=True))
        shift = tuple(b - m * a for b, m, a in zip(beta, mean, scale, strict=True))
        return self._affine("BatchNorm", scale, shift, [(t, 0) for t in parts.values()])

    def _mean_shift(self) -> PreprocessingOp:
        weight, bias, n = self._parts["weight"], self._parts.get("bias"), self._channels
        rows = [self._numbers(weight)[i * n : (i + 1) * n] for i in range(n)]
        shift = self._numbers(bias) if bias else (0.0,) * n
        if any(rows[i][j] for i in range(n) for j in range(n) if i != j):
            return PreprocessingOp(self._where, "1×1 convolution")
        axes = [(weight, 0), (weight, 1), *([(bias, 0)] if bias else [])]
        return self._affine("MeanShift", tuple(rows[i][i] for i in range(n)), shift, axes)

    def _normalization(self, mean: Tensor, std: Tensor) -> PreprocessingOp:
        means, stds = self._numbers(mean), self._numbers(std)
        if not all(stds):
            raise self._checkpoint.location.at(std.name).unsupported("holds a zero, and the image is divided by it")
        scale = tuple(1 / s for s in stds)
        shift = tuple(-m / s for m, s in zip(means, stds, strict=True))
        return self._affine("normalization", scale, shift, [(t, t.shape.index(self._channels)) for t in (mean, std)])

    def _affine(self, kind: str, scale: Numbers, shift: Numbers, axes: Iterable[tuple[Tensor, int]]) -> PreprocessingOp:
        return PreprocessingOp(self._where or kind, kind, scale, shift, tuple((tensor.name, axis) for tensor, axis in axes))

    def _numbers(self, tensor: Tensor) -> Numbers:
        numbers = tuple(self._checkpoint.numbers(tensor.name))
        if not all(map(isfinite, numbers)):
            raise self._checkpoint.location.at(tensor.name).unsupported("holds NaN or infinity")
        return numbers

    def _unsupported(self, what: str) -> Exception:
        return self._checkpoint.location.at(self._where).unsupported(what)


def notices(operations: Sequence[PreprocessingOp], chosen: Sequence[int], tensors: Iterable[str]) -> Iterator[Notice]:
    """What happened to these operations, and to their inverses at the output."""
    for op in operations:
        which = ", ".join(map(str, chosen))
        message = f"{op.where} ({op.kind}) precedes the stem: it is composed into the kernel"
        yield Notice("front_composed", f"{message} and keeps the values of channel {which}")
        if op.kind == "BatchNorm" and not op.uniform:
            yield Notice("eps", f"{op.where}: its eps is in the code, not in the file; {EPS:g} was used")
    outs = dict.fromkeys(name.rpartition(".")[0] for name in tensors if "add_mean" in name)
    if operations and outs:
        yield Notice("output_left", f"{', '.join(outs)} shifts the colors of the output, not of the image: it is left unchanged")
