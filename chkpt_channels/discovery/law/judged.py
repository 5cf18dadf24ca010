"""The verdict on each kernel that is as narrow as an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from chkpt_channels.core.limits import LIMITS
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law import patch_embeddings
from chkpt_channels.discovery.law.depthwise import Depthwise
from chkpt_channels.discovery.law.evidence import MOST_BANDS, Evidence, State, Verdict
from chkpt_channels.discovery.law.network import LayerWeight, Network
from chkpt_channels.discovery.law.places import OTHER_SENSES, Places


class Judged:
    """A network and its verdicts: on the narrow kernels, by their index. `first` is the first convolution, where the order is
    known and no patch embedding stands before it."""

    def __init__(self, network: Network, tensors: Sequence[Tensor]) -> None:
        self.network, self.places = network, Places(network)
        convs = _image_convs(self.places)
        self.narrow = [k for k in convs if k.channels <= MOST_BANDS]
        self.is_crowded = len(self.narrow) > LIMITS.narrow_kernels
        self.verdicts: dict[int, Verdict] = {}
        self.patches: list[tuple[LayerWeight, str]] = []
        self.first: LayerWeight | None = None
        if not self.is_crowded:
            self._judge(convs, tensors)

    def _judge(self, convs: Sequence[LayerWeight], tensors: Sequence[Tensor]) -> None:
        network = self.network
        self.patches = patch_embeddings.patches(self.places, tensors)
        others = [*convs[1:], *(k for k, _ in self.patches)]
        is_first = convs and all(k is convs[0] or network.is_before(convs[0], k) for k in others)
        self.first = convs[0] if is_first else None
        self.depthwise = Depthwise(self.places, self.first, [k for k in self.narrow if k.channels == 1])
        evidence = Evidence(self.places, self.first)
        several = {k.at: evidence.verdict(k) for k in self.narrow if k.channels > 1}
        self.verdicts = self.depthwise.verdicts | several

    def state(self, kernel: LayerWeight) -> State:
        """What is known of a narrow kernel's input; of a wider one that it is inside."""
        return self.verdicts[kernel.at].state if kernel.at in self.verdicts else State.INSIDE

    def why(self, kernel: LayerWeight) -> str:
        """The evidence on a narrow kernel, in words."""
        return self.verdicts[kernel.at].why if kernel.at in self.verdicts else ""

    def may_begin(self, kernel: LayerWeight) -> bool:
        """Whether a stem's name or its place speaks for a kernel."""
        places = self.places
        return places.is_named_stem(kernel) or places.begins_tower(kernel) or places.begins_network(kernel)

    def of(self, state: State, channels: int | None = None) -> list[LayerWeight]:
        """The narrow kernels in a state, of this width where one is given."""
        return [k for k in self.narrow if self.state(k) is state and channels in (None, k.channels)]


def _image_convs(places: Places) -> list[LayerWeight]:
    """The convolutions that can see an image: of the network's number of dimensions, and not named for another input, where
    there are such."""
    convs = places.network.convs
    flat = [k for k in convs if len(k.window) > 1]
    convs = flat if any(k.channels <= MOST_BANDS for k in flat) else convs
    convs = [k for k in convs if len(k.window) > 1 or not (flat and OTHER_SENSES.search(k.key))]
    seen = [k for k in convs if k.channels > MOST_BANDS or not OTHER_SENSES.search(k.key)]
    convs = seen if any(k.channels <= MOST_BANDS for k in seen) else convs
    ranks = Counter(len(k.window) for k in convs if k.is_wide)
    usual = max(ranks, key=lambda rank: ranks[rank], default=0)
    if not any(k.channels <= MOST_BANDS and len(k.window) == usual for k in convs):
        return convs
    return [k for k in convs if len(k.window) == usual or k.channels != 1 or places.part(k) or places.is_named_stem(k)]
