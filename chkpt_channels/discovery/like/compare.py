"""What LIKE says of a checkpoint: the tensors that differ in their input axis are the first convs, whatever they are called.

They differ by one ratio, in every copy of the model. Vectors that change along precede them. A head, whose output no other layer
takes, may differ too; any other difference means another architecture, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import prod

from chkpt_channels.core.errors import UnsupportedError, UsageError
from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Edits, FirstConv, Notice
from chkpt_channels.discovery.like import Comparison, widths
from chkpt_channels.discovery.like.differences import Search, Stem, changed_shapes, differences, named
from chkpt_channels.discovery.like.kernels import Change
from chkpt_channels.discovery.like.names import Matching, match
from chkpt_channels.discovery.request import Like, SearchRequest
from chkpt_channels.formats.base import TensorStore

FOLLOWS = "optimizer state"
"""The part of an edit that LIKE says nothing of."""
_LETTERS = pattern(r"[^0-9a-zA-Z]")


def compare(store: TensorStore, like: Like, request: SearchRequest, search: Search) -> Comparison:
    """What LIKE says. Raises UnsupportedError with the first differences that no channels explain, AmbiguousError where a kernel
    could be a head, UsageError where the user states another target or layout."""
    matching = match(store, like)
    found = [differences(store, copy, like.file, request.layout, search) for copy in matching.copies]
    if others := [text for part in found for text in part.others]:
        what = f"is not of the architecture of {like.file}: {named(others)}"
        raise UnsupportedError(what, file=store.location.file)
    stems = [stem for part in found for stem in part.stems]
    vectors = [vector for part in found for vector in part.vectors]
    heads = tuple(head for part in found for head in part.heads)
    kept = {head.tensor.name for head in heads}
    shapes = {name: shape for copy in matching.copies for name, shape in changed_shapes(copy) if name not in kept}
    if graph := store.graph.first_convs():
        convs, channels = _by_graph(store, like, stems, graph)
    elif stems:
        _check_layout(store, stems, request)
        channels = _channels(store, like, request, stems, vectors)
        convs = tuple(_conv(store, stem, channels[0], request, search) for stem in stems)
        _check_copies(store, like, stems, matching)
    else:
        return Comparison(heads=heads, outside=matching.outside)
    if channels is None:
        return Comparison(heads=heads, outside=matching.outside)
    if like.target not in (None, channels[1]):
        raise UsageError(f"the target has {like.target} channels, and {like.file} takes {channels[1]}", file=store.location.file)
    along = () if graph else tuple(vector.tensor for vector in vectors if vector.pair == channels)
    return Comparison(convs, along, heads, shapes, channels, matching.outside)


def _check_layout(store: TensorStore, stems: Sequence[Stem], request: SearchRequest) -> None:
    """Raise UsageError for a --layout that is none of these kernels'."""
    if request.layout and not any(stem.layout == request.layout for stem in stems):
        tensor, after = stems[0].change.tensor, stems[0].change.shape
        what = f"--layout {request.layout} is not that of {list(tensor.shape)}, of which LIKE makes {list(after)}"
        raise UsageError(what, file=store.location.file, where=tensor.name)


def _channels(
    store: TensorStore, like: Like, request: SearchRequest, stems: Sequence[Stem], vectors: Sequence[Change]
) -> tuple[int, int]:
    """The input channels before and after. Raises UnsupportedError where the stems differ by several ratios."""
    ratios = {Fraction(*stem.change.pair): stem.change for stem in stems}
    if len(ratios) > 1:
        texts = [f"{change.tensor.name} from {change.pair[0]} to {change.pair[1]}" for change in ratios.values()]
        what = f"{like.file} changes inputs by different ratios: {named(texts)}"
        raise UnsupportedError(what, file=store.location.file)
    if like.channels:
        return like.channels
    pair, before = min(stem.change.pair for stem in stems), _known_channels(request, stems, vectors)
    if before is None and like.target is not None:
        before = widths.before_target(pair, like.target)
    if not before or (before * pair[1]) % pair[0]:
        return widths.image(pair)
    return before, before * pair[1] // pair[0]


def _known_channels(request: SearchRequest, stems: Sequence[Stem], vectors: Sequence[Change]) -> int | None:
    """The channels of the image, where the user or an axis that holds nothing else tells them."""
    if request.from_channels is not None:
        return request.from_channels
    plain = [stem.change.pair[0] for stem in stems if _is_plain(stem, request)]
    ratio, narrowest = Fraction(*stems[0].change.pair), min(stem.change.pair[0] for stem in stems)
    # a vector as long as the axis is that of the patches, such as a LayerNorm's
    along = [v.pair[0] for v in vectors if Fraction(*v.pair) == ratio and v.pair[0] < narrowest]
    return min(plain or along, default=None)


