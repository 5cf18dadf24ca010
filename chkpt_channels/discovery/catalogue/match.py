"""Known architectures in a checkpoint, under any prefix, in several copies, with other heads.

The names of a network tell its stems: among 2,734 architectures no two with the same names have others. So a subtree of modules
is known whose names are those of a network, or become so without one child: a head that was exchanged, a branch that was added.
What stands outside of the known names is judged by the law of discovery.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import MOST_REMEMBERED, FirstConv, Tensor
from chkpt_channels.discovery.catalogue import table
from chkpt_channels.discovery.catalogue.entry import Architecture, Recognized

SWITCH = "CHKPT_CHANNELS_CATALOGUE"
"""The environment variable that switches the catalogue off."""

DEEPEST = 10
"""Modules in front of the names of a network that is looked for."""

Named = Mapping[str, Tensor]


class Match(NamedTuple):
    """A subtree that is known: its tensors by their names in the architecture, the stems among them, and the child that is not
    the architecture's own ("" where all are). A known frame around it, such as a decoder, has a key, a prefix, and tensors of its
    own."""

    group: str
    prefix: str
    tensors: Named
    stems: tuple[FirstConv, ...]
    other_child: str
    head: str
    frame: int = 0
    outer: str = ""
    around: tuple[Tensor, ...] = ()

    @property
    def listed(self) -> frozenset[str]:
        """The full names of the tensors that the catalogue lists."""
        return frozenset(tensor.name for tensor in (*self.tensors.values(), *self.around))


def matches(tensors: Sequence[Tensor]) -> list[Match]:
    """The known networks in a checkpoint, one for each copy; none where the catalogue is switched off."""
    if os.environ.get(SWITCH) == "off":
        return []
    return _of_all(tuple(tensors)) if len(tensors) <= MOST_REMEMBERED else _of_all.__wrapped__(tensors)


@lru_cache(maxsize=2)
def _of_all(tensors: Sequence[Tensor]) -> list[Match]:
    """In a folder of checkpoints names and shapes are mostly those of the file before; a conversion has two files."""
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        if table.is_counted(tensor.name):
            groups[tensor.group][tensor.name[len(tensor.group) + 1 if tensor.group else 0 :]] = tensor
    known = table.catalogue()
    return [match for group, named in groups.items() for match in _within(known, group, "", named)]


def _within(known: table.Catalogue, group: str, prefix: str, named: Named) -> Iterator[Match]:
    """The known networks at a module and below it: the outermost."""
    if len(named) < table.FEWEST_OF_ALL or prefix.count(".") > DEEPEST:
        return
    children = _large_children(named)
    if len(named) <= 2 * known.most_names and len(sums := _sums(named)) > 1:
        module = Match(group, prefix, named, (), "", "")
        match = _at(known, module, sums) or _framed(known, module, children, sums)
        if match:
            yield match
            return
    for child, inner in children.items():
        yield from _within(known, group, f"{prefix}{child}.", inner)


def _large_children(named: Named) -> dict[str, dict[str, Tensor]]:
    """The tensors below each child of a module that could be a network, by their names there."""
    counts = Counter(name.partition(".")[0] for name in named)
    children: dict[str, dict[str, Tensor]] = {child: {} for child, count in counts.items() if count >= table.FEWEST_OF_ALL}
    for name, tensor in named.items() if children else ():
        child, _, rest = name.partition(".")
        if child in children:
            children[child][rest] = tensor
    return children


def _sums(named: Named) -> dict[str, int]:
    """The sums of the hashes of names, for each child of a module."""
    sums: defaultdict[str, int] = defaultdict(int)
    for name in named:
        sums[name.partition(".")[0]] += table.name_hash(name)
    return sums


def _at(known: table.Catalogue, module: Match, sums: Mapping[str, int]) -> Match | None:
    """The network that a module is, with all its children or without one."""
    whole = sum(sums.values())
    for other in ("", *sums):
        found = known.named((whole - (sums[other] if other else 0)) & table.KEY_MASK)
        if found is None:
            continue
        kept = {name: tensor for name, tensor in module.tensors.items() if not other or name.partition(".")[0] != other}
        for variant in found.variants:
            if stems := _stems(kept, variant):
                head = "whole" if found.forms & table.WHOLE else "exchanged" if other else "cut"
                return module._replace(tensors=kept, stems=stems, other_child=other, head=head)
    return None


def _framed(known: table.Catalogue, module: Match, children: Mapping[str, Named], sums: Mapping[str, int]) -> Match | None:
    """The network that one child is, where the others are a known frame around it."""
    whole = sum(sums.values())
    for child in children:
        key = (whole - sums[child]) & table.KEY_MASK
        found = known.named(key)
        if found and found.forms == table.FRAME:
            inner = next(_within(known, module.group, f"{module.prefix}{child}.", children[child]), None)
            around = (tensor for name, tensor in module.tensors.items() if name.partition(".")[0] != child)
            return inner._replace(frame=key, outer=module.prefix, around=tuple(around)) if inner else None
    return None


def _stems(named: Named, variant: Sequence[table.StemShape]) -> tuple[FirstConv, ...]:
    """The stems, where each has the layout and the window that are known, and all take as many channels; else none."""
    convs = tuple(conv for stem in variant if (conv := _stem(named.get(stem.key), stem)))
    return convs if len(convs) == len(variant) and len({conv.in_channels for conv in convs}) == 1 else ()


def _stem(tensor: Tensor | None, stem: table.StemShape) -> FirstConv | None:
    layout = Layout(stem.layout) if stem.layout else None
    axes_as = layout or Layout("OI")
    if tensor is None or len(tensor.shape) != len(axes_as.axes):
        return None
    width = tensor.shape[axes_as.channel_axis]
    if window_of(tensor.shape, axes_as) != stem.window or width % stem.pixels or not width:
        return None
    return FirstConv(tensor, layout, width // stem.pixels, "catalogue")


def window_of(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """The sides of a kernel's window."""
    return tuple(side for side, letters in zip(shape, layout.axes, strict=True) if letters != "O" and "I" not in letters)


