"""Weights that are there and cannot be read stand in the search as if they could.

A sparse first kernel that the search did not know of would make the second kernel the first: nothing makes its channels then. So
the search sees each such weight, in its place and with its shape; where its answer is one of them, the answer is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chkpt_channels.core.dtypes import BY_NAME
from chkpt_channels.core.errors import Candidate
from chkpt_channels.core.records import NamedTuple, pattern
from chkpt_channels.core.tensors import Finding, OpaqueTensor, Tensor
from chkpt_channels.formats.base import TensorStore

_WEIGHT = pattern(r"(.*[./])?_?(weight|kernel|w|filters?|weight_v|weight_orig|original[01]?)(?:[._:]_?q?data)?")
"""A weight by the names that a kernel has (`network`), or its integers where these are apart from their scale: quanto's
`conv1.weight._data`, torchao's `conv1._weight_qdata`."""
_NUMBERED = pattern(r"(.*[./])?\d+")
"""An array in a list."""
_KERNEL_RANKS = range(3, 6)
_QUANTIZED = ("QI8", "QU8")
"""Integers whose scale the file keeps with them: the search reads them as they are."""


class Searched(NamedTuple):
    """The tensors that are searched, in their order, and the opaque ones among them by the names that they have there; `unplaced`
    are weights of which not even the shape is known."""

    tensors: Sequence[Tensor]
    opaque: Mapping[str, OpaqueTensor]
    unplaced: Sequence[OpaqueTensor]


def searched(store: TensorStore) -> Searched:
    """The model's tensors, and what cannot be read of it as float32 tensors of the same shape."""
    plain = store.model_tensors()
    standing: list[tuple[int, Tensor, OpaqueTensor]] = []
    unplaced: list[OpaqueTensor] = []
    integers = {t.name: weight for t in plain if (weight := _integers(t))}
    where = {name: at for at, name in enumerate(store.tensors)} if store.opaque or integers else {}
    for weight in (*store.opaque, *integers.values()):
        name = _weight_name(weight)
        if not name or name in store.tensors.keys() - {weight.name}:
            continue
        if weight.shape is None:
            unplaced.append(weight)
        else:
            at = where.get(weight.name, weight.follows)
            standing.append((at, Tensor(name, BY_NAME["F32"], weight.shape, weight.group), weight))
    if not standing:
        return Searched(plain, {}, unplaced)
    taken = {weight.name for _, _, weight in standing}
    # before the tensor at its index, which is its own place where it is a tensor itself
    places = [(at, 0, tensor) for at, tensor, _ in standing]
    places += [(where[t.name], 1, t) for t in plain if t.name not in taken]
    tensors = [tensor for _, _, tensor in sorted(places, key=lambda place: place[:2])]
    return Searched(tensors, {tensor.name: weight for _, tensor, weight in standing}, unplaced)


def without_opaque(finding: Finding, among: Searched) -> Finding:
    """The finding of a search among these, with the names that the file has; none where it would take what cannot be read: then
    that is the first candidate."""
    if not among.opaque and not among.unplaced:
        return finding
    candidates = tuple(_candidate(c.key, c.shape, among) or c for c in finding.candidates)
    blocking = [_candidate(conv.tensor.name, conv.tensor.shape, among) for conv in finding.first_convs]
    blocking += [Candidate(weight.name, (), weight.what) for weight in among.unplaced]
    first = tuple(candidate for candidate in blocking if candidate)
    if not first:
        return finding._replace(candidates=candidates)
    readable = [conv.tensor for conv in finding.first_convs if conv.tensor.name not in among.opaque]
    others = (Candidate(t.name, t.shape, f"{first[0].key} cannot be read, and could be the first") for t in readable)
    return Finding((), (*first, *others, *candidates))


def candidates_among(store: TensorStore, finding: Finding) -> tuple[OpaqueTensor | None, tuple[Candidate, ...]]:
    """The weight that cannot be read and that is the likeliest first conv, or, where there is no candidate, any that could be
    one; and the candidates that can be read."""
    among = searched(store)
    named = {weight.name: weight for weight in (*among.opaque.values(), *among.unplaced)}
    if finding.candidates:
        readable = tuple(candidate for candidate in finding.candidates if candidate.key not in named)
        return named.get(finding.candidates[0].key), readable
    arrays = [weight for weight in store.opaque if _NUMBERED.fullmatch(weight.key)]
    kernels = [weight for weight in (*named.values(), *arrays) if weight.shape is None or len(weight.shape) in _KERNEL_RANKS]
    return next(iter(kernels), None), ()


def _candidate(name: str, shape: tuple[int, ...], among: Searched) -> Candidate | None:
    """The candidate that a stand-in is; None for a tensor that can be read."""
    weight = among.opaque.get(name)
    return Candidate(weight.name, shape, weight.what) if weight else None


def _weight_name(weight: OpaqueTensor) -> str:
    """The name of the weight that it is; "" where it has not the name of one."""
    match = _WEIGHT.fullmatch(weight.key)
    prefix = weight.name[: len(weight.name) - len(weight.key)]
    return f"{prefix}{match[1] or ''}{match[2]}" if match else ""


def _integers(tensor: Tensor) -> OpaqueTensor | None:
    """A weight of integers without a scale: its numbers cannot be mixed, and its shape is that of a kernel."""
    if tensor.dtype.floating or tensor.dtype.name in _QUANTIZED or len(tensor.shape) not in _KERNEL_RANKS:
        return None
    what = f"its {tensor.dtype.name} numbers have no scale that is known"
    hint = "convert the floating-point checkpoint that it was made from"
    return OpaqueTensor(tensor.name, tensor.shape, what, hint, tensor.group)
