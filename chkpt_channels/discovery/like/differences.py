"""The differences between a copy of the model and LIKE, and what each is of: a first conv, a vector, a head, or another
architecture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import prod

from chkpt_channels.core.errors import AmbiguousError, Candidate
from chkpt_channels.core.layout import Layout
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.law.network import is_weight
from chkpt_channels.discovery.like import Head, widths
from chkpt_channels.discovery.like.kernels import HEAD, OPEN, STEM, Change, Kernels, KernelVerdict, module_of
from chkpt_channels.discovery.like.names import Copy
from chkpt_channels.formats.base import TensorStore

Search = Callable[[], Sequence[FirstConv]]
"""The first convs without LIKE: by a configuration, names and shapes."""
_NUMBERS = pattern(r"(\d+)")
BY_SHAPES = frozenset({"catalogue", "shapes", "names"})
OLD_OUTPUTS = "make LIKE with the old number of outputs"


class Stem(NamedTuple):
    """A changed kernel that takes the image, and the layout that it would have without pixels in its channel axis."""

    change: Change
    layout: Layout | None


class Differences(NamedTuple):
    """What differs in one copy; `others` are the differences of another architecture, as text."""

    stems: tuple[Stem, ...]
    vectors: tuple[Change, ...]
    heads: tuple[Head, ...]
    others: tuple[str, ...]


def differences(store: TensorStore, copy: Copy, label: str, stated: Layout | None, search: Search) -> Differences:
    """What differs between a copy and LIKE, which is called `label`; `stated` is the layout that the user gives. Raises
    AmbiguousError where a kernel could be a stem or a head."""
    return _Comparison(store, copy, label, stated, search).differences()


class _Comparison:
    """One copy beside LIKE."""

    def __init__(self, store: TensorStore, copy: Copy, label: str, stated: Layout | None, search: Search) -> None:
        self._store, self._copy, self._label, self._stated, self._search = store, copy, label, stated, search
        self._graph = {conv.tensor.name: conv for conv in store.graph.first_convs()}
        self._position = {tensor.name: i for i, (tensor, _) in enumerate(copy.pairs)}
        self._others: list[str] = []

    def differences(self) -> Differences:
        kernels: list[Change] = []
        vectors: list[Change] = []
        for tensor, other in self._copy.pairs:
            if tensor.shape == other.shape:
                continue
            change = _change(tensor, other.shape)
            if change is None:
                self._refuse(tensor, other.shape)
            elif self._is_kernel(change):
                kernels.append(change)
            else:
                vectors.append(change)
        verdicts = self._verdicts_by_graph(kernels) if self._graph else self._verdicts_by_shapes(kernels)
        judged = [*zip(kernels, verdicts, strict=True)]
        stems = [Stem(change, verdict.layout) for change, verdict in judged if verdict and verdict.kind == STEM]
        heads = [change for change, verdict in judged if verdict and verdict.kind == HEAD]
        for change, verdict in judged:
            if verdict is None:
                self._refuse(change.tensor, change.shape)
        self._check_ends(stems, heads)
        of_heads = [v for v in vectors if self._is_of_head(v, heads, stems)]
        rest = [v for v in vectors if not any(v is other for other in of_heads)]
        if not stems:
            for vector in rest:
                self._refuse(vector.tensor, vector.shape)
        keys = {tensor.name: other.key for tensor, other in self._copy.pairs}
        ends = tuple(Head(h.tensor, h.shape, keys[h.tensor.name]) for h in (*heads, *of_heads))
        return Differences(tuple(stems), tuple(rest), ends, (*self._unmatched(stems), *self._others))

    def _unmatched(self, stems: Sequence[Stem]) -> Iterator[str]:
        """What only one of the two has. What a module keeps beside its state dict, a mask or an index, is not in LIKE's; with an
        axis as wide as the image it could be the mean of its channels, which would have to change."""
        widths_of_image = {stem.change.pair[0] for stem in stems} - {1}
        for tensor in self._copy.extra:
            if not self._store.graph.is_beside_state_dict(tensor.name) or widths_of_image & {*tensor.shape}:
                yield f"{tensor.name} is not there"
        yield from (f"{other.key} is only there" for other in self._copy.missing)

    def _refuse(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        self._others.append(f"{tensor.name} is {list(tensor.shape)} here and {list(shape)} there")

    def _is_kernel(self, change: Change) -> bool:
        """Whether a tensor is no vector: it has more numbers than the axis that differs, or the name of a weight."""
        shape = change.tensor.shape
        if change.tensor.name in self._graph:
            return True
        return (
            len(shape) > 1
            and not _is_square_of_channels(change)
            and (prod(shape) != change.pair[0] or prod(change.shape) != change.pair[1] or is_weight(change.tensor))
        )

    def _verdicts_by_shapes(self, changes: Sequence[Change]) -> Iterator[KernelVerdict | None]:
        kernels = Kernels(self._store, [(tensor, other.shape) for tensor, other in self._copy.pairs], changes)
        for change in changes:
            verdict = kernels.judge(change, self._stated)
            yield self._settled(change, verdict) if verdict and verdict.kind == OPEN else verdict

    def _settled(self, change: Change, verdict: KernelVerdict) -> KernelVerdict:
        """The verdict on a kernel that may be either. Raises AmbiguousError where nothing but names and shapes finds it: the
        mirror image of a network has the same."""
        if any(conv.tensor.name == change.tensor.name and conv.found_by not in BY_SHAPES for conv in self._search()):
            return KernelVerdict(STEM, verdict.layout)
        name = change.tensor.name
        what = f"{name} could take the image or, transposed, make it: neither a bias nor the order of the layers tells"
        raise self._ambiguous(what, [change], f"--layout {verdict.layout} if it takes the image; if not, {OLD_OUTPUTS}")

    def _ambiguous(self, what: str, changes: Sequence[Change], hint: str) -> AmbiguousError:
        candidates = [Candidate(c.tensor.name, c.tensor.shape, f"{list(c.shape)} in {self._label}") for c in changes]
        return AmbiguousError(what, file=self._store.location.file, candidates=candidates, hint=hint)

    def _verdicts_by_graph(self, changes: Sequence[Change]) -> Iterator[KernelVerdict | None]:
        """A kernel that the image reaches is a stem, and no other is. A head is one that no other kernel follows in its width."""
        pairs = Counter(change.pair for change in changes if change.tensor.name not in self._graph)
        for change in changes:
            if conv := self._graph.get(change.tensor.name):
                is_input = conv.layout is None or conv.layout.channel_axis == change.axis
                yield KernelVerdict(STEM, conv.layout) if is_input else None
            else:
                layout, alone = change.tensor.layout, pairs[change.pair] == 1
                yield KernelVerdict(HEAD) if alone and (layout is None or "O" in layout.axes[change.axis]) else None

    def _check_ends(self, stems: Sequence[Stem], heads: Sequence[Change]) -> None:
        """Raise AmbiguousError where a kernel whose filters differ may feed one whose channels do: then one is no head, and the
        other no stem. A network that makes an image has both too, with the stem first."""
        if self._graph:
            return
        for head in heads:
            fed = [stem for stem in stems if stem.change.pair == head.pair]
            if not fed or (widths.COLORS.issuperset(head.pair) and self._begin_network(fed, head)):
                continue
            stem = fed[0].change.tensor
            what = f"{head.tensor.name} makes as many channels as {stem.name} takes, and both differ: it may feed it"
            raise self._ambiguous(what, [head, *(stem.change for stem in fed)], OLD_OUTPUTS)

    def _begin_network(self, stems: Sequence[Stem], head: Change) -> bool:
        names = [stem.change.tensor.name for stem in stems]
        if self._store.ordered:
            return all(self._position[name] < self._position[head.tensor.name] for name in names)
        if any(_follows(stem.change.tensor.key, head.tensor.key) for stem in stems):
            return False
        found = {conv.tensor.name for conv in self._search()}
        return found.issuperset(names)

    def _is_of_head(self, vector: Change, heads: Sequence[Change], stems: Sequence[Stem]) -> bool:
        """Whether a vector is a head's: its bias, or a norm of its width."""
        pairs = {stem.change.pair for stem in stems}
        return any(
            head.pair == vector.pair and (module_of(head.tensor.key) == module_of(vector.tensor.key) or head.pair not in pairs)
            for head in heads
        )


