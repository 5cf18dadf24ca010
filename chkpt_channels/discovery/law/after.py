"""The law asked of a set of kernels that someone chose: which others take the image's channels too, as far as shapes and names
tell. Whoever converts some of the kernels that see an image leaves a file that loads and computes something else.

The first convs that the search finds leave none: it refuses where a kernel is neither a first conv nor explained. Those that
were named for another reason may.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chkpt_channels.core.records import NamedTuple
from chkpt_channels.core.tensors import FirstConv, Tensor
from chkpt_channels.discovery.law.copies import Copies, by_group
from chkpt_channels.discovery.law.evidence import State
from chkpt_channels.discovery.law.judged import Judged
from chkpt_channels.discovery.law.network import LayerWeight, Network
from chkpt_channels.discovery.law.placing import Placing

NOT_MADE = "no layer is known to make these"
PLACED = "it stands where first convolutions stand"


class Unexplained(NamedTuple):
    """A kernel that takes as many channels as first convs do, is none of them, and is not known to be inside the network. `why`
    is the evidence in words; `is_open` says that there is some for both."""

    tensor: Tensor
    channels: int
    why: str
    is_open: bool = False

    @property
    def what(self) -> str:
        """What is wrong with leaving it, in words that follow its name."""
        return f"{'could take' if self.is_open else 'takes'} the {self.channels} channels of the image too"


def unexplained(
    tensors: Iterable[Tensor], stems: Sequence[FirstConv], *, ordered: bool, torch: bool, widths: Sequence[int] = ()
) -> tuple[Unexplained, ...]:
    """The kernels of every model in the file that take as many channels as one of the stems, or as `widths` say, are no stems,
    and that no layers explain. `tensors` are those of the network that has the stems' channels; `ordered` and `torch` as in
    `search.find`."""
    return tuple(left for group in by_group(tensors) for left in _left(group, stems, ordered, torch or ordered, widths))


def _left(
    tensors: Sequence[Tensor], convs: Sequence[FirstConv], ordered: bool, torch: bool, widths: Sequence[int]
) -> Iterator[Unexplained]:
    """The kernels of one state dict that are left: copies of first convs, and what may see the image beside them."""
    channels, shapes = {conv.tensor.name: conv.in_channels // conv.groups for conv in convs}, {c.tensor.shape for c in convs}
    copies = Copies(tensors)
    judged = Judged(Network(copies.kept, ordered=ordered, torch=torch), tensors)
    stems = []
    for kernel in (k for k in judged.network.kernels if k.tensor.shape in shapes):
        alike = copies.of(kernel.tensor)
        if known := next((t.name for t in alike if t.name in channels), ""):
            stems.append(kernel)
            others = (t for t in alike if t.name not in channels)
            yield from (Unexplained(t, channels[known], f"is a copy of {known}") for t in others)
    for width in sorted({*channels.values(), *widths}):
        for kernel, why, is_open in _beside(judged, stems, width):
            yield from (Unexplained(t, width, why, is_open) for t in copies.of(kernel.tensor))


def _beside(judged: Judged, stems: Sequence[LayerWeight], width: int) -> Iterator[tuple[LayerWeight, str, bool]]:
    """The kernels of a width that are no stems, and that neither layers nor their places put inside, each with the evidence and
    whether it is open."""
    narrow = [k for k in stems if k.at in judged.verdicts]
    free, unsure = ([k for k in judged.of(state, width) if k not in narrow] for state in (State.FREE, State.OPEN))
    placed, unsure = Placing(judged).settled([*narrow, *free], unsure)
    for kernel in (*placed, *unsure):
        why = judged.why(kernel) or NOT_MADE
        if kernel in unsure:
            yield kernel, why, True
        elif kernel not in narrow:
            yield kernel, why if kernel in free else PLACED, False
