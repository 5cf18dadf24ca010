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
    groups = by_group(tensors)
    return tuple(left for group in groups for left in _Group(group, stems, ordered, torch or ordered, widths).left())


class _Group:
    """One state dict, and the stems of the file: by name the channels that each kernel takes, and their shapes."""

    def __init__(
        self, tensors: Sequence[Tensor], stems: Sequence[FirstConv], ordered: bool, torch: bool, widths: Sequence[int]
    ) -> None:
        self.stems = {conv.tensor.name: conv.in_channels // conv.groups for conv in stems}
        self.widths = {*self.stems.values(), *widths}
        self.shapes = {conv.tensor.shape for conv in stems}
        self.copies = Copies(tensors)
        self.network = Network(self.copies.kept, ordered=ordered, torch=torch)
        self.judged = Judged(self.network, tensors)

    def left(self) -> Iterator[Unexplained]:
        """The kernels that are left: copies of stems, and what may see the image beside them."""
        stems = []
        for kernel in (k for k in self.network.kernels if k.tensor.shape in self.shapes):
            copies = self.copies.of(kernel.tensor)
            known = [t.name for t in copies if t.name in self.stems]
            if known:
                stems.append(kernel)
                others = (t for t in copies if t.name not in self.stems)
                yield from (Unexplained(t, self.stems[known[0]], f"is a copy of {known[0]}") for t in others)
        for width in sorted(self.widths):
            for kernel, why, is_open in self._beside(stems, width):
                yield from (Unexplained(t, width, why, is_open) for t in self.copies.of(kernel.tensor))

    def _beside(self, stems: Sequence[LayerWeight], width: int) -> Iterator[tuple[LayerWeight, str, bool]]:
        """The kernels of a width that are no stems, and that neither layers nor their places put inside, each with the evidence
        and whether it is open."""
        judged = [k for k in stems if k.at in self.judged.verdicts]
        free = [k for k in self.judged.of(State.FREE, width) if k not in judged]
        unsure = [k for k in self.judged.of(State.OPEN, width) if k not in judged]
        placed, unsure = Placing(self.judged).settled([*judged, *free], unsure)
        for kernel in (*placed, *unsure):
            verdict = self.judged.verdicts[kernel.at]
            if kernel in unsure:
                yield kernel, verdict.why or NOT_MADE, True
            elif kernel not in judged:
                yield kernel, verdict.why or NOT_MADE if kernel in free else PLACED, False