def _is_plain(stem: Stem, request: SearchRequest) -> bool:
    """Whether a stem's channel axis holds channels alone."""
    if stem.layout and stem.layout == request.layout:
        return not stem.layout.folded
    return not widths.may_be_folded(stem.change.pair, convolves=len(stem.change.tensor.shape) > 2)


def _conv(store: TensorStore, stem: Stem, channels: int, request: SearchRequest, search: Search) -> FirstConv:
    """The first conv; its layout is None where its axis holds more than the channels and nothing says in which order."""
    change = stem.change
    why = f"{change.pair[0]} wide here, {change.pair[1]} there"
    conv = FirstConv(change.tensor, stem.layout, channels, "like", why)
    if change.pair[0] == channels and not (stem.layout and stem.layout.folded):
        return store.graph.with_groups(conv)
    if stem.layout and stem.layout.folded and change.pair[0] % channels == 0:
        return conv
    known = next((c for c in search() if c.tensor.name == change.tensor.name and c.layout and c.layout.folded), None)
    return conv._replace(layout=known.layout if known and known.in_channels == channels else None)


def _by_graph(
    store: TensorStore, like: Like, stems: Sequence[Stem], graph: Sequence[FirstConv]
) -> tuple[tuple[FirstConv, ...], tuple[int, int] | None]:
    """The first convs that the graph names, where LIKE changes these; their channels before and after. Raises UnsupportedError
    where the two disagree."""
    changed = {stem.change.tensor.name: stem.change for stem in stems}
    counts = {conv.in_channels for conv in graph}
    if not changed and like.graph_channels in (0, *counts):
        return (), None
    before = min(counts)
    ratios = {Fraction(change.pair[1], change.pair[0]) for change in changed.values()} or {Fraction(like.graph_channels, before)}
    after = before * next(iter(ratios))
    left = [conv.tensor.name for conv in graph if conv.tensor.name not in changed and conv.groups == 1]
    if len(counts) > 1 or len(ratios) > 1 or after.denominator > 1 or left or like.graph_channels not in (0, int(after)):
        names = named([f"{name} {change.pair[0]} to {change.pair[1]}" for name, change in changed.items()] or ["no kernel"])
        reads = named([f"{conv.tensor.name} with {conv.in_channels} channels" for conv in graph])
        what = f"{like.file} and the graph disagree: LIKE changes {names}, and the image reaches {reads}"
        raise UnsupportedError(what, file=store.location.file)
    why = f"{before} channels here, {int(after)} there"
    return tuple(conv._replace(found_by="like", why=f"{why}; {conv.why}") for conv in graph), (before, int(after))


def _check_copies(store: TensorStore, like: Like, stems: Sequence[Stem], matching: Matching) -> None:
    """Raise UnsupportedError for a further copy of a stem whose name has lost its dots, as those of averaged weights in latent
    diffusion's checkpoints: it would keep the old channels."""
    for tensor in (stem.change.tensor for stem in stems):
        letters, own = _LETTERS.sub("", tensor.key), _LETTERS.sub("", tensor.key.rpartition(".")[2])
        for other in matching.outside:
            last = _LETTERS.sub("", other.key.rpartition(".")[2])
            if other.shape == tensor.shape and len(last) > len(own) and letters.endswith(last):
                what = f"looks like a copy of {tensor.name}, and {like.file} has no tensor for it"
                hint = "make LIKE with every copy that the file has"
                raise UnsupportedError(what, file=store.location.file, where=other.name, hint=hint)


def notices(comparison: Comparison) -> Iterator[Notice]:
    """What LIKE shows and the conversion does not change: heads, and networks that it does not hold."""
    if comparison.heads:
        texts = [f"{h.tensor.name} stays {list(h.tensor.shape)}, and is {list(h.shape)} in LIKE" for h in comparison.heads]
        yield Notice("head_left", named(texts))
    kernels = [t.name for t in comparison.outside if len(t.shape) > 2]
    if kernels:
        yield Notice("not_in_like", f"{named(kernels)} stays: LIKE has no tensor of that name")


def check_edits(store: TensorStore, comparison: Comparison, edits: Edits) -> None:
    """Raise UnsupportedError where the edits do not make LIKE's shapes: a tensor would not fit the network that LIKE is of."""
    planned = {name: edit.shape for name, edit in edits.tensors.items() if edit.part != FOLLOWS}
    for name in dict.fromkeys((*comparison.shapes, *planned)):
        now = store.tensors[name].shape
        wanted, after = comparison.shapes.get(name, now), planned.get(name, now)
        if prod(wanted) != prod(after) or (wanted != after and name in comparison.shapes):
            what = f"is {list(now)} here and {list(wanted)} in LIKE, and the conversion makes it {list(after)}"
            raise UnsupportedError(what, file=store.location.file, where=name)
