"""Known networks as people keep them: without their head, with another, under prefixes, in two copies, beside a branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.tensors import Tensor

Stems = Mapping[str, str | None]
"""The names of stems, with their layouts."""


def _made(*shapes: tuple[str, tuple[int, ...]]) -> list[Tensor]:
    return [Tensor(name, BY_NAME["F32"], shape) for name, shape in shapes]


HEAD = _made(
    ("my_head.0.weight", (128, 512)), ("my_head.0.bias", (128,)), ("my_head.2.weight", (5, 128)), ("my_head.2.bias", (5,))
)
DECODER = _made(
    *(("decoder.conv1.weight", (64, 512, 3, 3)), ("decoder.conv1.bias", (64,))),
    *(("decoder.out.weight", (3, 64, 1, 1)), ("decoder.out.bias", (3,))),
)
FOUR_BANDS = _made(
    *(("ms.conv1.weight", (32, 4, 3, 3)), ("ms.bn1.weight", (32,)), ("ms.bn1.bias", (32,))),
    *(("ms.conv2.weight", (64, 32, 3, 3)), ("ms.conv2.bias", (64,))),
)
COLORS = _made(
    *(("aux.conv1.weight", (32, 3, 3, 3)), ("aux.bn1.weight", (32,)), ("aux.bn1.bias", (32,))),
    *(("aux.conv2.weight", (64, 32, 3, 3)), ("aux.conv2.bias", (64,))),
)


def below(prefix: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same under a prefix."""
    return [tensor._replace(name=prefix + tensor.name) for tensor in tensors]


def dressed(tensors: Sequence[Tensor], stems: Stems) -> Iterator[tuple[str, list[Tensor], Stems]]:
    """A network in module order in other dresses: (what was done, tensors, stems)."""
    tensors = list(tensors)
    last = tensors[-1].name.partition(".")[0]
    body = [tensor for tensor in tensors if tensor.name.partition(".")[0] != last]
    if stems.keys() <= {tensor.name for tensor in body}:
        yield "head cut", body, stems
        yield "head exchanged", body + HEAD, stems
        yield "backbone", below("backbone.", body) + HEAD, {f"backbone.{key}": layout for key, layout in stems.items()}
        yield "encoder", below("encoder.", body) + DECODER, {f"encoder.{key}": layout for key, layout in stems.items()}
    yield "module", below("module.", tensors), {f"module.{key}": layout for key, layout in stems.items()}
    both = {prefix + key: layout for key, layout in stems.items() for prefix in ("model.", "ema_model.")}
    yield "two copies", below("model.", tensors) + below("ema_model.", tensors), both
    yield "four-channel branch", tensors + FOUR_BANDS, stems
    yield "three-channel branch", tensors + COLORS, {**stems, "aux.conv1.weight": "OIHW"}