def architectures(match: Match) -> tuple[Architecture, ...]:
    """The architectures whose shapes a match has too, but for its stems and the child that holds its head."""
    stems, sums = {conv.tensor.name for conv in match.stems}, defaultdict[str, int](int)
    for name, tensor in match.tensors.items():
        sums[name.partition(".")[0]] += 0 if tensor.name in stems else table.shape_hash(name, tensor.shape)
    whole = sum(sums.values())
    keys = [whole] if match.head != "whole" else [whole - below for below in sums.values()] + [whole]
    found = {a: None for key in keys for a in table.catalogue().shaped(key & table.KEY_MASK)}
    return tuple(found)


def recognized(match: Match) -> Recognized | None:
    """The architectures of a match; None where its shapes are those of none."""
    found = [a for a in architectures(match) if match.prefix.endswith(a.within)]
    if match.frame:
        frames = table.catalogue().shaped(match.frame)
        below = match.prefix[len(match.outer) :]
        composed = tuple(_composed(frame, a, below) for frame in frames for a in found if a.library == frame.library)
        return Recognized(match.group, match.outer, "whole", composed) if composed else None
    within = found[0].within if found else ""
    alike = [a for a in found if a.within == within and a.lines]
    with_head = [a for a in alike if not a.head or a.head in match.tensors]  # a body may be another network's whole
    head = match.head if match.head != "whole" or with_head else "exchanged" if match.other_child else "cut"
    told = tuple(with_head if head == "whole" else alike)
    prefix = match.prefix[: len(match.prefix) - len(within)]
    return Recognized(match.group, prefix, head, told, match.other_child) if told else None


def _composed(frame: Architecture, inner: Architecture, below: str) -> Architecture:
    """The network that a frame is with what stands `below` in it: segmentation-models' Unet around its resnet34."""
    stems = tuple(stem._replace(key=f"{below.removesuffix(inner.within)}{stem.key}") for stem in inner.stems)
    lines = tuple(line.replace("{inner}", inner.name) for line in frame.lines)
    return frame._replace(
        name=f"{frame.name}/{inner.name}", stems=stems, lines=lines, norms=inner.norms, order=inner.order, within=""
    )
