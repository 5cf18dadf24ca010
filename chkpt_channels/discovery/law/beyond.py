"""Whether the image goes past the stems: what the stems make is what the next layers take.

Where a layer behind a stem is wider than the stem by the image's channels, the image was joined to it: ENet's 13 + 3 = 16,
EDANet's 12 + 3 = 15, 64 + 3 = 67. No edit of kernels is right then, for the widths in the rest of the file count the image too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chkpt_channels.core.records import pattern
from chkpt_channels.core.tensors import Tensor
from chkpt_channels.discovery.law.evidence import NEAREST
from chkpt_channels.discovery.law.network import LayerWeight, Network, is_color_shift, is_weight
from chkpt_channels.discovery.law.places import DEPTHWISE, Places, modules

LAYERS_BEHIND = 12
"""Modules behind a stem in which the joined image is looked for: the whole of a first stage."""
MOST_EXTRA = 4
"""Channels that an image can have where its kernels were made for another number: pooled copies, alpha."""
MOST_PIECES = 8
"""Of equal width that a layer takes joined, as DenseNet's and HRNet's do."""

_NORM = pattern(r"norm|bn|act|relu")
"""Names of what takes a width and makes the same."""


def why_unnamed(places: Places, stems: Sequence[LayerWeight], channels: int, tensors: Iterable[Tensor]) -> str:
    """Why stems could be too few: a tensor in the module of one has a kernel's shape over as many channels, and no weight's name
    (the k0 of ECBSR). Over one channel each gain of a filter would have."""
    homes = tuple(f"{home}." for home in {places.home(stem) for stem in stems} if home)
    alike = (t for t in tensors if len(t.shape) > 3 and t.shape[1] == channels > 1 and t.shape[0] > 1)
    unnamed = next((t.key for t in alike if t.key.startswith(homes) and not is_weight(t)), "")
    return f"{unnamed} may take its {channels} channels too" if unnamed else ""


def why_past(places: Places, stems: Sequence[LayerWeight], channels: int) -> str:
    """Why kernel edits alone cannot be right: the layer that takes the image too, or a stem that passes it on; "" where nothing
    shows that."""
    network = places.network
    if channels == 1 and (kernel := _image_filter(places, stems)):
        return f"{kernel.layer} filters the one channel, and of several channels it would be depthwise"
    if kernel := _color_filter(network, stems, channels):
        return f"{kernel.layer} filters the {channels} channels one by one"
    for stem in stems:
        is_filter = channels == 1 and stem.is_wide and _is_mixed(network, stem)
        is_filter = is_filter and (stem.filters <= MOST_EXTRA or bool(DEPTHWISE.search(stem.key)))
        is_adapter = stem.filters == channels and any(k.channels == channels for k in network.kernels if k is not stem)
        if is_adapter or is_filter:
            return f"{stem.layer} makes {stem.filters} channels, as few as an image has"
        for module, width, between in _behind(places, stem):
            extra, block = width - stem.filters, stem.layer.rpartition(".")[0]
            is_next = bool(block) and module.startswith(f"{block}.")
            is_joined = extra == channels or (is_next and 0 < extra <= MOST_EXTRA)
            takes = network.by_layer[module].window if module in network.by_layer else _NORM.search(module)
            if (is_joined and width not in between) or (takes and 0 < extra <= MOST_EXTRA and width not in network.makers):
                return f"{module} takes {width} channels, the {stem.filters} of {stem.layer} and {extra} of the image"
        if joined := _joined(network, stem, stems, channels):
            return f"{joined.layer} takes {joined.channels} channels, and none takes the {stem.filters} of {stem.layer}"
    filters = {stem.filters for stem in stems} | {sum(k.filters for k in group) for group in _branches(places, stems)}
    for kernel in network.kernels:
        if kernel.window and _takes_image(network, kernel, channels, filters):
            return f"{kernel.layer} takes {kernel.channels} channels, {channels} more than any layers make"
    return ""


def _joined(network: Network, stem: LayerWeight, stems: Sequence[LayerWeight], channels: int) -> LayerWeight | None:
    """A layer that takes the image's channels more than a stem makes, where none takes what it makes alone or with the others."""
    others = [k for k in network.kernels if k is not stem]
    if network.ordered or not stem.is_wide or len(stems) > 1:
        return None
    if any(stem.filters in (k.channels, k.filters) or (k.channels % stem.filters == 0) for k in others):
        return None
    return next((k for k in others if k.window and k.channels == stem.filters + channels), None)