def _change(tensor: Tensor, shape: tuple[int, ...]) -> Change | None:
    """The one axis in which the shapes differ; the first one of a matrix of the channels with themselves; None for others."""
    if len(tensor.shape) != len(shape) or 0 in (*tensor.shape, *shape):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(tensor.shape, shape, strict=True)) if a != b]
    change = Change(tensor, shape, axes[0])
    return change if len(axes) == 1 or _is_square_of_channels(change) else None


def _is_square_of_channels(change: Change) -> bool:
    """Whether it maps the channels to themselves, pixel by pixel: [C, C, 1, 1]."""
    shape, after = change.tensor.shape, change.shape
    ones = (1,) * (len(shape) - 2)
    return len(shape) > 2 and shape == (change.pair[0],) * 2 + ones and after == (change.pair[1],) * 2 + ones


def _follows(key: str, other: str) -> bool:
    """Whether the numbers in two names say that the first comes later: `body.1.entry` after `body.0.exit`."""
    pieces, others = _NUMBERS.split(key), _NUMBERS.split(other)
    first = next(((a, b) for a, b in zip(pieces, others, strict=False) if a != b), ("", ""))
    return all(piece.isdecimal() for piece in first) and int(first[0]) > int(first[1])


def named(texts: Sequence[str], most: int = 3) -> str:
    """The first of several differences, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def changed_shapes(copy: Copy) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a copy that differ, with their shapes in LIKE."""
    return ((tensor.name, other.shape) for tensor, other in copy.pairs if tensor.shape != other.shape)
