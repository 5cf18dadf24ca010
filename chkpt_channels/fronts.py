"""What stands between the image and the stems in a file without a graph: normalisations with one number for each channel.

BatchNorm          y = γ · (x - μ) / √(σ² + eps) + β     eps is in the code: 1e-5 here
mean and std       y = (x - mean) / std                  RADIO's input_conditioner, SAM's pixel_mean
shift and scale    y = (x - shift) / scale               LPIPS' scaling_layer
MeanShift          y = W · x + b, W a diagonal 1×1 convolution; EDSR has its inverse at the output
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import sqrt

from .model import Checkpoint, FirstConv, Front, Notice, Tensor

EPS = 1e-5
_PAIRS = (("mean", "std"), ("shift", "scale"))


def fronts(checkpoint: Checkpoint, conv: FirstConv, companions: Iterable[Tensor]) -> tuple[Front, ...]:
    """The normalisations that the image meets on its way to this conv. Raises UnsupportedError for vectors in front of it whose
    meaning is not known."""
    modules = dict.fromkeys(t.name.rpartition(".")[0] for t in companions if t.group == conv.tensor.group)
    found = tuple(_front(checkpoint, module, conv.in_channels) for module in modules if _leads_to(module, conv))
    if len(found) > 1:
        names = " and ".join(front.where for front in found)
        raise checkpoint.source.place.unsupported(f"{names} stand in front of {conv.tensor.name}, in an order that is not known")
    return found


def _leads_to(module: str, conv: FirstConv) -> bool:
    """Whether a module's parent holds the conv too: the first part of a Sequential, or of the whole network."""
    parent = module.rpartition(".")[0]
    return not parent or conv.tensor.name.startswith(f"{parent}.")


def _front(checkpoint: Checkpoint, module: str, channels: int) -> Front:
    parts = {t.name[len(module) :].removeprefix("."): t for t in checkpoint.tensors.values() if t.name.startswith(module)}
    parts = {end: t for end, t in parts.items() if "." not in end and t.dtype.floating and channels in t.shape}
    if "running_mean" in parts and "running_var" in parts:
        return _batch_norm(checkpoint, module, parts)
    weight = parts.get("weight")
    if weight and weight.shape == (channels, channels, 1, 1):
        return _mean_shift(checkpoint, module, parts)
    for mean, std in _PAIRS:
        pair = [t for end, t in parts.items() if end.endswith(mean)] + [t for end, t in parts.items() if end.endswith(std)]
        if len(pair) == 2 == len(parts):
            means, stds = (_numbers(checkpoint, t) for t in pair)
            scale = tuple(1 / s for s in stds)
            shift = tuple(-m / s for m, s in zip(means, stds, strict=True))
            return Front(module or mean, "normalisation", scale, shift, tuple((t.name, t.shape.index(channels)) for t in pair))
    names = ", ".join(t.name for t in parts.values())
    raise checkpoint.source.place.inside(names).unsupported(
        "stands in front of the stem with one number for each channel, and what it does is not known"
    )


def _batch_norm(checkpoint: Checkpoint, module: str, parts: Mapping[str, Tensor]) -> Front:
    mean, variance = (_numbers(checkpoint, parts[end]) for end in ("running_mean", "running_var"))
    gamma = _numbers(checkpoint, parts["weight"]) if "weight" in parts else (1.0,) * len(mean)
    beta = _numbers(checkpoint, parts["bias"]) if "bias" in parts else (0.0,) * len(mean)
    scale = tuple(g / sqrt(v + EPS) for g, v in zip(gamma, variance, strict=True))
    shift = tuple(b - m * a for b, m, a in zip(beta, mean, scale, strict=True))
    return Front(module, "BatchNorm", scale, shift, tuple((t.name, 0) for t in parts.values()))


def _mean_shift(checkpoint: Checkpoint, module: str, parts: Mapping[str, Tensor]) -> Front:
    weight, bias = checkpoint.load(parts["weight"].name).astype("float64")[..., 0, 0], parts.get("bias")
    channels = len(weight)
    diagonal = all(weight[i, j] == 0 for i in range(channels) for j in range(channels) if i != j)
    scale = tuple(float(weight[i, i]) for i in range(channels)) if diagonal else None
    shift = _numbers(checkpoint, bias) if bias else (0.0,) * channels
    weight_name = parts["weight"].name
    tensors = [(weight_name, 0), (weight_name, 1), *([(bias.name, 0)] if bias else [])]
    return Front(module, "MeanShift" if diagonal else "1×1 convolution", scale, shift, tuple(tensors))


def _numbers(checkpoint: Checkpoint, tensor: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in checkpoint.load(tensor.name).astype("float64").reshape(-1))


def notices(fronts_: Sequence[Front], chosen: Sequence[int], tensors: Iterable[str]) -> Iterator[Notice]:
    """What became of them, and of their counterparts at the output."""
    for front in fronts_:
        which = ", ".join(map(str, chosen))
        told = f"{front.where} ({front.kind}) in front of the stem is composed into the kernel"
        yield Notice("front_composed", f"{told} and keeps the numbers of channel {which}")
        if front.kind == "BatchNorm" and front.scale and len(set(front.scale)) > 1:
            yield Notice("eps", f"{front.where}: its eps is in the code, not in the file; {EPS:g} was used")
    outs = dict.fromkeys(name.rpartition(".")[0] for name in tensors if "add_mean" in name)
    if fronts_ and outs:
        yield Notice("output_left", f"{', '.join(outs)} shifts the output's colours, not the image's: left as it is")