def _branches(places: Places, stems: Sequence[LayerWeight]) -> list[list[LayerWeight]]:
    """The stems that stand together, whose outputs may be joined."""
    homes = {places.home(stem) for stem in stems}
    return [[stem for stem in stems if places.home(stem) == home] for home in homes]


def may_be_depthwise(network: Network, kernel: LayerWeight) -> bool:
    """Whether a stem of one channel has filters for each of three colors, and the next layer mixes what they make. Volumes have
    no colors."""
    is_image = len(kernel.window) == 2 and kernel.is_wide
    return is_image and kernel.channels == 1 and kernel.filters % len("rgb") == 0 and _is_mixed(network, kernel)


def _is_mixed(network: Network, kernel: LayerWeight) -> bool:
    """Whether a pointwise convolution comes next and takes its channels: then it may be depthwise over an image."""
    behind = network.following(kernel, 1)
    return any(k.is_point and k.channels == kernel.filters and len(k.window) == len(kernel.window) for k in behind)


def _image_filter(places: Places, stems: Sequence[LayerWeight]) -> LayerWeight | None:
    """A layer that filters one channel right before a stem, or beside one where there is no order; or a shift of this channel."""
    network = places.network
    for kernel in network.kernels:
        if kernel.filters == kernel.channels == 1 < len(kernel.window) and len({*kernel.window[-2:]}) == 1:
            after = network.kernels[kernel.at + 1 : kernel.at + 2]
            home = places.home(kernel)
            near = after if network.ordered else [k for k in places.inside[home] if home]
            is_filter = bool(DEPTHWISE.search(kernel.key)) or is_color_shift(kernel)
            may_be_first = not network.ordered or any(network.is_before(kernel, stem) for stem in stems)
            if (is_filter and may_be_first) or places.is_named_stem(kernel) or any(stem in near for stem in stems):
                return kernel
    return None


def _color_filter(network: Network, stems: Sequence[LayerWeight], channels: int) -> LayerWeight | None:
    """A depthwise layer over as many channels as the image has, which no layer makes: it takes the image beside the stems."""
    if channels == 1 or not stems:
        return None
    makers = [k for k in network.makers.get(channels, ()) if k.channels != 1]
    filters = (k for k in network.makers.get(channels, ()) if k.channels == 1 and k.is_wide and k not in stems)
    return next((k for k in filters if not any(not network.ordered or network.is_before(m, k) for m in makers)), None)


def _behind(places: Places, stem: LayerWeight) -> Iterator[tuple[str, int, set[int]]]:
    """The modules behind a stem, with the channels that each takes and those that layers before it make: the next modules in
    their order, or those of the same block."""
    network, layers = places.network, places.network.by_layer
    if network.ordered:
        widths = [*network.widths.items()]
        at = next(i for i, (module, _) in enumerate(widths) if module == stem.layer)
        made: set[int] = set()
        for module, width in widths[at + 1 : at + LAYERS_BEHIND]:
            yield module, width, made
            made |= {layers[module].filters} if module in layers else set()
        return
    for module in reversed(modules(stem)[1:]):
        made = {k.filters for k in places.inside[module]}
        inside = ((m, w) for m, w in network.widths.items() if m != stem.layer and m.startswith(f"{module}."))
        yield from ((m, w, made) for m, w in inside if m.count(".") <= stem.layer.count(".") + 1)


def _takes_image(network: Network, kernel: LayerWeight, channels: int, filters: set[int]) -> bool:
    """Whether a layer takes a width that no layers make, and that some layers and the image make together. `filters` are those of
    stems: what they and the image make is no sum of others."""
    width, made = kernel.channels, network.makers
    if kernel.filters == 1 and width - channels <= MOST_EXTRA:  # CBAM's gate takes a mean and a maximum
        return False
    is_joined = kernel.is_wide and width - channels in filters
    if width <= channels or not (is_joined or width - channels in made):
        return False
    if is_joined and network.ordered:  # grown widths may be the same: then a layer near it makes them
        return not any(k.filters == width for k in network.preceding(kernel, NEAREST))
    if width in made:
        return False
    if is_joined:
        return True
    if 2 * width in made or any(m > MOST_EXTRA and width % m == 0 and width // m <= MOST_PIECES for m in made if m < width):
        return False
    if any(width - m in made for m in made if m < width and channels not in (m, width - m)):
        return False
    before = network.preceding(kernel, NEAREST)
    return not any(k.filters % width == 0 and kernel.filters % (k.filters // width) == 0 for k in before)
